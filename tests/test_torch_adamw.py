"""RLLCAdamW: the process of the paper in AdamW's metric, AdamW without a law, a citizen of torch.optim."""

import copy
import inspect
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
from rllc.law import PROGRESS, DiagonalRidge, LawStep, Sums, correction, in_scale, plain_frame
from rllc.optax import rllc_adamw
from rllc.torch import RLLC, RLLCAdamW, adamw_passes, one_unit
from same import same

WAYS = {
    "kernels": {},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "one by one": {"foreach": False, "fused": False},
}
SIZES = (7, 1, 16)


@pytest.fixture(params=WAYS)
def way(request):
    """Arguments that choose who makes AdamW's step, and with it the sums."""
    return WAYS[request.param]


def parameters(problem, dtype=torch.float64, sizes=SIZES):
    return [nn.Parameter(t.clone()) for t in torch.tensor(problem[0], dtype=dtype).split(sizes)]


def flat(params):
    return torch.cat([p.detach().double().ravel() for p in params]).numpy()


def take(params, g):
    parts = torch.as_tensor(g).split([p.numel() for p in params])
    for p, part in zip(params, parts, strict=True):
        p.grad = part.view_as(p).to(p.dtype)


def run(make, steps=60, dtype=torch.float64, sizes=SIZES, factor=1.0, seed=0, noise=0.1):
    """Parameters and optimizer after steps on noisy gradients of a loss times `factor`."""
    problem = quadratic()
    params, rng = parameters(problem, dtype, sizes), np.random.default_rng(seed)
    opt = make(params)
    for _ in range(steps):
        g = problem[1](flat(params))
        take(params, factor * (g + noise * rng.normal(size=g.size)))
        opt.step()
    return params, opt


def rllc(params, **options):
    start = {"lr": 0.02, "law_lr": 0.05, "law": 1.0, "law_step": LawStep(q=1.5, clip=1.0)}
    return RLLCAdamW(params, **start | options)


# --- What it computes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", [LawStep(q=np.array(1.5), clip=1.0), LawStep(), LawStep(q=1.0, decay=0.5, clip=0.1)]
)
@pytest.mark.parametrize(("law", "decay"), [(1.0, 0.1), (-0.5, 0.0)])
def test_it_is_the_process_of_the_reference(way, step, law, decay):
    """u = m̂/(√v̂ + eps), x = uᵀg / 1.001 uᵀm̂ with the old m and v: float64, 100 steps, to 1e-9.

    In two hundred this problem makes 1e-9 of one rounding, as its law goes up to 60 and down again.
    """
    problem, lr, c2 = tanh_net(), 0.02, 0.05
    law_update = oracles.of_the_first(reference.relative(c2, step.q, step.decay, step.clip))
    process = oracles.adamw(problem[0].size).process(*problem[::-1], [law, decay], lr, law_update)
    params = parameters(problem)
    opt = rllc(params, law=law, law_step=step, weight_decay=decay, **way)
    for _ in range(100):
        state = next(process)
        take(params, problem[1](flat(params)))
        opt.step()
    np.testing.assert_allclose(flat(params), state.theta, rtol=1e-9, atol=1e-12)
    assert float(opt.law[0]) == pytest.approx(state.L[0], rel=1e-9)
    assert abs(state.L[0] - law) > 1e-3


def warmed_up(t):
    return 1e-3 * min(1.0, (t - 1) / 180)


