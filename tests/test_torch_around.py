"""RLLC around torch's optimizers: linear around SGD, the base at law_lr = 0, their metrics, their states."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler

import oracles
from problems import learned_by_heart, quadratic, tanh_net
from rllc import reference
from rllc.law import DiagonalRidge, LawStep
from rllc.torch import RLLC, RLLCAdamW
from rllc.torch.around import Around
from same import same

STEPS = 60
BASES = {
    "SGD": lambda params: optim.SGD(params, 0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
    "damped SGD": lambda params: optim.SGD(params, 0.02, momentum=0.9, dampening=0.5),
    "Adam": lambda params: optim.Adam(params, 0.01),
    "amsgrad": lambda params: optim.AdamW(params, 0.01, amsgrad=True),
    "fused AdamW": lambda params: optim.AdamW(params, 0.01, weight_decay=0.1, fused=True),
    "foreach AdamW": lambda params: optim.AdamW(params, 0.01, foreach=True),
    "NAdam": lambda params: optim.NAdam(params, 0.01),
    "RAdam": lambda params: optim.RAdam(params, 0.01, betas=(0.9, 0.9)),
    "RMSprop": lambda params: optim.RMSprop(params, 0.01, centered=True, momentum=0.5),
    "Adagrad": lambda params: optim.Adagrad(params, 0.01, lr_decay=0.1),
    "Adamax": lambda params: optim.Adamax(params, 0.01),
    "Adadelta": lambda params: optim.Adadelta(params, 0.5),
    "Rprop": lambda params: optim.Rprop(params, 0.01),
    "ASGD": lambda params: optim.ASGD(params, 0.01),
}


class Signs(optim.Optimizer):
    """A stranger with a metric of its own: θ -= lr sign(m)."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if len(state) == 0:
                    state["m"] = torch.zeros_like(p)
                state["m"].lerp_(p.grad, 0.1)
                p.sub_(state["m"].sign(), alpha=group["lr"])


def parameters(problem, dtype=torch.float64):
    """θ_0 in three tensors."""
    theta = torch.tensor(problem[0], dtype=dtype)
    return [nn.Parameter(t.clone()) for t in (theta[:7], theta[7:8], theta[8:].reshape(-1, 4))]


def gradients(problem, seed=0):
    """(params,) -> sets their gradients, noisy ones, the same for every seed."""
    rng = np.random.default_rng(seed)

    def take(params, factor=1.0):
        theta = torch.cat([p.detach().double().ravel() for p in params]).numpy()
        g = torch.tensor(problem[1](theta) + 0.1 * rng.normal(size=theta.size)) * factor
        parts = g.split([p.numel() for p in params])
        for p, part in zip(params, parts, strict=True):
            p.grad = part.view_as(p).to(p.dtype)
        return g.numpy()

    return take


def run(make, steps=STEPS, problem=None, dtype=torch.float64, seed=0):
    problem = problem or quadratic()
    params, take = parameters(problem, dtype), gradients(problem, seed)
    opt = make(params)
    for _ in range(steps):
        take(params)
        opt.step()
    return params, opt


