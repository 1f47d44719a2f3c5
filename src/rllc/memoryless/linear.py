"""Linear memory with a fixed law: two numbers say what its memory does to the loss.

With the weights μ_i = aᵀBⁱL of past gradients, at a point θ with gradient g and Hessian H:

    F_n = λ θ + C0_n g,     corr_n = C1_n H g + λ M1_n H θ
    C0_n = Σ_{i<=n} μ_i,    M1_n = Σ_{k<=n} k μ_k,     C1_n = Σ_{k<=n} μ_k Σ_{s=n-k..n-1} C0_s

where λ is decoupled weight decay. For n -> ∞ they tend to c0, m1 and c1 = c0 m1, and because H g is the
gradient of |g|²/2, a step of the memoryless iteration is a gradient step of size h on

    c0 f + (h/2) c1 |g|² + λ|θ|²/2 + h λ m1 (θ·g - f).

With τ = m1/c0, the mean delay, and η = h c0: a step η on f + (η/2) τ |g|² (λ = 0). Source: arXiv 2502.02132;
docs/memoryless.md, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from rllc.checks import check_nonnegative, whole_number
from rllc.laws import FixedLaw, gain_and_delay
from rllc.memoryless.closed import Terms, hessian_product
from rllc.memoryless.history import Gradient, Method, Params, State, add, combined, known, scale
from rllc.propagator import Array, M

__all__ = ["Coefficients", "Linear", "NesterovIterates"]

Loss = Callable[[Params], jax.Array]


class Coefficients(NamedTuple):
    """C0_n, C1_n and M1_n: numbers, or arrays over n."""

    gain: Any
    product: Any
    moment: Any


@dataclass(frozen=True)
class Linear:
    """The optimizer θ <- θ - h (λ θ + M L), M <- M B + g aᵀ from M = 0, with a fixed law L.

    Attributes:
        law: the propagator and the law, of learning rate 1: rllc.laws.heavy_ball(1.0, 0.9), for example.
        weight_decay: λ, decoupled, multiplied by h as in optax.adamw. For coupled decay give the gradient
            of f + λ|θ|²/2 instead.
    """

    law: FixedLaw
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.law, FixedLaw):
            raise ValueError(f"law must be a FixedLaw such as rllc.laws.sgd(1.0), got {self.law!r}")
        check_nonnegative("weight_decay", known(self.weight_decay))

    def method(self, grad: Gradient) -> Method:
        """The optimizer itself, as a recurrence."""
        p, L = self.law.propagator, self.law.law

        def init(theta: Params) -> State:
            return tuple(scale(0, theta) for _ in range(p.k))

        def step(memory: State, theta: Params) -> tuple[Params, State]:
            g = grad(theta)
            memory = tuple(combined([*p.B[:, j], p.a[j]], [*memory, g]) for j in range(p.k))
            return combined([*L, self.weight_decay], [*memory, theta]), memory

        return Method(init, step)

    def coefficients(self, steps: int) -> Coefficients:
        """For n = 0, ..., steps: arrays (steps + 1,), float64."""
        return _coefficients(self.law.weights(whole_number("steps", steps) + 1))

    def stationary(self) -> Coefficients:
        """For n -> ∞: c0, c0 m1, m1."""
        c0, m1 = self.law.gain, self.law.first_moment
        return Coefficients(c0, c0 * m1, m1)

    def terms(self, grad: Gradient, coefficients: Coefficients, theta: Params) -> Terms:
        """F_n(θ) and corr_n(θ) for the coefficients of one n: one gradient and one Hessian product."""
        decay = self.weight_decay
        C0, C1, M1 = coefficients
        g = grad(theta)
        moved = scale(C1, g) if decay == 0 else combined([C1, decay * M1], [g, theta])
        return Terms(combined([C0, decay], [g, theta]), hessian_product(grad, theta, moved))

    def modified_loss(self, loss: Loss, h: float, coefficients: Coefficients | None = None) -> Loss:
        """The function on which the memoryless iteration is gradient descent of step size h (eq. 4).

        Differentiating it costs one Hessian product. Coefficients are those of n -> ∞ unless given.
        """
        C0, C1, M1 = self.stationary() if coefficients is None else coefficients
        decay = self.weight_decay

        def modified(theta: Params) -> jax.Array:
            f, g = jax.value_and_grad(loss)(theta)
            value = C0 * f + h / 2 * C1 * optax.tree.vdot(g, g)
            if decay != 0:
                value += decay / 2 * optax.tree.vdot(theta, theta)
                value += h * decay * M1 * (optax.tree.vdot(theta, g) - f)
            return value.astype(f.dtype)

        return modified

    def delay(self, size: Array) -> Array:
        """τ, the same for gradients of every size; NaN for a law of gain zero."""
        _, tau = gain_and_delay(self.law.propagator, self.law.law)
        return np.full_like(np.asarray(size, np.float64), tau)


@dataclass(frozen=True)
class NesterovIterates:
    """Nesterov's method seen at the points φ it steps from, not at those where it takes gradients.

    v <- β v + ∇f(φ + β(φ - φ_previous)), φ <- φ - h v. Its gradients come from between iterates, so that it
    is no linear memory of gradients at them. At the points of the gradients it is
    Linear(rllc.laws.nesterov(1.0, β)).
    """

    beta: float

    def __post_init__(self) -> None:
        M(self.beta)  # refuses what is not a decay

    def method(self, grad: Gradient) -> Method:
        """The optimizer itself, as a recurrence."""

        def init(phi: Params) -> State:
            return phi, scale(0, phi)

        def step(state: State, phi: Params) -> tuple[Params, State]:
            before, v = state
            ahead = combined([1 + self.beta, -self.beta], [phi, before])
            v = add(scale(self.beta, v), grad(ahead))
            return v, (phi, v)

        return Method(init, step)

    def coefficients(self, steps: int) -> Coefficients:
        """For n = 0, ..., steps: arrays (steps + 1,), float64."""
        n, beta = np.arange(whole_number("steps", steps) + 1), self.beta
        C0 = np.cumsum(beta**n)
        S = np.concatenate([[0.0], np.cumsum(C0)])  # S_n = Σ_{s<n} C0_s
        # Σ_{k=1..n-1} β^(k+1) (S_n - S_{n-k}), the last k left out because φ_0 has no point before it
        weights = np.where(n > 0, beta ** (n + 1.0), 0.0)
        total = np.concatenate([[0.0], np.cumsum(weights)])[n]
        older = np.convolve(weights, S[:-1])[: steps + 1]
        return Coefficients(C0, total * S[n] - older, np.concatenate([[0.0], np.cumsum(n * weights)])[n])

    def stationary(self) -> Coefficients:
        """For n -> ∞, as for heavy ball with a mean delay smaller by β."""
        beta = self.beta
        m1 = beta**2 / (1 - beta) ** 2
        return Coefficients(1 / (1 - beta), m1 / (1 - beta), m1)

    def terms(self, grad: Gradient, coefficients: Coefficients, theta: Params) -> Terms:
        """F_n(φ) and corr_n(φ) for the coefficients of one n."""
        g = grad(theta)
        return Terms(
            scale(coefficients.gain, g), hessian_product(grad, theta, scale(coefficients.product, g))
        )

    def delay(self, size: Array) -> Array:
        """τ = β²/(1 - β)."""
        return np.full_like(np.asarray(size, np.float64), self.beta**2 / (1 - self.beta))


def _coefficients(mu: Array) -> Coefficients:
    """From μ_0, ..., μ_n by prefix sums and one convolution."""
    n = np.arange(mu.size)
    C0 = np.cumsum(mu)
    S = np.concatenate([[0.0], np.cumsum(C0)[:-1]])  # S_n = Σ_{s<n} C0_s
    older = np.convolve(np.where(n > 0, mu, 0.0), S)[: mu.size]  # Σ_{k>=1} μ_k S_{n-k}
    return Coefficients(C0, S * (C0 - mu[0]) - older, np.cumsum(n * mu))
