"""The polynomial average of the weights: what it is, in and out of the parameters, and in checkpoints."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from rllc.torch.adamw import RLLCAdamW
from rllc.torch.around import Around
from same import same

MAKERS = {
    "RLLCAdamW": lambda params, **options: RLLCAdamW(params, lr=0.02, law=1.0, **options),
    "around": lambda params, **options: Around(torch.optim.SGD(list(params), 0.02, 0.9), 0.1, **options),
}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).to(dtype)


def train(net, opt, steps, seed=0):
    """A few steps, and the weights and buffers after each: (steps, n) float64."""
    generator, seen = torch.Generator().manual_seed(seed), []
    dtype = next(net.parameters()).dtype
    for _ in range(steps):
        x = torch.randn(8, 4, generator=generator).to(dtype)
        opt.zero_grad()
        (net(x) - x[:, :1]).square().mean().backward()
        opt.step()
        seen.append(numbers(net))
    return np.array(seen)


def numbers(net):
    everything = [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]
    return np.concatenate([t.detach().double().numpy().ravel() for t in everything])


def polynomial_average(seen, power):
    """By its weights: that of θ_i in θ̄_t is (p+1)/(i+p) times what later points leave of it."""
    average = np.zeros(seen.shape[1])
    for t, theta in enumerate(seen, 1):
        average += (power + 1) / (t + power) * (theta - average)
    return average


@pytest.mark.parametrize("power", [0.0, 1.0, 9.0])
def test_it_is_the_polynomial_average_of_weights_and_buffers(make, power):
    net = network(torch.float64)
    opt = make(net.parameters(), average=power, buffers=net.buffers())
    seen = train(net, opt, 30)
    if power == 0:
        np.testing.assert_allclose(polynomial_average(seen, 0), seen.mean(0), rtol=1e-12)
    with opt.averaged():
        np.testing.assert_allclose(numbers(net), polynomial_average(seen, power), rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(numbers(net), seen[-1])


def test_eval_and_train_are_exact_and_may_be_called_twice(make):
    net = network()
    opt = make(net.parameters(), average=9.0, buffers=net.buffers())
    train(net, opt, 5)
    before = copy.deepcopy(net.state_dict())
    opt.eval()
    once = copy.deepcopy(net.state_dict())
    opt.eval()
    same(net.state_dict(), once)
    assert not torch.equal(once["0.weight"], before["0.weight"])
    opt.train()
    opt.train()
    same(net.state_dict(), before)


def test_averaged_comes_back_after_an_exception_and_stays_where_it_began(make):
    net = network()
    opt = make(net.parameters(), average=9.0)
    train(net, opt, 3)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(KeyboardInterrupt), opt.averaged():
        raise KeyboardInterrupt
    same(net.state_dict(), before)
    opt.eval()
    average = copy.deepcopy(net.state_dict())
    with opt.averaged():
        pass
    same(net.state_dict(), average)


def test_evaluating_changes_nothing_of_the_training(make):
    nets = [network(), network()]
    opts = [make(net.parameters(), average=9.0, buffers=net.buffers()) for net in nets]
    for seed in range(3):
        for net, opt in zip(nets, opts, strict=True):
            train(net, opt, 4, seed)
        with opts[0].averaged():
            pass
    same(nets[0].state_dict(), nets[1].state_dict())
    same(opts[0].state_dict(), opts[1].state_dict())


def test_a_step_in_evaluation_mode_is_refused_before_anything_changes(make):
    net = network()
    opt = make(net.parameters(), average=9.0)
    train(net, opt, 3)
    opt.eval()
    before = copy.deepcopy((net.state_dict(), opt.state_dict()))
    opt.zero_grad()
    net(torch.ones(2, 4)).sum().backward()
    net[1].running_mean.copy_(before[0]["1.running_mean"])
    net[1].running_var.copy_(before[0]["1.running_var"])
    net[1].num_batches_tracked.copy_(before[0]["1.num_batches_tracked"])
    for closure in (None, lambda: pytest.fail("the closure was called")):
        with pytest.raises(RuntimeError, match=r"call opt\.train\(\) before the next step"):
            opt.step(closure)
    same((net.state_dict(), opt.state_dict()), before)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_of_either_mode_goes_on_to_the_bit(make, mode, dtype):
    """Schedule-free's trap: a network saved in evaluation mode has the averages for its weights."""
    net = network(dtype)
    opt = make(net.parameters(), average=9.0, buffers=net.buffers())
    train(net, opt, 5)
    getattr(opt, mode)()
    file = io.BytesIO()
    torch.save((net.state_dict(), opt.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)

    fresh = network(dtype)
    other = make(fresh.parameters(), average=9.0, buffers=fresh.buffers())
    train(fresh, other, 2, seed=7)
    other.load_state_dict(state)
    fresh.load_state_dict(weights)
    same(other.state_dict(), opt.state_dict())
    for n, o in ((net, opt), (fresh, other)):
        o.train()
        train(n, o, 5, seed=1)
        o.eval()
    same(fresh.state_dict(), net.state_dict())
    same(other.state_dict(), opt.state_dict())
    if mode == "eval":  # the saved state is not changed by what was loaded from it
        assert all("training" in s for s in state["state"].values())


def test_half_precision_is_averaged_in_float32(make):
    net = network(torch.bfloat16)
    opt = make(net.parameters(), average=9.0)
    seen = train(net, opt, 20)
    average = np.concatenate([opt.state[p]["average"].numpy().ravel() for p in net.parameters()])
    expected = polynomial_average(seen, 9.0)[: average.size]
    assert average.dtype == np.float32
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-7)
    with opt.averaged():
        assert all((p == opt.state[p]["average"].bfloat16()).all() for p in net.parameters())


