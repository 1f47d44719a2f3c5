"""RLLCAdamW's step on a GPU by Triton kernels: each pass reads everything once, and nothing is read back.

The books are then tensors on the device, under the names they have on the host.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rllc.law import GramianRidge
from rllc.notation import parse
from rllc.torch import fused_cuda, fused_law_cuda, kernels_adamw_cuda, kernels_cuda, learning
from rllc.torch.fused_cuda import DTYPES
from rllc.torch.learning import Constants, Solver
from rllc.torch.one_unit import COARSEST, Rule
from rllc.torch.parts import Part, one_layout
from rllc.torch.passes import Step
from rllc.torch.plans import Kind, Plan, held, places, places_of, planned

__all__ = ["MOST_SHARES", "Work", "advance", "learn", "prepare", "sums"]

MOST_SHARES = fused_law_cuda.MOST_SHARES
DTYPES_TAKEN = (torch.float32, torch.bfloat16)
MOST = math.sqrt(torch.finfo(torch.float32).max)  # of |g|, whose square is to be stored


class Work(NamedTuple):
    """A part as the kernels take it."""

    kind: Kind
    part: Part  # its memory is m, v and, if there is one, the average
    steps: list[Tensor]  # each parameter's count of steps
    table: Tensor
    chunks: Tensor


def prepare(part: Part, steps: list[Tensor], plan: Plan | None) -> tuple[Work | None, Plan | None]:
    """The part as the kernels take it, None if they do not; and the plan for the next step."""
    plan = held(plan, part)
    kind = _kind(part) if plan is None else plan.kind
    if kind is None or any(t.dtype != torch.float32 or t.device != part.params[0].device for t in steps):
        return None, None
    m, v, *average, params = places_of(part) if plan is None else plan.places
    rows = [m, v, places(part.gradient), params, *average]
    work = Work(kind, part, steps, *fused_cuda.tables(part.params, rows, [places(steps)]))
    return work, plan or planned(part, [work])


def sums(work: Work, group: dict[str, Any]) -> Tensor:
    """(2, 2) float64: uᵀm̂, uᵀg twice, and gᵀg."""
    out = fused_cuda.partials(work.chunks, 2)
    kernels_adamw_cuda.sum_chunks[(len(out),)](
        work.table,
        work.chunks,
        out,
        len(work.part.params),
        len(work.chunks),
        **_constants(work, group),
        WIDTH=kernels_cuda.WIDTH,
        num_warps=fused_cuda.GRAM_WARPS,
    )
    return fused_cuda.summed(out, np.eye(2))


def learn(
    rule: Rule, keeper: dict[str, Any], groups: Sequence[dict[str, Any]], found: Tensor
) -> tuple[Tensor, list[Step]]:
    """Law and books in place; whether it is a step, 0-d bool on the device, and the numbers of each group.

    Args:
        found: (groups, 2, 2), of each the `sums`.
    """
    _settle(keeper, found.device)
    books = {name: keeper[name] for name in ("law", "progress", "skipped")}
    # One unit has no guard, and nothing that is rounded.
    unused: dict[str, Any] = {"draws": keeper["skipped"], "seed": None}
    unused["faded"] = torch.empty(1, 1, dtype=torch.float64, device=found.device)
    shared = books | unused | {"last": keeper["last_size"], "law_lr": keeper["law_lr"]}
    solver, there = _solver(rule, found.device)
    return fused_law_cuda.learn(
        solver, there, [group | shared for group in groups], found, COARSEST, MOST, moving=True
    )


def advance(work: Work, group: dict[str, Any], step: Step, weight: Tensor | None) -> None:
    """m, v, θ, each count of steps and, with its weight of θ, the average; nothing where it is no step."""
    assert step.ok is not None and step.row is not None
    kernels_adamw_cuda.advance_chunks[(len(work.chunks),)](
        work.table,
        work.chunks,
        step.row,
        step.ok,
        step.row if weight is None else weight,
        len(work.part.params),
        b1=group["betas"][0],
        b2=group["betas"][1],
        **_constants(work, group),
        averaged=weight is not None,
        num_warps=fused_cuda.ADVANCE_WARPS,
    )
    # A list, because of a single tensor torch reads the number on the host.
    torch._foreach_add_(work.steps, [step.ok.float()] * len(work.steps))


def _kind(part: Part) -> Kind | None:
    m, v, *average = part.memory
    kinds = {(m.dtype, g.dtype, p.dtype) for m, g, p in zip(m, part.gradient, part.params, strict=True)}
    kind = kinds.pop()
    rows = zip(part.params, *part.memory, part.gradient, strict=True)
    is_taken = (
        not kinds
        and kind[0] == kind[2] in DTYPES_TAKEN
        and kind[1] in DTYPES
        and {t.dtype for t in v} == {kind[0]}
        and all(t.dtype == torch.float32 for unit in average for t in unit)
        and all(p.numel() and p.device == part.params[0].device for p in part.params)
        and all(map(one_layout, rows))
    )
    return kind if is_taken else None


def _constants(work: Work, group: dict[str, Any]) -> dict[str, Any]:
    """Of both passes."""
    b1, b2 = group["betas"]
    return {
        "sign": -1.0 if group["maximize"] else 1.0,
        "log1": _log(b1),
        "log2": _log(b2),
        "eps": group["eps"],
        "dtype": DTYPES[work.kind[0]],
        "gradient_dtype": DTYPES[work.kind[1]],
        "BLOCK": kernels_cuda.BLOCK,
    }


def _log(beta: float) -> float:
    return math.log(beta) if beta else -1e30  # infinity times the count 0 would be NaN


@functools.lru_cache(maxsize=64)
def _solver(rule: Rule, device: torch.device) -> tuple[Solver, Constants]:
    """x = uᵀg / ((1 + eps) uᵀm̂) as the law of a memory of one unit; |g| bounded as in M(0), which keeps g."""
    found = learning.solver(parse("M(0)"), GramianRidge(rule.eps), False, rule.step)
    return found, learning.on(device, found.host)


def _settle(keeper: dict[str, Any], device: torch.device) -> None:
    """The books on the device."""
    if not isinstance(keeper["progress"], Tensor):
        keeper["law"] = keeper["law"].to(device)
        for name in ("progress", "last_size"):
            keeper[name] = torch.tensor(keeper[name], dtype=torch.float64, device=device)
        keeper["skipped"] = torch.tensor(keeper["skipped"], device=device)
