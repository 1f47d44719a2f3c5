"""What an optimizer's memory does to the loss: regularise, anti-regularise, or nothing.

    memory_effect(Adam())                  anti-regularises: τ = -990 where gradients are large against ε
    memory_effect(rllc.laws.nesterov(1.0, 0.9))
    memory_effect(optax.lion(1e-3))        measured, of the optimizer as it is

Source: arXiv 2502.02132; docs/memoryless.md, sections 2 and 3.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rllc.laws import FixedLaw
from rllc.memoryless.adaptive import Adam, Lion, RMSProp
from rllc.memoryless.history import LongMemoryWarning, check_count, correction, decay, direction, from_optax
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
    `steps` steps on scalar quadratics whose gradients have sizes from 1e-14 to 1e4, in float64. That is its
    effect for methods that act on each coordinate by itself.

    Args:
        optimizer: a closed form (`Linear`, `Adam`, `Lion`, ...), a fixed law, or an optax transformation.
        learning_rate: of the optax transformation, by which its updates are divided.
        steps: how long the optax transformation runs before it is looked at; longer than its memory.

    Raises:
        ValueError: it is none of these, the learning rate is not positive, or steps no whole number >= 1.

    Warns:
        LongMemoryWarning: the memory of the optax transformation does not decay, or so slowly that after all
            steps more than a thousandth is left of it: τ is that of so many steps then.
    """
    check_count("steps", steps, least=1)
    if isinstance(optimizer, FixedLaw):
        optimizer = Linear(optimizer)
    if isinstance(optimizer, optax.GradientTransformation):
        delays = _measured(optimizer, learning_rate, steps)
        return _effect(MEASURED_SIZES, delays, "measured by coordinates", MEASURED_NEUTRAL)
    if not isinstance(optimizer, Form):
        raise ValueError(
            "memory_effect takes a closed form of rllc.memoryless such as Adam(), a FixedLaw such as"
            f" rllc.laws.heavy_ball(1.0, 0.9), or an optax transformation; got {optimizer!r}"
        )
    sizes = SIZES * _own_size(optimizer)
    return _effect(sizes, optimizer.delay(sizes), _norm(optimizer), NEUTRAL)


def _own_size(form: Form) -> float:
    """The size of gradient at which ε begins to tell."""
    eps = getattr(form, "eps", 0.0) or 1.0
    return eps if getattr(form, "outside", False) else eps**0.5


def _norm(form: Form) -> str:
    if isinstance(form, Adam | Lion | RMSProp):
        return "|∇f|₁,ε"
    return "½|∇f|²"


def _effect(sizes: Array, delays: Array, norm: str, neutral: float) -> Effect:
    small, large = float(delays[0]), float(delays[-1])
    return Effect(_verdict(large, neutral), large, small, norm, _change(sizes, delays, neutral))


def _verdict(delay: float, neutral: float) -> Verdict:
    if np.isnan(delay):
        return "none"
    if abs(delay) < neutral:
        return "neutral"
    return "regularises" if delay > 0 else "anti-regularises"


def _change(sizes: Array, delays: Array, neutral: float) -> float | None:
    """The size at which the delay changes its sign, between two sizes by their logarithms."""
    (told,) = np.nonzero(np.abs(delays) >= neutral)
    (changes,) = np.nonzero(delays[told[:-1]] * delays[told[1:]] < 0)
    if not changes.size:
        return None
    between = slice(told[changes[0]], told[changes[0] + 1] + 1)
    rising = delays[between] * np.sign(delays[between.stop - 1])
    return float(np.exp(np.interp(0.0, rising, np.log(sizes[between]))))


def _measured(tx: optax.GradientTransformation, learning_rate: float, steps: int) -> Array:
    """τ(g) = corr·g / F² at the points 0 of quadratics of curvature 1, one for each size of gradient."""
    with jax.enable_x64(True):
        g = jnp.asarray(MEASURED_SIZES)
        method = from_optax(tx, lambda theta: theta + g, learning_rate)
        at = jnp.zeros_like(g)
        q = decay(method, at)  # warns
        if q < 1 and q**steps > REST:
            warnings.warn(
                f"memory fades by {q:.6f} a step, so that {steps} steps do not show its effect; take more",
                LongMemoryWarning,
                stacklevel=3,
            )
        F, corr = direction(method, steps)(at), correction(method, steps)(at)
        return np.asarray(corr * g / jnp.where(F == 0, jnp.nan, F) ** 2)
