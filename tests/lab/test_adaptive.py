"""Stopping times, the choice of rates at each of them, regrets: against records made by hand."""

import dataclasses

import pytest
from made import DIGITS
from rich.console import Console

from rllc.lab import adaptive
from rllc.lab.adaptive import (
    CONTENDERS,
    CONTROL,
    COSINE,
    Adaptive,
    Contender,
    at,
    plans_in,
    search,
    stops_of,
)
from rllc.lab.cells import Point, Result, evaluation_steps
from rllc.lab.errors import Refused
from rllc.lab.evidence import adaptive as evidence
from rllc.lab.evidence import adaptive_figure, adaptive_tables, results
from rllc.lab.evidence.markup import MISSING
from rllc.lab.evidence.outcomes import Sample
from rllc.lab.files import Folder
from rllc.lab.making import making
from rllc.lab.optimizers import named
from rllc.lab.options import Figure, Run, Table
from rllc.lab.records import Record, write
from rllc.lab.run import main, plans
from rllc.lab.search import among
from rllc.lab.settings import Adam, RllcAdamW
from rllc.lab.sweep import pool
from rllc.lab.tasks import TASKS

OURS = CONTENDERS[0]
BY_NAME = {contender.name: contender for contender in CONTENDERS}
TWO = Contender("Adam", "Adam", (1e-3, 1e-2))
GPT = TASKS["shakespeare-gpt"]


def pretended(reached, lost=lambda cell: False, asked=None):
    """A way to make records: reached(cell, step) is the validation accuracy; on test data a tenth less.

    Losses are 1 minus accuracies. What is lost has diverged after step 1,000.
    """

    def made(cell):
        steps = [step for step in evaluation_steps(cell.steps, cell.points)]
        gone, law = lost(cell), (0.01,) * isinstance(cell.setting, RllcAdamW)
        points = tuple(
            Point(step, None, 1 - v, v, 1.1 - v, v - 0.1, law)
            for step in steps
            if step <= 1000 or not gone
            for v in [reached(cell, step)]
        )
        result = Result(points, 1200 if gone else None, 1.0, 1.0)
        return Record(cell, result, {"torch": "2.0"}, None, "here")

    def records_of(what, batch):
        if asked is not None:
            asked.append((what, batch))
        return {name: list(map(made, cells)) for name, cells in batch.items()}

    return records_of


def all_records(plan, records_of):
    """Every record that a search asks for."""
    held = []

    def kept(what, batch):
        found = records_of(what, batch)
        held.extend(record for ours in found.values() for record in ours)
        return found

    search(plan, kept)
    return list({record.cell: record for record in held}.values())


def test_stopping_times():
    assert stops_of(10_000) == (1000, 3000, 10_000)
    assert stops_of(3000) == (1000, 3000)
    assert stops_of(200) == (200,)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
@pytest.mark.parametrize("steps", [200, 1000, 3000, 10_000, 20_000])
def test_evaluations_fall_on_all_stopping_times(task, steps):
    plan = Adaptive(task, CONTENDERS, steps, 1)
    for stop in plan.stops:
        cell = plan.cell(Adam(1e-3), 0, stop)
        assert cell.steps == steps and stop in evaluation_steps(cell.steps, cell.points)
    assert cell.points >= 20 or steps < 20 * task.evaluation_cost


def test_a_length_that_no_evaluation_meets_is_refused():
    with pytest.raises(Refused, match="multiple of 1000"):
        Adaptive(DIGITS, CONTENDERS, 3001, 1)


def test_only_who_knows_the_end_needs_a_run_for_each():
    plan = Adaptive(DIGITS, CONTENDERS, 10_000, 3)
    lengths = {c.name: {cell.steps for cell in plan.tries(c)} for c in CONTENDERS}
    several = {name for name, steps in lengths.items() if steps != {10_000}}
    assert several == {COSINE, "AdEMAMix"} and lengths[COSINE] == {1000, 3000, 10_000}
    assert {len(plan.tries(c)) for c in CONTENDERS} == {7, 17}
    assert {cell.points for cell in plan.tries(OURS)} == {50}


