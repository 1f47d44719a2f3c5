"""The k x k part of a step: what the new gradient says the law should have been.

    x = M⁺ g,   then   L += c2 x            (arXiv 2402.15262, Algorithm 1, "RLLC step")

M⁺ is a relaxed Moore-Penrose inverse of the memory M (n, k). It needs only the sums W = MᵀM, v = Mᵀg
and gᵀg, so that nothing here has more than k² numbers. One implementation serves NumPy, PyTorch and
JAX: every function takes the array namespace `xp` first (numpy, torch or jax.numpy).

The sums are those of the units M C for a basis C that suits the inverse (`Frame`), because units such
as M(0.9), M(0.8) and M(0.7) are nearly parallel: combining them before squaring loses half as many digits as
combining their squares.

    GramianRidge(eps)   (W + eps s Γ)⁻¹ v,  s = tr(Γ⁻¹W)/r     the default
    Ridge(eps)          (W + eps I)⁻¹ v                        the paper's, as far as it says
    Cutoff(rcond)       the pseudo-inverse without the singular values of M below rcond times the largest
    DiagonalRidge(eps)  (W + eps diag W)⁻¹ v                   where there is no Γ: nonlinear memory

Only GramianRidge keeps all of Lemma 3.8: the steps do not change when the units are replaced by other
units of the same span, when gradients are rescaled, or when units coincide (mathematics.md, section 7).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from rllc.checks import check_nonnegative, check_share, is_number
from rllc.propagator import Propagator

__all__ = [
    "SEEKING",
    "Cutoff",
    "DiagonalRidge",
    "Frame",
    "GramianRidge",
    "LawStep",
    "RelaxedInverse",
    "Ridge",
    "Sums",
    "correction",
    "in_scale",
    "plain_frame",
    "root",
]

Array = Any  # an array of numpy, torch or jax.numpy: the caller's

# The guard acts when memory holds less than a gradient of this fraction of the present one's size.
GUARD_FRACTION = 0.25
# Of the mean size of all gradients so far: one that is smaller makes no law longer (`LawStep`).
QUIET = 0.01
# Of the law's length: how far a relative step takes it at most, so that it is never turned round at once.
LEAP = 0.1
# By e^growth a law is multiplied in one step: more than this loses any law at once.
LARGEST_GROWTH = 10.0
# No law of a run that can be saved: float32 parameters could not take its step.
LOST = 1e30
# How many numbers a law step keeps from step to step.
PROGRESS = 5


class Sums(NamedTuple):
    """The inner products one correction needs, as computed from the units U = M C / σ and g / τ.

    Scaling before squaring keeps float32 sums finite for gradients from 1e-30 to 1e30. Sums in float64
    need none: σ = τ = 1.
    """

    W: Array  # (r, r) UᵀU
    v: Array  # (r,) Uᵀg / τ
    gg: Array  # () gᵀg / τ²
    memory_scale: Array  # () σ > 0
    gradient_scale: Array  # () τ > 0

    def gradient_size(self, xp: ModuleType) -> Array:
        """|g|, ()."""
        return root(xp, self.gg) * self.gradient_scale


class Frame(NamedTuple):
    """The basis C that an inverse works in, and what the guard must know about the units."""

    basis: Array  # (k, r) C: sums are of the units M C, and x = C (what `solve` returns)
    metric: Array  # (r, r) G with tr(G W) = tr(Γ⁻¹ MᵀM), the gradient content of memory
    first: float  # the content that one gradient of size one leaves: aᵀΓ⁻¹a = 1 - det(B_r)²


@dataclass(frozen=True)
class GramianRidge:
    """M⁺g = (W + eps s Γ)⁻¹ v with s = tr(Γ⁻¹W)/r and Γ the white-noise Gramian: the default.

    s is the gradient variance that white noise would need to fill memory so far, so that eps is a pure
    number: a direction of memory that holds less than this share of it is not trusted. Computed in the
    orthonormal filters M Γ^(-1/2), where it is the ridge eps s I.

    Attributes:
        eps: relative ridge, >= 0. Values below the rounding of the sums are raised to it.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_nonnegative("eps", self.eps)

    def frame(self, propagator: Propagator) -> Frame:
        """Orthonormal filters of the reachable units."""
        T = propagator.whitening()
        return Frame(T, np.eye(T.shape[1]), _first(propagator, T))

    def solve(self, xp: ModuleType, sums: Sums, rounding: float) -> Array:
        """(r,) the coefficients of the projection of g / τ on U."""
        trace = xp.trace(sums.W)
        return _ridge(xp, sums, trace, self.eps * trace / sums.W.shape[0], rounding)


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

    def frame(self, propagator: Propagator) -> Frame:
        """The units as they are."""
        return _own_frame(propagator)

    def solve(self, xp: ModuleType, sums: Sums, rounding: float) -> Array:
        """(k,) the coefficients of the projection of g / τ on U."""
        # Divided twice, because σ² may underflow; bounded, because eps/σ² may overflow.
        amount = self.eps / sums.memory_scale / sums.memory_scale
        return _ridge(xp, sums, xp.trace(sums.W), xp.where(amount < 1e30, amount, 1e30), rounding)


