"""rllc.torch at full speed: implementations, compilation, memory of a step, sums in the backward pass."""

import copy
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from problems import DENSE, EIGHT
from rllc.law import Cutoff
from rllc.torch import RLLC, RLLCAdamW, fused_cpu, kernels_cpu, rounding, selection, stepping
from same import same
from torch_nets import WAYS, X, Y, assert_skips_whole, network, rllc, snapshot, train

MEMORIES = [*EIGHT, DENSE]
NAMES = [*EIGHT, "dense"]


def follow(opt, params, gradients):
    for g in gradients:
        for p, part in zip(params, g.split([p.numel() for p in params]), strict=True):
            p.grad = part.reshape(p.shape).to(p)
        opt.step()


def run(memory, gradients, shapes=((7, 9), (1,), (), (0, 2), (30, 5)), **options):
    """Parameters and law after fixed gradients (steps, entries); large shapes cross chunks and blocks."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    opt = RLLC(params, memory, **{"lr": 0.01, "law_lr": 0.05} | options)
    follow(opt, params, gradients)
    return [p.detach() for p in params], opt.law, [opt.state[p]["m1"] for p in params]


LARGE = ((3, 20000), (1025,), (40, 40))


@pytest.mark.parametrize("memory", MEMORIES, ids=NAMES)
@pytest.mark.parametrize("way", [WAYS["foreach"], WAYS["fused"], {"capturable": True}], ids=str)
def test_ways_agree_to_rounding_over_chunks_and_blocks(memory, way):
    """Sums to float64 rounding, so the law to 1e-6; the rest to a few units in the last place."""
    noise = torch.randn(6, 62625, generator=torch.Generator().manual_seed(1))
    plain = run(memory, noise, LARGE, foreach=False, weight_decay=0.1)
    other = run(memory, noise, LARGE, weight_decay=0.1, **way)
    torch.testing.assert_close(other[0], plain[0], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(other[1], plain[1], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(other[2], plain[2], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("memory", MEMORIES, ids=NAMES)
def test_a_step_in_one_call_is_the_same_to_the_bit(monkeypatch, memory):
    """As in three calls: also where a step is skipped, or has sums so large that entries are looked at."""
    noise = torch.randn(8, 215, generator=torch.Generator().manual_seed(2))
    noise[3, 5], noise[5, 5] = torch.nan, 1e36
    calls, made = [], stepping.in_one_call
    monkeypatch.setattr(stepping, "in_one_call", lambda *args: calls.append(made(*args)) or calls[-1])
    at_once = run(memory, noise, weight_decay=0.1, average=9.0)
    assert calls[:6] == [True, True, True, False, True, False]
    monkeypatch.setattr(stepping, "in_one_call", lambda *args: False)
    same(run(memory, noise, weight_decay=0.1, average=9.0), at_once)


def test_the_number_of_threads_changes_no_bit():
    noise = torch.randn(3, 2_000_000, generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(run("M(0.9) + M(0)", noise, ((1000, 2000),), fused=True))
    finally:
        torch.set_num_threads(threads)
    same(found[0], found[1])


def test_fused_takes_over_where_tensors_move_and_layouts_differ():
    """The last step's plan is dropped for new storage, another unit, or a gradient of another layout."""
    found = []
    for way in ("fused", "one by one"):
        p = nn.Parameter(torch.linspace(-1, 1, 24).reshape(4, 6))
        opt = RLLC([p], "M(0.9) + M(0)", 0.1, 0.1, **WAYS[way])
        for t in range(8):
            p.grad = torch.cos(p.detach() + t)
            if t == 1:
                opt.state[p]["m2"].data = opt.state[p]["m2"].data * 2
            if t == 2:
                p.data = p.data.clone()
            if t == 3:
                p.grad = p.grad.t().contiguous().t()
            if t == 4:
                opt.state[p]["m1"] = opt.state[p]["m1"] * 2
            if t == 5:
                p.data = p.data.t().contiguous().t()
            opt.step()
        found.append((p.detach(), opt.law))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)


def test_who_is_chosen(monkeypatch):
    cpu, meta = torch.device("cpu"), torch.device("meta")

    def chosen(device=cpu, **asked):
        return selection.chosen({"foreach": None, "fused": None, "capturable": None} | asked, device)

    fused = selection._fused_cpu()
    assert chosen() == chosen(fused=True) == chosen(fused=True, foreach=False) == fused
    assert chosen(foreach=True) == chosen(fused=False) == chosen(meta) == selection.FOREACH
    assert chosen(foreach=False) == chosen(foreach=False, fused=False) == selection.FORLOOP
    assert chosen(capturable=True) == selection.FOREACH
    monkeypatch.setattr(selection, "_why_no_numba", lambda: "no numba")
    assert chosen() == selection.FOREACH


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"foreach": True, "fused": True}, "both given"),
        ({"fused": True, "capturable": True}, "cannot be capturable"),
        ({"memory_dtype": torch.int8}, "memory_dtype must be one of"),
    ],
)
def test_refusals(options, text):
    with pytest.raises(ValueError, match=text):
        rllc(network(), **options)


