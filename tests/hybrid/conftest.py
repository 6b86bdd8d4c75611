"""Tiny frozen models, saved and loaded as a user's own would be."""

from __future__ import annotations

import pytest

import tiny
from memory_titan.hybrid.frozen import FrozenModel, load_frozen

SAVERS = {
    "llama": tiny.save_llama,
    "llama-without-template": lambda folder: tiny.save_llama(folder, template=None),
    "gpt2": tiny.save_gpt2,
}


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """By name, each loaded once."""
    models: dict[str, FrozenModel] = {}

    def load(name: str) -> FrozenModel:
        if name not in models:
            models[name] = load_frozen(str(SAVERS[name](tmp_path_factory.mktemp(name))), device="cpu")
        return models[name]

    return load


@pytest.fixture(params=list(SAVERS))
def frozen(request, loaded) -> FrozenModel:
    return loaded(request.param)


@pytest.fixture
def llama(loaded) -> FrozenModel:
    return loaded("llama")


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory, worker_id):
    """One for all workers of a run: a model is calibrated once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tiny-cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def cache(tiny_cache, monkeypatch):
    """A cache of the tests' own: what tiny models leave there is of no use to the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny_cache))
    return tiny_cache