def worst(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize(("memory", "momentum"), [("M(0)", 0.0), ("M(0.9)", 0.9)])
def test_around_sgd_is_linear_memory(memory, momentum):
    """Issue: to 1e-12."""
    ours, around = run(
        lambda params: Around(optim.SGD(params, 0.02, momentum=momentum), 0.05, law_step=LawStep())
    )
    theirs, linear = run(lambda params: RLLC(params, memory, lr=0.02, law_lr=0.05, guard=False))
    assert abs(float(linear.law[0]) - 1) > 0.05
    assert worst(ours, theirs) < 1e-12
    assert abs(around.law - linear.law).item() < 1e-12


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_law_rate_it_is_the_base_to_the_bit(base, dtype):
    alone, opt = run(BASES[base], dtype=dtype)
    ours, around = run(lambda params: Around(BASES[base](params), 0.0, average=9.0), dtype=dtype)
    same([p.detach() for p in ours], [p.detach() for p in alone])
    for p, q in zip(ours, alone, strict=True):
        same({name: around.base.state[p][name] for name in opt.state[q]}, dict(opt.state[q]))


def test_around_adam_is_rllc_in_adams_metric():
    """By the reference; in 200 steps this makes 1e-9 of a rounding."""
    problem, rate, c2 = tanh_net(), 0.02, 0.3
    law_update = reference.relative(c2, 1.5, 0.5, clip=1.0)
    process = oracles.adam(problem[0].size).process(*problem[::-1], [1.0], rate, law_update)
    params = parameters(problem)
    opt = Around(optim.Adam(params, rate), c2, law_step=LawStep(q=1.5, decay=0.5, clip=1.0))
    for _ in range(100):
        state = next(process)
        now = torch.cat([p.detach().ravel() for p in params]).numpy()
        for p, part in zip(params, torch.tensor(problem[1](now)).split([7, 1, 16]), strict=True):
            p.grad = part.view_as(p)
        opt.step()
    np.testing.assert_allclose(torch.cat([p.detach().ravel() for p in params]), state.theta, rtol=1e-9)
    np.testing.assert_allclose(opt.law, state.L, rtol=1e-9)
    assert abs(state.L[0] - 1) > 0.1


# Optimizers at rest: u = P m with m a constant gradient, so that the best factor for a gradient c m is c.
METRICS = {
    "SGD": lambda params: optim.SGD(params, 0.01),
    "Adam": lambda params: optim.Adam(params, 0.01, eps=1e-2),
    "amsgrad": lambda params: optim.AdamW(params, 0.01, weight_decay=0.0, amsgrad=True, eps=1e-2),
    "NAdam": lambda params: optim.NAdam(params, 0.01, momentum_decay=0.0, eps=1e-2),
    "RAdam at first": lambda params: optim.RAdam(params, 0.01, eps=1e-2),
    "RAdam": lambda params: optim.RAdam(params, 0.01, betas=(0.5, 0.9), eps=1e-2),
    "RMSprop": lambda params: optim.RMSprop(params, 0.01, alpha=0.9, eps=1e-2),
    "Adagrad": lambda params: optim.Adagrad(params, 0.01, lr_decay=0.3, eps=1e-2),
    "Adamax": lambda params: optim.Adamax(params, 0.01),
    "a stranger's": lambda params: Signs(params, 0.01),
}


@pytest.mark.parametrize("base", METRICS)
def test_metrics_are_those_of_the_steps(base):
    """x = uᵀg / 1.001 uᵀP⁻¹u is c / 1.001 for g = c m if, and only if, u = P m with this P."""
    params = parameters(quadratic())
    m = [torch.linspace(-2, 3, p.numel(), dtype=torch.float64).view_as(p) for p in params]
    metric = (lambda state, group, unit: state["m"].abs() * unit) if base == "a stranger's" else None
    opt = Around(METRICS[base](params), 0.1, law_step=LawStep(), metric=metric)
    steps = 4 if base == "RAdam at first" else 200
    # NAdam's step looks ahead in a gradient that stays: only at rest it is P m.
    for t in range(steps + 1):
        for p, g in zip(params, m, strict=True):
            p.grad = g.clone() if t < steps else 1.7 * g
        if t == steps:
            opt.param_groups[0]["law"].fill_(1.0)
        opt.step()
    held = 1 - 0.9**steps if base == "a stranger's" else 1.0
    assert float(opt.law[0]) == pytest.approx(1 + 0.1 * 1.7 / held / 1.001, rel=1e-6)


def test_a_base_without_a_metric_is_measured_by_the_last_gradient():
    """x = uᵀg / (1.001 |u| |g'|), whatever the length of its steps."""
    for lr in (1.0, 1e-3):
        params = parameters(quadratic())
        opt = Around(optim.Adadelta(params, lr), 0.1, law_step=LawStep())
        take, last, law = gradients(quadratic()), None, 1.0
        for _ in range(10):
            before = torch.cat([p.detach().ravel() for p in params])
            g = take(params)
            if last is not None:
                u, size = last
                law += 0.1 * u @ g / (1.001 * np.linalg.norm(u) * size)
            opt.step()
            after = torch.cat([p.detach().ravel() for p in params])
            last = ((before - after) / (lr * law)).numpy(), np.linalg.norm(g)
            assert float(opt.law[0]) == pytest.approx(law, rel=1e-10)


def test_muon_takes_a_law():
    params = [nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))]
    opt = Around(optim.Muon(params, 0.01), 0.1)
    for _ in range(5):
        params[0].grad = params[0].detach() * 2
        opt.step()
    assert 0.5 < float(opt.law[0]) < 2
    assert float(opt.law[0]) != 1


