"""Every closed form equals the general correction, one jvp through the method itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rllc
from rllc import laws
from rllc.lab.memoryless.problems import PROBLEMS
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


@functools.cache
def gradient(loss):
    """As one program, not one for each operation."""
    return jax.jit(jax.grad(loss))


def close(got, want, tolerance=1e-10):
    got, want = np.asarray(got), np.asarray(want)
    np.testing.assert_allclose(got, want, atol=tolerance * max(1.0, np.abs(want).max()), rtol=0)


@pytest.fixture(scope="module")
def problem():
    """The sum of two losses, each of parameters of its own."""
    with jax.enable_x64(True):
        losses, starts = zip(*(PROBLEMS[name]() for name in ("valley", "logistic")), strict=True)
        ends = np.cumsum([start.size for start in starts])

    def loss(theta):
        parts = jnp.split(theta, ends[:-1])
        return sum(f(part) for f, part in zip(losses, parts, strict=True))

    return loss, jnp.concatenate(starts)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_closed_forms_are_the_general_correction(form, problem):
    loss, theta = problem
    grad = gradient(loss)
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


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_stationary_coefficients_are_the_limit(form, problem):
    loss, theta = problem
    grad = gradient(loss)
    late = jax.tree.map(lambda x: x[-1], form.coefficients(2000))
    got, want = (form.terms(grad, row, theta) for row in (late, form.stationary()))
    close(got.direction, want.direction)
    close(got.correction, want.correction)


def test_of_a_function_of_the_history_the_same():
    loss, theta = PROBLEMS["tanh-net"]()
    grad = jax.grad(loss)
    mu = laws.nesterov(1.0, 0.7).weights(5)

    def F(*history):  # newest first
        return sum(w * grad(point) for w, point in zip(mu, history, strict=False))

    method = FORMS["nesterov, look-ahead"].method(grad)
    for n in (0, 4):
        for what, tolerance in ((direction, 1e-14), (correction, 1e-13)):
            got, want = jax.jit(lambda x, what=what, n=n: (what(F, n)(x), what(method, n)(x)))(theta)
            close(got, want, tolerance)
    close(*jax.jit(lambda x: (memoryless(F, 0.1)(4, x), memoryless(method, 0.1)(4, x)))(theta), 1e-14)


@pytest.mark.parametrize(
    ("tx", "form"),
    [
        (optax.sgd(0.1, momentum=0.7), FORMS["heavy ball"]),
        (optax.sgd(0.1, momentum=0.7, nesterov=True), FORMS["nesterov, look-ahead"]),
        (optax.adam(0.1, 0.8, 0.9, eps=0.3), FORMS["adam, eps outside"]),
        (optax.adamw(0.1, 0.8, 0.9, eps=0.3, weight_decay=0.1), FORMS["adamw, eps outside"]),
        (optax.adam(0.1, 0.9, 0.97, eps=0.0, eps_root=0.3), None),  # eps_root is added after bias correction
        (optax.rmsprop(0.1, 0.97, eps=0.3, eps_in_sqrt=True), FORMS["rmsprop"]),
    ],
    ids=["sgd", "nesterov", "adam", "adamw", "adam, eps_root", "rmsprop"],
)
def test_an_optax_transformation_as_it_is(tx, form, problem):
    loss, theta = problem
    grad = gradient(loss)
    form = form or FORMS["adam"]
    method, row = from_optax(tx, grad, 0.1), jax.tree.map(lambda x: x[6], form.coefficients(6))

    @jax.jit
    def both(x):
        return form.terms(grad, row, x), direction(method, 6)(x), correction(method, 6)(x)

    terms, F, corr = both(theta)
    close(F, terms.direction)
    close(corr, terms.correction)


def test_parameters_may_be_any_tree():
    loss, theta = PROBLEMS["tanh-net"]()

    def of_tree(tree):
        return loss(jnp.concatenate([tree["W"].ravel(), *tree["rest"]]))

    tree = {"W": theta[:6].reshape(2, 3), "rest": (theta[6:9], theta[9:])}
    for form in (FORMS["adamw"], FORMS["heavy ball, decoupled decay"], FORMS["lion"]):
        row = jax.tree.map(lambda x: x[3], form.coefficients(3))
        got = jax.jit(lambda x, form=form, row=row: form.terms(jax.grad(of_tree), row, x))(tree)
        want = jax.jit(lambda x, form=form, row=row: form.terms(jax.grad(loss), row, x))(theta)
        close(jnp.concatenate([got.correction["W"].ravel(), *got.correction["rest"]]), want.correction, 1e-14)
        general = jax.jit(correction(form.method(jax.grad(of_tree)), 3))(tree)
        close(general["W"].ravel(), want.correction[:6], 1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("n", [3, None])
def test_linear_memory_descends_the_modified_loss(decay, n, problem):
    loss, theta = problem
    form, h = Linear(FORMS["M(.9)+M_2(.6)"].law, weight_decay=decay), 0.03
    row = form.stationary() if n is None else jax.tree.map(lambda x: x[n], form.coefficients(n))

    @jax.jit
    def both(x):
        return form.terms(jax.grad(loss), row, x), jax.grad(form.modified_loss(loss, h, row))(x)

    (F, corr), descended = both(theta)
    close(descended, F + h * corr, 1e-12)


def test_adaptive_corrections_are_factors_times_the_gradient_of_the_perturbed_norm(problem):
    loss, theta = problem
    grad, adam, lion = gradient(loss), Adam(0.9, 0.97, 0.3), Lion(0.9, 0.95, 0.3)
    norm = gradient(lambda x: perturbed_norm(grad(x), 0.3))(theta)

    @jax.jit
    def corrections(x):
        return [form.terms(grad, form.stationary(), x).correction for form in (adam, lion)]

    of_adam, of_lion = corrections(theta)
    g = grad(theta)
    R = np.sqrt(g**2 + 0.3)
    share = g**2 / R**2
    close(of_adam, (9 - 0.97 / 0.03 * share) / R * norm)
    # Lion's is Adam's with one delay for numerator and denominator
    close(of_lion, 0.9 / 0.05 * (1 - share) / R * norm)


def test_the_modified_loss_has_no_dense_hessian():
    loss, theta = PROBLEMS["logistic"]()
    form = FORMS["heavy ball"]
    program = str(jax.make_jaxpr(jax.grad(form.modified_loss(loss, 0.1)))(theta))
    assert "5,5]" not in program and "40,5" in program


def slopes(form, loss, steps_of, *corrected, **more):
    """Of log max_n |θ_n - θ~_n| against log h, over halvings of h = 1/steps, for each θ~."""
    f, theta = loss()
    grad, most = jax.grad(f), max(steps_of)

    @jax.jit  # once for all h: each goes as many steps as the smallest
    def distances(h):
        run = simulate(form.method(grad), theta, h, most)
        others = [follow(form, grad, theta, h, most, kind, **more) for kind in corrected]
        return jnp.abs(run - jnp.stack(others)).max(2)

    return np.diff(-np.log2([distances(1 / steps)[:, : steps + 1].max(1) for steps in steps_of]), axis=0).T


SECOND_ORDER = [
    ("heavy ball", "tanh-net", 0.02),
    ("nesterov, iterates", "tanh-net", 0.02),
    ("M(.9)+M_2(.6)", "tanh-net", 0.05),
    ("heavy ball, decoupled decay", "logistic", 0.01),
    ("adam", "logistic", 0.03),
    ("adam, eps outside", "tanh-net", 0.03),
    ("lion", "logistic", 0.02),
]


@pytest.mark.parametrize(("name", "loss", "tolerance"), SECOND_ORDER, ids=[name for name, *_ in SECOND_ORDER])
def test_the_distance_is_of_second_order_with_the_correction_and_of_first_without(name, loss, tolerance):
    with_it, without = slopes(FORMS[name], PROBLEMS[loss], (2048, 4096, 8192), True, False)
    np.testing.assert_allclose(with_it, 2, atol=tolerance)
    np.testing.assert_allclose(without, 1, atol=0.02)


def test_stationary_coefficients_from_the_first_step_are_of_first_order_only():
    form, loss = FORMS["heavy ball"], PROBLEMS["tanh-net"]
    np.testing.assert_allclose(slopes(form, loss, (256, 512, 1024), True, stationary=True), 1, atol=0.05)


def test_from_a_shifted_start_they_are_of_second_order():
    form = FORMS["heavy ball"]
    f, theta = PROBLEMS["tanh-net"]()
    grad = jax.grad(f)

    @jax.jit
    def distances(h):
        shifted = theta + form.stationary().moment * h * grad(theta)
        run = simulate(form.method(grad), theta, h, 2048)
        return jnp.abs(run - follow(form, grad, shifted, h, 2048, stationary=True)).max(1)

    errors = [distances(1 / n)[n // 4 : n + 1].max() for n in (512, 1024, 2048)]  # after the initial layer
    np.testing.assert_allclose(np.diff(-np.log2(errors)), 2, atol=0.05)


def flow(loss, start, time, steps):
    """The gradient flow of the loss at times 0, time, 2 time, ..., by Runge and Kutta's method of order 4."""
    field = jax.grad(loss)

    def step(x, _):
        a = -time * field(x)
        b = -time * field(x + a / 2)
        c = -time * field(x + b / 2)
        d = -time * field(x + c)
        x = x + (a + 2 * b + 2 * c + d) / 6
        return x, x

    return jnp.concatenate([start[None], jax.lax.scan(step, start, length=steps)[1]])


