"""Images and dense networks for JAX, against the lab's own in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from rllc.lab import tasks
from rllc.lab.memoryless.images import accuracy, apply, examples, initialise, mean_loss, size
from rllc.lab.tasks import TASKS

WIDTHS = (64, 16, 10)


def test_images_are_those_of_the_task():
    task = TASKS["digits-mlp"]
    found, whole = examples(task, 100), tasks.tensors(task, "cpu")
    assert found.train.inputs.shape == (100, 64) and found.test.inputs.shape == (599, 64)
    assert found.train.inputs.dtype == np.float32
    np.testing.assert_array_equal(found.train.inputs, whole.train.images[:100].flatten(1).numpy())
    np.testing.assert_array_equal(found.test.labels, whole.test.labels.numpy())
    with jax.enable_x64(True):
        assert examples(task, 2).train.inputs.dtype == np.float64


def test_weights_are_drawn_as_the_lab_draws_them():
    params = initialise((100, 80), 0)
    assert size(params) == 100 * 80 + 80
    W, b = params[0]
    assert abs(float(W.std()) * 10 - 0.88) < 0.02  # truncated at two standard deviations
    assert float(abs(W).max()) <= 2 / 10 and not np.asarray(b).any()
    with jax.enable_x64(True):
        precise = initialise((100, 80), 0)[0][0]
    assert precise.dtype == np.float64 and np.array_equal(precise, np.asarray(W, np.float64))


def test_loss_and_accuracy_are_those_of_torch():
    found = examples(TASKS["digits-mlp"], 50).train
    params = initialise(WIDTHS, 1)
    layers = [(torch.tensor(np.asarray(W)), torch.tensor(np.asarray(b))) for W, b in params]
    (V, c), (W, b) = layers
    x, y = torch.tensor(np.asarray(found.inputs)), torch.tensor(np.asarray(found.labels)).long()
    logits = torch.tanh(x @ V + c) @ W + b
    np.testing.assert_allclose(apply(params, found.inputs, jnp.tanh), logits.numpy(), atol=1e-5)
    assert abs(float(mean_loss(params, found, jnp.tanh)) - F.cross_entropy(logits, y).item()) < 1e-5
    assert (
        abs(float(accuracy(params, found, jnp.tanh)) - (logits.argmax(1) == y).float().mean().item()) < 1e-6
    )
