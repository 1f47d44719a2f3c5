"""The first pass inside the backward pass: each gradient's sums while it is still in cache."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from rllc.torch import shards

__all__ = ["EarlySums", "check_outside"]


def check_outside() -> None:
    """Refuse a whole step inside the backward pass."""
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "step() was called inside the backward pass (optimizer-in-backward): the other gradients are not"
            " there yet, and the law needs all of them at once; call it after loss.backward()"
        )


class _Taken(NamedTuple):
    gradient: Tensor
    version: int
    sums: Tensor


class EarlySums:
    """Sums taken by post-accumulate-grad hooks, and whether they are still those of the gradients at hand.

    A second backward pass before the step takes the sums of the accumulated gradient anew: right, though it
    pays twice.
    """

    def __init__(self, sums: Callable[[Tensor], Tensor]) -> None:
        self._sums = sums  # of one parameter and its gradient
        self._taken: dict[Tensor, _Taken] = {}
        self._watched: set[Tensor] = set()

    def watch(self, params: Iterable[Tensor]) -> None:
        """Take the sums of these parameters from now on."""
        this = weakref.ref(self)  # or parameters would keep an optimizer that is no more used

        def take(p: Tensor) -> None:
            if (early := this()) is not None:
                early._take(p)

        for p in params:
            if p not in self._watched and p.requires_grad:
                p.register_post_accumulate_grad_hook(take)
                self._watched.add(p)

    def forget(self) -> None:
        """The memory that the sums were taken with is no more: after a step, or when a state is loaded."""
        self._taken.clear()

    def total(self, params: Iterable[Tensor]) -> Tensor:
        """The sums of these parameters.

        Raises:
            RuntimeError: a gradient is not the one that its backward pass left, or will be averaged with
                other processes'.
        """
        if shards.several():
            raise RuntimeError(
                "sums_in_backward=True: gradients are averaged over processes after their backward pass, so"
                " the sums would be of this process alone; leave sums_in_backward out"
            )
        found = [self._current(p) if p in self._watched else self._sums(p) for p in params]
        return torch.stack(found).sum(0)

    @torch.no_grad()
    def _take(self, p: Tensor) -> None:
        if p.grad is not None and not shards.several():
            self._taken[p] = _Taken(p.grad, p.grad._version, self._sums(p))

    def _current(self, p: Tensor) -> Tensor:
        taken = self._taken.get(p)
        if taken is None or taken.gradient is not p.grad or taken.version != p.grad._version:
            raise RuntimeError(
                f"sums_in_backward=True: the gradient of a parameter of shape {tuple(p.shape)} was changed or"
                " set after the backward pass (clipping, a GradScaler, an all-reduce), so its sums are out of"
                " date; leave sums_in_backward out"
            )
        return taken.sums
