"""The chat in a process of its own, on the stand-in engine: python chat_server.py FOLDER [SLOTS]"""

import sys
from pathlib import Path

from fake_engine import FakeEngine
from memory_titan.app.chat_app import create_app
from memory_titan.app.chat_people import People
from memory_titan.app.service_run import run_service

if __name__ == "__main__":
    engine = FakeEngine(slots=int(sys.argv[2]) if len(sys.argv) > 2 else 8, pause=0.02)
    app = create_app(People(engine, folder=Path(sys.argv[1])), "A stand-in", local=True)
    run_service(app, "127.0.0.1", 0, lambda url: sys.stdout.write(f"{url}\n") and sys.stdout.flush(), ws="auto")
