"""Adam, NAdam, RMSProp, Lion and Signum: memory that acts coordinate by coordinate.

With R² = g² + ε (elementwise) and the perturbed norm |g|_{1,ε} = Σ sqrt(g² + ε), whose gradient is H (g/R),
the correction of each is a factor, elementwise, times a Hessian product; for Adam with decoupled decay λ

    F = g/R + λ θ,     corr_n = (1/R) [τ_n(β1) - τ_n(β2) g²/R²] H F,     τ_n(β) -> β/(1-β).

In words: the numerator's memory penalises |g|_{1,ε}, the denominator's rewards it, and where gradients are
large against ε the longer of the two decides. Source: arXiv 2502.02132; docs/memoryless.md, section 3.

`delay` is the effective mean delay τ(g) = corr·g / (κ F²) on a scalar quadratic of curvature κ, λ = 0: the τ
of the linear memory that would make the same correction. τ > 0 regularises.

Parameters are real. Sums and squares are of float32 at least, directions and corrections of the dtype of the
parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rllc.checks import check_nonnegative, check_positive, check_share, whole_number
from rllc.law import root
from rllc.memoryless.closed import Terms, hessian_product
from rllc.memoryless.entries import each, narrow, weighted_past, zeros
from rllc.memoryless.history import Gradient, Method, Params, State, known
from rllc.propagator import Array

__all__ = ["Adam", "Lion", "RMSProp", "perturbed_norm"]


Numbers = Any  # a number, or an array of them over n
UNBOUNDED = ": without it the correction is not bounded"


class Delays(NamedTuple):
    """τ_n of the numerator and of the denominator: numbers, or arrays over n."""

    numerator: Numbers
    denominator: Numbers


class Steps(NamedTuple):
    """n itself, where F_n depends on it in a way that no few numbers tell; infinity is allowed."""

    n: Numbers


class _ByStep:
    """Of a method whose terms take n itself."""

    def coefficients(self, steps: int) -> Steps:
        """n = 0, ..., steps."""
        return Steps(np.arange(whole_number("steps", steps) + 1.0))

    def stationary(self) -> Steps:
        """n = ∞."""
        return Steps(np.float64(np.inf))


@dataclass(frozen=True)
class Adam:
    """Adam with bias correction; AdamW with a weight decay, NAdam with `nesterov`, RMSProp with beta1 = 0.

    Attributes:
        beta1, beta2: decays of the averages of g and g², in [0, 1).
        eps: inside the square root, g/sqrt(v + eps), in units of a squared gradient; or outside of it,
            g/(sqrt(v) + eps), in units of a gradient (as in torch.optim and optax.adam). Positive.
        outside: the place of eps.
        nesterov: the numerator is (β1 m + (1-β1) g)/(1 - β1^(n+2)).
        weight_decay: λ, decoupled, multiplied by h.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    outside: bool = False
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_share("beta1", known(self.beta1))
        check_share("beta2", known(self.beta2))
        check_positive("eps", known(self.eps), UNBOUNDED)
        check_nonnegative("weight_decay", known(self.weight_decay))

    def method(self, grad: Gradient) -> Method:
        """The optimizer itself, as a recurrence."""
        b1, b2 = self.beta1, self.beta2

        def init(theta: Params) -> State:
            return jnp.zeros((), jnp.int32), zeros(theta), zeros(theta)

        def step(state: State, theta: Params) -> tuple[Params, State]:
            n, m, v = state
            g = grad(theta)
            m = each(lambda m, g: b1 * m + (1 - b1) * g, m, g)
            v = each(lambda v, g: b2 * v + (1 - b2) * g * g, v, g)

            def direction(m: jax.Array, v: jax.Array, g: jax.Array, theta: jax.Array) -> jax.Array:
                t = n.astype(m.dtype)
                look = (
                    (b1 * m + (1 - b1) * g) / (1 - b1 ** (t + 2))
                    if self.nesterov
                    else m / (1 - b1 ** (t + 1))
                )
                return look / self._root(v / (1 - b2 ** (t + 1))) + self.weight_decay * theta

            return narrow(each(direction, m, v, g, theta), theta), (n + 1, m, v)

        return Method(init, step)

    def _root(self, v: jax.Array) -> jax.Array:
        return root(jnp, v) + self.eps if self.outside else jnp.sqrt(v + self.eps)

    def _size(self, g: Any) -> Any:
        """R, of a gradient g."""
        return abs(g) + self.eps if self.outside else (g * g + self.eps) ** 0.5

    def coefficients(self, steps: int) -> Delays:
        """For n = 0, ..., steps: arrays (steps + 1,), float64."""
        n = np.arange(whole_number("steps", steps) + 1)
        first = _delay(self.beta1, n)
        if self.nesterov:
            b = self.beta1
            first = b * first * (1 - b ** (n + 1.0)) / (1 - b ** (n + 2.0))
        return Delays(first, _delay(self.beta2, n))

    def stationary(self) -> Delays:
        """For n -> ∞."""
        first = self.beta1 / (1 - self.beta1) * (self.beta1 if self.nesterov else 1)
        return Delays(first, self.beta2 / (1 - self.beta2))

    def terms(self, grad: Gradient, coefficients: Delays, theta: Params) -> Terms:
        """F_n(θ) and corr_n(θ) for the coefficients of one n: one gradient and one Hessian product."""
        g = grad(theta)
        F = narrow(each(lambda g, x: g / self._size(g) + self.weight_decay * x, g, theta), theta)
        HF = hessian_product(grad, theta, F)

        def correction(g: jax.Array, x: jax.Array) -> jax.Array:
            return self._factor(Delays(*(jnp.asarray(tau, g.dtype) for tau in coefficients)), g) * x

        return Terms(F, narrow(each(correction, g, HF), theta))

    def _factor(self, delays: Delays, g: Any) -> Any:
        R = self._size(g)
        share = abs(g) / R if self.outside else g * g / R**2
        return (delays.numerator - delays.denominator * share) / R

    def delay(self, size: Array) -> Array:
        """τ(g) = τ1 - τ2 g²/R² for gradients of these sizes (τ1 - τ2 |g|/R with eps outside)."""
        g = np.asarray(size, np.float64)
        return self._factor(self.stationary(), g) * self._size(g)


