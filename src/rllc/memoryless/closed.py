"""What methods whose correction is known in closed form have in common, and how their iteration is run."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rllc.checks import whole_number
from rllc.memoryless.history import Gradient, Method, Params, add, check_step_size, scale, with_start

__all__ = ["ClosedForm", "Terms", "follow", "hessian_product"]


class Terms(NamedTuple):
    """F_n(θ) and corr_n(θ), trees like θ."""

    direction: Params
    correction: Params


class ClosedForm(Protocol):
    """A method of which F_n and corr_n at equal arguments are known: see `linear` and `adaptive`."""

    def method(self, grad: Gradient) -> Method:
        """The method itself."""
        ...

    def coefficients(self, steps: int) -> Any:
        """The numbers in F_n and corr_n, a tree of arrays (steps + 1,) over n."""
        ...

    def stationary(self) -> Any:
        """The same for n -> ∞, a tree of numbers."""
        ...

    def terms(self, grad: Gradient, coefficients: Any, theta: Params) -> Terms:
        """F_n(θ) and corr_n(θ) for the coefficients of one n: at most four gradients' work, whatever n."""
        ...


def follow(
    form: ClosedForm,
    grad: Gradient,
    start: Params,
    h: float,
    steps: int,
    corrected: bool = True,
    stationary: bool = False,
) -> Params:
    """The memoryless iteration θ <- θ - h (F_n(θ) + h corr_n(θ)), θ_0, ..., θ_steps: leaves (steps + 1, ...).

    Args:
        form: the method.
        grad: the gradient of the loss.
        start: θ_0.
        h: step size > 0.
        steps: how many.
        corrected: without, the step is h F_n(θ) alone.
        stationary: take the coefficients of n -> ∞ from the first step on. Where memory starts empty without
            bias correction that leaves an error of O(h), as from a shifted start.

    Raises:
        ValueError: h is not a positive number, or steps no whole number >= 0.
    """
    check_step_size(h)
    steps = whole_number("steps", steps)
    rows = form.stationary() if stationary else form.coefficients(max(steps - 1, 0))
    if stationary:
        rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (steps,)), rows)

    def body(theta: Params, row: Any) -> tuple[Params, Params]:
        F, corr = form.terms(grad, row, theta)
        theta = add(theta, scale(-h, add(F, scale(h, corr)) if corrected else F))
        return theta, theta

    # Coefficients of float64 would make a point of float32 one of float64.
    dtype = jnp.result_type(*jax.tree.leaves(start))
    _, path = jax.lax.scan(body, start, jax.tree.map(lambda x: jnp.asarray(x, dtype)[:steps], rows))
    return with_start(start, path)


def hessian_product(grad: Gradient, theta: Params, direction: Params) -> Params:
    """H(θ) direction: one forward derivative of the gradient, never a matrix."""
    return jax.jvp(grad, (theta,), (direction,))[1]
