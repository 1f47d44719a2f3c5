"""Peers and RLLC-AdamW as settings: they are what they say, train, resume, and keep in records."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from made import DIGITS, cell

from rllc.lab import training
from rllc.lab.cells import canonical, cell_of
from rllc.lab.controls import HypergradientAdam, HypergradientSGD, MechanicAdam
from rllc.lab.files import Folder
from rllc.lab.optimizers import ADAPTIVE, CONTROLS, PAPER, Rates, named, paper_trials, trials
from rllc.lab.peers import AdamHD, AdEMAMix, DAdaptation, Mechanic, Muon, Prodigy
from rllc.lab.settings import (
    Adam,
    Averaged,
    Cosine,
    Polynomial,
    RllcAdamW,
)
from rllc.lab.tasks import tensors
from rllc.lab.training import train
from rllc.law import LawStep

USUAL = [trials(name, Rates())[2] for name in ADAPTIVE]
GRADS = [[1.0, -2.0, 0.5], [0.5, 1.0, 0.0], [-1.0, 0.25, 2.0], [2.0, 2.0, -1.0], [0.1, 1.0, 1.0]]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def walk(optimizer, p, grads=GRADS):
    """The parameter after each of these gradients."""
    found = []
    for g in grads:
        p.grad = torch.tensor(g, dtype=p.dtype)
        optimizer.step()
        found.append(p.detach().clone().numpy())
    return np.array(found)


def parameter():
    return torch.nn.Parameter(torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64))


def test_names_and_grids():
    assert tuple(map(named, map(str.lower, ADAPTIVE))) == tuple(ADAPTIVE)
    assert not set(ADAPTIVE) & {*PAPER, *CONTROLS}
    for name in ADAPTIVE:
        tried = trials(name, Rates())
        assert {setting.name for setting in tried} == {name}
        assert paper_trials(name) == tried and len(set(tried)) == 5
        rates = [setting.rates[0] for setting in tried]
        assert rates == sorted(rates) and rates[-1] / rates[0] == pytest.approx(100)
    assert RllcAdamW().rates == (1e-3, 0.04) and AdamHD(1e-3).rates == (1e-3, 1e-7)
    assert RllcAdamW() in trials("RLLC-AdamW", Rates())


@pytest.mark.parametrize("setting", USUAL, ids=lambda setting: setting.name)
def test_it_learns_and_its_record_holds_every_setting(setting):
    made = cell(setting, steps=60, points=2)
    text = canonical(made)
    assert cell_of(text) == made
    kept = json.loads(text)["setting"]
    assert kept == {"type": type(setting).__name__} | json.loads(json.dumps(dataclasses.asdict(setting)))
    first, *_, last = train(made).points
    assert last.valid_loss < 0.98 * first.valid_loss and last.valid_accuracy > first.valid_accuracy


@pytest.mark.parametrize("setting", USUAL, ids=lambda setting: setting.name)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(setting, tmp_path):
    made, keep, asked = cell(setting, steps=12, points=3), Folder(str(tmp_path)), []

    def once():
        asked.append(True)
        return len(asked) == 2

    assert train(made, keep=keep, stop=once) is None
    assert train(made, keep=keep).points == train(made).points


def test_without_weight_decay_as_the_others():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    for setting in USUAL:
        groups = setting.method(net, 10).optimizer.param_groups
        assert {group["weight_decay"] for group in groups} == {0}


@pytest.mark.parametrize("setting", [Prodigy(1.0), DAdaptation(1.0)])
def test_parameter_free_ones_have_their_authors_defaults(setting):
    net = torch.nn.Linear(3, 1)
    optimizer = setting.method(net, 10).optimizer
    (group,), plain = optimizer.param_groups, type(optimizer)(net.parameters()).param_groups[0]
    assert type(optimizer).__module__.startswith("pytorch_optimizer")
    differ = {name for name in plain if name not in ("params", "foreach") and group[name] != plain[name]}
    assert differ == set() and plain["lr"] == 1


def test_ademamix_warms_up_over_the_run_and_so_knows_its_end():
    net = torch.nn.Linear(3, 1)
    for steps in (10, 300):
        assert AdEMAMix(1e-3).method(net, steps).optimizer.param_groups[0]["t_alpha_beta3"] == steps
    assert AdEMAMix(1e-3).knows_its_end and Cosine(Adam(1e-3)).knows_its_end
    others = Adam(1e-3), Prodigy(1.0), Mechanic(1.0), Muon(1e-3), RllcAdamW()
    assert not any(setting.knows_its_end for setting in others)


def test_muon_steps_hidden_matrices_and_adam_the_rest():
    def net():
        torch.manual_seed(0)
        layers = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)
        return torch.nn.Sequential(*layers)

    ours, theirs = net(), net()
    optimizers = Muon(0.01).method(ours, 10).optimizer, torch.optim.Adam(theirs.parameters(), lr=0.01)
    for seed in range(3):
        for one, optimizer in zip((ours, theirs), optimizers, strict=True):
            generator = torch.Generator().manual_seed(seed)
            for p in one.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
    same = {
        name: torch.allclose(p, dict(theirs.named_parameters())[name], atol=1e-6)
        for name, p in ours.named_parameters()
    }
    assert same.pop("1.weight") is False and set(same.values()) == {True}
    before, after = net()[1].weight, ours[1].weight
    rms = (after - before).square().mean().sqrt().item() / 0.01
    assert 0.1 < rms < 0.8  # three steps of 0.2 each, as of Adam, not all in one direction


def test_hypergradient_adam_follows_the_papers_recursion():
    p = parameter()
    optimizer = HypergradientAdam([p], 0.1, 0.01, (0.5, 0.75), 1e-3)
    theta, m, v, lr, d = p.detach().numpy().copy(), np.zeros(3), np.zeros(3), 0.1, np.zeros(3)
    for t, (g, found) in enumerate(zip(np.array(GRADS), walk(optimizer, p), strict=True), start=1):
        lr += 0.01 * g @ d
        m, v = 0.5 * m + 0.5 * g, 0.75 * v + 0.25 * g**2
        d = m / (1 - 0.5**t) / (np.sqrt(v / (1 - 0.75**t)) + 1e-3)
        theta = theta - lr * d
        np.testing.assert_allclose(found, theta, rtol=1e-12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(lr, rel=1e-12) and abs(lr - 0.1) > 1e-3


def test_hypergradient_adam_that_does_not_learn_is_adam():
    p, q = parameter(), parameter()
    ours = walk(HypergradientAdam([p], 0.1, 0.0), p)
    assert np.array_equal(ours, walk(torch.optim.Adam([q], lr=0.1), q))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: HypergradientSGD([p], 0.1, 0.01),
        lambda p: HypergradientAdam([p], 0.1, 0.01),
        lambda p: MechanicAdam([p], lr=0.1),
    ],
)
def test_a_closure_is_evaluated_once_a_step_as_in_torch(make):
    p, q = parameter(), parameter()
    with_closure, plain, losses = make(p), make(q), []

    def closure():
        with_closure.zero_grad()
        losses.append(p.square().sum())
        losses[-1].backward()
        return losses[-1]

    for steps in range(3):
        assert with_closure.step(closure) is losses[steps]
        q.grad = 2 * q.detach()
        assert plain.step() is None
    assert torch.equal(p, q) and len(losses) == 3


def test_mechanic_is_that_of_optax():
    """In float32: from the scales 1e-6 on, over which they grow, it agrees to rounding."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 3)).astype(np.float32)
    tx = optax.contrib.mechanize(optax.adam(0.5))
    theirs = jnp.array([1.0, -0.5, 0.25])
    p = torch.nn.Parameter(torch.tensor([1.0, -0.5, 0.25]))
    ours, state = MechanicAdam([p], lr=0.5), tx.init(theirs)
    for n in noise:
        updates, state = tx.update(theirs - 3 + 0.1 * n, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        p.grad = p.detach() - 3 + 0.1 * torch.from_numpy(n)
        ours.step()
    moved = np.abs(np.asarray(theirs) - [1.0, -0.5, 0.25]).max()
    assert moved > 0.05
    np.testing.assert_allclose(p.detach().numpy(), theirs, atol=0.01 * moved)


def points(setting, steps=60):
    return train(cell(setting, steps=steps, points=3)).points


def losses(points):
    """Of training and validation; training steps of torch's fused and its plain Adam differ by rounding."""
    return np.array([(point.train_loss or 0.0, point.valid_loss) for point in points])


def test_rllc_adamw_without_law_and_average_is_adam():
    ours, plain = points(RllcAdamW(3e-3, law=1.0, law_lr=0.0, average=None)), points(Adam(3e-3))
    np.testing.assert_allclose(losses(ours), losses(plain), rtol=1e-5)
    assert ours[-1].law == (1.0,) and plain[-1].law == ()


def test_rllc_adamw_with_the_average_only_is_the_control():
    ours, control = points(RllcAdamW(3e-3, law=1.0, law_lr=0.0)), points(Averaged(Adam(3e-3), Polynomial(9)))
    np.testing.assert_allclose(losses(ours), losses(control), rtol=1e-5)


def test_rllc_adamw_is_measured_at_its_average_and_trains_as_if_it_had_not_been():
    averaged, last = points(RllcAdamW()), points(RllcAdamW(average=None))
    assert [point.train_loss for point in averaged] == [point.train_loss for point in last]
    assert [point.law for point in averaged] == [point.law for point in last]
    assert averaged[0][:-1] == last[0][:-1] and averaged[-1].valid_loss != last[-1].valid_loss
    assert averaged[0].law == (0.01,) != averaged[-1].law


def test_rllc_adamw_is_built_with_all_its_settings():
    setting = RllcAdamW(
        0.01,
        0.02,
        q=2.0,
        decay=0.7,
        clip=None,
        growth=0.2,
        smoothing=0.9,
        average=3.0,
        law=0.5,
        betas=(0.8, 0.9),
        eps=1e-6,
    )
    built = setting.method(torch.nn.BatchNorm1d(3), 10).optimizer
    group = built.param_groups[0]
    assert (group["lr"], group["law_lr"], group["betas"], group["eps"]) == (0.01, 0.02, (0.8, 0.9), 1e-6)
    assert built.law.tolist() == [0.5] and group["average"] == 3.0 and len(group["buffers"]) == 2
    step = built._rule.step
    assert step == LawStep(2.0, 0.7, math.inf, 0.2, 0.9)
    run = training._start(cell(RllcAdamW()), tensors(DIGITS, "cpu"))
    assert run.law() == (0.01,)
