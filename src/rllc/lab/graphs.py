"""A training step captured as a CUDA graph: a GPU does a small network's step sooner than Python asks for it.

step = Captured(step)     the same function, replayed from its fourth call on
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Captured"]

WARM_UP = 3  # steps that are done as they stand, in which state and libraries' workspaces come to be


class Captured:
    """A function of tensors on a GPU, always of the same shapes: the same numbers, to the bit, as without.

    It must read and write the same other tensors each time, and ask nothing back from the GPU.
    """

    def __init__(self, step: Callable[..., Tensor | None]) -> None:
        self._step = step
        self._done = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._places: tuple[Tensor, ...]
        self._result: Tensor | None

    def __call__(self, *inputs: Tensor) -> Tensor | None:
        """Do the step; its result, which the next one overwrites."""
        if self._done < WARM_UP:
            self._done += 1
            return self._aside(*inputs)
        if self._graph is None:
            self._places = tuple(x.clone() for x in inputs)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):  # which asks for everything and does nothing
                self._result = self._step(*self._places)
        for place, x in zip(self._places, inputs, strict=True):
            place.copy_(x)
        self._graph.replay()
        return self._result

    def _aside(self, *inputs: Tensor) -> Tensor | None:
        """On a stream of its own, as what is captured later is: autograd remembers on which it began."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable=True.*")
            result = self._step(*inputs)
        here.wait_stream(aside)
        return result
