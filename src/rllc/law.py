"""The k x k part of a step: what the new gradient says the law should have been.

    x = M⁺ g,   then   L += c2 x            (arXiv 2402.15262, Algorithm 1, "RLLC step")

M⁺ is a relaxed Moore-Penrose inverse of the memory M (n, k). It needs only the sums W = MᵀM, v = Mᵀg
and gᵀg, so that nothing here has more than k² numbers. One implementation serves NumPy, PyTorch and
JAX: every function takes the array namespace `xp` first (numpy, torch or jax.numpy).

    GramianRidge(eps)   (W + eps s Γ)⁻¹ v,  s = tr(Γ⁻¹W)/r     the default
    Ridge(eps)          (W + eps I)⁻¹ v                        the paper's, as far as it says
    Cutoff(rcond)       the pseudo-inverse without the singular values of M below rcond times the largest

Only GramianRidge keeps all of Lemma 3.8: the steps do not change when the units are replaced by other
units of the same span, when gradients are rescaled, or when units coincide (spec, section 7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from rllc.propagator import Propagator

__all__ = ["Cutoff", "GramianRidge", "RelaxedInverse", "Ridge", "Sums", "Units", "correction", "units"]

Array = Any  # an array of numpy, torch or jax.numpy: the caller's

# The guard acts when memory holds less than a gradient of this fraction of the present one's size.
GUARD_FRACTION = 0.25


class Sums(NamedTuple):
    """The inner products one correction needs, as computed from M / σ and g / τ.

    Scaling before squaring keeps float32 sums finite for gradients from 1e-30 to 1e30. Sums in float64
    need none: σ = τ = 1.
    """

    W: Array  # (k, k) MᵀM / σ²
    v: Array  # (k,) Mᵀg / (στ)
    gg: Array  # () gᵀg / τ²
    memory_scale: Array  # () σ > 0
    gradient_scale: Array  # () τ > 0


class Units(NamedTuple):
    """What the correction must know about the units whose sums it is given.

    The whitening T (k, r) has Tᵀ Γ T = I; first = |Tᵀa|² = 1 - det(B_r)² is what one gradient of size one
    contributes to tr(Γ⁻¹ MᵀM).
    """

    whitening: Array  # (k, r)
    first: float


def units(propagator: Propagator) -> Units:
    """The whitening of a linear memory's units and the size of one gradient in it (float64 NumPy).

    Raises:
        ValueError: no gradient enters the memory, or its units are too nearly dependent.
    """
    T = propagator.whitening()
    return Units(T, float(np.sum((T.T @ propagator.a) ** 2)))


@dataclass(frozen=True)
class GramianRidge:
    """M⁺g = (W + eps s Γ)⁻¹ v with s = tr(Γ⁻¹W)/r and Γ the white-noise Gramian: the default.

    s is the gradient variance that the memory would show for white noise, so that eps is a pure
    number: the noise-to-signal ratio below which a direction of memory is not trusted.

    Attributes:
        eps: relative ridge, >= 0. Values below the rounding of the sums are raised to it. The default
            was chosen on validation accuracy of real tasks (docs in README, "Choosing").
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_nonnegative("eps", self.eps)

    def solve(self, xp: ModuleType, sums: Sums, units: Units, rounding: float) -> Array:
        """(k,) the coefficients of the projection of g / τ on the units / σ."""
        T = units.whitening
        W = T.T @ sums.W @ T
        amount = self.eps * xp.trace(W) / W.shape[0]
        return T @ _ridge(xp, W, T.T @ sums.v, amount, rounding)


@dataclass(frozen=True)
class Ridge:
    """M⁺g = (W + eps I)⁻¹ v with an absolute eps: the paper's stability parameter, as far as it says.

    It breaks Lemma 3.8 for changes of basis that are not orthogonal, and the invariance under
    rescaling of gradients: for gradients far below sqrt(eps) the law stops moving.

    Attributes:
        eps: absolute ridge, >= 0, in units of a squared gradient. Values below the rounding of the
            sums are raised to it.
    """

    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_nonnegative("eps", self.eps)

    def solve(self, xp: ModuleType, sums: Sums, units: Units, rounding: float) -> Array:
        """(k,) the coefficients of the projection of g / τ on the units / σ."""
        # Divided twice, because σ² may underflow; bounded, because eps/σ² may overflow.
        amount = self.eps / sums.memory_scale / sums.memory_scale
        amount = xp.where(amount < 1e30, amount, 1e30)
        return _ridge(xp, sums.W, sums.v, amount, rounding)


