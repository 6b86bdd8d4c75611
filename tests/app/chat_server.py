"""The chat in a process of its own, on the stand-in engine: python chat_server.py FOLDER PORT"""

import sys
import types
from pathlib import Path

# The package without what its front door brings along: torch takes longer to import than all the tests of the page.
package = types.ModuleType("memory_titan")
package.__path__ = [str(Path(__file__).parents[2] / "memory_titan")]
sys.modules["memory_titan"] = package

from fake_engine import FakeEngine  # noqa: E402
from memory_titan.app.chat_app import create_app  # noqa: E402
from memory_titan.app.chat_people import People  # noqa: E402
from memory_titan.app.service_run import run_service  # noqa: E402

if __name__ == "__main__":
    app = create_app(People(FakeEngine(pause=0.02), folder=Path(sys.argv[1])), "A stand-in", local=True)
    run_service(
        app, "127.0.0.1", int(sys.argv[2]), lambda url: sys.stdout.write(f"{url}\n") and sys.stdout.flush(), "auto"
    )
