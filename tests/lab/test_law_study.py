"""The study of the law: its settings, its table from records made by hand, how predictions are decided."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import unpadded

from rllc.lab import records
from rllc.lab.cells import Cell, Point, Result, canonical, cell_of, digest
from rllc.lab.files import Folder
from rllc.lab.records import Record
from rllc.lab.settings import Cosine, RllcAdamW, Rules
from rllc.lab.tasks import TASKS
from rllc.lab.training import train
from rllc.law import LawStep

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import law_predictions as predictions  # noqa: E402
import law_study as study  # noqa: E402
import law_variants as variants  # noqa: E402


@pytest.fixture(scope="module")
def kept():
    return study.load(study.OUT)


def made(cell, accuracy, law=1.0, train_loss=0.5, diverged_at=None):
    """A record of this cell whose every point says the same: the loss is 1 less the accuracy."""
    steps = [0, *(round(cell.steps * i / cell.points) for i in range(1, cell.points + 1))]
    k = 0 if isinstance(cell.setting, Cosine) else np.size(cell.setting.law)
    laws = (law, *[0.0] * (k - 1))[:k]
    points = tuple(
        Point(step, train_loss if step else None, 1 - accuracy, accuracy, 1 - accuracy, accuracy, laws)
        for step in steps
        if diverged_at is None or step < diverged_at
    )
    return {cell: Record(cell, Result(points, diverged_at, 1.5, 2.0), {}, None, "")}


# Settings


def test_every_cell_is_read_again_as_it_was_written():
    found = variants.cells(variants.MARKS, variants.VARIANTS, 2, variants.READINGS)
    # Two seeds, three tasks; two readings but of cosine and of two units; the pictures' beginnings.
    assert len(found) == 2 * 3 * (2 * len(variants.VARIANTS) - 2) + len(variants.DRAWN)
    assert [cell_of(canonical(cell)) for cell in found] == found
    assert len({digest(cell) for cell in found}) == len(found)


def test_a_union_of_rules_is_built_with_all_its_settings():
    setting = Rules(
        ("M_2(0.6)", "Adam(b1=0.99)"),
        *(0.1, 0.02, (1.0, 2.0, 3.0)),
        **dict(q=2.0, decay=0.7, clip=None, growth=0.2, smoothing=0.9, scope="tensor", average=3.0),
    )
    built = setting.method(torch.nn.BatchNorm1d(3), 10).optimizer
    assert (built.memory.k, built.memory.rules[1].b1, built.scope) == (3, 0.99, "tensor")
    assert built.law.tolist() == [[1.0, 2.0, 3.0]] * 2
    assert built.law_step == LawStep(2.0, 0.7, math.inf, 0.2, 0.9)
    group = built.param_groups[0]
    assert (group["lr"], group["law_lr"], group["average"], len(group["buffers"])) == (0.1, 0.02, 3.0, 2)
    assert setting.name == "RLLC, M_2(0.6) + Adam(b1=0.99)" and setting.rates == (0.1, 0.02)


def points(setting):
    return train(Cell(TASKS["digits-mlp"], setting, 0, 12, points=3)).points


def test_adam_as_a_rule_is_rllc_adamw_measured_at_its_average():
    averaged, last, ours = (
        points(Rules(("Adam",), 3e-3, 0.04, (1.0,))),
        points(Rules(("Adam",), 3e-3, 0.04, (1.0,), average=None)),
        points(RllcAdamW(3e-3, law=1.0, decay=0.0, growth=0.0)),
    )
    assert [p.train_loss for p in averaged] == [p.train_loss for p in last]
    assert averaged[-1].valid_loss != last[-1].valid_loss
    np.testing.assert_allclose([p.law for p in averaged], [p.law for p in ours], rtol=1e-4)
    np.testing.assert_allclose([p.valid_loss for p in averaged], [p.valid_loss for p in ours], rtol=1e-4)


def test_laws_of_tensors_stand_one_after_the_other():
    setting = Rules(("Adam",), 3e-3, 0.1, (1.0,), scope="tensor")
    found = points(setting)[-1]
    assert len(found.law) > 1 and len(set(found.law)) == len(found.law)
    assert variants.size(setting, found) == pytest.approx(3e-3 * np.mean(found.law))
    two = Rules(("Adam", "deviation"), 0.1, 0.1, (1.0, 0.0))
    assert variants.size(two, found._replace(law=(3.0, 4.0))) == pytest.approx(0.5)
    assert math.isnan(variants.size(RllcAdamW(), found._replace(law=())))


# What records say


def test_the_table_has_both_readings_of_what_was_run():
    known = (
        made(variants.cell("fashion-mlp", "default", "average", 0), 0.9, law=3.0, train_loss=0.1)
        | made(variants.cell("fashion-mlp", "default", "average", 1), 0.91, law=5.0, train_loss=0.2)
        | made(variants.cell("fashion-mlp", "default", "last", 0), 0.885)
        | made(variants.cell("fashion-mlp", "cosine", "last", 0), 0.88)
        | made(variants.cell("fashion-mlp", "two units", "last", 0), 0.1, diverged_at=2000)
        | made(variants.cell("shakespeare-gpt", "default", "average", 0), -0.85)
    )
    text = unpadded(study.table(known, "fashion-mlp"))
    assert text.startswith("## fashion-mlp: test accuracy in %, 2 seeds\n")
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:] for row in text.split("\n")[4:]}
    assert list(rows) == ["cosine", "default", "two units"]
    entry = "90.50 (88.50)"
    assert rows["default"] == [entry, entry, entry, "0.150", "0.004", "0.004", "0.004 |"]
    assert rows["cosine"][:3] == ["– (88.00)"] * 3
    assert rows["two units"][:4] == ["– (10.00)", "diverged", "diverged", "–"]
    assert "| default | 1.8500 (–) | 1.8500 (–) |" in unpadded(study.table(known, "shakespeare-gpt"))
    assert study.table(known, "cifar10-mlp").endswith("Not run yet.")


def test_a_gain_is_of_the_seeds_that_both_have_and_of_losses_the_other_way_round():
    ours, theirs = variants.Pick("q = 1.5"), variants.Pick("constant")

    def both(task, *accuracies):
        known = {}
        for pick, seed, accuracy in accuracies:
            known |= made(variants.cell(task, pick.name, "average", seed), accuracy)
        return variants.gain(known, task, ours, theirs)

    accuracies = [(ours, 0, 0.9), (ours, 1, 0.5), (theirs, 0, 0.88), (theirs, 2, 0.1)]
    assert both("fashion-mlp", *accuracies) == pytest.approx(2.0)
    assert both("shakespeare-gpt", *accuracies) == pytest.approx(0.02)
    assert both("fashion-mlp", *accuracies[1:]) is None


def test_a_claim_holds_between_its_bounds_and_a_diverged_run_never_does():
    def judged(value):
        return predictions.holds(predictions.Claim("", lambda known: value, -0.15, 0.15), {})

    assert [judged(value) for value in (0.15, -0.15, 0.16, -0.2, math.nan, None)] == [
        *(True, True, False, False, False, None)
    ]
    assert predictions.outcome([True, True]) == "as predicted"
    assert predictions.outcome([True, None]) == "open"
    assert predictions.outcome([None, False, True]) == "not as predicted"
    assert predictions.outcome([]) == "the prototype's only"


def predicted(known):
    """The outcome of each prediction."""
    return [
        predictions.outcome([predictions.holds(claim, known) for claim in prediction.claims])
        for prediction in predictions.PREDICTIONS
    ]


def test_predictions_are_decided_by_their_rules():
    prototype, undecided = "the prototype's only", "open"
    assert predicted({}) == [prototype, *[undecided] * 3, prototype, *[undecided] * 4]

    def alike(**changes):
        known = {}
        for task in variants.MARKS:
            for name in variants.VARIANTS:
                for reading in variants.readings(name):
                    cell = variants.cell(task, name, reading, 0)
                    accuracy = 0.9 + changes.get(f"{name}, {reading}", 0)
                    known |= made(cell, accuracy, law=3e-3 / cell.setting.rates[0])
        return known

    yes, no = "as predicted", "not as predicted"
    assert predicted(alike()) == [prototype, no, yes, yes, prototype, yes, yes, no, yes]
    # 1 point is a hundredth.
    changes = {
        "deviation, last": 0.006,
        "three momenta, average": 0.006,
        "lr x 100, average": -0.0051,
        "per tensor, average": -0.002,
        "adaptive momentum, average": 0.006,
        "several averages, average": 0.006,
        "cosine, last": 0.02,
        "q = 1.5, average": 0.011,
    }
    one_by_one = [predicted(alike(**{name: change})) for name, change in list(changes.items())[:6]]
    assert [outcomes[i] for outcomes, i in zip(one_by_one, (1, 2, 3, 5, 6, 8), strict=True)] == [
        yes,
        *[no] * 5,
    ]
    last = predicted(alike(**{name: changes[name] for name in ("cosine, last", "q = 1.5, average")}))
    assert last[7] == yes


def test_a_path_begins_with_the_beginning():
    whole = variants.cell("fashion-mlp", "default", "average", 0)
    assert replace(variants.beginning("default"), steps=10_000, points=50) == whole
    known = made(variants.beginning("default"), 0.5, law=2.0)
    assert variants.path(known, "default")[:2] == [(5, 0.002), (10, 0.002)]
    found = variants.path(known | made(whole, 0.9, law=7.0), "default")
    assert len(found) == 40 + 49 and found[-1] == (10_000, 0.007)
    lines = [line for line in study.figure(known).axes[0].get_lines() if len(line.get_xdata()) > 1]
    assert [line.get_label() for line in lines] == [variants.DRAWN["default"]]


def test_what_is_finished_goes_into_the_file_and_is_not_run_again(tmp_path, capsys):
    out, runs = tmp_path / "study.parquet", Folder(str(tmp_path / "runs"))
    cells = variants.cells(["fashion-mlp"], ["constant"], 1, variants.READINGS)
    for cell in cells:
        records.write(runs / "records", made(cell, 0.9)[cell])
    study.run(out, runs, cells, workers=1)
    assert capsys.readouterr().out == "0 of 2 runs are missing\n" and set(study.load(out)) == set(cells)
    study.draw(out)
    assert "| constant | 90.00 (90.00) |" in (tmp_path / "study.md").read_text()
    assert (tmp_path / "laws.png").stat().st_size > 10_000


# What is committed


def test_the_committed_text_is_that_of_the_committed_records(kept):
    assert (ROOT / "results" / "law-study.md").read_text() == study.markdown(kept)


def test_committed_beginnings_are_those_of_the_whole_runs(kept):
    """No variant depends on the length of its run; and so the picture may put the two together."""
    pairs = [[kept[cell] for cell in variants.drawn_cells(kept, name)] for name in variants.DRAWN]
    assert [short.diverged for short, _ in pairs] == [whole.diverged for _, whole in pairs]
    for short, whole in pairs:
        if not short.diverged:
            assert short.result.points[-1][1:] != () and short.result.points[-1].step == 200
            assert short.result.points[-1].law == whole.result.points[1].law
            assert short.result.points[-1].valid_loss == whole.result.points[1].valid_loss