def test_five_rates_over_two_decades_and_seven_over_four():
    for contender in CONTENDERS:
        rates, wide = contender.rates, contender.wide
        assert len(rates) == 5 and rates[-1] / rates[0] == pytest.approx(100)
        assert wide[1:-1] == rates and wide[-1] / wide[0] == pytest.approx(1e4)
        assert contender.fixed is None or contender.fixed in rates[2:4]
        assert named(contender.optimizer.lower()) == contender.optimizer
    assert OURS.setting(1e-3) == RllcAdamW() and BY_NAME[CONTROL].setting(3e-3).base == Adam(3e-3)


def reached_by_rate(cell, step):
    """The larger of Adam's two rates is best early, the smaller late."""
    return 0.5 + (0.1 if (cell.setting.lr > 5e-3) == (step <= 1000) else 0.0)


def test_validation_data_choose_at_each_stopping_time():
    asked = []
    plan = Adaptive(DIGITS, (TWO,), 3000, 3)
    found = search(plan, pretended(reached_by_rate, asked=asked))
    assert {stop: found["Adam", stop].rate for stop in plan.stops} == {1000: 1e-2, 3000: 1e-3}
    assert [cell.seed for cell in (record.cell for record in found["Adam", 1000].records)] == [0, 1, 2]
    assert {record.cell.setting for record in found["Adam", 3000].records} == {Adam(1e-3)}
    (first, tries), (second, finals) = asked
    assert (first, second) == ("all rates", "all seeds")
    assert len(tries["Adam"]) == 4 and len(set(finals["Adam"])) == 6
    asked_for = {cell for batch in (tries, finals) for cells in batch.values() for cell in cells}
    assert plan.training_steps() == sum(cell.steps for cell in asked_for)


def test_what_diverged_counts_until_it_did():
    plan = Adaptive(DIGITS, (TWO,), 3000, 2)
    found = search(plan, pretended(reached_by_rate, lost=lambda cell: cell.setting.lr == 1e-2))
    assert {stop: found["Adam", stop].rate for stop in plan.stops} == {1000: 1e-2, 3000: 1e-3}
    lost = found["Adam", 3000].tried[1e-2]
    assert at(lost, 3000) is None and at(lost, 1000).valid_accuracy == pytest.approx(0.6)
    nothing = search(plan, pretended(reached_by_rate, lost=lambda cell: True))
    assert nothing["Adam", 3000].rate is None and nothing["Adam", 3000].records == ()


def test_rates_beyond_the_five_are_never_chosen_and_ours_is_not_tuned():
    plan = Adaptive(DIGITS, (OURS, BY_NAME["Adam"]), 1000, 1)
    found = search(plan, pretended(lambda cell, step: 0.9 if cell.setting.lr in (1e-5, 1e-2) else 0.5))
    assert found["Adam", 1000].rate == 1e-2 and found[OURS.name, 1000].rate == 1e-3
    assert set(found["Adam", 1000].tried) == {1e-5, *BY_NAME["Adam"].rates, 1e-1}


def test_of_a_text_the_loss_decides():
    plan = Adaptive(GPT, (TWO,), 1000, 1)
    record_of = pretended(reached_by_rate)

    def with_other_losses(what, batch):
        return {
            name: [other_loss(record) for record in ours] for name, ours in record_of(what, batch).items()
        }

    def other_loss(record):
        points = tuple(p._replace(valid_loss=record.cell.setting.lr) for p in record.result.points)
        return dataclasses.replace(record, result=record.result._replace(points=points))

    assert search(plan, with_other_losses)["Adam", 1000].rate == 1e-3


def test_a_search_among_records_finds_what_was_made():
    plan = Adaptive(DIGITS, CONTENDERS, 3000, 2)
    records_of = pretended(lambda cell, step: 0.5 + 1e-5 * (step % 977) + 0.01 * cell.seed)
    made = all_records(plan, records_of)
    assert plans_in(made) == [plan] and search(plan, among(made)) == search(plan, records_of)
    assert plans_in([record for record in made if not isinstance(record.cell.setting, RllcAdamW)]) == []


