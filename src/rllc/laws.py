"""Known optimizers as linear memory with a fixed law: M_t = M_{t-1} B + g_t aᵀ, θ_t = θ_{t-1} - M_t L.

    law = rllc.laws.nesterov(lr=0.1, beta=0.9)
    law.propagator, law.law            M(0.9) + M(0.0), [0.09, 0.1]
    law.gain, law.mean_delay           total weight of all gradients, and their mean age
    law.equivalent(other)              the same steps on every sequence of gradients

Each is a memory and a law L_0 to start RLLC from: with law learning rate 0 it stays the known optimizer.
What a linear memory with a constant law cannot be: bias correction and momentum schedules (the law depends
on t), decoupled weight decay and averages of iterates (they need θ), and whatever is not linear in g
(Adam, signs, clipping). Source: mathematics.md, sections 4 and 5; arXiv 2402.15262, section 4 and appendix A.
"""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rllc.checks import check_nonnegative, check_positive, is_number, whole_number
from rllc.notation import as_propagator
from rllc.propagator import CM, REPRODUCED, Array, M, Propagator, krylov, rescaled

__all__ = [
    "FixedLaw",
    "GainAndDelay",
    "accsgd",
    "adams_bashforth",
    "ademamix_numerator",
    "aggmo",
    "complex_momentum",
    "delayed",
    "ema_momentum",
    "gain_and_delay",
    "heavy_ball",
    "nesterov",
    "optimistic",
    "pid",
    "qhm",
    "sgd",
    "snv",
    "triple_momentum",
]