def test_without_numba_the_default_works_and_fused_says_what_to_do():
    code = """
import sys
sys.modules["numba"] = None
import torch
from rllc.torch import RLLC
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
RLLC([p], "M(0.9)", 0.1, 0.1).step()
try:
    RLLC([p], "M(0.9)", 0.1, 0.1, fused=True)
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "rllc[fast]"' in done.stdout


# --- On the device, compiled ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("way", ["foreach", "one by one"])
def test_a_step_skipped_on_the_device_changes_nothing(way, value):
    net = network()
    opt = rllc(net, "M(0.9) + M(0) + CM(0.3i)", weight_decay=0.1, capturable=True, **WAYS[way])
    assert_skips_whole(net, opt, value)


def test_float16_memory_that_would_overflow_is_seen_on_the_device():
    half = nn.Parameter(torch.ones(2, dtype=torch.float16))
    opt = RLLC([half], "M(0.9)", 1e-6, 0.01, capturable=True)
    half.grad = torch.full_like(half, 60000.0)
    opt.step(), opt.step()
    assert opt.skipped == 1
    assert torch.isfinite(opt.state[half]["m1"]).all()


@pytest.mark.parametrize("inverse", [None, Cutoff(1e-3)], ids=["ridge", "cutoff"])
def test_a_step_on_the_device_reads_nothing_back(inverse):
    """As torch sees it: no operation whose result is a Python number."""

    class NoReading(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten._local_scalar_dense.default
            return func(*args, **kwargs or {})

    net, rates = network(), [torch.tensor(0.05), torch.tensor(0.02)]
    opt = RLLC(net.parameters(), "M(0.9) + M(0)", *rates, inverse=inverse, capturable=True)
    train(net, opt, 2)
    with NoReading():
        opt.step()


def compiled(counter, **options):
    """A network trained by a compiled step, its optimizer, and the step, a function of both rates."""
    net, lr, law_lr = network(), torch.tensor(0.0), torch.tensor(0.0)
    opt = RLLC(net.parameters(), "M(0.9) + M_2(0.6)", lr, law_lr, weight_decay=0.1, **options)

    @torch.compile(backend=counter)
    def whole():
        loss = ((net(X) - Y) ** 2).mean()
        loss.backward()
        opt.step()

    def step(rate):
        opt.zero_grad()
        lr.fill_(rate)
        law_lr.fill_(rate / 2)
        whole()

    return net, opt, step


@pytest.mark.parametrize("memory_dtype", [None, torch.bfloat16])
def test_a_compiled_training_step_is_compiled_once_whatever_the_rates(memory_dtype):
    torch._dynamo.reset()
    counter = CompileCounter()
    net, opt, step = compiled(counter, memory_dtype=memory_dtype)
    plain = network()
    other = RLLC(
        plain.parameters(), "M(0.9) + M_2(0.6)", 0.0, 0.0, weight_decay=0.1, memory_dtype=memory_dtype
    )
    for t in range(6):
        rate = 0.05 / (1 + t)
        step(rate)
        if t == 1:
            frames = counter.frame_count
        other.param_groups[0] |= {"lr": torch.tensor(rate), "law_lr": torch.tensor(rate / 2)}
        train(plain, other, 1)
    assert counter.frame_count == frames
    tolerance = 1e-5 if memory_dtype is None else 1e-3
    torch.testing.assert_close(
        list(net.parameters()), list(plain.parameters()), rtol=tolerance, atol=tolerance
    )
    torch.testing.assert_close(opt.law, other.law, rtol=tolerance, atol=tolerance)


def test_a_step_is_one_graph():
    torch._dynamo.reset()
    net = network()
    opt = RLLC(net.parameters(), "M(0.9) + M(0)", torch.tensor(0.05), torch.tensor(0.02))
    train(net, opt, 1)
    counter = CompileCounter()
    step = torch.compile(lambda: opt.step(), backend=counter, fullgraph=True)
    for _ in range(3):
        opt.zero_grad()
        ((net(X) - Y) ** 2).mean().backward()
        step()
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda params: RLLCAdamW(params, law=0.5),
        lambda params: RLLC.around(torch.optim.AdamW(params), law_lr=0.1),
        lambda params: RLLC.around(torch.optim.SGD(params, lr=0.1, momentum=0.9), law_lr=0.1),
    ],
)
def test_a_compiled_training_step_breaks_once_where_sums_are_read_on_the_host(make):
    """The network's part is compiled, the optimizer's is as it is without."""
    torch._dynamo.reset()
    counter = CompileCounter()
    nets = [network(), network()]
    opts = [make(net.parameters()) for net in nets]

    def whole(net, opt):
        loss = ((net(X) - Y) ** 2).mean()
        loss.backward()
        opt.step()

    for net, opt, step in zip(nets, opts, (whole, torch.compile(whole, backend=counter)), strict=True):
        for _ in range(5):
            opt.zero_grad()
            step(net, opt)
    assert counter.frame_count == 1
    assert torch.equal(*(opt.law for opt in opts))
    assert opts[0].law != make(network().parameters()).law
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(p, q)


# --- Extra memory -----------------------------------------------------------------------------------


class Peak(TorchDispatchMode):
    """The most bytes at a time in storage that did not exist before."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        }
        result = func(*args, **kwargs or {})
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and (s := t.untyped_storage())._cdata not in given:
                self.live.setdefault(s._cdata, torch.multiprocessing.reductions.StorageWeakRef(s))
        self.live = {c: ref for c, ref in self.live.items() if not ref.expired()}
        sizes = [torch.UntypedStorage._new_with_weak_ptr(ref.cdata).nbytes() for ref in self.live.values()]
        self.peak = max(self.peak, sum(sizes))
        return result


