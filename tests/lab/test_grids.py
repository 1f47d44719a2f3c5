"""The choice of halving beside that of the full grid: against records made by hand."""

import pytest

from rllc.lab.cells import Point, Result, evaluation_steps
from rllc.lab.errors import Refused
from rllc.lab.evidence import grids
from rllc.lab.evidence.markup import render
from rllc.lab.records import Record
from rllc.lab.search import GRIDS, Plan, search
from rllc.lab.settings import SGD
from rllc.lab.studies import STUDIES
from rllc.lab.tasks import TASKS

TASK, TRIED = TASKS["mnist-mlp"], STUDIES["table1"].trials("SGD")
EARLY, LATE = SGD(0.03), SGD(0.1)
assert {EARLY, LATE} < set(TRIED)


def made(best_in_rungs, best_in_full, seeds=2):
    """Records of both grids on one task, in which these settings are the best."""

    def accuracy(cell):
        best = best_in_full if cell.tested else best_in_rungs
        # Rungs let all that are near their best go on, the others do not differ.
        bonus = 0.1 if cell.setting == best else -abs(TRIED.index(cell.setting) - TRIED.index(best)) / 100
        return 0.8 + bonus + cell.seed / 1000

    def one(cell):
        value = accuracy(cell)
        points = [
            Point(step, 1.0, 1.0, value, 1.0 if cell.tested else None, value if cell.tested else None, ())
            for step in evaluation_steps(cell.steps, cell.points)
        ]
        return Record(cell, Result(tuple(points), None, 1.0, 1.0), {}, None, "")

    held = {}

    def records_of(what, batch):
        found = {name: [one(cell) for cell in cells] for name, cells in batch.items()}
        held.update((record.cell, record) for ours in found.values() for record in ours)
        return found

    for grid in GRIDS.values():
        search(Plan(TASK, {"SGD": TRIED}, seeds, 10_000, rungs=grid), records_of)
    return list(held.values())


def test_both_choose_the_same():
    (choice,) = grids.choices(made(LATE, LATE))
    assert choice.is_same and len(choice.full.in_full) == len(TRIED) > len(choice.short.in_full)
    text = render(grids.table(made(LATE, LATE)), "markdown")
    assert text.count("90.05 ± 0.07 (0.1)") == 2 and "the same rates for 1 of 1.\n" in text


def test_halving_drops_what_would_have_been_the_best():
    last = TRIED[-1]  # the slowest or the fastest: no neighbour of the rungs' best
    (choice,) = grids.choices(made(EARLY, last))
    assert not choice.is_same and choice.full.records[0].cell.setting == last
    text = render(grids.table(made(EARLY, last)), "markdown")
    assert "the same rates for 0 of 1. Of the others halving's are 1 below on test data: −" in text


@pytest.mark.parametrize("drop", ["a run in full", "rungs", "seeds"])
def test_what_cannot_be_told_is_left_out(drop):
    gone = {
        "a run in full": lambda cell: cell.tested and cell.setting == TRIED[0],
        "rungs": lambda cell: not cell.tested,
        "seeds": lambda cell: cell.seed > 0,
    }[drop]
    left = [record for record in made(LATE, LATE) if not gone(record.cell)]
    assert grids.choices(left) == []
    with pytest.raises(Refused, match="no optimizer has run both grids here"):
        grids.table(left)
