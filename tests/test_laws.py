"""Known optimizers as (propagator, law), each over 60 steps against an implementation that is not ours."""

import copy
import math
import pickle

import jax
import numpy as np
import optax
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from memories import change, complexes, is_clear, reals, seeds, unions
from rllc import CM, FixedLaw, M, Propagator, laws, parse

STEPS = 60
N = 12


def problem(seed=0):
    """θ_0 and the gradient of a random quadratic plus Σ log cosh of random projections."""
    rng = np.random.default_rng(seed)
    U, _ = np.linalg.qr(rng.normal(size=(N, N)))
    A = U * np.geomspace(0.05, 1.0, N) @ U.T
    C = rng.normal(size=(20, N)) / math.sqrt(N)
    return rng.normal(size=N), lambda theta: A @ theta + C.T @ np.tanh(C @ theta)


def trajectory(step):
    """θ_0, θ_1, ... θ_60 of θ <- step(θ, g), from the problem above."""
    theta, gradient = problem()
    path = [theta]
    for _ in range(STEPS):
        theta = step(theta, gradient(theta))
        path.append(theta)
    return np.array(path)


def ours(fixed):
    """θ_t = θ_{t-1} - M_t L from M_0 = 0."""
    memory = np.zeros((N, fixed.propagator.k))

    def step(theta, g):
        nonlocal memory
        memory = memory @ fixed.propagator.B + np.outer(g, fixed.propagator.a)
        return theta - memory @ fixed.law

    return trajectory(step)


def in_torch(make):
    """A torch optimizer, fed with the same gradients."""
    parameter = torch.nn.Parameter(torch.tensor(problem()[0]))
    optimizer = make([parameter])

    def step(theta, g):
        parameter.grad = torch.tensor(g)
        optimizer.step()
        return parameter.detach().numpy().copy()

    return trajectory(step)


def in_optax(transform, warm=False):
    """An optax transformation in float64; warm: it has seen one gradient, of zero."""
    with jax.enable_x64(True):
        state = transform.init(np.zeros(N))
        if warm:
            _, state = transform.update(np.zeros(N), state)

        def step(theta, g):
            nonlocal state
            with jax.enable_x64(True):
                update, state = transform.update(g, state)
            return theta + np.asarray(update)

        return trajectory(step)


def rate(lr, *transforms):
    return optax.chain(*transforms, optax.scale(-lr))


def written_out(start, step):
    """The published recursion: step(state, θ, g) -> state, θ, from a state."""
    state = start

    def both(theta, g):
        nonlocal state
        state, theta = step(state, theta, g)
        return theta

    return trajectory(both)


def qhm(lr, beta, nu):
    def step(m, theta, g):
        m = beta * m + (1 - beta) * g
        return m, theta - lr * ((1 - nu) * g + nu * m)

    return written_out(np.zeros(N), step)


def aggmo(lr, betas):
    def step(velocities, theta, g):
        velocities = [beta * v - g for beta, v in zip(betas, velocities, strict=True)]
        return velocities, theta + lr / len(betas) * sum(velocities)

    return written_out([np.zeros(N)] * len(betas), step)


def accsgd(lr, kappa, xi):
    """github.com/rahulkidambi/AccSGD, whose buffer starts as the parameters."""
    large_lr = lr * kappa / 0.7
    alpha = 1 - 0.7 * 0.7 * xi / kappa
    beta = 1 - alpha
    zeta = 0.7 / (0.7 + beta)

    def step(buffer, theta, g):
        buffer = beta * ((1 / beta - 1) * buffer - large_lr * g + theta)
        return buffer, zeta * (theta - lr * g) + (1 - zeta) * buffer

    return written_out(problem()[0], step)


def snv(lr, beta1, beta2):
    """On ξ; the iterates are y = (1 + β₂) ξ - β₂ ξ_previous, where the gradient is taken."""

    def step(xis, y, g):
        xi, previous = xis
        xi, previous = (1 + beta1) * xi - beta1 * previous - lr * g, xi
        return (xi, previous), (1 + beta2) * xi - beta2 * previous

    return written_out((problem()[0],) * 2, step)


def pid(lr, beta, kd):
    def step(state, theta, g):
        V, D, previous = state
        V = beta * V - lr * g
        D = beta * D + (1 - beta) * (g - previous)
        return (V, D, g), theta + V - kd * D

    return written_out((np.zeros(N),) * 3, step)


