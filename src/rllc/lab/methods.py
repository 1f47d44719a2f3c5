"""What every setting of `settings` and `peers` answers: its name, its rates, and what it is in a run."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

__all__ = ["Base", "Method"]


class Method(NamedTuple):
    """What a setting is in a run. With an average, it and not the network is measured."""

    optimizer: torch.optim.Optimizer
    schedule: LRScheduler | None = None
    average: AveragedModel | None = None


class Base:
    """An optimizer of one constant rate `lr`, named as its class; a setting says where it differs.

    Only fields are in a record, so that nothing here is part of a digest.
    """

    lr: float
    # Whether a run depends on how long it will be, so that each length needs a run of its own.
    knows_its_end: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The name under which it stands in tables, without its rates."""
        return type(self).__name__

    @property
    def rates(self) -> tuple[float, float | None]:
        """The learning rate, and the rate at which the law, or that learning rate, learns, if it does."""
        return self.lr, None

    def build(self, net: nn.Module, steps: int) -> torch.optim.Optimizer:
        """The optimizer for a network in a run of that many steps."""
        raise NotImplementedError

    def method(self, net: nn.Module, steps: int) -> Method:
        """The optimizer, with its schedule or average of the weights if any."""
        return Method(self.build(net, steps))