@dataclass(frozen=True, eq=False)
class FixedLaw:
    """The optimizer L(B, a, L): a propagator and the law that combines its units into the step M L.

    Its steps are weighted sums of past gradients, Σ_i μ_i g_{t-i} with μ_i = aᵀ Bⁱ L.

    Args:
        propagator: the memory (B, a) of k units, or a text that names it.
        law: L, (k,).

    Raises:
        ValueError: the text names no memory, or the law is not a finite real vector with one entry per unit.
    """

    propagator: Propagator
    law: Array

    def __init__(self, propagator: str | Propagator, law: ArrayLike) -> None:
        propagator = as_propagator(propagator)
        L = np.array(law)
        if L.dtype.kind not in "iuf" or L.shape != (propagator.k,) or not np.isfinite(L).all():
            raise ValueError(
                f"a law for {propagator.k} memory unit{'s' * (propagator.k > 1)} is as many finite real"
                f" numbers; got {law!r}"
            )
        L = L.astype(np.float64)
        L.setflags(write=False)
        object.__setattr__(self, "propagator", propagator)
        object.__setattr__(self, "law", L)

    def weights(self, n: int) -> Array:
        """μ_0 ... μ_{n-1}, (n,): what the step takes of the gradient i steps back, μ_i = aᵀ Bⁱ L."""
        return self.propagator.abstract_rule(n) @ self.law

    def transfer(self, w: complex) -> complex:
        """The transfer function G(w) = Σ_i μ_i wⁱ = aᵀ (I - wB)⁻¹ L, for |w| <= 1.

        Raises:
            ValueError: w is no number, or |w| > 1, where the sum need not converge.
        """
        if not isinstance(w, numbers.Complex | np.ndarray) or not abs(w) <= 1:
            raise ValueError(f"a transfer function is for |w| <= 1, got w = {w!r}")
        B, a, L = self.propagator.B, self.propagator.a, self.law
        return complex(a @ np.linalg.solve(np.eye(a.size) - complex(w) * B, L))

    @property
    def gain(self) -> float:
        """c_0 = Σ_i μ_i = aᵀ (I - B)⁻¹ L: the step that a constant gradient ends in."""
        return float(self.propagator.moments()[0] @ self.law)

    @property
    def first_moment(self) -> float:
        """m_1 = Σ_i i μ_i = aᵀ B (I - B)⁻² L."""
        return float(self.propagator.moments()[1] @ self.law)

    @property
    def mean_delay(self) -> float:
        """τ = m_1 / c_0: the mean age, in steps, of the gradients the step is made of.

        Negative where the law extrapolates. To first order this optimizer is gradient descent of step c_0
        on f + (c_0/2) τ |∇f|² (arXiv 2502.02132).

        Raises:
            ValueError: the gain is zero up to rounding (the weights cancel), so that there is no mean.
        """
        delay = float(gain_and_delay(self.propagator, self.law).delay)
        if math.isnan(delay):
            raise ValueError("the gain of this law is zero: its weights cancel and have no mean delay")
        return delay

    @property
    def minimal_memory(self) -> int:
        """The fewest units with which some propagator and law take the same steps; 0 if there are none.

        The size of the reachable and observable part, which is the rank of the Hankel matrix μ_{i+j}.
        RLLC moves the law and may need more.
        """
        small = self._reachable_and_observable()
        return small.propagator.k if small else 0

    def minimal(self) -> FixedLaw:
        """The same steps from `minimal_memory` units, combinations of the reachable ones.

        Raises:
            ValueError: this optimizer never moves.
        """
        small = self._reachable_and_observable()
        if small is None:
            raise ValueError("this optimizer never moves: no unit takes part in its step")
        return small

    def equivalent(self, other: FixedLaw, tol: float = 1e-10) -> bool:
        """Whether both take the same steps on every sequence of gradients (mathematics.md, section 4).

        They do if μ_0 ... μ_{k+k'-1} agree; here all weights until both have forgotten (`Propagator.lags`)
        must, to tol times the largest of them.

        Raises:
            TypeError: the other is no FixedLaw.
        """
        if not isinstance(other, FixedLaw):
            raise TypeError(f"a fixed law is compared with another FixedLaw, got {other!r}")
        n = max(self.propagator.lags, other.propagator.lags)
        mine, its = self.weights(n), other.weights(n)
        return bool(abs(mine - its).max() <= tol * max(abs(mine).max(), abs(its).max()))

    def __reduce__(self) -> tuple[type[FixedLaw], tuple[Propagator, Array]]:
        """Copies and pickles are built anew, so that their laws are read-only too."""
        return FixedLaw, (self.propagator, self.law)

    def _reachable_and_observable(self) -> FixedLaw | None:
        """The same steps from the fewest units; None if every weight is zero up to rounding.

        All reachable units are kept where they are so nearly dependent that fewer would step otherwise.
        """
        p, rules = self.propagator, self.propagator.abstract_rule(self.propagator.lags)
        if abs(rules @ self.law).max() <= 1e-14 * (abs(rules) @ abs(self.law)).max():
            return None
        P, reached = p.reachable()
        # Each unit as large as its largest weight: then the law's entries are what they add to the step.
        size = abs(reached.abstract_rule(p.lags)).max(0)
        (B, a), L = rescaled(reached.B, reached.a, size), P.T @ self.law * size
        if not L.any():
            return None
        O = krylov(B.T, L / abs(L).max())  # observable means: reachable in the transposed pair (Bᵀ, L)
        kept = FixedLaw(reached, P.T @ self.law)
        try:
            small = FixedLaw(Propagator(O.T @ B @ O, O.T @ a), O.T @ L)
        except ValueError:  # of nearly dependent units: rounding has put an eigenvalue beyond the unit circle
            return kept
        return small if small.equivalent(kept, REPRODUCED) else kept


class GainAndDelay(NamedTuple):
    """c_0 and τ of laws (..., k): arrays (...) in the dtype of the laws; τ is NaN where the gain is zero."""

    gain: Any
    delay: Any


def gain_and_delay(propagator: str | Propagator, laws: Any, xp: ModuleType = np) -> GainAndDelay:
    """The gain c_0 = r_0·L and the mean delay τ = r_1·L/c_0 of each law, of a path of laws for instance.

    Args:
        propagator: the memory, k units, with moments r_0 and r_1 (k,).
        laws: (..., k), real.
        xp: numpy, which counts in float64, or jax.numpy for an array of JAX's.

    Raises:
        ValueError: laws are of another number of units.
    """
    propagator = as_propagator(propagator)
    laws = np.asarray(laws, np.float64) if xp is np else laws
    if laws.shape[-1:] != (propagator.k,):
        raise ValueError(f"laws for {propagator!r} are (..., {propagator.k}), got shape {laws.shape}")
    r0, r1 = (xp.asarray(moment, laws.dtype) for moment in propagator.moments())
    gain, rounding = laws @ r0, max(1e-12, 8 * float(np.finfo(laws.dtype).eps))
    cancels = abs(gain) <= rounding * (abs(laws) @ abs(r0))
    return GainAndDelay(gain, xp.where(cancels, xp.nan, laws @ r1 / xp.where(cancels, 1.0, gain)))


