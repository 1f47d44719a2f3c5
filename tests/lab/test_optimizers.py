"""Names, grids, and that settings build what they say."""

import pytest
import torch
from made import TWO_UNITS

from rllc.lab.errors import Refused
from rllc.lab.optimizers import BASELINES, DEFAULTS, SGD, Adam, Rates, Rllc, name_of, named, trials
from rllc.torch import RLLC


def parameters():
    return [torch.nn.Parameter(torch.ones(3))]


@pytest.mark.parametrize(
    "text, name",
    [
        ("sgd", "SGD"),
        ("SGD", "SGD"),
        ("momentum", "momentum SGD"),
        ("Momentum  SGD", "momentum SGD"),
        ("adam", "Adam"),
        ("M(.9)+M(0)", "M(0.9) + M(0.0)"),
        ("M2(0.6)", "M_2(0.6)"),
        ("M(0.9)⊕CM(0.9i)", "M(0.9) + CM(0.0+0.9i)"),
    ],
)
def test_names(text, name):
    assert named(text) == name
    assert named(name) == name


@pytest.mark.parametrize(
    "text, said",
    [
        ("adma", "did you mean adam"),
        ("momentun", "did you mean momentum"),
        ("lbfgs", "known are sgd, momentum, adam"),
        ("", "known are"),
        ("M(1.5)", "position 3"),
        ("M(0.9) + ", "position"),
        ("Q(0.9)", "position 1"),
    ],
)
def test_what_is_no_optimizer_is_refused_in_one_line(text, said):
    with pytest.raises(Refused, match=said) as refusal:
        named(text)
    assert "\n" not in str(refusal.value)


def test_every_optimizer_has_the_same_number_of_trials():
    assert {len(trials(name, Rates())) for name in (*DEFAULTS, "M_3(0.6)")} == {6}
    assert {len(trials(name, Rates(lr=(0.1, 0.2)))) for name in DEFAULTS} == {2}
    assert {len(trials(name, Rates(lr=(0.1,)))) for name in DEFAULTS} == {1}


def test_trials_are_different_and_go_by_their_name():
    for name in DEFAULTS:
        tried = trials(name, Rates())
        assert len(set(tried)) == len(tried)
        assert {name_of(setting) for setting in tried} == {name}


def test_law_rates_are_for_memories_only():
    tried = trials("M(0.9)", Rates(lr=(0.1,), law_lr=(0.01, 0.02)))
    assert [(s.lr, s.law_lr) for s in tried if isinstance(s, Rllc)] == [(0.1, 0.01), (0.1, 0.02)]
    assert trials("Adam", Rates(law_lr=(0.5,))) == trials("Adam", Rates())


def test_defaults_are_the_baselines_and_three_memories():
    assert tuple(map(named, DEFAULTS)) == DEFAULTS
    assert set(BASELINES) < set(DEFAULTS) and len(DEFAULTS) == 6


def test_baselines_are_those_of_torch():
    sgd, heavy, adam = SGD(0.1), SGD(0.1, momentum=0.9), Adam(1e-3)
    assert type(sgd.build(parameters())) is torch.optim.SGD
    assert heavy.build(parameters()).defaults["momentum"] == 0.9
    built = adam.build(parameters()).defaults
    own = torch.optim.Adam(parameters()).defaults
    assert built == own  # betas and eps are torch's defaults, 1e-3 too


def test_rllc_is_built_with_all_its_settings():
    setting = Rllc("M(0.9) + M(0.0)", 0.3, 0.02, (0.5, -1.0), guard=False)
    built = setting.build(parameters())
    assert isinstance(built, RLLC)
    assert (built.defaults["lr"], built.defaults["law_lr"]) == (0.3, 0.02)
    assert built.law.tolist() == [0.5, -1.0]
    assert (built.inverse, built.guard) == (setting.inverse, False)


def test_the_defaults_written_into_a_record_are_those_of_the_optimizer():
    plain = RLLC(parameters(), "M(0.9) + M(0.0)", lr=0.1, law_lr=0.1)
    assert (TWO_UNITS.inverse, TWO_UNITS.guard) == (plain.inverse, plain.guard)
    assert list(TWO_UNITS.law) == plain.law.tolist()
