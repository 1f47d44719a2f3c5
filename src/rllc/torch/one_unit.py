"""Memory of one unit: its law, from three sums over all parameters to the next law, and its books.

The sums are (3,) float64: uᵀP⁻¹u, uᵀg and gᵀg, with u the unit as it was before this gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rllc import law as _law
from rllc.law import LOST, LawStep
from rllc.torch import early, saved, selection, shards
from rllc.torch.averaging import Averaging
from rllc.torch.parts import params_of
from rllc.torch.shards import Spread

__all__ = [
    "Learned",
    "OneUnit",
    "Rule",
    "books",
    "check_ready",
    "everywhere",
    "home",
    "learn",
    "ridge",
    "taken",
]

Array = NDArray[np.float64]

COARSEST = _law.rounding_of(1, torch.finfo(torch.float32).eps)
# What LawStep needs of an array namespace, for one number: NumPy takes longer than a small network's step.
SCALARS: Any = SimpleNamespace(
    sqrt=math.sqrt, sum=lambda x: x, where=lambda c, a, b: a if c else b, stack=tuple
)


class Rule(NamedTuple):
    """How the law is corrected: `rllc.law` for one unit, in numbers.

    x = uᵀg / ((1 + eps) uᵀP⁻¹u), which is DiagonalRidge(eps); times |u| / |g'|, g' the last gradient, if the
    unit has no metric and is `measured` by it (`rllc.memory.yardsticks`).
    """

    eps: float
    step: LawStep
    measured: bool = False


class Learned(NamedTuple):
    """What a law comes to; under these names it is in the books."""

    law: float
    progress: tuple[float, ...]  # (5,) of the law's step, as `rllc.law.LawStep.taken` keeps it
    last_size: float  # of the last gradient


class OneUnit(Averaging):
    """An optimizer of one unit and one law."""

    _memory: str  # whose books these are
    _units: Sequence[str]  # what of a parameter's state is placed as the parameter is

    def _keeper(self) -> dict[str, Any]:
        keeper = super()._keeper()
        if keeper["law"].numel() != 1:
            raise RuntimeError(
                f"the law must stay of shape (1,), got {tuple(keeper['law'].shape)}; fill_ sets its entry"
            )
        return keeper

    @property
    def law(self) -> Tensor:
        """L, (1,) float64 on the CPU: a copy."""
        return self._keeper()["law"].cpu().clone()

    @property
    def skipped(self) -> int:
        """How many steps were skipped because a gradient was not finite."""
        return int(self.param_groups[0]["skipped"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure`, which recomputes the loss and its gradients, returned.

        Sums are read on the host, so that under torch.compile this is a break between two graphs.
        """
        if torch.compiler.is_compiling():
            return torch.compiler.disable(self._step)(closure)
        return self._step(closure)

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        raise NotImplementedError

    def _checked(self, state: dict[str, Any]) -> dict[str, Any]:
        found = _checked(state["param_groups"][0], self._memory)
        shards.check_whole(state, params_of(self.param_groups), self._units)
        return found


# --- Books: in the first parameter group, so that every way of saving an optimizer carries them -----------


def books(memory: str, law: ArrayLike | Tensor, law_lr: float | Tensor) -> dict[str, Any]:
    """A law (1,) float64, its rate and progress, and a count of steps skipped; `memory` says whose they are.

    Raises:
        ValueError: the law is not one finite number, or the rate is negative or not finite.
    """
    selection.check_rate("law_lr", law_lr)
    first = _law.initial_law(np.atleast_1d(saved.numpy(law)), 1)
    return {
        "memory": memory,
        "law": torch.tensor(first, dtype=torch.float64, device="cpu"),
        "law_lr": law_lr,
        "progress": (0.0,) * _law.PROGRESS,
        "last_size": 0.0,
        "skipped": 0,
    }


def home(keeper: dict[str, Any]) -> None:
    """The books on the host, if a step was made on a GPU with nothing read back."""
    if not isinstance(keeper["progress"], Tensor):
        return
    keeper |= {"law": keeper["law"].cpu(), "last_size": float(keeper["last_size"])}
    keeper |= {"progress": tuple(keeper["progress"].tolist()), "skipped": int(keeper["skipped"])}
    if "averaged" in keeper:
        keeper["averaged"] = int(keeper["averaged"])


def _checked(group: dict[str, Any], memory: str) -> dict[str, Any]:
    """The books in a saved first group.

    Raises:
        ValueError: they are another optimizer's, or damaged.
    """
    if group.get("memory") != memory:
        raise ValueError(
            f"the saved state is of {group.get('memory') or 'an optimizer without a law'}, this optimizer is"
            f" {memory}; build the optimizer it was saved with"
        )
    saved.check_has(group, "law", "law_lr", "progress", "last_size", "skipped")
    found = books(memory, group["law"], group["law_lr"])
    progress = saved.finite("progress", saved.progress(group["progress"]), (_law.PROGRESS,))
    found |= {
        "progress": tuple(progress.tolist()),
        "last_size": saved.finite("last_size", group["last_size"], ()).item(),
        "skipped": int(saved.finite("skipped", group["skipped"], ())),
    }
    return found


def check_ready(gradient: Iterable[Tensor]) -> None:
    """Refuse a step that cannot be taken.

    Raises:
        RuntimeError: within the backward pass, or with a sparse gradient.
    """
    early.check_outside()
    if {g.layout for g in gradient} - {torch.strided}:
        raise RuntimeError("RLLC does not take sparse gradients; use sparse=False in the embedding")


# --- The law ----------------------------------------------------------------------------------------------


def learn(
    rule: Rule, keeper: dict[str, Any], sums: Array, groups: Sequence[dict[str, Any]]
) -> Learned | None:
    """The law after this gradient, not yet written down; None if a sum is not finite, or it is LOST."""
    W, v, gg = sums.tolist()
    if not math.isfinite(W + v + gg):
        return None
    x = v / ((1 + ridge(rule.eps, groups)) * W) if W > 0 else 0.0
    if rule.measured:
        last = keeper["last_size"]
        x = x * math.sqrt(max(W, 0.0)) / last if last else 0.0
    law: Any = float(keeper["law"])
    size = math.sqrt(gg)
    lr = max((float(group.get("lr", 1.0)) for group in groups), default=1.0) if rule.step.growth else 1.0
    law, progress = rule.step.taken(SCALARS, law, float(keeper["law_lr"]), x, size, keeper["progress"], lr)
    return Learned(law, progress, size) if abs(law) < LOST else None


def taken(keeper: dict[str, Any], learned: Learned) -> None:
    """Write down a step with this law."""
    keeper["law"].fill_(learned.law)
    keeper |= {"progress": learned.progress, "last_size": learned.last_size}


def ridge(eps: float, groups: Iterable[dict[str, Any]]) -> float:
    """eps, or the rounding of the sums if that is more."""
    if eps >= COARSEST:
        return eps
    double = all(p.dtype in (torch.float64, torch.complex128) for p in params_of(groups))
    return max(eps, _law.rounding_of(1, torch.finfo(torch.float64).eps) if double else COARSEST)


# --- Parameters in shards ---------------------------------------------------------------------------------


def everywhere(spread: Spread | None, sums: Array, taking: bool) -> tuple[Array, bool]:
    """The sums of all processes, each over the number of its copies, and whether any has a gradient."""
    if spread is None:
        return sums, taking
    total, anyone = shards.total(spread, torch.from_numpy(sums), torch.tensor([taking], device="cpu"))
    return total.numpy(), bool(anyone)