def test_groups_count_by_their_own_rates_of_the_step_that_was():
    """u = d / lr of each group, with the lr the step was made with, by hand."""
    rates = [(0.1, 0.0), (0.02, 0.3), (0.0, 0.01), (0.05, 0.02)]
    a, b = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    base = optim.SGD([{"params": [a]}, {"params": [b], "maximize": True}], lr=torch.tensor(0.1), momentum=0.9)
    opt = Around(base, 0.05, law_step=LawStep())
    rng, law, u = np.random.default_rng(0), 1.0, None
    m = np.zeros((2, 3))
    for pair in rates:
        g = rng.normal(size=(2, 3))
        signed = g * [[1], [-1]]
        if u is not None and (u * u).sum() > 0:
            law += 0.05 * (u * signed).sum() / (1.001 * (u * u).sum())
        m = 0.9 * m + signed
        for p, part, group, lr in zip((a, b), g, base.param_groups, pair, strict=True):
            p.grad, group["lr"] = torch.tensor(part), torch.tensor(lr, dtype=torch.float64)
        opt.step()
        u = m * (np.array(pair) > 0)[:, None]
        assert float(opt.law[0]) == pytest.approx(law, rel=1e-12)


def test_schedulers_of_either_work():
    def with_scheduler(own):
        params, take = parameters(quadratic()), gradients(quadratic())
        base = optim.AdamW(params, 0.05)
        opt = Around(base, 0.1)
        scheduler = lr_scheduler.ExponentialLR(base if own else opt, 0.9)
        for _ in range(10):
            take(params)
            opt.step()
            scheduler.step()
        return params, scheduler.get_last_lr()

    (ours, lr), (theirs, _) = with_scheduler(True), with_scheduler(False)
    same([p.detach() for p in ours], [p.detach() for p in theirs])
    assert lr == [pytest.approx(0.05 * 0.9**10)]


def test_a_closure_is_called_once():
    params, calls = parameters(quadratic()), []

    def closure():
        assert torch.is_grad_enabled()
        calls.append(1)
        gradients(quadratic())(params)
        return 3.0

    opt = Around(optim.Adam(params), 0.1)
    assert [opt.step(closure), opt.step(closure)] == [3.0, 3.0]
    assert len(calls) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_skipped_whole(bad):
    params, opt = run(lambda params: Around(optim.Adam(params, 0.01), 0.1, average=9.0), 5)
    before = copy.deepcopy(([p.detach() for p in params], opt.state_dict()["state"], opt.law))
    for p in params:
        p.grad = torch.ones_like(p)
    params[1].grad[0] = bad
    opt.step()
    same(([p.detach() for p in params], opt.state_dict()["state"], opt.law), before)
    assert opt.skipped == 1


def test_a_step_of_the_base_that_is_not_finite_is_taken_back():
    params, opt = run(lambda params: Around(optim.SGD(params, 0.01, momentum=0.9), 0.1), 5)
    before, law = [p.detach().clone() for p in params], opt.law
    opt.base.state[params[0]]["momentum_buffer"][0] = math.inf
    with pytest.raises(RuntimeError, match="SGD has made a step that is not finite; the parameters are as"):
        opt.step()
    same([p.detach() for p in params], before)
    same(opt.law, law)


def test_after_a_base_that_raises_parameters_are_as_before_and_it_goes_on():
    class Failing(optim.SGD):
        fails = False

        def step(self, closure=None):
            super().step(closure)
            if self.fails:
                raise OSError("in the midst")

    params, opt = run(lambda params: Around(Failing(params, 0.01), 0.1), 5)
    before, law = [p.detach().clone() for p in params], opt.law
    opt.base.fails = True
    with pytest.raises(OSError, match="in the midst"):
        opt.step()
    same(([p.detach() for p in params], opt.law), (before, law))
    assert not any(opt.state[p]["unit"].any() for p in params)
    opt.base.fails = False
    opt.step()
    same(opt.law, law)  # of a unit of zero nothing is learned
    assert all(opt.state[p]["unit"].any() for p in params)


def test_parameters_without_a_gradient_sit_it_out():
    params, opt = run(lambda params: Around(optim.Adam(params, 0.01), 0.1), 5)
    kept = copy.deepcopy((params[0].detach(), opt.state[params[0]]))
    for _ in range(3):
        gradients(quadratic())(params)
        params[0].grad = None
        opt.step()
    same((params[0].detach(), opt.state[params[0]]), kept)
    late = nn.Parameter(torch.ones(2, dtype=torch.float64))
    opt.add_param_group({"params": [late], "lr": 0.1})
    late.grad = torch.ones_like(late)
    opt.step()
    assert late.tolist() == pytest.approx([1 - 0.1 * float(opt.law[0])] * 2, rel=1e-6)
    for p in params:
        p.grad = None
    late.grad = None
    before = copy.deepcopy(opt.state_dict())
    opt.step()
    same(opt.state_dict(), before)


WAYS = {
    "state_dict": None,
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
}


