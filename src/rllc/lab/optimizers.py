"""What a run is trained with: small frozen values that hold every setting, and the rates to try for each.

    named("adam") -> "Adam"          named("M(.9)+M(0)") -> "M(0.9) + M(0.0)"
    trials("Adam", Rates())          the settings among which validation data choose

SGD, momentum SGD and Adam are torch.optim's own; anything else is a memory in the paper's notation, for RLLC.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from rllc.lab.errors import Refused
from rllc.law import GramianRidge, RelaxedInverse
from rllc.notation import parse
from rllc.torch import RLLC

__all__ = ["DEFAULTS", "SGD", "Adam", "Rates", "Rllc", "Setting", "name_of", "named", "trials"]


@dataclass(frozen=True)
class SGD:
    """torch.optim.SGD, with heavy-ball momentum if it is not 0."""

    lr: float
    momentum: float = 0.0

    def build(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=self.lr, momentum=self.momentum)


@dataclass(frozen=True)
class Adam:
    """torch.optim.Adam."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def build(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=self.lr, betas=self.betas, eps=self.eps)


@dataclass(frozen=True)
class Rllc:
    """rllc.torch.RLLC with a memory of k units in the paper's notation and the first law L_0 (k numbers)."""

    memory: str
    lr: float
    law_lr: float
    law: tuple[float, ...]
    inverse: RelaxedInverse = field(default_factory=GramianRidge)
    guard: bool = True

    def build(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return RLLC(
            params,
            self.memory,
            lr=self.lr,
            law_lr=self.law_lr,
            law=self.law,
            inverse=self.inverse,
            guard=self.guard,
        )


Setting = SGD | Adam | Rllc


@dataclass(frozen=True)
class Rates:
    """Rates to try for every optimizer; an empty tuple stands for the default grid below."""

    lr: tuple[float, ...] = ()
    law_lr: tuple[float, ...] = ()


# Baselines: name -> (how it is made from a rate, six rates). RLLC has as many trials: three rates by two.
BASELINES: dict[str, tuple[Callable[[float], Setting], tuple[float, ...]]] = {
    "SGD": (SGD, (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)),
    "momentum SGD": (lambda lr: SGD(lr, momentum=0.9), (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)),
    "Adam": (Adam, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
}
RLLC_LR = (0.01, 0.03, 0.1)  # 0.3 diverges for two units and more
RLLC_LAW_LR = (0.003, 0.01)
LAW_LR = 0.01  # where only --lr is given, so that all have the same number of trials

DEFAULTS = (*BASELINES, "M(0.9)", "M(0.9) + M(0.0)", "M_2(0.6)")

SHORT_NAMES = {"sgd": "SGD", "momentum": "momentum SGD", "momentum sgd": "momentum SGD", "adam": "Adam"}


def named(text: str) -> str:
    """The name of an optimizer as tables have it: of a baseline, or a memory in canonical notation.

    Raises:
        Refused: the text is neither; the message says what is known or where the notation breaks.
    """
    known = SHORT_NAMES.get(" ".join(text.lower().split()))
    if known is not None:
        return known
    if "(" not in text:
        raise Refused(_unknown(text))
    try:
        return repr(parse(text))
    except ValueError as reason:
        raise Refused(f"optimizer {text!r}: {reason}") from None


def trials(name: str, rates: Rates) -> tuple[Setting, ...]:
    """The settings to try for an optimizer, in the order in which ties are decided."""
    if name in BASELINES:
        make, grid = BASELINES[name]
        return tuple(make(lr) for lr in rates.lr or grid)
    law_lrs = rates.law_lr or ((LAW_LR,) if rates.lr else RLLC_LAW_LR)
    law = (1.0,) * parse(name).k
    return tuple(Rllc(name, lr, c2, law) for lr, c2 in itertools.product(rates.lr or RLLC_LR, law_lrs))


def name_of(setting: Setting) -> str:
    """The name under which a setting stands in tables, without its rates."""
    match setting:
        case SGD(momentum=momentum):
            return "momentum SGD" if momentum else "SGD"
        case Adam():
            return "Adam"
        case Rllc(memory=memory):
            return memory


def _unknown(text: str) -> str:
    near = difflib.get_close_matches(text.lower(), SHORT_NAMES, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f'unknown optimizer {text!r}; {meant}known are sgd, momentum, adam and memories: "M(0.9) + M(0)"'
