"""Algorithm 1 of arXiv 2402.15262 word for word: float64 NumPy, M as an n x k matrix, SVD.

    algorithm_1     for linear memory, M <- M B + g aᵀ
    general         for any memory with hidden state, M, H <- U(M, H, g, θ), and any step of the law

Slow and obviously right: the oracle that every backend is tested against. It shares nothing with
`rllc.law`: it never forms MᵀM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from rllc.propagator import Propagator

__all__ = [
    "State",
    "additive",
    "algorithm_1",
    "cutoff",
    "diagonal_ridge",
    "general",
    "gramian_ridge",
    "guarded",
    "relative",
    "ridge",
    "seeking",
]

Array = NDArray[np.float64]
RelaxedInverse = Callable[[Array, Array], Array]  # (M, g) -> M⁺ g
Memory = Callable[[Array, Any, Array, Array], tuple[Array, Any]]  # (M, H, g, θ) -> (M, H)
Correction = Callable[[Array, Any, Array], Array]  # (M, H, g) -> M⁺ g, in a metric that H may hold
LawUpdate = Callable[[Array, Array, Array, int], Array]  # (L, x, g, t) -> L


class State(NamedTuple):
    """Where the process is after t steps."""

    theta: Array  # (n,)
    M: Array  # (n, k)
    L: Array  # (k,)


def algorithm_1(
    gradient: Callable[[Array], Array],
    theta: ArrayLike,
    propagator: Propagator,
    law: ArrayLike,
    c1: float,
    c2: float,
    pinv: RelaxedInverse,
) -> Iterator[State]:
    """The LM-RLLC process (Algorithm 1 with U(M, g) = M B + g aᵀ), one State a step, without end.

    Args:
        gradient: θ (n,) -> g (n,). theta: θ_0 (n,). law: L_0 (k,).
        c1, c2: learning rate and law learning rate.
        pinv: the relaxed Moore-Penrose inverse, (M, g) -> M⁺g.
    """
    B, a = propagator.B, propagator.a

    def update(M: Array, H: None, g: Array, theta: Array) -> tuple[Array, None]:
        return M @ B + np.outer(g, a), H

    return general(gradient, theta, update, None, law, c1, additive(c2), lambda M, H, g: pinv(M, g))


def general(
    gradient: Callable[[Array], Array],
    theta: ArrayLike,
    update: Memory,
    hidden: Any,
    law: ArrayLike,
    c1: float | Callable[[int], float],
    law_update: LawUpdate,
    correction: Correction,
) -> Iterator[State]:
    """The RLLC process (Definition 3.2, Algorithm 1), one State a step, without end; M_0 = 0.

    Args:
        gradient: θ (n,) -> g (n,). theta: θ_0 (n,). law: L_0 (k,).
        update: (M (n, k), H, g, θ) -> (M, H), θ being where g was taken. hidden: H_0.
        c1: the learning rate, or a function of t to it.
        law_update: (L, x, g, t) -> L, t = 1 at the first step. correction: (M, H, g) -> M⁺g.
    """
    theta, L, H = np.asarray(theta, np.float64), np.asarray(law, np.float64), hidden
    M, t = np.zeros((theta.size, L.size)), 0
    while True:
        g, t = gradient(theta), t + 1  # get new gradient
        L = law_update(L, correction(M, H, g), g, t)  # RLLC step
        M, H = update(M, H, g, theta)  # memory update
        theta = theta - (c1(t) if callable(c1) else c1) * M @ L  # learning step
        yield State(theta, M, L)


def additive(c2: float) -> LawUpdate:
    """L + c2 M⁺g: the paper's."""
    return lambda L, x, g, t: L + c2 * x


def relative(c2: float, q: float = 0.0, decay: float = 0.0, clip: float = np.inf) -> LawUpdate:
    """L + c2 t^(-decay) |L|^q x, |x| at most clip; with q > 0 no longer than L if |g| is quiet.

    With q > 0 the step is at most a tenth as long as L.

    Quiet is at most a hundredth of its mean so far. Like `seeking` it remembers: it is for one process.
    """
    sizes: list[float] = []

    def update(L: Array, x: Array, g: Array, t: int) -> Array:
        sizes.append(float(np.linalg.norm(g)))
        length = float(np.linalg.norm(L))
        step = c2 * t**-decay * length**q * _at_most(clip, x)
        new = L + (_at_most(length / 10, step) if q else step)
        return _at_most(length, new) if q and _is_quiet(sizes) else new

    return update


