"""The k x k part of a step as one Triton kernel, where `rllc.torch.stepping` else asks for a hundred.

It takes linear memory with one law, whatever its law step, and a ridge as its inverse; nothing is read back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from rllc.law import GramianRidge, Ridge
from rllc.torch import kernels_law_cuda
from rllc.torch.learning import Constants, Learned, Solver, fed, guard_level, is_weighed
from rllc.torch.passes import Step, when_skipped
from rllc.torch.sent import sent

__all__ = ["MOST_SHARES", "learn"]

MOST_SHARES = 8  # the kernel's text is as long as there are shares


def learn(
    solver: Solver,
    there: Constants,
    groups: Sequence[dict[str, Any]],
    found: Tensor,
    rounding: float,
    most: float = torch.finfo(torch.float32).max,
    moving: bool = False,
) -> tuple[Tensor, list[Step]]:
    """Law and books in place, from the sums of all shares; whether it is a step, and the step of each share.

    Args:
        groups: of each share; the first holds the books.
        found: (shares, r+1, r+1) float64.
        rounding: relative error of the sums; most: what no entry of memory may reach; moving: whether
            shares that stay, lr = 0, are not heard beside others.
    """
    keeper, device, (k, r) = groups[0], found.device, there.frame.basis.shape
    a = [fed(solver, group) for group in groups]
    numbers = torch.empty(len(groups), k * k + 2 * k + 1, dtype=torch.float64, device=device)
    taken = torch.empty((), dtype=torch.bool, device=device)
    draw = torch.empty(2, dtype=torch.int64, device=device)
    step = solver.step
    assert isinstance(solver.inverse, GramianRidge | Ridge)
    kernels_law_cuda.learn[(1,)](
        found.contiguous(),
        _rates(groups, device),
        sent(device, a),
        *(keeper[name] for name in Learned._fields),
        keeper["skipped"],
        keeper["draws"],
        draw,
        (keeper["seed"] or 0) & 0xFFFFFFFF,
        there.frame.basis,
        there.frame.metric,
        there.growth_of_sums,
        there.B,
        numbers,
        taken,
        SHARES=len(groups),
        K=k,
        R=r,
        SIZE=triton.next_power_of_2(k + 1),
        relative=isinstance(solver.inverse, GramianRidge),
        eps=solver.inverse.eps,
        guard=solver.guard,
        first=guard_level(there),
        rounding=rounding,
        most=most,
        weighed=is_weighed(step),
        moving=moving,
        drawn=keeper["seed"] is not None,
        q=step.q,
        decay=step.decay,
        clip=step.clip if step.clip < math.inf else 0.0,
        growth=math.expm1(step.growth),
        smoothing=step.smoothing,
        window=step.window,
        num_warps=1,
    )
    dice = None if keeper["seed"] is None else (draw[0], draw[1])
    return taken, [_step(solver, row, its, taken, dice) for row, its in zip(numbers, a, strict=True)]


def _step(
    solver: Solver, row: Tensor, a: Sequence[float], taken: Tensor, dice: tuple[Tensor, Tensor] | None
) -> Step:
    k = len(a)
    B, weights = row[: k * k].view(k, k), row[k * k + k : -1]
    return Step(B, a, row[-1], weights, when_skipped(solver.structure), taken, dice, row)


def _rates(groups: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
    """(shares, 3) float64."""
    rates = [[group[name] for name in ("lr", "law_lr", "weight_decay")] for group in groups]
    if not any(isinstance(rate, Tensor) for row in rates for rate in row):
        return sent(device, rates)
    return torch.stack([torch.stack([_there(rate, device) for rate in row]) for row in rates])


def _there(rate: float | Tensor, device: torch.device) -> Tensor:
    if isinstance(rate, Tensor):
        return rate.detach().reshape(()).to(device, torch.float64)
    return sent(device, float(rate))
