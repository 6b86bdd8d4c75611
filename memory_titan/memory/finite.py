"""NaN and infinity: the tokens that must not be read, and the rows that must not be kept. Every row for itself.

What is done about them is the configuration's `nonfinite`: "raise", "skip" (with a warning that names them), "ignore".
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor


def valid_tokens(x: Tensor, mask: Tensor | None, policy: str, stacklevel: int) -> Tensor | None:
    """The mask as bool, with tokens of x that are not finite taken out, or refused.

    Args:
        x: `[B, T, n]`.
        mask: `[B, T]` or None.
        policy: see above.
        stacklevel: of the warning, seen from here.

    Returns:
        `[B, T]`, bool, or None where every token counts.

    Raises:
        ValueError: the mask's shape is wrong, or something is not finite and the policy is "raise".
    """
    if mask is not None:
        mask = mask.to(device=x.device, dtype=torch.bool)
        if mask.shape != x.shape[:2]:
            raise ValueError(f"mask must be [batch, time] = {list(x.shape[:2])}; got {list(mask.shape)}")
    if policy == "ignore" or _is_true(x.detach().abs().sum().isfinite()):
        return mask
    bad = ~x.detach().isfinite().all(-1)
    bad = bad if mask is None else bad & mask
    if not _is_true(bad.any()):
        return mask
    places = [f"row {row}, token {token}" for row, token in bad.nonzero()[:3].tolist()]
    told = f"{int(bad.sum())} tokens are NaN or infinite ({'; '.join(places)}{'; ...' if bad.sum() > 3 else ''})"
    if policy == "raise":
        raise ValueError(f'{told}. Nothing was written. nonfinite="skip" reads the others and warns.')
    warnings.warn(f"{told}; they are skipped", RuntimeWarning, stacklevel=stacklevel)
    return ~bad if mask is None else mask & ~bad


def finite_rows(
    new: Sequence[Tensor], out: Tensor | None, old: Sequence[Tensor], policy: str, stacklevel: int
) -> Tensor | None:
    """`[B]`, the rows whose new state and output are finite; None where all are. The others are refused or named.

    Args:
        new, old: the state's tensors after and before, `[B, ...]`; one that is the same object has not changed.
        out: `[B, ...]` or None.
        policy, stacklevel: as in `valid_tokens`.

    Raises:
        FloatingPointError: a row's values were too large, and the policy is "raise".
        ValueError: a row was not finite to begin with.
    """
    if policy == "ignore":
        return None
    changed = [now.detach() for now, was in zip(new, old, strict=True) if now is not was]
    changed += [] if out is None else [out.detach()]
    if not changed or _is_true(torch.stack([t.sum() for t in changed]).sum().isfinite()):
        return None
    good = torch.stack([t.isfinite().flatten(1).all(1) for t in changed]).all(0)
    if _is_true(good.all()):  # only the sum was too large
        return None
    rows = (~good).nonzero()[:, 0].tolist()
    stale = torch.stack([t.isfinite().flatten(1).all(1) for t in old]).all(0)
    if not _is_true(stale.all()):
        raise ValueError(f"the state is not finite in rows {(~stale).nonzero()[:, 0].tolist()} to begin with")
    told = f"the values in rows {rows} are too large: the memory's weights would not be finite"
    if policy == "raise":
        raise FloatingPointError(f'{told}. Nothing was written. nonfinite="skip" leaves such rows as they were.')
    warnings.warn(f"{told}; these rows stay as they were", RuntimeWarning, stacklevel=stacklevel)
    return good


def _is_true(condition: Tensor) -> bool:
    """Also under torch.func.vmap, where no tensor can be asked: there it counts as true, and nothing is checked."""
    try:
        return bool(condition)
    except RuntimeError:
        return True
