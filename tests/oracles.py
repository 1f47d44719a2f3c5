"""Rules of memory written out for `rllc.reference`: what those of every backend are tested against."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rllc import reference


class Oracle(NamedTuple):
    """What `reference.general` asks of a memory."""

    update: reference.Memory
    hidden: Any
    correction: reference.Correction

    def process(self, gradient, theta, law, c1, law_update):
        return reference.general(
            gradient, theta, self.update, self.hidden, law, c1, law_update, self.correction
        )


def linear(p, pinv: reference.RelaxedInverse) -> Oracle:
    return Oracle(lambda M, _, g, theta: (M @ p.B + np.outer(g, p.a), None), None, lambda M, _, g: pinv(M, g))


def adams(state, g):
    """Adam's direction P m̂, its m, v, t, and the diagonal of P⁻¹."""
    m, v, t = state
    m, v, t = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2, t + 1
    size = np.sqrt(v / (1 - 0.999**t)) + 1e-8
    return m / (1 - 0.9**t) / size, (m, v, t), size


def adams_start(n):
    return np.zeros(n), np.zeros(n), 0


def along(u, size, g):
    """x of one unit in the metric of these sizes: uᵀg / (1 + eps) uᵀP⁻¹u."""
    return u @ g / (1.001 * u @ (size * u)) if u.any() else 0.0


def adam(n: int) -> Oracle:
    """One unit, Adam's direction in its own metric."""

    def update(M, hidden, g, theta):
        u, state, size = adams(hidden[0], g)
        return u[:, None], (state, size)

    return Oracle(update, (adams_start(n), np.zeros(n)), lambda M, H, g: np.array([along(M[:, 0], H[1], g)]))


def adamw(n: int) -> Oracle:
    """Beside it θ, whose law is the weight decay and stays."""
    direction, start, correction = adam(n)

    def update(M, hidden, g, theta):
        u, hidden = direction(M, hidden, g, theta)
        return np.column_stack([u, theta]), hidden

    return Oracle(update, start, lambda M, hidden, g: np.append(correction(M, hidden, g), 0.0))


def signs(n: int) -> Oracle:
    """The sign of a momentum; its metric |m| makes x = sign(m)ᵀg / |m|_1."""

    def update(M, m, g, theta):
        m = 0.9 * m + 0.1 * g
        return np.sign(m)[:, None], m

    return Oracle(update, np.zeros(n), lambda M, m, g: np.array([along(M[:, 0], np.abs(m), g)]))


def in_metric(M, size, g, owner):
    """x in the metric of these sizes, as pure numbers measured by the unit whose metric it is."""
    root = np.sqrt(size)  # P^(-1/2)
    x = reference.diagonal_ridge(1e-3)(root[:, None] * M, g / np.where(root > 0, root, 1))
    length = np.linalg.norm(root[:, None] * M, axis=0)
    return x * length / length[owner] if length[owner] else 0 * x


def momentum_and_signs(n: int) -> Oracle:
    """M(0.9), measured by the other, whose metric both share."""

    def update(M, m, g, theta):
        m = 0.9 * m + 0.1 * g
        return np.stack([0.9 * M[:, 0] + g, np.sign(m)], 1), m

    return Oracle(update, np.zeros(n), lambda M, m, g: in_metric(M, np.abs(m), g, 1))


def without_metric(n: int, direction: Callable) -> Oracle:
    """One unit without a metric is measured by the last gradient: x = uᵀg / (1 + eps) |u| |g'|."""

    def correction(M, last, g):
        size = np.linalg.norm(M) * np.linalg.norm(last)
        return M.T @ g / (1.001 * size) if size else np.zeros(1)

    return Oracle(lambda M, last, g, theta: (direction(g)[:, None], g), np.zeros(n), correction)


def of_the_first(law_update: reference.LawUpdate) -> reference.LawUpdate:
    """For the first unit alone; the laws of the others stay."""
    return lambda L, x, g, t: np.append(law_update(L[:1], x[:1], g, t), L[1:])