@dataclass(frozen=True)
class Cutoff:
    """M⁺g without the singular values of M below rcond times the largest, as numpy.linalg.pinv has it.

    With a small rcond the exact pseudo-inverse. It is discontinuous where a singular value crosses the
    threshold, so do not differentiate through it.

    Attributes:
        rcond: >= 0 and below 1. Values whose square is below the rounding of the sums are raised to it.
    """

    rcond: float = 1e-7

    def __post_init__(self) -> None:
        check_nonnegative("rcond", self.rcond)

    def solve(self, xp: ModuleType, sums: Sums, units: Units, rounding: float) -> Array:
        """(k,) the coefficients of the projection of g / τ on the units / σ."""
        values, vectors = xp.linalg.eigh(sums.W)
        kept = (values > self.rcond**2 * values[-1]) & (values > rounding * values[-1])
        inverse = xp.where(kept, 1 / xp.where(kept, values, 1.0), 0.0)
        return vectors @ (inverse * (vectors.T @ sums.v))


RelaxedInverse = GramianRidge | Ridge | Cutoff


def correction(
    xp: ModuleType,
    sums: Sums,
    units: Units,
    inverse: RelaxedInverse,
    *,
    guard: bool = True,
    rounding: float,
) -> Array:
    """x = M⁺g, (k,): exactly zero for zero memory or zero gradient.

    The guard is about memory that has decayed to almost nothing, after a stretch of zero gradients say:
    M⁺g then grows like |g| / |M| without bound, and is 0 at M = 0. With the guard x is multiplied by
    min(1, ρ), ρ = tr(Γ⁻¹MᵀM) / (δ² first |g|²), so that it goes to zero with M. ρ = 1 where memory holds
    what a single gradient of δ = 1/4 the size of g would leave in it.

    Args:
        sums: inner products with the memory BEFORE it takes in g.
        rounding: relative error of the sums, a few units in the last place of their dtype.
    """
    x = inverse.solve(xp, sums, units, rounding)
    quotient = sums.memory_scale / sums.gradient_scale
    if not guard:
        return x / quotient
    T = units.whitening
    held = xp.trace(T.T @ sums.W @ T)
    level = GUARD_FRACTION**2 * units.first * sums.gg
    # (1/q) min(1, q² h), written so that neither 1/q nor q² can overflow into the result
    shrunk = quotient * (held / xp.where(level > 0, level, 1.0))
    return x * xp.where(shrunk < 1 / quotient, shrunk, 1 / quotient)


def rounding_of(k: int, machine_epsilon: float) -> float:
    """The relative error to expect of the sums of k units: a few units in the last place."""
    return 8 * k * machine_epsilon


def initial_law(law: Any, k: int) -> Any:
    """L_0 checked: ones (k,) for None, else the given k finite numbers (a traced array as it is).

    Raises:
        ValueError: the length is not k, or an entry is not finite.
    """
    if law is None:
        return np.ones(k)
    if isinstance(law, str) or not hasattr(law, "shape"):
        law = np.asarray(law)
    if tuple(law.shape) != (k,):
        raise ValueError(f"law must have {k} entries, one for each memory unit; got shape {tuple(law.shape)}")
    if isinstance(law, np.ndarray) and (law.dtype.kind not in "iuf" or not np.isfinite(law).all()):
        raise ValueError(f"law must hold finite real numbers, got {law.tolist()}")
    return law


def chosen_inverse(eps: Any, inverse: RelaxedInverse | None) -> RelaxedInverse:
    """The relaxed inverse a user asked for: GramianRidge(eps) unless `inverse` says otherwise.

    Raises:
        ValueError: both are given, `inverse` is no relaxed inverse, or eps is negative or not finite.
    """
    if inverse is None:
        return GramianRidge() if eps is None else GramianRidge(eps)
    if not isinstance(inverse, RelaxedInverse):
        raise ValueError(
            f"inverse must be GramianRidge(eps), Ridge(eps) or Cutoff(rcond) of rllc.law, got {inverse!r}"
        )
    if eps is not None:
        raise ValueError(f"eps={eps!r} and inverse={inverse!r} are both given; put the eps into the inverse")
    return inverse


def check_nonnegative(name: str, value: Any) -> None:
    """Refuse a negative, infinite or NaN number by name; under jit and vmap there is none to judge yet."""
    if isinstance(value, str) or (
        isinstance(value, float | int | np.generic) and not (value >= 0 and math.isfinite(value))
    ):
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")


def _ridge(xp: ModuleType, W: Array, v: Array, amount: Array, rounding: float) -> Array:
    least = rounding * xp.trace(W)
    amount = xp.where(amount > least, amount, least)
    amount = xp.where(amount > 0, amount, 1.0)  # zero memory: v is zero, and so will x be
    return xp.linalg.solve(W + amount * xp.eye(W.shape[0], dtype=W.dtype), v)
