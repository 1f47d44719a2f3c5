"""The engine's run in PyTorch, once more through rllc.optax in JAX: same weights, same batches, same numbers.

The tolerances are measured, and about five times what was found. In float32, 200 steps differ by 5e-7 in the
loss (two roundings of its first value), 6e-7 in the law and 6e-7 in the parameters; in float64 by 1e-15.
PyTorch differs from itself by half as much when every initial weight is moved by one rounding: tried 15
times. At other seeds and rates float32 differs by up to 1e-3, in PyTorch alone too, where rounding moves the
input of a ReLU across zero and the run goes another way; float64 does not, which is why it is here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from made import DIGITS, TWO_UNITS, cell

from rllc.lab import training
from rllc.lab.tasks import tensors
from rllc.optax import rllc

SETTING = dataclasses.replace(TWO_UNITS, lr=0.03)
STEPS = 200
TOLERANCE = {torch.float32: 3e-6, torch.float64: 5e-15}


class Curve(NamedTuple):
    """Loss before each step (STEPS,), law after it (STEPS, k), parameters at the end (n,)."""

    loss: np.ndarray
    law: np.ndarray
    parameters: np.ndarray


def batches(dtype):
    """The engine's own, in that precision."""
    for batch in training._batches(cell(SETTING), tensors(DIGITS, "cpu").train, range(STEPS)):
        yield batch._replace(images=batch.images.to(dtype))


def torch_run(setting, dtype):
    """The engine's own steps: a Curve, and the parameters at the start, weights (out, in) and biases."""
    run = training._start(cell(setting), tensors(DIGITS, "cpu"))
    run.net.to(dtype)
    first = [p.detach().numpy().copy() for p in run.net.parameters()]
    losses, laws = [], []
    for batch in batches(dtype):
        losses.append(run.train_on(*batch).item())
        laws.append(run.method.optimizer.law.numpy())
    last = [p.detach().numpy() for p in run.net.parameters()]
    return Curve(np.array(losses), np.array(laws), flat(last)), first


def jax_run(setting, dtype, first):
    """The same from those parameters, every step compiled."""
    tx = rllc(
        setting.memory,
        setting.lr,
        setting.law_lr,
        setting.law,
        inverse=setting.inverse,
        guard=setting.guard,
    )

    @jax.jit
    def step(params, state, images, labels):
        loss, gradient = jax.value_and_grad(cross_entropy)(params, images, labels)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = [jnp.asarray(p) for p in first]
    state, losses, laws = tx.init(params), [], []
    for batch in batches(dtype):
        params, state, loss = step(params, state, *(jnp.asarray(part.numpy()) for part in batch))
        losses.append(loss)
        laws.append(state[0].law)
    return Curve(np.array(losses), np.array(laws), flat(params))


def cross_entropy(params, images, labels):
    *hidden, last = zip(params[::2], params[1::2], strict=True)
    x = images.reshape(len(images), -1)
    for weight, bias in hidden:
        x = jax.nn.relu(x @ weight.T + bias)
    logits = x @ last[0].T + last[1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def flat(params):
    return np.concatenate([np.ravel(p) for p in params])


@pytest.fixture(scope="module", params=TOLERANCE, ids=str)
def twins(request):
    """(dtype, PyTorch's curve, JAX's, the parameters at the start)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torchs, first = torch_run(SETTING, request.param)
    with jax.enable_x64(request.param == torch.float64):
        jaxs = jax_run(SETTING, request.param, first)
    yield request.param, torchs, jaxs, first
    torch.set_num_threads(threads)


@pytest.mark.parametrize("what", Curve._fields)
def test_jax_follows_torch_to_rounding(what, twins):
    dtype, torchs, jaxs, _ = twins
    ours, theirs = getattr(torchs, what), getattr(jaxs, what)
    assert ours.shape == theirs.shape
    assert theirs.dtype == str(dtype).removeprefix("torch.")
    assert np.abs(ours - theirs).max() <= TOLERANCE[dtype]


def test_there_was_something_to_follow(twins):
    _, torchs, _, first = twins
    assert torchs.loss[0] > 2.2 and torchs.loss[-1] < 0.05
    assert np.abs(torchs.law - SETTING.law).max() > 0.05
    assert np.abs(torchs.parameters - flat(first)).max() > 0.05


def test_a_law_rate_one_percent_off_would_be_seen(twins):
    dtype, _, jaxs, _ = twins
    other, _ = torch_run(dataclasses.replace(SETTING, law_lr=1.01 * SETTING.law_lr), dtype)
    assert all(np.abs(a - b).max() > 10 * TOLERANCE[dtype] for a, b in zip(other, jaxs, strict=True))
