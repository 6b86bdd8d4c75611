"""The memories of the papers as choices of one: `NeuralMemory.preset("titans", dim=256)`.

Everything a preset does not name has the default of `NeuralMemoryConfig`. `docs/family.md` is made from this table
(`preset_table`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A paper's memory: where it is from, what it computes, what the paper leaves open and what was chosen."""

    paper: str
    equation: str
    chosen: str
    options: dict[str, Any]


MATRIX = {"depth": 1, "algorithm": "descent", "init": "zero"}
# W = sum of v k^T has no error to normalise for, and no step to choose
LINEAR = {
    **MATRIX,
    "bias": "dot",
    "rule": "anchored",
    "step": "fixed",
    "max_step": 1.0,
    "step_norm": False,
    "conv_size": 0,
    "qkv_activation": False,
}
DELTA = {**MATRIX, "retention": "none", "rule": "exact", "step_norm": False}
# MIRAS's memory: a residual MLP of two layers with LayerNorm
MIRAS = {"structure": "residual", "depth": 2, "activation": "gelu", "algorithm": "descent", "rule": "anchored"}

PRESETS: dict[str, Preset] = {
    "linear_attention": Preset(
        "Katharopoulos et al. 2020, arXiv 2006.16236",
        "W_t = W_{t-1} + k_t v_t",
        "no feature map and no normaliser, as MIRAS has it; unit keys; RMS norm behind",
        {**LINEAR, "retention": "none"},
    ),
    "retnet": Preset(
        "Sun et al. 2023, arXiv 2307.08621",
        "W_t = a W_{t-1} + k_t v_t, a = 1 - 2^(-5-head)",
        "unit keys in place of the scaled rotary ones",
        {**LINEAR, "retention": "fixed"},
    ),
    "gla": Preset(
        "Yang et al. 2023, arXiv 2312.06635",
        "W_t = diag(a_t) W_{t-1} + k_t v_t",
        "a_t = sigmoid of a full projection, where the paper has one of low rank and a temperature",
        {**LINEAR, "retention": "channel"},
    ),
    "deltanet": Preset(
        "Schlag et al. 2021, arXiv 2102.11174; Yang et al. 2024, arXiv 2406.06484",
        "W_t = W_{t-1} - theta_t k_t (k_t W_{t-1} - v_t)",
        "nothing of weight; chunks of 64",
        DELTA,
    ),
    "gated_deltanet": Preset(
        "Yang et al. 2024, arXiv 2412.06464",
        "W_t = a_t W_{t-1} - theta_t k_t (k_t a_t W_{t-1} - v_t)",
        "a_t = 1 - sigmoid, where the paper has Mamba2's form",
        {**DELTA, "retention": "scalar", "decay_first": True},
    ),
    "kda": Preset(
        "Kimi Linear, 2025, arXiv 2510.26692",
        "W_t = D_t W_{t-1} - theta_t k_t (k_t D_t W_{t-1} - v_t), D_t = diag(a_t)",
        "a_t as in gla here",
        {**DELTA, "retention": "channel", "decay_first": True},
    ),
    "ttt_linear": Preset(
        "Sun et al. 2024, arXiv 2407.04620",
        "y = x + LN(x W); W_t = W_{t-1} - theta_t grad l2, gradients at the chunk's start",
        "chunks of 16; unit keys; step over 1 + |h|^2 and at most 1/16",
        {**MIRAS, "depth": 1, "retention": "none", "chunk_size": 16},
    ),
    "ttt_mlp": Preset(
        "Sun et al. 2024, arXiv 2407.04620",
        "y = x + LN(gelu(x W_1) W_2); as ttt_linear",
        "as ttt_linear; one expansion of 4",
        {**MIRAS, "retention": "none", "chunk_size": 16},
    ),
    "titans": Preset(
        "Behrouz et al. 2024, arXiv 2501.00663, eq. 9 to 16",
        "S_t = eta_t S_{t-1} - theta_t grad l2; W_t = (1 - alpha_t) W_{t-1} + S_t, gradients at the chunk's start",
        "depth 2, chunks of 64, one gate a head; step over 1 + |h|^2, at most 1/64, times 1 - eta; 0.1 of it below",
        {"rule": "anchored"},
    ),
    "moneta": Preset(
        "Behrouz et al. 2025 (MIRAS), arXiv 2504.13173",
        "A_t = a_t A_{t-1} - theta_t grad l_p; W = A / |A|_q^(q-2); p = 3, q = 4",
        "the size of A is the chunk's start's, and at least 1; smooth l_p",
        {**MIRAS, "bias": "lp", "p": 3.0, "retention": "lq", "q": 4.0},
    ),
    "yaad": Preset(
        "Behrouz et al. 2025 (MIRAS), arXiv 2504.13173",
        "W_t = a_t W_{t-1} - theta_t grad Huber, its threshold delta_t learned a token",
        "Huber by component; delta = softplus",
        {**MIRAS, "bias": "huber"},
    ),
    "memora": Preset(
        "Behrouz et al. 2025 (MIRAS), arXiv 2504.13173",
        "A_t = a_t A_{t-1} - theta_t grad l2; W = softmax(A) at each chunk's end",
        "a softmax over the inputs of each output, times sqrt(inputs); steps to 1; read at the chunk's start",
        {**MIRAS, "retention": "kl", "read": "chunk", "max_step": 1.0},
    ),
    "omeganet": Preset(
        "Behrouz et al. 2025 (ATLAS), arXiv 2505.23735",
        "S_t = eta_t S_{t-1} - theta_t sum_{i>t-c} gamma_i grad l2_i; W_t = a_t W_{t-1} + S_t; keys phi(k)",
        "c = 16, within the chunk; degree 2; step at most 1/chunk/4",
        {"rule": "anchored", "window": 16, "features": 2, "max_step": 1 / 256},
    ),
    "atlas": Preset(
        "Behrouz et al. 2025 (ATLAS), arXiv 2505.23735",
        "as omeganet, but W = a W + theta orthogonal(S) once a chunk",
        "the step of a chunk is the mean of its tokens'; read at the chunk's start",
        {
            "rule": "anchored",
            "window": 16,
            "features": 2,
            "algorithm": "muon",
            "read": "chunk",
            "max_step": 0.1,
        },
    ),
    "lact": Preset(
        "Zhang et al. 2025 (LaCT), arXiv 2505.23884",
        "W = normed(W + theta orthogonal(S)) once a chunk; gated MLP; loss -M(k) v; read at the chunk's start",
        "chunks of 2048; the momentum's gate a token; step at most 0.1",
        {
            "structure": "gated",
            "bias": "dot",
            "retention": "norm",
            "algorithm": "muon",
            "rule": "anchored",
            "read": "chunk",
            "chunk_size": 2048,
            "max_step": 0.1,
            "lower_step": 1.0,
            "step_norm": False,
        },
    ),
    "mesa": Preset(
        "von Oswald et al. 2023, arXiv 2309.05858; MesaNet 2025, arXiv 2506.05233",
        "W_t = argmin_W sum_i (a_{i+1} ... a_t) theta_i |k_i W - v_i|^2 + |W|^2",
        "solved by Cholesky at every token: an oracle, not a fast layer",
        {**MATRIX, "algorithm": "solve", "retention": "scalar"},
    ),
}


def preset_table() -> str:
    """The family as a Markdown table."""
    rows = ["| preset | paper | rule | what the paper leaves open, and what was chosen |", "|---|---|---|---|"]
    for name, preset in PRESETS.items():
        rows.append(f"| `{name}` | {preset.paper} | `{preset.equation}` | {preset.chosen} |")
    return "\n".join(rows)
