"""RLLC itself: what a learned law does to the loss, where that is known.

    L_t = L_{t-1} + c2 M_{t-1}⁺g_t,  M_t = M_{t-1}B + g_t aᵀ,  θ_t = θ_{t-1} - c1 M_t L_t

    gain_and_delay      along a run: at L_t the loss is f + (η/2) τ |g|², η = c1 c0(L_t)
    SmoothRidge         the theorem: with a fixed absolute ridge (θ, L) is a method as in `history`
    extrapolating_law   where the law drifts with the exact inverse, smooth gradients, k >= 2: τ = -1
    averaging_law       where it drifts when noise dominates: the averaging of least variance

Only c1 c2 and c1 L_0 matter, so that h = sqrt(c1 c2) may be taken as both rates (`unit_rates`). With a
general c2, k >= 2, the exact inverse and stochastic gradients no O(h²) theorem is claimed.
docs/memoryless.md, section 6.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from rllc.checks import check_nonnegative, check_positive, whole_number
from rllc.laws import GainAndDelay, gain_and_delay
from rllc.memoryless.closed import Terms, hessian_product
from rllc.memoryless.history import (
    Gradient,
    Method,
    Params,
    State,
    add,
    check_step_size,
    combined,
    known,
    scale,
)
from rllc.notation import as_propagator
from rllc.propagator import Array, Propagator

__all__ = [
    "GainAndDelay",
    "SmoothRidge",
    "averaging_law",
    "extrapolating_law",
    "gain_and_delay",
    "unit_rates",
]


def unit_rates(lr: float, law_lr: float, law: ArrayLike) -> tuple[float, Array]:
    """h and l_0 such that RLLC with both rates h and first law l_0 takes the same steps (exactly)."""
    c1, c2 = check_step_size(lr, "lr"), check_step_size(law_lr, "law_lr")
    return math.sqrt(c1 * c2), math.sqrt(c1 / c2) * np.asarray(law, np.float64)


class RidgeCoefficients(NamedTuple):
    """Over n: Σ_{i<=n} aᵀBⁱ, the same for n - 1, and V_n with V_{n+1} = V_n B + ra_nᵀ ra_n, V_0 = 0."""

    after: Array  # (..., k)
    before: Array  # (..., k)
    pairs: Array  # (..., k, k)


@dataclass(frozen=True)
class SmoothRidge:
    """RLLC with an absolute ridge ρ > 0, c1 = h and c2 = κ h, as a method with memory at the points (θ, L).

    M⁺g = (MᵀM + ρ I)⁻¹Mᵀg is then smooth and the theorem holds for θ and L together. h is also the step size
    to run it with: the law of a step is the corrected one, a term of F of size h.

    Attributes:
        propagator: the memory.
        ridge: ρ > 0, in units of a squared gradient.
        kappa: κ = c2/c1 >= 0.
        h: step size; 0 leaves the O(h) term out of F, which `correction` wants to be without.
    """

    propagator: Propagator
    ridge: float
    kappa: float
    h: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "propagator", as_propagator(self.propagator))
        for name in ("kappa", "h"):
            check_nonnegative(name, known(getattr(self, name)))
        why = ": with the exact inverse the law is not a smooth function of the iterates"
        check_positive("the ridge", known(self.ridge), why)

    def method(self, grad: Gradient) -> Method:
        """The optimizer itself, on the pairs (θ, L)."""
        p = self.propagator

        def step(memory: State, point: Params) -> tuple[Params, State]:
            theta, L = point
            g = grad(theta)
            W = jnp.array([[optax.tree.vdot(x, y) for y in memory] for x in memory])
            v = jnp.array([optax.tree.vdot(x, g) for x in memory])
            x = jnp.linalg.solve(W + self.ridge * jnp.eye(p.k), v)
            memory = tuple(combined([*p.B[:, j], p.a[j]], [*memory, g]) for j in range(p.k))
            return (combined(L + self.h * self.kappa * x, memory), -self.kappa * x), memory

        return Method(lambda point: tuple(scale(0, point[0]) for _ in range(p.k)), step)

    def coefficients(self, steps: int) -> RidgeCoefficients:
        """For n = 0, ..., steps: arrays with a first axis of steps + 1, float64."""
        p = self.propagator
        after = np.cumsum(p.abstract_rule(whole_number("steps", steps) + 1), axis=0)
        before = np.concatenate([np.zeros((1, p.k)), after[:-1]])
        pairs = [np.zeros((p.k, p.k))]
        for ra in after[:-1]:
            pairs.append(pairs[-1] @ p.B + np.outer(ra, ra))
        return RidgeCoefficients(after, before, np.array(pairs))

    def stationary(self) -> RidgeCoefficients:
        """For n -> ∞."""
        r0, _ = self.propagator.moments()
        resolvent = np.linalg.inv(np.eye(r0.size) - self.propagator.B)
        return RidgeCoefficients(r0, r0, np.outer(r0, r0) @ resolvent)

    def terms(self, grad: Gradient, coefficients: RidgeCoefficients, point: Params) -> Terms:
        """F_n and corr_n at (θ, L), the O(h) term of F being counted to the correction."""
        after, ra, pairs = map(jnp.asarray, coefficients)
        theta, L = point
        g = grad(theta)
        Hg = hessian_product(grad, theta, g)
        G, q = optax.tree.vdot(g, g), optax.tree.vdot(g, Hg)
        v = L @ pairs
        x0 = G * ra / (self.ridge + G * ra @ ra)
        change = q * (v - ra * (v @ x0) - v * (ra @ x0))
        x1 = jnp.linalg.solve(G * jnp.outer(ra, ra) + self.ridge * jnp.eye(ra.size), change)
        F = scale(after @ L, g), -self.kappa * x0
        along_Hg, along_g = v @ jnp.asarray(self.propagator.B) @ L, self.kappa * (after @ x0)
        return Terms(F, (add(scale(along_Hg, Hg), scale(along_g, g)), -self.kappa * x1))


def extrapolating_law(propagator: str | Propagator) -> Array:
    """x* (k,) with Σ_j x*_j m_j = the gradient one step ahead, on polynomials of degree below k.

    M⁺g tends to it for smooth gradients, small steps and the exact inverse; independent of f and θ. Gain 1,
    and mean delay -1 for k >= 2: RLLC then moves toward anti-regularisation. [formal; numerics agree]

    Raises:
        ValueError: the memory is not reachable, so that there is no one law.
    """
    propagator = as_propagator(propagator)
    k = propagator.k
    if propagator.reachable()[1].k < k:
        raise ValueError(f"{propagator!r} has units that are not independent; take its reachable part")
    # Polynomials of i of degree below k have the basis C(i+l, l), l < k, each but the first of which is 0 one
    # step ahead, at i = -1. With D = I - B, Σ_i C(i+l, l) aᵀBⁱ = aᵀD^-(l+1): times x it is 1 for l = 0 and 0
    # for the others: x = Dᵏy with aᵀDᵐ y = 1 for m = k-1 and 0 below (Ackermann's formula).
    D = np.eye(k) - propagator.B
    R = np.array(list(itertools.accumulate([D] * (k - 1), np.matmul, initial=propagator.a)))
    size = abs(R).max(1)
    y = np.linalg.solve(R / size[:, None], np.eye(k)[-1] / size[-1])
    return functools.reduce(lambda x, _: D @ x, range(k), y).astype(np.float64)


def averaging_law(propagator: str | Propagator) -> Array:
    """Γ⁻¹ r0 (k,): of all laws of its gain the one of least Σ μ_i², of most batches averaged.

    E M⁺g is a multiple of it when gradients are independent noise around a mean. Units that are the same
    share it.

    Raises:
        ValueError: two units are so nearly the same that float64 cannot tell them apart.
    """
    propagator = as_propagator(propagator)
    T = propagator.whitening()
    return T @ (T.T @ propagator.moments()[0])
