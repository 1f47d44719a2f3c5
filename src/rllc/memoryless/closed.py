"""What methods whose correction is known in closed form have in common, and how their iteration is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from rllc.checks import whole_number
from rllc.memoryless.history import (
    Gradient,
    Method,
    Params,
    add,
    check_points,
    check_step_size,
    scale,
    with_start,
)

__all__ = ["ClosedForm", "GivenGradient", "Terms", "check_form", "follow", "hessian_product"]


class Terms(NamedTuple):
    """F_n(θ) and corr_n(θ), trees like θ."""

    direction: Params
    correction: Params


@runtime_checkable
class ClosedForm(Protocol):
    """A method of which F_n and corr_n at equal arguments are known: see `linear` and `adaptive`.

    Derivatives of the gradient are taken by `hessian_product` alone.
    """

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
        ValueError: h is not a positive number, steps no whole number >= 0, form no closed form, or start
            holds no floating-point arrays.
    """
    check_step_size(h)
    check_form(form)
    check_points("start", start)
    steps = whole_number("steps", steps)
    rows = form.stationary() if stationary else form.coefficients(max(steps - 1, 0))
    if stationary:
        rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (steps,)), rows)

    def body(theta: Params, row: Any) -> tuple[Params, Params]:
        F, corr = form.terms(grad, row, theta)
        theta = add(theta, scale(-h, add(F, scale(h, corr)) if corrected else F))
        return theta, theta

    _, path = jax.lax.scan(body, start, jax.tree.map(lambda x: jnp.asarray(x)[:steps], rows))
    return with_start(start, path)


def check_form(form: Any) -> None:
    """Refuse what is no closed form.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(form, ClosedForm):
        raise ValueError(
            "form must be a closed form such as Adam() or Linear(rllc.laws.heavy_ball(1.0, 0.9)), got"
            f" {form!r}"
        )


@dataclass(frozen=True)
class GivenGradient:
    """A gradient whose value is there already, of which only Hessian products are computed."""

    value: Params
    function: Gradient

    def __call__(self, theta: Params) -> Params:
        return self.value


def hessian_product(grad: Gradient, theta: Params, direction: Params) -> Params:
    """H(θ) direction: one forward derivative of the gradient, never a matrix."""
    function = grad.function if isinstance(grad, GivenGradient) else grad
    return jax.jvp(function, (theta,), (direction,))[1]
