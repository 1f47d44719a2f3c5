"""What an optimizer's memory does to the loss: regularise, anti-regularise, or nothing.

    memory_effect(Adam())                  anti-regularises: τ = -990 where gradients are large against ε
    memory_effect(rllc.laws.nesterov(1.0, 0.9))
    memory_effect(optax.lion(1e-3))        measured, of the optimizer as it is

Source: arXiv 2502.02132; docs/memoryless.md, sections 2 and 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rllc.laws import FixedLaw
from rllc.memoryless.adaptive import Adam, Lion, RMSProp
from rllc.memoryless.fading import LongMemoryWarning, decay
from rllc.memoryless.history import (
    Method,
    State,
    check_count,
    check_step_size,
    correction,
    direction,
    from_optax,
)
from rllc.memoryless.linear import Linear, NesterovIterates
from rllc.propagator import Array

__all__ = ["Effect", "memory_effect"]

Form = Linear | NesterovIterates | Adam | RMSProp | Lion
Verdict = Literal["regularises", "anti-regularises", "neutral", "none"]

SIZES = np.logspace(-14, 12, 261)
# Measured after finitely many steps, what is left of the first ones must not count at the largest size.
MEASURED_SIZES = SIZES[SIZES < 1e4]
NEUTRAL = 1e-6  # |τ| in steps, below which memory does nothing to this order
MEASURED_NEUTRAL = 1e-3
REST = 1e-3  # of a memory, which is too little to tell
STEADY = 0.01  # share by which a step may change with its number
PROBED = 32  # steps after which it is asked whether entries move by themselves

Delay = Callable[[Array], Array]  # sizes of a gradient's entry -> τ


@dataclass(frozen=True)
class Effect:
    """The verdict, for gradients well above ε.

    Attributes:
        verdict: by the sign of `delay`: memory of positive delay regularises. "none" for a law of gain zero.
        delay: τ, in steps: memory adds (η/2) τ |g|² to the loss of a step η (linear methods), or acts on
            |g|_{1,ε} like it (adaptive ones).
        delay_at_zero: the same for gradients far below ε; equal to `delay` for linear methods.
        norm: what is regularised.
        changes_at: the size of a gradient's entry at which τ changes its sign, or None.
    """

    verdict: Verdict
    delay: float
    delay_at_zero: float
    norm: str
    changes_at: float | None


def memory_effect(
    optimizer: Form | FixedLaw | optax.GradientTransformation,
    learning_rate: float = 1.0,
    steps: int = 16_384,
) -> Effect:
    """Whether memory regularises, by how much, in which norm, and where that changes.

    For an optax transformation the delay τ(g) is measured: its correction is computed by one jvp through
    `steps` steps on scalar quadratics whose gradients have sizes from 1e-14 to 1e4, in float64, side by side
    as the entries of one vector. That supposes, and it is checked, that every entry moves by itself, and that
    after the steps F_n does not change with n any more. What looks at the shape of a parameter is measured as
    it treats vectors.

    Args:
        optimizer: a closed form (`Linear`, `Adam`, `Lion`, ...), a fixed law, or an optax transformation.
        learning_rate: of the optax transformation, by which its updates are divided.
        steps: how long the optax transformation runs before it is looked at; longer than its memory.

    Raises:
        ValueError: it is none of these, the learning rate is not positive, or steps no whole number >= 1. Of
            an optax transformation: the step of an entry depends on the other entries (clipping by a global
            norm, trust ratios), or it depends on the number of the step (a schedule, optax.MultiSteps), or
            is zero.

    Warns:
        LongMemoryWarning: the memory of the optax transformation does not decay, or so slowly that after all
            steps more than a thousandth is left of it: τ is that of so many steps then.
    """
    check_count("steps", steps, least=1)
    if isinstance(optimizer, FixedLaw):
        optimizer = Linear(optimizer)
    if isinstance(optimizer, optax.GradientTransformation):
        delay = _measured(optimizer, check_step_size(learning_rate, "learning_rate"), steps)
        return _effect(MEASURED_SIZES, delay, "measured by coordinates", MEASURED_NEUTRAL)
    if not isinstance(optimizer, Form):
        raise ValueError(
            "memory_effect takes a closed form of rllc.memoryless such as Adam(), a FixedLaw such as"
            f" rllc.laws.heavy_ball(1.0, 0.9), or an optax transformation; got {optimizer!r}"
        )
    return _effect(SIZES * _own_size(optimizer), optimizer.delay, _norm(optimizer), NEUTRAL)


def _own_size(form: Form) -> float:
    """The size of gradient at which ε begins to tell."""
    eps = getattr(form, "eps", 0.0) or 1.0
    return eps if getattr(form, "outside", False) else eps**0.5


def _norm(form: Form) -> str:
    if isinstance(form, Adam | Lion | RMSProp):
        return "|∇f|₁,ε"
    return "½|∇f|²"


def _effect(sizes: Array, delay: Delay, norm: str, neutral: float) -> Effect:
    delays = delay(sizes)
    small, large = float(delays[0]), float(delays[-1])
    return Effect(_verdict(large, neutral), large, small, norm, _change(sizes, delays, delay, neutral))


def _verdict(delay: float, neutral: float) -> Verdict:
    if np.isnan(delay):
        return "none"
    if abs(delay) < neutral:
        return "neutral"
    return "regularises" if delay > 0 else "anti-regularises"


def _change(sizes: Array, delays: Array, delay: Delay, neutral: float) -> float | None:
    """The size at which the delay changes its sign, looked for once more between two of the sizes."""
    between = _between(delays, neutral)
    if between is None:
        return None
    finer = np.geomspace(sizes[between.start], sizes[between.stop - 1], sizes.size)
    delays = delay(finer)
    between = _between(delays, neutral)
    if between is None:
        return None
    rising = delays[between] * np.sign(delays[between.stop - 1])
    return float(np.exp(np.interp(0.0, rising, np.log(finer[between]))))


def _between(delays: Array, neutral: float) -> slice | None:
    """From the last delay of one sign that is told to the first of the other."""
    (told,) = np.nonzero(np.abs(delays) >= neutral)
    (changes,) = np.nonzero(delays[told[:-1]] * delays[told[1:]] < 0)
    return slice(told[changes[0]], told[changes[0] + 1] + 1) if changes.size else None


def _measured(tx: optax.GradientTransformation, h: float, steps: int) -> Delay:
    """τ(g) = corr·g / F² at the points 0 of quadratics of curvature 1, one for each size of gradient."""

    def quadratics(g: jax.Array) -> Method:
        return from_optax(tx, lambda theta: theta + g, h)

    @jax.jit
    def delays(g: jax.Array) -> jax.Array:
        F, corr = _terms(quadratics(g), jnp.zeros_like(g), steps)
        return corr * g / jnp.where(F == 0, jnp.nan, F) ** 2

    def delay(sizes: Array) -> Array:
        with jax.enable_x64(True):
            return np.asarray(delays(jnp.asarray(sizes)))

    with jax.enable_x64(True):
        g = jnp.asarray(MEASURED_SIZES)
        _check_by_itself(tx, h, g)
        method, at = quadratics(g), jnp.zeros_like(g)
        q = decay(method, at)  # warns
        _check_steady(method, at, steps, q)
        if q < 1 and q**steps > REST:
            warnings.warn(
                f"memory fades by {q:.6f} a step, so that {steps} steps do not show its effect; take more",
                LongMemoryWarning,
                stacklevel=3,
            )
    return delay


def _terms(method: Method, at: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    return direction(method, n)(at), correction(method, n)(at)


def _check_by_itself(tx: optax.GradientTransformation, h: float, g: jax.Array) -> None:
    """Refuse what moves an entry otherwise alone than among others.

    At points and with curvatures that differ: optax has a trust ratio be 1 at 0, and where all gradients
    change alike a learned law does not.
    """

    def terms(g: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _terms(from_optax(tx, lambda theta: x * (theta - x) + g, h), x, PROBED)

    at = jnp.linspace(0.5, 1.5, g.size)
    F, corr = map(np.asarray, jax.jit(terms)(g, at))
    alone, corr_alone = (np.asarray(x)[:, 0] for x in jax.jit(jax.vmap(terms))(g[:, None], at[:, None]))
    near = MEASURED_NEUTRAL * (np.abs(corr_alone) + alone**2 / np.asarray(g))  # so much of τ is nothing
    same = np.isclose(F, alone, rtol=1e-6, atol=0, equal_nan=True)
    if not (same & ((np.abs(corr - corr_alone) <= near) | np.isnan(corr + corr_alone))).all():
        raise ValueError(
            "the step of an entry depends on the other entries, so that no delay belongs to the size of one;"
            " leave out what couples them (clipping by a norm, trust ratios, normalisation; where clipping"
            " does not act the effect is that without it), or take rllc.memoryless.correction at a point"
        )


def _check_steady(method: Method, at: jax.Array, steps: int, q: float) -> None:
    """Refuse steps that in the later half of all are zero, or change by more than fading memory explains."""
    low, high = map(np.asarray, jax.jit(lambda at: _range(method, at, steps))(at))
    largest = np.maximum(np.abs(low), np.abs(high))
    if not largest.any():
        raise ValueError(
            f"after {steps} steps its steps are zero, and there is nothing to measure; give it a learning"
            " rate that has not ended"
        )
    change = ((high - low) / np.where(largest > 0, largest, 1)).max()
    if change > STEADY + 10 * min(q, 1.0) ** (steps / 2):  # what does not decay is warned of
        raise ValueError(
            f"its steps change with their number, by {change:.0%} from step {steps // 2} to {steps} at a"
            " gradient that stays; the effect is of a rule that does not: give a constant learning rate, and"
            " the optimizer without MultiSteps, apply_every or noise"
        )


def _range(method: Method, at: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """The least and the largest F_n of each entry, n = steps // 2, ..., steps."""

    def body(n: jax.Array, carry: tuple[State, jax.Array, jax.Array]) -> tuple[State, jax.Array, jax.Array]:
        state, low, high = carry
        F, state = method.step(state, at)
        late = n >= steps // 2
        return state, jnp.where(late, jnp.minimum(low, F), low), jnp.where(late, jnp.maximum(high, F), high)

    first = jnp.full_like(at, jnp.inf)
    return jax.lax.fori_loop(0, steps + 1, body, (method.init(at), first, -first))[1:]
