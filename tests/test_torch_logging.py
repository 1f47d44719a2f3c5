"""LawLogger: what it writes, when, and of which optimizer."""

import copy

import numpy as np
import pytest
import torch
from torch import nn, optim

import rllc
from rllc.laws import FixedLaw
from rllc.memory import Adam, union
from rllc.torch import RLLC, LawLogger, RLLCAdamW
from rllc.torch.around import Around


class Recorder:
    """add_scalar, as SummaryWriter has it."""

    def __init__(self):
        self.seen = {}

    def add_scalar(self, tag, scalar_value, global_step):
        assert isinstance(scalar_value, float)
        self.seen.setdefault(tag.removeprefix("rllc/"), {})[global_step] = scalar_value


def trained(make, steps=6, every=1, **options):
    """What was written, and the optimizer."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(n, generator=generator, dtype=torch.float64)) for n in (5, 3)]
    opt, recorder = make(params), Recorder()
    logger = LawLogger(opt, recorder, every, **options)
    for t in range(steps):
        for p in params:
            p.grad = p.detach() + 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        if t == 3:
            params[0].grad[0] = torch.nan
        opt.step()
    return recorder.seen, opt, logger


@pytest.mark.parametrize(
    "make",
    [
        lambda params: RLLCAdamW(params, lr=0.02, law_lr=0.1),
        lambda params: Around(optim.RMSprop(params, 0.02), 0.1),
        lambda params: RLLC(params, Adam(), 0.02, 0.1),
    ],
)
def test_one_unit(make):
    seen, opt, _ = trained(make)
    assert set(seen) == {"law_1", "effective_step", "skipped"}
    assert list(seen["law_1"]) == [1, 2, 3, 4, 5, 6]
    assert seen["law_1"][6] == float(opt.law[0]) != 1
    assert seen["effective_step"][6] == pytest.approx(0.02 * float(opt.law[0]))
    assert list(seen["skipped"].values()) == [0, 0, 0, 1, 1, 1]


def test_linear_memory():
    seen, opt, _ = trained(lambda params: RLLC(params, "M(0.9) + M(0.5)", 0.02, 0.1))
    fixed = FixedLaw(rllc.parse("M(0.9) + M(0.5)"), opt.law.numpy())
    assert set(seen) == {
        *("law_1", "law_2", "effective_step", "gain", "mean_delay", "condition", "skipped"),
    }
    assert seen["law_2"][6] == float(opt.law[1])
    assert seen["gain"][6] == pytest.approx(10 * opt.law[0] + 2 * opt.law[1])
    assert seen["effective_step"][6] == pytest.approx(0.02 * fixed.gain)
    assert seen["mean_delay"][6] == pytest.approx(fixed.mean_delay)
    M = np.stack([np.concatenate([s[m].numpy() for s in opt.state.values()]) for m in ("m1", "m2")], 1)
    assert seen["condition"][6] == pytest.approx(np.linalg.cond(M / np.linalg.norm(M, axis=0)) ** 2, rel=1e-9)


def test_a_union_and_a_gain_of_zero():
    seen, _, _ = trained(lambda params: RLLC(params, union("M(0.9)", Adam()), 0.02, 0.1))
    assert set(seen) == {"law_1", "law_2", "condition", "skipped"}
    seen, _, _ = trained(lambda params: RLLC(params, "M(0.5) + M(0)", 0.02, 0.0, [1.0, -2.0]))
    assert seen["gain"][6] == pytest.approx(0, abs=1e-12)
    assert "mean_delay" not in seen


def test_several_scopes_are_summed_up():
    seen, opt, _ = trained(lambda params: RLLC(params, "M(0.9)", 0.02, 0.1, scope="tensor"))
    laws = opt.law[:, 0]
    assert seen["law_1"][6] == pytest.approx(float(laws.mean()))
    assert (seen["law_1_least"][6], seen["law_1_most"][6]) == (float(laws.min()), float(laws.max()))
    assert laws.min() < laws.max()


def test_when_it_writes():
    seen, opt, logger = trained(lambda params: RLLCAdamW(params), steps=6, every=3, steps_before=10)
    assert list(seen["law_1"]) == [12, 15]
    copy.deepcopy(opt).step()  # a copy has no logger
    logger.close()
    opt.step()
    assert logger.steps == 16


def test_what_has_no_law_is_refused():
    p = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="SGD has no law; give an RLLC"):
        LawLogger(optim.SGD([p], 0.1), Recorder())
    with pytest.raises(ValueError, match="every must be a whole number, 1 or more, got 0"):
        LawLogger(RLLCAdamW([p]), Recorder(), 0)
    with pytest.raises(ValueError, match="steps_before must be a whole number, 0 or more, got '9'"):
        LawLogger(RLLCAdamW([p]), Recorder(), steps_before="9")
