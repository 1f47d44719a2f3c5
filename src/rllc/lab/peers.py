"""Optimizers by others that set or average their own step, as settings: what RLLC-AdamW is compared with.

    Prodigy(1.0).build(net, steps)    a torch optimizer with its authors' defaults, no weight decay

pytorch_optimizer has those that torch lacks; it is imported when one is built, for it takes a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from rllc.lab.controls import HypergradientAdam, MechanicAdam
from rllc.lab.methods import Base

__all__ = ["AdEMAMix", "AdamHD", "DAdaptation", "Mechanic", "Muon", "Peer", "Prodigy"]

Betas = tuple[float, float]


@dataclass(frozen=True)
class Prodigy(Base):
    """Prodigy (arXiv 2306.06101). Its lr multiplies the step it finds; the authors leave it at 1."""

    lr: float
    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
        from pytorch_optimizer import Prodigy

        return Prodigy(net.parameters(), lr=self.lr, betas=self.betas, eps=self.eps, foreach=False)


@dataclass(frozen=True)
class DAdaptation(Base):
    """Adam with D-Adaptation (arXiv 2301.07733). Its lr multiplies the step it finds; 1 is the default."""

    lr: float
    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8

    @property
    def name(self) -> str:
        return "D-Adaptation Adam"

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
        from pytorch_optimizer import DAdaptAdam

        return DAdaptAdam(net.parameters(), lr=self.lr, betas=self.betas, eps=self.eps, foreach=False)


@dataclass(frozen=True)
class Mechanic(Base):
    """Mechanic (arXiv 2306.00144) around Adam, whose lr multiplies the step it finds; 1 is the default."""

    lr: float
    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8

    @property
    def name(self) -> str:
        return "Mechanic Adam"

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
        return MechanicAdam(net.parameters(), lr=self.lr, betas=self.betas, eps=self.eps)


@dataclass(frozen=True)
class AdEMAMix(Base):
    """AdEMAMix (arXiv 2409.03137). Its two warm-ups take the whole run, as the authors have it."""

    lr: float
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999)
    alpha: float = 5.0
    eps: float = 1e-8
    knows_its_end: ClassVar[bool] = True

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
        from pytorch_optimizer import AdEMAMix

        return AdEMAMix(
            net.parameters(),
            lr=self.lr,
            betas=self.betas,
            alpha=self.alpha,
            eps=self.eps,
            t_alpha_beta3=steps,
            foreach=False,
        )


@dataclass(frozen=True)
class Muon(Base):
    """Muon for the matrices of all layers but the last, Adam for the rest, at one rate.

    Steps of matrices have the root mean square of Adam's (arXiv 2502.16982), so that one rate suits both.
    Convolutions are flattened to matrices; embeddings are not matrices in this sense.
    """

    lr: float
    momentum: float = 0.95
    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
        from pytorch_optimizer import Muon

        matrices = list(_hidden_matrices(net))
        theirs = set(map(id, matrices))
        rest = [p for p in net.parameters() if id(p) not in theirs]
        adam = {"lr": self.lr, "betas": self.betas, "eps": self.eps}
        groups = [{"params": rest, "use_muon": False, **adam}]
        if matrices:
            groups.append({"params": matrices, "use_muon": True, "use_adjusted_lr": True})
        return Muon(groups, lr=self.lr, momentum=self.momentum)


@dataclass(frozen=True)
class AdamHD(Base):
    """Adam whose learning rate learns at the rate hyper_lr, its authors' for an MLP (arXiv 1703.04782)."""

    lr: float
    hyper_lr: float = 1e-7
    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8

    @property
    def name(self) -> str:
        return "hypergradient Adam"

    @property
    def rates(self) -> tuple[float, float | None]:
        return self.lr, self.hyper_lr

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
        return HypergradientAdam(net.parameters(), self.lr, self.hyper_lr, self.betas, self.eps)


Peer = Prodigy | DAdaptation | Mechanic | AdEMAMix | Muon | AdamHD


def _hidden_matrices(net: nn.Module) -> Iterator[torch.Tensor]:
    """The weights of linear layers and convolutions, without the last."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return (layer.weight for layer in layers[:-1])
