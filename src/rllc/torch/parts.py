"""What takes part in a step, and how it is cut into pieces.

A unit is a list of tensors, one for each parameter; memory is a list of k units.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "LEAST_LARGEST",
    "Part",
    "Unit",
    "cut",
    "flat",
    "moved",
    "numbered",
    "one_layout",
    "params_of",
    "pieces",
    "real",
    "wide_dtype",
]

Unit = list[Tensor]

LEAST_LARGEST = torch.finfo(torch.float16).max  # every dtype holds numbers up to this


class Part(NamedTuple):
    """The parameters of a group that have a gradient, with it and their memory; real tensors."""

    params: Unit
    gradient: Unit
    memory: list[Unit]  # k units
    # Each tensor's place in the whole optimizer, and where in it this piece starts: the coordinates of
    # stochastic rounding, which must not depend on how a step is cut.
    numbers: list[int]
    starts: list[int]
    hidden: Sequence[Sequence[Tensor]] = ()  # each one's arrays beside the units: of a rule, or scales
    owners: Sequence[Tensor] = ()  # the parameters as they are in the group: whole, complex

    def vectors(self, i: int) -> list[Tensor]:
        """[m_1, ..., m_k, g] of parameter i."""
        return [*(unit[i] for unit in self.memory), self.gradient[i]]

    def pick(self, chosen: Sequence[int]) -> Part:
        """Only the parameters at these places."""

        def of(items: Sequence) -> Any:
            return [items[i] for i in chosen] if items else items

        params, gradient, memory, *rest = self
        return Part(of(params), of(gradient), [of(unit) for unit in memory], *map(of, rest))


def params_of(groups: Iterable[dict[str, Any]]) -> Unit:
    """The parameters of all groups, in their order."""
    return list(itertools.chain.from_iterable(group["params"] for group in groups))


def moved(params: Sequence[Tensor]) -> None:
    """Tell autograd, which does not see what kernels write: a graph that has kept these is stale."""
    torch.autograd.graph.increment_version(params)


def numbered(saved: dict[str, Any], groups: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, Tensor]]:
    """The number of each parameter in a saved state, and the parameter."""
    return zip(params_of(saved["param_groups"]), params_of(groups), strict=True)


def cut(arrays: Unit, counts: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """As many arrays as each of the counts says, one after the other."""
    ends = list(itertools.accumulate(counts))
    return [tuple(arrays[end - count : end]) for end, count in zip(ends, counts, strict=True)]


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as real numbers (..., 2), any other as it is: a view."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """What a tensor is computed in: its dtype, half precision in float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def one_layout(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors of one shape hold the same entries at the same places of gapless storage."""
    first = tensors[0]
    if any(map(Tensor.is_neg, tensors)):  # which means others than are in memory
        return False
    if all(t.is_contiguous() for t in tensors):
        return True
    strides = first.stride()
    return all(t.stride() == strides for t in tensors) and _gapless(first)


def flat(tensor: Tensor) -> Tensor:
    """A view of gapless storage as one row, in its own order."""
    return tensor.as_strided((tensor.numel(),), (1,))


def pieces(part: Part, room: int) -> Iterator[Part]:
    """Parts of one device and dtype that together are this one, of at most `room` entries each.

    A larger tensor is cut into slices, unless its layout has gaps: then it is a piece of its own.
    """
    waiting: list[int] = []
    filled = 0
    for i, theta in enumerate(part.params):
        size = theta.numel()
        if waiting and (filled + size > room or _kind(part, i) != _kind(part, waiting[-1])):
            yield part.pick(waiting)
            waiting, filled = [], 0
        if size > room and one_layout([theta, *part.vectors(i)]):
            yield from _slices(part, i, room)
        elif size:
            waiting.append(i)
            filled += size
    if waiting:
        yield part.pick(waiting)


def _slices(part: Part, i: int, room: int) -> Iterator[Part]:
    theta, *rows = (flat(t) for t in (part.params[i], *part.vectors(i)))
    for start in range(0, theta.numel(), room):
        cut = slice(start, start + room)
        *memory, gradient = ([row[cut]] for row in rows)
        yield Part([theta[cut]], gradient, memory, [part.numbers[i]], [part.starts[i] + start])


def _gapless(tensor: Tensor) -> bool:
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).is_contiguous()


def _kind(part: Part, i: int) -> tuple[object, ...]:
    return part.params[i].device, part.params[i].dtype, *(v.dtype for v in part.vectors(i))
