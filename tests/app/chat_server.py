"""The chat in a process of its own, on the stand-in engine: python chat_server.py FOLDER PORT"""

import sys
from pathlib import Path

from fake_engine import FakeEngine
from memory_titan.app.chat_app import create_app
from memory_titan.app.chat_people import People
from memory_titan.app.service_run import run_service

if __name__ == "__main__":
    app = create_app(People(FakeEngine(pause=0.02), folder=Path(sys.argv[1])), "A stand-in", local=True)
    run_service(
        app, "127.0.0.1", int(sys.argv[2]), lambda url: sys.stdout.write(f"{url}\n") and sys.stdout.flush(), "auto"
    )
