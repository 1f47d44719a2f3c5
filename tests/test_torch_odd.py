"""Odd but legal: tensors that have moved or wrap others, empty groups, groups used twice, other defaults."""

import copy
import functools
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from rllc.law import SEEKING
from rllc.torch import RLLC, RLLCAdamW
from rllc.torch.logging import LawLogger
from same import same

MAKE = {
    "RLLC": lambda params: RLLC(params, "M(0.9) + M(0)", 0.1, 0.01),
    "RLLCAdamW": RLLCAdamW,
    "around": lambda params: RLLC.around(torch.optim.SGD(params, 0.1), 0.01),
}


def stepped(opt, count=1):
    for t in range(count):
        for group in opt.param_groups:
            for p in group["params"]:
                p.grad = torch.cos(p.detach() + t)
        opt.step()
    return opt


def parameter(*shape, **options):
    return nn.Parameter(torch.linspace(-1, 1, 6, **options)[: torch.Size(shape).numel()].reshape(shape))


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_memory_that_stayed_behind_is_refused_and_can_be_taken_along(make):
    """Kernels go by addresses: the process had ended. The meta device stands for a GPU."""
    p = parameter(6)
    opt = stepped(make([p]), 2)
    state = copy.deepcopy(opt.state_dict())
    name = next(name for name in ("m1", "exp_avg", "unit") if name in opt.state[p])
    opt.state[p][name] = opt.state[p][name].to("meta")
    before = p.detach().clone()
    with pytest.raises(
        RuntimeError, match=r"parameter on cpu has memory or a gradient on meta: it was moved"
    ):
        opt.step()
    assert torch.equal(p, before)
    opt.load_state_dict(state)
    stepped(opt)
    assert not torch.equal(p, before)


@pytest.mark.parametrize("make", [MAKE["RLLC"], MAKE["RLLCAdamW"]])
def test_a_group_on_two_devices_is_no_crash(make):
    """Entries of the meta device are none, so that no sum is finite or has a value."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        stepped(make([parameter(6), nn.Parameter(torch.ones(3, device="meta"))]))


@pytest.mark.parametrize("make", [MAKE["RLLC"], MAKE["RLLCAdamW"]])
def test_tensors_that_wrap_others_are_taken_as_they_are(make):
    whole = parameter(6)
    wrapped = nn.Parameter(TwoTensor(whole.detach().clone(), whole.detach().clone()))
    for p in (whole, wrapped):
        stepped(make([p]), 3)
    torch.testing.assert_close(wrapped.detach().a, whole.detach())
    torch.testing.assert_close(wrapped.detach().b, whole.detach())


@pytest.mark.parametrize("capturable", [None, True])
@pytest.mark.parametrize("scope", ["all", "group", "tensor"])
def test_an_empty_first_group_changes_nothing(scope, capturable):
    def run(*groups):
        params = [parameter(6), parameter(2, 3)]
        groups = [{"params": [params[i] for i in own]} for own in groups]
        opt = RLLC(groups, "M(0.9)", 0.1, 0.5, scope=scope, capturable=capturable)
        stepped(opt, 3)
        return params, opt.law.flatten()

    (with_it, law), (without, want) = run([], [0], [1]), run([0], [1])
    same(with_it, without)
    assert torch.equal(law[-want.numel() :], want) and not torch.equal(want, torch.ones_like(want))


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_another_layout_in_mid_training_is_another_layout_only(make):
    """torch's fused AdamW goes by addresses, whatever the strides: weights had come out wrong."""

    def trained(relaid):
        torch.manual_seed(0)
        net, x = nn.Conv2d(3, 4, 3), torch.randn(4, 3, 8, 8)
        opt = make(net.parameters())
        for t in range(12):
            if relaid and t == 6:
                net.to(memory_format=torch.channels_last)
            opt.zero_grad()
            net(x).square().mean().backward()
            opt.step()
        return net.weight.detach().contiguous()

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [None, True])
def test_what_lies_between_the_entries_of_a_parameter_stays(fused):
    numbers = torch.zeros(6)
    p = nn.Parameter(numbers[::2])
    opt = RLLCAdamW([p], law=1.0, fused=fused)
    p.grad = torch.ones(3)
    opt.step()
    assert (numbers[::2] < 0).all() and not numbers[1::2].any()