def test_parameters_that_do_not_move_or_move_later_have_been_there_from_the_start(make):
    early, late, never = (nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(3))
    opt = make([early, late, never], average=9.0)
    seen = []
    for t in range(20):
        early.grad, late.grad = torch.randn(2, 3, dtype=torch.float64)
        if t < 8:
            late.grad = None
        opt.step()
        seen.append(np.concatenate([early.detach().numpy(), late.detach().numpy()]))
    start = never.detach().clone()
    with opt.averaged():
        found = np.concatenate([early.detach().numpy(), late.detach().numpy()])
        np.testing.assert_allclose(found, polynomial_average(np.array(seen), 9.0), rtol=1e-12, atol=1e-15)
        same(never.detach(), start)


def test_an_added_group_counts_as_having_been_there(make):
    old, new = (nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(2))
    opt = make([old], average=9.0)
    seen = []
    for t in range(12):
        if t == 5:
            opt.add_param_group({"params": [new]})
        for p in (old, new):
            p.grad = torch.randn(3, dtype=torch.float64)
        opt.step()
        seen.append(new.detach().numpy().copy())
    with opt.averaged():
        np.testing.assert_allclose(new.detach().numpy(), polynomial_average(np.array(seen), 9.0), rtol=1e-12)


def test_a_skipped_step_is_not_averaged(make):
    p = nn.Parameter(torch.randn(3))
    opt = make([p], average=9.0)
    for t in range(4):
        p.grad = torch.full((3,), torch.nan) if t == 2 else torch.randn(3)
        opt.step()
    assert opt.skipped == 1
    assert int(opt.param_groups[0]["averaged"]) == 3
    assert opt.state[p]["average"].isfinite().all()


def test_counters_and_masks_are_left_as_they_are(make):
    net = network()
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    opt = make(net.parameters(), average=9.0, buffers=net.buffers())
    train(net, opt, 3)
    with opt.averaged():
        assert net[1].num_batches_tracked == 3
        assert net.mask.tolist() == [0.0, -torch.inf]


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_alike(make, way):
    net = network()
    opt = make(net.parameters(), average=9.0, buffers=net.buffers())
    train(net, opt, 3)
    opt.eval()
    net_2, opt_2 = way((net, opt))
    for n, o in ((net, opt), (net_2, opt_2)):
        o.train()
        train(n, o, 3, seed=1)
        o.eval()
    same(net.state_dict(), net_2.state_dict())
    same(opt.state_dict(), opt_2.state_dict())


def test_a_state_without_an_average_starts_one(make):
    nets = [network(), network()]
    old, new = make(nets[0].parameters(), average=None), make(nets[1].parameters(), average=9.0)
    train(nets[0], old, 3)
    nets[1].load_state_dict(nets[0].state_dict())
    new.load_state_dict(old.state_dict())
    seen = train(nets[1], new, 4, seed=1)
    with new.averaged():
        weights = np.concatenate([p.detach().numpy().ravel() for p in nets[1].parameters()])
        expected = polynomial_average(seen, 9.0)[: weights.size]
        np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused_before_anything_changes(make):
    net = network()
    opt = make(net.parameters(), average=9.0, buffers=net.buffers())
    train(net, opt, 3)
    opt.eval()
    good = copy.deepcopy(opt.state_dict())
    maimed = copy.deepcopy(good)
    del maimed["state"][0]["training"]
    others = {
        "power 9.0, this optimizer with 3.0": ({"average": 3.0, "buffers": net.buffers()}, good),
        "power 9.0, this optimizer with None": ({"average": None}, good),
        "2 buffers, this optimizer 0": ({"average": 9.0}, good),
        "its training weights are missing": ({"average": 9.0, "buffers": net.buffers()}, maimed),
    }
    for message, (options, state) in others.items():
        fresh = network()
        other = make(fresh.parameters(), **options)
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        same(other.state_dict(), before)


@pytest.mark.parametrize("power", [-1.0, float("nan"), float("inf"), True, "9", [9.0]])
def test_a_power_that_is_none_is_refused(make, power):
    with pytest.raises(ValueError, match="average must be a finite power >= 0"):
        make([nn.Parameter(torch.ones(1))], average=power)


def test_without_an_average_there_is_no_evaluation_mode(make):
    """Training loops (Trainer, for one) call eval() and train() of every optimizer that has them."""
    p = nn.Parameter(torch.ones(1))
    opt = make([p], average=None)
    for call in (opt.eval, opt.train, opt.eval):
        call()
        p.grad = torch.ones(1)
        opt.step()
    with pytest.raises(RuntimeError, match=r"make it with average=9\.0"):
        opt.averaged().__enter__()


def test_a_net_s_buffers_are_found_where_they_are_now(make):
    """Module.to() keeps parameters and makes new buffers."""
    net = network()
    opt = make(net.parameters(), average=9.0, buffers=net)
    net.double()
    train(net, opt, 5)
    now = net[1].running_mean.clone()
    twin, twins = copy.deepcopy((net, opt))
    for one, its in ((net, opt), (twin, twins)):
        with its.averaged():
            assert not torch.equal(one[1].running_mean, now)
        assert torch.equal(one[1].running_mean, now)


def test_what_fails_in_eval_leaves_the_training_weights(make):
    net = network()
    net.register_buffer("fixed", torch.linspace(0, 1, 3).expand(2, 3))  # cannot be written
    opt = make(net.parameters(), average=9.0, buffers=net.buffers())
    train(net, opt, 5)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match="more than one element"), opt.averaged():
        pass
    assert all(map(torch.equal, before, net.parameters()))
    assert not opt.param_groups[0]["evaluating"]
    train(net, opt, 1)
