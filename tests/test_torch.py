"""rllc.torch.RLLC as a citizen of torch.optim: groups, state, dtypes, layouts, schedulers, scaling."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from problems import EIGHT
from rllc import parse, reference
from rllc.law import Cutoff, GramianRidge, Ridge
from rllc.memory import AdaptiveMomentum
from rllc.torch import RLLC, foreach
from rllc.torch.parts import Part
from same import same
from torch_nets import WAYS, X, Y, assert_skips_whole, network, rllc, snapshot, train


@pytest.fixture(params=WAYS)
def way(request):
    """Arguments that choose an implementation of the passes."""
    return WAYS[request.param]


# Kernels are made for the number of units and for the dtype: each memory with two dtypes of the four.
KINDS = [
    (memory, dtype)
    for i, memory in enumerate(EIGHT)
    for dtype in ((torch.float64, torch.bfloat16), (torch.float32, torch.float16))[i % 2]
]


@pytest.mark.parametrize(("memory", "dtype"), KINDS)
@pytest.mark.parametrize("other", ["foreach", "fused"])
def test_implementations_agree(memory, dtype, other):
    nets = [network(dtype), network(dtype)]
    opts = [rllc(net, memory, lr=0.01, **WAYS[w]) for net, w in zip(nets, (other, "one by one"), strict=True)]
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, 5)
    eps = torch.finfo(dtype).eps
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=20 * eps, atol=20 * eps)
    torch.testing.assert_close(opts[0].law, opts[1].law, rtol=2e3 * eps, atol=2e3 * eps)


def test_half_precision_is_rounded_once(way):
    """A bfloat16 step is the float32 step of the same numbers, rounded."""
    p = nn.Parameter(torch.linspace(-1, 1, 9).bfloat16())
    wide = nn.Parameter(p.detach().float())
    opts = [RLLC([x], "M(0.9) + M_2(0.6)", 0.05, 0.02, weight_decay=0.1, **way) for x in (p, wide)]
    for _ in range(5):
        wide.data.copy_(p.data)  # start each step from the same numbers
        for name in ("m1", "m2", "m3"):
            if opts[1].state[wide]:
                opts[1].state[wide][name].copy_(opts[0].state[p][name])
        p.grad = torch.cos(p.detach().float()).bfloat16()
        wide.grad = p.grad.float()
        for opt in opts:
            opt.step()
        same(p.detach(), wide.detach().bfloat16())
        same(opts[0].state[p]["m3"], opts[1].state[wide]["m3"].bfloat16())
    assert p.dtype == opts[0].state[p]["m1"].dtype == torch.bfloat16
    assert opts[0].law.dtype == torch.float64


def test_closure_and_its_loss():
    net = network()
    opt = rllc(net)

    def closure():
        opt.zero_grad()
        loss = ((net(X) - Y) ** 2).mean()
        loss.backward()
        return loss

    other = network()
    train(other, rllc(other), 3)
    losses = [opt.step(closure).item() for _ in range(3)]
    assert losses[2] < losses[0]
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        same(p, q)


def test_one_law_spans_all_groups(way):
    """The same parameters in one group or in three, in any order: the same process."""
    nets = [network(torch.float64) for _ in range(2)]
    together = rllc(nets[0], **way)
    a, b, c, d = nets[1].parameters()
    apart = RLLC([{"params": [d]}, {"params": [a, c]}, {"params": [b]}], "M(0.9) + M(0)", 0.05, 0.02)
    train(nets[0], together), train(nets[1], apart)
    torch.testing.assert_close(together.law, apart.law, rtol=1e-12, atol=0)
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_groups_have_their_own_rates():
    """θ_i <- θ_i - lr_i (M L + w_i θ_i) with L += M⁺ of the gradient weighted by the groups' law_lr."""
    rng = np.random.default_rng(0)
    theta = [rng.normal(size=4), rng.normal(size=3)]
    lr, law_lr, decay = (0.1, 0.02), (0.3, 0.1), (0.0, 0.5)
    params = [nn.Parameter(torch.tensor(x)) for x in theta]
    groups = [
        {"params": [q], "lr": a, "law_lr": b, "weight_decay": w}
        for q, a, b, w in zip(params, lr, law_lr, decay, strict=True)
    ]
    opt = RLLC(groups, "M(0.9) + M(0)", lr=9.0, law_lr=9.0, guard=False)
    p = parse("M(0.9) + M(0)")
    pinv, M, L = reference.gramian_ridge(p, GramianRidge().eps), np.zeros((7, 2)), np.ones(2)
    for _ in range(6):
        g = [np.sin(x) + 0.3 for x in theta]
        for q, x in zip(params, g, strict=True):
            q.grad = torch.tensor(x)
        opt.step()
        L = L + pinv(M, np.concatenate([c2 * x for c2, x in zip(law_lr, g, strict=True)]))
        M = M @ p.B + np.outer(np.concatenate(g), p.a)
        step = np.split(M @ L, [4])
        theta = [x - a * (s + w * x) for x, a, s, w in zip(theta, lr, step, decay, strict=True)]
    np.testing.assert_allclose(opt.law, L, rtol=1e-12)
    for q, x in zip(params, theta, strict=True):
        np.testing.assert_allclose(q.detach(), x, rtol=1e-12)


