"""One step: sums, law, then memory and parameters; on the host, or on the device without reading back.

Everything a step has to know of the parameters is in the sums, (shares, r+1, r+1) float64: over several
processes `rllc.torch.shards` completes them, and whatever follows is the same on every process.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rllc import law as _law
from rllc.law import LOST, PROGRESS
from rllc.torch import float8, learning, rules, selection, shards
from rllc.torch.learning import Constants, Learned, Solver
from rllc.torch.parts import LEAST_LARGEST, Part, moved
from rllc.torch.passes import Passes, Step, when_skipped
from rllc.torch.shards import Spread

__all__ = ["Share", "cuts", "in_one_call", "of_all", "on_device", "on_host", "room", "share", "sound", "sums"]


class Share(NamedTuple):
    """A part of a group in a step; the first group also holds the books, see `rllc.torch.saved`."""

    group: dict[str, Any]
    part: Part
    passes: Passes
    work: Any  # the part as its passes want it
    plan: Any  # for the next step's share
    scope: int  # the place of its law
    copies: int = 1  # how many processes have the same share
    room: float | None = None  # in shards: what the norms say must be below it, since no process sees all


def share(
    group: dict[str, Any],
    part: Part,
    passes: Passes,
    plan: Any = None,
    scope: int = 0,
    copies: int = 1,
    room: float | None = None,
) -> Share:
    """A part, which may be empty, with who makes its passes; `plan` is of the last share of these passes."""
    return Share(group, part, passes, *passes.prepare(part, plan), scope, copies, room)


def cuts(
    scope: str, number: int, params: Sequence[Tensor], first: int, spread: Spread | None
) -> list[tuple[int, int, list[int] | None]]:
    """How a group is cut into shares: for each its law, its number of copies, and which parameters it has.

    They are places among the group's parameters that have a gradient; None for all of them.

    Args:
        number: of the group; first: the place of its first parameter in the whole optimizer.
    """
    law = number if scope == "group" else 0
    if spread is None and scope != "tensor":
        return [(law, 1, None)]
    places = range(first, first + len(params))
    laws = places if scope == "tensor" else [law] * len(params)
    copies = [1 if spread is None else spread.copies[place] for place in places]
    kinds = list(zip(laws, copies, strict=True))
    found: dict[tuple[int, int], list[int]] = {kind: [] for kind in sorted(set(kinds))}
    taking = (kind for kind, p in zip(kinds, params, strict=True) if p.grad is not None)
    for i, kind in enumerate(taking):
        found[kind].append(i)
    return [(*kind, chosen) for kind, chosen in found.items()]


def room(group: dict[str, Any], memory_dtype: torch.dtype | None) -> float:
    """The largest number that every unit of the group can hold."""
    if memory_dtype == float8.DTYPE:
        memory_dtype = torch.float32  # that of its scales
    return min([torch.finfo(memory_dtype or p.dtype).max for p in group["params"]] or [math.inf])


def sums(solver: Solver, share: Share, home: torch.device) -> Tensor:
    """(r+1, r+1) float64 inner products of [M g] basis; zeros for an empty part."""
    if not share.part.params:
        return torch.zeros((len(solver.rows[0]),) * 2, dtype=torch.float64, device=home)
    basis = solver.rows if torch.compiler.is_compiling() else solver.basis
    found = share.passes.gram(share.work, basis)
    if found.device != home:
        found = found.to(home)
    if share.copies > 1:
        found = found / share.copies
    return _of_minus_g(found) if share.group["maximize"] else found


def _of_minus_g(sums: Tensor) -> Tensor:
    """The inner products of [M -g] from those of [M g], in place."""
    sums[-1, :-1].neg_()
    sums[:-1, -1].neg_()
    return sums


def sound(shares: Sequence[Share], sums: Tensor) -> Tensor | None:
    """Whether what memory rules are about to store can be, and has a metric; 0-d bool, None for no rules."""
    found = [s.passes.sound(s.work).to(sums.device) for s in shares if s.passes.sound and s.part.params]
    return torch.stack([*found, torch.isfinite(sums).all()]).all() if found else None


def of_all(
    there: Spread, sums: Tensor, taking: Sequence[bool], sound: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of all processes: sums, which shares somebody has a gradient for, whether all is sound."""
    flags = torch.tensor([*taking, False], device=sums.device)
    if sound is not None:
        flags[-1] = ~sound
    sums, raised = shards.total(there, sums, flags)
    return sums, raised[:-1], ~raised[-1]


def in_one_call(solver: Solver, keeper: dict[str, Any], shares: Sequence[Share]) -> bool:
    """All of a step by one kernel; False if there is none for it, or it is no step: nothing has changed."""
    only, *others = shares
    whole = only.passes.whole
    if whole is None or others or only.group["maximize"] or keeper["seed"] is not None:
        return False
    if not learning.has_kernel(solver, keeper["law"]):
        return False
    done = whole(solver, only.work, only.group, _books(keeper), _rounding(solver, shares))
    if done:
        moved(only.part.owners)
    return done