@pytest.mark.parametrize("make", [MAKE["RLLC"], MAKE["RLLCAdamW"]])
def test_a_parameter_relaid_in_its_place_does_not_meet_the_old_memory(make):
    def trained(relaid):
        p = nn.Parameter(torch.zeros(3, 3))
        opt = make([p])
        for t in range(8):
            if relaid and t == 4:
                values = p.detach().clone()
                p.data = p.data.t()
                p.data.copy_(values)
                p.grad = None
            g = torch.cos(torch.arange(9.0).view(3, 3) * (t + 1))
            p.grad = torch.empty_like(p).copy_(g)
            opt.step()
        return p.detach().contiguous()

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-5, atol=1e-8)


def test_a_converted_parameter_is_refused_with_the_remedy():
    p = parameter(6)
    opt = stepped(RLLCAdamW([p], weight_decay=0.1), 2)
    p.data = p.data.double()
    before, averaged = p.detach().clone(), opt.param_groups[0]["averaged"]
    with pytest.raises(RuntimeError, match=r"it was converted; opt.load_state_dict"):
        stepped(opt)
    assert torch.equal(p, before) and opt.param_groups[0]["averaged"] == averaged
    opt.load_state_dict(opt.state_dict())
    stepped(opt)
    assert not torch.equal(p, before)


def test_a_negative_view_of_a_gradient_is_read_as_it_is_meant():
    def moved(gradient):
        p = parameter(6)
        opt = RLLCAdamW([p], law=1.0)
        p.grad = gradient
        opt.step()
        return p.detach()

    assert torch.equal(moved(torch._neg_view(torch.linspace(1, 2, 6))), moved(-torch.linspace(1, 2, 6)))


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_graph_from_before_the_step_is_stale(make):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    opt = make(net.parameters())
    loss = net(torch.ones(2, 3)).square().mean()
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_training_weights_come_back_all_or_none():
    p, q = parameter(6), parameter(3)
    opt = stepped(RLLCAdamW([p, q]), 3)
    opt.eval()
    kept = opt.state[q]["training"]
    opt.state[q]["training"] = torch.ones(7)
    with pytest.raises(RuntimeError):
        opt.train()
    opt.state[q]["training"] = kept
    opt.train()
    assert torch.equal(q, kept) and "training" not in opt.state[p]


def test_an_average_that_a_state_lacks_begins_anew():
    p, q = parameter(6), parameter(3)
    opt = stepped(RLLCAdamW([p, q], law=1.0), 3)
    state = copy.deepcopy(opt.state_dict())
    del state["state"][0]["average"]
    opt.load_state_dict(state)
    stepped(opt, 3)
    opt.eval()
    assert not torch.equal(p, opt.state[p]["training"]) and not torch.equal(q, opt.state[q]["training"])


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_state_of_other_names_is_refused(make):
    def of(*names):
        return stepped(make([(name, parameter(3)) for name in names]))

    opt = of("a", "b")
    with pytest.raises(ValueError, match=r"of the parameters \['b', 'a'\]"):
        opt.load_state_dict(of("b", "a").state_dict())
    opt.load_state_dict(of("a", "b").state_dict())


def test_a_state_from_a_gpu_has_the_passes_of_the_cpu():
    opt = stepped(RLLCAdamW([parameter(6)]))
    state = copy.deepcopy(opt.state_dict())
    state["param_groups"][0]["fused"] = True  # as it is there where nobody has asked
    opt.load_state_dict(state)
    assert opt.param_groups[0]["fused"] is None
    asked = RLLCAdamW([parameter(6)], fused=True)
    stepped(asked).load_state_dict(asked.state_dict())
    assert asked.param_groups[0]["fused"] is True


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_an_optimizer_of_a_net_without_memory_yet_takes_it_when_it_comes(make):
    with torch.device("meta"):
        net = nn.Linear(3, 1)
    opt = make(net.parameters())
    net.to_empty(device="cpu")
    for p in net.parameters():
        p.data.zero_()
    opt = opt if set(opt.param_groups[0]["params"]) == set(net.parameters()) else None
    if opt is not None:  # else torch has exchanged the parameters themselves
        stepped(opt)
        assert all(p.detach().any() for p in net.parameters())


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_parameters_without_entries_alone_are_no_crash(make):
    p = nn.Parameter(torch.empty(0, 3))
    assert stepped(make([p]), 2).skipped == 0 and p.shape == (0, 3)


