"""Small smooth losses of a vector, each with a start: float64 where jax.enable_x64 is on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["PROBLEMS", "Problem", "logistic", "tanh_net", "valley"]

Params = Any  # a pytree of floating-point arrays


class Problem(NamedTuple):
    """What is minimised, and from where."""

    loss: Callable[[Params], jax.Array]
    start: Params


def tanh_net() -> Problem:
    """2 inputs, 3 hidden tanh units, 13 parameters, squared error."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 2))
    y = np.sin(2 * X[:, 0]) + X[:, 1] ** 2 / 2

    def loss(theta: jax.Array) -> jax.Array:
        W, b, v, c = theta[:6].reshape(2, 3), theta[6:9], theta[9:12], theta[12]
        return jnp.mean((jnp.tanh(X @ W + b) @ v + c - y) ** 2) / 2

    return Problem(loss, jnp.asarray(0.7 * rng.normal(size=13)))


def valley() -> Problem:
    """Rosenbrock's, with a gentler wall, in four dimensions."""

    def loss(theta: jax.Array) -> jax.Array:
        x, y = theta[::2], theta[1::2]
        return jnp.sum((1 - x) ** 2 / 2 + 2 * (y - x**2) ** 2)

    return Problem(loss, jnp.asarray([-0.5, 0.8, 0.3, -0.4]))


def logistic() -> Problem:
    """Five weights, 40 examples, a small ridge."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(40, 5))
    y = np.where(X @ rng.normal(size=5) + 0.5 * rng.normal(size=40) > 0, 1.0, -1.0)

    def loss(theta: jax.Array) -> jax.Array:
        return jnp.mean(jnp.logaddexp(0.0, -y * (X @ theta))) + 0.005 * theta @ theta

    return Problem(loss, jnp.asarray(rng.normal(size=5)))


PROBLEMS: dict[str, Callable[[], Problem]] = {"tanh-net": tanh_net, "valley": valley, "logistic": logistic}