@pytest.mark.parametrize("memory_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("memory", ["M(0.9) + M(0)", "CM(0.3+0.4i)"])
@pytest.mark.parametrize("way", ["foreach", "fused"])
def test_extra_memory_of_a_step(way, memory, memory_dtype):
    """At most one buffer of the parameters' size; fused, none."""
    params = [nn.Parameter(torch.ones(s)) for s in ((3000, 1000), (1000,), (500, 1000))]
    opt = RLLC(params, memory, 0.1, 0.1, memory_dtype=memory_dtype, weight_decay=0.1, **WAYS[way])
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    with Peak() as meter:
        opt.step()
    size = sum(p.numel() * p.element_size() for p in params)
    assert 0 < meter.peak <= size if way == "foreach" else meter.peak == 0


# --- bfloat16 memory --------------------------------------------------------------------------------


def test_stochastic_rounding_is_unbiased_and_goes_only_to_neighbours():
    x = torch.full((200_000,), 1 + 2**-9 + 2**-11)  # between the neighbours 1 and 1 + 2⁻⁷
    for sign in (1, -1):
        got = rounding.stochastic(sign * x, rounding.key(0, 1, 2, 3)).double()
        assert set(got.tolist()) == {sign * 1.0, sign * (1 + 2**-7)}
        # 5 standard deviations of the mean of 200,000 draws
        assert abs(got.mean() - sign * x[0].double()) < 5 * 2**-8 / 200_000**0.5
    exact = torch.tensor([0.0, -2.0, 1.5, 3e38]).bfloat16().float()
    same(rounding.stochastic(exact, 7).float(), exact)


def test_plain_bfloat16_stalls_and_stochastic_rounding_does_not():
    """M(0.999) of a constant gradient comes to 1000 gradients; rounded to nearest it stops at a quarter."""
    found = {}
    for memory_dtype in (None, torch.bfloat16):
        p = nn.Parameter(torch.zeros(256, dtype=torch.bfloat16))
        opt = RLLC([p], "M(0.999)", 0.0, 0.0, memory_dtype=memory_dtype)
        p.grad = torch.ones_like(p)
        for _ in range(2000):
            opt.step()
        found[memory_dtype] = opt.state[p]["m1"].float().mean().item()
    assert found[None] <= 256
    assert found[torch.bfloat16] == pytest.approx(1000 * (1 - 0.999**2000), rel=0.01)


@pytest.mark.parametrize("way", WAYS)
def test_ways_round_with_the_same_bits(way):
    noise = torch.randn(3, 62625, generator=torch.Generator().manual_seed(1))
    plain = run("M(0.9) + CM(0.3+0.4i)", noise, LARGE, memory_dtype=torch.bfloat16, foreach=False)
    other = run("M(0.9) + CM(0.3+0.4i)", noise, LARGE, memory_dtype=torch.bfloat16, **WAYS[way])
    alike = torch.cat([(a == b).reshape(-1) for a, b in zip(plain[2], other[2], strict=True)])
    assert alike.float().mean() > 0.999  # what differs was a rounding of float32 away from the other side
    torch.testing.assert_close(other[2], plain[2], rtol=2**-6, atol=2**-6)
    torch.testing.assert_close(other[1], plain[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str
)
@pytest.mark.parametrize("way", WAYS)
def test_memory_of_another_dtype_resumes_to_the_bit(way, dtypes, tmp_path):
    dtype, memory_dtype = dtypes
    options = {"lr": 0.01, "memory_dtype": memory_dtype, **WAYS[way]}
    net = network(dtype)
    opt = rllc(net, "M(0.9) + M_2(0.6)", seed=5, **options)
    train(net, opt, 5)
    torch.save({"net": net.state_dict(), "opt": opt.state_dict()}, tmp_path / "run.pt")
    train(net, opt, 5)
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    again = network(dtype, seed=7)
    resumed = rllc(again, "M(0.9) + M_2(0.6)", **options)
    again.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["opt"])
    assert resumed.state[again[0].weight]["m1"].dtype == memory_dtype
    train(again, resumed, 5)
    same(snapshot(again, resumed), snapshot(net, opt))


def test_a_state_of_version_0_1_loads():
    net = network()
    opt = rllc(net)
    train(net, opt, 3)
    old = copy.deepcopy(opt.state_dict())
    group = {
        n: v for n, v in old["param_groups"][0].items() if n not in ("fused", "capturable", "seed", "draws")
    }
    old["param_groups"][0] = group | {"skipped": 2}
    again = network()
    again.load_state_dict(net.state_dict())
    resumed = rllc(again)
    resumed.load_state_dict(old)
    assert resumed.skipped == 2
    train(net, opt, 2), train(again, resumed, 2)
    same(snapshot(net, opt)[:2], snapshot(again, resumed)[:2])


# --- Sums in the backward pass ----------------------------------------------------------------------


def test_sums_in_the_backward_pass_are_the_same_process():
    nets = [network(), network()]
    early, late = rllc(nets[0], sums_in_backward=True, maximize=True), rllc(nets[1], maximize=True)
    train(nets[0], early), train(nets[1], late)
    torch.testing.assert_close(early.law, late.law, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(list(nets[0].parameters()), list(nets[1].parameters()), rtol=1e-6, atol=1e-7)


def test_accumulated_gradients_have_their_sums_taken_anew():
    nets = [network(), network()]
    opts = [rllc(nets[0], sums_in_backward=True), rllc(nets[1])]
    for net, opt in zip(nets, opts, strict=True):
        for _ in range(3):
            opt.zero_grad()
            for half in (X[:16], X[16:]):
                net(half).square().mean().backward()
            opt.step()
    torch.testing.assert_close(opts[0].law, opts[1].law, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: nn.utils.clip_grad_norm_(net.parameters(), 1e-3),
        lambda net: [p.grad.div_(2) for p in net.parameters()],
        lambda net: setattr(net[0].weight, "grad", torch.ones_like(net[0].weight)),
    ],
    ids=["clipped", "scaled", "set"],
)
def test_gradients_that_changed_after_their_sums_are_refused(change):
    net = network()
    opt = rllc(net, sums_in_backward=True)
    train(net, opt, 2)
    before = snapshot(net, opt)
    opt.zero_grad()
    net(X).square().mean().backward()
    change(net)
    with pytest.raises(RuntimeError, match="leave sums_in_backward out"):
        opt.step()
    same(snapshot(net, opt), before)


def test_kernels_sum_like_numpy():
    generator = torch.Generator().manual_seed(0)
    units = [[torch.randn(n, generator=generator) for n in (5, 40_000)] for _ in range(4)]
    part = fused_cpu.Part([t.clone() for t in units[0]], units[3], units[:3], [0, 1], [0, 0])
    batches, plan = fused_cpu.prepare(part, None)
    flat = torch.stack([torch.cat(unit) for unit in units]).double().numpy()
    np.testing.assert_allclose(fused_cpu.gram(batches, np.eye(4)), flat @ flat.T, rtol=1e-12, atol=1e-9)
    assert fused_cpu.prepare(part, plan)[1] is plan


def test_sums_of_many_units_are_compiled_without_too_deep_a_recursion():
    """Anew, as nothing on disk would show it: eight units have 45 sums."""
    compiled = numba.njit(kernels_cpu._sums.py_func)
    rows = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    found = compiled(tuple(rows), 5)
    np.testing.assert_allclose(found, (rows @ rows.T.astype(float))[np.triu_indices(9)], rtol=1e-12)


@pytest.mark.parametrize(
    "ways", [{}, {"foreach": True}, {"foreach": False}], ids=["default", "foreach", "for"]
)
def test_units_in_bfloat16_beside_float64_parameters(ways):
    theta = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    opt = RLLC([theta], "M(0.5)", lr=0.25, law_lr=0.0, memory_dtype=torch.bfloat16, **ways)
    for _ in range(3):
        theta.grad = torch.ones_like(theta)
        opt.step()
    assert opt.state[theta]["m1"].dtype == torch.bfloat16
    # 1, 1.5 and 1.75, which bfloat16 holds exactly
    assert theta.tolist() == [1 - 0.25 * (1 + 1.5 + 1.75)] * 3
