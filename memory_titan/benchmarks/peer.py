"""titans-pytorch's `NeuralMemory` under test, built to be the same memory as ours.

    NeuralMemory(dim, heads=H, dim_head=dim / H, chunk_size=64, momentum=True, qk_rmsnorm=True,
                 default_model_kwargs={"depth": 2, "expansion_factor": 4.0}, mem_model_norm_add_residual=False,
                 batch_size=64, max_grad_norm=1.0)      "chunked"
                                                        "default": without the last line

The same: width, heads, fast weights (two layers of d x 4d a head, and nothing else: by default the peer adds a norm and
a residual around them, d weights more a head and a little more work), momentum, decay, normalised keys and queries
(RMS there, l2 here). `batch_size` is the number of tokens after which the weights of the surprise move: at one chunk it
is the recurrent memory of the paper, in which each chunk's gradients are taken at the weights the last one left;
its surprises then need the clamp. Without `batch_size`, its default, every surprise of a call is taken at the weights
the stream began with.

Not the same, and left as the peer has it: step sizes are per token but momentum and decay per chunk (from the chunk's
mean), queries read the weights of the last whole chunk, no convolution, no output gate of full width. All of it is less
work than ours. `use_accelerated_scan` needs a GPU and stays off.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Any, Literal

from memory_titan.benchmarks.work import CHUNK, DEPTH, EXPANSION, Subject


def build(way: Literal["chunked", "default"], dim: int, heads: int) -> Subject:
    """The peer in one of the two ways above. Raises ImportError where it is not installed."""
    try:
        peer = importlib.import_module("titans_pytorch")
    except ImportError as error:
        raise ImportError(f"titans-pytorch: {error}; install it with: pip install 'memory-titan[bench]'") from error
    options: dict[str, Any] = {"batch_size": CHUNK, "max_grad_norm": 1.0} if way == "chunked" else {}
    memory = peer.NeuralMemory(
        dim,
        heads=heads,
        dim_head=dim // heads,
        chunk_size=CHUNK,
        momentum=True,
        qk_rmsnorm=True,
        default_model_kwargs={"depth": DEPTH, "expansion_factor": float(EXPANSION)},
        mem_model_norm_add_residual=False,
        **options,
    )
    weights = sum(weight.numel() for weight in memory.memory_model_parameters)
    return Subject(memory, lambda x, state: memory(x, state=state), weights, version("titans-pytorch"))
