"""What every test can rely on: the same numbers on every run, one thread, no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported, so before anything else

import hypothesis
import pytest
import torch

# A first call may compile or load something, so no deadline. CI sees the same examples on every run: when it
# is red, the change did it. At a desk the search goes on from run to run.
hypothesis.settings.register_profile("desk", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "desk")

# Tests run in parallel processes; torch's own threads would only fight over the cores (see the Makefile).
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # training sets it, for the whole process
