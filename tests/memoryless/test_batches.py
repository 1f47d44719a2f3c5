"""Mini-batches by exact enumeration: averages at a fixed point, and that they are not the mean trajectory."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rllc import laws
from rllc.memoryless import Linear, correction
from rllc.memoryless.batches import (
    drift_when_reshuffled,
    effective_batches,
    variance_when_independent,
    variance_within_epoch,
)

LAW = laws.heavy_ball(1.0, 0.6)
INDEPENDENT = [variance_when_independent(LAW, n) for n in range(101)]  # the last bit stands by then


class Batches:
    """m quadratics θ·A_bθ/2 + b_b·θ in d dimensions."""

    def __init__(self, m, d=3, seed=0):
        rng = np.random.default_rng(seed)
        A = rng.normal(size=(m, d, d)) / 2
        self.A = A @ A.transpose(0, 2, 1) + 0.3 * np.eye(d)
        self.b = rng.normal(size=(m, d))

    def gradients(self, theta):
        return np.einsum("bij,j->bi", self.A, theta) + self.b

    def parts(self, theta):
        """H g of the mean loss, and q = E H_b g_b - H g."""
        g = self.gradients(theta)
        Hg = self.A.mean(0) @ g.mean(0)
        return Hg, np.einsum("bij,bj->i", self.A, g) / len(g) - Hg


def mean_correction(batches, orders, theta):
    """The correction of each order of batches from its definition, averaged."""
    mu = LAW.weights(orders.shape[1])
    A, b = jnp.asarray(batches.A), jnp.asarray(batches.b)

    def of_order(order):
        def F(*history):  # newest first; its length tells n
            s = len(history) - 1
            return sum(mu[i] * (A[order[s - i]] @ x + b[order[s - i]]) for i, x in enumerate(history))

        return correction(F, len(order) - 1)(theta)

    return np.asarray(jax.vmap(of_order)(jnp.asarray(orders)).mean(0))


def test_independent_batches_average_to_the_variance():
    batches, theta = Batches(3), np.array([0.4, -1.0, 0.7])
    orders = np.array(list(itertools.product(range(3), repeat=4)))
    Hg, q = batches.parts(theta)
    want = Linear(LAW).coefficients(3).product[3] * Hg + variance_when_independent(LAW, 3) * q
    np.testing.assert_allclose(mean_correction(batches, orders, theta), want, rtol=1e-12)


def test_one_epoch_averages_to_less_of_it():
    batches, theta = Batches(5), np.array([0.4, -1.0, 0.7])
    orders = np.array(list(itertools.permutations(range(5), 4)))
    Hg, q = batches.parts(theta)
    want = Linear(LAW).coefficients(3).product[3] * Hg + variance_within_epoch(LAW, 3, 5) * q
    np.testing.assert_allclose(mean_correction(batches, orders, theta), want, rtol=1e-12)


def test_the_variance_stands_after_a_hundred_steps():
    assert INDEPENDENT[100] == pytest.approx(variance_when_independent(LAW, 2000), rel=1e-15)


def test_heavy_balls_variance_is_bounded_and_its_delay_is_not():
    for beta in (0.5, 0.9, 0.99):
        law = laws.heavy_ball(1.0, beta)
        D = variance_when_independent(law, 5000)
        np.testing.assert_allclose(D, beta / ((1 - beta) ** 2 * (1 + beta)), rtol=1e-9)
        kappa = D / law.gain**2
        np.testing.assert_allclose(kappa, (1 - 1 / effective_batches(law.weights(5001))) / 2, rtol=1e-9)
        assert kappa < 0.5 and abs(law.mean_delay - beta / (1 - beta)) < 1e-9


def orders_of(mean_state, batches, coefficient):
    """Orders of the distance of the mean trajectory from the iteration with `coefficient` of q."""
    c = Linear(LAW).coefficients(8000)
    errors = []
    for steps in (480, 960, 1920):
        h, path = 1 / steps, mean_state(steps)
        theta, points = np.array([1.0, -0.5, 0.3]), []
        for n in range(steps):
            points.append(theta)
            Hg, q = batches.parts(theta)
            g = batches.gradients(theta).mean(0)
            theta = theta - h * (c.gain[n] * g + h * (c.product[n] * Hg + coefficient(n) * q))
        points = np.array([*points, theta])
        errors.append(np.abs(path - points[:: len(points) // (len(path) - 1)][: len(path)]).max())
    return -np.diff(np.log2(errors))


def moves(batches, h):
    """The linear maps of (θ, m, 1) by each batch."""
    m, d, _ = batches.A.shape
    maps = np.zeros((m, 2 * d + 1, 2 * d + 1))
    for T, A, b in zip(maps, batches.A, batches.b, strict=True):
        momentum = np.hstack([A, 0.6 * np.eye(d), b[:, None]])
        T[d : 2 * d] = momentum
        T[:d] = np.eye(d, 2 * d + 1) - h * momentum
        T[-1, -1] = 1
    return maps


def run(step, steps):
    state = np.concatenate([[1.0, -0.5, 0.3], np.zeros(3), [1.0]])
    return np.array([s[:3] for s in itertools.accumulate(range(steps), lambda s, _: step @ s, initial=state)])


def test_the_average_is_not_the_drift_for_independent_batches():
    batches = Batches(4)

    def mean_state(steps):
        return run(moves(batches, 1 / steps).mean(0), steps)

    without = orders_of(mean_state, batches, lambda n: 0.0)
    with_it = orders_of(mean_state, batches, lambda n: INDEPENDENT[min(n, 100)])
    np.testing.assert_allclose(without, 2, atol=0.05)
    np.testing.assert_allclose(with_it, 1, atol=0.15)


def test_reshuffled_batches_drift_by_another_coefficient():
    batches = Batches(4)
    K = drift_when_reshuffled(LAW, 4)

    def mean_state(steps):
        maps = moves(batches, 1 / steps)
        epochs = [np.linalg.multi_dot(maps[list(order)]) for order in itertools.permutations(range(4))]
        return run(np.mean(epochs, 0), steps // 4)

    np.testing.assert_allclose(orders_of(mean_state, batches, lambda n: K), 2, atol=0.1)
    assert (orders_of(mean_state, batches, lambda n: 0.0) < 1.4).all()
    assert (orders_of(mean_state, batches, lambda n: INDEPENDENT[min(n, 100)]) < 1.4).all()


def test_with_short_memory_it_is_that_of_shuffled_gradient_descent():
    assert abs(drift_when_reshuffled(laws.sgd(1.0), 7) - 0.5) < 1e-12
    long = drift_when_reshuffled(LAW, 4000)
    np.testing.assert_allclose(long, LAW.gain**2 / 2, rtol=2e-3)


def test_an_epoch_must_hold_the_steps():
    with pytest.raises(ValueError, match="5 steps do not lie within one epoch of 4 batches"):
        variance_within_epoch(LAW, 4, 4)
    with pytest.raises(ValueError, match="two batches or more, got 1"):
        drift_when_reshuffled(LAW, 1)
