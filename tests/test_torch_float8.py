"""Units in float8: what rounding does, against float32 units, and their state."""

import copy
import io

import pytest
import torch
from torch import nn

from rllc.memory import Adam
from rllc.torch import RLLC, float8, foreach
from same import same

FLOAT8 = torch.float8_e4m3fn
SIZES = torch.logspace(-3, 3, 300)
UNIT = torch.randn(37, 300, generator=torch.Generator().manual_seed(0)) * SIZES
X = torch.randn(64, 100, generator=torch.Generator().manual_seed(1))
Y = (X @ torch.randn(100, 10, generator=torch.Generator().manual_seed(2))).argmax(1)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(100, 80), nn.ReLU(), nn.Linear(80, 10)).to(dtype)


def trained(steps, memory_dtype=FLOAT8, *, memory="M(0.9) + M(0)", dtype=torch.float32, **options):
    net = network(dtype)
    opt = RLLC(net.parameters(), memory, 0.05, 0.01, memory_dtype=memory_dtype, **options)
    return learn(net, opt, steps)


def learn(net, opt, steps):
    for _ in range(steps):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(X.to(net[0].weight.dtype)), Y)
        loss.backward()
        opt.step()
    return net, opt, loss.item() if steps else None


def bits(opt):
    return [
        {name: x.view(torch.uint8) if x.dtype == FLOAT8 else x for name, x in state.items()}
        for state in opt.state.values()
    ]


def number(state, j=1):
    return float8.decoded(state[f"m{j}"], state[f"h{j}"])


# --- Rounding ---------------------------------------------------------------------------------------


SHAPES = [(37, 300), (3, 7, 11), (5, 1), (70, 256), (4097,)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("key", [None, 12345])
def test_a_number_becomes_one_of_its_neighbours(shape, key):
    unit = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 10
    codes, scale = float8.encoded(unit, key)
    assert (codes.shape, codes.dtype, scale.dtype) == (unit.shape, FLOAT8, torch.float32)
    assert scale.numel() <= unit.numel() / 256 + (shape[0] if len(shape) > 1 else 1)
    # Neighbours are an eighth to a sixteenth of a number apart, at least 2⁻⁹ of the block's 448th.
    apart = (unit.abs() / 8).clamp_min(unit.abs().max() * 2**-9 / 448)
    limit = apart if key is not None else apart / 2
    assert ((float8.decoded(codes, scale) - unit).abs() <= limit * (1 + 1e-6)).all()
    again = float8.encoded(float8.decoded(codes, scale))
    same((again[0].view(torch.uint8), again[1]), (codes.view(torch.uint8), scale))


def test_a_process_may_have_no_row():
    codes, scale = float8.encoded(torch.zeros(0, 300))
    assert (codes.shape, scale.shape) == ((0, 300), (0, 2))
    assert float8.decoded(codes, scale).shape == (0, 300)


def test_rounding_is_unbiased():
    found = torch.zeros_like(UNIT, dtype=torch.float64)
    draws = 400
    for key in range(draws):
        found += float8.decoded(*float8.encoded(UNIT, 7919 * key)).double()
    # A draw is off by at most a neighbour's distance: so many standard deviations of the mean of them all.
    rows, most = UNIT.shape[0], UNIT.abs().amax(0)
    off = ((found / draws - UNIT) / most).sum(0) / rows
    assert off.abs().max() < 5 * (1 / 8) / (2 * (draws * rows) ** 0.5)


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e30, 3e38])
def test_all_that_float32_holds_can_be_stored(size):
    unit = torch.tensor([[1.0, -0.5, 0.0, 0.25]]) * size
    for key in (None, 3):
        back = float8.decoded(*float8.encoded(unit, key))
        torch.testing.assert_close(back, unit, rtol=2**-4, atol=1e-39)


def test_rounding_to_nearest_stalls_and_stochastic_rounding_does_not(monkeypatch):
    """M(0.99) of a gradient that is gone falls by a hundredth a step: to nearest it never would."""

    def left():
        p = nn.Parameter(torch.zeros(40, 256))
        opt = RLLC([p], "M(0.99)", 0.0, 0.0, memory_dtype=FLOAT8)
        p.grad = 1 + torch.rand(40, 256, generator=torch.Generator().manual_seed(0))
        for _ in range(50):
            opt.step()
            p.grad[:, 1:] = 0  # the block's largest entry, which sets the scale, stays
        return (number(opt.state[p])[:, 1:].mean() / 1.5).item()

    assert left() == pytest.approx(0.99**49, rel=0.01)
    encoded = float8.encoded
    monkeypatch.setattr(float8, "encoded", lambda unit, *_: encoded(unit))
    assert left() > 0.9


# --- A step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_step_is_that_of_float32_units_rounded_afterwards(dtype):
    net, opt, _ = trained(5, dtype=dtype, weight_decay=0.1)
    other = network(dtype)
    other.load_state_dict(net.state_dict())
    wide = RLLC(other.parameters(), "M(0.9) + M(0)", 0.05, 0.01, memory_dtype=torch.float32)
    wide.load_state_dict(copy.deepcopy(opt.state_dict()))
    wide.param_groups[0]["foreach"] = False
    learn(net, opt, 1), learn(other, wide, 1)
    same(list(net.parameters()), list(other.parameters()))
    assert torch.equal(opt.law, wide.law)
    for mine, theirs in zip(opt.state.values(), wide.state.values(), strict=True):
        for j in (1, 2):
            got, want = number(mine, j) if "h1" in mine else mine[f"m{j}"], theirs[f"m{j}"]
            torch.testing.assert_close(got, want, rtol=2**-3, atol=want.abs().max().item() * 2**-9 / 448)


