"""Both optimizers against Algorithm 1 and against each other; fixed laws against torch.optim."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from problems import DENSE, EIGHT, flat, quadratic, relative_error, run, tanh_net
from rllc import reference
from rllc.law import GUARD_FRACTION, Cutoff, GramianRidge, Ridge
from rllc.notation import as_propagator
from rllc.optax import rllc
from rllc.torch import RLLC
from test_law import correction, oracle

STEPS = 100
C1, C2 = 0.02, 0.01
PROBLEMS = {"quadratic": quadratic, "tanh_net": tanh_net}


# Made once for all who ask: a reference, a run, a compilation for both problems.


@cache
def reference_run(problem, p, inverse, guard, c2=C2, steps=STEPS):
    theta, gradient = PROBLEMS[problem]()
    pinv = oracle(inverse, p)
    pinv = reference.guarded(pinv, p, GUARD_FRACTION) if guard else pinv
    states = reference.algorithm_1(gradient, theta, p, np.ones(p.k), C1, c2, pinv)
    return [next(states) for _ in range(steps)]


@cache
def torch_run(problem, memory, steps=STEPS, **options):
    """θ_T and L from parameters of several shapes, so that the law must span them."""
    theta, gradient = PROBLEMS[problem]()
    params = [
        torch.nn.Parameter(torch.tensor(part)) for part in (theta[:1], theta[1:13].reshape(3, 4), theta[13:])
    ]
    opt = RLLC(params, memory, **{"lr": C1, "law_lr": C2} | options)
    for _ in range(steps):
        now = torch.cat([q.detach().reshape(-1) for q in params])
        grads = torch.tensor(gradient(now.numpy())).split([1, 12, theta.size - 13])
        for q, g in zip(params, grads, strict=True):
            q.grad = g.reshape(q.shape)
        opt.step()
    return torch.cat([q.detach().reshape(-1) for q in params]).numpy(), opt.law.numpy()


def split(x):
    return {"a": x[0], "b": (x[1:13].reshape(3, 4), x[13:])}


@cache
def transformation(memory, **options):
    """init and a compiled step: (gradient, state, parameters) to the next state and parameters."""
    tx = rllc(memory, **{"learning_rate": C1, "law_learning_rate": C2} | options)

    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(split(grads), state, params)
        params = optax.apply_updates(params, updates)
        return state, params, flat(params)

    return tx.init, step


@cache
def optax_run(problem, memory, steps=STEPS, **options):
    theta, gradient = PROBLEMS[problem]()
    with jax.enable_x64(True):
        init, step = transformation(as_propagator(memory), **options)
        params = split(jnp.asarray(theta))
        state = init(params)
        for _ in range(steps):
            state, params, theta = step(gradient(np.asarray(theta)), state, params)
        return np.asarray(theta), np.asarray(state[0].law)


FRAMEWORKS = {
    "torch foreach": partial(torch_run, foreach=True),
    "torch one by one": partial(torch_run, foreach=False),
    "torch fused": partial(torch_run, fused=True),
    "torch on the device": partial(torch_run, capturable=True),
    "optax": optax_run,
}
# The other inverse is another matrix in the same place: for few memories.
INVERSES = [
    *((memory, GramianRidge()) for memory in (*EIGHT, DENSE)),
    *((memory, Ridge(1e-2)) for memory in (EIGHT[0], EIGHT[-1], DENSE)),
]
# Passes know no problem: torch's four ways take turns, so that each memory meets either problem twice.
CASES = [
    (framework, problem, *chosen)
    for i, framework in enumerate(FRAMEWORKS)
    for j, chosen in enumerate(INVERSES)
    for n, problem in enumerate(PROBLEMS)
    if framework == "optax" or (i + j + n) % 2
]


@pytest.mark.parametrize(("framework", "problem", "memory", "inverse"), CASES, ids=str)
def test_equals_algorithm_1(framework, problem, memory, inverse):
    p = as_propagator(memory)
    want = reference_run(problem, p, inverse, guard=True)[-1]
    theta, learned = FRAMEWORKS[framework](problem, p, inverse=inverse)
    assert relative_error(theta, want.theta) < 1e-9
    # An error of the law in a direction that hardly moves M L is not an error of the process.
    assert relative_error(learned, want.L) < 1e-13 * max(1e3, np.linalg.cond(p.gramian()) ** 1.5)
    assert relative_error(want.M @ learned, want.M @ want.L) < 1e-9


@pytest.mark.parametrize("inverse", [Cutoff(1e-8), Ridge(1e-8)], ids=repr)
@pytest.mark.parametrize("memory", EIGHT)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_exact_formula_is_exact_to_the_conditioning_of_each_step(problem, memory, inverse):
    """Near-exact inverses amplify rounding by cond(M)², so they are judged one step at a time."""
    p = as_propagator(memory)
    _, gradient = PROBLEMS[problem]()
    states = reference_run(problem, p, inverse, guard=False, steps=60)
    worst = 0.0
    for state in states[p.k :]:
        g, kappa = gradient(state.theta), np.linalg.cond(state.M) ** 2
        if kappa > 1e10:
            continue
        got = correction(state.M, g, p, inverse)
        worst = max(worst, relative_error(got, oracle(inverse, p)(state.M, g)) / kappa)
    assert 0 < worst < 1e-14


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("memory", [*EIGHT, DENSE], ids=[*EIGHT, "dense"])
def test_both_frameworks_give_the_same_law(memory, problem):
    p = as_propagator(memory)
    theta_torch, law_torch = torch_run(problem, p)  # the default is this inverse
    theta_optax, law_optax = optax_run(problem, p, inverse=GramianRidge())
    assert relative_error(theta_torch, theta_optax) < 1e-9
    assert relative_error(law_torch, law_optax) < 1e-13 * max(1e3, np.linalg.cond(p.gramian()) ** 1.5)


@pytest.mark.parametrize(
    ("memory", "fixed", "options"),
    [
        ("M(0)", (1.0,), {}),
        ("M(0.9)", (1.0,), {"momentum": 0.9}),
        ("M(0.9) + M(0)", (0.9, 1.0), {"momentum": 0.9, "nesterov": True}),
    ],
)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_fixed_law_equals_torch_sgd(framework, memory, fixed, options):
    start, gradient = tanh_net()
    theta = torch.nn.Parameter(torch.tensor(start))
    sgd = torch.optim.SGD([theta], lr=C1, **options)

    def step(_):
        theta.grad = torch.tensor(gradient(theta.detach().numpy()))
        sgd.step()
        return theta.detach().numpy()

    want = run((start, gradient), step, STEPS)
    c2 = {"law_learning_rate" if framework == "optax" else "law_lr": 0.0}
    got, learned = FRAMEWORKS[framework]("tanh_net", memory, law=fixed, **c2)
    assert relative_error(got, want) < 1e-12
    np.testing.assert_array_equal(learned, fixed)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_weight_decay_is_adamw_decoupled(framework):
    """θ <- θ - c1 (M L + w θ): the decay is multiplied by the learning rate and never enters memory."""
    got, _ = FRAMEWORKS[framework]("quadratic", "M(0.9)", weight_decay=0.3, steps=50)
    p = as_propagator("M(0.9)")
    pinv = reference.guarded(reference.gramian_ridge(p, GramianRidge().eps), p, GUARD_FRACTION)
    theta, gradient = quadratic()
    m, L = np.zeros((theta.size, 1)), np.ones(1)
    for _ in range(50):
        g = gradient(theta)
        L = L + C2 * pinv(m, g)
        m = 0.9 * m + g[:, None]
        theta = theta - C1 * (m @ L + 0.3 * theta)
    assert relative_error(got, theta) < 1e-12


@pytest.mark.parametrize("problem", PROBLEMS)
def test_only_c1_c2_and_c1_l0_matter_and_the_size_of_a_is_absorbed(problem):
    """docs/mathematics.md, section 1: other numbers, the same process."""
    p = as_propagator("M(0.9) + M(0)")
    want, _ = torch_run(problem, p, lr=C1, law_lr=C2, law=(1.0, 1.0))
    rescaled, _ = torch_run(problem, p, lr=C1 / 8, law_lr=8 * C2, law=(8.0, 8.0))
    shorter, _ = torch_run(problem, p.change_basis(np.eye(2) / 5), lr=C1, law_lr=C2, law=(5.0, 5.0))
    assert relative_error(rescaled, want) < 1e-12
    assert relative_error(shorter, want) < 1e-10
