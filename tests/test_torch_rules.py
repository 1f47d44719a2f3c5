"""rllc.torch.RLLC with memory that is any rule, and with any step of the law, against the reference."""

import copy
import io
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import oracles
from problems import Clipped, SignMomentum, noisy, noisy_quadratic
from rllc import parse, reference
from rllc.law import Cutoff, DiagonalRidge, GramianRidge, LawStep, Ridge
from rllc.memory import Adam, Deviation, MemoryRule, linear, union
from rllc.propagator import Propagator
from rllc.torch import RLLC
from same import same
from torch_nets import WAYS, assert_skips_whole, network, snapshot, train

N, STEPS = 12, 200
CUT = ((), 1), ((2, 3), 6), ((5,), 5)  # shapes and sizes of parameters
H, NOISE, START = noisy_quadratic(N, STEPS)

EVERYTHING = union("M(0.9)", Adam(), SignMomentum())
RULES = {
    "linear": linear("M_2(0.6) + CM(0.3+0.2i)"),
    "adam": Adam(),
    "deviation": union("M(0.9)", Deviation()),
    "sign": SignMomentum(),
    "clipped": Clipped(),
    "everything": EVERYTHING,
}
PLACES = {"on the host": {}, "on the device": {"capturable": True}}


def in_torch(memory, law, c1, c2, steps=STEPS, cut=CUT, **options):
    """θ and L of each step, and the optimizer, of parameters of several shapes."""
    shapes, sizes = zip(*cut, strict=True)
    params = [
        nn.Parameter(torch.tensor(x).reshape(s)) for x, s in zip(parts(START, sizes), shapes, strict=True)
    ]
    opt = RLLC(params, memory, c1, c2, law, **options)
    gradient, found = noisy(H, NOISE), []
    for _ in range(steps):
        theta = torch.cat([p.detach().reshape(-1) for p in params]).numpy()
        for p, g in zip(params, parts(gradient(theta), sizes), strict=True):
            p.grad = torch.tensor(g).reshape(p.shape)
        opt.step()
        found.append((torch.cat([p.detach().reshape(-1) for p in params]).numpy(), opt.law.numpy()))
    return found, opt


def parts(x, sizes):
    return np.split(x, np.cumsum(sizes)[:-1])


