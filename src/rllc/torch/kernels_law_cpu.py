"""A numba kernel for the k x k part of a step: `rllc.law` in one call, where NumPy needs some forty.

The text follows `rllc.law` line by line; `rllc.torch.kernels_law_cuda` is the same for a GPU. It is in plain
loops, because expressions of arrays take numba five times as long to compile.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from rllc.law import LEAP, LOST, QUIET
from rllc.torch.kernels_cpu import advance, gram

__all__ = ["NOT_FINITE", "TAKEN", "TOO_LARGE", "learn", "step", "take"]

Array = NDArray[np.float64]

# What became of a step. Of one that is not taken, nothing has changed.
NOT_FINITE, TAKEN, TOO_LARGE = 0, 1, 2

# A division by zero gives infinity, as in NumPy.
_kernel = numba.njit(error_model="numpy", cache=True)


@_kernel
def _solve(A: Array, b: Array) -> None:
    """b <- A⁻¹ b, A positive definite: elimination, which needs no pivots for it. A is overwritten."""
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


@_kernel
def _solve_with_ridge(W: Array, v: Array, relative: bool, eps: float, rounding: float) -> None:
    """`rllc.law.GramianRidge.solve` or, where eps is not relative, `rllc.law.Ridge.solve`, in place of v."""
    trace = 0.0
    for i in range(v.size):
        trace += W[i, i]
    amount = max(trace * eps / v.size if relative else eps, rounding * trace)
    for i in range(v.size):
        W[i, i] += amount if amount > 0 else 1.0
    _solve(W, v)


@_kernel
def _multiply(A: Array, x: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] = 0.0
        for j in range(x.size):
            out[i] += A[i, j] * x[j]


@_kernel
def _dot(x: Array, y: Array) -> float:
    total = 0.0
    for i in range(x.size):
        total += x[i] * y[i]
    return total


@_kernel
def _scale(x: Array, factor: float) -> None:
    for i in range(x.size):
        x[i] *= factor


@_kernel
def _shorten(x: Array, bound: float) -> None:
    """`rllc.law._within`, in place."""
    length = math.sqrt(_dot(x, x))
    if length > bound:
        _scale(x, bound / length)


@_kernel
def take(
    law: Array,
    rate: float,
    x: Array,
    gradient: float,
    progress: Array,
    lr: float,
    q: float,
    decay: float,
    clip: float,
    growth: float,
    smoothing: float,
    window: float,
) -> None:
    """`rllc.law.LawStep.taken`, law and progress in place; growth is e^growth - 1."""
    if growth:
        if not gradient > 0:
            return
        if progress[4] > 0 and lr > progress[4]:
            _scale(law, progress[4] / lr)
            progress[2] *= progress[4] / lr
        rate = rate if lr > 0 else 0.0
    length = math.sqrt(_dot(law, law))
    progress[0] += 1
    _shorten(x, clip)
    factor, s, bound = rate * progress[0] ** -decay if decay else rate, 1.0, math.inf
    is_quiet = False
    if growth or q:
        progress[3] += (gradient - progress[3]) / progress[0]
        is_quiet = gradient <= QUIET * progress[3]
    if growth:
        along = _dot(law, x) / (length if length > 0 else 1.0)
        progress[1] = smoothing * progress[1] + (1 - smoothing) * along
        if progress[2] == 0 and progress[1] <= 0 and progress[0] >= window and rate > 0:
            progress[2] = length
        s = bound = progress[2]
        if not s > 0:
            _scale(law, 1.0 if is_quiet or rate <= 0 else 1 + growth)
            return
        progress[4] = max(progress[4], lr)
    elif is_quiet:
        bound = length
    factor *= s * (length / s) ** q if q else s
    _scale(x, factor)
    if q:
        _shorten(x, LEAP * length)
    for i in range(law.size):
        law[i] += x[i]
    _shorten(law, bound)


@_kernel
def _fade(faded: Array, B: Array, out: Array) -> None:
    """out = faded B."""
    for i in range(out.shape[0]):
        for j in range(out.shape[0]):
            out[i, j] = 0.0
            for p in range(out.shape[0]):
                out[i, j] += faded[i, p] * B[p, j]


@_kernel
def learn(
    found: Array,
    rates: Array,
    lr: float,
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
    window: float,
) -> int:
    """The law and what is kept beside it, in place: TAKEN, NOT_FINITE or TOO_LARGE.

    found (shares, r+1, r+1) sums; rates (shares,) law_lr; lr the largest; law (k), faded (k, k), last () and
    progress (5) as in `rllc.torch.learning.Learned`; basis (k, r), metric (r, r), growth_of_sums (r+1) and
    B (k, k) as in `rllc.torch.learning.Constants`. first: the guard's level for a gradient of size one; most:
    what no entry may reach; weighed: whether M⁺g is that of the share of the largest rate.
    """
    shares, r, k = found.shape[0], found.shape[1] - 1, law.size
    largest, finite, fits = 0.0, True, True
    for s in range(shares):
        largest, bound = max(largest, rates[s]), 0.0
        for i in range(r + 1):
            bound += math.sqrt(found[s, i, i]) * growth_of_sums[i]
            for j in range(r + 1):
                finite = finite and math.isfinite(found[s, i, j])
        fits = fits and bound < most
    if not finite or not fits:
        return TOO_LARGE if finite else NOT_FINITE

    W, v, gg, held = np.zeros((r, r)), np.zeros(r), 0.0, 0.0
    for s in range(shares):
        weight = rates[s] / largest if weighed and largest > 0 else rates[s]
        for i in range(r):
            v[i] += weight * found[s, i, r]
            for j in range(r):
                W[i, j] += found[s, i, j]
                held += metric[i, j] * found[s, i, j]
        gg += found[s, r, r]

    x, before_silence = np.empty(k), np.empty(k)
    _solve_with_ridge(W, v, relative, eps, rounding)
    _multiply(basis, v, x)
    if guard:
        level = first * gg
        _multiply(faded, x, before_silence)
        x, shrunk = before_silence, held / (level if level > 0 else 1.0)
        _scale(x, min(shrunk, 1.0))
    new_law, new_progress, new_faded, size = law.copy(), progress.copy(), faded.copy(), math.sqrt(gg)
    take(
        new_law,
        largest if weighed else 1.0,
        x,
        size,
        new_progress,
        lr,
        q,
        decay,
        clip,
        growth,
        smoothing,
        window,
    )
    for i in range(k):
        finite = finite and abs(new_law[i]) < LOST
    if not finite:
        return NOT_FINITE

    if not gg > 0:
        _fade(faded, B, new_faded)
    for i in range(k):
        law[i] = new_law[i]
        for j in range(k):
            faded[i, j] = (1.0 if i == j else 0.0) if gg > 0 else new_faded[i, j]
    for i in range(progress.size):
        progress[i] = new_progress[i]
    last[()] = size
    return TAKEN


@numba.njit(nogil=True, error_model="numpy", cache=True)
def step(
    threads: int,
    table: np.ndarray,
    chunks: np.ndarray,
    summed: tuple,
    witnesses: tuple,
    basis: Array,
    a: Array,
    lr: float,
    law_lr: float,
    keep: float,
    how: tuple,
) -> int:
    """All of a step of one share: `rllc.torch.kernels_cpu.gram`, then `learn`, then `advance` if it is TAKEN.

    In one call for the reason that `rllc.torch.kernels_adamw.step` gives.

    summed: the witnesses of `gram`, witnesses those of `advance`; how: what `learn` wants from the law on.
    """
    found = gram(threads, table, chunks, summed, basis)
    ending = learn(found.reshape((1, *found.shape)), np.array([law_lr]), lr, *how)
    if ending == TAKEN:
        law, B = how[0], how[7]
        keys = np.zeros((a.size, table.shape[1]), np.int64)
        advance(threads, table, chunks, witnesses, B, a, -lr * law, keep, keys)
    return ending
