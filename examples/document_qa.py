"""Ask a long document. Usage: python examples/document_qa.py [FILE [QUESTION]]"""

import sys

from memory_titan import TitansManager
from memory_titan.embedders import SentenceTransformerEmbedder

if len(sys.argv) > 1:
    with open(sys.argv[1], encoding="utf-8") as f:
        document = f.read()
else:  # Python's own reference on expressions and statements
    from pydoc_data.topics import topics

    document = "\n\n".join(topics[name] for name in ("with", "try", "yield", "import", "global"))
question = sys.argv[2] if len(sys.argv) > 2 else "What happens when the body of a with statement raises?"

titans = TitansManager(embedder=SentenceTransformerEmbedder("all-MiniLM-L6-v2"), architecture="mac")

# Split into chunks and add to memory
chunks = [document[i : i + 1000] for i in range(0, len(document), 1000)]
titans.add_documents(chunks)

# Query the document
answer = titans.query(question, top_k=3)
print(f"{len(chunks)} chunks. {question}")
for hit in answer:
    print(f"\n--- {hit['score']:.2f} {hit['source']}\n{hit['content'].strip()}")