def test_tensor_rates_follow_in_place_changes():
    lr, c2 = torch.tensor(0.05), torch.tensor(0.02)
    nets = [network(), network()]
    tensors, floats = rllc(nets[0], lr=lr, law_lr=c2), rllc(nets[1], lr=lr.item(), law_lr=c2.item())
    train(nets[0], tensors), train(nets[1], floats)
    lr.fill_(0.01)
    floats.param_groups[0]["lr"] = lr.item()
    train(nets[0], tensors), train(nets[1], floats)
    same(list(nets[0].parameters()), list(nets[1].parameters()))


# Every scheduler of torch that sets the learning rate by the clock.
SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=12, cycle_momentum=False),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3, cycle_momentum=False),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)], milestones=[4]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.01, 5),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, True])
def test_schedulers_set_the_learning_rate(name, tensor):
    """Beside SGD under the same scheduler: the same rates, and for a fixed law the same parameters."""
    make, lr = SCHEDULERS[name], torch.tensor(0.1, dtype=torch.float64) if tensor else 0.1
    nets = [network(torch.float64), network(torch.float64)]
    opt = rllc(nets[0], "M(0.9)", lr=lr, law_lr=0.0)
    sgd = torch.optim.SGD(nets[1].parameters(), lr=0.1, momentum=0.9)
    train(nets[0], opt, scheduler=make(opt)), train(nets[1], sgd, scheduler=make(sgd))
    assert float(opt.param_groups[0]["lr"]) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_reduce_on_plateau():
    net = network()
    opt = rllc(net)
    scheduler = lr_scheduler.ReduceLROnPlateau(opt, patience=0)
    for _ in range(3):
        train(net, opt, 1)
        scheduler.step(1.0)
    assert opt.param_groups[0]["lr"] < 0.05


def test_hooks_run():
    net, seen = network(), []
    opt = rllc(net)
    opt.register_step_pre_hook(lambda *_: seen.append("before"))
    opt.register_step_post_hook(lambda *_: seen.append("after"))
    opt.register_state_dict_post_hook(lambda *_: seen.append("saved"))
    opt.register_load_state_dict_pre_hook(lambda *_: seen.append("loaded"))
    train(net, opt, 1)
    opt.load_state_dict(opt.state_dict())
    assert seen == ["before", "after", "saved", "loaded"]


def test_named_parameters():
    net = network()
    opt = RLLC(net.named_parameters(), "M(0.9)", 0.05, 0.02)
    train(net, opt, 2)
    assert opt.state_dict()["param_groups"][0]["param_names"][0] == "0.weight"