@dataclass(frozen=True)
class RMSProp(_ByStep):
    """RMSProp without bias correction, started from v = 0: F_n(θ) = g / sqrt(C_n g² + ε), C_n = 1 - β^(n+1).

    With bias correction it is Adam(beta1=0.0, beta2=beta).

    Attributes:
        beta: decay of the average of g², in [0, 1).
        eps: inside the square root, positive.
    """

    beta: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_share("beta", known(self.beta))
        check_positive("eps", known(self.eps), UNBOUNDED)

    def method(self, grad: Gradient) -> Method:
        """The optimizer itself, as a recurrence."""

        def step(v: State, theta: Params) -> tuple[Params, State]:
            g = grad(theta)
            v = each(lambda v, g: self.beta * v + (1 - self.beta) * g * g, v, g)
            return narrow(each(lambda g, v: g / jnp.sqrt(v + self.eps), g, v), theta), v

        return Method(zeros, step)

    def terms(self, grad: Gradient, coefficients: Steps, theta: Params) -> Terms:
        """F_n(θ) and corr_n(θ): one gradient, one Hessian product; the sum over the past is elementwise."""
        n, g, beta = coefficients.n, grad(theta), self.beta

        def squared(g: jax.Array, s: Any) -> jax.Array:
            """C_s g² + ε"""
            return jnp.asarray(1 - beta ** (s + 1.0), g.dtype) * g * g + self.eps

        def direction(g: jax.Array, s: Any) -> jax.Array:
            return g / jnp.sqrt(squared(g, s))

        past = each(lambda g: weighted_past(lambda s: direction(g, s), (1 - beta) * beta, beta, n), g)
        moved = hessian_product(grad, theta, narrow(past, theta))
        correction = each(lambda g, x: -(g * g) / squared(g, n) ** 1.5 * x, g, moved)
        F = each(lambda g: direction(g, n), g)
        return Terms(narrow(F, theta), narrow(correction, theta))

    def delay(self, size: Array) -> Array:
        """τ(g) = -τ2 g²/R² for gradients of these sizes, for n -> ∞."""
        return Adam(0.0, self.beta, self.eps).delay(size)


