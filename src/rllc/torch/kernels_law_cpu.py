"""A numba kernel for the k x k part of a step: `rllc.law` in one call, where NumPy needs some forty.

The text follows `rllc.law` line by line; `rllc.torch.kernels_law_cuda` is the same for a GPU.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["NOT_FINITE", "TAKEN", "TOO_LARGE", "learn"]

Array = NDArray[np.float64]

# What became of a step. Of one that is not taken, nothing has changed.
NOT_FINITE, TAKEN, TOO_LARGE = 0, 1, 2

# A division by zero gives infinity, as in NumPy.
_kernel = numba.njit(error_model="numpy", cache=True)


@_kernel
def _solved(A: Array, b: Array) -> Array:
    """A⁻¹ b, A positive definite: elimination, which needs no pivots for it. Both are overwritten."""
    n = b.size
    for p in range(n):
        for i in range(p + 1, n):
            factor = A[i, p] / A[p, p]
            for j in range(p, n):
                A[i, j] -= factor * A[p, j]
            b[i] -= factor * b[p]
    for p in range(n - 1, -1, -1):
        for j in range(p + 1, n):
            b[p] -= A[p, j] * b[j]
        b[p] /= A[p, p]
    return b


@_kernel
def _ridge_solved(W: Array, v: Array, relative: bool, eps: float, rounding: float) -> Array:
    """`rllc.law.GramianRidge.solve` or, where eps is not relative, `rllc.law.Ridge.solve`."""
    trace = np.trace(W)
    amount = max(trace * eps / W.shape[0] if relative else eps, rounding * trace)
    for i in range(W.shape[0]):
        W[i, i] += amount if amount > 0 else 1.0
    return _solved(W, v)


@_kernel
def _times(A: Array, x: Array) -> Array:
    found = np.zeros(A.shape[0])
    for i in range(A.shape[0]):
        for j in range(A.shape[1]):
            found[i] += A[i, j] * x[j]
    return found


@_kernel
def _length(x: Array) -> float:
    return math.sqrt(np.sum(x * x))


@_kernel
def _taken(
    law: Array,
    rate: float,
    x: Array,
    progress: Array,
    q: float,
    decay: float,
    clip: float,
    growth: float,
    smoothing: float,
) -> Array:
    """`rllc.law.LawStep.taken`, the progress in place; growth is e^growth - 1."""
    length, reach = _length(law), _length(x)
    progress[0] += 1
    if reach > clip:
        x = x * (clip / reach)
    now = rate * progress[0] ** -decay if decay else rate
    if not growth:
        return law + now * (length**q if q else 1.0) * x
    along = np.sum(law * x) / (length if length > 0 else 1.0)
    progress[1] = smoothing * progress[1] + (1 - smoothing) * along
    if progress[2] == 0 and progress[1] <= 0 and progress[0] * (1 - smoothing) > 1:
        progress[2] = length
    if not progress[2] > 0:
        return law * (1 + growth * (rate > 0))
    s = progress[2]
    learned = law + now * s * ((length / s) ** q if q else 1.0) * x
    reach = _length(learned)
    return learned * (s / reach) if reach > s else learned


@_kernel
def learn(
    found: Array,
    rates: Array,
    law: Array,
    faded: Array,
    last: Array,
    progress: Array,
    basis: Array,
    metric: Array,
    growth_of_sums: Array,
    B: Array,
    relative: bool,
    eps: float,
    guard: bool,
    first: float,
    rounding: float,
    most: float,
    weighed: bool,
    q: float,
    decay: float,
    clip: float,
    growth: float,
    smoothing: float,
) -> int:
    """The law and what is kept beside it, in place: TAKEN, NOT_FINITE or TOO_LARGE.

    found (shares, r+1, r+1) sums; rates (shares,) law_lr; law (k), faded (k, k), last () and progress (3) as
    in `rllc.torch.learning.Learned`; basis (k, r), metric (r, r), growth_of_sums (r+1) and B (k, k) as in
    `rllc.torch.learning.Constants`. first: the guard's level for a gradient of size one; most: what no entry
    may reach; weighed: whether M⁺g is that of the share of the largest rate.
    """
    shares, r = found.shape[0], found.shape[1] - 1
    largest = np.max(rates)
    W, v, gg = np.zeros((r, r)), np.zeros(r), 0.0
    for s in range(shares):
        bound, weight = 0.0, rates[s]
        if weighed and largest > 0:
            weight /= largest
        for i in range(r + 1):
            bound += math.sqrt(found[s, i, i]) * growth_of_sums[i]
        if not bound < most:
            return TOO_LARGE if np.isfinite(found).all() else NOT_FINITE
        W += found[s, :r, :r]
        v += weight * found[s, :r, r]
        gg += found[s, r, r]
    if not (np.isfinite(np.sum(W)) and np.isfinite(np.sum(v)) and np.isfinite(gg)):
        return NOT_FINITE

    held = np.sum(metric * W)
    x = _times(basis, _ridge_solved(W, v, relative, eps, rounding))
    if guard:
        level = first * gg
        x = _times(faded, x) * min(held / (level if level > 0 else 1.0), 1.0)
    next_progress = progress.copy()
    next_law = _taken(law, largest if weighed else 1.0, x, next_progress, q, decay, clip, growth, smoothing)
    if not np.isfinite(np.sum(next_law)):
        return NOT_FINITE
    law[:], progress[:], last[()] = next_law, next_progress, math.sqrt(gg)
    if gg > 0:
        faded[:] = np.eye(law.size)
    else:
        before = faded.copy()
        for j in range(law.size):
            faded[:, j] = _times(before, B[:, j].copy())
    return TAKEN
