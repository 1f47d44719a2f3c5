"""benchmarks/cost.py in miniature, and that text and picture say what was measured."""

import importlib.util
import itertools
import re
from pathlib import Path

import jax.numpy as jnp
import pyarrow.parquet as pq
import pytest

from rllc.lab.errors import Damaged, Refused
from rllc.lab.evidence import cost
from rllc.lab.evidence.timings import FILE, Cost, read, save
from rllc.lab.evidence.verdicts import HOLDS, NOT, PARTLY
from rllc.lab.files import Folder
from rllc.lab.rounds import ALONE, STEP, Quartiles
from rllc.lab.tasks import TASKS

ROOT = Path(__file__).parent.parent
OPTIMIZERS = ("momentum SGD", "Adam", "Adam, fused", "M(0.9)")
MLP = TASKS["cifar10-mlp"]
LAYERS = tuple(itertools.pairwise((3072, 128, 128, 128, 10)))


@pytest.fixture(scope="module")
def benchmark():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("benchmark_of_cost", ROOT / "benchmarks" / "cost.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(benchmark):
    efforts = {STEP: benchmark.Effort(2, 1), ALONE: benchmark.Effort(3, 2)}
    return benchmark.measure(MLP, efforts, OPTIMIZERS)


@pytest.fixture(scope="module")
def folder(measured, tmp_path_factory):
    place = Folder(str(tmp_path_factory.mktemp("cost")))
    save(place, measured)
    return place


def made_up(task, optimizer, ratio, flops):
    """The three rows of an optimizer on a network of 10 parameters and 1,000 FLOPs; 10 ms with Adam."""
    shared = (Quartiles(ratio - 0.1, ratio, ratio + 0.1),)
    made = ("2025-01-01", {"torch": "2"}, None, "a machine")

    def row(what, framework, ms, counted, seconds=None):
        spread = Quartiles(ms, ms, ms)
        return Cost(what, task, optimizer, framework, 10, 128, 5, 1, spread, *shared, counted, seconds, *made)

    alone = row(ALONE, "torch", ratio, None), row(ALONE, "jax", ratio, flops, 0.5)
    return [row(STEP, "torch", 10 * ratio, 1000.0), *alone]


def three_networks():
    """One where RLLC is level in both, one where only the smaller memory is, one where none is."""
    ratios = {"a": (1.0, 1.1), "b": (1.05, 1.2), "c": (1.2, 1.3)}
    flops = {"a": (100, 110), "b": (200, 400), "c": (300, 900)}
    return [
        row
        for task in ratios
        for name, ratio, count in (
            ("momentum SGD", 0.8, 40),
            ("Adam", 1.0, 100),
            ("M(0.9)", ratios[task][0], flops[task][0]),
            ("M_2(0.6)", ratios[task][1], flops[task][1]),
        )
        for row in made_up(task, name, ratio, count)
    ]


def test_every_optimizer_is_measured_in_both_frameworks_and_beside_adam(measured):
    kinds = [(cost.what, cost.framework, cost.optimizer) for cost in measured]
    in_jax = [name for name in OPTIMIZERS if name != "Adam, fused"]
    assert kinds == [
        *((what, "torch", name) for what in (STEP, ALONE) for name in OPTIMIZERS),
        *((ALONE, "jax", name) for name in in_jax),
    ]
    for row in measured:
        assert 0 < row.ms.low <= row.ms.median <= row.ms.high < 10_000
        assert 0 < row.ratio.low <= row.ratio.median <= row.ratio.high
        assert (row.rounds, row.steps) == ((2, 1) if row.what == STEP else (3, 2))
        assert row.parameters == sum(a * b + b for a, b in LAYERS)
        if row.optimizer == "Adam":
            assert row.ratio == (1, 1, 1)


def test_flops_of_updates_are_those_counted_by_hand(benchmark, measured):
    shapes = ((7, 3), (5,))
    # θ - lr g: a product and a sum. Momentum has one of each more.
    assert benchmark.updating("SGD", shapes).flops == 2 * 26
    assert benchmark.updating("momentum SGD", shapes).flops == 4 * 26
    found = {row.optimizer: row.flops / row.parameters for row in measured if row.framework == "jax"}
    # m: 3, v: 4, their corrections: 2, root, eps and quotient: 3, step: 2; and a few for the count of steps
    assert found["Adam"] == pytest.approx(14, abs=0.01)
    # At least mᵀm, mᵀg, gᵀg, β m + g and θ - lr L m at 2 each.
    assert 10 < found["M(0.9)"] < 40


def test_flops_of_the_network_are_those_counted_by_hand(benchmark):
    products = [2 * MLP.batch * a * b for a, b in LAYERS]
    # Each product has one backward for its weights and one for its inputs, but images need no gradient.
    assert benchmark.network_flops(MLP) == 3 * sum(products) - products[0]


def test_rounds_run_everything_once_in_an_order_that_changes(benchmark):
    calls = []
    contenders = {
        name: benchmark.Contender(lambda steps, name=name: calls.append((name, steps))) for name in "abcd"
    }
    times = benchmark.race(contenders, benchmark.Effort(8, 3), "a race")
    assert all(ms.shape == (8,) and (ms > 0).all() for ms in times.values())
    first, turns = calls[:4], calls[4:]  # what is only made in a first step is not in a round
    assert first == [(name, 3) for name in "abcd"]
    # A turn's first step finds in the caches what another contender has left there, and is not timed.
    assert turns[::2] == [(name, 1) for name, _ in turns[1::2]]
    rounds = [tuple(turns[i + 1 : i + 8 : 2]) for i in range(0, len(turns), 8)]
    assert len(rounds) == 8 and len(set(rounds)) > 4
    assert all(sorted(order) == [(name, 3) for name in "abcd"] for order in rounds)


def test_of_a_single_step_there_is_none_before(benchmark):
    calls = []
    benchmark.race({"a": benchmark.Contender(calls.append)}, benchmark.Effort(2, 1), "a race")
    assert calls == [1, 1, 1]


def test_what_no_cache_holds_needs_no_step_before(benchmark):
    calls = []
    large = benchmark.Contender(calls.append, cached=False)
    benchmark.race({"large": large}, benchmark.Effort(2, 3), "a race")
    assert calls == [3, 3, 3]


def test_a_step_in_jax_is_a_step(benchmark):
    tx = benchmark.transformation("SGD")
    params, gradient = [jnp.ones(3)], [jnp.full(3, 2.0)]
    update = benchmark.compiled(tx, gradient, tx.init(params), params)
    stepped, _ = update(gradient, tx.init(params), params)
    assert stepped[0].tolist() == pytest.approx([1 - 2 * benchmark.LR] * 3, abs=1e-7)


def test_what_is_read_is_what_was_saved(measured, folder):
    assert read(folder) == measured


def test_the_tables_numbers_are_those_of_the_file(folder):
    (table,) = cost.tables(read(folder))
    lines = {group.name: [entry.text for entry in group.lines[0].entries] for group in table.groups}
    assert list(lines) == list(OPTIMIZERS)
    rows = pq.read_table(folder.path(FILE)).to_pylist()
    network = next(row["flops"] for row in rows if row["what"] == STEP)
    places = {(STEP, "torch"): 0, (ALONE, "torch"): 2, (ALONE, "jax"): 4}
    for row in rows:
        texts, place = lines[row["optimizer"]], places[row["what"], row["framework"]]
        assert texts[place] == f"{row['ms']['median']:.3g}"
        assert texts[place + 1] == f"{row['ratio']['median']:.2f}"
        if row["framework"] == "jax":
            assert texts[6] == f"{row['flops'] / row['parameters']:.0f}"
            assert texts[7] == f"{100 * row['flops'] / network:.2g}"
    assert lines["Adam, fused"][4:] == ["–"] * 4


def test_verdicts_are_decided_by_their_rules():
    costs = three_networks()
    by_task = {task: [row for row in costs if row.task == task] for task in "abc"}
    words = {task: [v.verdict for v in cost.verdicts(rows)] for task, rows in by_task.items()}
    # As many units: beside momentum SGD, 0.8, one unit is at 1.25, 1.31 and 1.5; two at 1.1, 1.2, 1.3.
    assert words == {"a": [HOLDS, HOLDS, PARTLY], "b": [PARTLY, PARTLY, NOT], "c": [NOT, NOT, NOT]}
    assert [v.verdict for v in cost.verdicts(costs)] == [PARTLY] * 3


def test_verdicts_say_the_numbers():
    clock, flops, units = (verdict.text for verdict in cost.verdicts(three_networks()))
    assert "On b a step takes 1.05 (M(0.9)) to 1.20 (M_2(0.6)) times (1 of 2 at most 1.1) as long" in clock
    assert "1.1 to 1.2 times Adam's time in PyTorch, where it is 10 to 10 % of the step" in clock
    # (1000 + 300) / (1000 + 100) and (1000 + 900) / (1000 + 100)
    assert "On c a step has 1.18 (M(0.9)) to 1.73 (M_2(0.6)) times (0 of 2 at most 1.1) Adam's FLOPs" in flops
    assert "the update has 30 to 90 a parameter, Adam's 10" in flops
    assert "On a a step takes 1.25 (M(0.9)) times as long as with momentum SGD" in units


def test_the_text_has_a_table_for_each_network_and_how_it_was_made():
    text = cost.markdown(three_networks())
    assert re.findall(r"\*\*(\w): 10 parameters, 0 MFLOPs for a batch of 128\*\*", text) == ["a", "b", "c"]
    assert "c: 5 rounds of 1 training steps, 5 of 1 alone." in text
    assert "Made 2025-01-01 on a machine; torch 2." in text


def test_the_bars_are_as_long_as_the_steps():
    above = cost.drawn(three_networks()).axes[1]
    assert above.get_title(loc="left") == "b"
    ends = [bar.get_x() + bar.get_width() for bar in above.patches]
    # The whole step, and on top of it the optimizer alone, which ends where the step ends.
    assert ends == pytest.approx([8.0, 8.0, 10.0, 10.0, 10.5, 10.5, 12.0, 12.0])
    assert above.patches[-1].get_width() == pytest.approx(1.2)
    assert [text.get_text().split()[-1] for text in above.texts] == ["0.80", "1.00", "1.05", "1.20"]


def test_figure_reads_the_folder(folder):
    assert len(cost.figure(folder.url).axes) == 2


def test_no_timings_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(Refused, match=r"no timings .*benchmarks/cost.py --out"):
        cost.figure(tmp_path)


def test_records_of_runs_are_no_timings(tmp_path):
    with pytest.raises(Refused, match="holds runs, and this is made from timings of a step: rllc figure 3"):
        read(Folder(str(tmp_path / "paper.parquet")))


def test_a_damaged_file_is_named(folder, tmp_path):
    content = folder.read(FILE)
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(Damaged, match=f"{FILE} is damaged"):
        cost.figure(tmp_path)