@dataclass(frozen=True)
class Lion(_ByStep):
    """Lion-K: F = ∇K(c) + λ θ, c = β1 m + (1-β1) g, m <- β2 m + (1-β2) g, with K(x) = Σ sqrt(x² + ε).

    ε = 0 is Lion, the sign: then the correction is zero wherever no gradient is, and says nothing where one
    changes its sign. Signum of decay β is beta1 = beta2 = β.

    Attributes:
        beta1, beta2: decays in [0, 1).
        eps: smooths the sign, >= 0, in units of a squared gradient.
        weight_decay: λ, decoupled, multiplied by h.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_share("beta1", known(self.beta1))
        check_share("beta2", known(self.beta2))
        check_nonnegative("eps", known(self.eps))
        check_nonnegative("weight_decay", known(self.weight_decay))

    def method(self, grad: Gradient) -> Method:
        """The optimizer itself, as a recurrence."""
        b1, b2 = self.beta1, self.beta2

        def direction(m: jax.Array, g: jax.Array, x: jax.Array) -> jax.Array:
            return self._sign(b1 * m + (1 - b1) * g) + self.weight_decay * x

        def step(m: State, theta: Params) -> tuple[Params, State]:
            g = grad(theta)
            F = narrow(each(direction, m, g, theta), theta)
            return F, each(lambda m, g: b2 * m + (1 - b2) * g, m, g)

        return Method(zeros, step)

    def _sign(self, x: jax.Array) -> jax.Array:
        """∇K(x)"""
        return jnp.sign(x) if self.eps == 0 else x / jnp.sqrt(x * x + self.eps)

    def _slope(self, x: jax.Array) -> jax.Array:
        """The diagonal of the Hessian of K, ε/R³."""
        return jnp.zeros_like(x) if self.eps == 0 else self.eps / (x * x + self.eps) ** 1.5

    def terms(self, grad: Gradient, coefficients: Steps, theta: Params) -> Terms:
        """F_n(θ) and corr_n(θ): one gradient, one Hessian product; the sum over the past is elementwise."""
        n, g = coefficients.n, grad(theta)
        b1, b2 = self.beta1, self.beta2

        def mixed(g: jax.Array, s: Any) -> jax.Array:
            """c at equal arguments: (1 - β1 β2ˢ) g."""
            return jnp.asarray(1 - b1 * b2 ** (s + 0.0), g.dtype) * g

        def direction(g: jax.Array, x: jax.Array, s: Any) -> jax.Array:
            return self._sign(mixed(g, s)) + self.weight_decay * x

        def past(g: jax.Array, x: jax.Array) -> jax.Array:
            return weighted_past(lambda s: direction(g, x, s), b1 * (1 - b2), b2, n)

        moved = hessian_product(grad, theta, narrow(each(past, g, theta), theta))
        correction = each(lambda g, x: self._slope(mixed(g, n)) * x, g, moved)
        F = each(lambda g, x: direction(g, x, n), g, theta)
        return Terms(narrow(F, theta), narrow(correction, theta))

    def delay(self, size: Array) -> Array:
        """τ(g) = τ ε/R² for gradients of these sizes, τ = β1/(1-β2); 0 for ε = 0."""
        g = np.asarray(size, np.float64)
        return self.beta1 / (1 - self.beta2) * (self.eps / (g * g + self.eps) if self.eps else 0 * g)


def perturbed_norm(g: Params, eps: float) -> jax.Array:
    """|g|_{1,ε} = Σ sqrt(g² + ε) over all entries; with g = ∇f(θ) its gradient by θ is H (g/R).

    Raises:
        ValueError: eps is no finite number >= 0.
    """
    check_nonnegative("eps", known(eps))
    terms = [jnp.sum(jnp.sqrt(x * x + eps)) for x in jax.tree.leaves(g)]
    return sum(terms, start=jnp.zeros(()))


def _delay(beta: float, n: Any) -> Array:
    """τ_n(β): the mean age of what a bias-corrected average holds after n + 1 entries."""
    if beta == 0:
        return np.zeros(n.shape)
    last = beta ** (n + 1.0)
    return beta / (1 - beta) - (n + 1) * last / (1 - last)