def assert_is_reference(found, oracle, law, c1, law_update):
    states = oracle.process(noisy(H, NOISE), START, law, c1, law_update)
    for (theta, L), state in zip(found, states, strict=False):
        np.testing.assert_allclose(theta, state.theta, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(L, state.L, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("place", PLACES)
def test_linear_memory_as_a_rule(place):
    p = parse("M_2(0.6) + CM(0.3+0.2i)")
    found, _ = in_torch(RULES["linear"], None, 0.02, 0.01, **PLACES[place])
    oracle = oracles.linear(p, reference.diagonal_ridge(1e-3))
    assert_is_reference(found, oracle, np.ones(4), 0.02, reference.additive(0.01))
    linearly, _ = in_torch(p, None, 0.02, 0.01, inverse=DiagonalRidge(), guard=False, **PLACES[place])
    for ours, theirs in zip(found, linearly, strict=True):
        np.testing.assert_allclose(np.concatenate(ours), np.concatenate(theirs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", PLACES)
def test_adam_with_a_relative_law(place):
    found, _ = in_torch(Adam(), [1.0], 0.02, 0.3, law_step=LawStep(q=1.5), **PLACES[place])
    assert_is_reference(found, oracles.adam(N), [1.0], 0.02, reference.relative(0.3, q=1.5))


@pytest.mark.parametrize("place", PLACES)
def test_the_deviation_from_the_average_beside_momentum(place):
    found, _ = in_torch(RULES["deviation"], [1.0, 0.0], 0.02, 0.01, **PLACES[place])

    def update(M, state, g, theta):
        _, average, t = state
        average = average + 10 / (t + 10) * (theta - average)
        return np.stack([0.9 * M[:, 0] + g, theta - average], 1), (g, average, t + 1)

    def pinv(M, state, g):
        last = np.linalg.norm(state[0])
        x = reference.diagonal_ridge(1e-3)(M, g)
        return x * [1.0, np.linalg.norm(M[:, 1]) / last] if last else np.zeros(2)

    oracle = oracles.Oracle(update, (np.zeros(N), np.zeros(N), 0), pinv)
    assert_is_reference(found, oracle, [1.0, 0.0], 0.02, reference.additive(0.01))


@pytest.mark.parametrize("place", PLACES)
def test_sign_momentum_with_a_law_rate_that_falls(place):
    found, _ = in_torch(SignMomentum(), [1.0], 0.01, 0.1, law_step=LawStep(decay=0.5), **PLACES[place])
    assert_is_reference(found, oracles.signs(N), [1.0], 0.01, reference.relative(0.1, decay=0.5))


@pytest.mark.parametrize("place", PLACES)
def test_a_union_of_three_with_a_clipped_step(place):
    step = LawStep(q=1.0, decay=0.5, clip=0.3)
    found, _ = in_torch(EVERYTHING, [0.1, 1.0, 1.0], 0.01, 0.2, law_step=step, **PLACES[place])

    def update(M, state, g, theta):
        of_adam, _, m = state
        u, of_adam, size = oracles.adams(of_adam, g)
        m = 0.9 * m + 0.1 * g
        return np.stack([0.9 * M[:, 0] + g, u, np.sign(m)], 1), (of_adam, size, m)

    hidden = oracles.adams_start(N), np.zeros(N), np.zeros(N)
    oracle = oracles.Oracle(update, hidden, lambda M, h, g: oracles.in_metric(M, h[1], g, 1))
    law_update = reference.relative(0.2, q=1.0, decay=0.5, clip=0.3)
    assert_is_reference(found, oracle, [0.1, 1.0, 1.0], 0.01, law_update)


@pytest.mark.parametrize("place", PLACES)
def test_a_rule_without_a_metric_is_measured_by_the_last_gradient(place):
    found, opt = in_torch(Clipped(), [1.0], 0.05, 0.1, **PLACES[place])
    oracle = oracles.without_metric(N, lambda g: np.minimum(g, 1))
    assert_is_reference(found, oracle, [1.0], 0.05, reference.additive(0.1))
    last = H * found[-2][0] + NOISE[-1]
    assert opt.param_groups[0]["last"].item() == pytest.approx(np.linalg.norm(last), rel=1e-12)


# --- Steps of the law, of linear memory too -------------------------------------------------------

STEPS_OF_LAWS = {
    "relative": {"q": 1.5},
    "falling": {"decay": 0.5},
    "clipped": {"clip": 0.05},
    "all": {"q": 1.0, "decay": 0.5, "clip": 0.05},
}


# All at once with each implementation, one alone on the host and on the device.
EACH_STEP = [
    *((way, "all") for way in (*WAYS.values(), {"capturable": True})),
    *itertools.product(PLACES.values(), [name for name in STEPS_OF_LAWS if name != "all"]),
]


@pytest.mark.parametrize(("way", "name"), EACH_STEP, ids=str)
def test_steps_of_the_law(way, name):
    p = parse("M(0.9) + M(0)")
    options = STEPS_OF_LAWS[name]
    found, opt = in_torch(p, None, 0.02, 0.05, law_step=LawStep(**options), guard=False, **way)
    oracle = oracles.linear(p, reference.gramian_ridge(p, 1e-3))
    assert_is_reference(found, oracle, np.ones(2), 0.02, reference.relative(0.05, **options))
    assert opt.param_groups[0]["progress"][0] == STEPS


@pytest.mark.parametrize("way", [WAYS["foreach"], WAYS["fused"], {"capturable": True}], ids=str)
def test_a_law_that_grows_before_it_learns(way):
    p, start = parse("M(0.9)"), [1e-3]
    options = {"q": 1.5, "decay": 0.5, "clip": 0.5, "growth": 0.1, "smoothing": 0.8}
    found, opt = in_torch(p, start, 0.02, 0.05, law_step=LawStep(**options), guard=False, **way)
    oracle = oracles.linear(p, reference.gramian_ridge(p, 1e-3))
    assert_is_reference(found, oracle, start, 0.02, reference.seeking(0.05, **options))
    count, _, size, _, _ = opt.param_groups[0]["progress"].tolist()
    assert count == STEPS and 0.01 < size < max(law[0] for _, law in found) * (1 + 1e-12)


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_clipped_where_groups_teach_at_different_rates(place, tensors):
    """M⁺ of the gradient weighted by each group's share of the largest law_lr."""
    p, rates, clip = parse("M(0.9)"), (0.1, 0.3), 0.02
    theta = [nn.Parameter(torch.tensor(x)) for x in parts(START, [4, 8])]
    groups = [
        {"params": [q], "law_lr": torch.tensor(r) if tensors else r}
        for q, r in zip(theta, rates, strict=True)
    ]
    opt = RLLC(groups, p, 0.1, 0.0, law_step=LawStep(clip=clip), guard=False, **PLACES[place])
    pinv, M, L, shortened = reference.gramian_ridge(p, 1e-3), np.zeros((N, 1)), np.ones(1), 0
    for t in range(20):
        g = NOISE[t]
        for q, x in zip(theta, parts(g, [4, 8]), strict=True):
            q.grad = torch.tensor(x)
        opt.step()
        x = pinv(M, np.concatenate([g[:4] / 3, g[4:]]))
        shortened += abs(x[0]) > clip
        L = L + 0.3 * np.clip(x, -clip, clip)
        M = M @ p.B + np.outer(g, p.a)
        np.testing.assert_allclose(opt.law, L, rtol=1e-6 if tensors else 1e-12)
    assert 5 < shortened < 20


# --- Layouts, dtypes, gradients that are missing --------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_layout_of_parameters_does_not_matter(rule):
    law = [1.0] * RULES[rule].k
    one, _ = in_torch(RULES[rule], law, 0.01, 0.02, steps=50, cut=[((N,), N)])
    many, _ = in_torch(RULES[rule], law, 0.01, 0.02, steps=50, cut=[((1,), 1)] * 4 + [((2, 4), 8)])
    for ours, theirs in zip(one, many, strict=True):
        np.testing.assert_allclose(np.concatenate(ours), np.concatenate(theirs), rtol=1e-11, atol=1e-12)


def test_shapes_and_strides():
    """0-d, empty, transposed, channels_last and sliced tensors take the steps of plain ones."""
    torch.manual_seed(0)
    big = torch.randn(6, 8)
    odd = [
        torch.tensor(0.7),
        torch.empty(0, 3),
        torch.randn(3, 4).t(),
        torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        big[::2, 1::3],
    ]
    odd = [nn.Parameter(t) for t in odd]
    plain = [nn.Parameter(t.detach().clone(memory_format=torch.contiguous_format)) for t in odd]
    for memory_dtype in (None, torch.bfloat16):
        opts = [RLLC(ps, EVERYTHING, 0.05, 0.05, memory_dtype=memory_dtype) for ps in (odd, plain)]
        for t in range(5):
            for ps in (odd, plain):
                for p in ps:
                    p.grad = torch.cos(p.detach() + t)
            for opt in opts:
                opt.step()
        # Random bits go by places in storage, so that layouts are rounded otherwise.
        tolerance = 1e-6 if memory_dtype is None else 1e-2
        torch.testing.assert_close(odd, plain, rtol=tolerance, atol=tolerance)
    assert opts[0].state[odd[3]]["h1"].is_contiguous(memory_format=torch.channels_last)


def test_complex_equals_the_real_view():
    z = nn.Parameter(torch.tensor([0.3 + 0.5j, -0.2 - 0.1j]))
    x = nn.Parameter(torch.view_as_real(z.detach().clone()))
    opts = [RLLC([p], EVERYTHING, 0.05, 0.05) for p in (z, x)]
    for _ in range(5):
        x.grad = torch.sin(x.detach())
        z.grad = torch.view_as_complex(x.grad.clone())
        for opt in opts:
            opt.step()
    same(torch.view_as_real(z.detach()), x.detach())
    assert opts[0].state[z]["m1"].dtype == torch.complex64
    assert opts[0].state[z]["h1"].shape == (2, 2)


def test_maximize_is_minimize_of_the_negative():
    up, down = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    opts = RLLC([up], EVERYTHING, 0.1, 0.1, maximize=True), RLLC([down], EVERYTHING, 0.1, 0.1)
    for _ in range(4):
        up.grad = torch.cos(up.detach())
        down.grad = -up.grad
        for opt in opts:
            opt.step()
    same(up.detach(), down.detach())
    same(opts[0].law, opts[1].law)


def test_weight_decay_is_decoupled():
    p = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    opt = RLLC([p], SignMomentum(), 0.1, 0.0, weight_decay=0.5)
    p.grad = torch.tensor([3.0], dtype=torch.float64)
    opt.step()
    assert p.item() == pytest.approx(2 - 0.1 * (1 + 0.5 * 2), rel=1e-15)


def test_a_parameter_without_gradient_sits_the_step_out():
    net = network()
    opt = RLLC(net.parameters(), EVERYTHING, 0.01, 0.01, weight_decay=0.1)
    train(net, opt, 3)
    before, count = [v.clone() for v in opt.state[net[2].bias].values()], opt.state[net[0].bias]["h3"].item()
    still = net[2].bias.detach().clone()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    net[2].bias.grad = None
    opt.step()
    same(list(opt.state[net[2].bias].values()), before)
    same(net[2].bias.detach(), still)
    assert opt.state[net[0].bias]["h3"].item() == count + 1


class Delay(MemoryRule):
    """The last two gradients and the last two parameters: a rule may return its very arguments."""

    k = 2
    native = True

    def init(self, xp, param):
        return param, param

    def update(self, xp, g, units, hidden, param):
        return (g, units[0]), (param, hidden[0])


@pytest.mark.parametrize("place", PLACES)
def test_a_rule_may_return_its_arguments(place):
    shift = Propagator([[0.0, 1.0], [0.0, 0.0]], [1.0, 0.0])
    found, opt = in_torch(Delay(), None, 0.05, 0.02, steps=20, **PLACES[place])
    linearly, _ = in_torch(shift, None, 0.05, 0.02, steps=20, inverse=DiagonalRidge(), guard=False)
    for ours, theirs in zip(found, linearly, strict=True):
        np.testing.assert_allclose(np.concatenate(ours), np.concatenate(theirs), rtol=1e-12)
    for name, back in (("h1", 2), ("h2", 3)):
        kept = torch.cat([state[name].reshape(-1) for state in opt.state.values()])
        np.testing.assert_array_equal(kept, found[-back][0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    p = nn.Parameter(torch.linspace(-1, 1, 9).to(dtype))
    wide = nn.Parameter(p.detach().float())
    opts = [RLLC([x], EVERYTHING, 0.05, 0.02, weight_decay=0.1) for x in (p, wide)]
    for _ in range(5):
        wide.data.copy_(p.data)  # start each step from the same numbers
        for name in ("m1", "m2", "m3"):
            if opts[1].state[wide]:
                opts[1].state[wide][name].copy_(opts[0].state[p][name])
        p.grad = torch.cos(p.detach().float()).to(dtype)
        wide.grad = p.grad.float()
        for opt in opts:
            opt.step()
        same(p.detach(), wide.detach().to(dtype))
        same(opts[0].state[p]["m2"], opts[1].state[wide]["m2"].to(dtype))
        same(opts[0].state[p]["h2"], opts[1].state[wide]["h2"])
    assert opts[0].state[p]["m1"].dtype == dtype and opts[0].state[p]["h2"].dtype == torch.float32


# --- Saved and copied -----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["everything", "deviation"])
@pytest.mark.parametrize(
    ("dtype", "memory_dtype"),
    [
        (torch.float64, None),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, None),
        (torch.bfloat16, torch.float32),
    ],
)
def test_a_saved_run_resumes_to_the_bit(dtype, memory_dtype, rule):
    options = {"law_step": LawStep(q=1.5, decay=0.5), "memory_dtype": memory_dtype, "average": 9.0}
    net = network(dtype)
    opt = RLLC(net.parameters(), RULES[rule], 0.01, 0.05, seed=5, **options)
    train(net, opt, 5)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "opt": opt.state_dict()}, file)
    train(net, opt, 5)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = network(dtype, seed=7)
    resumed = RLLC(again.parameters(), RULES[rule], 9.0, 9.0, **options)
    again.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["opt"])
    train(again, resumed, 5)
    same(snapshot(again, resumed), snapshot(net, opt))
    assert resumed.param_groups[0]["progress"][0] == 10


def test_a_state_without_a_mean_of_the_gradients_size_goes_on():
    net = network(torch.float32)
    opt = RLLC(net.parameters(), "M(0.9)", 0.1, 0.01, law_step=LawStep(growth=0.1), scope="tensor")
    train(net, opt, 3)
    older = copy.deepcopy(opt.state_dict())
    older["param_groups"][0]["progress"] = older["param_groups"][0]["progress"][:, :3]
    opt.load_state_dict(older)
    found = opt.param_groups[0]["progress"]
    same(found[:, :3], older["param_groups"][0]["progress"])
    assert not found[:, 3].any()


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_go_on_by_themselves(clone):
    net = network()
    pair = net, RLLC(net.parameters(), EVERYTHING, 0.01, 0.05, law_step=LawStep(q=1.5), scope="tensor")
    train(*pair, 4)
    other = clone(pair)
    assert repr(other[1]) == repr(pair[1])
    train(*other, 4)
    law = pair[1].law
    train(*pair, 4)
    same(snapshot(*other), snapshot(*pair))
    assert not torch.equal(law, pair[1].law)


def test_another_rules_state_is_refused_before_anything_changes():
    net = network()
    opt = RLLC(net.parameters(), union("M(0.9)", SignMomentum()), 0.01, 0.05)
    train(net, opt, 3)
    before = snapshot(net, opt)
    for other in (union("M(0.8)", SignMomentum()), union("M(0.9)", Adam()), "M(0.9) + M(0)"):
        state = RLLC(network().parameters(), other, 0.01, 0.05).state_dict()
        with pytest.raises(ValueError, match=r"this optimizer 'union\(M\(0.9\), SignMomentum\)'; build"):
            opt.load_state_dict(state)
    same(snapshot(net, opt), before)


# --- What goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", PLACES)
def test_a_gradient_that_is_not_finite_is_skipped_whole(place, value):
    net = network()
    opt = RLLC(net.parameters(), EVERYTHING, 0.01, 0.01, weight_decay=0.1, average=9.0, **PLACES[place])
    assert_skips_whole(net, opt, value)
    assert (opt.param_groups[0]["progress"][0], opt.param_groups[0]["averaged"]) == (4, 4)


class Bad(MemoryRule):
    """Ordinary at first; the third time it is asked, what `make` says."""

    def __init__(self, make):
        self.make = make

    def init(self, xp, param):
        return xp.zeros_like(param), xp.zeros_like(param[:1])

    def update(self, xp, g, units, hidden, param):
        good = (0.9 * units[0] + g,), (hidden[0] + 1, hidden[1] + 1)
        return self.make(*good) if (hidden[0] >= 2).any() else good


NAN = float("nan")
FAULTS = {
    "unit": (
        lambda m, h: ((m[0] * NAN,), h),
        RuntimeError,
        "made unit 1 of parameter 1 of its group, of shape",
    ),
    "hidden": (lambda m, h: (m, (h[0], h[1] / 0)), RuntimeError, "made hidden array 2 of parameter 1 of its"),
    "another k": (lambda m, h: ((m[0], m[0]), h), ValueError, r"returned units of shapes \[\(3,\), \(3,\)\]"),
    "no unit": (lambda m, h: ((), h), ValueError, r"returned units of shapes \[\], there were \[\(3,\)\]"),
    "shape": (
        lambda m, h: ((m[0][:2],), h),
        ValueError,
        r"units of shapes \[\(2,\)\], there were \[\(3,\)\]",
    ),
    "less hidden": (lambda m, h: (m, h[:1]), ValueError, r"hidden arrays of shapes \[\(3,\)\], there were"),
    "dtype": (
        lambda m, h: (m, (h[0].double(), h[1])),
        ValueError,
        "hidden arrays of .*float64, torch.float32",
    ),
    "no tuple": (lambda m, h: (m[0], h), ValueError, "must return .units, hidden., two tuples of arrays"),
}


def faulty(rule, **options):
    """Two parameters, of which the rule sees the fault in the second alone; two steps done."""
    params = [nn.Parameter(torch.zeros(0)), nn.Parameter(torch.ones(3))]
    opt = RLLC(params, rule, 0.1, 0.1, weight_decay=0.1, **options)
    for _ in range(2):
        for p in params:
            p.grad = torch.full_like(p, 0.5)
        opt.step()
    return params, opt, everything_of(params, opt)


def everything_of(params, opt):
    books = [x for x in opt.param_groups[0].values() if isinstance(x, torch.Tensor)]
    return [x.detach().clone() for p in params for x in (p, *opt.state[p].values())] + copy.deepcopy(books)


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_rule_is_named_before_anything_changes(name):
    make, error, text = FAULTS[name]
    params, opt, before = faulty(Bad(make))
    with pytest.raises(error, match=f"Bad.*{text}"):
        opt.step()
    same(everything_of(params, opt), before)
    # A gradient that is not finite is told apart, whatever the rule makes of it.
    if error is RuntimeError:
        params[1].grad[0] = NAN
        opt.step()
        assert opt.skipped == 1


def test_on_the_device_what_a_rule_makes_that_is_not_finite_skips_the_step():
    params, opt, before = faulty(Bad(FAULTS["unit"][0]), capturable=True)
    opt.step()
    assert opt.skipped == 1
    opt.param_groups[0]["skipped"] -= 1
    same(everything_of(params, opt), before)


def test_units_too_large_for_half_precision_and_a_broken_metric_are_named():
    p = nn.Parameter(torch.ones(2, dtype=torch.float16))
    opt = RLLC([("w", p)], linear("M(0.9)"), 1e-6, 0.01)
    p.grad = torch.full_like(p, 60000.0)
    opt.step()
    with pytest.raises(RuntimeError, match=r"M\(0.9\) made unit 1 of parameter 'w', .*for torch.float16"):
        opt.step()

    class Negative(SignMomentum):
        def metric(self, xp, unit, hidden):
            return unit / 0.0

    opt = RLLC([p], Negative(), 1e-6, 0.01)
    with pytest.raises(
        RuntimeError, match=r"Negative has units of parameter 0 .* whose metric is not finite"
    ):
        opt.step(), opt.step()


def test_an_init_that_is_none_is_named():
    class One(MemoryRule):
        def init(self, xp, param):
            return xp.zeros_like(param)

    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.raises(ValueError, match="One: init must return a tuple of arrays"):
        RLLC([p], One(), 0.1, 0.1).step()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"inverse": GramianRidge(1e-2)}, r"use rllc.law.DiagonalRidge\(0.01\)"),
        ({"eps": -1.0}, "eps must be"),
        ({"eps": 1.0, "inverse": Ridge()}, "both given"),
        ({"fused": True}, "fused=True: a memory rule .* leave fused out"),
        ({"foreach": True}, "foreach=True: a memory rule .* leave foreach out"),
        ({"guard": True}, r"guard of a memory rule is LawStep\(clip=...\)"),
        ({"sums_in_backward": True}, "sums_in_backward=True: a memory rule"),
        ({"law": [1.0]}, "law must have 3 entries"),
        ({"law_step": 1.5}, "law_step must be a rllc.law.LawStep"),
        ({"scope": "layer"}, "scope must be one of"),
        ({"average": -1.0}, "average must be a finite power"),
    ],
)
def test_refusals(options, text):
    with pytest.raises(ValueError, match=text):
        RLLC(network().parameters(), EVERYTHING, 0.1, 0.1, **options)


