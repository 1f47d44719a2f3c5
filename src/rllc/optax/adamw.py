"""RLLC-AdamW: AdamW's direction as the memory unit, in AdamW's own metric."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rllc.law import SEEKING, LawStep
from rllc.memory import Adam
from rllc.optax.average import polynomial_average
from rllc.optax.leaves import kept
from rllc.optax.scopes import Scope
from rllc.optax.settings import Rate
from rllc.optax.transform import rllc

__all__ = ["rllc_adamw"]


def rllc_adamw(
    learning_rate: Rate = 1e-3,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    *,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    law_learning_rate: Rate = 0.04,
    law: float | jax.Array = 0.01,
    law_step: LawStep = SEEKING,
    average: float | jax.Array | None = 9.0,
    axis_name: str | tuple[str, ...] = (),
    scope: Scope = "all",
) -> optax.GradientTransformationExtraArgs:
    """AdamW whose rate learns: θ <- θ - c1 (L u + w θ), u = m̂/(√v̂ + eps), L by `law_step` from x.

    x = uᵀg / (1.001 uᵀP⁻¹u) is the correction in Adam's metric P⁻¹ = √v̂ + eps, with u before g. The law
    does not change when the loss is multiplied by a number, but for eps. The defaults are those of
    `rllc.torch.RLLCAdamW`, and so are the numbers. Evaluate `averaged_params(opt_state, params)`. In an
    optax.chain it is the last: steps that others change after it are not those that it averages.

    Args:
        learning_rate: c1 >= 0, a number or a schedule: if it rises after the search, steps become no longer.
        b1, b2, eps: Adam's.
        weight_decay: w, decoupled and multiplied by c1 as in optax.adamw, but not by L.
        mask: what decays, as in optax.adamw and `rllc`.
        law_learning_rate: c2 >= 0, a number or a schedule; with 0 it is AdamW at the rate c1 L_0.
        law: L_0. Small, as the law grows by itself: the first step is c1 L_0 e^0.1 long, 1.1e-5.
        law_step: how a correction moves L; by default it grows until steps are long enough, then anneals.
        average: the power of `polynomial_average`, or None for no average. A skipped step is not averaged.
        axis_name, scope: as in `rllc`.

    Raises:
        ValueError: as `rllc`; b1 or b2 not in [0, 1), eps or average negative or not finite, or in two bytes,
            as optax.inject_hyperparams has them of parameters in bfloat16.
    """
    for name, value in (("b1", b1), ("b2", b2), ("eps", eps)):
        if hasattr(value, "dtype") and value.dtype.itemsize < 4:
            raise ValueError(
                f"{name} is of {value.dtype}, in which 0.999 is 1 or 1e-8 is 0: give optax.inject_hyperparams"
                " hyperparam_dtype=jnp.float32"
            )
    tx = rllc(
        Adam(b1, b2, eps),  # type: ignore[arg-type]  # traced numbers will do
        learning_rate,
        law_learning_rate,
        # NumPy keeps float64 whatever JAX is set to when the transformation is made.
        law=jnp.atleast_1d(law) if isinstance(law, jax.Array) else np.atleast_1d(law),
        weight_decay=weight_decay,
        mask=mask,
        axis_name=axis_name,
        law_step=law_step,
        scope=scope,
    )
    return optax.with_extra_args_support(tx) if average is None else _averaging(tx, average)


def _averaging(tx: optax.GradientTransformation, power: Any) -> optax.GradientTransformationExtraArgs:
    """A chain that begins with scale_by_rllc, followed by an average of the steps that it took."""
    tx, average = optax.with_extra_args_support(tx), polynomial_average(power)

    def init(params: optax.Params) -> Any:
        return tx.init(params), average.init(params)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> Any:
        updates, moved = tx.update(updates, state[0], params, **extra_args)
        taken = moved[0].skipped == state[0][0].skipped
        _, averaged = average.update(updates, state[1], params)
        averaged = jax.tree.map(lambda new, old: kept(taken, new, old), averaged, state[1])
        return updates, (moved, averaged)

    return optax.GradientTransformationExtraArgs(init, update)
