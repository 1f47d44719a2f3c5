"""The two passes on a GPU with Triton: everything is read once and written once, without extra memory.

Nothing is read back: whether a step is skipped, the law and the rates are numbers on the device, so that a
step can be captured in a CUDA graph. Sums are in float64 and in a fixed order, the same from run to run to
the last bit. Taken are gapless parameters of float32, float64, bfloat16 and float16 with units and gradients
in one of these; the rest of a part goes through `foreach`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from rllc.torch import foreach, kernels_cuda, rounding
from rllc.torch.parts import Part, one_layout, wide_dtype
from rllc.torch.passes import Array, Step, upper_triangle

__all__ = ["advance", "gram", "prepare"]

WARPS = 8
ALIGNED = 16  # bytes

DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}

Kind = tuple[torch.dtype, torch.dtype, torch.dtype]  # of units, gradient, parameters


Launches = list[tuple[Tensor, bool]]  # chunks (n, 3), and whether they are whole


class Batch(NamedTuple):
    """Parameters of one device and kind, as the kernels take them; kind None is what they do not take."""

    kind: Kind | None
    part: Part
    table: Tensor  # (k+2, tensors) addresses of units, gradient and parameters
    launches: Launches


def prepare(part: Part, plan: None) -> tuple[list[Batch], None]:
    """A part cut into batches; for the next step there is nothing to plan, tables are kept by address."""
    found: dict[tuple[torch.device, Kind | None], list[int]] = {}
    for i, theta in enumerate(part.params):
        if theta.numel():
            found.setdefault((theta.device, _kind(theta, part.vectors(i))), []).append(i)
    return [_batch(kind, part.pick(chosen)) for (_, kind), chosen in found.items()], None


def gram(batches: Sequence[Batch], basis: Array) -> Tensor:
    """Inner products of the vectors [M g] basis, (r, r) float64; what is not finite shows as such."""
    device = batches[0].table.device if batches else torch.device("cpu")
    combine = torch.from_numpy(basis).to(device, non_blocking=True)
    total = torch.zeros((basis.shape[1],) * 2, dtype=torch.float64, device=device)
    for batch in batches:
        # Squares of float64 may overflow, and whether they did is not to be read back.
        if batch.kind is None or batch.kind[-1] == torch.float64:
            total += foreach.gram(batch.part, basis).to(device)
        else:
            total += combine.T @ _gram(batch.kind, batch).to(device) @ combine
    return total


def advance(batches: Sequence[Batch], step: Step) -> None:
    """M <- M B + g aᵀ, all units from the old ones, then θ <- keep θ + M weights."""
    for batch in batches:
        if batch.kind is None:
            foreach.advance(batch.part, step)
        else:
            _advance(batch.kind, batch, step)


def _gram(kind: Kind, batch: Batch) -> Tensor:
    k, device = len(batch.part.memory), batch.table.device
    pairs = upper_triangle(k + 1)
    count = sum(len(chunks) for chunks, _ in batch.launches)
    sums = torch.empty(count, len(pairs), dtype=torch.float64, device=device)
    done = 0
    for chunks, whole in batch.launches:
        kernels_cuda.gram_chunks[(len(chunks),)](
            batch.table,
            chunks,
            sums[done:],
            len(batch.part.params),
            K=k,
            unit_dtype=DTYPES[kind[0]],
            gradient_dtype=DTYPES[kind[1]],
            whole=whole,
            BLOCK=kernels_cuda.BLOCK,
            num_warps=WARPS,
        )
        done += len(chunks)
    rows, columns = (list(places) for places in zip(*pairs, strict=True))
    upper = torch.zeros(k + 1, k + 1, dtype=torch.float64, device=device)
    upper[rows, columns] = sums.sum(0)
    return upper + upper.triu(1).T


def _advance(kind: Kind, batch: Batch, step: Step) -> None:
    k, theta = len(batch.part.memory), batch.part.params[0]
    dtype, keys = wide_dtype(theta), _keys(batch.part, step, theta.device)
    numbers = torch.cat(
        [_on(x, dtype, theta.device).reshape(-1) for x in (step.B, step.a, step.weights, step.keep)]
    )
    ok = _on(True, torch.bool, theta.device) if step.ok is None else step.ok
    for chunks, whole in batch.launches:
        kernels_cuda.advance_chunks[(len(chunks),)](
            batch.table,
            chunks,
            numbers,
            ok,
            keys,
            len(batch.part.params),
            K=k,
            structure=_bits(np.asarray(step.structure)),
            needed=_bits(np.any(step.structure, axis=1)),
            fed=_bits(np.asarray(step.a) != 0),
            stochastic=step.draw is not None,
            unit_dtype=DTYPES[kind[0]],
            gradient_dtype=DTYPES[kind[1]],
            theta_dtype=DTYPES[kind[2]],
            compute=DTYPES[dtype],
            whole=whole,
            BLOCK=kernels_cuda.BLOCK,
            num_warps=WARPS,
        )


def _kind(theta: Tensor, vectors: Sequence[Tensor]) -> Kind | None:
    *memory, gradient = vectors
    kind = memory[0].dtype, gradient.dtype, theta.dtype
    return kind if DTYPES.keys() >= {*kind} and one_layout([theta, *vectors]) else None


def _batch(kind: Kind | None, part: Part) -> Batch:
    units = (*part.memory, part.gradient, part.params)
    addresses = tuple(tuple(t.data_ptr() for t in unit) for unit in units)
    return Batch(
        kind, part, *_placed(addresses, tuple(t.numel() for t in part.params), part.params[0].device)
    )


@functools.lru_cache(maxsize=64)
def _placed(
    addresses: tuple[tuple[int, ...], ...], sizes: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Launches]:
    # Kept, because gradients and state are mostly where they were a step ago: then nothing is copied.
    whole: list[tuple[int, int, int]] = []
    rest: list[tuple[int, int, int]] = []
    for t, size in enumerate(sizes):
        aligned = all(row[t] % ALIGNED == 0 for row in addresses)
        for start in range(0, size, kernels_cuda.BLOCK):
            stop = min(start + kernels_cuda.BLOCK, size)
            (whole if aligned and stop - start == kernels_cuda.BLOCK else rest).append((t, start, stop))
    launches = [(chunks, flag) for chunks, flag in ((whole, True), (rest, False)) if chunks]
    return _sent(addresses, device), [(_sent(chunks, device), flag) for chunks, flag in launches]


def _sent(numbers: Any, device: torch.device) -> Tensor:
    table = torch.tensor(numbers, dtype=torch.int64)
    return table.to(device) if device.type == "cpu" else table.pin_memory().to(device, non_blocking=True)


def _keys(part: Part, step: Step, device: torch.device) -> Tensor:
    """(k, tensors) int64."""
    k, numbers = len(part.memory), _on(part.numbers, torch.int64, device)
    if step.draw is None:
        return numbers
    seed, count = step.draw
    return torch.stack([rounding.key(seed, count, numbers, j) for j in range(k)])


def _on(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor on the device."""
    if isinstance(values, Tensor):
        return values.to(device, dtype)
    return torch.tensor(np.asarray(values)).to(device, dtype, non_blocking=True)


def _bits(flags: Any) -> int:
    """Flags as the bits of a number, the first the lowest."""
    return sum(1 << i for i, flag in enumerate(np.ravel(flags)) if flag)