@pytest.mark.parametrize("inverse", [DiagonalRidge(1e-2), Ridge(1e-8), Cutoff(1e-3)], ids=repr)
def test_every_inverse_trains(inverse):
    net = network()
    opt = RLLC(net.parameters(), EVERYTHING, 0.01, 0.001, [0.1, 1, 1], inverse=inverse)
    first = train(net, opt, 1)
    assert train(net, opt, 60) < 0.5 * first


def test_eps_is_of_the_diagonal_ridge():
    assert RLLC(network().parameters(), Adam(), 0.1, 0.1).inverse == DiagonalRidge(1e-3)
    assert RLLC(network().parameters(), Adam(), 0.1, 0.1, eps=0.5).inverse == DiagonalRidge(0.5)


# --- Compiled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"scope": "tensor"}], ids=str)
def test_a_step_with_a_rule_is_one_graph(options):
    torch._dynamo.reset()
    nets, rates = [network()[:1], network()[:1]], [torch.tensor(0.01), torch.tensor(0.02)]
    step_of_law = LawStep(q=1.0, decay=0.5, clip=0.3)
    opts = [RLLC(net.parameters(), EVERYTHING, *rates, law_step=step_of_law, **options) for net in nets]
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, 1)
    counter = CompileCounter()
    compiled = torch.compile(lambda: opts[0].step(), backend=counter, fullgraph=True)
    for _, (net, opt) in itertools.product(range(4), zip(nets, opts, strict=True)):
        for p in net.parameters():
            p.grad = torch.cos(p.detach())
        compiled() if opt is opts[0] else opt.step()
    assert counter.frame_count == 1
    torch.testing.assert_close(snapshot(nets[0], opts[0]), snapshot(nets[1], opts[1]), rtol=1e-5, atol=1e-6)


