"""A study's rows are made from its own settings, its own steps, and by validation data."""

import dataclasses

import pytest
from made import DIGITS, record

from rllc.lab.cells import points_for
from rllc.lab.optimizers import PAPER, Rates, named, paper_trials
from rllc.lab.settings import SGD
from rllc.lab.studies import PAPER_TASKS, STUDIES, Study, row_of, rows
from rllc.lab.tasks import TASKS

STUDY = Study("a", "A", ("digits-mlp",), ("SGD", "Adam"), Rates(lr=(0.1, 0.2, 0.3)))


def run(lr, valid, seed=0, steps=1000, points=None, diverged_at=None):
    """A record of SGD whose best validation accuracy is given."""
    made = record([0.0, valid], setting=SGD(lr), seed=seed, diverged_at=diverged_at)
    cell = dataclasses.replace(made.cell, steps=steps, points=points or points_for(made.cell.task, steps))
    return dataclasses.replace(made, cell=cell)


def test_validation_chooses_and_all_seeds_of_the_chosen_are_in_the_row():
    made = [
        run(0.1, 0.8),
        run(0.2, 0.9),
        run(0.2, 0.1, seed=1),
        run(0.1, 0.99, seed=1),
        run(0.3, 0.95, diverged_at=9),
    ]
    row = rows(STUDY, made)["digits-mlp", "SGD"]
    assert [(r.cell.setting.lr, r.cell.seed) for r in row.records] == [(0.2, 0), (0.2, 1)]
    assert row.tried == row.in_full == (SGD(0.1), SGD(0.2), SGD(0.3))
    assert ("digits-mlp", "Adam") not in rows(STUDY, made)


def test_a_seed_on_two_devices_counts_once():
    made = run(0.1, 0.8)
    elsewhere = dataclasses.replace(made, cell=dataclasses.replace(made.cell, device="cuda"))
    assert len(rows(STUDY, [made, elsewhere])["digits-mlp", "SGD"].records) == 1


def test_a_seed_on_another_device_does_not_hide_the_others():
    made = [run(0.1, 0.8, seed) for seed in (0, 1, 2)]
    elsewhere = dataclasses.replace(
        run(0.1, 0.9), cell=dataclasses.replace(made[0].cell, device="cuda")
    )  # the best of seed 0, and newer
    for held in ([elsewhere, *made], [*made, elsewhere]):
        assert rows(STUDY, held)["digits-mlp", "SGD"].records == tuple(made)


def test_runs_of_rungs_and_of_other_grids_are_not_runs_in_full():
    made = [run(0.1, 0.5), run(0.2, 0.9, steps=300, points=10), run(0.7, 0.99)]
    row = rows(STUDY, made)["digits-mlp", "SGD"]
    assert row.tried == (SGD(0.1), SGD(0.2)) and row.in_full == (SGD(0.1),)
    assert not rows(STUDY, made[1:])
    untested = dataclasses.replace(made[0], cell=dataclasses.replace(made[0].cell, tested=False))
    assert not rows(STUDY, [untested])


def test_steps_are_the_studys_own_or_the_tasks_or_those_of_most_runs():
    many = [run(0.1, 0.5, steps=300), run(0.3, 0.5, steps=300), run(0.2, 0.9, steps=3000)]
    assert rows(STUDY, many)["digits-mlp", "SGD"].in_full == (SGD(0.1), SGD(0.3))
    own = [*many, run(0.2, 0.1, steps=DIGITS.steps)]
    assert rows(STUDY, own)["digits-mlp", "SGD"].in_full == (SGD(0.2),)
    made = [run(0.1, 0.5), run(0.2, 0.9, steps=3000)]
    assert rows(STUDY, made)["digits-mlp", "SGD"].in_full == (SGD(0.2),)
    own = dataclasses.replace(STUDY, steps=1000)
    assert rows(own, made)["digits-mlp", "SGD"].in_full == (SGD(0.1),)
    assert rows(own, made[1:])["digits-mlp", "SGD"].in_full == (SGD(0.2),)


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_every_study_is_made_of_what_there_is(study):
    assert set(study.tasks) <= set(TASKS)
    assert tuple(map(named, study.optimizers)) == study.optimizers
    assert len({len(study.trials(name)) for name in study.optimizers} - {15, 18}) in (0, 1)


def test_table_1_is_the_papers():
    study = STUDIES["table1"]
    assert (study.tasks, study.optimizers, study.steps) == (PAPER_TASKS, PAPER, None)
    assert {TASKS[name].steps for name in study.tasks} == {10_000}
    assert study.trials("Adam") == paper_trials("Adam") and DIGITS.name not in study.tasks


def on_other_images(made):
    """The same run on another copy of the images."""
    task = made.cell.task
    other = dataclasses.replace(task, data=dataclasses.replace(task.data, digest="other"))
    return dataclasses.replace(made, cell=dataclasses.replace(made.cell, task=other))


def test_runs_on_other_images_are_not_averaged_with_these():
    ours = [run(0.1, 0.8, seed) for seed in (0, 1)]
    others = [on_other_images(run(0.1, 0.9, seed)) for seed in (0, 1, 2)]
    assert rows(STUDY, [*others[:2], *ours])["digits-mlp", "SGD"].records == tuple(ours)
    assert rows(STUDY, [*ours, *others])["digits-mlp", "SGD"].records == tuple(others)
    assert row_of("SGD", [], [*ours, *others]).records == tuple(others)  # by validation data, of one copy
