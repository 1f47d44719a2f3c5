"""The two passes on the CPU with numba: everything is read once and written once, without extra memory.

Why numba: measured in docs/speed.md. torch's own fused SGD, once for each unit, reads the parameters k times
and needs a gather for the sums; torch.compile makes as good a second pass, but compiles for half a minute in
every process and needs a C++ compiler there. These kernels are plain Python, compile in seconds, once
for each number of units and dtype, and take any k, B and a.

Sums are in float64, chunk by chunk in a fixed order: the number of threads (torch's) changes no bit.
Taken are gapless float32 parameters with units in float32 or bfloat16, and float64 for the second pass; the
rest of a part goes through `foreach`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rllc.torch import foreach, kernels_cpu, rounding
from rllc.torch.parts import Part, Unit, one_layout
from rllc.torch.passes import Array, Step
from rllc.torch.plans import Kind, Plan, held, places, planned

__all__ = ["addresses", "advance", "gram", "prepare", "threads", "witness"]

CHUNK = 1 << 14  # entries of one sum
SHARE = 4  # chunks of a thread's smallest share: with less it costs more than it saves

DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.bfloat16: np.uint16}
TAKEN = {
    (torch.float32, torch.float32, torch.float32),
    (torch.bfloat16, torch.float32, torch.float32),
    (torch.float64, torch.float64, torch.float64),
}


class Batch(NamedTuple):
    """Parameters of one kind, as the kernels take them; kind None is what they do not take."""

    kind: Kind | None
    part: Part
    table: np.ndarray  # (k+2, tensors) addresses of units, gradient and parameters
    chunks: np.ndarray  # (chunks, 3): tensor, start and stop of each


def prepare(part: Part, plan: Plan | None) -> tuple[list[Batch], Plan | None]:
    """A part cut into batches, and the plan for the next step."""
    if (plan := held(plan, part)) is not None:
        table, chunks = plan.made
        table[-2] = places(part.gradient)
        return [Batch(plan.kind, part, table, chunks)], plan
    found: dict[Kind | None, list[int]] = {}
    for i, theta in enumerate(part.params):
        if theta.numel():
            found.setdefault(_kind(theta, part.vectors(i)), []).append(i)
    batches = [_batch(kind, part.pick(chosen)) for kind, chosen in found.items()]
    return batches, planned(part, batches, lambda batch: (batch.table, batch.chunks))


def gram(batches: Sequence[Batch], basis: Array) -> Tensor:
    """Inner products of the vectors [M g] basis, (r, r) float64; what is not finite shows as such."""
    found = [_gram_in(batch, basis) for batch in batches]
    if len(found) == 1:
        return found[0]
    return sum(found, start=torch.zeros((basis.shape[1],) * 2, dtype=torch.float64, device="cpu"))


def _gram_in(batch: Batch, basis: Array) -> Tensor:
    # Units of float64 must be combined before they are squared, and their squares may overflow.
    if batch.kind is None or batch.kind[-1] == torch.float64:
        return foreach.gram(batch.part, basis)
    return torch.from_numpy(_gram(batch.kind, batch, basis))


def advance(batches: Sequence[Batch], step: Step) -> None:
    """M <- M B + g aᵀ, all units from the old ones, then θ <- keep θ + M weights."""
    for batch in batches:
        if batch.kind is not None:
            _advance(batch.kind, batch, step)
        else:
            foreach.advance(batch.part, step)


def _kind(theta: Tensor, vectors: Sequence[Tensor]) -> Kind | None:
    *memory, gradient = vectors
    kind = memory[0].dtype, gradient.dtype, theta.dtype
    if not all(t.is_cpu and _is_plain(t) for t in (theta, *vectors)):
        return None
    is_taken = kind in TAKEN and all(m.dtype == kind[0] for m in memory) and one_layout([theta, *vectors])
    return kind if is_taken else None


def _is_plain(tensor: Tensor) -> bool:
    """Not a subclass that wraps others and has no entries at its own address."""
    return type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def _batch(kind: Kind | None, part: Part) -> Batch:
    table = np.array([addresses(unit) for unit in (*part.memory, part.gradient, part.params)])
    return Batch(kind, part, table, _chunks(tuple(t.numel() for t in part.params)))


def addresses(unit: Unit) -> np.ndarray:
    """Where their entries begin in memory, int64."""
    return np.array(places(unit), np.int64)


def _gram(kind: Kind, batch: Batch, basis: Array) -> Array:
    units, gradient, _ = map(witness, kind)
    witnesses = (*[units] * len(batch.part.memory), gradient)
    return kernels_cpu.gram(threads(batch), batch.table, batch.chunks, witnesses, basis)


def _advance(kind: Kind, batch: Batch, step: Step) -> None:
    part, witnesses = batch.part, tuple(map(witness, kind))
    B, a, weights = map(np.asarray, (step.B, step.a, step.weights))
    keys = np.zeros((len(part.memory), len(part.params)), np.int64)
    if step.draw is not None:
        keys[:] = [[rounding.key(*step.draw, n, j) for n in part.numbers] for j in range(a.size)]
    kernels_cpu.advance(threads(batch), batch.table, batch.chunks, witnesses, B, a, weights, step.keep, keys)


@functools.cache
def witness(dtype: torch.dtype) -> np.ndarray:
    """Of no entry: what tells a kernel the dtype that an address stands for."""
    return np.empty(0, DTYPES[dtype])


@functools.lru_cache(maxsize=64)
def _chunks(sizes: tuple[int, ...]) -> np.ndarray:
    """(chunks, 3): tensor, start and stop of each."""
    return np.array(
        [(t, lo, min(lo + CHUNK, n)) for t, n in enumerate(sizes) for lo in range(0, n, CHUNK)], np.int64
    )


def threads(batch: Batch) -> int:
    """How many are worth their while, of those that torch has."""
    return min(torch.get_num_threads(), max(1, len(batch.chunks) // SHARE))