# --- The average of the weights -------------------------------------------------------------------


@pytest.mark.parametrize("way", [*WAYS.values(), {"capturable": True}], ids=str)
def test_the_average_of_the_weights(way):
    """By its definition; a step that is skipped is no point of it."""
    p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    opt = RLLC([p], "M(0.9)", 0.1, 0.02, average=3.0, **way)
    seen = []
    for t in range(8):
        p.grad = torch.cos(p.detach() + t) if t != 4 else torch.full_like(p, NAN)
        opt.step()
        if t != 4:
            seen.append(p.detach().clone())
    average = torch.zeros(2, dtype=torch.float64)
    for t, theta in enumerate(seen, 1):
        average = average + 4 / (t + 3) * (theta - average)
    with opt.averaged():
        torch.testing.assert_close(p.detach(), average, rtol=1e-13, atol=0)
        with pytest.raises(RuntimeError, match=r"opt\.train"):
            opt.step()
    same(p.detach(), seen[-1])


# --- A rule that breaks its promises is named ---------------------------------------------------------


class WritesGradient(MemoryRule):
    def update(self, xp, g, units, hidden, param):
        return (g.mul_(2),), ()


class WritesUnit(MemoryRule):
    def update(self, xp, g, units, hidden, param):
        return (units[0].mul_(0.9).add_(g),), ()


