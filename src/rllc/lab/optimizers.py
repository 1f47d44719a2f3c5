"""What a run is trained with: small frozen values that hold every setting, and the rates to try for each.

    named("adam") -> "Adam"          named("M(.9)+M(0)") -> "M(0.9) + M(0.0)"
    trials("Adam", Rates())          the settings among which validation data choose
    method(Adam(1e-3), net, 1000)    the optimizer, with its schedule or average of the weights if any

SGD, momentum SGD, Adam, schedules and averages are torch.optim's own, schedule-free AdamW is its authors',
other adaptive optimizers are in `peers`; anything else is a memory in the paper's notation, for RLLC.
No optimizer has weight decay, and so Adam is AdamW too.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from schedulefree import AdamWScheduleFree
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rllc import memory
from rllc.lab.controls import HypergradientSGD, polynomial_average
from rllc.lab.errors import Refused, unknown
from rllc.lab.peers import AdamHD, AdEMAMix, DAdaptation, Mechanic, Muon, Peer, Prodigy
from rllc.law import GramianRidge, LawStep, RelaxedInverse
from rllc.notation import parse
from rllc.torch import RLLC, RLLCAdamW

__all__ = [
    "ADAPTIVE",
    "CONTROLS",
    "DEFAULTS",
    "PAPER",
    "SGD",
    "Adam",
    "Averaged",
    "Cosine",
    "Exponential",
    "Hypergradient",
    "Method",
    "Polynomial",
    "Rates",
    "Rllc",
    "RllcAdamW",
    "Rules",
    "ScheduleFree",
    "Setting",
    "Stored",
    "knows_its_end",
    "method",
    "name_of",
    "named",
    "paper_trials",
    "rates_of",
    "trials",
]


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

    def build(
        self, params: Iterable[nn.Parameter], memory_dtype: torch.dtype | None = None
    ) -> torch.optim.Optimizer:
        params = list(params)
        # Named, so that the last bits of a run do not depend on what else is installed.
        fused = params[0].device.type == "cpu" and memory_dtype != torch.float8_e4m3fn
        return RLLC(
            params,
            self.memory,
            lr=self.lr,
            law_lr=self.law_lr,
            law=self.law,
            inverse=self.inverse,
            guard=self.guard,
            fused=True if fused else None,
            memory_dtype=memory_dtype,
        )


DTYPES = {"bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Stored:
    """`Rllc` with its units in one of DTYPES, rounded stochastically."""

    base: Rllc
    memory_dtype: str

    def build(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return self.base.build(params, DTYPES[self.memory_dtype])


@dataclass(frozen=True)
class RllcAdamW:
    """rllc.torch.RLLCAdamW, RLLC around Adam measured at its average, if it has one; no clip is None."""

    lr: float = 1e-3
    law_lr: float = 0.04
    q: float = 1.5
    decay: float = 0.5
    clip: float | None = 1.0
    growth: float = 0.1
    smoothing: float = 0.95
    average: float | None = 9.0
    law: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        return RLLCAdamW(
            net.parameters(),
            lr=self.lr,
            law_lr=self.law_lr,
            betas=self.betas,
            eps=self.eps,
            law=self.law,
            law_step=_law_step(self),
            average=self.average,
            buffers=net.buffers(),
        )


# Memory that is not linear, by name.
RULES: dict[str, memory.MemoryRule] = {
    "Adam": memory.Adam(),
    "Adam(b1=0)": memory.Adam(b1=0.0),
    "Adam(b1=0.99)": memory.Adam(b1=0.99),
    "deviation": memory.Deviation(),
    "adaptive momentum": memory.AdaptiveMomentum(),
}


@dataclass(frozen=True)
class Rules:
    """rllc.torch.RLLC with the union of memory rules, each a name in RULES or the paper's notation.

    `law` is L_0, a number for each unit; the rest is as in `RllcAdamW`, without growth unless said.
    """

    rules: tuple[str, ...]
    lr: float
    law_lr: float
    law: tuple[float, ...]
    q: float = 1.5
    decay: float = 0.0
    clip: float | None = 1.0
    growth: float = 0.0
    smoothing: float = 0.95
    scope: str = "all"
    average: float | None = 9.0

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        return RLLC(
            net.parameters(),
            memory.union(*(RULES.get(name, name) for name in self.rules)),
            lr=self.lr,
            law_lr=self.law_lr,
            law=self.law,
            law_step=_law_step(self),
            scope=self.scope,
            average=self.average,
            buffers=net.buffers(),
        )


@dataclass(frozen=True)
class Hypergradient:
    """SGD with heavy-ball momentum whose learning rate learns at the rate hyper_lr (arXiv 1703.04782)."""

    lr: float
    hyper_lr: float
    momentum: float = 0.9

    def build(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return HypergradientSGD(params, self.lr, self.hyper_lr, self.momentum)


@dataclass(frozen=True)
class ScheduleFree:
    """schedulefree.AdamWScheduleFree (arXiv 2405.15682) without weight decay and warm-up."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def build(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = AdamWScheduleFree(params, lr=self.lr, betas=self.betas, eps=self.eps)
        optimizer.train()  # until it is measured
        return optimizer


@dataclass(frozen=True)
class Cosine:
    """A base whose learning rate falls to 0 along half a cosine over the whole run."""

    base: SGD | Adam


@dataclass(frozen=True)
class Exponential:
    """An exponential moving average of the weights."""

    decay: float = 0.999


@dataclass(frozen=True)
class Polynomial:
    """The average of the weights with weights close to t^power: a window that grows with the run."""

    power: int = 9


