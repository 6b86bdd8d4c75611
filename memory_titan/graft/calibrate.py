"""Where a graft starts: with keys that tell a model's states apart.

The states of one layer all look alike: they share a mean, and a few directions hold most of what is left. Keys that are
random projections of them are nearly the same for every token, and training has to find out first what differs. From
a little text `calibrate` takes mean and covariance of what each grafted attention is given, and starts with

    q = R C^{-1/2} (h - mean),    k and v likewise,    out = C^{1/2} R^T

R a random rotation, so that every head gets a part of everything: white keys, and an answer that is a state again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from memory_titan.graft.branch import MemoryBranch
from memory_titan.graft.model import MemoryModel

_SHRINK = 1e-2  # of the mean variance, added to all


@torch.no_grad()
def calibrate(model: MemoryModel, texts: Iterable[Tensor], seed: int = 0) -> int:
    """Start the graft from the statistics of some text. What was trained before is lost for the parts it sets.

    With source "frozen" the convolution's bias is set alone, so that the attention's own q and k lose their mean.

    Args:
        model: grafted; changed in place.
        texts: token ids, `[B, T]` each, no padding; a few thousand tokens in all are enough.
        seed: of the rotations.

    Returns:
        tokens read.

    Raises:
        ValueError: fewer tokens than what is measured is wide.
    """
    sums: dict[int, tuple[Tensor, Tensor]] = {}
    tokens = 0

    def listen(layer: int, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        h = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        frozen = model.graft.frozen(layer)
        if frozen is not None:
            h = torch.cat(frozen(h).chunk(3, -1)[:2], -1)
        x = h.flatten(0, -2).double()
        before = sums.get(layer, (0.0, 0.0))
        sums[layer] = before[0] + x.sum(0), before[1] + x.mT @ x

    hooks = [
        module.register_forward_pre_hook(partial(listen, layer), with_kwargs=True)
        for layer, module in model.graft.attention.items()
    ]
    try:
        with model.disable_memory(keep_window=True):
            for ids in texts:
                model.hidden(ids.to(model.device))
                tokens += ids.numel()
    finally:
        for handle in hooks:
            handle.remove()
    generator = torch.Generator().manual_seed(seed)
    for layer, (first, second) in sums.items():
        if tokens <= len(first):
            raise ValueError(f"calibration needs more than {len(first)} tokens here; got {tokens}")
        branch = model.branches[str(layer)]
        assert isinstance(branch, MemoryBranch)
        mean = first / tokens
        if model.graft_config.source == "frozen":
            _centre(branch, mean)
        else:
            _whiten(branch, mean, second / tokens - torch.outer(mean, mean), generator)
    return tokens


def _centre(branch: MemoryBranch, mean: Tensor) -> None:
    """mean: `[2 dim]`, of q and k."""
    if branch.memory.config.conv_size:
        assert branch.memory.conv.bias is not None
        branch.memory.conv.bias[: len(mean)] = -mean.to(branch.memory.conv.bias)


def _whiten(branch: MemoryBranch, mean: Tensor, covariance: Tensor, generator: torch.Generator) -> None:
    """mean `[hidden]`, covariance `[hidden, hidden]` of what the attention is given."""
    query, key_value, out = branch.query.query, branch.key_value, branch.out
    assert query is not None and key_value is not None and out is not None
    dim, hidden = query.weight.shape
    covariance = covariance + _SHRINK * covariance.diagonal().mean() * torch.eye(hidden).to(covariance)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values[-dim:], vectors[:, -dim:]  # the largest ones, if the memory is narrower
    kept = len(values)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0].to(values)[:, :kept]
    white = (rotation / values.sqrt()) @ vectors.mT  # [dim, hidden]
    back = (vectors * values.sqrt()) @ rotation.mT  # [hidden, dim]
    for weight, bias in ((query.weight, query.bias), (key_value.weight[:dim], key_value.bias[:dim])):
        weight.copy_(white)
        bias.copy_(-white @ mean)
    key_value.weight[dim:].copy_(white)
    key_value.bias[dim:].copy_(-white @ mean)
    out.weight.copy_(back)
