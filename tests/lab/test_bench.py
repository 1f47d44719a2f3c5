"""rllc bench in miniature: that everything is timed beside fused AdamW, counted as by hand, saved whole."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from rllc.lab import contenders
from rllc.lab.bench import Bench, main, tables
from rllc.lab.contenders import BASELINES, IMPLEMENTATIONS, LISTS, WITH_A_LAW, words
from rllc.lab.errors import Broken, Refused
from rllc.lab.evidence import bench_table
from rllc.lab.rounds import ALONE, STEP, Contender, Effort, quartiles, race

MEMORIES = ("M(0.9)", "M(0.9) + M(0.0)")
MLP = 3072 * 128 + 128 + 2 * (128 * 128 + 128) + 128 * 10 + 10


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What the command has printed and saved."""
    out, console = tmp_path_factory.mktemp("bench") / "bench.json", Console(width=140, record=True)
    before = torch.get_num_threads()
    main(Bench(("mlp", "flat"), ("M(.9)", "M(.9)+M(0)"), out=out, quick=True, threads=1), console)
    torch.set_num_threads(before)
    return console.export_text(), json.loads(out.read_text())


def rows(saved, place):
    """Of a list, alone or in training."""
    found = [row for row in saved["timings"] if (row["list"], row["what"]) == place]
    return {(row["optimizer"], row["implementation"]): row for row in found}


@pytest.mark.parametrize("what", [("mlp", ALONE), ("mlp", STEP), ("flat", ALONE)])
def test_every_optimizer_is_timed_once_in_every_implementation(done, what):
    text, saved = done
    found = rows(saved, what)
    absent = [line.split(" is left out")[0] for line in text.splitlines() if " is left out" in line]
    memories = ((memory, how) for memory in MEMORIES for how in IMPLEMENTATIONS)
    wanted = {*BASELINES, *WITH_A_LAW, *memories}
    assert set(found) == {kind for kind in wanted if " ".join(kind) not in absent}
    assert len(saved["timings"]) == 3 * len(found)
    for row in found.values():
        assert row["rounds"] == 3
        assert row["parameters"] == (MLP if what[0] == "mlp" else 100_000)
        assert row["tensors"] == (8 if what[0] == "mlp" else 1)
        for name in ("ms", "ratio", "floor"):
            assert 0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"] < 1e4
    assert set(found["AdamW", "fused"]["ratio"].values()) == {1.0}


def test_bytes_of_state_are_those_of_the_units(done):
    found = rows(done[1], ("flat", ALONE))
    units = {"AdamW": 2, "SGD, momentum": 1, "M(0.9)": 1, "M(0.9) + M(0.0)": 2}
    units |= {"RLLCAdamW": 3, "RLLCAdamW, no average": 2}
    for (optimizer, _), row in found.items():
        assert row["state_bytes"] == pytest.approx(4 * units[optimizer], rel=1e-3)


def test_what_is_called_fused_takes_no_extra_memory(done):
    extra = {kind: row["extra_bytes"] for kind, row in rows(done[1], ("flat", ALONE)).items()}
    assert all(extra[memory, "fused"] < 0.1 < extra[memory, "foreach"] for memory in MEMORIES)


def test_gpt2_is_trained_with_its_head_tied():
    net, text, following = contenders.TRAINED["gpt2"](
        "gpt2", contenders.Setting("cpu", 1, True, torch.float32, None)
    )
    assert text.shape == following.shape == (1, 128)
    embeddings = 256 * 768 + 128 * 768
    shapes = LISTS["gpt2"](True)
    assert sum(p.numel() for p in net.parameters()) == embeddings + sum(map(math.prod, shapes))
    contenders._loss("gpt2", "cpu", net, text, following).backward()
    assert {p.grad.dtype for p in net.parameters()} == {torch.float32}


def test_extra_bytes_are_what_a_step_allocates_at_once():
    x, scalars = torch.ones(1000), 64
    for step, most in (
        (lambda: x.mul_(2), 0),
        (lambda: [x + 1, None][1], 4000),
        (lambda: (x + 1) * (x + 2), 12000),
        (lambda: [x + 1, x + 2], 8000),
    ):
        assert contenders._extra_bytes(step, x.device) == pytest.approx(most, abs=scalars)


