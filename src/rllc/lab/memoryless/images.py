"""Images as vectors, and dense networks on them: the lab's data and splits, for JAX.

examples(TASKS["digits-mlp"])            Splits of Examples: inputs (n, d), labels (n,)
initialise((64, 140, 10), seed)          weights and biases of a dense network
mean_loss(params, examples, jnp.tanh)    cross-entropy in nats
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rllc.lab import tasks
from rllc.lab.memoryless.problems import Params
from rllc.lab.tasks import Task

__all__ = ["Examples", "Splits", "accuracy", "apply", "examples", "initialise", "mean_loss", "size"]

Activation = Callable[[jax.Array], jax.Array]


class Examples(NamedTuple):
    """Normalised images as rows (n, d), float32 or float64, and their labels (n,)."""

    inputs: jax.Array
    labels: jax.Array


class Splits(NamedTuple):
    """The task's training and test images; validation images are not used here."""

    train: Examples
    test: Examples


def examples(task: Task, first: int | None = None) -> Splits:
    """The task's images; float64 where jax.enable_x64 is on. Only the `first` training images, if given."""
    splits = tasks.tensors(task, "cpu")
    return Splits(_rows(splits.train, first), _rows(splits.test, None))


def _rows(part: tasks.Examples, first: int | None) -> Examples:
    images = part.images[:first].flatten(1).numpy().astype(np.float64)
    return Examples(jnp.asarray(images), jnp.asarray(part.labels[:first].numpy()))


def initialise(widths: Sequence[int], seed: int) -> Params:
    """(W, b) of each layer: truncated normal of 1/sqrt(fan in) before truncation at two of them, zeros.

    Drawn in float32, so that a seed means the same weights in float32 and float64.
    """
    keys = jax.random.split(jax.random.key(seed), len(widths) - 1)
    return [_layer(key, *shape) for key, shape in zip(keys, pairwise(widths), strict=True)]


def _layer(key: jax.Array, fan_in: int, fan_out: int) -> tuple[jax.Array, jax.Array]:
    W = jax.random.truncated_normal(key, -2, 2, (fan_in, fan_out), jnp.float32) / np.float32(np.sqrt(fan_in))
    dtype = jnp.zeros(()).dtype
    return W.astype(dtype), jnp.zeros(fan_out, dtype)


def apply(params: Params, inputs: jax.Array, activation: Activation) -> jax.Array:
    """Logits (n, classes) of inputs (n, d)."""
    *hidden, (W, b) = params
    x = inputs
    for V, c in hidden:
        x = activation(x @ V + c)
    return x @ W + b


def mean_loss(params: Params, batch: Examples, activation: Activation) -> jax.Array:
    """Cross-entropy in nats."""
    scores = jax.nn.log_softmax(apply(params, batch.inputs, activation))
    return -jnp.mean(jnp.take_along_axis(scores, batch.labels[:, None], 1))


def accuracy(params: Params, batch: Examples, activation: Activation) -> jax.Array:
    """Share of images whose largest score is their label's, in [0, 1]."""
    return jnp.mean(apply(params, batch.inputs, activation).argmax(1) == batch.labels)


def size(params: Params) -> int:
    """How many numbers the parameters are."""
    return sum(x.size for x in jax.tree.leaves(params))
