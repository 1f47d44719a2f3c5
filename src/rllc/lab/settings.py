"""What a run is trained with: small frozen values that hold every setting, by which its record is found.

    Adam(1e-3).method(net, 1000)    the optimizer, with its schedule or average of the weights if any
    Cosine(Adam(1e-3)).name         "Adam + cosine", as tables have it
    Adam(1e-3).rates                (0.001, None): nothing here learns at a rate of its own

SGD, momentum SGD, Adam, schedules and averages are torch.optim's own, schedule-free AdamW is its authors',
other adaptive optimizers are in `peers`; anything else is a memory in the paper's notation, for RLLC.
No optimizer has weight decay, and so Adam is AdamW too. Which settings are tried is in `optimizers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from schedulefree import AdamWScheduleFree
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rllc import memory
from rllc.lab.controls import HypergradientSGD, polynomial_average
from rllc.lab.methods import Base, Method
from rllc.lab.peers import Peer
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
    "Polynomial",
    "Rllc",
    "RllcAdamW",
    "Rules",
    "ScheduleFree",
    "Setting",
    "Stored",
]

RLLC_ADAMW = "RLLC-AdamW"
HYPERGRADIENT = "hypergradient SGD"
NOTHING = 1e-30  # law_lr of a law that grows, as its rate is not 0, and then stays


@dataclass(frozen=True)
class SGD(Base):
    """torch.optim.SGD, with heavy-ball momentum if it is not 0."""

    lr: float
    momentum: float = 0.0

    @property
    def name(self) -> str:
        return "momentum SGD" if self.momentum else "SGD"

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
        return torch.optim.SGD(net.parameters(), lr=self.lr, momentum=self.momentum)


@dataclass(frozen=True)
class Adam(Base):
    """torch.optim.Adam."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
        params = list(net.parameters())
        on_gpu = params[0].is_cuda
        return torch.optim.Adam(
            params, lr=self.lr, betas=self.betas, eps=self.eps, fused=on_gpu or None, capturable=on_gpu
        )


@dataclass(frozen=True)
class Rllc(Base):
    """rllc.torch.RLLC with a memory of k units in the paper's notation and the first law L_0 (k numbers)."""

    memory: str
    lr: float
    law_lr: float
    law: tuple[float, ...]
    inverse: RelaxedInverse = field(default_factory=GramianRidge)
    guard: bool = True

    @property
    def name(self) -> str:
        return self.memory

    @property
    def rates(self) -> tuple[float, float | None]:
        return self.lr, self.law_lr

    def build(
        self, net: nn.Module, steps: int, memory_dtype: torch.dtype | None = None
    ) -> torch.optim.Optimizer:
        params = list(net.parameters())
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


class Wrapped(Base):
    """A base with something about it: the rates, and but for that the optimizer, are the base's."""

    base: SGD | Adam | Rllc

    @property
    def rates(self) -> tuple[float, float | None]:
        return self.base.rates

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
        return self.base.build(net, steps)


DTYPES = {"bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Stored(Wrapped):
    """`Rllc` with its units in one of DTYPES, rounded stochastically."""

    base: Rllc
    memory_dtype: str

    @property
    def name(self) -> str:
        return f"{self.base.name}, {self.memory_dtype}"

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
        return self.base.build(net, steps, DTYPES[self.memory_dtype])


@dataclass(frozen=True)
class RllcAdamW(Base):
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

    @property
    def name(self) -> str:
        if self.average is None:
            return f"{RLLC_ADAMW}, law only"
        return RLLC_ADAMW if self.law_lr > NOTHING else f"{RLLC_ADAMW}, search only"

    @property
    def rates(self) -> tuple[float, float | None]:
        return self.lr, self.law_lr

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
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
class Rules(Base):
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

    @property
    def name(self) -> str:
        return f"RLLC, {' + '.join(self.rules)}"

    @property
    def rates(self) -> tuple[float, float | None]:
        return self.lr, self.law_lr

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
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
class Hypergradient(Base):
    """SGD with heavy-ball momentum whose learning rate learns at the rate hyper_lr (arXiv 1703.04782)."""

    lr: float
    hyper_lr: float
    momentum: float = 0.9

    @property
    def name(self) -> str:
        return HYPERGRADIENT

    @property
    def rates(self) -> tuple[float, float | None]:
        return self.lr, self.hyper_lr

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
        return HypergradientSGD(net.parameters(), self.lr, self.hyper_lr, self.momentum)


@dataclass(frozen=True)
class ScheduleFree(Base):
    """schedulefree.AdamWScheduleFree (arXiv 2405.15682) without weight decay and warm-up."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    @property
    def name(self) -> str:
        return "schedule-free AdamW"

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
        optimizer = AdamWScheduleFree(net.parameters(), lr=self.lr, betas=self.betas, eps=self.eps)
        optimizer.train()  # until it is measured
        return optimizer


@dataclass(frozen=True)
class Cosine(Wrapped):
    """A base whose learning rate falls to 0 along half a cosine over the whole run."""

    base: SGD | Adam
    knows_its_end: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"{self.base.name} + cosine"

    def method(self, net: nn.Module, steps: int) -> Method:
        optimizer = self.build(net, steps)
        return Method(optimizer, schedule=CosineAnnealingLR(optimizer, steps))


@dataclass(frozen=True)
class Exponential:
    """An exponential moving average of the weights."""

    decay: float = 0.999
    name: ClassVar[str] = "EMA"

    def update(self) -> Callable[..., None]:
        """How torch's AveragedModel takes a new point into the average."""
        return get_ema_multi_avg_fn(self.decay)


@dataclass(frozen=True)
class Polynomial:
    """The average of the weights with weights close to t^power: a window that grows with the run."""

    power: int = 9
    name: ClassVar[str] = "polynomial average"

    def update(self) -> Callable[..., None]:
        """How torch's AveragedModel takes a new point into the average."""
        return polynomial_average(self.power)


@dataclass(frozen=True)
class Averaged(Wrapped):
    """A base at a constant rate, measured at an average of its weights."""

    base: SGD | Adam
    average: Exponential | Polynomial

    @property
    def name(self) -> str:
        return f"{self.base.name}, {self.average.name}"

    def method(self, net: nn.Module, steps: int) -> Method:
        averaged = AveragedModel(net, multi_avg_fn=self.average.update(), use_buffers=True)
        return Method(self.build(net, steps), average=averaged)


Setting = (
    SGD | Adam | Rllc | Stored | RllcAdamW | Rules | Hypergradient | ScheduleFree | Cosine | Averaged | Peer
)


def _law_step(setting: RllcAdamW | Rules) -> LawStep:
    clip = math.inf if setting.clip is None else setting.clip
    return LawStep(setting.q, setting.decay, clip, setting.growth, setting.smoothing)
