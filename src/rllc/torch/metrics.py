"""The metric P⁻¹ in which the steps of torch's optimizers are directions of steepest descent.

A preconditioned optimizer steps along u = P m, with m a combination of gradients, and P is the diagonal that
its state documents. `KNOWN[type(optimizer)]` is a function (state, group, unit) -> P⁻¹ unit, after the step
that the unit is of; scaled so that u = P m exactly, bias corrections included.

Not here, because no P makes their step P m: Muon (a whole matrix is orthogonalised), Adadelta (its numerator
is gone after the step), Adafactor, Rprop, ASGD; and whatever is derived from these classes, since it may have
changed the formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

__all__ = ["KNOWN", "Metric", "checked_dual"]

Metric = Callable[[dict[str, Any], dict[str, Any], Tensor], Tensor]


def checked_dual(found: Any, unit: Tensor, what: Callable[[], str]) -> Tensor:
    """P⁻¹ unit as a user's metric has returned it; `what`, asked only then, says whose it is in the error.

    Raises:
        ValueError: it is no tensor of the unit's shape, which broadcasting would hide.
    """
    if not isinstance(found, Tensor) or found.shape != unit.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else repr(found)
        raise ValueError(f"{what()} of the unit's shape {tuple(unit.shape)}, got {shape}")
    return found


def _euclidean(state: dict[str, Any], group: dict[str, Any], unit: Tensor) -> Tensor:
    return unit


def _adam(state: dict[str, Any], group: dict[str, Any], unit: Tensor) -> Tensor:
    """√v̂ + eps; with amsgrad the largest v so far."""
    v = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    unbiased = math.sqrt(1 - float(group["betas"][1]) ** float(state["step"]))
    return (v.sqrt() / unbiased + group["eps"]) * unit


def _radam(state: dict[str, Any], group: dict[str, Any], unit: Tensor) -> Tensor:
    """(√v̂ + eps/√(1-β₂ᵗ)) / r, and 1 in the first steps, which are plain momentum (arXiv 1908.03265)."""
    beta, t = float(group["betas"][1]), float(state["step"])
    limit = 2 / (1 - beta) - 1
    length = limit - 2 * t * beta**t / (1 - beta**t)
    if length <= 5:
        return unit
    r = math.sqrt((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length))
    return (state["exp_avg_sq"].sqrt() + group["eps"]) / (r * math.sqrt(1 - beta**t)) * unit


def _rmsprop(state: dict[str, Any], group: dict[str, Any], unit: Tensor) -> Tensor:
    v = state["square_avg"]
    if group["centered"]:
        v = (v - state["grad_avg"] ** 2).clamp(min=0)  # rounding may make it negative
    return (v.sqrt() + group["eps"]) * unit


def _adagrad(state: dict[str, Any], group: dict[str, Any], unit: Tensor) -> Tensor:
    faded = 1 + (float(state["step"]) - 1) * group["lr_decay"]
    return (state["sum"].sqrt() + group["eps"]) * faded * unit


def _adamax(state: dict[str, Any], group: dict[str, Any], unit: Tensor) -> Tensor:
    return state["exp_inf"] * unit


KNOWN: dict[type, Metric] = {
    SGD: _euclidean,
    Adam: _adam,
    AdamW: _adam,
    NAdam: _adam,
    RAdam: _radam,
    RMSprop: _rmsprop,
    Adagrad: _adagrad,
    Adamax: _adamax,
}
