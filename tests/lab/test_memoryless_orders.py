"""Measured orders are those of docs/memoryless.md, and distances those of the core's own iterations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rllc.lab.errors import Refused
from rllc.lab.memoryless.names import Given, named
from rllc.lab.memoryless.orders import errors, halvings, slope
from rllc.lab.memoryless.problems import PROBLEMS, Problem, tanh_net
from rllc.memoryless import follow, simulate


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def orders(name, first, count, problem="tanh-net", given=None):
    """Orders without and with the correction, h from 2^-first, over the last four halvings."""
    sizes = halvings(2.0**-first, count)
    found = errors(named(name, given or Given()).form, PROBLEMS[problem](), sizes, 2**first)[:, 0]
    return slope(sizes, found[:, 0]), slope(sizes, found[:, 1])


@pytest.mark.parametrize(
    "name, first, problem, tolerance",
    [
        ("heavy-ball", 9, "tanh-net", 0.03),
        ("nesterov-iterates", 8, "logistic", 0.03),
        ("adam", 12, "tanh-net", 0.06),
        ("adamw", 10, "logistic", 0.06),
        ("lion", 8, "tanh-net", 0.12),
        ("rmsprop", 10, "valley", 0.06),
    ],
)
def test_orders_are_one_without_and_two_with_the_correction(name, first, problem, tolerance):
    """h from 2^-first over four halvings; what is left of the next order is in the tolerance."""
    without, corrected = orders(name, first, 4, problem)
    assert abs(without - 1) < 0.03
    assert abs(corrected - 2) < tolerance


def test_a_small_eps_is_not_in_the_regime():
    """h τ2 is not small against sqrt(eps): the order is not yet there, as the table's stars say."""
    assert orders("adam", 7, 4, given=Given(eps=1e-3))[1] < 1.8


def test_distances_are_those_of_the_iterations_of_the_core():
    form, problem = named("adamw").form, tanh_net()
    grad = jax.grad(problem.loss)
    found = errors(form, problem, np.array([0.01]), 15, intervals=2)
    path = simulate(form.method(grad), problem.start, 0.01, 30)
    for j, corrected in enumerate((False, True)):
        away = jnp.abs(path - follow(form, grad, problem.start, 0.01, 30, corrected)).max(1)
        expected = [away[1:16].max(), away[16:].max()]
        np.testing.assert_allclose(found[0, :, j], expected, rtol=1e-9)


def test_without_memory_there_is_no_distance():
    sizes = halvings(0.1, 4)
    found = errors(named("M(0)").form, tanh_net(), sizes, 10)
    assert found.max() == 0
    assert np.isnan(slope(sizes, found[:, 0, 0]))


def test_slope_of_a_power():
    sizes = halvings(0.5, 6)
    assert sizes.tolist() == [2.0**-k for k in range(1, 8)]
    assert abs(slope(sizes, 3 * sizes**2) - 2) < 1e-12
    assert abs(slope(sizes[:3], 3 * sizes[:3] ** 2) - 2) < 1e-12  # fewer halvings than four


def test_float32_is_refused():
    problem = tanh_net()
    with pytest.raises(Refused, match="needs float64 and the problem is float32"):
        errors(
            named("heavy-ball").form,
            Problem(problem.loss, problem.start.astype(jnp.float32)),
            halvings(0.1, 2),
            10,
        )


def test_step_sizes_are_positive():
    with pytest.raises(ValueError, match="the step size h must be a positive finite number"):
        halvings(-0.1, 2)