def test_the_table_says_what_was_measured(done):
    text, saved = done
    assert f"mlp, optimizer alone: {MLP:,} parameters in 8 tensors" in text
    assert "flat, optimizer alone: 100,000 parameters in 1 tensors" in text
    line = next(line for line in text.splitlines() if "M(0.9) + M(0.0)" in line).split()
    row = rows(saved, ("mlp", ALONE))["M(0.9) + M(0.0)", line[3]]
    assert line[4] == f"{row['ms']['median']:.3g}"
    assert float(line[5]) == pytest.approx(row["ratio"]["median"], rel=0.005)
    assert line[7:9] == ["9", f"{100 * row['floor']['median']:.0f}"]


def test_docs_quote_the_records_of_a_gpu():
    """docs/speed.md's table, number by number."""
    root = Path(__file__).parents[2]
    timings = json.loads((root / "results/h200/gpt2.json").read_text())["timings"]
    known = {(t["optimizer"], t["implementation"]): t for t in timings}
    rows = [line.split(" | ") for line in (root / "docs/speed.md").read_text().splitlines() if " % |" in line]
    names = {"AdamW, fused": "AdamW", "SGD with momentum, fused": "SGD, momentum"}
    for name, count, *numbers in ([cell.strip("| ") for cell in row] for row in rows):
        both = (known[names.get(name, name), how] for how in ("fused", "fused, graph"))
        wanted = [
            (
                f"{t['ms']['median']:#.3g}",
                f"{t['ratio']['median']:.2f}",
                f"{100 * t['floor']['median']:.0f} %",
            )
            for t in both
            if t["words"] == int(count)
        ]
        assert numbers == [*wanted[0], *wanted[1]]
    assert len(rows) == 5
    [t] = [
        t
        for t in json.loads((root / "results/h200/gpt2-training.json").read_text())["timings"]
        if (t["optimizer"], t["implementation"]) == ("M(0.9) + M(0.0)", "fused")
    ]
    assert [round(t["ratio"][name], 2) for name in ("median", "low", "high")] == [0.99, 0.97, 1.0]


@pytest.mark.parametrize("alone", [False, True])
def test_training_steps_may_be_left_out(alone, monkeypatch):
    places = []
    for place in ("_alone", "_training"):
        monkeypatch.setattr(contenders, place, lambda *_, place=place: places.append(place) or [])
    setting = contenders.Setting("cpu", 1, True, torch.float32, Console(quiet=True))
    assert contenders.measure("mlp", (), setting, alone=alone) == []
    assert dict.fromkeys(places) == dict.fromkeys(["_alone"] if alone else ["_alone", "_training"])


def test_the_table_of_docs_puts_threads_below_one_another(done, tmp_path):
    saved = done[1]
    for threads in (2, 1):
        (tmp_path / f"{threads}.json").write_text(json.dumps(saved | {"threads": threads}))
    found = bench_table.table(tmp_path)
    assert found.columns == ("mlp, optimizer alone", "flat, optimizer alone", "mlp, training step")
    lines = {group.name: group.lines for group in found.groups}
    names = ["AdamW", "AdamW, foreach", "RLLCAdamW", "RLLCAdamW, foreach", "M(0.9) + M(0.0)"]
    assert set(names) <= set(lines)
    assert [line.label for line in lines["RLLCAdamW"]] == ["1 thread", "2 threads"]
    alone, step = (rows(saved, ("mlp", what)) for what in (ALONE, STEP))
    first, *_, last = lines["RLLCAdamW"][0].entries
    for entry, place in ((first, alone), (last, step)):
        low, median, high = (place["RLLCAdamW", "fastest"]["ratio"][q] for q in ("low", "median", "high"))
        assert entry == (f"{median:.2f}", "", False, f"({low:.2f}, {high:.2f})")
    assert lines["AdamW"][1].entries[0].text == f"{alone['AdamW', 'fused']['ms']['median']:.3g} ms"
    assert saved["hardware"] in found.notes[-1]


