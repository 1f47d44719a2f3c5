"""Successive halving drops the right ones; a plan counts its steps; nothing is run twice."""

import dataclasses
import functools

import pytest
from made import DIGITS, record
from rich.console import Console

from rllc.lab.cells import points_for
from rllc.lab.files import Folder
from rllc.lab.making import making
from rllc.lab.optimizers import Rates, trials
from rllc.lab.search import GRIDS, Plan, Rung, search
from rllc.lab.selection import best_point, choose, finished, promising, reading
from rllc.lab.settings import SGD
from rllc.lab.sweep import pool

SETTINGS = tuple(SGD(0.1 * (i + 1)) for i in range(9))


class Pretended:
    """Makes records at once, whose validation accuracy is the setting's rate over 10."""

    def __init__(self):
        self.asked = []
        self.named = []

    def __call__(self, what, cells):
        self.asked.append((what, [cell for ours in cells.values() for cell in ours]))
        self.named += cells.items()
        return {name: [self.made(cell) for cell in ours] for name, ours in cells.items()}

    def made(self, cell):
        return dataclasses.replace(record([0.0, cell.setting.lr / 10], setting=cell.setting), cell=cell)


def test_halving_keeps_the_better_third_and_then_the_better_ninth():
    pretended = Pretended()
    (row,) = search(Plan(DIGITS, {"SGD": SETTINGS}, 3, 1000, rungs=GRIDS["short"]), pretended)
    assert [(len(cells), {cell.steps for cell in cells}) for _, cells in pretended.asked] == [
        (9, {100}),
        (3, {300}),
        (1, {1000}),
        (3, {1000}),
    ]
    assert [{cell.tested for cell in cells} for _, cells in pretended.asked] == [
        {False},
        {False},
        {True},
        {True},
    ]
    assert row.tried == SETTINGS and row.in_full == SETTINGS[-1:]
    assert [r.cell.seed for r in row.records] == [0, 1, 2]
    assert {r.cell.setting for r in row.records} == {SETTINGS[-1]}


def test_tenth_lets_one_go_on():
    pretended = Pretended()
    (row,) = search(Plan(DIGITS, {"SGD": SETTINGS}, 3, 1000, rungs=GRIDS["tenth"]), pretended)
    assert [len(cells) for _, cells in pretended.asked] == [9, 1, 3]
    assert row.in_full == SETTINGS[-1:]


def test_without_rungs_every_setting_runs_in_full():
    pretended = Pretended()
    (row,) = search(Plan(DIGITS, {"SGD": SETTINGS}, 2, 1000), pretended)
    assert [len(cells) for _, cells in pretended.asked] == [9, 2]
    assert row.in_full == row.tried == SETTINGS
    assert {cell.points for _, cells in pretended.asked for cell in cells} == {points_for(DIGITS, 1000)}


@pytest.mark.parametrize("rungs", [*GRIDS.values(), (Rung(0.5, 0.4),)])
def test_a_plan_knows_how_many_steps_it_takes(rungs):
    pretended = Pretended()
    plan = Plan(DIGITS, {"SGD": SETTINGS, "other": SETTINGS[:4]}, 3, 1000, rungs=rungs)
    search(plan, pretended)
    cells = {(cell, name) for name, asked in pretended.named for cell in asked}
    assert plan.training_steps() == sum(cell.steps for cell, _ in cells)


def test_promising_is_ordered_by_validation_and_leaves_out_the_diverged():
    good, better = record([0.1, 0.5], setting=SGD(0.1)), record([0.1, 0.6], setting=SGD(0.2))
    tie = record([0.1, 0.5], setting=SGD(0.4))
    lost = record([0.1, 0.9], setting=SGD(0.3), diverged_at=10)
    assert promising([good, lost, better, tie], 3) == [better, good, tie]
    assert promising([good, better], 1) == [choose([good, better])] == [better]
    assert finished([lost]) == ()


def test_the_three_readings_of_a_run():
    made = record([0.1, 0.9, 0.8], test=[0.2, 0.5, 0.6], setting=SGD(0.1))
    assert reading(made, "last") == pytest.approx((0.4, 0.6))
    assert best_point(made).step == 10 and reading(made, "validation") == pytest.approx((0.5, 0.5))
    assert reading(made, "best") == pytest.approx((0.4, 0.6))
    apart = record([0.1, 0.2, 0.3], test=[0.7, 0.5, 0.6], setting=SGD(0.1))
    assert reading(apart, "best") == pytest.approx((0.3, 0.7))
    with pytest.raises(ValueError, match="known are last, validation, best"):
        reading(made, "first")


def test_a_search_makes_what_is_missing_and_only_that(tmp_path):
    out, console = Folder(str(tmp_path)), Console(quiet=True)
    plan = Plan(DIGITS, {"SGD": trials("SGD", Rates(lr=(0.1, 0.3, 1e6)))}, 2, 20, rungs=(Rung(0.5, 0.6),))

    def once():
        with pool(1) as workers, making(workers, out, [plan], console) as maker:
            return search(plan, functools.partial(maker.records, plan)), workers.steps()

    (rows, steps), (again, nothing) = once(), once()
    assert rows == again and steps == 3 * 10 + 3 * 20 and nothing == 0
    assert set(rows[0].in_full) == {SGD(0.1), SGD(0.3)}
    assert len(rows[0].records) == 2