def complex_momentum(lr, gamma):
    def step(z, theta, g):
        z = gamma * z + g
        return z, theta - (lr * z).real

    return written_out(np.zeros(N, complex), step)


def ademamix_numerator(lr, beta1, beta3, alpha):
    fast, slow = optax.ema(beta1, debias=False), optax.ema(beta3, debias=False)

    def update(g, state, params=None):
        (m1, first), (m2, second) = fast.update(g, state[0]), slow.update(g, state[1])
        return m1 + alpha * m2, (first, second)

    both = optax.GradientTransformation(lambda params: (fast.init(params), slow.init(params)), update)
    return in_optax(rate(lr, both))


def adams_bashforth(lr):
    def step(previous, theta, g):
        return g, theta - lr * (1.5 * g - 0.5 * previous)

    return written_out(np.zeros(N), step)


def delayed(lr, delay):
    def step(queue, theta, g):
        queue = [*queue, g]
        return queue[1:], theta - lr * queue[0]

    return written_out([np.zeros(N)] * delay, step)


SGD = torch.optim.SGD
CASES = {
    "sgd, torch": (laws.sgd(0.1), lambda: in_torch(lambda p: SGD(p, 0.1))),
    "sgd, optax": (laws.sgd(0.1), lambda: in_optax(optax.sgd(0.1))),
    "heavy ball, torch": (laws.heavy_ball(0.1, 0.9), lambda: in_torch(lambda p: SGD(p, 0.1, momentum=0.9))),
    "heavy ball, optax": (laws.heavy_ball(0.1, 0.9), lambda: in_optax(optax.sgd(0.1, momentum=0.9))),
    "negative heavy ball": (laws.heavy_ball(0.1, -0.5), lambda: in_optax(optax.sgd(0.1, momentum=-0.5))),
    "ema": (laws.ema_momentum(0.3, 0.9), lambda: in_optax(rate(0.3, optax.ema(0.9, debias=False)))),
    "nesterov, torch": (
        laws.nesterov(0.05, 0.9),
        lambda: in_torch(lambda p: SGD(p, 0.05, momentum=0.9, nesterov=True)),
    ),
    "nesterov, optax": (
        laws.nesterov(0.05, 0.9),
        lambda: in_optax(optax.sgd(0.05, momentum=0.9, nesterov=True)),
    ),
    "qhm": (laws.qhm(0.5, 0.95, 0.7), lambda: qhm(0.5, 0.95, 0.7)),
    "aggmo": (laws.aggmo(0.1, (0, 0.9, 0.99)), lambda: aggmo(0.1, (0, 0.9, 0.99))),
    "accsgd": (laws.accsgd(0.05, 100.0, 10.0), lambda: accsgd(0.05, 100.0, 10.0)),
    "snv": (laws.snv(0.1, 0.8, 0.5), lambda: snv(0.1, 0.8, 0.5)),
    "snv without momentum": (laws.snv(0.1, 0.0, 0.5), lambda: snv(0.1, 0.0, 0.5)),
    "pid": (laws.pid(0.05, 0.9, 0.3), lambda: pid(0.05, 0.9, 0.3)),
    "pid without momentum": (laws.pid(0.05, 0.0, 0.3), lambda: pid(0.05, 0.0, 0.3)),
    "complex momentum": (
        laws.complex_momentum(0.1 - 0.05j, 0.6 + 0.6j),
        lambda: complex_momentum(0.1 - 0.05j, 0.6 + 0.6j),
    ),
    "ademamix": (
        laws.ademamix_numerator(0.1, 0.9, 0.99, 5.0),
        lambda: ademamix_numerator(0.1, 0.9, 0.99, 5.0),
    ),
    # The first step of optax takes g itself for the gradient before; from M_0 = 0 that gradient is 0.
    "optimistic": (laws.optimistic(0.1), lambda: in_optax(optax.optimistic_gradient_descent(0.1), warm=True)),
    "adams-bashforth": (laws.adams_bashforth(0.1), lambda: adams_bashforth(0.1)),
    "delayed": (laws.delayed(0.05, 3), lambda: delayed(0.05, 3)),
    "delayed by nothing": (laws.delayed(0.05, 0), lambda: delayed(0.05, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_is_the_known_optimizer(name):
    fixed, theirs = CASES[name]
    want = theirs()
    assert abs(want[-1] - want[0]).max() > 0.1  # it went somewhere
    np.testing.assert_allclose(ours(fixed), want, rtol=0, atol=1e-12 * abs(want).max())


def test_triple_momentum_is_the_published_method():
    """α = (1+ρ)/L, β₁ = ρ²/(2-ρ), β₂ = ρ²/((1+ρ)(2-ρ)), and its iterates fall like ρ^t on a quadratic."""
    m, L = 0.05, 1.0
    rho = 1 - math.sqrt(m / L)
    fixed = laws.triple_momentum(m, L)
    want = snv((1 + rho) / L, rho**2 / (2 - rho), rho**2 / ((1 + rho) * (2 - rho)))
    np.testing.assert_allclose(ours(fixed), want, rtol=0, atol=1e-12 * abs(want).max())
    B, a, law = fixed.propagator.B, fixed.propagator.a, fixed.law
    for q in np.linspace(m, L, 9):  # (m, y) <- (m, y) A on f(y) = q y²/2
        A = np.block([[B, -(B @ law)[:, None]], [q * a[None], np.array([[1 - q * a @ law]])]])
        assert abs(np.linalg.eigvals(A)).max() <= rho + 1e-9


# Gain, delay, transfer function.


@pytest.mark.parametrize(
    ("fixed", "gain", "delay"),
    [
        (laws.sgd(1.0), 1, 0),
        (laws.heavy_ball(1.0, 0.9), 10, 9),
        (laws.heavy_ball(1.0, -0.5), 1 / 1.5, -0.5 / 1.5),
        (laws.ema_momentum(1.0, 0.9), 1, 9),
        (laws.nesterov(1.0, 0.9), 10, 8.1),
        (laws.qhm(1.0, 0.9, 0.7), 1, 0.7 * 9),
        (laws.aggmo(1.0, (0, 0.9)), 5.5, (0.9 / 0.01 / 2) / 5.5),
        (laws.optimistic(1.0), 1, -1),
        (laws.adams_bashforth(1.0), 1, -0.5),
        (laws.delayed(1.0, 7), 1, 7),
        (FixedLaw(M(0.6, 3), [0, 0, 1]), 0.4**-3, (2 + 0.6) / 0.4),
        (FixedLaw(CM(0.9j), [1, 0]), 1 / (1 + 0.81), -2 * 0.81 / (1 + 0.81)),
    ],
)
def test_gain_and_mean_delay(fixed, gain, delay):
    """Gains and delays of known optimizers (arXiv 2502.02132)."""
    assert fixed.gain == pytest.approx(gain, rel=1e-12)
    assert fixed.mean_delay == pytest.approx(delay, rel=1e-12, abs=1e-15)


def test_gain_and_delay_of_complex_momentum():
    lr, gamma = 0.1 - 0.05j, 0.6 + 0.6j
    fixed = laws.complex_momentum(lr, gamma)
    assert fixed.gain == pytest.approx((lr / (1 - gamma)).real, rel=1e-12)
    assert fixed.first_moment == pytest.approx((lr * gamma / (1 - gamma) ** 2).real, rel=1e-12)


@given(unions, seeds)
def test_gain_and_first_moment_are_sums_of_weights(p, seed):
    fixed = FixedLaw(p, np.random.default_rng(seed).normal(size=p.k))
    weights = fixed.weights(1500)
    lags = np.arange(1500)
    assert fixed.gain == pytest.approx(weights.sum(), rel=1e-8, abs=1e-8 * abs(weights).sum())
    assert fixed.first_moment == pytest.approx(
        lags @ weights, rel=1e-8, abs=1e-8 * (lags @ abs(weights)) + 1e-12
    )


@given(unions, seeds, st.floats(0, 2 * math.pi))
def test_transfer_function_is_the_series_of_weights(p, seed, angle):
    fixed, w = FixedLaw(p, np.random.default_rng(seed).normal(size=p.k)), np.exp(1j * angle)
    weights = fixed.weights(1500)
    want = weights @ w ** np.arange(1500)
    assert abs(fixed.transfer(w) - want) <= 1e-8 * abs(weights).sum()
    assert abs(fixed.transfer(1.0) - fixed.gain) <= 1e-9 * abs(weights).sum()


def test_weights():
    np.testing.assert_allclose(laws.nesterov(0.1, 0.9).weights(4), 0.1 * np.array([1.9, 0.81, 0.729, 0.6561]))
    assert laws.sgd(1.0).weights(0).shape == (0,)


@pytest.mark.parametrize("law", [[1, -1], [0, 0], [1e-9, -1e-9]])
def test_cancelling_weights_have_no_mean_delay(law):
    with pytest.raises(ValueError, match="cancel and have no mean delay"):
        _ = FixedLaw(M(0.9) | M(0.9), law).mean_delay


# Equivalence and minimal memory.


def hankel_rank(fixed):
    """The rank of the k x k Hankel matrix of weights."""
    k = fixed.propagator.k
    weights = fixed.weights(2 * k)
    return np.linalg.matrix_rank([weights[i : i + k] for i in range(k)], tol=1e-10 * abs(weights).max())


@pytest.mark.parametrize(
    ("fixed", "least"),
    [
        (laws.sgd(0.1), 1),
        (laws.nesterov(0.1, 0.9), 2),
        (laws.nesterov(0.1, 0.0), 1),
        (laws.qhm(0.1, 0.9, 1.0), 1),
        (laws.aggmo(0.1, (0, 0.9, 0.9)), 2),
        (laws.delayed(0.1, 4), 5),
        (laws.pid(0.05, 0.9, 0.3), 2),
        (laws.complex_momentum(0.1, 0.6 + 0.6j), 2),
        (FixedLaw(parse("M(0.9) + M(0.5) + M(0)"), [1, 0, 1]), 2),
        (FixedLaw(parse("M(0.9) + M_3(0.5)"), [1, 1, 1, 0]), 3),
        (FixedLaw(parse("M(0.9) + M(0.9)"), [1, 1]), 1),
        (FixedLaw(parse("M(0.9) + M(0.9)"), [1, -1]), 0),
        (FixedLaw(parse("M(0.9)"), [0]), 0),
        (FixedLaw(Propagator([[0.5]], [0.0]), [1.0]), 0),
        (FixedLaw(Propagator([[0.5]], [1e-30]), [1e-30]), 1),
        (FixedLaw(parse("M(0.5) + M(0.3)"), [1e200, 1e200]), 2),
        (FixedLaw(Propagator(np.diag([0.9, 0.5]), [1, 1e-10]), [0, 1e10]), 1),
        (FixedLaw(parse("M(0.9) + M(0)"), [1, 1e-16]), 1),  # what 1 - ν may leave of a weight
    ],
)
def test_minimal_memory(fixed, least):
    assert fixed.minimal_memory == least == hankel_rank(fixed)
    if least == 0:
        with pytest.raises(ValueError, match="never moves"):
            fixed.minimal()
    else:
        small = fixed.minimal()
        assert small.propagator.k == least
        np.testing.assert_allclose(small.weights(50), fixed.weights(50), rtol=1e-10, atol=1e-13)


def test_a_law_of_units_that_gradients_reach_by_rounding_alone_never_moves():
    Q = np.array([[1.0, 1.0], [1.0, -1.0]])
    memory = CM(0.25 + 1e-11j).change_basis(Q)
    assert memory.reachable()[1].k == 1
    assert FixedLaw(memory, [1.0, -1.0]).minimal_memory == 0


@pytest.mark.parametrize("seed", range(6))
def test_minimal_memory_of_nearly_dependent_units(seed):
    """Where other units would step otherwise, or have eigenvalues beyond the unit circle, these are kept."""
    rng = np.random.default_rng(seed)
    U, _, V = np.linalg.svd(rng.normal(size=(10, 10)))
    memory = parse("CM_2(0.19+0.4i) + CM_3(0.76+0.1i)").change_basis(U * np.geomspace(1, 1e7, 10) @ V)
    fixed = FixedLaw(memory, rng.normal(size=10))
    small = fixed.minimal()
    assert small.propagator.k == fixed.minimal_memory <= 10
    assert small.equivalent(fixed, tol=1e-6)


def test_minimal_memory_of_equal_units_beside_a_large_block():
    fixed = FixedLaw("M_4(0.99) + M(0.5) + M(0.5)", [1, 2, 3, 4, 5, 6])
    assert fixed.minimal_memory == 5
    assert fixed.minimal().equivalent(fixed, tol=1e-12)
    with pytest.raises(TypeError, match="compared with another FixedLaw, got 'M"):
        fixed.equivalent("M(0.5)")


@pytest.mark.parametrize(("slow", "share", "least"), [("M_8(0.99)", 1e-12, 9), ("M_4(0.999)", 1e-11, 5)])
def test_weights_that_grow_late_count(slow, share, least):
    """Small as long as k gradients are all there are, they reach 15 and 0.0022."""
    memory = M(0.0) | parse(slow)
    late = FixedLaw(memory, [1.0, *[0.0] * (memory.k - 2), share])
    assert not late.equivalent(laws.sgd(1.0)) and not laws.sgd(1.0).equivalent(late)
    assert late.minimal_memory == least
    assert late.minimal().equivalent(late)


@given(unions, seeds)
def test_the_size_of_units_is_no_matter(p, seed):
    rng = np.random.default_rng(seed)
    scales, law = 10.0 ** rng.uniform(-15, 15, p.k), rng.normal(size=p.k) * rng.integers(0, 2, p.k)
    fixed = FixedLaw(p, law)
    there = FixedLaw(p.change_basis(np.diag(scales)), law / scales)
    assert fixed.equivalent(there)
    mu = fixed.weights(60)
    if is_clear(p.abstract_rule(60)) and is_clear(scipy.linalg.hankel(mu[:30], mu[29:-1])):
        assert there.minimal_memory == fixed.minimal_memory
    if there.minimal_memory:
        assert there.minimal().equivalent(fixed)


def test_what_is_the_same_optimizer():
    lr, beta = 0.1, 0.9
    assert laws.nesterov(lr, beta).equivalent(laws.snv(lr, beta, beta))
    assert laws.qhm(lr, beta, 1.0).equivalent(laws.ema_momentum(lr, beta))
    assert laws.qhm(lr, beta, 0.0).equivalent(laws.sgd(lr))
    assert laws.ema_momentum(lr, beta).equivalent(laws.heavy_ball(lr * (1 - beta), beta))
    assert laws.qhm(lr / (1 - beta), beta, beta).equivalent(laws.nesterov(lr, beta))
    assert laws.pid(lr, beta, 0.0).equivalent(laws.heavy_ball(lr, beta))
    assert laws.aggmo(lr, [beta]).equivalent(laws.heavy_ball(lr, beta))
    assert laws.delayed(lr, 0).equivalent(laws.sgd(lr))
    assert laws.snv(lr, beta, 0.0).equivalent(laws.heavy_ball(lr, beta))
    assert not laws.nesterov(lr, beta).equivalent(laws.heavy_ball(lr, beta))
    assert not laws.sgd(0.1).equivalent(laws.sgd(0.1001))
    assert not laws.delayed(lr, 3).equivalent(laws.delayed(lr, 4))


@given(unions, seeds)
def test_other_units_are_equivalent(p, seed):
    """a, L -> Qᵀa, Q⁻¹L keeps every weight, and one more unit that the law does not use adds nothing."""
    Q, law = change(p.k, seed), np.random.default_rng(seed).normal(size=p.k)
    fixed = FixedLaw(p, law)
    there = FixedLaw(p.change_basis(Q), np.linalg.solve(Q, law))
    more = FixedLaw(p | M(0.3), [*law, 0.0])
    assert fixed.equivalent(there) and there.equivalent(fixed) and fixed.equivalent(more)
    assert not fixed.equivalent(FixedLaw(p, law * (1 + 1e-6)))
    assert more.minimal_memory <= fixed.propagator.k


@given(reals, complexes())
def test_the_conjugate_block_with_the_sign_of_its_law(beta, gamma):
    p, q = CM(gamma) | M(beta), CM(gamma.conjugate()) | M(beta)
    assert FixedLaw(p, [1.0, 0.5, 2.0]).equivalent(FixedLaw(q, [1.0, -0.5, 2.0]))


# Refusals.


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: laws.sgd(-0.1), "lr must be a finite number >= 0, got -0.1"),
        (lambda: laws.sgd(float("nan")), "lr must be a finite number >= 0, got nan"),
        (lambda: laws.heavy_ball(0.1, 1.0), r"a momentum decay must lie in \(-1, 1\).*got 1.0"),
        (lambda: laws.heavy_ball(0.1, float("nan")), "a momentum decay .* got nan"),
        (lambda: laws.ema_momentum(0.1, -1.0), "a momentum decay .* got -1.0"),
        (lambda: laws.nesterov(float("inf"), 0.9), "lr must be a finite number"),
        (lambda: laws.qhm(0.1, 0.9, float("inf")), "nu must be a finite number; got inf"),
        (lambda: laws.aggmo(0.1, []), r"betas must be at least one decay.* got \[\]"),
        (lambda: laws.aggmo(0.1, 0.9), "betas must be at least one decay.* got 0.9"),
        (lambda: laws.aggmo(0.1, np.array(0.9)), "betas must be at least one decay"),
        (lambda: laws.sgd(10**400), "lr must be a finite number >= 0, got 1000"),
        (lambda: laws.pid(0.1, 0.9, -(10**400)), "kd must be a finite number; got -1000"),
        (lambda: laws.complex_momentum(10**400, 0.9j), "lr must be a finite number; got 1000"),
        (lambda: laws.complex_momentum("0.1", 0.9j), "lr must be a finite complex number; got '0.1'"),
        (lambda: laws.complex_momentum(None, 0.9j), "lr must be a finite complex number; got None"),
        (lambda: laws.sgd(0.1).transfer("1"), "got w = '1'"),
        (lambda: laws.sgd(True), "lr must be a finite number >= 0, got True"),
        (lambda: laws.sgd("0.1"), "lr must be a finite number >= 0, got '0.1'"),
        (lambda: laws.heavy_ball(0.1, None), "a momentum decay .* got None"),
        (lambda: laws.qhm(0.1, 0.9, None), "nu must be a finite number; got None"),
        (lambda: laws.accsgd(0.1, "10", 1.0), "kappa must be a positive finite number, got '10'"),
        (lambda: laws.aggmo(0.1, [0.9, 1.1]), "a momentum decay .* got 1.1"),
        (lambda: laws.accsgd(0.1, 0.0, 1.0), "kappa must be a positive finite number, got 0.0"),
        (lambda: laws.accsgd(0.1, 10.0, -1.0), "xi must be a positive finite number, got -1.0"),
        (lambda: laws.snv(0.1, 1.0, 0.5), "a momentum decay .* got 1.0"),
        (lambda: laws.triple_momentum(2.0, 1.0), "convexity 2.0 exceeds smoothness 1.0"),
        (lambda: laws.triple_momentum(0.0, 1.0), "convexity must be a positive finite number"),
        (lambda: laws.pid(0.1, 0.9, float("nan")), "kd must be a finite number; got nan"),
        (lambda: laws.complex_momentum(0.1, 0.9), "use M"),
        (lambda: laws.complex_momentum(complex("nan"), 0.9j), "lr must be a finite number"),
        (lambda: laws.ademamix_numerator(0.1, 0.9, 0.99, float("inf")), "alpha must be a finite number"),
        (lambda: laws.sgd(0.1).weights(-1), "n must be a whole number, 0 or more, got -1"),
        (lambda: laws.delayed(0.1, -1), "delay must be a whole number, 0 or more, got -1"),
        (lambda: laws.delayed(0.1, 1.5), "delay must be a whole number, 0 or more, got 1.5"),
        (lambda: FixedLaw(M(0.9), [1.0, 2.0]), "a law for 1 memory unit is as many finite real numbers; got"),
        (lambda: FixedLaw(M(0.9), [float("nan")]), "as many finite real numbers; got .nan"),
        (lambda: FixedLaw(M(0.9), [1j]), "finite real numbers"),
        (lambda: laws.sgd(0.1).transfer(2), r"is for \|w\| <= 1, got w = 2"),
    ],
)
def test_refuses(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda law: pickle.loads(pickle.dumps(law))])
def test_copies_are_immutable(again):
    law = again(laws.nesterov(0.1, 0.9))
    assert law.equivalent(laws.nesterov(0.1, 0.9)) and not law.law.flags.writeable


def test_a_text_names_a_memory():
    assert FixedLaw("M(0.9)", [0.1]).equivalent(laws.heavy_ball(0.1, 0.9))


def test_a_rate_of_zero_stands_still():
    assert laws.sgd(0.0).gain == 0.0
    assert laws.nesterov(0.0, 0.9).minimal_memory == 0