@pytest.mark.parametrize("rate", [lambda t: 1e-3, warmed_up], ids=["constant", "warm-up"])
def test_the_default_is_that_of_the_reference_and_of_optax(way, rate):
    """The law grows, finds a length and anneals: 200 steps of 1e-5 L / L_0 on noisy gradients. A rate that
    rises beyond makes no step longer.
    """
    inspected = (inspect.signature(f).parameters for f in (RLLCAdamW, rllc_adamw))
    ours, theirs = ({name: p.default for name, p in params.items()} for params in inspected)
    assert (ours["lr"], ours["law_lr"]) == (theirs["learning_rate"], theirs["law_learning_rate"])
    for name in ("eps", "weight_decay", "law", "law_step", "average"):
        assert ours[name] == theirs[name]

    problem, rng = quadratic(), np.random.default_rng(5)
    theta, noise = problem[0], rng.normal(size=(200, problem[0].size))
    law_update = reference.seeking(0.04, q=1.5, decay=0.5, clip=1.0, growth=0.1, smoothing=0.95, c1=rate)
    rows = iter(noise)
    process = oracles.adam(theta.size).process(
        lambda theta: problem[1](theta) + next(rows), theta, [0.01], rate, law_update
    )
    params = parameters(problem)
    opt, laws, lengths = RLLCAdamW(params, **way), [], []
    for t, row in enumerate(noise, 1):
        state = next(process)
        opt.param_groups[0]["lr"] = rate(t)
        take(params, problem[1](flat(params)) + row)
        opt.step()
        laws.append(float(opt.law))
        lengths.append(rate(t) * laws[-1])
        assert laws[-1] == pytest.approx(state.L[0], rel=1e-9)
    np.testing.assert_allclose(flat(params), state.theta, rtol=1e-9, atol=1e-12)
    found = int(np.argmax(laws))
    waited = sum(rate(t) == 0 for t in range(1, 201))
    assert 20 <= found < 150 and laws[found] == pytest.approx(0.01 * math.exp(0.1 * (found + 1 - waited)))
    assert laws[-1] < laws[found] and max(lengths[found:]) <= rate(found + 2) * laws[found] * (1 + 1e-12)


@pytest.mark.parametrize("how", ["another lr", "tensors"])
def test_what_stays_says_nothing_to_the_law(way, how):
    """A group of lr = 0 beside one that moves: the law is that of the other alone. The gradients of what
    stays agree for ever, and the law would grow until it breaks what moves.
    """
    number = torch.tensor if how == "tensors" else float
    problem, rng = quadratic(), np.random.default_rng(1)
    params, alone = parameters(problem), parameters(problem)
    start = params[0].detach().clone()
    groups = [{"params": params[:1], "lr": number(0.0)}, {"params": params[1:], "lr": number(1e-3)}]
    both, one = RLLCAdamW(groups, **way), RLLCAdamW(alone[1:], **way)
    for _ in range(150):
        g = problem[1](flat(params)) + rng.normal(size=problem[0].size)
        take(params, g), take(alone, g)
        both.step(), one.step()
        assert float(both.law) == pytest.approx(float(one.law), rel=1e-9)
    assert torch.equal(params[0], start) and both.param_groups[0]["progress"][2] > 0
    params[0].grad[0] = math.nan  # but it is not taken in either
    before = copy.deepcopy(both.state_dict()["state"])
    both.step()
    assert both.skipped == 1
    same(both.state_dict()["state"], before)


def test_where_nothing_moves_the_law_waits(way):
    params, rng = parameters(quadratic()), np.random.default_rng(1)
    opt = RLLCAdamW(params, lr=0.0, **way)
    for _ in range(100):
        take(params, quadratic()[1](flat(params)) + rng.normal(size=24))
        opt.step()
    assert float(opt.law) == 0.01 and opt.param_groups[0]["progress"][2] == 0


def test_gradients_of_zero_at_the_start_do_not_end_the_search(way):
    params, rng = parameters(quadratic()), np.random.default_rng(1)
    opt = RLLCAdamW(params, **way)
    for t in range(150):
        take(params, (quadratic()[1](flat(params)) + 0.01 * rng.normal(size=24)) * (t >= 40))
        opt.step()
        assert t >= 40 or (float(opt.law), opt.param_groups[0]["progress"]) == (0.01, (0.0,) * PROGRESS)
    assert float(opt.law) > 1


def test_one_batch_is_learned_by_heart_and_stays_so(way):
    """What everybody tries first. Where all is learned x stays positive: unbounded, steps would grow on."""
    losses, opt = learned_by_heart(lambda params: RLLCAdamW(params, **way), 300)
    assert max(losses[150:]) < 1e-3
    assert float(opt.law) < 1e3
    assert max(float(p.detach().abs().max()) for p in opt.param_groups[0]["params"]) < 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["fused", "foreach", "one by one"])