def on_host(
    solver: Solver,
    keeper: dict[str, Any],
    shares: Sequence[Share],
    sums: Tensor,
    taking: Sequence[bool] | Tensor,
    sound: Tensor | None,
) -> bool:
    """Laws, memory and parameters from the sums of all shares; or False, and one more step is skipped.

    Args:
        keeper: the group that has the books.
        taking: of each share, whether any process has a gradient for it; without one it is no step.
        sound: as `sound` says, of all processes.

    Raises:
        RuntimeError: all gradients are finite, but not what a memory rule made; nothing has changed.
    """
    found = sums.numpy()
    if not any(taking):
        return False
    # Of what is not finite the gradient's own sums tell whether it is to blame.
    if sound is not None and not sound and np.isfinite(found[:, -1]).all():
        raise RuntimeError(f"{rules.first_fault([share.work for share in shares])}; nothing has changed")
    learned = _learned_by_kernel(solver, keeper, shares, found)
    if learned is None:
        learned = _learned(solver, keeper, shares, _scopes(shares, taking), found)
    if not learned:
        keeper["skipped"] += 1
        return False
    laws, draw = keeper["law"].numpy().reshape(-1, len(solver.a)), None
    if keeper["seed"] is not None:
        draw = keeper["seed"], int(keeper["draws"])
        keeper["draws"] += 1
    for share in shares:
        lr, decay = float(share.group["lr"]), float(share.group["weight_decay"])
        fed, weights = learning.fed(solver, share.group), -lr * laws[share.scope]
        _advance(share, Step(solver.host.B, fed, 1 - lr * decay, weights, solver.structure, draw=draw))
    return True


def _advance(share: Share, step: Step) -> None:
    """The second pass of a share that is not empty; autograd is told of it."""
    if share.part.params:
        share.passes.advance(share.work, step)
        if not torch.compiler.is_compiling():
            moved(share.part.owners)


def _learned_by_kernel(
    solver: Solver, keeper: dict[str, Any], shares: Sequence[Share], found: np.ndarray
) -> bool | None:
    """Whether the one law has been corrected; None if it has no kernel, or not for all shares' passes."""
    learn = shares[0].passes.learn
    if learn is None or not learning.has_kernel(solver, keeper["law"]):
        return None
    if any(share.passes is not shares[0].passes for share in shares):
        return None
    books = _books(keeper)
    rates, rounding = _rates(shares, "law_lr"), _rounding(solver, shares)
    lr = max(_rates(shares, "lr"))
    done = learn(solver, rates, lr, found, books, rounding, LEAST_LARGEST)
    if done is None and _fits(solver, shares, found):
        done = learn(solver, rates, lr, found, books, rounding, math.inf)
    return bool(done)


def _learned(
    solver: Solver,
    keeper: dict[str, Any],
    shares: Sequence[Share],
    scopes: dict[int, list[int]],
    found: np.ndarray,
) -> bool:
    """Whether all laws have been corrected, or none."""
    laws = _stacked(keeper[name].numpy() for name in Learned._fields)
    learned = {}
    for scope, own in scopes.items():
        members = [shares[i] for i in own]
        rates, lr = _rates(members, "law_lr"), max(_rates(members, "lr"))
        its = found if len(own) == len(shares) else found[own]
        one = learning.learn(solver, its, rates, lr, _of(laws, scope), _rounding(solver, members))
        if one is None:
            return False
        learned[scope] = one
    if not _fits(solver, shares, found):
        return False
    for scope, one in learned.items():
        for kept, new in zip(laws, one, strict=True):
            kept[scope] = new
    return True


def on_device(
    solver: Solver,
    there: Constants,
    keeper: dict[str, Any],
    shares: Sequence[Share],
    found: Tensor,
    taking: Sequence[bool] | Tensor,
    sound: Tensor | None,
) -> Tensor:
    """The same, decided where the parameters are, 0-d bool; what rules must not store is skipped too."""
    if learn := _kernel(solver, keeper["law"], shares, sound, taking):
        ok, steps = learn(solver, there, [share.group for share in shares], found, _rounding(solver, shares))
        for share, step in zip(shares, steps, strict=True):
            _advance(share, step)
        return ok
    laws = _stacked(keeper[name] for name in Learned._fields)
    ok = torch.isfinite(found).all() & _fits_on_device(there, shares, found)
    if sound is not None:
        ok = ok & sound
    finite, learned = torch.where(ok, found, torch.zeros_like(found)), {}
    # What other processes say of their gradients is on the device, too.
    said = taking if isinstance(taking, Tensor) else None
    scopes = _scopes(shares, taking if said is None else [True] * len(shares))
    for scope, own in scopes.items():
        members = [shares[i] for i in own]
        rates, lrs = ([_number(share.group[name]) for share in members] for name in ("law_lr", "lr"))
        lr = learning.largest_of(lrs) if solver.step.growth else 1.0
        its = finite if len(own) == len(shares) else torch.stack([finite[i] for i in own])
        before = _of(laws, scope)
        learned[scope] = learning.learn_on_device(
            solver, there, its, rates, lr, before, _rounding(solver, members)
        )
    ok = ok & (torch.stack([one.law for one in learned.values()]).abs() < LOST).all()
    keeper["skipped"].add_(~ok if said is None else ~ok & said.any())
    if said is not None:
        ok = ok & said.any()
    for scope, own in scopes.items():
        here = ok if said is None else ok & torch.stack([said[i] for i in own]).any()
        for kept, new in zip(_of(laws, scope), learned[scope], strict=True):
            kept.copy_(torch.where(here, new, kept))
    draw = None
    if keeper["seed"] is not None:
        draw = keeper["seed"], keeper["draws"].clone()
        keeper["draws"].add_(ok)
    B = torch.where(ok, there.B, torch.eye(len(solver.a), dtype=torch.float64, device=ok.device))
    structure = when_skipped(solver.structure)
    for share in shares:
        lr, decay = _number(share.group["lr"]), _number(share.group["weight_decay"])
        keep, fed = 1 - lr * decay * ok.double(), learning.fed(solver, share.group)
        weights = torch.where(ok, -lr * laws.law[share.scope], 0.0)
        _advance(share, Step(B, fed, keep, weights, structure, ok, draw))
    return ok


