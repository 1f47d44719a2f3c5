"""From the sums of one step to the new law, by NumPy on the host or by torch on the parameters' device.

On the device nothing is read back. Whether the step must be skipped is then a 0-d tensor, and what it
decides is decided by selection, because NaN times 0 is NaN. The mathematics is that of `rllc.law` in both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import torch
from scipy.linalg.lapack import dgesv
from torch import Tensor

from rllc import law as _law
from rllc.law import LOST, Frame, GramianRidge, LawStep, RelaxedInverse, Ridge, Sums
from rllc.memory import MemoryRule, yardsticks
from rllc.propagator import Propagator
from rllc.torch.parts import Part
from rllc.torch.passes import Array

__all__ = [
    "Constants",
    "Learned",
    "Solver",
    "fed",
    "guard_level",
    "has_kernel",
    "is_weighed",
    "learn",
    "learn_on_device",
    "on",
    "overflow",
    "solver",
]


@functools.cache
def _eye(k: int, dtype: Any = np.float64) -> np.ndarray:
    found = np.eye(k, dtype=dtype)
    found.setflags(write=False)
    return found


def _solved(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, failed = dgesv(A, b)[2:]
    if failed:
        raise np.linalg.LinAlgError("Singular matrix")
    return x


# What `rllc.law` needs of NumPy, for the few numbers of one law: NumPy's own wrappers, made for large arrays,
# take longer than a small network's step.
HOST: Any = SimpleNamespace(
    where=lambda condition, x, y: (
        np.where(condition, x, y) if isinstance(condition, np.ndarray) else x if condition else y
    ),
    sqrt=np.sqrt,
    sum=np.add.reduce,
    stack=np.array,
    trace=lambda A: np.add.reduce(A.diagonal()),
    diagonal=np.diagonal,
    ones_like=np.ones_like,
    eye=_eye,
    linalg=SimpleNamespace(solve=_solved, eigh=np.linalg.eigh),
)


class Learned(NamedTuple):
    """What one law has come to, as float64 arrays of one namespace; under these names it is in the books."""

    law: Any  # (k,) L
    faded: Any  # (k, k) Bˢ, as `rllc.law.fade` keeps it
    last: Any  # () |g| of the last gradient that memory has taken in
    progress: Any  # (5,) of the law's step, as `rllc.law.LawStep.taken` keeps it


class Constants(NamedTuple):
    """What does not change from step to step, as arrays of one namespace."""

    xp: Any  # what `rllc.law` needs of numpy, or of torch on one device
    one: Any  # ()
    frame: Frame
    B: Any  # (k, k)
    growth: Any  # (k+1,) how much the entries of [M g] can add to an entry of M B + g aᵀ, at most
    growth_of_sums: Any  # (r+1,) the same for the norms that the sums know


class Solver(NamedTuple):
    """How a law is corrected. What torch.compile reads of it is tuples and tensors, not NumPy arrays.

    A memory rule has no B and a: its own passes do not read them, and the checks that do find nothing.
    """

    inverse: RelaxedInverse
    guard: bool
    step: LawStep
    yardsticks: tuple[int | None, ...] | None  # of a memory rule
    host: Constants  # for NumPy
    basis: Array  # (k+1, r+1): the sums are inner products of the vectors [M g] basis
    rows: tuple[tuple[float, ...], ...]  # of the basis
    a: tuple[float, ...]
    structure: tuple[tuple[bool, ...], ...]  # (k, k): where B is not zero


def solver(memory: Propagator | MemoryRule, inverse: RelaxedInverse, guard: bool, step: LawStep) -> Solver:
    """With all that follows from the four; `guard` is for linear memory."""
    if isinstance(memory, MemoryRule):
        k = memory.k
        B, a, growth, frame = np.eye(k), np.zeros(k), np.zeros(k + 1), _law.plain_frame(k)
        sticks = yardsticks(memory)
    else:
        B, a, frame, sticks = memory.B, memory.a, inverse.frame(memory), None
        growth = memory.growth()
    basis = scipy.linalg.block_diag(frame.basis, 1.0)
    host = Constants(HOST, np.float64(1), frame, B, growth, np.abs(np.linalg.pinv(basis)) @ growth)
    rows, structure = (tuple(map(tuple, x.tolist())) for x in (basis, B != 0))
    return Solver(inverse, guard, step, sticks, host, basis, rows, tuple(a.tolist()), structure)


def on(device: torch.device, host: Constants) -> Constants:
    """Constants as tensors."""

    def there(x: Any) -> Tensor:
        return torch.tensor(x, dtype=torch.float64, device=device)

    of_torch = SimpleNamespace(
        where=_where,
        sqrt=torch.sqrt,
        sum=torch.sum,
        stack=torch.stack,
        trace=torch.trace,
        diagonal=torch.diagonal,
        ones_like=torch.ones_like,
        eye=functools.partial(torch.eye, device=device),
        # solve() asks the device whether the matrix was singular; with a ridge it is not.
        linalg=SimpleNamespace(solve=_solve, eigh=torch.linalg.eigh),
    )
    basis, metric, first = host.frame
    frame = Frame(there(basis), there(metric), first)
    return Constants(of_torch, there(1), frame, there(host.B), there(host.growth), there(host.growth_of_sums))


def learn(
    solver: Solver, sums: Array, rates: Sequence[float], lr: float, before: Learned, rounding: float
) -> Learned | None:
    """What a law comes to by M⁺g, or None if the sums are not finite or the law would be LOST.

    Args:
        sums: (shares, r+1, r+1) of each share's [M g] basis; rates: each share's c2; lr: the largest c1.
        rounding: relative error of the sums.
    """
    if not math.isfinite(sum(sums.ravel().tolist())):
        return None
    weights, rate = _weighed(solver.step, rates)
    # Each group teaches with its own rate; with equal rates this is c2 Mᵀg.
    v = np.dot(weights, sums[:, :-1, -1])
    total = sums[0] if len(sums) == 1 else sums.sum(0)
    learned = _corrected(solver, solver.host, total, v, rate, lr, before, rounding)
    return learned if all(abs(entry) < LOST for entry in learned.law.tolist()) else None


def learn_on_device(
    solver: Solver,
    there: Constants,
    sums: Tensor,
    rates: Sequence[float | Tensor],
    lr: float | Tensor,
    before: Learned,
    rounding: float,
) -> Learned:
    """The same in tensors, of sums that are finite; the law may come out LOST, or not finite."""
    weights, rate = _weighed(solver.step, rates)
    v = sum(weight * own[:-1, -1] for weight, own in zip(weights, sums, strict=True))
    return _corrected(solver, there, sums.sum(0), v, rate, lr, before, rounding)


def _corrected(
    solver: Solver,
    constants: Constants,
    total: Any,
    v: Any,
    rate: Any,
    lr: Any,
    before: Learned,
    rounding: float,
) -> Learned:
    xp, one, frame, B = constants[:4]
    sums = Sums(total[:-1, :-1], v, total[-1, -1], memory_scale=one, gradient_scale=one)
    guard = before.faded if solver.guard else None
    x = _law.correction(xp, sums, frame, solver.inverse, faded=guard, rounding=rounding)
    if solver.yardsticks is not None:
        x = _law.in_scale(xp, x, sums.W, before.last, solver.yardsticks)
    size = sums.gradient_size(xp)
    law, progress = solver.step.taken(xp, before.law, rate, x, size, before.progress, lr)
    return Learned(law, _law.fade(xp, before.faded, B, sums), size, progress)


def _weighed(step: LawStep, rates: Sequence[Any]) -> tuple[Sequence[Any], Any]:
    """How much each share's gradient counts in v, and the rate of what comes of it: times each other, c2."""
    if not is_weighed(step):
        return rates, 1.0
    largest = largest_of(rates)
    return [rate / _where(largest > 0, largest, 1.0) for rate in rates], largest