def test_one_longer_run_does_not_hide_the_others():
    longer = all_records(Adaptive(DIGITS, (OURS,), 20_000, 1), pretended(score))
    longest = next(record for record in longer if record.cell.setting == RllcAdamW())
    for steps in (10_000, 3000):
        plan = Adaptive(DIGITS, CONTENDERS, steps, 2)
        made = all_records(plan, pretended(score))
        assert plans_in([longest, *made]) == [plan]


def test_a_run_of_an_odd_length_does_not_hide_the_others_nor_is_shown():
    plan = Adaptive(DIGITS, CONTENDERS, 3000, 2)
    made = all_records(plan, pretended(score))
    first = next(record for record in made if record.cell.setting == RllcAdamW())
    odd = dataclasses.replace(first, cell=dataclasses.replace(first.cell, steps=4096, points=8))
    assert plans_in([odd]) == [] and plans_in([odd, *made]) == [plan]
    assert "1 on digits-mlp" in adaptive_tables.text([odd, *made])


def test_runs_on_other_images_are_a_study_too_and_are_not_mixed_with_these():
    other = dataclasses.replace(DIGITS, data=dataclasses.replace(DIGITS.data, digest="other"))
    plan = Adaptive(other, CONTENDERS, 1000, 3)
    made = all_records(plan, pretended(score))
    assert plans_in(made) == [plan] and "Left out" not in adaptive_tables.text(made)
    ours = [record for record in studied() if record.cell.setting == RllcAdamW()]
    assert plans_in([*ours[:1], *made]) == [plan]
    table = adaptive_tables.tables(evidence.results_in([*ours[:1], *made]))[0]
    assert table.columns == ("digits-mlp",)
    assert (
        table.notes[-1]
        == "Left out: runs of RLLC-AdamW on other images or devices, or of other lengths (1 on digits-mlp)."
    )


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_run_on_another_device_does_not_hide_the_others_nor_is_shown(seeds):
    plan = Adaptive(DIGITS, CONTENDERS, 1000, seeds)
    made = all_records(plan, pretended(score))
    first = next(record for record in made if record.cell.setting == RllcAdamW())
    elsewhere = dataclasses.replace(first, cell=dataclasses.replace(first.cell, seed=7, device="cuda"))
    for held in ([elsewhere, *made], [*made, elsewhere]):
        assert plans_in(held) == [plan]
    assert evidence.results_in([elsewhere, *made])["digits-mlp"].left_out == 1
    assert plans_in([elsewhere]) == [dataclasses.replace(plan, seeds=8, device="cuda")]


# Regrets


def test_a_regret_is_what_is_missing():
    ours, theirs = Sample((90.0, 92.0)), Sample((93.0, 95.0))
    found = evidence.regret(ours, theirs, 1, "Adam")
    assert found.value == 3 and found.error == pytest.approx(2**0.5) and found.other == "Adam"
    assert found.outcome == "behind"  # 2.1 standard errors, of two seeds each
    assert (
        evidence.regret(theirs, ours, 1).value == -3 and evidence.regret(theirs, ours, 1).outcome == "ahead"
    )
    assert (
        evidence.regret(ours, theirs, -1).value == -3 and evidence.regret(ours, theirs, -1).outcome == "ahead"
    )
    assert evidence.regret(Sample((1.0,)), theirs, 1).error is None


def score(cell, step):
    """At the end ours 0.80, Adam + cosine 0.82 and the control 0.79, others 0.6; seeds differ by 0.002."""
    setting = cell.setting
    ours = setting == RllcAdamW()
    high = {BY_NAME[COSINE].setting(1e-3): 0.82, BY_NAME[CONTROL].setting(3e-3): 0.79}
    value = 0.80 if ours else high.get(setting, 0.6)
    return value + 0.1 + 0.002 * cell.seed - (0.0 if step == 1000 else 0.3)


def studied(task=DIGITS, steps=1000):
    return all_records(Adaptive(task, CONTENDERS, steps, 3), pretended(score))


