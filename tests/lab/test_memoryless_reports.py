"""What is said of the experiments: rules on made-up curves, and the committed texts from their records."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rllc import parse
from rllc.lab import texts
from rllc.lab.memoryless import claim, claim_report, cost, explicit, explicit_report, law
from rllc.memoryless import averaging_law, gain_and_delay

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "memoryless"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "memoryless_benchmark", ROOT / "benchmarks" / "memoryless.py"
    )
    module = sys.modules["memoryless_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["memoryless_benchmark"]


@pytest.mark.parametrize("name", ["slopes", "claim", "explicit", "cost", "law"])
def test_the_committed_texts_are_made_from_the_records(script, name):
    assert (RESULTS / f"{name}.md").read_text() == script.text_of(name)


def test_every_picture_is_drawn_from_the_records(script, tmp_path):
    for name in ("claim", "explicit"):
        (tmp_path / f"{name}.json").write_bytes((RESULTS / f"{name}.json").read_bytes())
        script.redraw(name, tmp_path)
        assert (tmp_path / f"{name}.png").stat().st_size > 50_000


# The claim.


def made_up(ratio_without, ratio_with, accuracy_without=0.0):
    """Curves that fall by a factor of ten; those of the counterparts are so many times as large."""
    fall = np.tile(np.geomspace(1, 0.1, 31), (3, 1))

    def of(ratio, accuracy=0.0):
        rise = 0.5 + np.tile(np.linspace(0, 0.4, 31), (3, 1)) + accuracy
        first = np.where(np.arange(31) == 0, 1.0, ratio)
        return {"step": fall, "train_loss": fall * first, "norm": fall * first, "test_accuracy": rise}

    return {"memory": of(1.0), "without": of(ratio_without, accuracy_without), "with": of(ratio_with)}


@pytest.mark.parametrize(
    "ratio, said", [(1.04, "yes"), (1.08, "partly"), (1.2, "no"), (np.nan, "no"), (20, "no")]
)
def test_reproduction_is_told_by_distances(ratio, said):
    found = claim_report.reproduction(made_up(1.1, ratio))
    assert found.found == said
    assert found.diverged == (not ratio < 10)
    np.testing.assert_allclose(found.loss_without, np.log(1.1))


def test_effects_of_memory():
    found = claim_report.effect(made_up(1.25, 1.0, accuracy_without=0.02))
    np.testing.assert_allclose(found.norm, -0.2)
    np.testing.assert_allclose(found.removal, 2.0)
    # norms and losses have the same ratio everywhere, so that they are equal where losses are
    np.testing.assert_allclose(found.norm_at_loss, 0.0, atol=0.01)
    assert claim_report.norm_verdict(-1, found.norm) == "holds"
    assert claim_report.norm_verdict(1, found.norm) == "does not hold"
    assert claim_report.norm_verdict(1, np.array([-0.2, 0.1, 0.3])) == "undecided"
    assert claim_report.norm_verdict(0, np.array([0.01, -0.04, 0.0])) == "holds"


def test_every_training_of_the_claim_is_recorded():
    runs = json.loads((RESULTS / "claim.json").read_text())["runs"]
    keys = {(run["task"], run["row"], run["variant"], run["seed"]) for run in runs}
    assert len(runs) == len(keys) == len(claim.ROWS) * len(claim.DATA) * 3 * len(claim.SEEDS)
    for run in runs:
        row = claim.ROWS[run["row"]]
        assert (run["optimizer"], run["h"], run["step"][-1]) == (repr(row.form), row.h, row.steps // 30 * 30)


def test_what_the_claim_says_in_words():
    """Where h τ2 is not above sqrt(eps) the correction reproduces AdamW; far above it, it diverges."""
    content = json.loads((RESULTS / "claim.json").read_text())
    for task in claim.DATA:
        near = claim_report.reproduction(claim_report.curves(content, task, "AdamW, β2 0.99, ε 1e-4"))
        assert near.found == "yes"
        for row in ("AdamW, β2 0.999", "AdamW as in practice"):
            assert claim_report.reproduction(claim_report.curves(content, task, row)).diverged


def test_what_is_said_of_explicit_corrections_in_words():
    """At h = 0.0001 gradients do not fall with a positive strength, above it they do; sharpness falls."""
    content = json.loads((RESULTS / "explicit.json").read_text())
    for setting in explicit.SETTINGS[2:]:  # those in which a positive strength does not diverge
        plain = explicit_report.of(content, setting, 0.0)
        for strength in (1.0, 2.0):
            found = explicit_report.of(content, setting, strength)
            assert explicit_report.lost(found) is None
            steeper, sharper, *_ = explicit_report._changes(found, plain)
            assert sharper < 0.95
            assert 1.02 < steeper < 1.07 if setting.lr == 0.0001 else steeper < 0.76


def test_rows_added_later_are_told_apart():
    assert claim_report.LATER in claim.ROWS
    text = (RESULTS / "claim.md").read_text()
    assert "in 5 of 12 cells, partly in 4, not in 3; without the row that was added" in text
    assert "others had failed, in 3 of 10." in text


def test_a_recorded_training_can_be_made_again(monkeypatch):
    """Its first four intervals."""
    name = "AdamW as in practice"
    runs = json.loads((RESULTS / "claim.json").read_text())["runs"]
    wanted = ("digits-mlp", name, "memory", 2)
    old = next(run for run in runs if (run["task"], run["row"], run["variant"], run["seed"]) == wanted)
    monkeypatch.setattr(claim, "INTERVALS", 4)
    monkeypatch.setitem(claim.ROWS, name, claim.ROWS[name]._replace(steps=old["step"][4]))
    new = claim.run("digits-mlp", name, 2, "memory")
    assert new["step"] == old["step"][:5]
    np.testing.assert_allclose(
        new["train_loss"], old["train_loss"][:5], rtol=0.01
    )  # machines round differently


# The law.


def path(gain, moment, memory="M(0.9) + M(0.0)"):
    gain, moment = (np.tile(np.array(xs, float), (2, 1)) for xs in (gain, moment))
    memory_delay = float(gain_and_delay(parse(memory), averaging_law(parse(memory))).delay)
    return law.Path("task", memory, 100.0 * np.arange(gain.shape[1]), gain, moment, memory_delay)


def test_the_way_of_a_law():
    falling = path([10, 8, 6, 4, 1], [80, 56, 36, 4, -9])
    assert law.half_way(falling) == (300, 6.0)
    assert law.direction(falling) == "falls"
    assert law.end(falling) == "anti-regularises"
    assert law.alike(falling) == "neither"
    assert law.direction(path([10, 9], [80, 79])) == "rises"
    assert law.half_way(path([10, 9], [80, 79])) is None
    assert law.end(path([10, 0.1], [80, 50])) == "gain gone"
    assert law.end(path([10, 5], [80, 45])) == "regularises"
    assert law.alike(path([10, 5], [80, 5 * 9.5])) == "averaging"
    assert law.alike(path([10, 5], [80, -5.1])) == "extrapolating"


def test_recorded_laws_have_the_gain_and_delay_of_their_optimizer(script):
    found = script._law_paths()
    assert len(found) == 48
    for one in found:
        p = parse(one.memory)
        start = gain_and_delay(p, np.ones(p.k))
        np.testing.assert_allclose(one.gain[:, 0], start.gain)
        np.testing.assert_allclose(one.delay[:, 0], start.delay)
        if p.k == 1:
            np.testing.assert_allclose(one.delay, 9.0)


# Costs and texts.


def test_costs_are_bounded_in_closed_form_and_linear_in_general():
    costs = json.loads((RESULTS / "cost.json").read_text())["costs"]
    elementwise = (
        "Lion, smoothed",
        "RMSProp, no bias correction",
    )  # their sums over the past are elementwise
    closed = [c for c in costs if c["form"] == "closed" and c["optimizer"] not in elementwise]
    assert len(closed) == 3 * len(cost.CLOSED) and max(c["median"] for c in closed) < 4
    for name in cost.GENERAL_FORMS:
        ours = {c["n"]: c["median"] for c in costs if c["form"] == "general" and c["optimizer"] == name}
        assert 1.4 < ours[32] / ours[16] < 2.6 and ours[32] > 16


def test_quartiles_of_pairs():
    assert cost._quartiles(np.array([1.0, 2.0, 3.0])) == {"low": 1.5, "median": 2.0, "high": 2.5, "rounds": 3}
    ratios = cost._ratios(lambda x: x, lambda x: x, np.zeros(1), 4)
    assert ratios.shape == (4,) and (ratios > 0).all()


def test_small_texts():
    made = texts.table(["a|b", "number"], [["x", "1"], ["longer", "22"]])
    assert made.splitlines() == [
        "| a\\|b   | number |",
        "| ------ | -----: |",
        "| x      |      1 |",
        "| longer |     22 |",
    ]
    assert texts.minus("-1.5") == "−1.5" and texts.minus("-0.00") == "0.00"
    assert texts.over_seeds([1.0, 2.0, 3.0], 1) == "2.0 ± 1.0"
