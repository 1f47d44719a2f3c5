"""One step: sums, law, then memory and parameters; on the host, or on the device without reading back.

Everything a step has to know of the parameters is in the sums, (shares, r+1, r+1) float64: over several
processes `rllc.torch.shards` completes them, and whatever follows is the same on every process.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rllc import law as _law
from rllc.torch import learning, selection
from rllc.torch.learning import Constants, Solver
from rllc.torch.parts import Part
from rllc.torch.passes import Passes, Step

__all__ = ["Share", "on_device", "on_host", "share", "sums"]

# No dtype holds less than this, so that what is below need not be looked at more closely.
LEAST_ROOM = torch.finfo(torch.float16).max


class Share(NamedTuple):
    """A group's share of a step; the first group also holds the books, see `rllc.torch.saved`."""

    group: dict[str, Any]
    part: Part
    passes: Passes
    work: Any  # the part as its passes want it
    plan: Any  # for the next step's share
    copies: int = 1  # how many processes have the same share
    room: float | None = None  # in shards: what the norms say must be below it, since no process sees all


def share(group: dict[str, Any], part: Part, plan: Any = None) -> Share:
    """A part, which may be empty, with who makes its passes; `plan` is of the last share of these passes."""
    passes = selection.chosen(group, group["params"][0].device)
    return Share(group, part, passes, *passes.prepare(part, plan))


def sums(solver: Solver, share: Share, home: torch.device) -> Tensor:
    """(r+1, r+1) float64 inner products of [M g] basis; zeros for an empty part."""
    if not share.part.params:
        return torch.zeros_like(solver.uphill, device=home)
    basis = solver.rows if torch.compiler.is_compiling() else solver.basis
    found = share.passes.gram(share.work, basis).to(home)
    if share.copies > 1:
        found = found / share.copies
    return found * solver.uphill.to(home) if share.group["maximize"] else found


def on_host(solver: Solver, shares: Sequence[Share], sums: Tensor) -> None:
    """Law, memory and parameters from the sums of all shares; or one more step skipped."""
    keeper, found = shares[0].group, sums.cpu().numpy()
    rates = [float(share.group["law_lr"]) for share in shares]
    law, faded = keeper["law"].numpy(), keeper["faded"].numpy()
    learned = learning.learn(solver, found, rates, law, faded, _rounding(solver, shares))
    if learned is None or not _fits(solver, shares, found):
        keeper["skipped"] += 1
        return
    law[:], faded[:] = learned
    p, draw = solver.propagator, None
    if keeper["seed"] is not None:
        draw = keeper["seed"], int(keeper["draws"])
        keeper["draws"] += 1
    for group, part, passes, work, *_ in shares:
        if part.params:
            lr, decay = float(group["lr"]), float(group["weight_decay"])
            step = Step(p.B, _fed(solver, group), 1 - lr * decay, -lr * law, solver.structure, draw=draw)
            passes.advance(work, step)


def on_device(
    solver: Solver, there: Constants, shares: Sequence[Share], found: Tensor, anyone: Tensor | None = None
) -> None:
    """The same, decided where the parameters are; no step at all if not `anyone` has a gradient."""
    keeper = shares[0].group
    fits = _fits_on_device(there, shares, found)
    if anyone is not None:
        fits = fits & anyone
    law, faded, ok = learning.learn_on_device(
        solver,
        there,
        found,
        [share.group["law_lr"] for share in shares],
        keeper["law"],
        keeper["faded"],
        _rounding(solver, shares),
        fits,
    )
    keeper["law"].copy_(law)
    keeper["faded"].copy_(faded)
    keeper["skipped"].add_(~ok if anyone is None else ~ok & anyone)
    draw = None
    if keeper["seed"] is not None:
        draw = keeper["seed"], keeper["draws"].clone()
        keeper["draws"].add_(ok)
    B = torch.where(ok, there.B, torch.eye(len(solver.a), dtype=torch.float64, device=ok.device))
    # The diagonal counts even where it is zero, since it is one in a step that is skipped.
    structure = tuple(
        tuple(found or i == j for j, found in enumerate(row)) for i, row in enumerate(solver.structure)
    )
    for group, part, passes, work, *_ in shares:
        if part.params:
            keep = 1 - group["lr"] * group["weight_decay"] * ok.double()
            weights = torch.where(ok, -group["lr"] * law, 0.0)
            passes.advance(work, Step(B, _fed(solver, group), keep, weights, structure, ok, draw))


def _fed(solver: Solver, group: dict[str, Any]) -> tuple[float, ...]:
    """a, or -a for a group that goes uphill."""
    return tuple(-a for a in solver.a) if group["maximize"] else solver.a


def _rounding(solver: Solver, shares: Sequence[Share]) -> float:
    """Of the dtype that units are computed in: the coarsest, at least float32."""
    double = torch.float64, torch.complex128
    single = any(p.dtype not in double for share in shares for p in share.group["params"])
    eps = torch.finfo(torch.float32 if single else torch.float64).eps
    return _law.rounding_of(len(solver.rows[0]) - 1, eps)


def _fits(solver: Solver, shares: Sequence[Share], found: np.ndarray) -> bool:
    """Whether no entry of M B + g aᵀ can overflow: by the norms; if they do not settle it, by the entries."""
    of_sums = solver.host.growth_of_sums
    if math.sqrt(found.max()) * of_sums.sum() < LEAST_ROOM:
        return True
    bounds = np.sqrt(np.diagonal(found, axis1=1, axis2=2)) @ of_sums
    growth = torch.from_numpy(solver.host.growth)
    return all(map(functools.partial(_has_room, growth), shares, bounds.tolist()))


def _has_room(growth: Tensor, share: Share, bound: float) -> bool:
    if share.room is not None:
        return bound < share.room
    return bound < LEAST_ROOM or bool(learning.overflow(share.part, growth) < 1)


def _fits_on_device(there: Constants, shares: Sequence[Share], found: Tensor) -> Tensor:
    """The same by the norms alone where the dtype has the range of float32; by entries for float16."""
    bounds = torch.diagonal(found, dim1=1, dim2=2).sqrt() @ there.growth_of_sums
    fits = (bounds < torch.finfo(torch.float32).max).all()
    for share, bound in zip(shares, bounds, strict=True):
        if share.room is not None:
            fits = fits & (bound < share.room)
        elif any(t.dtype == torch.float16 for unit in share.part.memory for t in unit):
            fits = fits & (learning.overflow(share.part, there.growth) < 1)
    return fits