@dataclass(frozen=True)
class Averaged:
    """A base at a constant rate, measured at an average of its weights."""

    base: SGD | Adam
    average: Exponential | Polynomial


Setting = (
    SGD | Adam | Rllc | Stored | RllcAdamW | Rules | Hypergradient | ScheduleFree | Cosine | Averaged | Peer
)


class Method(NamedTuple):
    """What a setting is in a run. With an average, it and not the network is measured."""

    optimizer: torch.optim.Optimizer
    schedule: LRScheduler | None = None
    average: AveragedModel | None = None


def method(setting: Setting, net: nn.Module, steps: int) -> Method:
    """The setting for a network in a run of that many steps."""
    match setting:
        case Cosine(base):
            optimizer = base.build(net.parameters())
            return Method(optimizer, schedule=CosineAnnealingLR(optimizer, steps))
        case Averaged(base, average):
            averaged = AveragedModel(net, multi_avg_fn=_update(average), use_buffers=True)
            return Method(base.build(net.parameters()), average=averaged)
        case RllcAdamW() | Rules():
            return Method(setting.build(net))
        case SGD() | Adam() | Rllc() | Stored() | Hypergradient() | ScheduleFree():
            return Method(setting.build(net.parameters()))
        case _:
            return Method(setting.build(net, steps))


def knows_its_end(setting: Setting) -> bool:
    """Whether a run depends on how long it will be, so that each length needs a run of its own."""
    return isinstance(setting, Cosine | AdEMAMix)


def _law_step(setting: RllcAdamW | Rules) -> LawStep:
    clip = math.inf if setting.clip is None else setting.clip
    return LawStep(setting.q, setting.decay, clip, setting.growth, setting.smoothing)


def _update(average: Exponential | Polynomial) -> Callable[..., None]:
    """How torch's AveragedModel takes a new point into the average."""
    if isinstance(average, Exponential):
        return get_ema_multi_avg_fn(average.decay)
    return polynomial_average(average.power)


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
NOTHING = 1e-30  # a law that grows, as its rate is not 0, and then stays
AROUND_FREE = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
AROUND_ONE = (0.1, 0.3, 1.0, 3.0, 10.0)
RLLC_ADAMW = "RLLC-AdamW"
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
HYPERGRADIENT = "hypergradient SGD"
HYPER_LR = (1e-4, 1e-3)

DEFAULTS = ("SGD", "momentum SGD", "Adam", "M(0.9)", "M(0.9) + M(0.0)", "M_2(0.6)")

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
    if "(" not in text:
        raise Refused(_unknown(text))
    notation, *dtype = text.rsplit(",", 1) if text.endswith(tuple(DTYPES)) else (text,)
    try:
        return ", ".join((repr(parse(notation)), *(name.strip() for name in dtype)))
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


def name_of(setting: Setting) -> str:
    """The name under which a setting stands in tables, without its rates."""
    match setting:
        case SGD(momentum=momentum):
            return "momentum SGD" if momentum else "SGD"
        case Adam():
            return "Adam"
        case Rllc(memory=memory):
            return memory
        case Stored(base, dtype):
            return f"{name_of(base)}, {dtype}"
        case Rules(rules=rules):
            return f"RLLC, {' + '.join(rules)}"
        case RllcAdamW():
            return _name_of_ours(setting)
        case Prodigy() | AdEMAMix() | Muon():
            return type(setting).__name__
        case DAdaptation():
            return "D-Adaptation Adam"
        case Mechanic():
            return "Mechanic Adam"
        case AdamHD():
            return "hypergradient Adam"
        case Hypergradient():
            return HYPERGRADIENT
        case ScheduleFree():
            return "schedule-free AdamW"
        case Cosine(base):
            return f"{name_of(base)} + cosine"
        case Averaged(base, average):
            kind = "EMA" if isinstance(average, Exponential) else "polynomial average"
            return f"{name_of(base)}, {kind}"


def _name_of_ours(setting: RllcAdamW) -> str:
    if setting.average is None:
        return f"{RLLC_ADAMW}, law only"
    return RLLC_ADAMW if setting.law_lr > NOTHING else f"{RLLC_ADAMW}, search only"


def rates_of(setting: Setting) -> tuple[float, float | None]:
    """The learning rate, and the rate at which the law, or that learning rate, learns, if it does."""
    match setting:
        case Rllc(lr=lr, law_lr=second) | RllcAdamW(lr=lr, law_lr=second) | Rules(lr=lr, law_lr=second):
            return lr, second
        case Hypergradient(lr=lr, hyper_lr=second) | AdamHD(lr=lr, hyper_lr=second):
            return lr, second
        case Cosine(base) | Averaged(base) | Stored(base):
            return rates_of(base)
        case _:
            return setting.lr, None


def _two_rates(name: str, lrs: tuple[float, ...], seconds: tuple[float, ...]) -> tuple[Setting, ...]:
    pairs = itertools.product(lrs, seconds)
    if name == HYPERGRADIENT:
        return tuple(Hypergradient(lr, second) for lr, second in pairs)
    memory, *dtype = name.split(", ")
    law = (1.0,) * parse(memory).k
    plain = (Rllc(memory, lr, second, law) for lr, second in pairs)
    return tuple(Stored(setting, *dtype) if dtype else setting for setting in plain)


def _unknown(text: str) -> str:
    known = "; ".join(SHORT_NAMES)  # some names have commas
    return f'{unknown("optimizer", text, SHORT_NAMES)}{known} and memories: "M(0.9) + M(0)"'
