"""On a GPU, where there is one: every implementation beside the plain text on the CPU, and CUDA graphs."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rllc.law import SEEKING
from rllc.torch import RLLC, RLLCAdamW

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

MEMORIES = ("M(0.9)", "M(0.9) + M(0)", "M_2(0.6)", "M(0.9) + M(0) + M_2(0.6)", "M(0.9) + M(-0.9) + CM(0.9i)")
HOW = ({"fused": True}, {"foreach": True}, {"foreach": False})
SHAPES = ((300, 70), (70,), (5000,), (3, 3, 8, 16), (1,), ())


def parameters(device, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in SHAPES]
    drawn[3] = drawn[3].to(memory_format=torch.channels_last)
    return [nn.Parameter(t.to(device)) for t in drawn]


def train(optimizer, params, steps, first=0):
    """Gradients that are the same on every device, and depend on the parameters."""
    for step in range(first, first + steps):
        noise = parameters("cpu", seed=step + 1)
        for p, n in zip(params, noise, strict=True):
            p.grad = (0.1 * p + n.to(p)).detach()
        optimizer.step()


def flat(params):
    return torch.cat([p.detach().double().cpu().reshape(-1) for p in params])


def largest_difference(mine, theirs):
    return float((flat(mine) - flat(theirs)).abs().max() / flat(theirs).abs().max())


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("how", HOW, ids=str)
def test_rllc_is_the_one_of_the_cpu(memory, how):
    mine, theirs = parameters("cuda"), parameters("cpu", torch.float64)
    ours = RLLC(mine, memory, 0.05, 0.01, weight_decay=0.1, **how)
    other = RLLC(theirs, memory, 0.05, 0.01, weight_decay=0.1, foreach=False)
    train(ours, mine, 30)
    train(other, theirs, 30)
    assert largest_difference(mine, theirs) < 1e-5
    torch.testing.assert_close(ours.law, other.law, rtol=1e-4, atol=1e-5)
    assert ours.skipped == 0


def test_fused_is_what_is_taken():
    params = parameters("cuda")
    train(RLLC(params, "M(0.9)", 0.1, 0.01), params, 3)
    same = parameters("cuda")
    train(RLLC(same, "M(0.9)", 0.1, 0.01, fused=True), same, 3)
    assert all(map(torch.equal, params, same))


@pytest.mark.parametrize("law_step", [None, SEEKING], ids=["plain", "seeking"])
def test_nothing_is_read_back(law_step):
    params = parameters("cuda")
    more = {} if law_step is None else {"law_step": law_step}
    groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.01, "maximize": True}]
    optimizer = RLLC(groups, "M(0.9) + M(0)", 0.1, 0.01, **more)
    train(optimizer, params, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.skipped == 0


@pytest.mark.parametrize("memory_dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("how", HOW[:2], ids=str)
def test_a_captured_step_is_the_same_to_the_bit(memory, memory_dtype, how):
    if memory_dtype and "foreach" in how:
        pytest.skip("one implementation of stochastic rounding is enough")
    made = []
    for captured in (False, True):
        params = parameters("cuda")
        grads = [torch.zeros_like(p) for p in params]
        optimizer = RLLC(params, memory, 0.05, 0.01, memory_dtype=memory_dtype, **how)

        def step(params=params, grads=grads, optimizer=optimizer):
            for p, g in zip(params, grads, strict=True):
                p.grad = g * 1.0 + 0.1 * p.detach()  # new memory each time, as after zero_grad()
            optimizer.step()

        graph = None
        for number in range(12):
            noise = parameters("cuda", seed=number)
            for g, n in zip(grads, noise, strict=True):
                g.copy_(n.detach() * (torch.nan if number == 8 else 1))
            if captured and number == 3:
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    step()
            step() if graph is None else graph.replay()
            if number % 4 == 3:  # others come and go meanwhile
                train(RLLC(noise, "M(0.5)", 0.1 + number, 0.01), noise, 2)
        made.append((flat(params), optimizer.law, optimizer.skipped))
    assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][1], made[1][1])
    assert made[0][2] == made[1][2] == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_step_is_skipped_whole(bad):
    params = parameters("cuda")
    optimizer = RLLC(params, "M(0.9) + M(0)", 0.1, 0.01)
    train(optimizer, params, 3)
    before, law = flat(params), optimizer.law
    params[2].grad[17] = bad
    optimizer.step()
    assert torch.equal(flat(params), before) and torch.equal(optimizer.law, law)
    assert optimizer.skipped == 1
    train(optimizer, params, 1, first=3)
    assert torch.isfinite(flat(params)).all() and not torch.equal(flat(params), before)


def test_a_fused_step_takes_no_memory_of_the_parameters_size():
    params = [nn.Parameter(torch.randn(1 << 22, device="cuda"))]
    params[0].grad = torch.randn_like(params[0])
    optimizer = RLLC(params, "M(0.9) + M(0)", 0.1, 0.01)
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()
    assert torch.cuda.max_memory_allocated() - before < 1 << 20


def test_state_goes_between_devices():
    mine, theirs = parameters("cuda"), parameters("cpu")
    first = RLLC(mine, "M(0.9) + M(0)", 0.1, 0.01)
    train(first, mine, 5)
    second = RLLC(theirs, "M(0.9) + M(0)", 0.1, 0.01)
    for p, q in zip(theirs, mine, strict=True):
        p.data.copy_(q.data)
    second.load_state_dict(first.state_dict())
    train(first, mine, 5, first=5)
    train(second, theirs, 5, first=5)
    assert largest_difference(mine, theirs) < 1e-5
    torch.testing.assert_close(first.law, second.law, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", [{}, {"fused": True}, {"foreach": True}], ids=str)
def test_rllc_adamw_is_the_one_of_the_cpu(how):
    mine, theirs = parameters("cuda"), parameters("cpu", torch.float64)
    ours = RLLCAdamW(mine, weight_decay=0.1, **how)
    other = RLLCAdamW(theirs, weight_decay=0.1, foreach=True)
    train(ours, mine, 40)
    train(other, theirs, 40)
    assert largest_difference(mine, theirs) < 1e-4
    torch.testing.assert_close(ours.law, other.law, rtol=1e-3, atol=1e-6)
    with ours.averaged(), other.averaged():
        assert largest_difference(mine, theirs) < 1e-4


def test_a_compiled_step_with_rates_that_change():
    params = parameters("cuda")
    lr = torch.tensor(0.05, device="cuda")
    optimizer = RLLC(params, "M(0.9)", lr, 0.01)
    train(optimizer, params, 1)
    step = torch.compile(optimizer.step)
    plain = parameters("cuda")
    other = RLLC(plain, "M(0.9)", 0.05, 0.01)
    train(other, plain, 1)
    for number in range(1, 5):
        lr.fill_(0.05 / number)
        other.param_groups[0]["lr"] = 0.05 / number
        for ps in (params, plain):
            for p, n in zip(ps, parameters("cuda", seed=number), strict=True):
                p.grad = n.detach()
        step()
        other.step()
    assert largest_difference(params, plain) < 1e-5


@pytest.mark.parametrize("setting", ["SGD", "Adam", "Rllc"])
def test_the_lab_s_runs_are_the_same_with_and_without_a_graph(setting, monkeypatch):
    from rllc.lab import training
    from rllc.lab.cells import Cell
    from rllc.lab.settings import SGD, Adam, Rllc
    from rllc.lab.tasks import TASKS

    made = {"SGD": SGD(0.1, 0.9), "Adam": Adam(1e-3), "Rllc": Rllc("M(0.9) + M(0.0)", 0.05, 0.01, (1.0, 1.0))}
    cell = Cell(TASKS["digits-mlp"], made[setting], 0, 40, "cuda", 4)
    captured = training.train(cell)
    again = training.train(cell)
    monkeypatch.setattr(training, "CAPTURABLE", ())
    plain = training.train(cell)
    assert captured.points == again.points == plain.points
    on_cpu = training.train(dataclasses.replace(cell, device="cpu"))
    losses = [[point.valid_loss for point in run.points] for run in (captured, on_cpu)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_backward_of_a_network_goes_through_a_graph():
    """Forward, backward and step in one, as `rllc.lab.graphs` has it."""
    from rllc.lab.graphs import Captured

    def run(wrap):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
        )
        net = net.cuda().to(memory_format=torch.channels_last)
        optimizer = RLLC(net.parameters(), "M(0.9) + M(0)", 0.05, 0.01)

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        step, losses = wrap(step), []
        for number in range(10):
            generator = torch.Generator().manual_seed(number)
            x = torch.randn(16, 3, 8, 8, generator=generator).cuda().to(memory_format=torch.channels_last)
            losses.append(step(x, torch.randint(10, (16,), generator=generator).cuda()).clone())
        return torch.stack(losses)

    torch.backends.cudnn.deterministic = True
    assert torch.equal(run(Captured), run(lambda step: step))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rllc_adamw_in_a_graph(dtype):
    """Nothing is read back, so that a captured step is the same to the bit."""
    made = []
    for captured in (False, True):
        params = parameters("cuda", dtype)
        optimizer = RLLCAdamW(params, weight_decay=0.1)
        train(optimizer, params, 3)
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
        for number in range(5):
            for p, n in zip(params, parameters("cuda", dtype, seed=number), strict=True):
                p.grad.copy_(n.detach() * (torch.nan if number == 2 else 1))
            graph.replay() if captured else optimizer.step()
        made.append((flat(params), optimizer.law, optimizer.skipped))
        with optimizer.averaged():
            made[-1] += (flat(params),)
    assert all(torch.equal(*pair) for pair in zip(*(m[:2] + m[3:] for m in made), strict=True))
    assert made[0][2] == made[1][2] == 1