def sgd(lr: float) -> FixedLaw:
    """θ <- θ - lr g. Memory M(0)."""
    return FixedLaw(M(0.0), [_rate(lr)])


def heavy_ball(lr: float, beta: float) -> FixedLaw:
    """m <- β m + g, θ <- θ - lr m (torch.optim.SGD with momentum). Memory M(β)."""
    return FixedLaw(M(_decay(beta)), [_rate(lr)])


def ema_momentum(lr: float, beta: float) -> FixedLaw:
    """m <- β m + (1-β) g, θ <- θ - lr m, without bias correction. B = β, a = 1-β."""
    return FixedLaw(_averages(beta), [_rate(lr)])


def nesterov(lr: float, beta: float) -> FixedLaw:
    """m <- β m + g, θ <- θ - lr (g + β m): the look-ahead points of Nesterov's method (Lemma 4.1).

    These are the iterates of torch.optim.SGD(nesterov=True). Memory M(β) + M(0), L = lr (β, 1).
    """
    return FixedLaw(M(_decay(beta)) | M(0.0), [_rate(lr) * beta, lr])


def qhm(lr: float, beta: float, nu: float) -> FixedLaw:
    """m <- β m + (1-β) g, θ <- θ - lr ((1-ν) g + ν m): quasi-hyperbolic momentum (arXiv 1810.06801)."""
    return FixedLaw(_averages(beta) | M(0.0), [_rate(lr) * _finite("nu", nu), lr * (1 - nu)])


def aggmo(lr: float, betas: Sequence[float]) -> FixedLaw:
    """m_j <- β_j m_j + g, θ <- θ - lr mean_j m_j: aggregated momentum (arXiv 1804.00325)."""
    if np.ndim(betas) != 1 or len(betas) == 0:
        raise ValueError(f"betas must be at least one decay, for example (0.0, 0.9, 0.99); got {betas!r}")
    memory = functools.reduce(operator.or_, (M(_decay(beta)) for beta in betas))
    return FixedLaw(memory, np.full(len(betas), _rate(lr) / len(betas)))


def accsgd(lr: float, kappa: float, xi: float) -> FixedLaw:
    """Accelerated SGD of arXiv 1803.05591 with long step κ and advantage ξ, its constant 0.7 as published.

    w <- α w + (1-α)(θ - (κ lr / 0.7) g) with 1-α = 0.49 ξ/κ, then θ <- p (θ - lr g) + (1-p) w with
    p = 0.7 / (1.7-α). Memory M(p α) + M(0).
    """
    kappa, xi = _positive("kappa", kappa), _positive("xi", xi)
    alpha = 1 - 0.49 * xi / kappa
    p = 0.7 / (1.7 - alpha)
    long_step = kappa * _rate(lr) / 0.7
    return FixedLaw(M(p * alpha) | M(0.0), [(1 - p) * ((1 - alpha) * long_step - lr), lr])


def snv(lr: float, beta1: float, beta2: float) -> FixedLaw:
    """ξ_{t+1} = ξ_t + β₁(ξ_t - ξ_{t-1}) - lr ∇f(y_t), iterates y_t = ξ_t + β₂(ξ_t - ξ_{t-1}).

    The synthesized Nesterov variants of Lessard, Recht and Packard (arXiv 1408.3595). Memory M(β₁) + M(0),
    or the delay line M_2(0) where β₁ = 0.
    """
    beta1, beta2 = _decay(beta1), _finite("beta2", beta2)
    if beta1 == 0:
        return FixedLaw(M(0.0, 2), [_rate(lr) * (1 + beta2), -lr * beta2])
    ratio = beta2 / beta1
    return FixedLaw(M(beta1) | M(0.0), [_rate(lr) * (1 + beta2 - ratio), lr * ratio])


