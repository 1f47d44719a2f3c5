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
from torch import Tensor

from rllc import law as _law
from rllc.law import Frame, RelaxedInverse, Sums
from rllc.propagator import Propagator
from rllc.torch.parts import Part
from rllc.torch.passes import Array

__all__ = ["Constants", "Solver", "learn", "learn_on_device", "on", "overflow", "solver"]


class Constants(NamedTuple):
    """What does not change from step to step, as arrays of one namespace."""

    xp: Any  # numpy, or what of torch `rllc.law` needs, on one device
    one: Any  # ()
    frame: Frame
    B: Any  # (k, k)
    growth: Any  # (k+1,) how much the entries of [M g] can add to an entry of M B + g aᵀ, at most
    growth_of_sums: Any  # (r+1,) the same for the norms that the sums know


class Solver(NamedTuple):
    """How a law is corrected. What torch.compile reads of it is tuples and tensors, not NumPy arrays."""

    propagator: Propagator
    inverse: RelaxedInverse
    guard: bool
    host: Constants  # for NumPy
    basis: Array  # (k+1, r+1): the sums are inner products of the vectors [M g] basis
    rows: tuple[tuple[float, ...], ...]  # of the basis
    uphill: Tensor  # (r+1, r+1): what the sums of [M g] are multiplied by to be those of [M -g]
    a: tuple[float, ...]
    structure: tuple[tuple[bool, ...], ...]  # (k, k): where B is not zero


def solver(propagator: Propagator, inverse: RelaxedInverse, guard: bool) -> Solver:
    """With all that follows from the three."""
    p, frame = propagator, inverse.frame(propagator)
    basis = scipy.linalg.block_diag(frame.basis, 1.0)
    growth = np.append(np.abs(p.B).sum(1), np.abs(p.a).max())
    host = Constants(np, np.float64(1), frame, p.B, growth, np.abs(np.linalg.pinv(basis)) @ growth)
    sign = torch.ones(basis.shape[1], dtype=torch.float64)
    sign[-1] = -1
    rows, structure = (tuple(map(tuple, x.tolist())) for x in (basis, p.B != 0))
    return Solver(
        p, inverse, guard, host, basis, rows, torch.outer(sign, sign), tuple(p.a.tolist()), structure
    )


def on(device: torch.device, host: Constants) -> Constants:
    """Constants as tensors."""

    def there(x: Any) -> Tensor:
        return torch.tensor(x, dtype=torch.float64, device=device)

    of_torch = SimpleNamespace(
        where=torch.where,
        trace=torch.trace,
        eye=functools.partial(torch.eye, device=device),
        # solve() asks the device whether the matrix was singular; with a ridge it is not.
        linalg=SimpleNamespace(solve=_solve, eigh=torch.linalg.eigh),
    )
    basis, metric, first = host.frame
    frame = Frame(there(basis), there(metric), first)
    return Constants(of_torch, there(1), frame, there(host.B), there(host.growth), there(host.growth_of_sums))


def learn(
    solver: Solver, sums: Array, rates: Sequence[float], law: Array, faded: Array, rounding: float
) -> tuple[Array, Array] | None:
    """L + c2 M⁺g and Bˢ, or None if the sums or the law are not finite.

    Args:
        sums: (groups, r+1, r+1) of each group's [M g] basis; rates: each group's c2.
        law: (k,) L; faded: (k, k) as `rllc.law.fade` keeps it; rounding: relative, of the sums.
    """
    if not math.isfinite(sum(sums.ravel().tolist())):
        return None
    total = sums.sum(0)
    # Each group teaches with its own rate; with equal rates this is c2 Mᵀg.
    v = np.asarray(rates) @ sums[:, :-1, -1]
    law, faded = _corrected(solver, solver.host, total, v, law, faded, rounding)
    return (law, faded) if math.isfinite(law.sum()) else None


def learn_on_device(
    solver: Solver,
    there: Constants,
    sums: Tensor,
    rates: Sequence[float | Tensor],
    law: Tensor,
    faded: Tensor,
    rounding: float,
    fits: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in tensors: (L, Bˢ, ok), unchanged where ok is False, as it is unless `fits`."""
    total = sums.sum(0)
    ok = torch.isfinite(total).all() & fits
    total = torch.where(ok, total, torch.zeros_like(total))
    v = sum(rate * torch.where(ok, own[:-1, -1], 0.0) for rate, own in zip(rates, sums, strict=True))
    new_law, new_faded = _corrected(solver, there, total, v, law, faded, rounding)
    ok = ok & torch.isfinite(new_law).all()
    return torch.where(ok, new_law, law), torch.where(ok, new_faded, faded), ok


def _corrected(
    solver: Solver, constants: Constants, total: Any, v: Any, law: Any, faded: Any, rounding: float
) -> tuple[Any, Any]:
    xp, one, frame, B = constants[:4]
    sums = Sums(total[:-1, :-1], v, total[-1, -1], memory_scale=one, gradient_scale=one)
    guard = faded if solver.guard else None
    x = _law.correction(xp, sums, frame, solver.inverse, faded=guard, rounding=rounding)
    return law + x, _law.fade(xp, faded, B, sums)


def overflow(part: Part, growth: Tensor) -> Tensor:
    """The largest entry that M B + g aᵀ may come to, as a share of the largest its dtype holds; 0-d float64.

    Exact to the factor that signs may cancel: from every tensor's largest entries. growth is (k+1,).
    """
    chosen = [i for i, theta in enumerate(part.params) if theta.numel()]
    units = [[unit[i] for i in chosen] for unit in (*part.memory, part.gradient)]
    tops = torch.stack([torch.stack(torch._foreach_norm(unit, torch.inf)).double() for unit in units])
    room = torch.tensor([torch.finfo(t.dtype).max for t in units[0]], dtype=torch.float64, device=tops.device)
    return (growth.to(tops.device) @ tops / room).max()


def _solve(A: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve_ex(A, b).result
