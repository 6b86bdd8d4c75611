"""A chat with a long-term memory, without a language model. Usage: python examples/chat_memory.py [FILE]

Each line that is typed is remembered; what was remembered before comes back when it fits. The file keeps it all.
"""

import sys

from memory_titan import TitansManager
from memory_titan.embedders import SentenceTransformerEmbedder

titans = TitansManager(
    embedder=SentenceTransformerEmbedder("all-MiniLM-L6-v2"),
    architecture="mag",
    path=sys.argv[1] if len(sys.argv) > 1 else None,
)

# Initialize chat history
chat_history = []


def chat(user_input):
    # Get what short and long-term memory know of it, before it is remembered itself
    response_components = titans.query(user_input, top_k=3)

    # Add user input to history
    chat_history.append(f"User: {user_input}")

    # Add to short-term memory
    titans.add_documents([user_input], metadata=[{"speaker": "User"}], memory_type="short_term")

    # Generate response (in a real system, you'd use an LLM here)
    response = "; ".join(hit["content"] for hit in response_components) or "nothing yet"

    # Add response to history
    chat_history.append(f"Assistant: {response}")

    # Important information moves to long-term memory
    titans.consolidate_memories()

    return response


for line in sys.stdin:
    if line.strip():
        print(f"> {line.strip()}\n  I remember: {chat(line.strip())}")
titans.close()