def seeking(
    c2: float,
    q: float,
    decay: float,
    clip: float,
    growth: float,
    smoothing: float,
    c1: Callable[[int], float] = lambda t: 1.0,
) -> LawUpdate:
    """A law that grows by e^growth a step while the mean of x along it is positive, and then learns.

    It does not grow where |g| is quiet, as `relative` has it. Then L + c2 t^(-decay) s (|L|/s)^q x, with
    s = |L| as found, |x| at most clip, and the law never beyond s. Where c1(t) rises above all since then,
    L and s fall as it rises. With c1 = 0 or c2 = 0 the law stays. t counts gradients that are not zero.
    """
    mean, s, top = 0.0, 0.0, 0.0
    sizes: list[float] = []

    def update(L: Array, x: Array, g: Array, step: int) -> Array:
        nonlocal mean, s, top
        if not g.any():
            return L
        sizes.append(float(np.linalg.norm(g)))
        t, lr = len(sizes), c1(step)
        stays = lr == 0 or c2 == 0
        if 0 < top < lr:
            L, s = L * top / lr, s * top / lr
        length, x = float(np.linalg.norm(L)), _at_most(clip, x)
        mean = smoothing * mean + (1 - smoothing) * (float(L @ x) / length if length else 0.0)
        if s == 0 and mean <= 0 and t >= round(1 / (1 - smoothing), 6) and not stays:
            s = length
        if s == 0:
            return L if stays or _is_quiet(sizes) else L * np.exp(growth)
        top = max(top, lr)
        move = (c2 if lr > 0 else 0.0) * t**-decay * s * (length / s) ** q * x
        return _at_most(s, L + (_at_most(length / 10, move) if q else move))

    return update


def _at_most(length: float, x: Array) -> Array:
    own = float(np.linalg.norm(x))
    return x * min(1.0, length / own) if own else x


def _is_quiet(sizes: list[float]) -> bool:
    return sizes[-1] <= 0.01 * float(np.mean(sizes))


def cutoff(rcond: float) -> RelaxedInverse:
    """The pseudo-inverse without singular values of M up to rcond times the largest."""
    return lambda M, g: np.linalg.pinv(M, rcond=rcond) @ g


def ridge(eps: float) -> RelaxedInverse:
    """(MᵀM + eps I)⁻¹ Mᵀg."""
    return lambda M, g: _filtered(M, g, lambda S: eps)


def gramian_ridge(propagator: Propagator, eps: float) -> RelaxedInverse:
    """(MᵀM + eps s Γ)⁻¹ Mᵀg with s = tr(Γ⁻¹MᵀM)/r, on the reachable part of the units."""
    T = _whitening(propagator)
    return lambda M, g: T @ _filtered(M @ T, g, lambda S: eps * np.sum(S**2) / T.shape[1])


def diagonal_ridge(eps: float) -> RelaxedInverse:
    """(MᵀM + eps diag MᵀM)⁻¹ Mᵀg: a ridge on the units at length one.

    In a metric P⁻¹ it is that of P^(-1/2) M and P^(1/2) g.
    """

    def pinv(M: Array, g: Array) -> Array:
        size = np.linalg.norm(M, axis=0)
        scale = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
        return scale * _filtered(M * scale, g, lambda S: eps)

    return pinv


def guarded(pinv: RelaxedInverse, propagator: Propagator, fraction: float) -> RelaxedInverse:
    """M⁺g times min(1, what memory holds / what one gradient of `fraction` the size of g would leave)."""
    T = _whitening(propagator)

    def guarded_pinv(M: Array, g: Array) -> Array:
        one = np.outer(fraction * g, propagator.a)
        level = np.sum((one @ T) ** 2)
        return pinv(M, g) * (min(1.0, np.sum((M @ T) ** 2) / level) if level > 0 else 1.0)

    return guarded_pinv


def _filtered(M: Array, g: Array, amount: Callable[[Array], float]) -> Array:
    U, S, Vt = np.linalg.svd(M, full_matrices=False)
    if not S.any():
        return np.zeros(M.shape[1])
    return Vt.T @ (S / (S**2 + amount(S)) * (U.T @ g))


def _whitening(propagator: Propagator) -> Array:
    P, reached = propagator.reachable()
    C = np.linalg.cholesky(reached.gramian())
    return P @ scipy.linalg.solve_triangular(C, np.eye(reached.k), lower=True).T