class WritesHidden(MemoryRule):
    def init(self, xp, param):
        return (xp.zeros_like(param),)

    def update(self, xp, g, units, hidden, param):
        return (hidden[0].mul_(0.9).add_(g),), hidden


class Totals(MemoryRule):
    """A metric of another shape than the unit."""

    def update(self, xp, g, units, hidden, param):
        return (g,), ()

    def metric(self, xp, unit, hidden):
        return unit.sum()


class Complex(MemoryRule):
    def update(self, xp, g, units, hidden, param):
        return (g * 1j,), ()


class Unitless(MemoryRule):
    k = 0


class Ragged(MemoryRule):
    """Of convolutions it hides two arrays, of matrices one."""

    def init(self, xp, param):
        zero = xp.zeros_like(param)
        return (zero, zero) if len(param.shape) > 2 else (zero,)

    def update(self, xp, g, units, hidden, param):
        return (0.9 * hidden[0] + g,), (0.9 * hidden[0] + g, *hidden[1:])


class Pairs(MemoryRule):
    def init(self, xp, param):
        rows, columns = param.shape
        return (xp.zeros((columns, rows)),)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (WritesGradient, "WritesGradient.*: update has changed its arguments in place"),
        (WritesUnit, "WritesUnit.*: update has changed its arguments in place"),
        (WritesHidden, "WritesHidden.*: update has changed its arguments in place"),
        (Totals, r"Totals.*: metric must return an array of the unit's shape \(2, 3\), got \(\)"),
        (Complex, "Complex.*: update returned a complex unit"),
        (Unitless, "must be a whole number, 1 or more, got 0"),
        (lambda: union(Adam(), Ragged()), "hides another number of arrays of a parameter of shape"),
        (
            lambda: union(Pairs(), Adam()),
            r"init must also take np.zeros\(\(1, 1, 1\)\)",
        ),
    ],
)
def test_what_a_rule_must_not_do(make, said):
    p = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=said):
        opt = RLLC([p], make(), 0.1, 0.1)
        for _ in range(2):
            p.grad = torch.ones_like(p)
            opt.step()
    assert torch.equal(p.detach(), torch.ones(2, 3).double())


