"""What closed forms take: dtypes and mixtures of them, derivatives through them, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rllc import laws
from rllc.memoryless import (
    Adam,
    Linear,
    Lion,
    NesterovIterates,
    RMSProp,
    SmoothRidge,
    batches,
    correction,
    direction,
    explicit_correction,
    follow,
    from_optax,
    memoryless,
    perturbed_norm,
    simulate,
)

FORMS = {
    "heavy ball": Linear(laws.heavy_ball(1.0, 0.9)),
    "heavy ball, weight decay": Linear(laws.heavy_ball(1.0, 0.9), 0.1),
    "nesterov": NesterovIterates(0.9),
    "adam": Adam(0.9, 0.99, 0.1, weight_decay=0.1),
    "rmsprop": RMSProp(0.99, 0.1),
    "lion": Lion(0.9, 0.99, 0.1, 0.1),
}
ADAPTIVE = [name for name in FORMS if isinstance(FORMS[name], Adam | RMSProp | Lion)]


def grad(tree):
    return jax.tree.map(lambda x: x**3 + x, tree)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_leaves_of_several_dtypes_are_followed_each_in_its_own(form):
    dtypes = {"a": jnp.bfloat16, "b": jnp.float32, "c": jnp.float64}
    start = {name: jnp.array([0.5, -1.0], dtype) for name, dtype in dtypes.items()}
    paths = follow(form, grad, start, 0.01, 4), simulate(form.method(grad), start, 0.01, 4)
    alone = {"c": start["c"]}
    wanted = follow(form, grad, alone, 0.01, 4), simulate(form.method(grad), alone, 0.01, 4)
    for path, want in zip(paths, wanted, strict=True):
        for name, dtype in dtypes.items():
            assert path[name].dtype == dtype
            rtol = 32 * float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(np.float64(path[name]), want["c"], rtol=rtol)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_modified_loss_has_the_dtype_of_the_loss(decay):
    def loss(tree):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(tree))

    form = Linear(laws.heavy_ball(1.0, 0.9), decay)
    row = jax.tree.map(lambda c: c[4], form.coefficients(4))  # of float64
    value = form.modified_loss(loss, 0.01, row)(
        {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(1, jnp.bfloat16)}
    )
    exact = form.modified_loss(loss, 0.01, row)(jnp.ones(3))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=1e-6)


def test_theta_and_law_of_the_smooth_ridge_may_have_dtypes_of_their_own():
    form = SmoothRidge("M(0.7) + M(0)", 0.3, 1.0, 0.01)
    start = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2)}, jnp.ones(2)
    theta, law = follow(form, grad, start, 0.01, 3)
    assert (theta["a"].dtype, theta["b"].dtype, law.dtype) == (jnp.float32, jnp.float64, jnp.float64)
    np.testing.assert_allclose(theta["a"], theta["b"], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_methods_keep_their_sums_in_float32_and_move_in_bfloat16(name, dtype):
    method, start = FORMS[name].method(grad), jnp.array([1.0], dtype)
    states = [x.dtype for x in jax.tree.leaves(method.init(start)) if x.ndim]
    assert states and set(states) == {jnp.dtype(jnp.float32)}
    exact = simulate(FORMS[name].method(grad), jnp.array([1.0]), 0.05, 20)
    path = np.float64(simulate(method, start, 0.05, 20))
    np.testing.assert_allclose(path[0] - path, exact[0] - exact, atol=20 * float(jnp.finfo(dtype).eps))
    assert exact[0] - exact[-1] > 0.15


def test_adams_first_steps_in_bfloat16_are_not_lost():
    path = simulate(Adam().method(lambda x: x), jnp.array([1.0], jnp.bfloat16), 0.01, 3)
    assert path.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(path).ravel(), [1, 0.99, 0.98, 0.97], atol=0.009)
    assert (np.diff(np.float64(path).ravel()) < 0).all()


@pytest.mark.parametrize("name", [*ADAPTIVE, "heavy ball"])
def test_reverse_mode_goes_through_a_correction_under_jit(name):
    """Against forward mode and differences, n being traced, and for n that are not."""
    form, x = FORMS[name], jnp.array([0.7, -0.4])
    many = form.coefficients(500)
    rows = [jax.tree.map(lambda c, n=n: jnp.asarray(c)[n], many) for n in (0, 5, 500)]

    def total(x, row):
        return form.terms(grad, row, x).correction.sum()

    reverse, forward = jax.jit(jax.grad(total)), jax.jit(jax.jacfwd(total))
    for row in (*rows, form.stationary()):
        untraced = jax.jit(jax.value_and_grad(lambda x, row=row: total(x, row)))
        found = reverse(x, row)
        np.testing.assert_allclose(found, forward(x, row), rtol=1e-9)
        np.testing.assert_allclose(found, untraced(x)[1], rtol=1e-9)
        for i in range(2):
            e = 1e-5 * np.eye(2)[i]
            rise = untraced(x + e)[0] - untraced(x - e)[0]
            np.testing.assert_allclose(rise / 2e-5, found[i], rtol=1e-5)


def test_reverse_mode_goes_through_a_whole_iteration():
    form, x = FORMS["lion"], jnp.array([0.7, -0.4])

    def end(x):
        return follow(form, grad, x, 0.01, 5)[-1].sum()

    np.testing.assert_allclose(jax.jit(jax.grad(end))(x), jax.jacfwd(end)(x), rtol=1e-9)


@pytest.mark.parametrize("name", [*ADAPTIVE, "heavy ball"])
def test_derivatives_go_through_an_explicit_correction(name):
    """Of a step with respect to where it is taken, the gradient that it is given being one of it."""
    tx = explicit_correction(optax.sgd(0.1, 0.9), FORMS[name], 0.1, 0.7)

    def moved(x):
        return tx.update(grad(x), tx.init(x), x, grad_fn=grad)[0].sum()

    x = jnp.array([0.7, -0.4])
    found = jax.jit(jax.grad(moved))(x)
    for i in range(2):
        e = 1e-5 * np.eye(2)[i]
        np.testing.assert_allclose((moved(x + e) - moved(x - e)) / 2e-5, found[i], rtol=1e-6)


def test_numbers_of_jax_are_judged_where_they_are_known():
    number, method = jnp.float32, FORMS["heavy ball"].method(grad)
    for call, said in (
        (lambda: Adam(beta1=number(1.0)), r"beta1 must be in \[0, 1\), got 1.0"),
        (lambda: Adam(eps=number(-1.0)), "eps must be a positive finite number, got -1.0"),
        (lambda: RMSProp(beta=number(1.5)), r"beta must be in \[0, 1\), got 1.5"),
        (lambda: Lion(weight_decay=number(np.nan)), "weight_decay must be a finite number >= 0, got nan"),
        (lambda: Linear(laws.sgd(1.0), number(-1.0)), "weight_decay must be a finite number >= 0, got -1.0"),
        (lambda: memoryless(method, number(-0.5)), "h must be a positive finite number, got -0.5"),
        (lambda: memoryless(method, jnp.ones(2)), "h must be a positive finite number, got array"),
        (lambda: correction(method, jnp.array(-3)), "n must be a whole number, 0 or more, got -3"),
        (lambda: correction(method, jnp.array(2.5)), "n must be a whole number, 0 or more, got 2.5"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    assert Adam(beta1=number(0.5)).stationary().numerator == 1
    slope = jax.grad(lambda eps: Adam(eps=eps).terms(grad, Adam().stationary(), jnp.ones(2)).direction.sum())
    np.testing.assert_allclose(slope(0.25), -2 * 2 / 2 / (4 + 0.25) ** 1.5, rtol=1e-12)  # traced: not judged


def test_multi_steps_as_it_comes_is_a_method():
    steps = optax.MultiSteps(optax.sgd(0.1, 0.9), 2)
    found, wanted = (from_optax(tx, grad, 0.1) for tx in (steps, steps.gradient_transformation()))
    x = jnp.array([0.7, -0.4])
    assert np.all(correction(found, 5)(x) == correction(wanted, 5)(x)) and np.all(
        correction(found, 5)(x) != 0
    )


def test_complex_parameters_are_refused_where_their_squares_are_taken():
    z = jnp.array([1 + 2j])
    for name in ADAPTIVE:
        form = FORMS[name]
        for call in (
            lambda form=form: form.terms(grad, form.stationary(), z),
            lambda form=form: simulate(form.method(grad), z, 0.1, 2),
        ):
            with pytest.raises(ValueError, match="take real parameters, got complex128; give real and"):
                call()
    linear = FORMS["heavy ball"]
    known = linear.terms(lambda z: 2 * z, linear.stationary(), z).correction
    np.testing.assert_allclose(known, 4 * linear.stationary().product * z, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: follow(laws.sgd(1.0), grad, jnp.ones(2), 0.1, 3), "form must be a closed form such as Adam"),
        (lambda: explicit_correction(optax.sgd(0.1), laws.sgd(1.0), 0.1, 1.0), "form must be a closed form"),
        (
            lambda: explicit_correction(optax.sgd(0.1), Adam(), 0.1, None),
            "strength must be a finite number, got None",
        ),
        (lambda: correction(optax.sgd(0.1), 3), "a method is a Method, as of from_optax"),
        (lambda: direction(Adam(), 3), r"a method is .*Adam\(\).method\(grad\).* got Adam"),
        (lambda: from_optax(Adam(), grad, 0.1), "from_optax takes an optax transformation .* got Adam"),
        (lambda: follow(Adam(), grad, [1.0, 2.0], 0.1, 3), "start must hold floating-point arrays.*got 1.0"),
        (
            lambda: simulate(Adam().method(grad), jnp.arange(2), 0.1, 3),
            "start must hold floating-point arrays",
        ),
        (
            lambda: batches.variance_within_epoch(laws.sgd(1.0), 1, 2.5),
            "batches must be a whole number, 0 or more, got 2.5",
        ),
        (
            lambda: batches.drift_when_reshuffled(laws.sgd(1.0), 2.5),
            "batches must be a whole number, 0 or more, got 2.5",
        ),
        (lambda: perturbed_norm(jnp.ones(2), -1.0), "eps must be a finite number >= 0, got -1.0"),
    ],
)
def test_what_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
