"""Optimizers by name, and the rates to try for each.

    named("adam") -> "Adam"          named("M(.9)+M(0)") -> "M(0.9) + M(0.0)"
    trials("Adam", Rates())          the settings among which validation data choose

What each setting holds and builds is in `settings`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from rllc.lab.errors import Refused, unknown
from rllc.lab.peers import AdamHD, AdEMAMix, DAdaptation, Mechanic, Muon, Prodigy
from rllc.lab.settings import (
    DTYPES,
    HYPERGRADIENT,
    NOTHING,
    RLLC_ADAMW,
    SGD,
    Adam,
    Averaged,
    Cosine,
    Exponential,
    Hypergradient,
    Polynomial,
    Rllc,
    RllcAdamW,
    ScheduleFree,
    Setting,
    Stored,
)
from rllc.lab.texts import is_memory
from rllc.notation import parse

__all__ = [
    "ADAPTIVE",
    "CONTROLS",
    "DEFAULTS",
    "PAPER",
    "Rates",
    "named",
    "paper_trials",
    "trials",
]


@dataclass(frozen=True)
class Rates:
    """Rates to try for every optimizer; an empty tuple stands for the default grid below."""

    lr: tuple[float, ...] = ()
    law_lr: tuple[float, ...] = ()


SGD_LR = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
MOMENTUM_LR = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
ADAM_LR = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)

Make = Callable[[float], Setting]


def _momentum(lr: float) -> SGD:
    return SGD(lr, momentum=0.9)


# Baselines and controls of one rate: name -> (how it is made from a rate, six rates).
ONE_RATE: dict[str, tuple[Make, tuple[float, ...]]] = {
    "SGD": (SGD, SGD_LR),
    "momentum SGD": (_momentum, MOMENTUM_LR),
    "Adam": (Adam, ADAM_LR),
    "momentum SGD + cosine": (lambda lr: Cosine(_momentum(lr)), MOMENTUM_LR),
    "Adam + cosine": (lambda lr: Cosine(Adam(lr)), ADAM_LR),
    "momentum SGD, EMA": (lambda lr: Averaged(_momentum(lr), Exponential()), MOMENTUM_LR),
    "Adam, EMA": (lambda lr: Averaged(Adam(lr), Exponential()), ADAM_LR),
    "momentum SGD, polynomial average": (lambda lr: Averaged(_momentum(lr), Polynomial()), MOMENTUM_LR),
    "Adam, polynomial average": (lambda lr: Averaged(Adam(lr), Polynomial()), ADAM_LR),
    "schedule-free AdamW": (ScheduleFree, ADAM_LR),
}
# Peers and RLLC-AdamW have five rates over two decades around what is usual, and no part in the paper's
# studies. Where the rate multiplies what the optimizer finds itself, 1 is usual.
AROUND_ADAM = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
AROUND_RLLC = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
AROUND_FREE = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
AROUND_ONE = (0.1, 0.3, 1.0, 3.0, 10.0)
ADAPTIVE: dict[str, tuple[Make, tuple[float, ...]]] = {
    RLLC_ADAMW: (RllcAdamW, AROUND_RLLC),
    f"{RLLC_ADAMW}, law only": (lambda lr: RllcAdamW(lr, average=None), AROUND_RLLC),
    f"{RLLC_ADAMW}, search only": (lambda lr: RllcAdamW(lr, law_lr=NOTHING), AROUND_RLLC),
    "Prodigy": (Prodigy, AROUND_ONE),
    "D-Adaptation Adam": (DAdaptation, AROUND_ONE),
    "Mechanic Adam": (Mechanic, AROUND_ONE),
    "AdEMAMix": (AdEMAMix, AROUND_ADAM),
    "Muon": (Muon, AROUND_ADAM),
    "hypergradient Adam": (AdamHD, AROUND_ADAM),
}
# RLLC and hypergradient descent have as many trials: three rates by two.
RLLC_LR = (0.01, 0.03, 0.1)  # 0.3 diverges for two units and more
RLLC_LAW_LR = (0.003, 0.01)
LAW_LR = 0.01  # where only --lr is given, so that all have the same number of trials
HYPER_LR = (1e-4, 1e-3)

DEFAULTS = ("SGD", "momentum SGD", "Adam", "M(0.9)", "M(0.9) + M(0.0)", "M_2(0.6)", RLLC_ADAMW)

# Tables 1 and 2 of arXiv 2402.15262, with the grids of its A.5.2.
PAPER = (
    "SGD",
    "momentum SGD",
    "Adam",
    "M(0.9)",
    "M(0.9) + M(0.0)",
    "M(0.9) + M(0.8) + M(0.7)",
    "M_2(0.6)",
    "M(0.9) + M_2(0.6)",
    "M(0.9) + M(0.0) + M_2(0.6)",
    "M_3(0.6)",
    "M(0.9) + M(-0.9) + CM(0.0+0.9i)",
)
PAPER_LR = (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
PAPER_RLLC_LR = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
PAPER_LAW_LR = (0.003, 0.01, 0.03)
PAPER_HYPER_LR = (1e-5, 1e-4, 1e-3)

# What the paper lacks: the same budget for schedules, averages and other learners of the rate.
CONTROLS = (*(name for name in ONE_RATE if name not in PAPER), HYPERGRADIENT)

SHORT_NAMES = {name.lower(): name for name in (*ONE_RATE, HYPERGRADIENT, *ADAPTIVE)} | {
    "momentum": "momentum SGD"
}


def named(text: str) -> str:
    """The name of an optimizer as tables have it: of a baseline, or a memory in canonical notation.

    "M(.9)+M(0), bfloat16" is a memory whose units are stored in another dtype.

    Raises:
        Refused: the text is neither; the message says what is known or where the notation breaks.
    """
    known = SHORT_NAMES.get(" ".join(text.lower().split()))
    if known is not None:
        return known
    if not is_memory(text):
        memories = ' and memories: "M(0.9) + M(0)"'  # names have commas, hence semicolons between them
        raise Refused(unknown("optimizer", text, SHORT_NAMES, between="; ", also=memories))
    notation, *dtype = text.rsplit(",", 1)
    for name in map(str.strip, dtype):
        if name not in DTYPES:
            raise Refused(f"optimizer {text!r}: {unknown('dtype of memory units', name, DTYPES)}")
    try:
        return ", ".join((repr(parse(notation)), *map(str.strip, dtype)))
    except ValueError as reason:
        raise Refused(f"optimizer {text!r}: {reason}") from None


@functools.cache
def trials(name: str, rates: Rates) -> tuple[Setting, ...]:
    """The settings to try for an optimizer, in the order in which ties are decided."""
    if name in ONE_RATE or name in ADAPTIVE:
        make, grid = (ONE_RATE | ADAPTIVE)[name]
        return tuple(make(lr) for lr in rates.lr or grid)
    law_lrs = rates.law_lr or ((LAW_LR,) if rates.lr else RLLC_LAW_LR)
    return _two_rates(name, rates.lr or RLLC_LR, HYPER_LR if name == HYPERGRADIENT else law_lrs)


@functools.cache
def paper_trials(name: str) -> tuple[Setting, ...]:
    """The settings of the paper's grids (A.5.2): 15 learning rates, or 6 by 3 where there are two rates.

    Of optimizers whose rate is not of that kind, their own five.
    """
    if name in ADAPTIVE:
        return trials(name, Rates())
    if name in ONE_RATE:
        return trials(name, Rates(lr=PAPER_LR))
    return _two_rates(name, PAPER_RLLC_LR, PAPER_HYPER_LR if name == HYPERGRADIENT else PAPER_LAW_LR)


def _two_rates(name: str, lrs: tuple[float, ...], seconds: tuple[float, ...]) -> tuple[Setting, ...]:
    pairs = itertools.product(lrs, seconds)
    if name == HYPERGRADIENT:
        return tuple(Hypergradient(lr, second) for lr, second in pairs)
    memory, *dtype = name.split(", ")
    law = (1.0,) * parse(memory).k
    plain = (Rllc(memory, lr, second, law) for lr, second in pairs)
    return tuple(Stored(setting, *dtype) if dtype else setting for setting in plain)
