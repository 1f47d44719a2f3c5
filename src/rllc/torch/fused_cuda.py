"""The two passes on a GPU with Triton: everything is read once and written once, without extra memory.

Nothing is read back: whether a step is skipped, the law and the rates are numbers on the device, so that a
step can be captured in a CUDA graph. Sums are in float64 and in a fixed order, the same from run to run to
the last bit. Taken are gapless parameters of float32, float64, bfloat16 and float16 with units and gradients
in one of these; the rest of a part goes through `foreach`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from rllc.torch import foreach, kernels_cuda
from rllc.torch.parts import Part, Unit, one_layout, wide_dtype
from rllc.torch.passes import Array, Step
from rllc.torch.plans import Kind, Plan, held, places, places_of, planned
from rllc.torch.sent import sent

__all__ = [
    "ADVANCE_WARPS",
    "DTYPES",
    "GRAM_WARPS",
    "advance",
    "gram",
    "partials",
    "prepare",
    "summed",
    "tables",
]

# Measured on an H200 (docs/speed.md).
GRAM_WARPS, ADVANCE_WARPS = 8, 4
ALIGNED = 16  # bytes

DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


class Batch(NamedTuple):
    """Parameters of one device and kind, as the kernels take them; kind None is what they do not take."""

    kind: Kind | None
    part: Part
    table: Tensor  # (k+2, tensors) int64 addresses of units, gradient and parameters
    chunks: Tensor  # (count, 4) int64


def prepare(part: Part, plan: Plan | None) -> tuple[list[Batch], Plan | None]:
    """A part cut into batches, and the plan for the next step."""
    if (plan := held(plan, part)) is not None:
        return [_batch(plan.kind, part, plan.places)], plan
    found: dict[tuple[torch.device, Kind | None], list[int]] = {}
    for i, theta in enumerate(part.params):
        if theta.numel():
            found.setdefault((theta.device, _kind(theta, part.vectors(i))), []).append(i)
    parts = [(kind, part.pick(chosen)) for (_, kind), chosen in found.items()]
    batches = [_batch(kind, own, places_of(own)) for kind, own in parts]
    return batches, planned(part, batches)


def gram(batches: Sequence[Batch], basis: Array) -> Tensor:
    """Inner products of the vectors [M g] basis, (r, r) float64; what is not finite shows as such."""
    found = [_gram(batch, basis) for batch in batches]
    if len(found) == 1:
        return found[0]
    total = torch.zeros((basis.shape[1],) * 2, dtype=torch.float64, device=found[0].device if found else None)
    for one in found:
        total += one.to(total.device)
    return total


def advance(batches: Sequence[Batch], step: Step) -> None:
    """M <- M B + g aᵀ, all units from the old ones, then θ <- keep θ + M weights."""
    for batch in batches:
        if batch.kind is None:
            foreach.advance(batch.part, step)
        else:
            _advance(batch.kind, batch, step)


def _gram(batch: Batch, basis: Array) -> Tensor:
    # Squares of float64 may overflow, and whether they did is not to be read back.
    if batch.kind is None or batch.kind[-1] == torch.float64:
        return foreach.gram(batch.part, basis)
    out = partials(batch.chunks, len(basis))
    kernels_cuda.gram_chunks[(len(out),)](
        batch.table,
        batch.chunks,
        out,
        len(batch.part.params),
        len(batch.chunks),
        K=len(basis) - 1,
        unit_dtype=DTYPES[batch.kind[0]],
        gradient_dtype=DTYPES[batch.kind[1]],
        BLOCK=kernels_cuda.BLOCK,
        WIDTH=kernels_cuda.WIDTH,
        num_warps=GRAM_WARPS,
    )
    return summed(out, basis)


def partials(chunks: Tensor, size: int) -> Tensor:
    """A place (programs, size, size) for the sums of each program of the first stage."""
    programs = min(len(chunks), kernels_cuda.PROGRAMS)
    return torch.empty(programs, size, size, dtype=torch.float64, device=chunks.device)


def summed(partials: Tensor, basis: Array) -> Tensor:
    """basisᵀ S basis, S the sum of the partials (programs, n, n); basis (n, r)."""
    (programs, size, _), r = partials.shape, basis.shape[1]
    total = torch.empty(r, r, dtype=torch.float64, device=partials.device)
    kernels_cuda.sum_partials[(1,)](
        partials,
        sent(partials.device, basis),
        total,
        programs,
        N=size,
        R=r,
        SIZE=triton.next_power_of_2(size),
        PARTIALS=kernels_cuda.PARTIALS,
        num_warps=GRAM_WARPS,
    )
    return total


def _advance(kind: Kind, batch: Batch, step: Step) -> None:
    k, theta, table = len(batch.part.memory), batch.part.params[0], batch.table
    ok = sent(table.device, True) if step.ok is None else step.ok
    dice = (table, table) if step.draw is None else _dice(step, batch.part)
    kernels_cuda.advance_chunks[(len(batch.chunks),)](
        table,
        batch.chunks,
        _row(step, table.device),
        ok,
        *dice,
        len(batch.part.params),
        K=k,
        structure=_bits(np.asarray(step.structure)),
        needed=_bits(np.any(step.structure, axis=1)),
        fed=_bits(np.asarray(step.a) != 0),
        stochastic=step.draw is not None,
        unit_dtype=DTYPES[kind[0]],
        gradient_dtype=DTYPES[kind[1]],
        theta_dtype=DTYPES[kind[2]],
        compute=DTYPES[wide_dtype(theta)],
        BLOCK=kernels_cuda.BLOCK,
        num_warps=ADVANCE_WARPS,
    )


def _kind(theta: Tensor, vectors: Sequence[Tensor]) -> Kind | None:
    *memory, gradient = vectors
    kind = memory[0].dtype, gradient.dtype, theta.dtype
    is_taken = {*kind} <= DTYPES.keys() and all(m.dtype == kind[0] for m in memory)
    return kind if is_taken and one_layout([theta, *vectors]) else None


def _batch(kind: Kind | None, part: Part, there: list[list[int]]) -> Batch:
    """`there` is `places_of` the part."""
    *memory, params = there
    return Batch(kind, part, *tables(part.params, [*memory, places(part.gradient), params]))


def tables(
    params: Unit, rows: Sequence[list[int]], beside: Sequence[list[int]] = ()
) -> tuple[Tensor, Tensor]:
    """Addresses (rows, tensors) and chunks (count, 4), as `kernels_cuda` has them.

    Args:
        rows: addresses of tensors like the parameters; beside: of others, which come first.
    """
    device, sizes = params[0].device, tuple([t.numel() for t in params])
    # As a rule gradients and state are where they were a step ago: then nothing is sent.
    addresses = np.array([*beside, *rows], dtype=np.int64)
    aligned = (addresses[len(beside) :] % ALIGNED == 0).all(0)
    key = "chunks", sizes, aligned.tobytes()
    return sent(device, addresses), sent(device, lambda: _chunks(sizes, aligned), key)


def _chunks(sizes: Sequence[int], aligned: np.ndarray) -> np.ndarray:
    """(count, 4) int64, as `kernels_cuda` has it."""
    block = kernels_cuda.BLOCK
    cuts = [
        (t, start, min(start + block, size), fits and start + block <= size)
        for t, (size, fits) in enumerate(zip(sizes, aligned, strict=True))
        for start in range(0, size, block)
    ]
    return np.array(cuts, dtype=np.int64)


def _row(step: Step, device: torch.device) -> Tensor:
    """B (k, k), a (k), weights (k) and keep in one row, float64."""
    if step.row is not None:
        return step.row
    parts = step.B, step.a, step.weights, step.keep
    if not any(isinstance(x, Tensor) for x in parts):
        return sent(device, np.concatenate([np.ravel(x) for x in parts]).astype(np.float64))
    return torch.cat([_on(x, device, np.float64).reshape(-1) for x in parts])


def _dice(step: Step, part: Part) -> tuple[Tensor, Tensor]:
    """Seed and count of the stochastic rounding, and each tensor's number, int64."""
    device = part.params[0].device
    draw = torch.stack([_on(x, device, np.int64) for x in step.draw or ()])
    return draw, sent(device, np.array(part.numbers, dtype=np.int64))


def _on(values: Any, device: torch.device, dtype: type) -> Tensor:
    """Numbers as a tensor on the device."""
    if isinstance(values, Tensor):
        return values.to(device, torch.float64 if dtype is np.float64 else torch.int64)
    return sent(device, np.asarray(values, dtype=dtype))


def _bits(flags: Any) -> int:
    """Flags as the bits of a number, the first the lowest."""
    return sum(1 << i for i, flag in enumerate(np.ravel(flags)) if flag)
