"""What an optimizer keeps beside its memory units, and how it is taken over from a saved state.

It lives in the first parameter group, so that every way of saving an optimizer carries it.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rllc.law import LOST, PROGRESS
from rllc.torch import float8
from rllc.torch.learning import Learned
from rllc.torch.parts import numbered, real

__all__ = [
    "add_scopes",
    "books",
    "check_has",
    "checked",
    "finite",
    "fresh",
    "hidden_names",
    "numpy",
    "progress",
    "restore",
]


def fresh(law: np.ndarray, scopes: tuple[int, ...]) -> Learned:
    """The law L_0 (k,) before its first correction: one for scopes (), n of them stacked for scopes (n,)."""
    start = Learned(law, np.eye(law.size), np.zeros(()), np.zeros(PROGRESS))
    return Learned(*(np.broadcast_to(x, scopes + x.shape).copy() for x in start))


def books(learned: Learned, seed: int | None, *, skipped: int = 0, draws: int = 0) -> dict[str, Any]:
    """What the law, or each law, has come to in float64; int64 counts of steps skipped and of draws.

    A draw is a stochastic rounding of all units; its seed is None for units that are rounded to nearest.
    """
    kept = {name: torch.tensor(x, dtype=torch.float64, device="cpu") for name, x in learned._asdict().items()}
    counts = {name: torch.tensor(n, device="cpu") for name, n in (("skipped", skipped), ("draws", draws))}
    return kept | counts | {"seed": seed}


def add_scopes(keeper: dict[str, Any], law: np.ndarray, count: int) -> None:
    """Fresh laws after those in the books, until there are `count`."""
    more = fresh(law, (count - len(keeper["law"]),))
    for name, x in more._asdict().items():
        keeper[name] = torch.cat([keeper[name], torch.from_numpy(x).to(keeper[name])])


def checked(
    group: dict[str, Any], ours: dict[str, Any], scopes: tuple[int, ...], k: int, seed: int | None
) -> dict[str, Any]:
    """The books in a saved first group; `seed` is this optimizer's, which a saved one replaces.

    Args:
        ours: of this optimizer, "memory" and "scope".

    Raises:
        ValueError: the state is of another memory, scope or optimizer, or its law is damaged.
    """
    # Older states have one law, and no draws, last gradient or progress, or one without a mean of |g|.
    for name, theirs in (("memory", group.get("memory")), ("scope", group.get("scope", "all"))):
        if theirs != ours[name]:
            raise ValueError(
                f"the saved state has {name} {theirs!r}, this optimizer"
                f" {ours[name]!r}; build the optimizer with the {name} it was saved with"
            )
    start = fresh(np.ones(k), scopes)
    said = start._asdict() | group
    said["progress"] = progress(said["progress"])
    most = dict.fromkeys(Learned._fields, np.inf) | {"law": LOST}
    shapes = {name: like.shape for name, like in start._asdict().items()}
    learned = Learned(*(finite(name, said[name], shapes[name], most[name]) for name in Learned._fields))
    if seed is not None and group.get("seed") is not None:
        seed = int(group["seed"])
    return books(learned, seed, skipped=int(group.get("skipped", 0)), draws=int(group.get("draws", 0)))


def check_has(group: dict[str, Any], *names: str) -> None:
    """Refuse a saved group that lacks one of these, with ValueError."""
    if lacking := [name for name in names if name not in group]:
        raise ValueError(f"the saved state is damaged: it has no {lacking[0]!r}")


def finite(name: str, value: Any, shape: tuple[int, ...], most: float = np.inf) -> np.ndarray:
    """What was saved under this name, numbers below `most` in size of this shape, as float64.

    Raises:
        ValueError: it is something else.
    """
    try:
        found = np.asarray(numpy(value), dtype=np.float64)
    except (TypeError, ValueError):  # texts, or lists of other lengths
        found = np.array(np.nan)
    if found.shape != shape or not (abs(found) < most).all():
        below = f", below {most:g}" if most < np.inf else ""
        raise ValueError(
            f"the saved state is damaged: {name!r} must be finite numbers of shape {shape}{below},"
            f" got {value}"
        )
    return found


def progress(saved: ArrayLike | Tensor) -> np.ndarray:
    """(..., PROGRESS) as saved; the last one or two numbers, which older states lack, begin at zero."""
    found = numpy(saved)
    lacking = PROGRESS - found.shape[-1] if found.ndim else 0
    if lacking not in (1, 2):
        return found
    return np.concatenate([found, np.zeros((*found.shape[:-1], lacking))], -1)


def hidden_names(state: dict[str, Any]) -> list[str]:
    """ "h1", "h2", ...: those that the state of a parameter has."""
    return list(itertools.takewhile(state.__contains__, (f"h{j}" for j in itertools.count(1))))


def restore(
    optimizer: torch.optim.Optimizer, saved: dict[str, Any], units: list[str], dtype: torch.dtype | None
) -> None:
    """Units of a dtype of their own and hidden arrays as saved: torch has cast them to their parameter's."""
    for number, p in numbered(saved, optimizer.param_groups):
        kept = saved["state"].get(number, {})
        if not kept:
            continue
        state, hidden = optimizer.state[p], hidden_names(kept)
        if float8.DTYPE in (dtype, kept[units[0]].dtype):
            for name in hidden:  # scales, of which other units have none
                del state[name]
            state.update(float8.converted(kept, p, units, dtype))
            continue
        state.update({name: kept[name].to(p.device) for name in hidden})
        if dtype is not None:
            state.update({name: real(kept[name]).to(device=p.device, dtype=dtype) for name in units})


def numpy(x: ArrayLike | Tensor) -> np.ndarray:
    """A tensor of any device and dtype, or what NumPy takes, as a NumPy array."""
    return x.detach().cpu().double().numpy() if isinstance(x, Tensor) else np.asarray(x)