@pytest.mark.parametrize(
    ("law", "factor", "plain_order"),
    [(laws.heavy_ball(1.0, 0.6), 4.0, 1), (laws.sgd(1.0), 1.0, 1), (laws.adams_bashforth(1.0), 0.0, 2)],
    ids=["heavy ball", "gradient descent", "Adams-Bashforth 2"],
)
def test_iterates_follow_the_flow_of_the_loss_with_memorys_and_discretisations_term(law, factor, plain_order):
    """f + (η/4)(1 + 2τ)|∇f|², from the shifted start; without the term the order is 1, unless it is zero."""
    f, theta = PROBLEMS["tanh-net"]()
    grad, m1 = jax.grad(f), Linear(law).stationary().moment
    assert 1 + 2 * law.mean_delay == pytest.approx(factor)

    @jax.jit
    def distances(h):
        eta, shifted = h * law.gain, theta + h * m1 * grad(theta)
        run = simulate(Linear(law).method(grad), theta, h, 2048)
        flows = [
            flow(lambda x, c=c: f(x) + eta / 4 * c * jnp.sum(grad(x) ** 2), shifted, eta, 2048)
            for c in (factor, 0.0)
        ]
        return [jnp.abs(run - x).max(1) for x in flows]

    steps = 512, 1024, 2048
    errors = [[d[n // 4 : n + 1].max() for d in distances(1 / n)] for n in steps]  # after the initial layer
    corrected, plain = -np.diff(np.log2(errors), axis=0).T
    np.testing.assert_allclose(corrected, 2, atol=0.1)
    np.testing.assert_allclose(plain, plain_order, atol=0.1)


def test_memories_of_one_gain_and_one_delay_differ_at_second_order_only():
    """B, a and L are two numbers: heavy ball of β = 1/2 is a gradient delayed by one step and doubled."""
    f, theta = PROBLEMS["tanh-net"]()
    ball, delayed, sgd = laws.heavy_ball(1.0, 0.5), laws.delayed(2.0, 1), laws.sgd(2.0)
    assert (ball.gain, ball.mean_delay) == pytest.approx((delayed.gain, delayed.mean_delay)) == (2, 1)

    @jax.jit
    def distances(h):
        runs = [simulate(Linear(law).method(jax.grad(f)), theta, h, 2048) for law in (ball, delayed, sgd)]
        return [jnp.abs(run - runs[0]).max(1) for run in runs[1:]]

    errors = [[d[n // 4 : n + 1].max() for d in distances(1 / n)] for n in (512, 1024, 2048)]
    same, other = -np.diff(np.log2(errors), axis=0).T
    np.testing.assert_allclose(same, 2, atol=0.1)
    np.testing.assert_allclose(other, 1, atol=0.1)


def test_the_exact_signs_correction_is_zero_where_no_gradient_is(problem):
    loss, theta = problem
    grad, form = gradient(loss), Lion(0.9, 0.95, weight_decay=0.1)
    assert np.asarray(grad(theta)).all()
    assert not np.asarray(form.terms(grad, form.stationary(), theta).correction).any()
    assert not np.asarray(correction(form.method(grad), 9)(theta)).any()


def test_the_iteration_of_a_method_is_that_of_its_closed_form():
    form = FORMS["nadamw"]
    f, theta = PROBLEMS["valley"]()
    step = jax.jit(memoryless(form.method(jax.grad(f)), 0.02))
    points = [theta]
    for n in range(5):
        points.append(step(n, points[-1]))
    close(jnp.stack(points), follow(form, jax.grad(f), theta, 0.02, 5), 1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "form", [Linear(laws.heavy_ball(1.0, 0.9)), Adam(0.9, 0.999)], ids=["linear", "adam"]
)
def test_a_point_keeps_its_dtype_with_float64_switched_on(form, dtype):
    with jax.enable_x64(True):
        path = follow(form, lambda x: x, jnp.ones(2, dtype), 0.01, 3)
        exact = follow(form, lambda x: x, jnp.ones(2), 0.01, 3)
    assert path.dtype == dtype
    np.testing.assert_allclose(np.float64(path), np.float64(exact), rtol=8 * float(jnp.finfo(dtype).eps))
