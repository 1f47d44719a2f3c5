"""The two passes of RLLCAdamW: the sums that its law wants, and AdamW's step times the law.

kernels    numba, on the CPU, unless foreach is asked for: everything is read and written once in each pass,
           the average with the parameters; where fused=True is asked for, only the sums, the step is torch's
on_gpu     the same in Triton (`rllc.torch.fused_adamw_cuda`), for all shares of a step or none
torch's    its own AdamW, fused or foreach, with lr L for lr; sums by `rllc.torch.foreach`

Where the kernels of the CPU make all of a step, they make it in one call, the law too (`whole`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.adamw import adamw

from rllc.torch import foreach, selection
from rllc.torch.bias import scales_at
from rllc.torch.one_unit import Learned, Rule, ridge
from rllc.torch.parts import LEAST_LARGEST, Part, Unit, one_layout, pieces, wide_dtype

__all__ = ["Share", "advance", "by_torch", "fits", "on_gpu", "share", "sums", "whole"]

Array = NDArray[np.float64]

# Below this size of the law, weight decay is not folded into torch's, which would divide it by the law.
LEAST_LAW = 1e-3
FUSED = ("cpu", "cuda")  # where torch's fused AdamW is the fastest it has


class Share(NamedTuple):
    """What of a group has a gradient."""

    group: dict[str, Any]
    part: Part  # its memory is m, v and, if there is one, the average
    steps: list[Tensor]  # of each parameter so far
    copies: int  # how many processes have the same share
    counters: Array | None  # addresses of the steps, for the kernels
    batches: Any  # the part as the kernels want it, None if they do not take it
    plan: Any  # for the next step's share
    on_gpu: Any = None  # the part as the kernels of a GPU want it


def share(
    group: dict[str, Any], part: Part, steps: list[Tensor], copies: int, plan: Any, unsaid: bool = False
) -> Share:
    """With who makes its passes; `plan` is of the last step's, `unsaid` if nobody has asked for them."""
    if unsaid and part.params[0].is_cuda and selection.has_triton():
        on_gpu, plan = _of_gpu().prepare(part, steps, plan)
        if on_gpu is not None:
            return Share(group, part, steps, copies, None, None, plan, on_gpu)
    if _wants_kernels(group, part) and (kernels := _kernels()) is not None:
        (batches, plan), counters = kernels.prepare(part, plan), kernels.counters(steps)
        if batches is not None and counters is not None:
            return Share(group, part, steps, copies, counters, batches, plan)
    _check_dtypes(part)
    part = part._replace(gradient=[g.resolve_neg() for g in part.gradient])
    return Share(group, part, steps, copies, None, None, None)


def _check_dtypes(part: Part) -> None:
    """Refuse memory of another dtype than its parameter, which was converted: torch would stop half-way."""
    for i, theta in enumerate(part.params):
        for t in (part.memory[0][i], part.memory[1][i], part.gradient[i]):
            if t.dtype != theta.dtype:
                raise RuntimeError(
                    f"a parameter of {theta.dtype} has memory or a gradient of {t.dtype}: it was converted;"
                    " opt.load_state_dict(opt.state_dict()) takes memory along"
                )


def by_torch(share: Share) -> Share:
    """The same without the kernels of a GPU."""
    return share if share.on_gpu is None else share._replace(on_gpu=None, plan=None)


def on_gpu(shares: Sequence[Share]) -> ModuleType | None:
    """The kernels of a GPU, if they are for all shares of a step."""
    is_theirs = all(share.on_gpu is not None for share in shares)
    return _of_gpu() if is_theirs and len(shares) <= _of_gpu().MOST_SHARES else None


def _scales(group: dict[str, Any], steps: list[Tensor]) -> Array:
    """(tensors, 5) float64, by each one's count of steps so far."""
    counts = [t.item() for t in steps] if steps[0].is_cpu else torch.stack(steps).tolist()
    (b1, b2), eps = group["betas"], group["eps"]
    found = {t: scales_at(t, b1, b2, eps) for t in set(counts)}
    return np.array([found[t] for t in counts])


def _wants_kernels(group: dict[str, Any], part: Part) -> bool:
    return part.params[0].is_cpu and group["fused"] is not False and not group["foreach"]


@functools.cache
def _kernels() -> ModuleType | None:
    try:
        from rllc.torch import kernels_adamw  # numba is an optional dependency, and slow to import
    except (ImportError, RuntimeError):  # RuntimeError: numba found no folder to keep compiled kernels in
        return None
    return kernels_adamw


def _of_gpu() -> ModuleType:
    from rllc.torch import fused_adamw_cuda  # triton is an optional dependency

    return fused_adamw_cuda


def _of_kernels() -> ModuleType:
    found = _kernels()
    assert found is not None
    return found


# --- First pass -------------------------------------------------------------------------------------------


def sums(share: Share) -> Array:
    """(3,) uᵀm̂, uᵀg and gᵀg with the old m and v, over the number of copies."""
    group = share.group
    if share.batches is None:
        found = _sums_by_foreach(share.part, _scales(group, share.steps))
    else:
        found = _of_kernels().sums(share.batches, share.counters, *group["betas"], group["eps"])
    if group["maximize"]:  # m is of -g
        found[1] = -found[1]
    return found if share.copies == 1 else found / share.copies


def _sums_by_foreach(part: Part, scales: Array) -> Array:
    kinds: dict[tuple[float, ...], list[int]] = {}
    for i, scale in enumerate(scales.tolist()):
        kinds.setdefault(tuple(scale[:3]), []).append(i)
    total = np.zeros(3)
    for (eps, of_metric, of_gradient), chosen in kinds.items():
        own = part if len(kinds) == 1 else part.pick(chosen)
        total += (of_metric, of_gradient, 1.0) * _products(own, eps)
    return total


