"""Where a graft starts: with keys that tell a model's states apart.

The states of one layer all look alike: they share a mean, and a few directions hold most of what is left. Keys that are
random projections of them are nearly the same for every token, and training has to find out first what differs. From
a little text `calibrate` takes mean and covariance of what each grafted attention is given, and starts with

    q = R C^{-1/2} (h - mean),    k and v likewise,    out = s C^{1/2} R^T

R a random rotation, so that every head gets a part of everything: white keys, and an answer that is a state (or, with
tokens for values, an embedding) again, with s as long as the residual that it is added to.

Where keys and values are of tokens, the refinement of a query starts as the next hop: what the memory below answered, a
token, is asked for as if it had stood in the text.
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
    graft, learned = model.graft, model.graft_config.source != "frozen"
    states: dict[int, _Moments] = {layer: _Moments() for layer in graft.layers}
    residuals: dict[int, _Moments] = {layer: _Moments() for layer in graft.layers}
    embeddings = _Moments()

    def listen(layer: int, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        h = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        frozen = graft.frozen(layer)
        states[layer].add(h if frozen is None else torch.cat(frozen(h).chunk(3, -1)[:2], -1))

    def measure(layer: int, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        residuals[layer].add(args[0].norm(dim=-1, keepdim=True))

    layers = graft.decoder.get_submodule(graft.architecture.layers)
    hooks = [
        graft.attention[layer].register_forward_pre_hook(partial(listen, layer), with_kwargs=True)
        for layer in graft.layers
    ]
    hooks += [layers[layer].register_forward_pre_hook(partial(measure, layer)) for layer in graft.layers]
    try:
        with model.disable_memory(keep_window=True):
            for ids in texts:
                model.hidden(ids.to(model.device))
                embeddings.add(graft.decoder.get_input_embeddings()(ids.to(model.device)))
    finally:
        for handle in hooks:
            handle.remove()
    if embeddings.count <= len(states[graft.layers[0]].first):
        raise ValueError(
            f"calibration needs more than {len(states[graft.layers[0]].first)} tokens here; got {embeddings.count}"
        )
    generator = torch.Generator().manual_seed(seed)
    for layer in graft.layers:
        branch = model.branches[str(layer)]
        assert isinstance(branch, MemoryBranch)
        if learned:
            like = embeddings if branch.keys_of_tokens else states[layer]
            told = embeddings if branch.values_of_tokens else states[layer]
            _whiten(branch, like, told, float(residuals[layer].mean), generator)
        else:
            _centre(branch, states[layer].mean)
    return embeddings.count


class _Moments:
    """Mean and covariance of what is added."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, torch.zeros(1), torch.zeros(1)

    def add(self, x: Tensor) -> None:
        """x: `[..., n]`."""
        x = x.flatten(0, -2).double()
        self.count += len(x)
        self.first, self.second = self.first.to(x) + x.sum(0), self.second.to(x) + x.mT @ x

    @property
    def mean(self) -> Tensor:
        """`[n]`."""
        return self.first / self.count

    def white(self, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
        """`[dim, n]` that makes x - mean white, `[n, dim]` that makes it x - mean again, and how long x - mean is.

        With fewer dimensions those are left out in which x varies least.
        """
        mean = self.mean
        covariance = self.second / self.count - torch.outer(mean, mean)
        length = float(covariance.trace().sqrt())
        covariance = covariance + _SHRINK * covariance.diagonal().mean() * torch.eye(len(mean)).to(covariance)
        values, vectors = (x[..., -dim:] for x in torch.linalg.eigh(covariance))
        rotation = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        rotation = torch.linalg.qr(rotation)[0].to(values)[:, : len(values)]
        return (rotation / values.sqrt()) @ vectors.mT, (vectors * values.sqrt()) @ rotation.mT, length


def _centre(branch: MemoryBranch, mean: Tensor) -> None:
    """mean: `[2 dim]`, of q and k."""
    if branch.memory.config.conv_size:
        assert branch.memory.conv.bias is not None
        branch.memory.conv.bias[: len(mean)] = -mean.to(branch.memory.conv.bias)


def _whiten(
    branch: MemoryBranch, states: _Moments, told: _Moments, residual: float, generator: torch.Generator
) -> None:
    """Queries and keys from the states, values from what is told; answers as long as the residual."""
    query, key, value, out = branch.query.query, branch.key, branch.value, branch.out
    assert query is not None and key is not None and value is not None and out is not None
    for layers, moments in (((query, key), states), ((value,), told)):
        white, back, length = moments.white(len(query.weight), generator)
        for layer in layers:
            layer.weight.copy_(white)
            layer.bias.copy_(-white @ moments.mean)
    out.weight.copy_(back * (residual / length))
    if branch.query.refine is not None and branch.keys_of_tokens and branch.values_of_tokens:
        # At any place of the key, which is the sum of what its places say: the signs that bind a token to each of them,
        # added up, and as strong as all of them together, for the places of the text before still speak for the first
        # hop. The norm in front of the refinement makes the answer sqrt(n) long.
        places = max(1, branch.context)
        signs = branch.memory.conv.weight[: len(query.weight), 0].flip(-1)[:, :places].sum(-1, keepdim=True)
        branch.query.refine.weight.copy_(places * signs * query.weight * (length / told.mean.numel() ** 0.5))
