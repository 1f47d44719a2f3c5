"""What an optimizer keeps beside its memory units, and how it is taken over from a saved state.

It lives in the first parameter group, so that every way of saving an optimizer carries it.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rllc import law as _law

__all__ = ["books", "checked", "numpy", "restore_units"]


def books(
    law: ArrayLike, faded: ArrayLike, seed: int | None, *, skipped: int = 0, draws: int = 0
) -> dict[str, Any]:
    """law (k,) and faded (k, k) float64; int64 counts of steps skipped and of stochastic roundings.

    The seed is of these roundings; None for units that are rounded to nearest.
    """
    return {
        "law": torch.tensor(law, dtype=torch.float64),
        "faded": torch.tensor(faded, dtype=torch.float64),
        "skipped": torch.tensor(skipped),
        "seed": seed,
        "draws": torch.tensor(draws),
    }


def checked(group: dict[str, Any], memory: str, k: int, seed: int | None) -> dict[str, Any]:
    """The books in a saved first group; `seed` is this optimizer's, which a saved one replaces.

    Raises:
        ValueError: the state is of another memory or another optimizer, or its law is damaged.
    """
    if group.get("memory") != memory:
        raise ValueError(
            f"the saved state has memory {group.get('memory')!r}, this optimizer"
            f" {memory!r}; build the optimizer with the memory it was saved with"
        )
    law, faded = _law.initial_law(numpy(group.get("law", ())), k), numpy(group.get("faded", ()))
    if faded.shape != (k, k) or not np.isfinite(faded).all():
        raise ValueError(f"the saved state is damaged: 'faded' is not a finite ({k}, {k}) matrix")
    if seed is not None and group.get("seed") is not None:
        seed = int(group["seed"])
    # Version 0.1 saved no draws.
    return books(law, faded, seed, skipped=int(group.get("skipped", 0)), draws=int(group.get("draws", 0)))


def restore_units(
    optimizer: torch.optim.Optimizer, state_dict: dict[str, Any], names: list[str], dtype: torch.dtype
) -> None:
    """Units as they were saved: torch has cast them to the dtype of their parameters."""
    numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for number, p in zip(numbers, params, strict=True):
        for name in names if number in state_dict["state"] else ():
            unit = state_dict["state"][number][name]
            optimizer.state[p][name] = unit.to(device=p.device, dtype=dtype)


def numpy(x: ArrayLike | Tensor) -> np.ndarray:
    """A tensor of any device and dtype, or what NumPy takes, as a NumPy array."""
    return x.detach().cpu().double().numpy() if isinstance(x, Tensor) else np.asarray(x)
