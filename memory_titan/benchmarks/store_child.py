"""One store under test in a process of its own, told by lines of JSON what to do; the answers are lines of JSON.

It is run as a file, by whichever interpreter has the contender: besides that it needs NumPy alone.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

TOP = 10


class Ours:
    """`TitansManager` with its defaults, but that nothing is refused, as no peer refuses anything."""

    modules = ("memory_titan.store.manager", "memory_titan.store.sqlite", "faiss")
    best_batch = 5000

    def __init__(self, path: Path, job: dict[str, Any]) -> None:
        from memory_titan import __version__
        from memory_titan.embedders import CallableEmbedder
        from memory_titan.store.config import LongTermMemoryConfig
        from memory_titan.store.manager import TitansManager

        self.version, self.path = __version__, path / "store"
        probe = np.eye(1, job["dim"], dtype=np.float32)
        self.given: Any = probe  # vectors of what is asked for next; none left: of the model's probe

        def look_up(texts: list[str]) -> Any:
            rows, self.given = self.given[: len(texts)], self.given[len(texts) :]
            return rows if len(rows) else probe

        self.store = TitansManager(
            CallableEmbedder(look_up, name="known"),
            path=self.path,
            long_term_size=job["long_term_size"],
            long_term_config=LongTermMemoryConfig(surprise_threshold=0.0),
            durable=job.get("durable", False),
        )

    def add(self, ids: list[str], texts: list[str], metadata: list[dict[str, Any]], vectors: Any) -> None:
        self.given = vectors
        self.store.add_documents(texts, metadata, ids=ids)

    def query(self, text: str, vector: Any, where: dict[str, Any] | None) -> list[str]:
        self.given = vector[None]
        return [hit["id"] for hit in self.store.query(text, TOP, where)]

    def dense(self, text: str, vector: Any, where: None) -> list[str]:
        seqs, _ = self.store.backend.dense(vector, TOP)
        return [str(seq - 1) for seq in seqs]  # numbers from 1 on

    def close(self) -> None:
        self.store.close()


class Chroma:
    """chromadb's `PersistentClient` with its defaults, and cosine."""

    modules = ("chromadb",)
    best_batch = 1000

    def __init__(self, path: Path, job: dict[str, Any]) -> None:
        import chromadb

        self.version = chromadb.__version__
        quiet = chromadb.Settings(anonymized_telemetry=False)
        self.client = chromadb.PersistentClient(str(path / "chroma"), settings=quiet)
        self.collection = self.client.get_or_create_collection(
            "benchmark", metadata={"hnsw:space": "cosine"}, embedding_function=None
        )

    def add(self, ids: list[str], texts: list[str], metadata: list[dict[str, Any]], vectors: Any) -> None:
        self.collection.add(ids=ids, documents=texts, metadatas=metadata, embeddings=vectors)

    def query(self, text: str, vector: Any, where: dict[str, Any] | None) -> list[str]:
        return list(self.collection.query(query_embeddings=vector[None], n_results=TOP, where=where)["ids"][0])

    dense = query

    def close(self) -> None:
        pass


class Faiss:
    """A bare index of vectors: no texts, no filters, and nothing on the disk before it is closed."""

    modules = ("faiss",)
    best_batch = 5000
    graph = True

    def __init__(self, path: Path, job: dict[str, Any]) -> None:
        import faiss

        self.version, self.faiss, self.path = faiss.__version__, faiss, path / "faiss"
        if self.path.exists():
            self.index = faiss.read_index(str(self.path))
        elif self.graph:
            self.index = faiss.IndexHNSWFlat(job["dim"], 32, faiss.METRIC_INNER_PRODUCT)
            self.index.hnsw.efSearch = 100  # chromadb's; FAISS's own 16 finds much less
        else:
            self.index = faiss.IndexFlatIP(job["dim"])

    def add(self, ids: list[str], texts: list[str], metadata: list[dict[str, Any]], vectors: Any) -> None:
        self.index.add(vectors)

    def query(self, text: str, vector: Any, where: dict[str, Any] | None) -> list[str]:
        if where is not None:
            raise ValueError("FAISS has no metadata to filter by")
        return [str(at) for at in self.index.search(vector[None], TOP)[1][0]]

    dense = query

    def close(self) -> None:
        self.faiss.write_index(self.index, str(self.path))