def _rates(shares: Sequence[Share], name: str) -> list[float]:
    return [float(share.group[name]) for share in shares]


def _number(rate: float | Tensor) -> float | Tensor:
    """A tensor of one entry as 0-d."""
    return rate.reshape(()) if isinstance(rate, Tensor) else rate


def _kernel(
    solver: Solver,
    law: Tensor,
    shares: Sequence[Share],
    sound: Tensor | None,
    taking: Sequence[bool] | Tensor,
) -> Callable[..., tuple[Tensor, list[Step]]] | None:
    """One kernel that does the rest of `on_device`, if there is one for this step."""
    if not law.is_cuda or torch.compiler.is_compiling() or not selection.has_triton():
        return None
    is_alone = sound is None and not isinstance(taking, Tensor) and all(s.room is None for s in shares)
    if not is_alone or not learning.has_kernel(solver, law) or any(map(_is_half, shares)):
        return None
    from rllc.torch import fused_law_cuda  # triton is an optional dependency

    return fused_law_cuda.learn if len(shares) <= fused_law_cuda.MOST_SHARES else None


def _is_half(share: Share) -> bool:
    return torch.float16 in {t.dtype for unit in share.part.memory for t in unit}


def _books(keeper: dict[str, Any]) -> Learned:
    """As arrays of NumPy, which share their memory."""
    return Learned(*[keeper[name].numpy() for name in Learned._fields])


def _stacked(books: Iterable[Any]) -> Learned:
    """All laws, or the one there is, as views (scopes, ...)."""
    law, faded, last, progress = books
    k = law.shape[-1]
    progress = progress.reshape(-1, PROGRESS)
    return Learned(law.reshape(-1, k), faded.reshape(-1, k, k), last.reshape(-1), progress)


def _of(laws: Learned, scope: int) -> Learned:
    return Learned(*(x[scope] for x in laws))


def _scopes(shares: Sequence[Share], taking: Sequence[bool] | Tensor) -> dict[int, list[int]]:
    """The scopes in which somebody takes part, with the places of their shares."""
    found: dict[int, list[int]] = {}
    for i, share in enumerate(shares):
        found.setdefault(share.scope, []).append(i)
    return {scope: own for scope, own in found.items() if any(bool(taking[i]) for i in own)}


def _rounding(solver: Solver, shares: Sequence[Share]) -> float:
    """Of the dtype that units are computed in: the coarsest, at least float32."""
    double = torch.float64, torch.complex128
    single = any(p.dtype not in double for share in shares for p in share.group["params"])
    eps = torch.finfo(torch.float32 if single else torch.float64).eps
    return _law.rounding_of(len(solver.rows[0]) - 1, eps)


def _fits(solver: Solver, shares: Sequence[Share], found: np.ndarray) -> bool:
    """Whether no entry of M B + g aᵀ can overflow: by the norms; if they do not settle it, by the entries."""
    of_sums = solver.host.growth_of_sums
    if math.sqrt(found.max()) * of_sums.sum() < LEAST_LARGEST:
        return True
    bounds = np.sqrt(np.diagonal(found, axis1=1, axis2=2)) @ of_sums
    growth = torch.from_numpy(solver.host.growth)
    return all(map(functools.partial(_has_room, growth), shares, bounds.tolist()))


def _has_room(growth: Tensor, share: Share, bound: float) -> bool:
    if share.room is not None:
        return bound < share.room
    return bound < LEAST_LARGEST or bool(learning.overflow(share.part, growth) < 1)


def _fits_on_device(there: Constants, shares: Sequence[Share], found: Tensor) -> Tensor:
    """The same by the norms alone where the dtype has the range of float32; by entries for float16."""
    bounds = torch.diagonal(found, dim1=1, dim2=2).sqrt() @ there.growth_of_sums
    fits = (bounds < torch.finfo(torch.float32).max).all()
    for share, bound in zip(shares, bounds, strict=True):
        if share.room is not None:
            fits = fits & (bound < share.room)
        elif _is_half(share):
            fits = fits & (learning.overflow(share.part, there.growth) < 1)
    return fits