def test_the_table_of_docs_is_of_several_records_of_other_lists(done, tmp_path):
    (tmp_path / "all.json").write_text(json.dumps(done[1]))
    at_once = bench_table.table(tmp_path)
    timings = done[1]["timings"]
    for name in ("mlp", "flat"):
        own = done[1] | {"timings": [t for t in timings if t["list"] == name]}
        (tmp_path / f"{name}.json").write_text(json.dumps(own))
    (tmp_path / "all.json").unlink()
    assert set(bench_table.table(tmp_path).columns) == set(at_once.columns)


@pytest.mark.parametrize(
    ("names", "message"), [((), "no record"), (("a", "b"), "two records .* of flat, mlp")]
)
def test_the_table_of_docs_wants_one_record_of_a_list_and_number_of_threads(done, tmp_path, names, message):
    for name in names:
        (tmp_path / f"{name}.json").write_text(json.dumps(done[1]))
    with pytest.raises(ValueError, match=message):
        bench_table.table(tmp_path)


def test_the_record_says_with_what(done):
    saved = done[1]
    assert saved["versions"]["torch"] == torch.__version__
    assert (saved["device"], saved["threads"], saved["quick"]) == ("cpu", 1, True)
    assert saved["hardware"] and saved["made"]


@pytest.mark.parametrize(
    ("optimizer", "count"),
    [
        ("AdamW", 7),
        ("SGD, momentum", 5),
        ("RLLCAdamW", 12),  # AdamW's, and m, v, g for the sums, and θ̄ twice
        ("RLLCAdamW, no average", 10),
        ("M(0.9)", 7),
        ("M(0.9) + M(0)", 9),  # the gradient is not read twice
        ("M_2(0)", 9),  # the second unit is nobody's source
        ("M(0.9) + M_2(0.6)", 13),
        ("M(0.9) + M(0) + M_2(0.6)", 15),
    ],
)
def test_words(optimizer, count):
    assert words(optimizer) == count


def test_lists_have_as_many_parameters_as_their_networks():
    sizes = {name: sum(map(math.prod, shapes(False))) for name, shapes in LISTS.items()}
    assert sizes == {"mlp": MLP, "resnet20": 269_722, "gpt2": 124_439_808, "flat": 10_000_000}
    assert len(LISTS["gpt2"](False)) == 148
    assert sum(map(math.prod, LISTS["gpt2"](True))) == 7_089_408


def test_the_floor_is_what_moving_the_words_takes():
    """A contender that only adds has a step of 100 % of it, about."""
    size = 1 << 22
    a, b = torch.ones(size), torch.ones(size)
    ours = {"ours": Contender(lambda steps: [b.add_(a) for _ in range(steps)])}
    ms = race(ours | contenders._floors(size, "cpu"), Effort(9, 1), "a race")
    speed = np.max([moved * size / ms[which] for which, moved in contenders.MOVED.items()], axis=0)
    assert quartiles(3 * size / speed / ms["ours"]).median == pytest.approx(1, rel=0.5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lists": ("gpt3",)}, "unknown list 'gpt3'; did you mean gpt2?"),
        ({"memories": ("M(2)",)}, r"2"),
        ({"rounds": 0}, "--rounds must be 1 or more, got 0"),
        ({"threads": -1}, "--threads must be 1 or more"),
        ({"out": "nowhere/bench.json"}, "no folder"),
    ],
)
def test_refusals(tmp_path, options, text):
    options = {"out": tmp_path / "b.json"} | options
    if isinstance(options["out"], str):
        options["out"] = tmp_path / options["out"]
    with pytest.raises(Refused, match=text):
        main(Bench(**options), Console(quiet=True))
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr(contenders, "measure", lambda *_, alone: [])
    with pytest.raises(Broken, match=r"b\.json \(No space left on device\); choose another"):
        main(Bench(lists=("mlp",), out=tmp_path / "b.json"), Console(quiet=True))
    assert not list(tmp_path.iterdir())


def test_no_timings_no_tables():
    assert tables([]) == []