@dataclass(frozen=True)
class Cutoff:
    """M⁺g without the singular values of M below rcond times the largest, as numpy.linalg.pinv has it.

    With a small rcond the exact pseudo-inverse. It is discontinuous where a singular value crosses the
    threshold, so do not differentiate through it.

    Attributes:
        rcond: >= 0. Values whose square is below the rounding of the sums are raised to it.
    """

    rcond: float = 1e-7

    def __post_init__(self) -> None:
        check_nonnegative("rcond", self.rcond)

    def frame(self, propagator: Propagator) -> Frame:
        """The units as they are."""
        return _own_frame(propagator)

    def solve(self, xp: ModuleType, sums: Sums, rounding: float) -> Array:
        """(k,) the coefficients of the projection of g / τ on U."""
        values, vectors = xp.linalg.eigh(sums.W)
        kept = (values > self.rcond**2 * values[-1]) & (values > rounding * values[-1])
        inverse = xp.where(kept, 1 / xp.where(kept, values, 1.0), 0.0)
        return vectors @ (inverse * (vectors.T @ sums.v))


@dataclass(frozen=True)
class DiagonalRidge:
    """M⁺g = (W + eps diag W)⁻¹ v: the default of memory that is not linear, which has no Gramian.

    For one unit it is GramianRidge. It does not change with the length of any unit, nor with the
    gradient's, but it does with other changes of basis. A unit that is zero has the coefficient zero.

    Attributes:
        eps: relative ridge, >= 0. Values below the rounding of the sums are raised to it.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_nonnegative("eps", self.eps)

    def frame(self, propagator: Propagator) -> Frame:
        """The units as they are."""
        return _own_frame(propagator)

    def solve(self, xp: ModuleType, sums: Sums, rounding: float) -> Array:
        """(k,) the coefficients of the projection of g / τ on U."""
        W, eps = sums.W, self.eps
        size = root(xp, xp.diagonal(W))
        scale = xp.where(size > 0, 1 / xp.where(size > 0, size, 1.0), 0.0)
        correlation = W * scale[:, None] * scale[None, :]
        # A zero unit has no correlation with itself either; its one keeps the matrix regular.
        ridge = xp.where(size > 0, xp.where(eps > rounding, eps, rounding), 1.0)
        return scale * xp.linalg.solve(
            correlation + ridge[:, None] * xp.eye(W.shape[0], dtype=W.dtype), scale * sums.v
        )


RelaxedInverse = GramianRidge | Ridge | Cutoff | DiagonalRidge


@dataclass(frozen=True)
class LawStep:
    """How a correction x moves the law at step t: L <- L + c2 t^(-decay) s (|L|/s)^q x, |x| at most `clip`.

    |L| is the Euclidean norm. As it stands it is the paper's additive step. With q > 0 the step is
    relative to the law's own size, homogeneous of degree q: a law that anneals falls like t^(-1/q) and not
    to zero; q = 1.5 is safe, q = 1 collapses where batches are drawn without replacement. Such a step is at
    most a tenth as long as the law: a large law would else be turned round by one step, and thrown further by
    the next. decay = 1/2 is c2 ~ 1/√t.

    With growth > 0 the law first finds its size s: it grows by the factor e^growth a step while x says
    that steps should have been longer, until the mean of its part along the law is no more positive. Then
    s = |L|, and the law learns, but no further than to s again. Begun small enough, the learning rate need
    not be known. Without growth s = 1, and no bound.

    What the search has found is how long steps may be, c1 s. So where c1 rises above all that it has been
    since (warm-up, a cycle), s and L fall as it rises; where it falls, steps fall with it. A gradient that is
    zero throughout says nothing: such a step is not counted. And where c1 is 0 the search waits.

    A network that has learned all its data says forever that steps should be longer, until they break it:
    hence that bound, and where a gradient is QUIET, a hundredth of the mean size of all so far, no law grows,
    and without growth no relative step makes it longer.

    Attributes:
        q: >= 0. decay: >= 0. clip: > 0, of the length of x.
        growth: 0 to 10. smoothing: of the exponential mean, in [0, 1); before its `window` has passed no
            growth ends.
    """

    q: float = 0.0
    decay: float = 0.0
    clip: float = math.inf
    growth: float = 0.0
    smoothing: float = 0.95

    def __post_init__(self) -> None:
        for name in ("q", "decay"):
            check_nonnegative(name, getattr(self, name))
        if not is_number(self.growth, lambda x: 0 <= x <= LARGEST_GROWTH):
            raise ValueError(
                f"growth must be a number from 0 to {LARGEST_GROWTH:g}, got {self.growth!r}: in one step the"
                " law may be multiplied by e^growth"
            )
        if not is_number(self.clip, lambda x: x > 0):
            raise ValueError(f"clip must be a number > 0, math.inf for none, got {self.clip!r}")
        check_share("smoothing", self.smoothing)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):  # 0-d, and without a hash
                object.__setattr__(self, name, value.item())

    @property
    def window(self) -> float:
        """1/(1 - smoothing), in steps."""
        return round(1 / (1 - self.smoothing), 6)

    @functools.cached_property
    def numbers(self) -> tuple[float, ...]:
        """q, decay, clip, e^growth - 1, smoothing and window, as the kernels of the CPU take them."""
        numbers = self.q, self.decay, self.clip, math.expm1(self.growth), self.smoothing, self.window
        return tuple(map(float, numbers))

    def taken(
        self,
        xp: ModuleType,
        law: Array,
        rate: Any,
        x: Array,
        gradient: Array,
        progress: Array,
        lr: Any = 1.0,
    ) -> tuple[Array, Array]:
        """The law (k,) after the step, and the progress: t; if it grows, the mean of x along the law and s
        once it is found; if it grows or steps are relative, the mean of |g| over all steps; if it grows, the
        largest c1 since s was found.

        Args:
            rate: c2; with 0 the law stays, and neither grows nor finds its size.
            gradient: |g|, ().
            progress: (PROGRESS,) zeros before the first step.
            lr: c1, of several the largest; if it grows.
        """
        before, (t, mean, size, usual, top) = law, (progress[i] for i in range(PROGRESS))
        t = t + 1
        if self.growth:
            back = xp.where((top > 0) & (lr > top), top / xp.where(lr > 0, lr, 1.0), 1.0)
            law, size, rate = law * back, size * back, xp.where(lr > 0, rate, 0.0)
        length = _length(xp, law)
        if self.clip < math.inf:
            x = _within(xp, x, self.clip)
        if self.growth or self.q:
            usual = usual + (gradient - usual) / t
            is_quiet = gradient <= QUIET * usual
        if self.growth:
            along = xp.sum(law * x) / xp.where(length > 0, length, 1.0)
            mean = self.smoothing * mean + (1 - self.smoothing) * along
            ripe = (size == 0) & (mean <= 0) & (t >= self.window) & (rate > 0)
            size = xp.where(ripe, length, size)
            s = xp.where(size > 0, size, 1.0)
            grown = law * xp.where(is_quiet | (rate <= 0), 1.0, 1 + math.expm1(self.growth))
            learned = law + self._move(xp, rate, x, t, length, s)
            law = xp.where(size > 0, _within(xp, learned, s), grown)
            top = xp.where(size > 0, xp.where(lr > top, lr, top), 0.0)
        elif self.q:
            learned = law + self._move(xp, rate, x, t, length, 1.0)
            law = xp.where(is_quiet, _within(xp, learned, length), learned)
        else:
            law = law + self._move(xp, rate, x, t, length, 1.0)
        after = xp.stack([t, mean, size, usual, top])
        if self.growth:
            law, after = xp.where(gradient > 0, law, before), xp.where(gradient > 0, after, progress)
        return law, after

    def _move(self, xp: ModuleType, rate: Any, x: Array, t: Any, length: Array, s: Any) -> Array:
        """c2 t^(-decay) s (|L|/s)^q x; a relative one no longer than LEAP |L|."""
        rate = rate * t**-self.decay if self.decay else rate
        if not self.q:
            return rate * s * x
        # A derivative of 0^q is not finite for q < 1, nor for any by way of its logarithm.
        ratio = xp.where(length > 0, length, 1.0) / s
        return _within(xp, rate * s * ratio**self.q * x, LEAP * length)


def correction(
    xp: ModuleType,
    sums: Sums,
    frame: Frame,
    inverse: RelaxedInverse,
    *,
    faded: Array | None,
    rounding: float,
) -> Array:
    """x = M⁺g, (k,): exactly zero for zero memory or zero gradient; guarded unless `faded` is None.

    The guard is about memory that has decayed towards nothing, where M⁺g grows like |g| / |M| without
    bound. It has two parts. After s zero gradients memory is M' Bˢ, M' what it was before them: then
    x = Bˢ M⁺g, the correction that g would have made of M'. And where memory holds little for any other
    reason, x is multiplied by min(1, ρ), ρ = tr(Γ⁻¹MᵀM) / (δ² aᵀΓ⁻¹a |g|²), so that it goes to zero with M;
    ρ = 1 where memory holds what a single gradient of δ = 1/4 the size of g would leave in it.

    Args:
        sums: inner products with the memory BEFORE it takes in g, in the basis of the frame.
        frame: of this inverse and the memory's propagator, as arrays of xp.
        faded: (k, k) Bˢ as `fade` keeps it, or None for the paper's exact formula.
        rounding: relative error of the sums, a few units in the last place of their dtype.
    """
    x = frame.basis @ inverse.solve(xp, sums, rounding)
    quotient = sums.memory_scale / sums.gradient_scale
    if faded is None:
        return x / quotient
    held = xp.trace(frame.metric @ sums.W)
    level = GUARD_FRACTION**2 * frame.first * sums.gg
    # (1/q) min(1, q² h), written so that neither 1/q nor q² can overflow into the result
    shrunk = quotient * (held / xp.where(level > 0, level, 1.0))
    return faded @ x * xp.where(shrunk < 1 / quotient, shrunk, 1 / quotient)


def in_scale(
    xp: ModuleType, x: Array, W: Array, last_size: Array, yardsticks: tuple[int | None, ...]
) -> Array:
    """(k,) the coefficients x of M⁺g as pure numbers: x_j |m_j| over what `rllc.memory.yardsticks` names.

    Args:
        W: (k, k) the units' inner products, in the metric if there is one.
        last_size: |g| of the last gradient that memory has taken in.
    """
    lengths = [*root(xp, xp.diagonal(W)), last_size]  # LAST_GRADIENT is the last of them
    of_one = xp.ones_like(last_size)
    over = [of_one if i is None else lengths[i] for i in yardsticks]
    own = [of_one if i is None else length for i, length in zip(yardsticks, lengths[:-1], strict=True)]
    factors = [xp.where(o > 0, m / xp.where(o > 0, o, 1.0), 0.0) for m, o in zip(own, over, strict=True)]
    return x * xp.stack(factors)


def plain_frame(k: int) -> Frame:
    """The frame of k units of which no propagator is known: as they are. For `faded=None` only."""
    return Frame(np.eye(k), np.eye(k), 1.0)


def fade(xp: ModuleType, faded: Array, B: Array, sums: Sums) -> Array:
    """Bˢ after this gradient, (k, k), s the number of zero gradients since the last other one."""
    return xp.where(sums.gg > 0, xp.eye(B.shape[0], dtype=B.dtype), faded @ B)


def rounding_of(k: int, machine_epsilon: float) -> float:
    """The relative error to expect of the sums of k units: a few units in the last place."""
    return 8 * k * machine_epsilon


def initial_law(law: Any, k: int) -> Any:
    """L_0 checked: ones (k,) for None, else the given k finite numbers (a traced array as it is); of one
    unit the number itself will do.

    Raises:
        ValueError: the length is not k, or an entry is not finite.
    """
    if law is None:
        return np.ones(k)
    if isinstance(law, str) or not hasattr(law, "shape"):
        law = np.asarray(law)
    if k == 1 and law.shape == ():
        law = law[None]
    if tuple(law.shape) != (k,):
        raise ValueError(f"law must have {k} entries, one for each memory unit; got shape {tuple(law.shape)}")
    if isinstance(law, np.ndarray) and (law.dtype.kind not in "iuf" or not (abs(law) < LOST).all()):
        raise ValueError(f"law must hold finite real numbers, below {LOST:g}, got {law.tolist()}")
    return law


def chosen_inverse(eps: Any, inverse: RelaxedInverse | None, *, linear: bool = True) -> RelaxedInverse:
    """The relaxed inverse a user asked for: GramianRidge(eps), or DiagonalRidge(eps) if memory is not linear.

    Args:
        eps: of the default; None for its own.
        inverse: another one instead.
        linear: whether memory is, and so has a Gramian.

    Raises:
        ValueError: both are given, `inverse` is no relaxed inverse or needs a Gramian that memory does not
            have, or eps is negative or not finite.
    """
    if inverse is None:
        default = GramianRidge if linear else DiagonalRidge
        return default() if eps is None else default(eps)
    if not isinstance(inverse, RelaxedInverse):
        raise ValueError(
            "inverse must be GramianRidge(eps), DiagonalRidge(eps), Ridge(eps) or Cutoff(rcond) of rllc.law,"
            f" got {inverse!r}"
        )
    if isinstance(inverse, GramianRidge) and not linear:
        raise ValueError(
            f"inverse={inverse!r} is for linear memory, as no other has a Gramian; use"
            f" rllc.law.DiagonalRidge({inverse.eps})"
        )
    if eps is not None:
        raise ValueError(f"eps={eps!r} and inverse={inverse!r} are both given; put the eps into the inverse")
    return inverse


def chosen_guard(guard: bool | None, *, linear: bool) -> bool:
    """Whether a returning gradient is guarded against: if nothing is said, that of linear memory.

    Raises:
        ValueError: it is asked for where memory is not linear.
    """
    if guard and not linear:
        raise ValueError("guard=True is for linear memory; the guard of a memory rule is LawStep(clip=...)")
    return linear if guard is None else guard


def check_law_step(step: Any) -> LawStep:
    """The step itself, if it is a LawStep; ValueError else."""
    if not isinstance(step, LawStep):
        raise ValueError(f"law_step must be a rllc.law.LawStep, such as LawStep(q=1.5), got {step!r}")
    return step


def _within(xp: ModuleType, x: Array, bound: Array) -> Array:
    """x, or in its direction what is no longer than the bound."""
    length = _length(xp, x)
    is_longer = length > bound
    return x * xp.where(is_longer, bound / xp.where(is_longer, length, 1.0), 1.0)


def _length(xp: ModuleType, x: Array) -> Array:
    return root(xp, xp.sum(x * x))


def root(xp: ModuleType, square: Array) -> Array:
    """Its square root, whose derivative at zero is taken as zero."""
    return xp.where(square > 0, xp.sqrt(xp.where(square > 0, square, 1.0)), square)


def _own_frame(p: Propagator) -> Frame:
    T = p.whitening()
    return Frame(np.eye(p.k), T @ T.T, _first(p, T))


def _first(p: Propagator, T: Array) -> float:
    return float(np.sum((T.T @ p.a) ** 2))


def _ridge(xp: ModuleType, sums: Sums, trace: Array, amount: Array, rounding: float) -> Array:
    W, least = sums.W, rounding * trace
    amount = xp.where(amount > least, amount, least)
    amount = xp.where(amount > 0, amount, 1.0)  # zero memory: v is zero, and so will x be
    return xp.linalg.solve(W + amount * xp.eye(W.shape[0], dtype=W.dtype), sums.v)


# Begun at c1 L_0 = 1e-5 and with c2 = 0.04: of RLLC-AdamW (docs/method.md says how it was chosen).
SEEKING = LawStep(q=1.5, decay=0.5, clip=1.0, growth=0.1)
