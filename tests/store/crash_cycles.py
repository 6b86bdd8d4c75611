"""Cycles of writing, reading and kill -9 on one store. A script for test_crash.py: the parent imports once and forks.

Each cycle: a writer adds batches, consolidates, forgets, and acknowledges what it did on a pipe; three readers query
all the while; the writer is killed at a random moment, then the readers. The parent opens the store: every acknowledged
item must be there, none acknowledged as forgotten, none half, and the weights must be those that the store's log gives.
"""

import json
import os
import random
import signal
import sys
import time

import numpy as np

from bag import BagEmbedder
from memory_titan import LongTermMemoryConfig, TitansManager

OPTIONS = {"short_term_size": 100_000, "long_term_config": LongTermMemoryConfig(surprise_threshold=0.0)}


def write(path, pipe, seed):
    """Add, forget, consolidate until killed; a line of JSON for each acknowledged call."""
    choose = random.Random(seed)
    titans = TitansManager(BagEmbedder(16), path=path, **OPTIONS)
    own = []
    for step in range(10_000):
        count = choose.choice([1, 1, 3, 40])
        ids = [f"{seed}-{step}-{n}" for n in range(count)]
        # announced first: a call that was killed may have been done whole, or not at all
        os.write(pipe, (json.dumps({"try": ids}) + "\n").encode())
        titans.add_documents([f"text of {name} word{choose.randrange(500)}" for name in ids], {"cycle": seed}, ids=ids)
        os.write(pipe, (json.dumps({"added": ids}) + "\n").encode())
        own += ids
        if choose.random() < 0.15:
            gone = choose.sample(own, min(3, len(own)))
            os.write(pipe, (json.dumps({"forgetting": gone}) + "\n").encode())
            titans.forget(gone)
            os.write(pipe, (json.dumps({"forgotten": gone}) + "\n").encode())
            own = [name for name in own if name not in gone]
        if choose.random() < 0.1:
            titans.consolidate_memories()


def read(path, seed):
    """Query until killed; what comes back must be whole. Exits with 3 when it is not."""
    titans = TitansManager(BagEmbedder(16), path=path, read_only=True, **OPTIONS)
    choose = random.Random(seed)
    while True:
        for hit in titans.query(f"word{choose.randrange(500)}", 5):
            if not hit["content"].startswith(f"text of {hit['id']} word") or "cycle" not in hit["metadata"]:
                os._exit(3)


def forked(function, *arguments):
    """A child that runs it; exits with 4 and a trace when it fails."""
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(4)
        os._exit(0)
    return child


def main(path, cycles, seed):
    choose = random.Random(seed)
    TitansManager(BagEmbedder(16), path=path, **OPTIONS).close()
    held, gone = set(), set()
    for cycle in range(cycles):
        source, sink = os.pipe()
        writer = forked(write, path, sink, seed * 1000 + cycle)
        os.close(sink)
        readers = [forked(read, path, n) for n in range(3)]
        time.sleep(choose.uniform(0.05, 0.6))
        os.kill(writer, signal.SIGKILL)
        _, status = os.waitpid(writer, 0)
        assert os.WIFSIGNALED(status), f"the writer failed in cycle {cycle}"
        for reader in readers:
            os.kill(reader, signal.SIGKILL)
            _, status = os.waitpid(reader, 0)
            assert os.WIFSIGNALED(status), f"a reader failed in cycle {cycle}: {status}"
        with os.fdopen(source) as lines:
            told = [json.loads(line) for line in lines.read().split("\n")[:-1]]
        maybe, doubtful = set(), set()
        for line in told:
            maybe, doubtful = set(line.get("try", maybe)), set(line.get("forgetting", doubtful))
            held |= set(line.get("added", ()))
            if "forgotten" in line:
                gone |= set(line["forgotten"])
                held -= gone
                doubtful = set()
        with TitansManager(BagEmbedder(16), path=path, **OPTIONS) as titans:
            there = {item.id: item for item in titans.backend.get(titans.backend.select(), full=True)}
            assert titans.check() == []
            assert held - doubtful <= set(there), f"lost: {sorted(held - doubtful - set(there))[:3]}"
            assert not gone & set(there), "forgotten and there again"
            extra = set(there) - held
            assert extra in (set(), maybe), "half a call was kept"
            for name, item in there.items():
                assert (
                    item.content.startswith(f"text of {name} word") and item.vector.shape == (16,) and len(item.terms)
                )
            probe = titans.embedder.encode(["text word7"])[0]
            titans.long_term.recall(probe)
            again = TitansManager(BagEmbedder(16), path=path, read_only=True, **OPTIONS)
            np.testing.assert_allclose(again.long_term.recall(probe), titans.long_term.recall(probe), atol=1e-5)
            assert again.long_term.neural.written == titans.long_term.neural.written
            again.close()
            held = set(there)
    sys.stdout.write(json.dumps({"cycles": cycles, "items": len(held), "forgotten": len(gone)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
