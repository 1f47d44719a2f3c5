"""The correction as a term of one's own: heavy ball on mini-batches with memory's effect added or cancelled.

    run(Setting(...), strength, seed)     losses, |∇f|², sharpness and accuracy over training
    experiment(path)                      every setting, strength and seed, as a file of runs

-1 cancels what memory adds to the loss to this order, -2 reverses it, 0 is plain heavy ball, 1 doubles it.
In a direction of curvature λ one step of gain c0 becomes h c0 λ (1 + strength h m1 λ): for a negative
strength it points uphill where h m1 λ > 1/|strength|, and the theory is one of small h m1 λ.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rllc import laws
from rllc.lab.memoryless.images import Examples, Splits, accuracy, examples, initialise, mean_loss
from rllc.lab.memoryless.problems import Params
from rllc.lab.memoryless.records import collect
from rllc.lab.tasks import TASKS, Task
from rllc.memoryless import Linear, explicit_correction, hessian_product

__all__ = ["SEEDS", "SETTINGS", "STRENGTHS", "Setting", "experiment", "run"]

PROBED = 5000  # training images on which loss and |∇f|² are measured
SHARP, POWERS = 500, 15  # images and power iterations for the largest curvature
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """What is trained and how; `second` takes the Hessian product from a batch of its own."""

    lr: float
    beta: float = 0.9
    task: str = "fashion-mlp"
    hidden: tuple[int, ...] = (128, 128, 128)
    batch: int = 128
    steps: int = 3000
    evaluations: int = 15
    second: bool = False


# 0.03 is the rate that validation data choose for momentum SGD on this task, 0.01 the one before it.
SETTINGS = (
    Setting(0.03),
    Setting(0.01),
    Setting(0.001),
    Setting(0.0001),
    Setting(0.003, beta=0.5),
    Setting(0.001, second=True),
)


def experiment(path: Path) -> dict[str, Any]:
    """Every setting at every strength with every seed; runs that the file has are not made again."""
    keys = [
        dataclasses.asdict(setting) | {"hidden": list(setting.hidden), "strength": strength, "seed": seed}
        for setting in SETTINGS
        for seed in SEEDS
        for strength in STRENGTHS
    ]
    return collect(path, keys, _run_of)


def _run_of(key: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(Setting)}
    chosen = {name: value for name, value in key.items() if name in names}
    return run(Setting(**chosen | {"hidden": tuple(key["hidden"])}), key["strength"], key["seed"])


def run(setting: Setting, strength: float, seed: int) -> dict[str, list[float]]:
    """Measured at the start and at each evaluation, in float32: step, train_loss, squared_gradient,
    sharpness (the largest curvature in size, by power iteration), test_loss, test_accuracy.

    The same seed means the same weights and batches for every strength and learning rate.
    """
    data, start, batches = _prepared(setting, seed)
    found = _trainer(setting)(data, start, batches, strength)
    steps = np.linspace(0, setting.steps, setting.evaluations + 1).astype(int).tolist()
    return {"step": steps} | {name: np.asarray(xs, np.float64).tolist() for name, xs in found.items()}


def _prepared(setting: Setting, seed: int) -> tuple[Splits, Params, jax.Array]:
    data = _data(setting.task)
    widths = (data.train.inputs.shape[1], *setting.hidden, 10)
    return data, initialise(widths, seed), jnp.asarray(_batches(len(data.train.labels), setting, seed))


@functools.cache
def _data(name: str) -> Splits:
    task = TASKS[name]
    assert isinstance(task, Task)
    return examples(task)


def _batches(images: int, setting: Setting, seed: int) -> np.ndarray:
    """Numbers of images (evaluations, steps each, 2, batch): a new order in every epoch; the second of each
    two batches is for the Hessian product and drawn from orders of its own."""
    rng = np.random.default_rng(seed)
    count = setting.steps // setting.evaluations * setting.evaluations
    shape = (setting.evaluations, -1, setting.batch)
    both = [_epochs(rng, images, count, setting.batch).reshape(shape) for _ in range(2)]
    return np.stack(both, axis=2).astype(np.int32)


def _epochs(rng: np.random.Generator, images: int, count: int, batch: int) -> np.ndarray:
    """(count, batch)"""
    each = images // batch
    orders = [rng.permutation(images)[: each * batch].reshape(each, batch) for _ in range(-(-count // each))]
    return np.concatenate(orders)[:count]


@functools.cache
def _trainer(setting: Setting) -> Callable[[Splits, Params, jax.Array, float], dict[str, jax.Array]]:
    form = Linear(laws.heavy_ball(1.0, setting.beta))
    sgd = optax.sgd(setting.lr, momentum=setting.beta)

    def train(data: Splits, start: Params, batches: jax.Array, strength: float) -> dict[str, jax.Array]:
        tx = explicit_correction(sgd, form, setting.lr, strength)
        probed = Examples(*(x[:PROBED] for x in data.train))

        def loss(params: Params, rows: jax.Array) -> jax.Array:
            return mean_loss(params, Examples(*(x[rows] for x in data.train)), jax.nn.relu)

        def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
            params, state = carry
            first, other = rows
            g = jax.grad(loss)(params, first)
            product = jax.grad(lambda params: loss(params, other if setting.second else first))
            updates, state = tx.update(g, state, params, grad_fn=product)
            return (optax.apply_updates(params, updates), state), None

        def sharpness(params: Params) -> jax.Array:
            few = Examples(*(x[:SHARP] for x in data.train))
            grad = jax.grad(lambda params: mean_loss(params, few, jax.nn.relu))

            def power(_: int, v: Params) -> Params:
                return optax.tree.scale(1 / optax.tree.norm(v), hessian_product(grad, params, v))

            return optax.tree.norm(jax.lax.fori_loop(0, POWERS, power, grad(params)))

        def measure(params: Params) -> dict[str, jax.Array]:
            value, g = jax.value_and_grad(mean_loss)(params, probed, jax.nn.relu)
            return {
                "train_loss": value,
                "squared_gradient": optax.tree.vdot(g, g),
                "sharpness": sharpness(params),
                "test_loss": mean_loss(params, data.test, jax.nn.relu),
                "test_accuracy": accuracy(params, data.test, jax.nn.relu),
            }

        def interval(carry: Any, rows: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
            carry, _ = jax.lax.scan(step, carry, rows)
            return carry, measure(carry[0])

        _, found = jax.lax.scan(interval, (start, tx.init(start)), batches)
        return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), measure(start), found)

    return jax.jit(train)
