"""One law for the whole optimizer, one for each group, or one for each tensor."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from rllc.law import LawStep
from rllc.memory import Adam, union
from rllc.torch import RLLC
from same import same
from torch_nets import WAYS, network, snapshot, train

SCOPES = ("group", "tensor")
PLACES = {
    **WAYS,
    "on the device": {"capturable": True},
    "one by one on the device": {"foreach": False, "capturable": True},
}
MEMORIES = {"linear": "M(0.9) + M_2(0.6)", "a rule": union("M(0.9)", Adam())}
# A rule has one implementation.
EVERY = [(m, p) for m in MEMORIES for p in PLACES if m == "linear" or p not in ("foreach", "fused")]
SHAPES = ((4, 3), (5,), (), (2, 2, 2), (0, 3))
STEP = LawStep(q=0.5, decay=0.25, clip=0.5)
SEEKING = LawStep(q=1.5, clip=0.5, growth=0.05, smoothing=0.8)
LAW_STEPS = {"falling": STEP, "seeking": SEEKING}
# Everywhere both scopes and both steps, which take turns.
TURNS = [
    (scope, ("falling", "seeking")[(i + j) % 2], place, memory)
    for i, (memory, place) in enumerate(EVERY)
    for j, scope in enumerate(SCOPES)
]


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]


def groups(params):
    """Three, with rates of their own."""
    return [
        {"params": params[:2], "lr": 0.02},
        {"params": params[2:3], "law_lr": 0.1, "maximize": True},
        {"params": params[3:], "weight_decay": 0.1},
    ]


def pull(params, t):
    """A gradient that is missing now and then: of one tensor, of one group, of all."""
    for i, p in enumerate(params):
        p.grad = torch.cos((1 + 0.1 * i) * p.detach() + 0.05 * t)
        if (t % 5 == 2 and i == 1) or (t % 7 == 3 and i == 2) or t % 11 == 6:
            p.grad = None


def alone(scope, params, **options):
    """An optimizer for each scope."""
    whole = groups(params)
    if scope == "group":
        return [RLLC([group], **options) for group in whole]
    return [RLLC([group | {"params": [p]}], **options) for group in whole for p in group["params"]]


@pytest.mark.parametrize(("scope", "step", "place", "memory"), TURNS)
def test_a_law_of_its_own_is_an_optimizer_of_its_own(scope, step, place, memory):
    options = {"memory": MEMORIES[memory], "lr": 0.05, "law_lr": 0.2, "law_step": LAW_STEPS[step]}
    options |= PLACES[place]
    params, others = parameters(), parameters()
    opt, apart = RLLC(groups(params), scope=scope, **options), alone(scope, others, **options)
    for t in range(40):
        for all_of_them, them in ((params, [opt]), (others, apart)):
            pull(all_of_them, t)
            for one in them:
                one.step()
    torch.testing.assert_close(params, others, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(opt.law, torch.stack([one.law for one in apart]), rtol=1e-12, atol=1e-12)
    assert (opt.law[0] - opt.law[1]).abs().max() > 0.01
    for name in ("faded", "last", "progress"):
        theirs = torch.stack([one.param_groups[0][name] for one in apart])
        torch.testing.assert_close(opt.param_groups[0][name], theirs, rtol=1e-12, atol=0)


def test_one_scope_is_the_same_law_stacked():
    nets = [network(torch.float64), network(torch.float64)]
    opts = [
        RLLC(net.parameters(), "M(0.9)", 0.05, 0.02, scope=s)
        for net, s in zip(nets, ("all", "group"), strict=True)
    ]
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, 5)
    assert opts[0].law.shape == (1,) and opts[1].law.shape == (1, 1)
    same(opts[0].law, opts[1].law[0])
    same(list(nets[0].parameters()), list(nets[1].parameters()))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_step_is_skipped_for_all_or_for_none(scope, place):
    params = parameters()
    opt = RLLC(groups(params), "M(0.9) + M(0)", 0.05, 0.1, scope=scope, **PLACES[place])
    pull(params, 0), opt.step()
    pull(params, 1)
    params[3].grad[0, 0, 0] = float("nan")
    before = copy.deepcopy((params, opt.law, opt.param_groups[0]["progress"]))
    opt.step()
    assert opt.skipped == 1
    same((params, opt.law, opt.param_groups[0]["progress"]), before)
    pull(params, 2), opt.step()
    assert opt.skipped == 1


@pytest.mark.parametrize("place", ["foreach", "on the device"])
@pytest.mark.parametrize(("scope", "added"), [("group", 1), ("tensor", 2)])
def test_groups_added_in_mid_training_begin_with_the_first_law(scope, added, place):
    net = network(torch.float64)
    first, last = [0.9, 1.0], list(net[2].parameters())
    opt = RLLC(net[0].parameters(), "M(0.9) + M(0)", 0.05, 0.02, first, scope=scope, **PLACES[place])
    train(net, opt, 4)
    law = opt.law
    opt.add_param_group({"params": last, "lr": 0.01})
    same(opt.law, torch.cat([law, torch.tensor([first] * added, dtype=torch.float64)]))
    train(net, opt, 4)
    assert opt.param_groups[0]["progress"][:, 0].tolist() == [8] * len(law) + [4] * added
    with pytest.raises(ValueError, match="group asks for scope 'all', but one optimizer has one scope, "):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(1))], "scope": "all"})


@pytest.mark.parametrize("scope", SCOPES)
def test_a_saved_run_resumes_to_the_bit(scope):
    options = {"memory": "M(0.9) + M(0)", "scope": scope, "law_step": STEP, "memory_dtype": torch.bfloat16}
    net = network()
    opt = RLLC([{"params": m.parameters()} for m in (net[0], net[2])], lr=0.05, law_lr=0.1, **options)
    train(net, opt, 5)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "opt": opt.state_dict()}, file)
    train(net, opt, 5)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = network(seed=7)
    resumed = RLLC([{"params": m.parameters()} for m in (again[0], again[2])], lr=9.0, law_lr=9.0, **options)
    again.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["opt"])
    train(again, resumed, 5)
    same(snapshot(again, resumed), snapshot(net, opt))


def test_a_state_of_another_scope_is_refused_before_anything_changes():
    net = network()
    opt = RLLC(net.parameters(), "M(0.9)", 0.05, 0.1, scope="tensor")
    train(net, opt, 2)
    before = snapshot(net, opt)
    with pytest.raises(
        ValueError, match="has scope 'all', this optimizer 'tensor'; build the optimizer with"
    ):
        opt.load_state_dict(RLLC(network().parameters(), "M(0.9)", 0.05, 0.1).state_dict())
    damaged = opt.state_dict()
    damaged["param_groups"][0] = damaged["param_groups"][0] | {"law": torch.ones(3, 1)}
    with pytest.raises(ValueError, match=r"'law' must be finite numbers of shape \(4, 1\)"):
        opt.load_state_dict(damaged)
    same(snapshot(net, opt), before)


@pytest.mark.parametrize("scope", ("all", *SCOPES))
def test_sums_in_the_backward_pass(scope):
    """Of several groups too."""
    nets = [network(), network()]
    opts = [
        RLLC(
            [{"params": m.parameters()} for m in (net[0], net[2])], "M(0.9)", 0.05, 0.1, scope=scope, **early
        )
        for net, early in zip(nets, ({"sums_in_backward": True}, {}), strict=True)
    ]
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, 6)
    torch.testing.assert_close(opts[0].law, opts[1].law, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(list(nets[0].parameters()), list(nets[1].parameters()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_compiled_step_is_one_graph(scope):
    torch._dynamo.reset()
    nets, rates = [network(), network()], [torch.tensor(0.05), torch.tensor(0.02)]
    opts = [RLLC(net.parameters(), "M(0.9) + M(0)", *rates, scope=scope, law_step=SEEKING) for net in nets]
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, 1)
    counter = CompileCounter()
    compiled = torch.compile(lambda: opts[0].step(), backend=counter, fullgraph=True)
    for t in range(4):
        for net, step in ((nets[0], compiled), (nets[1], opts[1].step)):
            for p in net.parameters():
                p.grad = torch.cos(p.detach() + t)
            step()
    assert counter.frame_count == 1
    torch.testing.assert_close(snapshot(nets[0], opts[0]), snapshot(nets[1], opts[1]), rtol=1e-5, atol=1e-6)


def test_a_law_reads_a_copy_of_all():
    opt = RLLC(network().parameters(), "M(0.9)", 0.05, 0.1, [2.0], scope="tensor")
    opt.law.fill_(7.0)
    np.testing.assert_array_equal(opt.law, [[2.0]] * 4)


def test_laws_of_groups_or_tensors_that_are_gone_are_refused():
    """They go by place: what is left would follow the laws of others."""
    for scope, change in (
        ("group", lambda opt: opt.param_groups.pop(1)),
        ("tensor", lambda opt: opt.param_groups[1]["params"].append(nn.Parameter(torch.ones(2).double()))),
        ("tensor", lambda opt: opt.param_groups[0]["params"].pop()),
    ):
        params = parameters()
        opt = RLLC(groups(params), "M(0.9)", 0.01, 0.1, scope=scope)
        pull(params, 0)
        opt.step()
        change(opt)
        law = opt.law
        pull(params, 1)
        with pytest.raises(RuntimeError, match=rf"there are laws for \d {scope}s, and now \d {scope}s"):
            opt.step()
        with pytest.raises(RuntimeError, match="laws go by place"):
            opt.add_param_group({"params": [nn.Parameter(torch.ones(2).double())]})
        assert torch.equal(opt.law, law)