def test_regrets_to_the_best_peer_cosine_and_the_control():
    results = evidence.results_in(studied())
    result = results["digits-mlp"]
    assert evidence.best_peer(result, 1000) == COSINE
    table = next(table for table in adaptive_tables.tables(results) if table.title.startswith("Regret"))
    ((name, lines),) = table.groups
    texts = [(line.label, line.entries[0].text, line.entries[0].aside) for line in lines]
    assert name == "after 1,000 steps" and texts == [
        ("to the best tuned peer", "+2.00 ± 0.16", f"({COSINE})"),
        (f"to {COSINE}", "+2.00 ± 0.16", ""),
        (f"to {CONTROL}", "−1.00 ± 0.16", ""),
    ]
    sentences = adaptive_tables.verdicts(results)
    assert "better by more than a standard error in 0, within it in 0, worse in 1" in sentences[0]
    assert sentences[0].endswith(f"worse in 1: digits-mlp at 1,000 by 2.00 ± 0.16 ({COSINE}).")
    assert sentences[2].startswith(f"Against {CONTROL}, of 1 ") and "error in 1, within" in sentences[2]


def test_the_ranking_says_who_lost():
    results = evidence.results_in(studied())
    table = next(table for table in adaptive_tables.tables(results) if table.title == "Who lost")
    rows = {name: [entry.text for entry in lines[0].entries] for name, lines in table.groups}
    assert list(rows)[:2] == [COSINE, OURS.name]
    assert rows[COSINE] == ["0.00", "0.00", "digits-mlp 1,000", "1"]
    assert rows[OURS.name][0] == "2.00" and rows["Muon"][0] == "22.00"


def test_accuracies_with_the_rates_chosen():
    table = adaptive_tables.tables(evidence.results_in(studied()))[0]
    rows = {name: lines[0].entries[0] for name, lines in table.groups}
    assert rows[OURS.name][:3] == ("80.20 ± 0.20", "", False) and rows[OURS.name].aside == "(0.001)"
    assert rows[COSINE].best and rows[COSINE].aside == "(0.001)"
    assert list(rows) == list(BY_NAME)
    assert "momentum SGD on digits-mlp" in table.notes[-1]  # all its rates were equal: the first


def test_the_spread_is_of_five_and_of_seven_rates():
    by_rate = {1e-5: 0.6, 1e-4: 0.7, 1e-1: 0.1}

    def lost(cell):
        return cell.setting.lr == 1e-1

    plan = Adaptive(DIGITS, (OURS,), 3000, 1)
    made = all_records(plan, pretended(lambda cell, step: by_rate.get(cell.setting.lr, 0.9), lost))
    *_, table, training = adaptive_tables.tables(evidence.results_in(made))
    ((_, lines),) = table.groups
    assert [line.entries[0].text for line in lines] == ["80.00", "60.00", "diverged"]
    assert training.groups[0].lines[0].entries[0] == MISSING  # of the pretended runs no loss is known
    (row,) = [
        line for line in adaptive_tables.in_short(made).splitlines() if line.startswith(f"| {OURS.name} ")
    ]
    assert "80.00" in row and "(diverged)" in row


def test_training_losses_at_the_end_are_means_over_seeds():
    def with_losses(record):
        points = [p._replace(train_loss=p.step / 1000 + record.cell.seed) for p in record.result.points]
        return dataclasses.replace(record, result=record.result._replace(points=tuple(points)))

    made = [with_losses(record) for record in studied()]
    table = adaptive_tables.tables(evidence.results_in(made))[-1]
    assert table.title == "Training loss at the end"
    rows = {name: lines[0].entries[0].text for name, lines in table.groups}
    assert rows[OURS.name] == rows[COSINE] == "2"


def test_of_a_text_less_is_better():
    results = evidence.results_in(studied(GPT))
    assert evidence.best_peer(results["shakespeare-gpt"], 1000) == COSINE
    table = next(table for table in adaptive_tables.tables(results) if table.title.startswith("Regret"))
    assert table.groups[0].lines[0].entries[0].text == "+0.0200 ± 0.0016"
    assert "validation loss in nats" in table.title