def test_averages_of_every_kind_are_taken_on_the_device():
    """A complex parameter before a real one, and a wide one after: the step had ended half-way."""
    kinds = torch.complex64, torch.float32, torch.complex128, torch.float64

    def run(capturable):
        params = [parameter(6, dtype=dtype) for dtype in kinds]
        opt = stepped(RLLC(params, "M(0.9)", 0.1, 0.5, capturable=capturable, average=9.0), 4)
        return opt.law, params, [opt.state[p]["average"] for p in params]

    (law, *found), (want, *expected) = run(True), run(False)
    assert law.allclose(want, rtol=1e-6)
    for own, others in zip(found, expected, strict=True):
        for a, b in zip(own, others, strict=True):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("foreach", [True, False])
def test_rates_of_one_entry_in_any_shape_on_the_device(foreach):
    def run(shape):
        params = [parameter(6), nn.Parameter(torch.tensor(0.5))]
        lr, law_lr, decay = (torch.full(shape, x) for x in (0.1, 0.5, 0.01))
        opt = RLLC(params, "M(0.9)", lr, law_lr, weight_decay=decay, capturable=True, foreach=foreach)
        return [*(p.detach() for p in stepped(opt, 3).param_groups[0]["params"]), opt.law]

    same(run((1,)), run(()))


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"capturable": True}, {"dtype": torch.float64}])
def test_the_default_device_does_not_matter(options):
    def run():
        extra = dict(options)
        params = [parameter(6, device="cpu"), parameter(6, device="cpu", dtype=extra.pop("dtype", None))]
        adam, other = parameter(6, device="cpu"), parameter(6, device="cpu")
        opts = [
            RLLC(params, "M(0.9) + M(0.123)", 0.1, 0.5, average=9.0, **extra),
            RLLCAdamW([adam]),
            RLLC.around(torch.optim.SGD([other], 0.1), 0.01),
        ]
        for opt in opts:
            stepped(opt, 2)
        return [p.detach() for p in (*params, adam, other)]

    want = run()
    torch.set_default_device("meta")
    try:
        found = run()
    finally:
        torch.set_default_device(None)
    same(found, want)