def largest_of(rates: Sequence[Any]) -> Any:
    """The largest of numbers and tensors ()."""
    return functools.reduce(_larger, rates)


def has_kernel(solver: Solver, law: Any) -> bool:
    """Whether the law's kernels are for this: linear memory, one law (k,), a ridge for its inverse."""
    return solver.yardsticks is None and law.ndim == 1 and isinstance(solver.inverse, GramianRidge | Ridge)


def fed(solver: Solver, group: dict[str, Any]) -> tuple[float, ...]:
    """a, or -a for a group that goes uphill."""
    return tuple(-a for a in solver.a) if group["maximize"] else solver.a


def guard_level(constants: Constants) -> float:
    """Of a gradient of size one, the level of memory's content below which the guard acts."""
    return _law.GUARD_FRACTION**2 * constants.frame.first


def is_weighed(step: LawStep) -> bool:
    """Whether the law's step wants M⁺g as the share of the largest rate has it."""
    # What is clipped, or says when to stop growing, is such a one.
    return step.clip < math.inf or step.growth > 0


def overflow(part: Part, growth: Tensor) -> Tensor:
    """The largest entry that M B + g aᵀ may come to, as a share of the largest its dtype holds; 0-d float64.

    Exact to the factor that signs may cancel: from every tensor's largest entries. growth is (k+1,).
    """
    chosen = [i for i, theta in enumerate(part.params) if theta.numel()]
    if not chosen:
        return growth.new_zeros(())
    units = [[unit[i] for i in chosen] for unit in (*part.memory, part.gradient)]
    tops = torch.stack([torch.stack(torch._foreach_norm(unit, torch.inf)).double() for unit in units])
    # Not torch.tensor, whose numbers a CUDA graph would look for on the host.
    room = torch.stack([torch.full_like(tops[0, 0], torch.finfo(t.dtype).max) for t in units[0]])
    return (growth.to(tops.device) @ tops / room).max()


def _solve(A: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve_ex(A, b).result


def _where(condition: Any, x: Any, y: Any) -> Any:
    """torch.where as NumPy has it: of plain conditions too, and two plain numbers are float64."""
    if not isinstance(condition, Tensor):
        return x if condition else y
    if not isinstance(x, Tensor):
        x = torch.full_like(condition, x, dtype=torch.float64)
    return torch.where(condition, x, y)


def _larger(x: Any, y: Any) -> Any:
    if isinstance(x, Tensor):
        return x.clamp(min=y)
    return y.clamp(min=x) if isinstance(y, Tensor) else max(x, y)