class Best(MemoryRule):
    """The least gradient so far, infinite at first and where a gradient is."""

    def init(self, xp, param):
        return (xp.zeros_like(param) + xp.inf,)

    def update(self, xp, g, units, hidden, param):
        return (g,), (xp.where(param > 0, xp.minimum(hidden[0], abs(g)), hidden[0]),)


@pytest.mark.parametrize("place", PLACES)
def test_hidden_arrays_that_begin_infinite_may_stay_so(place):
    p = nn.Parameter(torch.tensor([1.0, -1.0], dtype=torch.float64))
    opt = RLLC([p], Best(), 0.1, 0.1, **PLACES[place])
    for _ in range(3):
        p.grad = torch.tensor([0.5, 0.25]).double()
        opt.step()
    assert opt.skipped == 0
    assert opt.state[p]["h1"].tolist() == [0.5, np.inf]


def test_a_state_with_other_hidden_arrays_is_refused():
    p = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def stepped(rule):
        opt = RLLC([p], rule, 0.1, 0.1)
        p.grad = torch.ones_like(p)
        opt.step()
        return opt

    state = stepped(Adam()).state_dict()
    del state["state"][0]["h2"]
    opt = stepped(Adam())
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=r"hidden arrays of shapes .* for a parameter of shape \(3,\)"):
        opt.load_state_dict(state)
    same(opt.state_dict()["state"], before["state"])


def test_of_one_unit_the_law_may_be_a_number():
    assert RLLC([nn.Parameter(torch.ones(2))], "M(0.9)", 0.1, 0.1, law=0.5).law.tolist() == [0.5]
