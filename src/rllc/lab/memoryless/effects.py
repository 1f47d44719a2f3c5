"""What each known optimizer's memory does to the loss, as a table; what optax's do, measured."""

from __future__ import annotations

import warnings

import optax

from rllc import laws
from rllc.lab import texts
from rllc.laws import FixedLaw
from rllc.memoryless import Adam, Effect, Linear, Lion, LongMemoryWarning, RMSProp, memory_effect
from rllc.propagator import CM, M

__all__ = ["measured_table", "table"]

Form = Linear | Adam | RMSProp | Lion

# Name, an example with usual parameters, and its mean delay as a formula.
EXAMPLES: tuple[tuple[str, Form, str], ...] = (
    ("SGD", Linear(laws.sgd(1.0)), "0"),
    ("heavy ball, β = 0.9", Linear(laws.heavy_ball(1.0, 0.9)), "β/(1-β)"),
    ("EMA momentum, β = 0.9", Linear(laws.ema_momentum(1.0, 0.9)), "β/(1-β)"),
    ("Nesterov, β = 0.9", Linear(laws.nesterov(1.0, 0.9)), "β²/(1-β): heavy ball's less β"),
    ("QHM, ν = 0.7, β = 0.999", Linear(laws.qhm(1.0, 0.999, 0.7)), "νβ/(1-β)"),
    ("AggMo, β = 0, 0.9, 0.99", Linear(laws.aggmo(1.0, [0.0, 0.9, 0.99])), "Σ β/(1-β)² / Σ 1/(1-β)"),
    ("unit 2 of M_2(0.6)", Linear(FixedLaw(M(0.6, 2), [0.0, 1.0])), "(1+λ)/(1-λ)"),
    ("real part of CM(0.9i)", Linear(FixedLaw(CM(0.9j), [1.0, 0.0])), "-2b²/(1+b²)"),
    ("M(-0.9)", Linear(FixedLaw(M(-0.9), [1.0])), "-b/(1+b)"),
    ("optimistic gradient", Linear(laws.optimistic(1.0)), "-1"),
    ("Adams-Bashforth 2", Linear(laws.adams_bashforth(1.0)), "-1/2: cancels discretisation's own"),
    ("gradient delayed by 3", Linear(laws.delayed(1.0, 3)), "d"),
    ("Adam, 0.9, 0.999", Adam(0.9, 0.999, 1e-8), "τ1 - τ2 g²/R²"),
    ("Adam, 0.9, 0.999, ε outside", Adam(0.9, 0.999, 1e-8, outside=True), "τ1 - τ2 |g|/R"),
    ("Adam, 0.9, 0.95", Adam(0.9, 0.95, 1e-8), "τ1 - τ2 g²/R²"),
    ("Adam, 0.95, 0.95", Adam(0.95, 0.95, 1e-8), "τ ε/R²"),
    ("NAdam, 0.9, 0.999", Adam(0.9, 0.999, 1e-8, nesterov=True), "β1 τ1 - τ2 g²/R²"),
    ("RMSProp, 0.99", RMSProp(0.99, 1e-8), "-τ2 g²/R²"),
    ("Lion, 0.9, 0.99", Lion(0.9, 0.99), "0 where no gradient is 0"),
    ("Lion-K, ε = 1e-8", Lion(0.9, 0.99, 1e-8), "β1/(1-β2) ε/R²"),
    ("Signum-K, 0.9, ε = 1e-8", Lion(0.9, 0.9, 1e-8), "β/(1-β) ε/R²"),
)

HEAD = ("optimizer", "memory", "τ, steps", "τ where g² ≪ ε", "changes at |g|")


def table() -> str:
    """EXAMPLES in Markdown; τ is that of gradients far above ε unless said."""
    rows = [(name, *_cells(effect := memory_effect(form)), effect.norm, tau) for name, form, tau in EXAMPLES]
    return texts.table((*HEAD, "acts on", "τ as a formula"), rows, left=2)


def _cells(effect: Effect) -> tuple[str, ...]:
    changes = "" if effect.changes_at is None else texts.minus(f"{effect.changes_at:.1e}")
    return effect.verdict, _number(effect.delay), _number(effect.delay_at_zero), changes


def _number(tau: float) -> str:
    return texts.minus(f"{tau:.3g}") if abs(tau) > 1e-9 else "0"


RATE = 1e-3

STEPS = 16_384

# With their own defaults: what a user has who changes nothing. And how many steps show all of their memory.
OF_OPTAX: tuple[tuple[str, optax.GradientTransformation, int], ...] = (
    ("sgd, momentum 0.9", optax.sgd(RATE, 0.9), STEPS),
    ("adam", optax.adam(RATE), STEPS),
    ("adamw", optax.adamw(RATE), STEPS),
    ("nadam", optax.nadam(RATE), STEPS),
    ("radam", optax.radam(RATE), STEPS),
    ("rmsprop", optax.rmsprop(RATE), STEPS),
    ("adan", optax.adan(RATE), STEPS),
    ("lion", optax.lion(RATE), STEPS),
    ("contrib.ademamix", optax.contrib.ademamix(RATE), 8 * STEPS),
    ("amsgrad", optax.amsgrad(RATE), STEPS),
    ("adagrad", optax.adagrad(RATE), STEPS),
)


def measured_table() -> str:
    """OF_OPTAX as they are, in Markdown: takes half a minute."""
    return texts.table((*HEAD, ""), [_measured(*named) for named in OF_OPTAX], left=2)


def _measured(name: str, tx: optax.GradientTransformation, steps: int) -> tuple[str, ...]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LongMemoryWarning)
        effect = memory_effect(tx, RATE, steps)
    return name, *_cells(effect), "its memory does not decay" if caught else ""
