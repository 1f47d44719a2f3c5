"""What the law does, step by step, for TensorBoard: a hook on an optimizer.

    from torch.utils.tensorboard import SummaryWriter
    LawLogger(opt, SummaryWriter(), every=10)

    rllc/law_1 ...          the law, L; over several scopes its mean, with law_1_least and law_1_most
    rllc/effective_step     c1 L of one unit, c1 times the gain for linear memory: how far it goes
                            along a gradient that stays; c1 is the lr of the first group
    rllc/gain               linear memory: c_0 = aᵀ(I - B)⁻¹L, the weight of all gradients in the step
    rllc/mean_delay         linear memory: their mean age, in steps (rllc.laws); not where the gain is zero
    rllc/condition          two units and more: of MᵀM with units of length one; 1 is orthogonal, above 1e6
                            some unit is nearly the others' combination
    rllc/skipped            steps skipped so far

A law that learns anneals: the effective step falls slowly, without a floor. One that is dying falls by
the same factor every hundred steps, and the loss stands still. Growth without end is divergence to come.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rllc.checks import whole_number
from rllc.laws import gain_and_delay
from rllc.torch import float8, shards
from rllc.torch.parts import real

__all__ = ["LawLogger", "Writer"]

Array = NDArray[np.float64]


class Writer(Protocol):
    """What takes numbers: torch.utils.tensorboard.SummaryWriter, or anything with its add_scalar."""

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int) -> Any:
        """Write one number at one step."""


class LawLogger:
    """Writes what the law does after each `every`-th call of optimizer.step(), until `close()`.

    Args:
        optimizer: an RLLC, RLLC.around or RLLCAdamW.
        writer: an object with add_scalar(tag, value, step).
        every: calls from one to the next, 1 or more. A condition number costs a pass over the memory.
        steps_before: calls made before, where a training is resumed.

    Raises:
        ValueError: the optimizer has no law, or `every` or `steps_before` is no number of steps.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, writer: Writer, every: int = 1, steps_before: int = 0
    ) -> None:
        if not hasattr(optimizer, "law"):
            raise ValueError(f"{type(optimizer).__name__} has no law; give an RLLC, RLLC.around or RLLCAdamW")
        self.writer, self.steps = writer, whole_number("steps_before", steps_before)
        self.every = whole_number("every", every, least=1)
        self._handle = optimizer.register_step_post_hook(self._after)

    def close(self) -> None:
        """Write no more."""
        self._handle.remove()

    def _after(self, optimizer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        self.steps += 1
        if self.steps % self.every == 0:
            for name, value in _report(optimizer):
                self.writer.add_scalar(f"rllc/{name}", value, self.steps)


def _report(optimizer: Any) -> Iterator[tuple[str, float]]:
    laws = np.atleast_2d(optimizer.law.numpy())
    law, lr = laws.mean(0), float(optimizer.param_groups[0]["lr"])
    for j, name in enumerate(f"law_{j + 1}" for j in range(law.size)):
        yield name, float(law[j])
        if len(laws) > 1:
            yield f"{name}_least", float(laws[:, j].min())
            yield f"{name}_most", float(laws[:, j].max())
    yield from _of_linear(optimizer, law, lr)
    if law.size > 1:
        yield from _condition(optimizer, [f"m{j + 1}" for j in range(law.size)])
    yield "skipped", float(optimizer.skipped)


def _of_linear(optimizer: Any, law: Array, lr: float) -> Iterator[tuple[str, float]]:
    propagator = getattr(optimizer, "propagator", None)
    if propagator is None:
        if law.size == 1:
            yield "effective_step", lr * float(law[0])
        return
    gain, delay = map(float, gain_and_delay(propagator, law))
    yield "effective_step", lr * gain
    yield "gain", gain
    if not math.isnan(delay):  # a gain of zero has no mean
        yield "mean_delay", delay


def _condition(optimizer: Any, names: list[str]) -> Iterator[tuple[str, float]]:
    """Of the Gram matrix of the units at length one, over the parameters that have them; not in shards."""
    W = np.zeros((len(names), len(names)))
    for p, state in optimizer.state.items():
        if shards.in_shards(p):
            return
        if names[0] in state:
            M = torch.stack([real(unit).double().ravel() for unit in float8.as_numbers(state, names)])
            W += (M @ M.T).cpu().numpy()
    size = np.sqrt(np.diagonal(W))
    if size.all() and np.isfinite(size).all():
        yield "condition", float(np.linalg.cond(W / np.outer(size, size)))
