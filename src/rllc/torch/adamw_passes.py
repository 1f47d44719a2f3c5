"""The two passes of RLLCAdamW: the sums that its law wants, and AdamW's step times the law.

The second one is torch's own, with lr L for lr. The first reads m, v and g: a numba kernel on the CPU, where
numba is and torch's foreach was not asked for; `rllc.torch.foreach` otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.adamw import adamw

from rllc.torch import foreach
from rllc.torch.parts import Part, Unit, pieces, wide_dtype

__all__ = ["Share", "advance", "fits", "sums"]

Array = NDArray[np.float64]

# Below this size of the law, weight decay is not folded into AdamW's own, which would divide it by the law.
LEAST_LAW = 1e-3
# No dtype holds less than this.
LEAST_ROOM = torch.finfo(torch.float16).max


class Share(NamedTuple):
    """What of a group has a gradient."""

    group: dict[str, Any]
    part: Part  # its memory is m and v
    steps: list[Tensor]  # of each parameter so far
    copies: int  # how many processes have the same share


# --- First pass -------------------------------------------------------------------------------------------


def sums(share: Share, plan: Any) -> tuple[Array, Any]:
    """(3,) uᵀm̂, uᵀg and gᵀg with the old m and v, and the plan for the next step's share."""
    scales = _scales(share)
    kernels = _kernels() if _wants_kernels(share) else None
    if kernels is None:
        found = _sums_by_foreach(share.part, scales)
    else:
        found, plan = kernels.sums(share.part, scales, plan, _sums_by_foreach)
    if share.group["maximize"]:  # m is of -g
        found[1] = -found[1]
    return found, plan


def _scales(share: Share) -> Array:
    """(tensors, 3): eps √c₂, √c₂/c₁² and √c₂/c₁ with c = 1 - βᵗ, so that u = (√c₂/c₁) m / (√v + eps √c₂)."""
    on_host = share.steps[0].device.type == "cpu"
    counts = [t.item() for t in share.steps] if on_host else torch.stack(share.steps).tolist()
    of_count = {t: _scales_at(t, share.group) for t in set(counts)}
    return np.array([of_count[t] for t in counts])


def _scales_at(t: float, group: dict[str, Any]) -> tuple[float, float, float]:
    if not t:
        return group["eps"], 0.0, 0.0
    c1, c2 = (1 - beta**t for beta in group["betas"])
    return group["eps"] * math.sqrt(c2), math.sqrt(c2) / c1**2, math.sqrt(c2) / c1


def _sums_by_foreach(part: Part, scales: Array) -> Array:
    total = np.zeros(3)
    device = part.params[0].device
    for piece in pieces(part, foreach.ROOM.get(device.type, foreach.ROOM_ELSEWHERE)):
        eps, of_metric, of_gradient = scales[piece.numbers].T.tolist()
        m, v = (_wide(unit) for unit in piece.memory)
        size = torch._foreach_sqrt(v)
        torch._foreach_add_(size, eps)
        unit = torch._foreach_div(m, size)
        weighted = [list(torch._foreach_mul(unit, factors)) for factors in (of_metric, of_gradient)]
        found = foreach.gram(piece._replace(memory=[m, *weighted]), np.eye(4)).cpu().numpy()
        total += found[0, 1], found[2, 3], found[3, 3]
    return total


def _wide(unit: Unit) -> Unit:
    return [t.to(wide_dtype(t)) for t in unit]


def _wants_kernels(share: Share) -> bool:
    group = share.group
    return share.part.params[0].device.type == "cpu" and group["fused"] is not False and not group["foreach"]


@functools.cache
def _kernels() -> ModuleType | None:
    try:
        from rllc.torch import kernels_adamw  # numba is an optional dependency, and slow to import
    except (ImportError, RuntimeError):  # RuntimeError: numba found no folder to keep compiled kernels in
        return None
    return kernels_adamw


# --- Second pass ------------------------------------------------------------------------------------------


def advance(share: Share, law: float) -> None:
    """m, v and θ <- θ - lr (L u + w θ), by torch's AdamW."""
    group, part = share.group, share.part
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    if decay and abs(law) < LEAST_LAW:
        torch._foreach_mul_(part.params, 1 - lr * decay)
        decay = 0.0
    (m, v), (b1, b2) = part.memory, group["betas"]
    adamw(
        part.params,
        part.gradient,
        m,
        v,
        [],
        share.steps,
        foreach=group["foreach"],
        fused=group["fused"],
        amsgrad=False,
        beta1=b1,
        beta2=b2,
        lr=lr * law,
        weight_decay=decay / law if decay else 0.0,
        eps=group["eps"],
        maximize=group["maximize"],
    )


def fits(shares: Sequence[Share], groups: Sequence[dict[str, Any]], squares: float, alone: bool) -> bool:
    """Whether no entry of v can overflow: by the norm of the gradient; if that is too coarse, by its entries.

    Not `alone`, all processes must come to the same, which the norm lets them.
    """
    if squares < LEAST_ROOM or squares < min(_most(p, group) for group in groups for p in group["params"]):
        return True
    return alone and all(
        _largest(g) ** 2 < _most(p, share.group)
        for share in shares
        for p, g in zip(share.part.params, share.part.gradient, strict=True)
    )


def _most(p: Tensor, group: dict[str, Any]) -> float:
    """Of g²: AdamW computes it in at least float32, and keeps (1-β₂) g² in the parameter's dtype."""
    return min(torch.finfo(wide_dtype(p)).max, torch.finfo(p.dtype).max / (1 - group["betas"][1]))


def _largest(g: Tensor) -> float:
    return float(torch.linalg.vector_norm(g, torch.inf)) if g.numel() else 0.0