def test_without_a_law_rate_it_is_adamw_to_the_bit(name, dtype, decay):
    options = {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": decay, **WAYS[name]}
    ours, opt = run(
        lambda params: RLLCAdamW(params, law_lr=0.0, law=1.0, average=None, **options), dtype=dtype
    )
    theirs, adamw = run(lambda params: optim.AdamW(params, **options), dtype=dtype)
    same([p.detach() for p in ours], [p.detach() for p in theirs])
    for p, q in zip(ours, theirs, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            same(opt.state[p][name], adamw.state[q][name])
        assert float(opt.state[p]["step"]) == float(adamw.state[q]["step"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ways_agree(dtype):
    found = [run(lambda params, w=w: rllc(params, weight_decay=0.1, **w), dtype=dtype) for w in WAYS.values()]
    eps = torch.finfo(dtype).eps
    for params, opt in found[1:]:
        np.testing.assert_allclose(flat(params), flat(found[0][0]), rtol=0, atol=300 * eps)
        assert float(opt.law[0]) == pytest.approx(float(found[0][1].law[0]), rel=300 * eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"average": None, "betas": (0, 0.9)},
        {"maximize": True, "weight_decay": 0.1},
        {"law": 1.0, "law_step": LawStep(q=1.5)},
        {"law": 1.0, "law_step": LawStep()},
    ],
    ids=str,
)
def test_a_step_in_one_call_is_the_same_but_for_the_rounding_of_the_sums(options, dtype, monkeypatch):
    pytest.importorskip("numba")

    def trained():
        generator, ended = torch.Generator().manual_seed(0), []
        params = [nn.Parameter(torch.randn(size, generator=generator, dtype=dtype)) for size in (2000, 9, 1)]
        opt = RLLCAdamW(params, **options)
        for t in range(60):
            for p in params:
                noise = torch.randn(p.shape, generator=generator, dtype=dtype)
                p.grad = (noise + 0.3 * p.detach()) * (0 if t == 23 else 1e4 if t == 7 else 1)
            match t:
                case 20:
                    params[0].grad[3] = math.nan
                case 21:
                    params[0].grad[3] = 1e30  # too large a square for float32
                case 22:
                    params[0].grad = None
                case 30 | 40 | 50:
                    opt.param_groups[0]["lr"] = {30: 5e-3, 40: 0.0, 50: 1e-3}[t]
            opt.step()
            ended.append(opt.law.item())
        group = opt.param_groups[0]
        counts = [opt.skipped, group.get("averaged"), *(state["step"].item() for state in opt.state.values())]
        return [*ended, *group["progress"], group["last_size"]], [p.detach() for p in params], counts

    calls = []
    whole = adamw_passes.whole
    monkeypatch.setattr(adamw_passes, "whole", lambda *args: calls.append(whole(*args)) or calls[-1])
    at_once = trained()
    # Those that are skipped, and in float32 the square that has to be looked at.
    assert [t for t, learned in enumerate(calls) if learned is None] == [20, 21][: at_once[-1][0]]
    monkeypatch.setattr(adamw_passes, "whole", lambda *args: None)
    law, params, counts = trained()
    np.testing.assert_allclose(at_once[0], law, rtol=1e-11)
    torch.testing.assert_close(
        at_once[1], params, rtol=8 * torch.finfo(dtype).eps, atol=1e-7 if dtype == torch.float32 else 1e-14
    )
    assert at_once[2] == counts


def test_a_law_of_another_dtype_is_not_written_by_its_address():
    params = parameters(quadratic())
    opt = RLLCAdamW(params)
    opt.param_groups[0]["law"] = torch.tensor([0.01])
    take(params, np.ones(24))
    opt.step()
    assert opt.law.dtype == torch.float32
    assert 0.01 < opt.law.item() < 0.012


def test_the_law_of_one_unit_is_that_of_rllc_law():
    """In numbers, as `rllc.law` has it in arrays."""
    rng = np.random.default_rng(0)
    for measured, yardsticks in ((False, (None,)), (True, (-1,))):
        for step in (LawStep(), LawStep(q=1.5, decay=0.5, clip=0.3), LawStep(growth=0.1, smoothing=0.5)):
            keeper = one_unit.books("test", 0.7, 0.05)
            for t in range(1, 6):
                W, v, gg = sums = np.abs(rng.normal(size=3)) * (t > 1, 1, 1)
                plain = Sums(np.array([[W]]), np.array([v]), gg, np.float64(1), np.float64(1))
                frame, ridge = plain_frame(1), DiagonalRidge(1e-3)
                x = correction(np, plain, frame, ridge, faded=None, rounding=1e-15)
                x = in_scale(np, x, plain.W, np.float64(keeper["last_size"]), yardsticks)
                progress = np.array(keeper["progress"])
                expected, progress = step.taken(np, keeper["law"].numpy(), 0.05, x, np.sqrt(gg), progress)
                rule = one_unit.Rule(1e-3, step, measured)
                learned = one_unit.learn(rule, keeper, sums, [])
                assert learned.law == pytest.approx(expected[0], rel=1e-14)
                assert learned.progress == pytest.approx(progress, rel=1e-14)
                one_unit.taken(keeper, learned)


@pytest.mark.parametrize(("name", "dtype"), [("kernels", torch.float32), ("foreach", torch.float64)])
def test_the_scale_of_the_loss_does_not_matter(name, dtype):
    """Parameters and law after 1,000 steps."""
    made = lambda params: rllc(params, lr=3e-3, eps=1e-30, weight_decay=0.01, **WAYS[name])  # noqa: E731
    theirs, other = run(made, 1000, dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for factor in (1e-6, 1e6):
        ours, opt = run(made, 1000, dtype, factor=factor)
        np.testing.assert_allclose(flat(ours), flat(theirs), rtol=0, atol=tolerance)
        assert float(opt.law[0]) == pytest.approx(float(other.law[0]), rel=tolerance)
    assert abs(float(other.law[0]) - 1) > 0.1


@pytest.mark.parametrize("sizes", [(24,), (1,) * 24, (3, 0, 21)])
@pytest.mark.parametrize("name", ["kernels", "foreach"])
def test_the_layout_of_the_parameters_does_not_matter(name, sizes):
    made = lambda params: rllc(params, **WAYS[name])  # noqa: E731
    ours, opt = run(made, 200, sizes=sizes)
    theirs, other = run(made, 200)
    np.testing.assert_allclose(flat(ours), flat(theirs), rtol=0, atol=1e-10)
    assert float(opt.law[0]) == pytest.approx(float(other.law[0]), rel=1e-10)


@pytest.mark.parametrize("law", [0.0, -1.0, 1e-5])
def test_weight_decay_is_not_scaled_by_the_law(law):
    """θ (1 - lr w) - lr L u, whatever L."""
    p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    before, g = p.detach().clone(), torch.tensor([0.3, -0.7], dtype=torch.float64)
    p.grad = g
    rllc([p], law=law, law_lr=0.0, lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(
        p.detach(), before * 0.95 - 0.1 * law * g / (g.abs() + 1e-8), rtol=1e-14, atol=0
    )


def test_groups_have_their_own_options_and_one_law():
    """One step after the other by hand; the second group goes uphill, and only the second decays."""
    a, b = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    opt = rllc(
        [
            {"params": [a], "lr": 0.1, "betas": (0.5, 0.9)},
            {"params": [b], "maximize": True, "eps": 1e-3, "weight_decay": 0.2},
        ],
        lr=torch.tensor(0.02, dtype=torch.float64),
        law_step=LawStep(),
    )
    options = [(0.1, 0.5, 0.9, 1e-8, 0.0, 1), (0.02, 0.9, 0.999, 1e-3, 0.2, -1)]
    theta, law, rng = [np.ones(3), np.ones(3)], 1.0, np.random.default_rng(0)
    m, v = [np.zeros((2, 3)) for _ in range(2)]
    for t in range(1, 8):
        g = rng.normal(size=(2, 3))
        a.grad, b.grad = map(torch.tensor, g)
        opt.step()
        top = bottom = 0.0
        units = []
        for i, (lr, b1, b2, eps, decay, sign) in enumerate(options):
            if t > 1:
                old = m[i] / (1 - b1 ** (t - 1))
                u = old / (np.sqrt(v[i] / (1 - b2 ** (t - 1))) + eps)
                top, bottom = top + sign * u @ g[i], bottom + u @ old
            m[i] = b1 * m[i] + (1 - b1) * sign * g[i]
            v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
            units.append((lr, decay, m[i] / (1 - b1**t) / (np.sqrt(v[i] / (1 - b2**t)) + eps)))
        law += 0.05 * top / (1.001 * bottom) if t > 1 else 0.0
        for i, (lr, decay, u) in enumerate(units):
            theta[i] = theta[i] - lr * (law * u + decay * theta[i])
        np.testing.assert_allclose(flat([a, b]), np.concatenate(theta), rtol=1e-12)
        assert float(opt.law[0]) == pytest.approx(law, rel=1e-12)


def test_an_added_group_has_its_own_count(way):
    """A parameter that joins in mid-training is corrected for its own bias, as in AdamW."""

    def grown(make):
        old, new = (nn.Parameter(torch.ones(3)) for _ in range(2))
        opt = make([old])
        for t in range(8):
            if t == 4:
                opt.add_param_group({"params": [new], "lr": 0.05})
            for p in (old, new):
                p.grad = p.detach() * 0.3 + t
            opt.step()
        return old.detach(), new.detach()

    ours = grown(lambda params: RLLCAdamW(params, lr=0.02, law_lr=0.0, law=1.0, **way))
    theirs = grown(lambda params: optim.AdamW(params, lr=0.02, weight_decay=0.0, **way))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_complex_parameter_is_two_real_ones(way):
    z = nn.Parameter(torch.tensor([1 + 2j, -1j], dtype=torch.complex128))
    x = nn.Parameter(torch.view_as_real(z.detach()).clone())
    opts = [rllc([p], **way) for p in (z, x)]
    for t in range(10):
        g = torch.view_as_real(z.detach()) * 0.3 + t
        z.grad, x.grad = torch.view_as_complex(g.clone()), g
        for opt in opts:
            opt.step()
    with opts[0].averaged(), opts[1].averaged():
        torch.testing.assert_close(torch.view_as_real(z.detach()), x.detach(), rtol=1e-12, atol=0)
    assert float(opts[0].law[0]) == pytest.approx(float(opts[1].law[0]), rel=1e-12)


@pytest.mark.parametrize("b1", [0.0, 0.0625, 0.4, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_gradient_after_a_large_one_is_not_lost(way, b1, dtype):
    p = nn.Parameter(torch.ones(40, dtype=dtype))
    opt = rllc([p], betas=(b1, 0.999), **way)
    large = 0.1 / torch.finfo(dtype).eps ** 1.1
    for size in (large, 1.0, -1.0):
        p.grad = torch.full_like(p, size)
        opt.step()
    want = (1 - b1) * (b1 * (b1 * large + 1.0) - 1.0)
    np.testing.assert_allclose(opt.state[p]["exp_avg"], want, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 37, 1000])
def test_kernels_give_the_same_bits_for_entries_alone_and_in_vectors(n):
    """Which of them the compiler's code takes may depend on where tensors happen to be."""
    kernels, like = pytest.importorskip("rllc.torch.kernels_adamw"), np.empty(0, np.float32)
    start = np.random.default_rng(n).normal(size=(5, n)).astype(np.float32) * 1e-2
    start[1] **= 2
    counts = np.ones(n, np.float32)
    numbers = np.array([0.1, 0.99, 0.9, 0.999, 1e-8, 1.0, 0.3])
    found = []
    for chunks in ([(0, 0, n)], [(0, i, i + 1) for i in range(n)]):
        rows = start.copy()
        where = (
            np.array([[row.ctypes.data] for row in rows]),
            np.array(chunks),
            like,
            np.array([counts.ctypes.data]),
        )
        sums = kernels._sum(1, *where, 0.9, 0.999, 1e-8)
        kernels._average(1, *where, numbers)
        found.append((sums, rows))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-13)
    np.testing.assert_array_equal(found[1][1], found[0][1])
    assert (found[0][1][4] != start[4]).all()


# --- What it must survive ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_gradient_that_is_not_finite_is_skipped_whole(way, bad, steps):
    params, opt = run(lambda params: rllc(params, **way), steps)
    take(params, np.zeros(24))
    opt.step() if steps else None
    before = copy.deepcopy(([p.detach() for p in params], opt.law))
    state = copy.deepcopy(opt.state_dict()["state"])
    take(params, np.ones(24))
    params[2].grad[3] = bad
    opt.step()
    same(([p.detach() for p in params], opt.law), before)
    if steps:
        same(opt.state_dict()["state"], state)
    assert opt.skipped == 1
    take(params, np.ones(24))
    opt.step()
    assert all(p.isfinite().all() for p in params)


@pytest.mark.parametrize(
    ("dtype", "large", "fits"),
    [
        (torch.float32, 1e19, True),
        (torch.float32, 2e19, False),
        (torch.float16, 300.0, True),
        (torch.float16, 6e4, False),
        (torch.float64, 1e160, False),
    ],
)
def test_a_gradient_whose_square_overflows_is_skipped(dtype, large, fits):
    p = nn.Parameter(torch.ones(9, dtype=dtype))
    opt = rllc([p])
    p.grad = torch.full_like(p, large)
    opt.step()
    assert opt.skipped == 1 - fits
    assert (p.detach() != 1).all() == fits
    p.grad = torch.ones_like(p)
    opt.step()
    assert math.isfinite(float(opt.law[0]))
    assert p.isfinite().all()


def test_the_law_is_never_nan_whatever_comes():
    rng = np.random.default_rng(0)
    p = nn.Parameter(torch.zeros(4))
    opt = rllc([p], law_lr=100.0, law_step=LawStep(q=1.5))
    for _ in range(300):
        g = rng.normal(size=4) * 10.0 ** rng.integers(-30, 20) * rng.integers(0, 2, size=4)
        p.grad = torch.tensor(g, dtype=torch.float32)
        opt.step()
        assert math.isfinite(float(opt.law[0]))
    assert p.isfinite().all()


def test_no_gradient_no_step():
    _, opt = run(rllc, 3)
    opt.zero_grad()
    before = copy.deepcopy(opt.state_dict())
    opt.step()
    same(opt.state_dict(), before)


WAYS_TO_COPY = {
    "state_dict": None,
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", WAYS_TO_COPY)
def test_checkpoints_and_copies_go_on_to_the_bit(way, dtype, how):
    made = lambda params: rllc(params, weight_decay=0.1, eps=1e-6, **way)  # noqa: E731
    params, opt = run(made, 10, dtype)
    if WAYS_TO_COPY[how]:
        twins, twin = WAYS_TO_COPY[how]((params, opt))
    else:
        file = io.BytesIO()
        torch.save(opt.state_dict(), file)
        file.seek(0)
        twins = [nn.Parameter(p.detach().clone()) for p in params]
        twin = made(twins)
        twin.load_state_dict(torch.load(file, weights_only=True))
    same(twin.state_dict(), opt.state_dict())
    for ps, o in ((params, opt), (twins, twin)):
        for t in range(10):
            take(ps, flat(ps) * 0.1 + t / 10)
            o.step()
    same(twin.state_dict(), opt.state_dict())
    same([p.detach() for p in twins], [p.detach() for p in params])
    assert opt.law.dtype == torch.float64


def test_a_state_whose_storage_is_exchanged_is_followed():
    """Kernels go by addresses: of moments and counts, too, the present ones."""
    apart = []
    for options in ({}, {"foreach": True}):
        params, opt = run(lambda params, options=options: rllc(params, **options), steps=3)
        for name in ("exp_avg", "exp_avg_sq", "step"):
            for state in opt.state.values():
                state[name].data = state[name].data * 2
        take(params, np.linspace(-1, 1, 24))
        opt.step()
        assert [state["step"].item() for state in opt.state.values()] == [7.0] * 3
        apart.append((flat(params), opt.law))
    torch.testing.assert_close(apart[0][1], apart[1][1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(apart[0][0], apart[1][0], rtol=1e-12, atol=1e-12)


def test_counts_of_steps_of_another_dtype_go_on_in_it():
    """Kernels count in float32 where torch does: what somebody else made of the counts is not theirs."""
    ours, theirs = (run(rllc, steps=5)[1] for _ in range(2))
    for state in theirs.state.values():
        state["step"] = state["step"].double()
    for opt in (ours, theirs):
        opt.step()
    for (p, state), (q, other) in zip(ours.state.items(), theirs.state.items(), strict=True):
        assert other["step"].dtype == torch.float64
        assert state["step"] == other["step"] == 6
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_foreign_states_are_refused_before_anything_changes():
    _, opt = run(rllc, 5)
    before = copy.deepcopy(opt.state_dict())
    damaged = copy.deepcopy(before)
    damaged["param_groups"][0]["law"] = torch.tensor([math.nan])
    short = copy.deepcopy(before)
    del short["param_groups"][0]["progress"]
    states = {
        "is of an optimizer without a law, this optimizer is RLLCAdamW": run(optim.AdamW, 2)[1].state_dict(),
        r"is of M\(0.9\), this": run(lambda ps: RLLC(ps, "M(0.9)", 0.1, 0.1), 2)[1].state_dict(),
        "law must hold finite real numbers": damaged,
        "it has no 'progress'": short,
    }
    wrong = {"progress": [(0.0,) * 6, (math.nan,) * PROGRESS, None], "last_size": ["x"], "averaged": [None]}
    for name, values in wrong.items():
        for value in values:
            state = copy.deepcopy(before)
            state["param_groups"][0][name] = value
            states[f"'{name}' must be finite numbers of shape .*" + "got " * (value == "x")] = state
    for name in (*opt.defaults, "averaged", "evaluating", "law"):
        state = copy.deepcopy(before)
        del state["param_groups"][0][name]
        states[f"it has no '{name}'"] = state
    for name, value in {"lr": "x", "weight_decay": None, "betas": None, "eps": 0.0}.items():
        state = copy.deepcopy(before)
        state["param_groups"][0][name] = value
        states[f"{name} must be"] = state
    for message, state in states.items():
        with pytest.raises(ValueError, match=message):
            opt.load_state_dict(state)
        same(opt.state_dict(), before)


@pytest.mark.parametrize("kept", [3, 4])
def test_a_state_without_the_last_numbers_of_its_progress_goes_on(kept):
    _, opt = run(lambda params: RLLCAdamW(params), 5)
    older = copy.deepcopy(opt.state_dict())
    older["param_groups"][0]["progress"] = older["param_groups"][0]["progress"][:kept]
    opt.load_state_dict(older)
    zeros = (0.0,) * (PROGRESS - kept)
    assert opt.param_groups[0]["progress"] == (*older["param_groups"][0]["progress"], *zeros)


def test_schedulers_and_closures():
    params = parameters(quadratic())
    opt = rllc(params, lr=0.1)
    scheduler = lr_scheduler.ExponentialLR(opt, 0.5)

    def closure():
        assert torch.is_grad_enabled()
        take(params, np.ones(24))
        return 2.0

    before = flat(params)
    assert opt.step(closure) == 2.0
    np.testing.assert_allclose(flat(params), before - 0.1, rtol=1e-6)
    scheduler.step()
    before = flat(params)
    opt.step(closure)
    np.testing.assert_allclose(flat(params), before - 0.05 * float(opt.law[0]), rtol=1e-6)


def test_a_sparse_gradient_and_a_step_in_the_backward_pass_are_refused():
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not take sparse gradients"):
        rllc(table.parameters()).step()
    p = nn.Parameter(torch.ones(2))
    opt = rllc([p])
    p.register_post_accumulate_grad_hook(lambda _: opt.step())
    with pytest.raises(RuntimeError, match="inside the backward pass"):
        p.sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be a finite number >= 0"),
        ({"lr": torch.ones(2)}, r"lr must have one entry, got a tensor of shape \(2,\)"),
        ({"law_lr": math.nan}, "law_lr must be a finite number >= 0"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\] must be in"),
        ({"betas": (0.9, -0.1)}, r"betas\[1\] must be in"),
        ({"betas": 0.9}, r"betas must be two numbers in \[0, 1\), got 0.9"),
        ({"betas": (0.9, 0.99, 0.999)}, r"betas must be two numbers in \[0, 1\), got"),
        ({"eps": 0.0}, "eps must be a positive finite number, got 0.0: without it"),
        ({"eps": -1.0}, "eps must be a positive finite number"),
        ({"eps": "1e-8"}, "eps must be a positive finite number, got '1e-8'"),
        ({"betas": "0.9"}, r"betas must be two numbers in \[0, 1\), got 0.9"),
        ({"eps": 1e-44}, "eps = 1e-44 is too small for torch.float32: without it"),
        ({"weight_decay": math.inf}, "weight_decay must be a finite number >= 0"),
        ({"law": [1.0, 2.0]}, "law must have 1 entries"),
        ({"foreach": True, "fused": True}, "give one of them"),
        ({"law_lr": (0.9, 0.95)}, "law_lr must be a number or a tensor of one entry, got"),
        ({"average": -1.0}, "average must be a finite power"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rllc([nn.Parameter(torch.ones(2))], **options)
    if set(options) <= {"lr", "betas", "eps", "weight_decay"}:
        opt = rllc([nn.Parameter(torch.ones(2))])
        with pytest.raises(ValueError, match=message):
            opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]} | options)
        assert len(opt.param_groups) == 1


def test_eps_must_not_be_zero_in_half_precision():
    p = nn.Parameter(torch.ones(2, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"eps = 1e-08 is too small for torch.float16"):
        RLLCAdamW([p], foreach=True)
    for opt in (RLLCAdamW([p]), RLLCAdamW([p], foreach=True, eps=1e-6)):
        p.grad = torch.zeros_like(p)
        opt.step()
        assert p.isfinite().all()


@pytest.mark.parametrize("relaid", ["gradient", "memory", "gaps", "memory and gaps"])
def test_half_precision_is_the_same_in_any_layout(relaid):
    """Torch's foreach would add eps = 1e-8 in half precision, where it is zero: 0/0 without a gradient."""
    g = torch.eye(4, 6, dtype=torch.float16).repeat(2, 1, 1)
    plain = nn.Parameter(torch.ones(2, 4, 6, dtype=torch.float16))
    start = torch.ones(2, 4, 12, dtype=torch.float16)
    other = nn.Parameter(start[..., ::2] if relaid == "gaps" else start[..., :6].contiguous())
    opts = RLLCAdamW([plain], law=0.5), RLLCAdamW([other], law=0.5)
    for t in range(4):
        for p, opt in zip((plain, other), opts, strict=True):
            p.grad = (t + 1) * g
            if p is other and relaid == "gradient":
                p.grad = p.grad.transpose(0, 2).contiguous().transpose(0, 2)
            opt.step()
        if t == 0 and "memory" in relaid:
            other.data = other.data.transpose(0, 2).contiguous().transpose(0, 2)
            if "gaps" in relaid:
                other.data = torch.stack([other.data, other.data], -1)[..., 0]
    same(other.detach().contiguous(), plain.detach())
    for name in ("exp_avg", "exp_avg_sq", "average"):
        same(*(opt.state[p][name].contiguous() for p, opt in zip((plain, other), opts, strict=True)))
    assert (other[0, 3, 4:] == 1).all() and (other[0, 0, 0] != 1).all()


def test_numbers_in_tensors_are_taken_as_numbers(way):
    p = nn.Parameter(torch.ones(2))
    betas, eps = torch.tensor([0.5, 0.75]), torch.tensor(0.25)
    arrays = [np.float32(0.5), np.array([0.75])], np.array([0.25])
    opts = []
    for numbers in ((betas, eps), (tuple(betas), eps[None]), arrays):
        opts += [RLLCAdamW([p], 1e-3, *numbers, **way), RLLCAdamW([p], **way), RLLCAdamW([p], **way)]
        opts[-2].param_groups[0] |= {"betas": numbers[0], "eps": numbers[1]}
        state = RLLCAdamW([p], **way).state_dict()
        state["param_groups"][0] |= {"betas": numbers[0], "eps": numbers[1]}
        opts[-1].load_state_dict(state)
    for opt in opts:
        p.grad = torch.ones(2)
        opt.step()
        assert (opt.param_groups[0]["betas"], opt.param_groups[0]["eps"]) == ((0.5, 0.75), 0.25)
        assert opt.state[p]["exp_avg"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("steps", [0, 2])
def test_numbers_set_in_a_group_are_judged_before_anything_moves(way, steps):
    params, opt = run(lambda params: rllc(params, **way), steps)
    take(params, np.ones(24))
    for name, wrong in {"eps": 0.0, "betas": (0.9, 1.0)}.items():
        kept, opt.param_groups[0][name] = opt.param_groups[0][name], wrong
        before = copy.deepcopy(opt.state_dict())
        with pytest.raises(ValueError, match=name):
            opt.step()
        same(opt.state_dict(), before)
        opt.param_groups[0][name] = kept
    opt.step()
    assert opt.skipped == 0


def test_a_law_that_is_replaced_is_refused_before_anything_moves(way):
    error = {RuntimeError: r"must stay of shape \(1,\), got \(2,\)"}
    error[TypeError] = r"\['law'\] must stay a tensor of float64, got"
    for wrong in (0.5, torch.tensor([1]), torch.ones(1, dtype=torch.float16), torch.ones(2)):
        params = parameters(quadratic())
        opt = rllc(params, **way)
        opt.param_groups[0]["law"] = wrong
        take(params, np.ones(24))
        before = copy.deepcopy(opt.state_dict())
        kind = RuntimeError if isinstance(wrong, torch.Tensor) and wrong.numel() == 2 else TypeError
        with pytest.raises(kind, match=error[kind]):
            opt.step()
        same(opt.state_dict(), before)


def test_defaults():
    opt = RLLCAdamW([nn.Parameter(torch.ones(2))])
    group = opt.param_groups[0]
    assert (group["lr"], group["law_lr"], group["betas"], group["eps"]) == (1e-3, 0.04, (0.9, 0.999), 1e-8)
    assert (group["weight_decay"], group["average"], float(opt.law)) == (0.0, 9.0, 0.01)


def test_a_group_has_no_law_rate_of_its_own():
    with pytest.raises(ValueError, match="one law has one law_lr"):
        RLLCAdamW([{"params": [nn.Parameter(torch.ones(2))], "law_lr": 0.0}])
