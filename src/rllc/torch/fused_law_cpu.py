"""The k x k part of a step, or all of it, as one numba kernel, for the passes of `rllc.torch.fused_cpu`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rllc.law import GramianRidge, Ridge
from rllc.torch import fused_cpu, kernels_law_cpu
from rllc.torch.fused_cpu import Batch
from rllc.torch.learning import Learned, Solver, guard_level, is_weighed
from rllc.torch.parts import LEAST_LARGEST
from rllc.torch.passes import Array

__all__ = ["learn", "whole"]

ENDINGS = {kernels_law_cpu.TAKEN: True, kernels_law_cpu.NOT_FINITE: False, kernels_law_cpu.TOO_LARGE: None}


def learn(
    solver: Solver, rates: list[float], lr: float, found: Array, books: Learned, rounding: float, most: float
) -> bool | None:
    """Law and books, arrays of NumPy, in place; or False if something is not finite, None if too large.

    Args:
        rates: law_lr of each share, lr: the largest of all; found: (shares, r+1, r+1) float64.
        rounding: relative error of the sums; most: what no entry of memory may reach.
    """
    how = _how(solver, books, rounding, most)
    return ENDINGS[kernels_law_cpu.learn(found, np.array(rates, np.float64), lr, *how)]


def whole(
    solver: Solver, work: Sequence[Batch], group: dict[str, Any], books: Learned, rounding: float
) -> bool:
    """Sums, law and second pass of the only share of a step in one call, which writes the books, too.

    False if some of it is not for the kernels, or the step is not taken, or has sums so large that entries
    have to be looked at: nothing has changed then.
    """
    [batch] = work if len(work) == 1 else [None]
    if batch is None or batch.kind is None or batch.kind[-1] != torch.float32:
        return False
    units, *others = map(fused_cpu.witness, batch.kind)
    lr = float(group["lr"])
    ending = kernels_law_cpu.step(
        fused_cpu.threads(batch),
        batch.table,
        batch.chunks,
        (*[units] * len(batch.part.memory), others[0]),
        (units, *others),
        solver.basis,
        np.array(solver.a),
        lr,
        float(group["law_lr"]),
        1 - lr * float(group["weight_decay"]),
        _how(solver, books, rounding, LEAST_LARGEST),
    )
    return ENDINGS[ending] is True


def _how(solver: Solver, books: Learned, rounding: float, most: float) -> tuple[Any, ...]:
    """What the law's kernel wants to know beside the sums and the rates."""
    inverse, step, host = solver.inverse, solver.step, solver.host
    assert isinstance(inverse, GramianRidge | Ridge)
    return (
        *books,
        host.frame.basis,
        host.frame.metric,
        host.growth_of_sums,
        host.B,
        isinstance(inverse, GramianRidge),
        inverse.eps,
        solver.guard,
        guard_level(host),
        rounding,
        most,
        is_weighed(step),
        *step.numbers,
    )
