"""The k x k part of a step as one numba kernel, for the passes of `rllc.torch.fused_cpu`."""

from __future__ import annotations

import numpy as np

from rllc.law import GramianRidge, Ridge
from rllc.torch import kernels_law_cpu
from rllc.torch.learning import Learned, Solver, guard_level, is_weighed
from rllc.torch.passes import Array

__all__ = ["learn"]

ENDINGS = {kernels_law_cpu.TAKEN: True, kernels_law_cpu.NOT_FINITE: False, kernels_law_cpu.TOO_LARGE: None}


def learn(
    solver: Solver, rates: list[float], lr: float, found: Array, books: Learned, rounding: float, most: float
) -> bool | None:
    """Law and books, arrays of NumPy, in place; or False if something is not finite, None if too large.

    Args:
        rates: law_lr of each share, lr: the largest of all; found: (shares, r+1, r+1) float64.
        rounding: relative error of the sums; most: what no entry of memory may reach.
    """
    inverse, step, host = solver.inverse, solver.step, solver.host
    assert isinstance(inverse, GramianRidge | Ridge)
    ending = kernels_law_cpu.learn(
        found,
        np.array(rates, np.float64),
        lr,
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
    return ENDINGS[ending]