def test_a_run_is_that_of_float32_units_but_for_noise():
    (_, wide, want), (_, opt, got) = trained(100, None), trained(100)
    assert got == pytest.approx(want, rel=0.05)
    torch.testing.assert_close(opt.law, wide.law, rtol=0.1, atol=0)
    assert not torch.equal(opt.law, wide.law)


def test_how_a_step_is_cut_changes_no_bit(monkeypatch):
    found = []
    for room in (1, 2000, 1 << 20):
        monkeypatch.setattr(foreach, "ROOM", {"cpu": room})
        p, q = nn.Parameter(torch.zeros(37, 300)), nn.Parameter(torch.zeros(5001))
        opt = RLLC([p, q], "M(0.9) + M(0)", 0.1, 0.0, memory_dtype=FLOAT8)
        for t in range(3):
            p.grad, q.grad = UNIT * (t + 1), UNIT.reshape(-1)[:5001] * (t - 1)
            opt.step()
        found.append((bits(opt), [p.detach(), q.detach()]))
    same(found[1], found[0])
    same(found[2], found[0])


def test_on_the_device_as_on_the_host_and_a_skipped_step_leaves_every_bit():
    (net, opt, _), (_, host, _) = trained(10, capturable=True), trained(10)
    torch.testing.assert_close(opt.law, host.law, rtol=1e-6, atol=0)
    before, law = copy.deepcopy(bits(opt)), opt.law
    net[0].weight.grad[0, 0] = torch.nan
    opt.step()
    assert opt.skipped == 1 and torch.equal(opt.law, law)
    same(bits(opt), before)


def test_small_complex_and_oddly_laid_out_parameters():
    params = [
        nn.Parameter(torch.randn(10)),
        nn.Parameter(torch.randn(50, 60, dtype=torch.complex64)),
        nn.Parameter(torch.randn(16, 32, 3, 3).to(memory_format=torch.channels_last)),
        nn.Parameter(torch.randn(90, 80).T),
        nn.Parameter(torch.randn(5001)),
        nn.Parameter(torch.randn(0, 5000)),
    ]
    opt = RLLC(params, "M(0.5)", 0.1, 0.0, memory_dtype=FLOAT8)
    starts = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    for _ in range(2):
        opt.step()
    for p, start in zip(params, starts, strict=True):
        torch.testing.assert_close(p.detach(), start - 0.1 * 2.5)
    dtypes = [opt.state[p]["m1"].dtype for p in params]
    assert dtypes == [torch.float32, FLOAT8, FLOAT8, FLOAT8, FLOAT8, torch.float32]


def test_a_compiled_step_is_that_of_the_host():
    def begun():
        theta = nn.Parameter(UNIT[:3].clone())  # a few rows of two blocks, the second not full
        opt = RLLC([theta], "M(0.9) + M(0)", 0.05, 0.01, memory_dtype=FLOAT8)
        for t in range(2):
            theta.grad = (1 + t) * theta.detach().cos()
            opt.step()
        return theta, opt

    (theta, opt), (other, host) = begun(), begun()
    step = torch.compile(opt.step, fullgraph=True, backend="aot_eager")
    step(), host.step()
    torch.testing.assert_close(opt.law, host.law, rtol=1e-6, atol=0)
    torch.testing.assert_close(theta, other, rtol=1e-5, atol=1e-6)


# --- State ------------------------------------------------------------------------------------------


def test_a_saved_run_goes_on_with_the_same_bits():
    net, opt, _ = trained(5)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    again = network()
    again.load_state_dict(net.state_dict())
    other = RLLC(again.parameters(), "M(0.9) + M(0)", 0.05, 0.01, memory_dtype=FLOAT8, seed=9)
    other.load_state_dict(torch.load(file, weights_only=True))
    same(bits(other), bits(opt))
    third, last = copy.deepcopy((net, opt))
    for pair in ((net, opt), (again, other), (third, last)):
        learn(*pair, 5)
    same(bits(other), bits(opt))
    same(bits(last), bits(opt))
    same(list(again.parameters()), list(net.parameters()))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32])
def test_states_of_other_dtypes_are_converted_both_ways(dtype):
    _, opt, _ = trained(5)
    _, wide, _ = trained(0, dtype)
    wide.load_state_dict(opt.state_dict())
    first, kept = (next(iter(o.state.values())) for o in (opt, wide))
    assert set(kept) == {"m1", "m2"} and kept["m1"].dtype == (dtype or torch.float32)
    torch.testing.assert_close(kept["m1"].float(), number(first), rtol=2**-8, atol=0)
    _, back, _ = trained(0)
    back.load_state_dict(wide.state_dict())
    assert set(next(iter(back.state.values()))) == {"m1", "m2", "h1", "h2"}
    torch.testing.assert_close(number(next(iter(back.state.values()))), number(first), rtol=2**-6, atol=1e-9)


def test_a_quarter_of_the_bytes():
    _, opt, _ = trained(1, memory="M(0.9)")
    state = next(iter(opt.state.values()))
    assert sum(x.numel() * x.element_size() for x in state.values()) == 80 * 100 + 80 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fused": True}, "fused=True: units in float8"),
        ({"foreach": True}, "foreach=True: units in float8"),
        ({"memory": Adam()}, "is for linear memory; give a memory rule bfloat16"),
        ({"memory_dtype": torch.float8_e5m2}, "memory_dtype must be one of"),
    ],
    ids=str,
)
def test_refusals(options, message):
    given = {"memory": "M(0.9)", "lr": 0.1, "law_lr": 0.1, "memory_dtype": FLOAT8} | options
    with pytest.raises(ValueError, match=message):
        RLLC(network().parameters(), **given)
