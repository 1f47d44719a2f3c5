"""Names, grids, and that settings build what they say."""

import pytest
import torch
from made import TWO_UNITS

from rllc.lab.cells import Cell, canonical, cell_of
from rllc.lab.errors import Refused
from rllc.lab.optimizers import CONTROLS, DEFAULTS, ONE_RATE, PAPER, Rates, named, paper_trials, trials
from rllc.lab.settings import (
    SGD,
    Adam,
    Averaged,
    Cosine,
    Exponential,
    Hypergradient,
    Polynomial,
    Rllc,
    ScheduleFree,
    Stored,
)
from rllc.lab.tasks import TASKS
from rllc.torch import RLLC


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
        ("lbfgs", "known are sgd; momentum sgd; adam;"),
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
    assert {len(trials(name, Rates())) for name in (*DEFAULTS[:-1], "M_3(0.6)")} == {6}
    assert {len(trials(name, Rates(lr=(0.1, 0.2)))) for name in DEFAULTS} == {2}
    assert {len(trials(name, Rates(lr=(0.1,)))) for name in DEFAULTS} == {1}


def test_trials_are_different_and_go_by_their_name():
    for name in DEFAULTS:
        tried = trials(name, Rates())
        assert len(set(tried)) == len(tried)
        assert {setting.name for setting in tried} == {name}


def test_law_rates_are_for_memories_only():
    tried = trials("M(0.9)", Rates(lr=(0.1,), law_lr=(0.01, 0.02)))
    assert [(s.lr, s.law_lr) for s in tried if isinstance(s, Rllc)] == [(0.1, 0.01), (0.1, 0.02)]
    assert trials("Adam", Rates(law_lr=(0.5,))) == trials("Adam", Rates())


def test_defaults_are_the_baselines_three_memories_and_the_one_that_needs_no_rates():
    assert tuple(map(named, DEFAULTS)) == DEFAULTS
    assert DEFAULTS[:3] == tuple(ONE_RATE)[:3] and DEFAULTS[6:] == ("RLLC-AdamW",)


def test_the_papers_grids_are_15_rates_or_6_by_3():
    assert len(PAPER) == 11 and tuple(map(named, PAPER)) == PAPER
    assert [len(paper_trials(name)) for name in PAPER] == [15] * 3 + [18] * 8
    assert {len(paper_trials(name)) for name in CONTROLS} == {15, 18}
    assert [s.rates[0] for s in paper_trials("Adam")[:4]] == [1e-7, 3e-7, 1e-6, 3e-6]
    assert len({s.rates for s in paper_trials("M_2(0.6)")}) == 18


def test_controls_go_by_their_names():
    assert tuple(map(named, CONTROLS)) == CONTROLS and not set(CONTROLS) & set(PAPER)
    for name in CONTROLS:
        assert {setting.name for setting in paper_trials(name)} == {name}
        assert len(trials(name, Rates())) == 6


def a_net():
    net = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(net.weight)
    return net


def walk(setting, grads, steps=None):
    """The weights after each of these gradients, and the method."""
    net = a_net()
    made = setting.method(net, steps or len(grads))
    weights = []
    for g in grads:
        net.weight.grad = torch.tensor([g])
        made.optimizer.step()
        if made.schedule is not None:
            made.schedule.step()
        if made.average is not None:
            made.average.update_parameters(net)
        weights.append(net.weight.detach().clone().flatten())
    return torch.stack(weights), made


GRADS = [[1.0, -2.0], [0.5, 1.0], [-1.0, 0.25], [2.0, 2.0], [0.0, 1.0]]


def test_cosine_ends_at_rate_0_after_half_the_rate_halfway():
    _, made = walk(Cosine(SGD(0.4)), GRADS[:2], steps=4)
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    _, made = walk(Cosine(SGD(0.4)), GRADS[:4])
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("average", [Exponential(0.6), Polynomial(3)])
def test_averages_are_those_of_their_definitions(average):
    weights, made = walk(Averaged(SGD(0.1), average), GRADS)
    expected = weights[0]
    for t, w in enumerate(weights[1:], start=2):
        part = 0.4 if isinstance(average, Exponential) else 4 / (t + 3)
        expected = expected + part * (w - expected)
    assert torch.allclose(made.average.module.weight.flatten(), expected, atol=1e-6)
    assert torch.equal(weights, walk(SGD(0.1), GRADS)[0])  # the iterates are those of the base