@pytest.mark.parametrize("base", ["SGD", "fused AdamW", "amsgrad", "Adadelta"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_and_copies_go_on_to_the_bit(base, dtype, way):
    def make(params):
        return Around(BASES[base](params), 0.05, average=9.0)

    params, opt = run(make, 10, dtype=dtype)
    if WAYS[way]:
        twins, twin = WAYS[way]((params, opt))
    else:
        file = io.BytesIO()
        torch.save(opt.state_dict(), file)
        file.seek(0)
        twins = [nn.Parameter(p.detach().clone()) for p in params]
        twin = make(twins)
        twin.load_state_dict(torch.load(file, weights_only=True))
    same(twin.state_dict(), opt.state_dict())
    for ps, o in ((params, opt), (twins, twin)):
        take = gradients(quadratic(), 5)
        for _ in range(10):
            take(ps)
            o.step()
    same(twin.state_dict(), opt.state_dict())
    same([p.detach() for p in twins], [p.detach() for p in params])
    assert opt.law.dtype == torch.float64


def test_one_batch_is_learned_by_heart_and_stays_so():
    """Where all is learned x stays positive: without a bound the law would be 1e14 after 1,000 steps."""
    losses, opt = learned_by_heart(
        lambda params: RLLC.around(optim.SGD(params, 0.1, momentum=0.9), law_lr=0.1), 1000
    )
    assert max(losses[500:]) < 1e-2 and opt.skipped == 0
    assert opt.law.item() < 1e3


def test_foreign_states_are_refused_before_anything_changes():
    _, opt = run(lambda params: Around(optim.Adam(params, 0.01), 0.1), 5)
    before = copy.deepcopy(opt.state_dict())
    damaged = copy.deepcopy(before)
    damaged["param_groups"][0]["law"] = torch.tensor([math.nan])
    states = {
        "is of an optimizer without a law, this optimizer is around Adam": run(optim.Adam, 2)[1],
        "is of around AdamW, this optimizer is around Adam;": run(
            lambda params: Around(optim.AdamW(params), 0.1), 2
        )[1],
        "is of RLLCAdamW": run(RLLCAdamW, 2)[1],
    }
    for message, other in states.items():
        with pytest.raises(ValueError, match=message):
            opt.load_state_dict(other.state_dict())
        same(opt.state_dict(), before)
    with pytest.raises(ValueError, match="law must hold finite real numbers"):
        opt.load_state_dict(damaged)
    same(opt.state_dict(), before)
    opt.base.load_state_dict(run(optim.Adam, 2)[1].state_dict())
    with pytest.raises(RuntimeError, match="Adam has taken over a state without a law; load it through"):
        opt.step()


class NoRate(optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ps: Around(optim.LBFGS(ps), 0.1), "LBFGS calls its closure several times a step"),
        (lambda ps: Around(optim.SparseAdam(ps), 0.1), "SparseAdam takes sparse gradients"),
        (lambda ps: Around(RLLCAdamW(ps), 0.1), "RLLCAdamW has a law of its own"),
        (lambda ps: Around(Around(optim.SGD(ps), 0.1), 0.1), "Around has a law of its own"),
        (lambda ps: Around(NoRate(ps), 0.1), "NoRate has no lr in its parameter groups"),
        (lambda ps: Around([optim.SGD(ps[:1]), optim.SGD(ps[1:])], 0.1), "takes one torch.optim.Optimizer"),
        (lambda ps: Around(optim.SGD(ps), -0.1), "law_lr must be a finite number >= 0"),
        (lambda ps: Around(optim.SGD(ps), 0.1, [1.0, 1.0]), "law must have 1 entries"),
        (lambda ps: Around(optim.SGD(ps), 0.1, math.nan), "law must hold finite real numbers"),
        (lambda ps: Around(optim.SGD(ps), 0.1, eps=-1.0), "eps must be a finite number >= 0"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(parameters(quadratic()))


def test_a_sparse_gradient_and_a_step_in_the_backward_pass_are_refused():
    table = nn.Embedding(5, 2, sparse=True)
    opt = Around(optim.SGD(table.parameters(), 0.1), 0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not take sparse gradients"):
        opt.step()
    p = nn.Parameter(torch.ones(2))
    opt = Around(optim.SGD([p], 0.1), 0.1)
    p.register_post_accumulate_grad_hook(lambda _: opt.step())
    with pytest.raises(RuntimeError, match="inside the backward pass"):
        p.sum().backward()


def test_a_complex_parameter_is_two_real_ones():
    z = nn.Parameter(torch.tensor([1 + 2j, -1j], dtype=torch.complex128))
    x = nn.Parameter(torch.view_as_real(z.detach()).clone())
    opts = [Around(optim.Adam([p], 0.01), 0.1) for p in (z, x)]
    for t in range(10):
        g = torch.view_as_real(z.detach()) * 0.3 + t
        z.grad, x.grad = torch.view_as_complex(g.clone()), g
        for opt in opts:
            opt.step()
    torch.testing.assert_close(torch.view_as_real(z.detach()), x.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(opts[0].law, opts[1].law, rtol=1e-12, atol=0)


def test_it_is_made_by_rllc_and_its_step_is_relative_and_clipped():
    opt = RLLC.around(optim.SGD(parameters(quadratic()), 0.1), 0.1)
    assert type(opt) is Around
    assert opt._rule.step == LawStep(q=1.5, clip=1.0)
    assert opt._rule.eps == DiagonalRidge().eps


@pytest.mark.parametrize(("rate", "law_lr"), [(1e-5, 0.1), (1e-3, 0.3)])
def test_a_base_rate_far_too_small_breaks_nothing(rate, law_lr):
    """The law has to grow a thousandfold: a step of it was once longer than the law, and turned it round."""
    torch.manual_seed(0)
    x = torch.randn(200, 5)
    labels = (x.sum(1) > 0).float()
    net = nn.Linear(5, 1)
    opt = RLLC.around(optim.AdamW(net.parameters(), rate), law_lr)
    for _ in range(1000):
        opt.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(net(x)[:, 0], labels).backward()
        opt.step()
        assert opt.law > 0
    assert opt.skipped == 0 and ((net(x)[:, 0] > 0) == labels.bool()).float().mean() > 0.98


# --- What is wrong is named, before it bends anything ------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int8])
def test_a_metric_of_another_dtype_is_the_same_metric(dtype):
    def law(metric):
        return run(lambda params: Around(optim.SGD(params, 0.02), 0.1, metric=metric), 10)[1].law

    assert law(lambda state, group, unit: 2 * unit) == law(
        lambda state, group, unit: torch.full_like(unit, 2.0, dtype=dtype) * unit
    )


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda state, group, unit: unit.sum(), r"shape \(7,\), got \(\)"),
        (lambda state, group, unit: None, r"shape \(7,\), got None"),
    ],
)
def test_a_metric_of_another_shape_is_refused(metric, said):
    with pytest.raises(ValueError, match=rf"metric must return a tensor of the unit's {said}"):
        run(lambda params: Around(optim.SGD(params, 0.02), 0.1, metric=metric), 2)


def test_a_unit_is_measured_by_the_rate_of_its_own_step():
    """Of a parameter that sat out a change of the rate."""
    laws = []
    for pause in (False, True):
        p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(1))
        base = optim.SGD([p, q], lr=1.0)
        opt = Around(base, 0.01, law_step=LawStep())
        for lr, gradient in [(1.0, 1.0), *[(0.001, None)] * pause, (0.001, 1.0)]:
            base.param_groups[0]["lr"] = lr
            p.grad = None if gradient is None else torch.full((3,), gradient)
            q.grad = torch.zeros(1)
            opt.step()
        laws.append(float(opt.law[0]))
    assert laws[0] == laws[1] == pytest.approx(1 + 0.01 / 1.001, abs=1e-9)


class Own(optim.SGD):
    """A base that keeps a state of this name."""

    name = "unit"

    def step(self, closure=None):
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault(self.name, torch.ones_like(p))


class Averages(Own):
    name = "average"


class WantsLoss(optim.SGD):
    def step(self, loss):
        super().step()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda params: Around(Own(params, 0.1), 0.1), "Own keeps a state 'unit'"),
        (
            lambda params: Around(Averages(params, 0.1), 0.1, average=9.0),
            "Averages keeps a state 'average'",
        ),
        (lambda params: Around(WantsLoss(params, 0.1), 0.1), "WantsLoss wants loss for a step"),
        (
            lambda params: Around(optim.SGD([{"params": params, "skipped": 5}], 0.1), 0.1),
            "SGD has 'skipped' in its parameter groups",
        ),
        (lambda params: Around(optim.SGD(params, 0.1), 0.1, law_step="relative"), "law_step must be a rllc"),
        (lambda params: RLLCAdamW(params, law_step="relative"), "law_step must be a rllc"),
    ],
)
def test_what_a_base_must_not_have(make, said):
    params = parameters(quadratic())
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match=said):
        opt = make(params)
        gradients(quadratic())(params)
        opt.step()
    same([p.detach() for p in params], before)


def test_around_what_was_wrapped_before():
    params, opt = run(lambda params: Around(optim.SGD(params, 0.02), 0.1), 5)
    again = Around(opt.base, 0.1)
    assert again.law == 1
    gradients(quadratic())(params)
    again.step()