class FaissFlat(Faiss):
    """Every vector compared."""

    graph = False


CONTENDERS: dict[str, Any] = {
    "ours": Ours, "chromadb": Chroma, "faiss-hnsw": Faiss, "faiss-flat": FaissFlat,
}  # fmt: skip


def resident() -> int:
    """Bytes of this process's memory that are no file's; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


class Worker:
    """Does what it is told with one contender."""

    def __init__(self, job: dict[str, Any]) -> None:
        folder, self.path = Path(job["data"]), Path(job["path"])
        self.texts, self.asked = (json.loads((folder / f"{name}.json").read_text()) for name in ("texts", "queries"))
        self.vectors, self.queries = (np.load(folder / f"{name}.npy") for name in ("vectors", "queries"))
        self.job = job
        self.users, self.pages = job["users"], job["pages"]  # different values of the metadata
        kind = CONTENDERS[job["contender"]]
        wall, cpu = time.perf_counter(), time.process_time()
        for module in kind.modules:
            with suppress(ImportError):  # FAISS may be missing beside ours; what is needed says so itself
                importlib.import_module(module)
        self.imported = time.perf_counter() - wall, time.process_time() - cpu
        self.begin, wall, cpu = resident(), time.perf_counter(), time.process_time()
        self.store = kind(self.path, job)
        self.opened = time.perf_counter() - wall, time.process_time() - cpu

    def facts(self) -> dict[str, Any]:
        return {"version": self.store.version, "opened": self.opened, "imported": self.imported}

    def add(self, begin: int, end: int, single: bool = False) -> dict[str, Any]:
        """Items `begin` to `end`, in the contender's best batches or one by one."""
        batch = 1 if single else self.store.best_batch
        walls, cpu = [], time.process_time()
        for start in range(begin, end, batch):
            at = range(start, min(start + batch, end))
            given = (
                [str(n) for n in at],
                [self.texts[n] for n in at],
                [{"user": f"u{n % self.users}", "page": n % self.pages} for n in at],
                self.vectors[at.start : at.stop],
            )
            wall = time.perf_counter()
            self.store.add(*given)
            walls.append(time.perf_counter() - wall)
        return {"walls": walls, "cpu": time.process_time() - cpu}

    def query(self, begin: int, end: int, where: dict[str, Any] | None = None, dense: bool = False) -> dict[str, Any]:
        """Queries `begin` to `end`, one by one."""
        ask = self.store.dense if dense else self.store.query
        walls, found, cpu = [], [], time.process_time()
        for n in range(begin, end):
            wall = time.perf_counter()
            found.append(ask(self.asked[n], self.queries[n], where))
            walls.append(time.perf_counter() - wall)
        return {"walls": walls, "cpu": time.process_time() - cpu, "found": found}

    def resident(self) -> dict[str, Any]:
        gc.collect()
        return {"resident": resident() - self.begin}

    def reopen(self, **options: Any) -> dict[str, Any]:
        """The same store, opened otherwise."""
        self.store.close()
        self.store = CONTENDERS[self.job["contender"]](self.path, self.job | options)
        return {"done": True}

    def close(self) -> dict[str, Any]:
        wall, cpu = time.perf_counter(), time.process_time()
        self.store.close()
        took = time.perf_counter() - wall, time.process_time() - cpu
        size = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        return {"closed": took, "bytes": size}


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get between the answers

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        worker = Worker(json.loads(sys.stdin.readline()))
        say(worker.facts())
        for line in sys.stdin:
            order = json.loads(line)
            say(getattr(worker, order.pop("do"))(**order))
    except BrokenPipeError:
        pass
    except Exception as error:
        words = str(error).strip().splitlines()
        say({"error": f"{type(error).__name__}: {words[0] if words else 'no message'}"})


if __name__ == "__main__":
    main()