def test_the_polynomial_average_weighs_late_points_more():
    """Weights of the definition (arXiv 1212.1824): t(t+1)...(t+p-1) up to a factor, close to t^p."""
    weights, made = walk(Averaged(SGD(0.1), Polynomial(1)), GRADS)
    t = torch.arange(1.0, 6.0)
    expected = (weights * t[:, None]).sum(0) / t.sum()
    assert torch.allclose(made.average.module.weight.flatten(), expected, atol=1e-6)


def test_averages_leave_counters_of_batch_normalisation_whole():
    net = torch.nn.BatchNorm1d(2)
    average = Averaged(SGD(0.1), Polynomial(9)).method(net, 3).average
    for _ in range(3):
        net(torch.randn(4, 2))
        average.update_parameters(net)
    assert average.module.num_batches_tracked == net.num_batches_tracked == 3


def test_hypergradient_descent_follows_the_papers_recursion():
    weights, made = walk(Hypergradient(0.1, 0.01, momentum=0.5), GRADS)
    w, u, lr = torch.ones(2), torch.zeros(2), 0.1
    for g, found in zip(map(torch.tensor, GRADS), weights, strict=True):
        lr += 0.01 * float(g @ u)
        u = 0.5 * u + g
        w = w - lr * u
        assert torch.allclose(found, w, atol=1e-6)
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(lr)
    still = walk(Hypergradient(0.1, 0.0), GRADS)[0]
    assert torch.allclose(still, walk(SGD(0.1, momentum=0.9), GRADS)[0], atol=1e-6)


def test_schedule_free_is_its_authors():
    _, made = walk(ScheduleFree(0.1), GRADS[:1])
    assert type(made.optimizer).__module__.startswith("schedulefree")
    assert made.optimizer.param_groups[0]["weight_decay"] == 0


def test_baselines_are_those_of_torch():
    net = a_net()
    assert type(SGD(0.1).build(net, 10)) is torch.optim.SGD
    assert SGD(0.1, momentum=0.9).build(net, 10).defaults["momentum"] == 0.9
    built = Adam(1e-3).build(net, 10).defaults
    assert (
        built == torch.optim.Adam(net.parameters()).defaults
    )  # betas and eps are torch's defaults, 1e-3 too


def test_rllc_is_built_with_all_its_settings():
    setting = Rllc("M(0.9) + M(0.0)", 0.3, 0.02, (0.5, -1.0), guard=False)
    built = setting.build(a_net(), 10)
    assert isinstance(built, RLLC)
    assert (built.defaults["lr"], built.defaults["law_lr"]) == (0.3, 0.02)
    assert built.law.tolist() == [0.5, -1.0]
    assert (built.inverse, built.guard) == (setting.inverse, False)


@pytest.mark.parametrize("name, dtype", [("bfloat16", torch.bfloat16), ("float8", torch.float8_e4m3fn)])
def test_units_in_fewer_bytes_are_a_setting_of_their_own(name, dtype):
    full = named(f"M(.9)+M(0),{name}")
    assert full == f"M(0.9) + M(0.0), {name}"
    (setting,) = trials(full, Rates((0.1,), (0.01,)))
    assert setting == Stored(Rllc("M(0.9) + M(0.0)", 0.1, 0.01, (1.0, 1.0)), name)
    assert (setting.name, setting.rates) == (full, (0.1, 0.01))
    (built,) = (setting.method(torch.nn.Linear(64, 100), 10).optimizer,)
    assert built.memory_dtype == dtype
    cell = Cell(TASKS["digits-mlp"], setting, 0, 10, "cpu", 2)
    assert cell_of(canonical(cell)) == cell


def test_the_defaults_written_into_a_record_are_those_of_the_optimizer():
    plain = RLLC(a_net().parameters(), "M(0.9) + M(0.0)", lr=0.1, law_lr=0.1)
    assert (TWO_UNITS.inverse, TWO_UNITS.guard) == (plain.inverse, plain.guard)
    assert list(TWO_UNITS.law) == plain.law.tolist()
