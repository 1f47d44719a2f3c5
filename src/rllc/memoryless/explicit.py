"""The correction as a term of one's own: switch memory's regularisation off, double or reverse it.

    form = Linear(rllc.laws.heavy_ball(1.0, 0.9))
    tx = explicit_correction(optax.sgd(0.1, momentum=0.9), form, 0.1, strength=-1.0)
    updates, state = tx.update(g, state, params, grad_fn=jax.grad(loss))

By the theory the optimizer's steps are those of a memoryless one plus h² corr_n(θ). The wrapper adds
strength · h² corr(θ), from one Hessian product: -1 cancels the term, 1 doubles it, 0 is the optimizer
untouched. In a direction of curvature λ the term is strength · h m1 λ of a step (linear memory, m1 = c0 τ):
where that is above 1 it is no correction any more. A negative strength then climbs, and on networks at the
rates in use it mostly diverges (docs/memoryless.md, section 8).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from rllc.checks import is_number
from rllc.memoryless.closed import ClosedForm, GivenGradient, check_form
from rllc.memoryless.history import Gradient, Params, add, check_step_size, known, scale

__all__ = ["ExplicitCorrectionState", "explicit_correction"]


class ExplicitCorrectionState(NamedTuple):
    """The state of the wrapped transformation."""

    inner: Any


def explicit_correction(
    tx: optax.GradientTransformation, form: ClosedForm, learning_rate: float, strength: float | jax.Array
) -> optax.GradientTransformationExtraArgs:
    """tx with strength · h² corr(θ) subtracted from its updates, corr in its stationary form.

    `update` needs the parameters and one more argument, `grad_fn`: the gradient as a function of the
    parameters, for the Hessian product. The gradient given to `update` is the vector it is applied to. With
    both from one batch the product holds H_b g_b, whose mean is H g + ½ ∇ tr Σ; with grad_fn from a second
    batch it is H g.

    Args:
        tx: the optimizer, of a constant learning rate; its updates are added to the parameters.
        form: what it is: `Linear`, `Adam`, `Lion`, ..., of learning rate 1 whatever that of tx is: of
            optax.sgd(0.1, 0.9) Linear(rllc.laws.heavy_ball(1.0, 0.9)).
        learning_rate: h > 0 of tx.
        strength: any number; it may be traced.

    Raises:
        ValueError: the learning rate is not positive, form no closed form, or strength no finite number; at
            the update, no parameters or no grad_fn.
    """
    h = check_step_size(learning_rate, "learning_rate")
    check_form(form)
    if not is_number(known(strength), np.isfinite):
        raise ValueError(f"strength must be a finite number, got {strength!r}")
    inner = optax.with_extra_args_support(tx)
    row = form.stationary()

    def init(params: Params) -> ExplicitCorrectionState:
        return ExplicitCorrectionState(inner.init(params))

    def update(
        g: Params,
        state: ExplicitCorrectionState,
        params: Params | None = None,
        *,
        grad_fn: Gradient | None = None,
        **extra: Any,
    ) -> tuple[Params, ExplicitCorrectionState]:
        if params is None or grad_fn is None:
            raise ValueError(
                "explicit_correction needs the parameters and the gradient as a function:"
                " update(g, state, params, grad_fn=jax.grad(loss))"
            )
        updates, inner_state = inner.update(g, state.inner, params, **extra)
        corr = form.terms(GivenGradient(g, grad_fn), row, params).correction
        return add(updates, scale(-strength * h * h, corr)), ExplicitCorrectionState(inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
