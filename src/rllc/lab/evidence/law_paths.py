"""What the path of a law means: where it passes known optimizers, and how it reads in other units.

    crossings([(0, (1, 1)), (100, (0, 1))], beta=0.9)    [("NAG", 10.0)]: of M(β) + M(0), appendix A.2
    rewriting(p, q)                                      T with M_q T L closest to M_p L for every law L
    missed(p, q, L)                                      the part of the step M_p L that M_q T L lacks

A step is the sum of past gradients weighted by the abstract rule of a law; closest is meant of those weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rllc.propagator import Propagator

__all__ = ["Crossing", "crossings", "lines", "missed", "rewriting"]

Array = NDArray[np.float64]


class Crossing(NamedTuple):
    """The line crossed ("momentum", "NAG" or "SGD") and the step at which, interpolated."""

    line: str
    step: float


def lines(beta: float) -> dict[str, tuple[float, float]]:
    """The law of M(β) + M(0), up to a positive factor, that is each optimizer (arXiv 2402.15262, A.2)."""
    return {"momentum": (1.0, 0.0), "NAG": (beta, 1.0), "SGD": (0.0, 1.0)}


def crossings(path: Sequence[tuple[float, Sequence[float]]], beta: float) -> list[Crossing]:
    """Where a path of (step, law) of M(β) + M(0) passes from one side of a line to the other, in time order.

    Between two points the path is straight. To touch a line is not to cross it, and on the far side of the
    origin, where the learning rate would be negative, there is no line.
    """
    found = [
        Crossing(name, step)
        for name, direction in lines(beta).items()
        for step, law in _changes_of_side(path, np.array(direction))
        if law @ direction > 0
    ]
    return sorted(found, key=lambda crossing: crossing.step)


def _changes_of_side(
    path: Sequence[tuple[float, Sequence[float]]], direction: Array
) -> list[tuple[float, Array]]:
    """(step, law) where the side of the line through the origin changes; points on it have no side."""
    steps, laws = np.array([step for step, _ in path]), np.array([law for _, law in path])
    sides = laws[:, 0] * direction[1] - laws[:, 1] * direction[0]
    found = []
    for i, j in itertools.pairwise(np.flatnonzero(sides)):
        if sides[i] * sides[j] < 0:
            part = sides[i] / (sides[i] - sides[i + 1])  # 1 if the next point lies on the line
            at = (1 - part) * np.array([steps[i], *laws[i]]) + part * np.array([steps[i + 1], *laws[i + 1]])
            found.append((float(at[0]), at[1:]))
    return found


def rewriting(p: Propagator, q: Propagator) -> Array:
    """T (q.k, p.k): the law T L of q's units closest to the law L of p's.

    Closest in the abstract rules, by least squares with the weight of white noise: of all laws X the mean of
    |M_p L - M_q X|² is least at X = Γ_qq⁻¹ Γ_qp L, Γ the Gramian of all units together.
    """
    gramian = (p | q).gramian()
    return np.asarray(np.linalg.solve(gramian[p.k :, p.k :], gramian[p.k :, : p.k]), dtype=np.float64)


def missed(p: Propagator, q: Propagator, L: ArrayLike) -> float:
    """|M_p L - M_q T L| / |M_p L|, root mean squares under white noise: 0 if q can take the same step."""
    L = np.asarray(L, dtype=np.float64)
    gramian = (p | q).gramian()
    apart = np.concatenate([L, -rewriting(p, q) @ L])
    return float(np.sqrt(max(0.0, apart @ gramian @ apart) / (L @ gramian[: p.k, : p.k] @ L)))