def _products(part: Part, eps: float) -> Array:
    """(3,) u·m, u·g and g·g with u = m / (√v + eps)."""
    device = part.params[0].device
    total = torch.zeros(3, dtype=torch.float64, device=device)
    # One piece after the other in one place: to ask for new memory takes longer than to fill it.
    places: dict[tuple[torch.device, torch.dtype], Tensor] = {}
    for piece in pieces(part, foreach.room(device)):
        m, v, g = (_row(unit) for unit in (*piece.memory[:2], piece.gradient))
        place = places.setdefault((m.device, m.dtype), torch.empty(0, dtype=m.dtype, device=m.device))
        u, product = foreach.rows_at(place, 2, m.numel())
        torch.sqrt(v, out=u)
        torch.div(m, u.add_(eps), out=u)
        pairs = (u, m), (u, g), (g, g)
        found = torch.stack([torch.mul(x, y, out=product).sum(dtype=torch.float64) for x, y in pairs])
        total += found.to(device)
    return total.cpu().numpy()


def _row(unit: Unit) -> Tensor:
    """All entries as one row, half precision in float32."""
    first, *others = (t.reshape(-1).to(wide_dtype(t)) for t in unit)
    row = torch.cat([first, *others]) if others else first
    if type(row) is Tensor:
        return row
    # A tensor that wraps others does not take `out=`.
    return torch.empty(row.shape, dtype=row.dtype, device=row.device).copy_(row)


# --- Second pass ------------------------------------------------------------------------------------------


def advance(share: Share, law: float, weight: float | None) -> bool:
    """m, v and θ <- θ - lr (L u + w θ); whether the average was taken, too, with this weight of θ."""
    group = share.group
    if not _is_by_kernels(share):
        _advance_by_torch(share, law)
        return False
    lr, *numbers = _numbers(group)
    _of_kernels().advance(share.batches, share.counters, np.array([lr * law, *numbers, weight or 0.0]))
    _of_kernels().count(share.counters)
    return True


def _is_by_kernels(share: Share) -> bool:
    group = share.group
    return share.batches is not None and group["fused"] is None and group["foreach"] is None


def _numbers(group: dict[str, Any]) -> tuple[float, float, float, float, float, float]:
    """lr, 1 - lr w, β₁, β₂, eps and the sign of the gradient."""
    lr, (b1, b2) = float(group["lr"]), group["betas"]
    sign = -1.0 if group["maximize"] else 1.0
    return lr, 1 - lr * float(group["weight_decay"]), float(b1), float(b2), float(group["eps"]), sign


def _advance_by_torch(share: Share, law: float) -> None:
    group, part = share.group, share.part
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    if decay and abs(law) < LEAST_LAW:
        torch._foreach_mul_(part.params, 1 - lr * decay)
        decay = 0.0
    (m, v), (b1, b2) = part.memory[:2], group["betas"]
    fused, foreach_ = group["fused"], group["foreach"]
    if fused is None and foreach_ is None:
        fused = part.params[0].device.type in FUSED
    units = [part.params, m, v, part.gradient]
    # Fused goes by addresses, whatever the strides are; and foreach, which does not, loses a small eps in
    # half precision.
    laid_out = [list(map(_laid_out_as, unit, part.params)) for unit in units] if fused else units
    params, m, v, gradient = laid_out
    adamw(
        params,
        gradient,
        m,
        v,
        [],
        share.steps,
        foreach=foreach_,
        fused=fused,
        amsgrad=False,
        beta1=b1,
        beta2=b2,
        lr=lr * law,
        weight_decay=decay / law if decay else 0.0,
        eps=group["eps"],
        maximize=group["maximize"],
    )
    for unit, moved in zip(units[:3], laid_out, strict=False):
        for t, new in zip(unit, moved, strict=True):
            if new is not t:
                t.copy_(new)


# --- Both ----------------------------------------------------------------------------------------------


def whole(share: Share, keeper: dict[str, Any], rule: Rule, weight: float | None) -> Learned | None:
    """A step of the only share of the only group in one call, which writes the law, too.

    None if it is not for one call of the kernels, is none that is taken, or the entries of the gradient have
    to be looked at (`fits`): nothing has changed then.
    """
    law = keeper["law"]
    if not _is_by_kernels(share) or len(share.batches) != 1:
        return None
    if len(share.batches[0].part.params) < len(share.part.params):
        return None  # some are empty, and count their steps, too
    if not (law.is_cpu and law.dtype == torch.float64 and law.numel() == 1):  # it is written by its address
        return None
    numbers = *_numbers(share.group), weight or 0.0, float(keeper["law_lr"]), ridge(rule.eps, [share.group])
    found = _of_kernels().step(share.batches[0], share.counters, law, keeper["progress"], numbers, rule.step)
    return None if found is None else Learned(*found)


def _laid_out_as(t: Tensor, p: Tensor) -> Tensor:
    """The tensor with its entries at the places of p, or where p has gaps of p without them; or a copy."""
    return t if one_layout((p, t)) else torch.empty_like(p).copy_(t)


def fits(shares: Sequence[Share], groups: Sequence[dict[str, Any]], squares: float, alone: bool) -> bool:
    """Whether no entry of v can overflow: by the norm of the gradient; if that is too coarse, by its entries.

    Not `alone`, all processes must come to the same, which the norm lets them.
    """
    if squares < LEAST_LARGEST or squares < min(_most(p, group) for group in groups for p in group["params"]):
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