def test_groups_added_in_mid_training_join_the_law(way):
    net = network(torch.float64)
    first, second = net[0], net[2]
    opt = RLLC(first.parameters(), "M(0.9) + M(0)", 0.05, 0.02, **way)
    train(net, opt, 4)
    law = opt.law
    opt.add_param_group({"params": list(second.parameters()), "lr": 0.01})
    before = second.weight.detach().clone()
    same(opt.law, law)
    train(net, opt, 4)
    assert not torch.equal(second.weight, before)
    assert opt.state[second.weight]["m1"].abs().max() > 0
    assert opt.param_groups[1]["law_lr"] == 0.02
    with pytest.raises(ValueError, match="one optimizer has one memory"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(1))], "memory": "M(0.5)"})
    with pytest.raises(ValueError, match="lr must be"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": -1.0})
    assert len(opt.param_groups) == 2


def test_a_parameter_without_gradient_sits_the_step_out(way):
    net, alone = network(torch.float64), network(torch.float64)
    opt = rllc(net, **way, weight_decay=0.1)
    train(net, opt, 3)
    alone.load_state_dict(net.state_dict())
    other = RLLC([p for p in alone[0].parameters()], "M(0.9) + M(0)", 0.05, 0.02, weight_decay=0.1)
    sub = copy.deepcopy(opt.state_dict())
    sub["state"] = {i: sub["state"][i] for i in (0, 1)}
    sub["param_groups"][0]["params"] = [0, 1]
    other.load_state_dict(sub)
    frozen = snapshot(net[2], opt)[:2]
    for n, o in ((net, opt), (alone, other)):
        o.zero_grad()
        ((n(X.double()) - Y.double()) ** 2).mean().backward()
        for p in n[2].parameters():
            p.grad = None
        o.step()
    same(snapshot(net[2], opt)[:2], frozen)
    same(opt.law, other.law)
    same(list(net[0].parameters()), list(alone[0].parameters()))


def test_no_gradient_at_all_is_no_step():
    net = network()
    opt = rllc(net)
    before = copy.deepcopy(list(net.parameters()))
    opt.step()
    same(list(net.parameters()), before)
    same(opt.law, torch.ones(2, dtype=torch.float64))


def test_shapes_and_layouts(way):
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
    opts = [RLLC(ps, "M(0.9) + M_2(0.6)", 0.05, 0.05, **way) for ps in (odd, plain)]
    for t in range(5):
        for ps in (odd, plain):
            for p in ps:
                p.grad = torch.cos(p.detach() + t)
        for opt in opts:
            opt.step()
    for p, q in zip(odd, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert opts[0].state[odd[3]]["m1"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(opts[0].law, opts[1].law, rtol=1e-5, atol=1e-6)


def test_sums_do_not_depend_on_how_tensors_are_gathered(monkeypatch):
    torch.manual_seed(0)
    shapes = [(7, 9), (1,), (), (0, 2), (30, 5), (3, 3)]
    units = [[torch.randn(s, dtype=torch.float64) for s in shapes] for _ in range(3)]
    flat = torch.stack([torch.cat([t.reshape(-1) for t in unit]) for unit in units])
    want = (flat @ flat.T).numpy()
    part = Part(units[0], units[2], units[:2], list(range(6)), [0] * 6)
    for room in (1, 10, 64, 1 << 20):
        monkeypatch.setattr(foreach, "ROOM", {"cpu": room})
        np.testing.assert_allclose(foreach.gram(part, np.eye(3)), want, rtol=1e-12)


def test_mixed_dtypes(way):
    params = [nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.float64, torch.float32, torch.bfloat16)]
    opt = RLLC(params, "M(0.9)", 0.1, 0.01, **way)
    for _ in range(4):
        for p in params:
            p.grad = torch.full_like(p, 0.5)
        opt.step()
    assert [p.dtype for p in params] == [torch.float64, torch.float32, torch.bfloat16]
    torch.testing.assert_close(params[0].float(), params[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(params[0].float(), params[2].float(), rtol=2e-2, atol=0)


def test_float16_beside_a_large_float32_gradient_is_not_skipped():
    half, single = nn.Parameter(torch.ones(2, dtype=torch.float16)), nn.Parameter(torch.ones(2))
    opt = RLLC([half, single], "M(0.9)", 1e-6, 0.01)
    half.grad, single.grad = torch.ones_like(half), torch.full_like(single, 1e6)
    opt.step()
    assert opt.skipped == 0
    half.grad = torch.full_like(half, 60000.0)  # finite, but its sum with the memory is not, soon
    opt.step(), opt.step()
    assert opt.skipped == 1
    assert torch.isfinite(opt.state[half]["m1"]).all()


def test_complex_equals_the_real_view(way):
    z = nn.Parameter(torch.tensor([0.3 + 0.5j, -0.2 - 0.1j]))
    x = nn.Parameter(torch.view_as_real(z.detach().clone()))
    options = {"maximize": True, "weight_decay": 0.1} | way
    opts = [RLLC([p], "M(0.9) + M(0)", 0.05, 0.05, **options) for p in (z, x)]
    for _ in range(5):
        x.grad = torch.sin(x.detach())
        z.grad = torch.view_as_complex(x.grad.clone())
        for opt in opts:
            opt.step()
    same(torch.view_as_real(z.detach()), x.detach())
    assert opts[0].state[z]["m1"].dtype == torch.complex64


def test_maximize_is_minimize_of_the_negative():
    up, down = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    opts = RLLC([up], "M(0.9)", 0.1, 0.1, maximize=True), RLLC([down], "M(0.9)", 0.1, 0.1)
    for _ in range(4):
        up.grad = torch.cos(up.detach())
        down.grad = -torch.cos(down.detach())
        for opt in opts:
            opt.step()
    same(up, down)
    assert up[0] > 1


@pytest.mark.parametrize("capturable", [None, True])
def test_the_gradient_is_not_touched(way, capturable):
    if way.get("fused") and capturable:
        pytest.skip("not on the CPU")
    net = network()
    opt = rllc(net, maximize=True, weight_decay=0.1, capturable=capturable, **way)
    ((net(X) - Y) ** 2).mean().backward()
    before = [p.grad.clone() for p in net.parameters()]
    opt.step()
    same([p.grad for p in net.parameters()], before)


def test_gradscaler():
    """Scaled and unscaled training agree, and a scaled overflow changes nothing."""
    nets = [network(), network()]
    opts = [rllc(net) for net in nets]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    train(nets[1], opts[1], 5)
    for _ in range(5):
        opts[0].zero_grad()
        scaler.scale(((nets[0](X) - Y) ** 2).mean()).backward()
        scaler.step(opts[0])
        scaler.update()
    same(list(nets[0].parameters()), list(nets[1].parameters()))
    before = snapshot(nets[0], opts[0])
    opts[0].zero_grad()
    scaler.scale(((nets[0](X) - Y) ** 2).mean() * 1e38).backward()
    scaler.step(opts[0])
    scaler.update()
    same(snapshot(nets[0], opts[0]), before)
    assert scaler.get_scale() == 512


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_is_skipped_whole(value, way):
    net = network()
    assert_skips_whole(net, rllc(net, weight_decay=0.1, **way), value)


@pytest.mark.parametrize(
    ("memory", "options"),
    [
        *[("M(0.9)", way) for way in WAYS.values()],
        ("M(0.9)", {"capturable": True}),
        (AdaptiveMomentum(), {}),
        (AdaptiveMomentum(), {"capturable": True}),
    ],
    ids=str,
)
def test_a_gradient_that_makes_the_law_lost_is_skipped_whole(memory, options):
    """1e33 after 1 makes a law of 1e32, whose step no parameter survives: without the guard, which a rule
    has none of."""
    net = network()
    opt = RLLC(net.parameters(), memory, lr=0.1, law_lr=0.1, guard=False, **options)
    fill(net, 1.0)
    opt.step()
    before = snapshot(net, opt)
    fill(net, 1e33)
    opt.step()
    same(snapshot(net, opt), before)
    assert opt.skipped == 1
    fill(net, 1.0)
    opt.step()
    assert all(p.isfinite().all() for p in net.parameters())
    assert opt.skipped == 1


def test_a_law_of_another_shape_is_refused_before_anything_moves(way):
    for shape in ((), (3,), (1, 2)):
        net = network()
        opt = RLLC(net.parameters(), "M(0.9) + M(0)", lr=0.1, law_lr=0.1, **way)
        opt.param_groups[0]["law"] = torch.ones(shape, dtype=torch.float64)
        fill(net, 1.0)
        before = snapshot(net, opt)
        with pytest.raises(RuntimeError, match=r"the law must stay of shape \(2,\), got \("):
            opt.step()
        same(snapshot(net, opt), before)


def fill(net, value):
    for p in net.parameters():
        p.grad = torch.full_like(p, value)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("memory", EIGHT)
def test_float32_law_is_the_same_for_gradients_from_1e_30_to_1e30(memory, scale):
    def law(scale):
        p, generator = nn.Parameter(torch.zeros(50)), torch.Generator().manual_seed(0)
        opt = RLLC([p], memory, 0.01 / scale, 0.02)
        for _ in range(25):
            p.grad = torch.randn(50, generator=generator) * scale
            opt.step()
        return opt.law, p.detach()

    torch.testing.assert_close(law(scale), law(1.0), rtol=3e-4, atol=1e-5)


def test_ten_thousand_float32_steps_do_not_drift():
    """The correction at the end still equals the one from the actual units, in float64.

    Three times as many in test_optax.py, twenty times in benchmarks/long_run.py.
    """
    p, generator = nn.Parameter(torch.zeros(64)), torch.Generator().manual_seed(0)
    noise = torch.randn(10_000, 64, generator=generator) + 0.3 * torch.sin(torch.arange(10_000) / 50)[:, None]
    opt = RLLC([p], "M(0.99) + M(0)", 0.0, 1e-4)
    for g in noise[:-1]:
        p.grad = g
        opt.step()
    g, law = noise[-1], opt.law
    memory = np.stack([opt.state[p][m].double().numpy() for m in ("m1", "m2")], axis=1)
    x = reference.gramian_ridge(opt.propagator, GramianRidge().eps)(memory, g.double().numpy())
    opt.param_groups[0]["law_lr"] = 1.0
    p.grad = g
    opt.step()
    np.testing.assert_allclose(opt.law - law, x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("memory", "dtype"), [*zip(EIGHT, [torch.float32, torch.bfloat16] * 4, strict=True)])
def test_a_saved_run_resumes_to_the_bit(memory, dtype, way):
    net = network(dtype)
    opt = rllc(net, memory, lr=0.01, **way)
    train(net, opt, 5)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "opt": opt.state_dict()}, file)
    train(net, opt, 5)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = network(dtype, seed=7)
    resumed = rllc(again, memory, lr=9.0, **way)
    again.load_state_dict(saved["net"])
    given = copy.deepcopy(saved["opt"])
    resumed.load_state_dict(saved["opt"])
    same(saved["opt"], given)
    assert resumed.law.dtype == torch.float64
    train(again, resumed, 5)
    same(snapshot(again, resumed), snapshot(net, opt))


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_go_on_by_themselves(clone):
    net = network()
    pair = net, rllc(net, inverse=Ridge(1e-3), guard=False)
    train(*pair, 4)
    other = clone(pair)
    assert repr(other[1]) == repr(pair[1])
    assert (other[1].inverse, other[1].guard, other[1].propagator) == (Ridge(1e-3), False, pair[1].propagator)
    train(*other, 4)
    law = pair[1].law
    train(*pair, 4)
    same(snapshot(*other), snapshot(*pair))
    assert not torch.equal(law, pair[1].law)


def test_another_memorys_state_is_refused_before_anything_changes():
    net = network()
    opt = rllc(net, "M(0.9)")
    train(net, opt, 3)
    before = snapshot(net, opt)
    for state in (
        rllc(network(), "M(0.8)").state_dict(),
        rllc(network(), parse("M(0.9)").change_basis([[2.0]])).state_dict(),
        torch.optim.SGD(network().parameters(), 0.1).state_dict(),
    ):
        with pytest.raises(ValueError, match=r"this optimizer 'M\(0.9\)'"):
            opt.load_state_dict(state)
    for damage in (
        {"law": torch.tensor([float("nan")])},
        {"law": torch.ones(2)},
        {"faded": torch.ones(1, 2)},
    ):
        damaged = opt.state_dict()
        damaged["param_groups"][0] = damaged["param_groups"][0] | damage
        with pytest.raises(ValueError, match=r"finite|entries"):
            opt.load_state_dict(damaged)
    same(snapshot(net, opt), before)


def test_law_reads_a_copy():
    opt = rllc(network(), law=[0.9, 1.0])
    opt.law.fill_(7.0)
    assert opt.law.tolist() == [0.9, 1.0]


def test_zero_learning_rate_leaves_parameters_still_while_the_law_learns():
    net = network()
    opt = rllc(net, lr=0.0, weight_decay=0.1)
    before = copy.deepcopy(list(net.parameters()))
    train(net, opt, 5)
    same(list(net.parameters()), before)
    assert not torch.equal(opt.law, torch.ones(2, dtype=torch.float64))


def test_equal_units_are_shared_equally():
    nets = [network(torch.float64), network(torch.float64)]
    double, single = rllc(nets[0], "M(0.9) + M(0.9)"), rllc(nets[1], "M(0.9)", law=[2.0])
    train(nets[0], double), train(nets[1], single)
    assert double.law[0].item() == pytest.approx(double.law[1].item(), rel=1e-12)
    assert double.law.sum().item() == pytest.approx(single.law.item(), rel=1e-9)


def silence(memory, guard, lengths):
    """How far the law moves in 30 ordinary steps, and at a gradient after zero ones, so many of them."""
    generator = torch.Generator().manual_seed(0)
    *ordinary, last = 1 + torch.randn(31, 20, generator=generator, dtype=torch.float64)
    p = nn.Parameter(torch.zeros_like(last))
    opt = RLLC([p], memory, 0.0, 0.01, guard=guard)

    def move(p, opt, g):
        before, p.grad = opt.law, g.clone()
        opt.step()
        return (opt.law - before).norm().item()

    moves, returning = [move(p, opt, g) for g in ordinary], {}
    for silent in range(1, lengths[-1] + 1):
        assert move(p, opt, 0 * last) == 0
        if silent in lengths:
            returning[silent] = move(*copy.deepcopy((p, opt)), last)
    return moves, returning


@pytest.mark.parametrize("memory", EIGHT)
def test_a_gradient_that_returns_after_silence_moves_the_law_by_an_ordinary_step(memory):
    lengths = (1, 5, 15, 25, 60, 400, 3000) if memory == "M(0.9) + M_2(0.6)" else (1, 5, 15, 25, 60)
    ordinary, returning = silence(memory, True, lengths)
    assert tuple(returning) == lengths and max(returning.values()) <= max(ordinary[5:])


def test_without_the_guard_the_exact_formula_throws_the_law_away():
    ordinary, returning = silence("M(0.9)", False, (300,))
    assert returning[300] > 1e6 * max(ordinary)
    assert ordinary == silence("M(0.9)", True, (300,))[0]  # ordinary steps are the same


@pytest.mark.parametrize("inverse", [GramianRidge(1e-2), Ridge(1e-8), Cutoff(1e-3)], ids=repr)
def test_every_inverse_trains(inverse):
    net = network()
    opt = rllc(net, inverse=inverse)
    first = train(net, opt, 1)
    assert train(net, opt, 60) < 0.5 * first


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lr": -0.1}, "lr must be a finite number >= 0, got -0.1"),
        ({"lr": float("nan")}, "lr must be a finite number >= 0, got nan"),
        ({"lr": torch.tensor([0.1, 0.2])}, "lr must have one entry"),
        ({"lr": torch.tensor(-0.1)}, "lr must be"),
        ({"law_lr": -1.0}, "law_lr must be"),
        ({"law_lr": float("inf")}, "law_lr must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"eps": -1.0}, "eps must be"),
        ({"eps": 1.0, "inverse": Ridge()}, "both given"),
        ({"law": [1.0]}, "law must have 2 entries"),
        ({"law": [1.0, float("nan")]}, "law must hold finite real numbers"),
        ({"memory": "M(1.0)"}, "1.0"),
        ({"memory": "momentum"}, "momentum"),
        ({"memory": None}, "None"),
        ({"lr": True}, "lr must be a finite number >= 0, got True"),
        ({"memory_dtype": torch.bfloat16, "seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"memory_dtype": torch.bfloat16, "seed": None}, "seed must be an integer, got None"),
    ],
)
def test_refusals(options, text):
    with pytest.raises(ValueError, match=text):
        rllc(network(), **options)


def test_sparse_gradients_are_refused_before_anything_changes():
    table = nn.Embedding(5, 2, sparse=True)
    dense = nn.Parameter(torch.ones(2))
    opt = RLLC([dense, *table.parameters()], "M(0.9)", 0.1, 0.01)
    (table(torch.tensor([1])) * dense).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    same(dense.detach(), torch.ones(2))
