"""A chat that remembers across sessions: LangChain messages, a fake chat model, and a TitansVectorStore in a file.

    pip install "memory-titan[langchain]"
    python examples/langchain_agent_memory.py

It runs offline. With a real model, put a chat model and embeddings of yours in place of the two below.
"""

import re
import tempfile
import zlib
from pathlib import Path

import numpy as np
from langchain_core.language_models.chat_models import SimpleChatModel
from langchain_core.messages import HumanMessage, SystemMessage

from memory_titan.integrations.langchain import TitansVectorStore

IGNORED = {"a", "and", "do", "does", "i", "in", "is", "my", "of", "on", "the", "to", "we", "what", "where"}


def embed(texts: list[str]) -> np.ndarray:
    """A stand-in for an embedding model: the sum of a fixed random vector for every word."""
    rows = np.zeros((len(texts), 64))
    for row, text in zip(rows, texts, strict=True):
        for word in set(re.findall(r"\w+", text.lower())) - IGNORED:
            row += np.random.default_rng(zlib.crc32(word.encode())).standard_normal(64)
    return rows


class FakeModel(SimpleChatModel):
    """Answers a question with the first thing it was reminded of, and anything else with thanks."""

    @property
    def _llm_type(self) -> str:
        return "fake"

    def _call(self, messages, stop=None, run_manager=None, **kwargs) -> str:
        memories = messages[0].content.splitlines()[1:]
        if not messages[-1].content.endswith("?"):
            return "Noted."
        return f"You told me: {memories[0]}" if memories else "I do not know."


def session(path: Path, user: str, sentences: list[str]) -> None:
    """One process of the agent: what is said is answered in the light of what this user said before, and kept."""
    store = TitansVectorStore.create(embed, path=path)
    model = FakeModel()
    for said in sentences:
        remembered = store.similarity_search(said, k=3, filter={"user": user})
        context = "\n".join(["What the user told you before:", *(document.page_content for document in remembered)])
        answer = model.invoke([SystemMessage(context), HumanMessage(said)])
        print(f"{user:>5}: {said}\nagent: {answer.content}")
        if not said.endswith("?"):
            store.add_texts([said], [{"user": user}])
    store.manager.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "agent.memory"
        session(file, "anna", ["My sister's dog is called Bruno.", "In May I fly to Lisbon.", "I do not eat fish."])
        session(file, "ben", ["My dog is called Rex."])
        print("-- the next day")
        session(file, "anna", ["What is the dog called?", "Where do I fly?"])
        session(file, "ben", ["What is the dog called?", "Where do I fly?"])
