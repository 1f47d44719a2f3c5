"""benchmarks/loss_gap.py: its runs, its records and its verdict."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from loss_gap import LAWS, OUT, Job, Mark, markdown, read, run, verdict
from made import unpadded

from rllc.lab.files import write_rows


def marks(task="fashion-mlp", seed=0, **changed):
    """The end of a run of each law: valid and test accuracy 80 % but where it is said otherwise."""
    ends = dict.fromkeys(LAWS, (80.0, 80.0)) | changed
    return [Mark(task, law, seed, 100, 100, *ends[law], 1e-3, math.nan) for law in LAWS if ends[law]]


def test_a_run_is_a_function_of_its_job_and_searches_like_the_default():
    laws = "gap, c = 0.02", "gap, c = 0.02", "default"
    first, again, default = (run(Job("digits-mlp", law, 0, 40)) for law in laws)
    assert [m.step for m in first] == [4, 12, 40]
    assert [m[3:8] for m in first] == [m[3:8] for m in again] == [m[3:8] for m in default]
    assert first[-1].size > 5e-5  # it grows from 1e-5 and has not found its size yet: the gap says nothing
    assert math.isnan(first[-1].positive)
    assert run(Job("digits-mlp", "default", 1, 40)) != default


def test_after_the_search_the_gap_moves_the_law(monkeypatch):
    alone, gap = (run(Job("digits-mlp", law, 0, 200))[-1] for law in ("search alone", "gap, c = 0.02"))
    # The average lags behind: longer steps than the search has found are wanted, and refused.
    assert gap.positive < 0.3 and 0.98 * alone.size < gap.size <= alone.size
    assert math.isnan(alone.positive)
    monkeypatch.setitem(LAWS, "gap, c = 0.02", -0.5)
    assert run(Job("digits-mlp", "gap, c = 0.02", 0, 200))[-1].size < 0.97 * alone.size


def test_the_better_on_validation_data_is_judged():
    better = marks(**{"gap, c = 0.02": (81.0, 80.1), "gap, c = 0.005": (79.0, 90.0)})
    assert "Gain of gap, c = 0.02" in verdict("fashion-mlp", better)
    assert verdict("fashion-mlp", better).endswith("+0.10 points, predicted at most 0.15: as predicted.")
    much = marks(**{"gap, c = 0.02": (81.0, 80.2)})
    assert verdict("fashion-mlp", much).endswith("+0.20 points, predicted at most 0.15: not as predicted.")
    assert verdict("fashion-mlp", marks(default=None)) == "Open: not all laws have been run."
    assert verdict("digits-mlp", marks("digits-mlp")) == "No prediction."


def test_only_seeds_that_all_laws_have_are_compared():
    second = marks(seed=1, **{"default": (99.0, 99.0), "gap, c = 0.005": None})
    assert "+0.00 points" in verdict("fashion-mlp", marks() + second)


def test_marks_are_kept_and_shown(tmp_path):
    path = tmp_path / "loss-gap.parquet"
    assert read(path) == []
    write_rows(path, (mark._asdict() for mark in marks()))
    kept = read(path)
    assert [m[:8] for m in kept] == [m[:8] for m in marks()] and math.isnan(kept[0].positive)
    text = unpadded(markdown(kept))
    assert "## fashion-mlp, 1 seed" in text and text.count("| 80.00 | 0.001 | – |") == len(LAWS)


def test_the_committed_page_is_made_of_the_committed_marks():
    assert (OUT / "loss-gap.md").read_text() == markdown(read(OUT / "loss-gap.parquet"))


@pytest.mark.parametrize("law", LAWS)
def test_the_page_has_a_row_for_each_law_that_was_run(law):
    assert f"| {law} |" in unpadded(markdown(marks()))
    assert f"| {law} |" not in unpadded(markdown(marks(**{law: None})))