def test_a_search_without_a_rate_finds_nothing():
    """As on the other side of a schedule's end: the law's size had been found where it began."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.ones(20))
    opt = RLLCAdamW([p], law_lr=0.0)
    for _ in range(60):
        p.grad = torch.randn(20)
        opt.step()
    assert opt.param_groups[0]["progress"][2] == 0
    state = [0.5], 0.0, [-1.0], 1.0, [100.0, -1.0, 0.0, 1.0, 0.0], 1e-3
    L, progress = SEEKING.taken(torch, *map(torch.tensor, state))
    assert L == 0.5 and progress[2] == 0


def test_groups_can_be_used_again():
    p = parameter(6)
    groups = [{"params": [p], "lr": 0.1}]
    with pytest.raises(ValueError, match="average must be"):
        RLLCAdamW(groups, average=-1.0)
    stepped(RLLCAdamW(groups), 2)
    stepped(RLLC(groups, "M(0.9)", 0.1, 0.01, average=9.0), 2)
    opt = stepped(RLLC(groups, "M(0.9) + M(0)", 0.1, 0.01), 2)
    assert groups == [{"params": [p], "lr": 0.1}]
    assert "average" not in opt.param_groups[0] and "average" not in opt.state[p]
    base = torch.optim.SGD(groups)
    stepped(RLLC.around(base, 0.01, average=9.0))
    again = stepped(RLLC.around(base, 0.01))
    with pytest.raises(RuntimeError, match="does not average"), again.averaged():
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_complex_memory_is_taken_over_whole(dtype):
    whole = stepped(RLLC([parameter(6, dtype=torch.complex64)], "M(0.9)", 0.1, 0.01), 3)
    other = RLLC([parameter(6, dtype=torch.complex64)], "M(0.9)", 0.1, 0.01, memory_dtype=dtype)
    other.load_state_dict(whole.state_dict())
    (kept,), (want,) = (list(opt.state.values()) for opt in (other, whole))
    torch.testing.assert_close(kept["m1"].float(), torch.view_as_real(want["m1"]), rtol=0.01, atol=0.01)
    stepped(other)


@pytest.mark.parametrize("memory", ["M(0.9)", "rule"])
def test_a_state_of_other_groups_is_refused_in_torchs_words(memory):
    from rllc.memory import Adam

    make = lambda groups: RLLC(  # noqa: E731
        groups, Adam() if memory == "rule" else memory, 0.1, 0.01, scope="group"
    )
    state = stepped(make([{"params": [parameter(6)]}, {"params": [parameter(3)]}])).state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        make([parameter(6)]).load_state_dict(state)
    with pytest.raises(ValueError, match="doesn't match the size"):
        make([{"params": [parameter(6), parameter(1)]}, {"params": [parameter(3)]}]).load_state_dict(state)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_gradients_that_are_lazily_conjugate_are_read_as_they_are_meant(make):
    found = []
    for resolved in (False, True):
        p = parameter(6, dtype=torch.complex64)
        opt = make([p])
        for t in range(3):
            g = torch.exp(1j * (torch.arange(6) + t)).conj()
            p.grad = g.resolve_conj() if resolved else g
            assert p.grad.is_conj() is not resolved
            opt.step()
        found.append((p.detach(), opt.law))
    same(*found)


def test_sums_in_backward_end_with_their_group_and_their_optimizer():
    a, b = parameter(6), parameter(3)
    opt = RLLC([{"params": [a]}, {"params": [b]}], "M(0.9)", 0.1, 0.01, sums_in_backward=True)
    for _ in range(2):
        (a.square().sum() + b.square().sum()).backward()
        opt.step()
        opt.zero_grad()
        del opt.param_groups[1:]
    assert opt.law != 1
    gone = weakref.ref(opt)
    del opt
    gc.collect()
    assert gone() is None
    (a.square().sum() + b.square().sum()).backward()


def test_the_condition_of_units_in_float8_is_that_of_their_numbers():
    def condition(dtype):
        p = nn.Parameter(torch.zeros(64, 64))
        opt = RLLC([p], "M(0.9) + M(0)", 0.1, 0.01, memory_dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            p.grad = torch.randn(64, 64, generator=generator) * torch.logspace(-3, 0, 64)[:, None]
            opt.step()
        told = {}
        writer = type("Writer", (), {"add_scalar": lambda _, tag, value, step: told.update({tag: value})})()
        logger = LawLogger(opt, writer)
        p.grad = None
        opt.step()
        logger.close()
        return told["rllc/condition"]

    assert condition(torch.float8_e4m3fn) == pytest.approx(condition(None), rel=0.05)


def test_a_buffer_that_has_grown_begins_anew():
    """A cache of cosines for longer texts: the parameters had moved when the average failed."""
    net = nn.Linear(3, 1)
    net.register_buffer("cache", torch.ones(4), persistent=False)
    net.register_buffer("mean", torch.zeros(2))
    opt = stepped(RLLCAdamW(net.parameters(), buffers=net), 3)
    net.register_buffer("cache", 2 * torch.ones(8), persistent=False)
    net.mean.fill_(1.0)
    stepped(opt)
    with opt.averaged():
        assert torch.equal(net.cache, 2 * torch.ones(8)) and bool((net.mean > 0).all() & (net.mean < 1).all())


@pytest.mark.parametrize("make", [RLLCAdamW, lambda groups: RLLC(groups, "M(0.9)", 0.1, 0.01, average=9.0)])
def test_a_group_removed_in_evaluation_mode_gets_its_training_weights_back(make):
    p, q = (nn.Parameter(torch.ones(3)) for _ in range(2))
    opt = stepped(make([{"params": [p]}, {"params": [q]}]), 3)
    before = [t.detach().clone() for t in (p, q)]
    opt.eval()
    assert not torch.equal(q, before[1])
    removed = opt.param_groups.pop()
    opt.train()
    same([p.detach(), q.detach()], before)
    opt.add_param_group(removed)
    opt.eval()
    del opt.param_groups[0]  # with the law, the count and the averages of buffers
    for call in (opt.train, opt.train, opt.eval, opt.averaged().__enter__):
        with pytest.raises(RuntimeError, match="which keeps the law, has been removed or replaced"):
            call()
        same([p.detach(), q.detach()], before)


def test_a_buffer_without_a_shape_is_refused_by_name():
    net = nn.Sequential(nn.Linear(3, 2), nn.LazyBatchNorm1d())
    with pytest.raises(ValueError, match=r"buffers have no shape yet \('1.running_mean'\): pass one batch"):
        RLLC(net[0].parameters(), "M(0.9)", 0.1, 0.01, average=9.0, buffers=net)


def test_buffers_without_values_and_what_are_no_buffers_are_refused():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    make = functools.partial(RLLC, list(net.parameters()), "M(0.9)", 0.1, 0.01, average=9.0)
    for wrong in (True, [net], ["mean"]):
        with pytest.raises(TypeError, match="buffers must be the net that has them, or tensors, got"):
            make(buffers=wrong)
    with pytest.raises(
        ValueError, match=r"buffers have no values yet \('1.running_mean'\): give the net a device"
    ):
        make(buffers=net.to("meta"))


@pytest.mark.parametrize("copied", [lambda opt: opt, copy.deepcopy], ids=["itself", "a copy"])
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_hooks_of_states_are_called(make, copied):
    seen, opt = [], copied(make([parameter(6)]))
    opt.register_state_dict_pre_hook(lambda opt: seen.append("before saving"))
    opt.register_state_dict_post_hook(lambda opt, state: seen.append("saved"))
    opt.register_load_state_dict_pre_hook(lambda opt, state: seen.append("before loading"))
    opt.register_load_state_dict_post_hook(lambda opt: seen.append("loaded"))
    opt.load_state_dict(stepped(opt).state_dict())
    assert seen[:2] == ["before saving", "saved"] and seen[-2:] == ["before loading", "loaded"]


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_state_and_groups_can_be_set(make):
    opt = stepped(make([parameter(6)]), 2)
    opt.state = type(opt.state)(dict)
    opt.param_groups = list(opt.param_groups)
    assert not opt.state
    stepped(opt)
    assert opt.state


def test_a_state_of_a_fused_optimizer_goes_on_where_there_is_none():
    p = parameter(6)
    fused = stepped(RLLC([p], "M(0.9)", 0.1, 0.01, fused=True), 2)
    opt = RLLC([nn.Parameter(p.detach().clone())], "M(0.9)", 0.1, 0.01, capturable=True)
    opt.load_state_dict(copy.deepcopy(fused.state_dict()))
    assert stepped(opt).param_groups[0]["fused"] is None
    assert torch.allclose(stepped(fused).law, opt.law)


def test_a_rate_whose_square_is_zero_is_zero():
    opt = stepped(RLLC.around(torch.optim.SGD([parameter(6)], 0.1), 0.01), 2)
    opt.param_groups[0]["lr"] = 1e-200
    law = stepped(opt).law
    assert torch.equal(stepped(opt).law, law) and opt.skipped == 0


def test_what_is_shown_has_no_averages_in_it():
    net = nn.Sequential(nn.Linear(6, 400), nn.BatchNorm1d(400))
    said = repr(RLLCAdamW(net.parameters(), buffers=net))
    assert "lr: 0.001" in said and "law: tensor" in said and len(said) < 700


def test_a_base_that_took_over_a_state_of_its_own_says_so():
    opt = stepped(MAKE["around"]([parameter(6)]))
    opt.base.load_state_dict(torch.optim.SGD([parameter(6)], 0.1).state_dict())
    with pytest.raises(RuntimeError, match="has taken over a state without a law"):
        _ = opt.law