def triple_momentum(convexity: float, smoothness: float) -> FixedLaw:
    """The triple momentum method for m-strongly convex f with L-Lipschitz gradient: 0 < m <= L.

    `snv` with ρ = 1 - √(m/L), lr = (1+ρ)/L, β₁ = ρ²/(2-ρ), β₂ = ρ²/((1+ρ)(2-ρ)) (Van Scoy, Freeman and
    Lynch, 2018). Its output (1+δ)ξ_t - δ ξ_{t-1} is a map of the iterates and not one of them.
    """
    m, smooth = _positive("convexity", convexity), _positive("smoothness", smoothness)
    if m > smooth:
        raise ValueError(f"convexity {m} exceeds smoothness {smooth}; it is at most as large")
    rho = 1 - math.sqrt(m / smooth)
    beta1 = rho**2 / (2 - rho)
    return snv((1 + rho) / smooth, beta1, beta1 / (1 + rho))


def pid(lr: float, beta: float, kd: float) -> FixedLaw:
    """V <- β V - lr g, D <- β D + (1-β)(g - g_previous), θ <- θ + V - kd D: a PID controller (CVPR 2018).

    The gradient before the first counts as 0. Memory M(β) + M(0), or the delay line M_2(0) where β = 0:
    the D term needs no third unit.
    """
    beta, kd = _decay(beta), _finite("kd", kd)
    if beta == 0:
        return FixedLaw(M(0.0, 2), [_rate(lr) + kd, -kd])
    d = kd * (1 - beta) / beta
    return FixedLaw(M(beta) | M(0.0), [_rate(lr) + kd * (1 - beta) - d, d])


def complex_momentum(lr: complex, gamma: complex) -> FixedLaw:
    """z <- γ z + g, θ <- θ - Re(lr z) (arXiv 2102.08431). Memory CM(γ), L = (Re lr, -Im lr)."""
    if not isinstance(lr, numbers.Complex | np.ndarray):
        raise ValueError(f"lr must be a finite complex number; got {lr!r}")
    return FixedLaw(CM(gamma), [_finite("lr", lr.real), -_finite("lr", lr.imag)])


def ademamix_numerator(lr: float, beta1: float, beta3: float, alpha: float) -> FixedLaw:
    """The numerator m_1 + α m_2 of AdEMAMix (arXiv 2409.03137), two averages without bias correction."""
    return FixedLaw(_averages(beta1, beta3), [_rate(lr), lr * _finite("alpha", alpha)])


def optimistic(lr: float) -> FixedLaw:
    """θ <- θ - lr (2 g - g_previous), the gradient before the first being 0. Memory M_2(0)."""
    return FixedLaw(M(0.0, 2), [2 * _rate(lr), -lr])


def adams_bashforth(lr: float) -> FixedLaw:
    """θ <- θ - lr (3/2 g - 1/2 g_previous): the two-step rule AB2, of mean delay -1/2. Memory M_2(0)."""
    return FixedLaw(M(0.0, 2), [1.5 * _rate(lr), -0.5 * lr])


def delayed(lr: float, delay: int) -> FixedLaw:
    """θ <- θ - lr g_{t-d}: each gradient is used d steps late. Memory M_{d+1}(0)."""
    units = whole_number("delay", delay) + 1
    return FixedLaw(M(0.0, units), _rate(lr) * np.eye(units)[-1])


def _averages(*betas: float) -> Propagator:
    """Exponential moving averages m_j <- β_j m_j + (1-β_j) g."""
    decays = [_decay(beta) for beta in betas]
    return Propagator(np.diag(decays), [1 - beta for beta in decays])


def _rate(lr: float) -> float:
    check_nonnegative("lr", lr)
    return float(lr)


def _decay(beta: float) -> float:
    if not is_number(beta, lambda x: abs(x) < 1):
        raise ValueError(f"a momentum decay must lie in (-1, 1), so that old gradients fade; got {beta!r}")
    return float(beta)


def _positive(name: str, value: float) -> float:
    check_positive(name, value)
    return float(value)


def _finite(name: str, value: float) -> float:
    if not is_number(value, math.isfinite):
        raise ValueError(f"{name} must be a finite number; got {value!r}")
    return float(value)
