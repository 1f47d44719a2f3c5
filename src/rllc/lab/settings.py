"""What a run is trained with: small frozen values that hold every setting, by which its record is found.

    method(Adam(1e-3), net, 1000)    the optimizer, with its schedule or average of the weights if any
    name_of(Cosine(Adam(1e-3)))      "Adam + cosine", as tables have it
    rates_of(Adam(1e-3))             (0.001, None): nothing here learns at a rate of its own

SGD, momentum SGD, Adam, schedules and averages are torch.optim's own, schedule-free AdamW is its authors',
other adaptive optimizers are in `peers`; anything else is a memory in the paper's notation, for RLLC.
No optimizer has weight decay, and so Adam is AdamW too. Which settings are tried is in `optimizers`.
"""

from __future__ import annotations

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
from rllc.lab.peers import AdamHD, AdEMAMix, DAdaptation, Mechanic, Muon, Peer, Prodigy
from rllc.law import GramianRidge, LawStep, RelaxedInverse
from rllc.torch import RLLC, RLLCAdamW

__all__ = [
    "DTYPES",
    "HYPERGRADIENT",
    "NOTHING",
    "RLLC_ADAMW",
    "SGD",
    "Adam",
    "Averaged",
    "Cosine",
    "Exponential",
    "Hypergradient",
    "Method",
    "Polynomial",
    "Rllc",
    "RllcAdamW",
    "Rules",
    "ScheduleFree",
    "Setting",
    "Stored",
    "knows_its_end",
    "method",
    "name_of",
    "rates_of",
]

RLLC_ADAMW = "RLLC-AdamW"
HYPERGRADIENT = "hypergradient SGD"
NOTHING = 1e-30  # law_lr of a law that grows, as its rate is not 0, and then stays


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
        params = list(params)
        on_gpu = params[0].is_cuda
        return torch.optim.Adam(
            params, lr=self.lr, betas=self.betas, eps=self.eps, fused=on_gpu or None, capturable=on_gpu
        )


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
        fused = params[0].device.type in ("cpu", "cuda") and memory_dtype != torch.float8_e4m3fn
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
    "deviation(power=49)": memory.Deviation(49.0),
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


def _law_step(setting: RllcAdamW | Rules) -> LawStep:
    clip = math.inf if setting.clip is None else setting.clip
    return LawStep(setting.q, setting.decay, clip, setting.growth, setting.smoothing)


def _update(average: Exponential | Polynomial) -> Callable[..., None]:
    """How torch's AveragedModel takes a new point into the average."""
    if isinstance(average, Exponential):
        return get_ema_multi_avg_fn(average.decay)
    return polynomial_average(average.power)


def _name_of_ours(setting: RllcAdamW) -> str:
    if setting.average is None:
        return f"{RLLC_ADAMW}, law only"
    return RLLC_ADAMW if setting.law_lr > NOTHING else f"{RLLC_ADAMW}, search only"
