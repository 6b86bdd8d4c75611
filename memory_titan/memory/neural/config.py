"""What a `NeuralMemory` is: the choices of MIRAS, and the projections and gates around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from memory_titan.memory.convolution import checked_context
from memory_titan.memory.neural.bias import Bias
from memory_titan.memory.neural.retention import Retention
from memory_titan.memory.neural.rule import InnerGradient, Rule, refusal
from memory_titan.memory.neural.structure import ACTIVATIONS, Structure, StructureKind

Algorithm = Literal["descent", "momentum", "muon", "solve"]


@dataclass
class NeuralMemoryConfig:
    """Everything here is part of the function that a memory computes, `chunk_size` included.

    The defaults are Titans' memory with the exact gradient in its last matrix. `presets.py` has the memories of
    the papers. What cannot be raises ValueError, with the reason.
    """

    dim: int  # width of x and y; a multiple of heads
    heads: int = 4

    structure: StructureKind = "mlp"  # "mlp", "gated", or "residual" with a norm
    depth: int = 2  # matrices of the memory, 1 to 4; 1 is a matrix memory ("gated" always has three)
    expansion: int = 4  # width of the memory's hidden layers over that of a head
    activation: str = "silu"  # between the memory's layers: silu, gelu, relu
    features: int = 1  # degree of polynomial features of q and k, 1 to 3

    bias: Bias = "l2"  # the loss: "dot", "l2", "lp", "huber"
    p: float = 3.0  # the power of "lp"

    # what holds the weights: "none"; decay "fixed" a head, "scalar" a token, "channel" a token and input; "lq",
    # "kl", "norm"
    retention: Retention = "scalar"
    q: float = 4.0  # the norm of "lq"
    reset_every: int = 0  # tokens after which the memory starts anew; a multiple of chunk_size; 0: never

    algorithm: Algorithm = "momentum"  # "descent", "momentum", "muon", or "solve" (exact least squares, Mesa)
    window: int = 1  # tokens whose losses every step descends on (the Omega rule)
    rule: InnerGradient = "exact"  # the inner gradient: "exact" in the last matrix, "anchored" as in the paper, "token"
    read: Literal["token", "chunk"] = "token"  # after the token's own write, or at its chunk's start
    chunk_size: int = 64  # tokens between two anchors of the inner gradient
    decay_first: bool = False  # the exact gradient after the token's decay (Gated DeltaNet), not before (Titans)
    ridge: float = 1.0  # of "solve": the weight of |W|^2

    gates: Literal["sigmoid", "hard"] = "sigmoid"  # hard gates reach 0 and 1 exactly
    step: Literal["learned", "fixed"] = "learned"  # a step for every token, or max_step
    max_step: float | None = None  # largest theta; None: 1 for "exact" and "token", 1/chunk_size for "anchored"
    step_norm: bool = True  # divide the step by 1 + |h|^2, h the input of the last matrix
    lower_step: float = 0.1  # step of the matrices below the last, relative to its own

    projections: bool = True  # own ones, of x to q, k, v and of what the heads read to y; False: the caller brings them
    input_dim: int | None = None  # width of x, which then makes the gates alone; None: dim

    conv_size: int = 4  # taps of the causal depthwise convolution on q, k, v; 0: none
    # where training starts, a value is written under the token so many before it, and asked for as it was written: so
    # the memory answers with what came after the last place like this one, as an induction head does. None: random taps
    context: int | None = None
    qkv_activation: bool = True  # SiLU on q, k, v
    qk_norm: bool = True  # l2-normalise q and k
    output_norm: bool = True  # RMS norm per head on what was read
    output_gate: bool = True  # times a sigmoid gate of x
    init: Literal["learned", "fixed", "zero"] = "learned"  # the weights at the start of a stream

    nonfinite: Literal["raise", "skip", "ignore"] = "raise"  # on NaN and infinity in x, or in what they would make
    checkpoint: int = 0  # in training, keep weights only every so many chunks and recompute between; 0: keep all

    def __post_init__(self) -> None:
        if self.dim < 1 or self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"dim must be a positive multiple of heads; got dim={self.dim}, heads={self.heads}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        self.context = checked_context(self.context, self.conv_size)
        if not (self.max_step is None or self.max_step >= 0) or not self.lower_step >= 0 or not self.ridge > 0:
            raise ValueError(
                "max_step and lower_step must not be negative, and ridge must be positive; got "
                f"{self.max_step}, {self.lower_step} and {self.ridge}"
            )
        if not 1 <= self.depth <= 4:
            raise ValueError(f"depth must be 1 to 4; got {self.depth}")
        if self.features > 3:
            raise ValueError(f"features must be 1 to 3; got {self.features}")
        if self.window > self.chunk_size:
            raise ValueError(
                f"the window ends at the chunk's start: it is at most chunk_size={self.chunk_size}; got {self.window}"
            )
        if self.projections and self.input_dim not in (None, self.dim):
            raise ValueError(f"input_dim={self.input_dim} other than dim={self.dim} is for projections=False")
        if not self.projections and self.output_gate:
            raise ValueError("output_gate needs projections=True: without them the caller makes y of what is read")
        if self.features > 1 and self.structure == "residual":
            raise ValueError(
                'structure "residual" adds its input to its output, and features > 1 makes the input wider than the '
                "output. Use another structure, or features=1."
            )
        if self.init == "zero" and (self.depth > 1 or self.structure == "gated"):
            raise ValueError(
                'init="zero" needs a single matrix: through a matrix of zeros no error reaches the one below, so '
                "nothing would ever be learned."
            )
        if self.algorithm == "muon" and self.init == "zero" and self.retention == "norm":
            raise ValueError('retention "norm" keeps the length of every column, and init="zero" makes it 0.')
        if self.algorithm == "solve":
            self._check_solve()
        elif (reason := refusal(self.to_rule(), self.momentum)) is not None:
            raise ValueError(reason)

    @property
    def input_width(self) -> int:
        """Of x."""
        return self.dim if self.input_dim is None else self.input_dim

    @property
    def momentum(self) -> bool:
        """Whether there is a momentum, and a gate for it."""
        return self.algorithm in ("momentum", "muon")

    @property
    def decay(self) -> bool:
        """Whether there is a gate for decay."""
        return self.retention in ("scalar", "channel", "lq", "kl")

    @property
    def step_bound(self) -> float:
        """The largest theta."""
        if self.max_step is not None:
            return self.max_step
        return 1.0 / self.chunk_size if self.rule == "anchored" and self.algorithm != "solve" else 1.0

    def to_rule(self, structure: Structure | None = None) -> Rule:
        """The part of it that the update needs."""
        return Rule(
            structure=structure or Structure(self.structure, self.activation),
            bias=self.bias,
            p=self.p,
            retention=self.retention,
            q=self.q,
            muon=self.algorithm == "muon",
            window=self.window,
            chunk_size=self.chunk_size,
            gradient=self.rule,
            read=self.read,
            decay_first=self.decay_first,
            step_norm=self.step_norm,
            lower_step=self.lower_step,
            reset_every=self.reset_every,
            checkpoint=self.checkpoint,
        )

    def _check_solve(self) -> None:
        plain = self.structure == "mlp" and self.depth == 1 and self.bias == "l2" and self.window == 1
        if not plain or self.retention not in ("none", "fixed", "scalar") or self.read != "token" or self.reset_every:
            raise ValueError(
                'algorithm="solve" is the exact solution of least squares over all that was read, which exists for a '
                'single matrix (structure "mlp", depth=1), bias "l2", retention "none", "fixed" or "scalar", '
                'window=1, read="token" and no resets; the rest has no closed form.'
            )


CHOICES: dict[str, tuple[str, ...]] = {
    "structure": get_args(StructureKind),
    "activation": tuple(ACTIVATIONS),
    "bias": get_args(Bias),
    "retention": get_args(Retention),
    "algorithm": get_args(Algorithm),
    "rule": get_args(InnerGradient),
    "read": ("token", "chunk"),
    "gates": ("sigmoid", "hard"),
    "step": ("learned", "fixed"),
    "init": ("learned", "fixed", "zero"),
    "nonfinite": ("raise", "skip", "ignore"),
}
LEAST = {"expansion": 1, "chunk_size": 1, "conv_size": 0, "features": 1, "window": 1, "reset_every": 0, "p": 1, "q": 2}
LEAST |= {"checkpoint": 0}
