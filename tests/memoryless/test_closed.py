"""Every closed form equals the general correction, one jvp through the method itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from losses import LOSSES

import rllc
from rllc import laws
from rllc.memoryless import (
    Adam,
    Linear,
    Lion,
    NesterovIterates,
    RMSProp,
    correction,
    direction,
    follow,
    from_optax,
    memoryless,
    perturbed_norm,
    simulate,
)

FORMS = {
    "sgd": Linear(laws.sgd(1.0)),
    "heavy ball": Linear(laws.heavy_ball(1.0, 0.7)),
    "ema": Linear(laws.ema_momentum(1.0, 0.9)),
    "nesterov, look-ahead": Linear(laws.nesterov(1.0, 0.7)),
    "nesterov, iterates": NesterovIterates(0.7),
    "qhm": Linear(laws.qhm(1.0, 0.9, 0.7)),
    "aggmo": Linear(laws.aggmo(1.0, [0.0, 0.6, 0.9])),
    "complex momentum": Linear(laws.complex_momentum(1.0 + 0.3j, 0.5 + 0.4j)),
    "adams-bashforth": Linear(laws.adams_bashforth(1.0)),
    "delayed": Linear(laws.delayed(1.0, 3)),
    "M(.9)+M_2(.6)": Linear(rllc.FixedLaw(rllc.parse("M(0.9) + M_2(0.6)"), [0.3, 0.5, -0.2])),
    "M_3(.5)": Linear(rllc.FixedLaw(rllc.M(0.5, 3), [1.0, 0.2, 0.1])),
    "CM_2(.3+.5i)": Linear(rllc.FixedLaw(rllc.CM(0.3 + 0.5j, order=2), [1.0, 0.2, 0.1, -0.4])),
    "M(-.7)": Linear(rllc.FixedLaw(rllc.M(-0.7), [1.0])),
    "heavy ball, decoupled decay": Linear(laws.heavy_ball(1.0, 0.7), weight_decay=0.1),
    "adam": Adam(0.9, 0.97, 0.3),
    "adamw": Adam(0.9, 0.97, 0.3, weight_decay=0.1),
    "adam, eps outside": Adam(0.8, 0.9, 0.3, outside=True),
    "adamw, eps outside": Adam(0.8, 0.9, 0.3, outside=True, weight_decay=0.1),
    "nadam": Adam(0.9, 0.97, 0.3, nesterov=True),
    "nadamw": Adam(0.9, 0.97, 0.3, nesterov=True, weight_decay=0.1),
    "rmsprop, bias corrected": Adam(0.0, 0.9, 0.3),
    "rmsprop": RMSProp(0.97, 0.3),
    "lion": Lion(0.9, 0.95, 0.3, weight_decay=0.1),
    "lion, no decay": Lion(0.8, 0.9, 0.01),
    "signum": Lion(0.9, 0.9, 0.3),
}


def close(got, want, tolerance=1e-10):
    got, want = np.asarray(got), np.asarray(want)
    np.testing.assert_allclose(got, want, atol=tolerance * max(1.0, np.abs(want).max()), rtol=0)


@pytest.fixture(scope="module")
def problem():
    """The sum of the three losses, each of parameters of its own."""
    with jax.enable_x64(True):
        losses, starts = zip(*(make() for make in LOSSES.values()), strict=True)
        ends = np.cumsum([start.size for start in starts])

    def loss(theta):
        parts = jnp.split(theta, ends[:-1])
        return sum(f(part) for f, part in zip(losses, parts, strict=True))

    return loss, jnp.concatenate(starts)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_closed_forms_are_the_general_correction(form, problem):
    loss, theta = problem
    grad = jax.grad(loss)
    method, rows = form.method(grad), form.coefficients(9)

    @jax.jit
    def both(n):
        terms = form.terms(grad, jax.tree.map(lambda x: jnp.asarray(x)[n], rows), theta)
        return terms, direction(method, n)(theta), correction(method, n)(theta)

    for n in (0, 1, 2, 9):
        terms, F, corr = both(n)
        close(terms.direction, F)
        close(terms.correction, corr)
        assert n > 0 or not np.abs(corr).any()