def test_the_picture_has_a_panel_for_each_task_and_leaves_out_what_diverged(tmp_path):
    made = [*studied(), *studied(TASKS["mnist-mlp"]), *studied(GPT)]
    drawn = adaptive_figure.figure(evidence.results_in(made))
    shown, (names,) = drawn.axes, drawn.legends
    assert [axes.get_title(loc="left").split(",")[0] for axes in shown] == [
        "digits-mlp",
        "mnist-mlp",
        "shakespeare-gpt",
    ]
    assert OURS.name in [text.get_text() for text in names.get_texts()]
    (ours,) = [line for line in shown[0].get_lines() if line.get_label() == OURS.name]
    assert list(ours.get_xdata()) == pytest.approx([rate / 1e-3 for rate in OURS.wide])
    assert list(ours.get_ydata())[3] == pytest.approx(80.0)
    low, high = shown[0].get_ylim()
    assert low < 80 < 82 < high


def test_names_stand_in_a_panel_that_is_left_over():
    tasks = (DIGITS, *(TASKS[name] for name in ("mnist-mlp", "fashion-mlp", "cifar10-mlp")), GPT)
    drawn = adaptive_figure.figure(evidence.results_in([r for task in tasks for r in studied(task)]))
    *shown, names = drawn.axes
    assert len(shown) == 5 and not names.axison and not drawn.legends
    assert OURS.name in [text.get_text() for text in names.get_legend().get_texts()]


# The command


def asked(**changes):
    return Run("adaptive", **changes)


def test_the_plans_of_the_command():
    made = plans(asked())
    assert [plan.task.name for plan in made] == list(adaptive.ADAPTIVE_TASKS)
    assert {(plan.steps, plan.seeds, plan.contenders) for plan in made} == {(10_000, 3, CONTENDERS)}
    (some,) = plans(
        asked(tasks=("cifar10-conv",), steps=3000, optimizers=("rllc-adamw", "adam, polynomial average"))
    )
    assert some.stops == (1000, 3000)
    assert {c.name for c in some.contenders} == {OURS.name, CONTROL, "Adam, polynomial average"}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"grid": "short"}, "leave out --grid short"),
        ({"optimizers": ("sgd",)}, "SGD has no part in adaptive"),
        ({"steps": 3001}, "multiple of 1000"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, said):
    with pytest.raises(Refused, match=said):
        plans(asked(**changes))


def test_a_search_makes_what_is_missing_and_only_that(tmp_path):
    out, plan = (
        Folder(str(tmp_path)),
        Adaptive(DIGITS, (TWO, dataclasses.replace(OURS, rates=(1e-3,))), 20, 2),
    )

    def once():
        with pool(1) as workers, making(workers, out, [plan], Console(quiet=True)) as maker:
            found = search(plan, lambda what, batch: maker.records(plan, what, batch))
            return found, workers.steps(), maker.total

    (found, steps, total), (again, nothing, _) = once(), once()
    assert found == again and nothing == 0 and steps == total == plan.training_steps()
    assert len(found[OURS.name, 20].records) == 2 and len(found["Adam", 20].tried) == 4


def test_the_command_has_nothing_to_do_where_all_is_there_and_prints_what_came_out(tmp_path, capsys):
    for record in studied():
        write(Folder(str(tmp_path)) / "records", record)
    console = Console(quiet=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}
    main(asked(tasks=("digits-mlp",), steps=1000, out=str(tmp_path), workers=1, device="cpu"), console)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()} == before
    results.print_table(Table(1, str(tmp_path), study="adaptive"), console)
    printed = capsys.readouterr().out
    assert (
        "**After 1,000 steps: test accuracy in %**" in printed and "- Against Adam + cosine, of 1" in printed
    )
    results.print_table(Table(1, str(tmp_path), study="adaptive", format="latex"), console)
    assert capsys.readouterr().out.count(r"\begin{table}") == 5
    results.draw_figure(Figure(6, str(tmp_path), tmp_path / "six.png"), console)
    assert (tmp_path / "six.png").stat().st_size > 10_000


def test_where_there_is_nothing_of_it_says_so():
    with pytest.raises(Refused, match="rllc run adaptive"):
        adaptive_tables.text([record for record in studied() if record.cell.setting == Adam(1e-3)])
