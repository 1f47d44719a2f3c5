"""`rllc compare` from end to end in miniature, and the arithmetic of its table."""

import dataclasses
import io
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made import DIGITS, TWO_UNITS, record
from PIL import Image
from rich.console import Console

from rllc.lab import cli, files, records
from rllc.lab.compare import COLUMNS, _rich_table, notes, plan, table
from rllc.lab.errors import Refused
from rllc.lab.files import Folder
from rllc.lab.optimizers import DEFAULTS
from rllc.lab.options import Compare
from rllc.lab.selection import Row, best_point, choose
from rllc.lab.settings import SGD
from rllc.lab.training import train

MINIATURE = ["compare", "digits-mlp", "--steps", "40", "--seeds", "2", "--workers", "2", "--out"]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """The folder of a finished comparison."""
    folder = tmp_path_factory.mktemp("compare")
    assert cli.main([*MINIATURE, str(folder)]) == 0
    return folder


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "records").iterdir()}


def rows_of(folder):
    lines = (folder / "compare-digits-mlp.md").read_text().splitlines()
    return [
        tuple(part.strip() for part in line.strip("|").split("|")) for line in lines if line.startswith("|")
    ]


def test_it_leaves_a_table_a_picture_and_all_records(miniature):
    rows = rows_of(miniature)
    assert rows[0] == COLUMNS
    assert [row[0] for row in rows[2:]] == list(DEFAULTS)
    with Image.open(miniature / "compare-digits-mlp.png") as picture:
        assert picture.width > 1200 and len(picture.getcolors(1 << 24)) > 100
    # Six trials and one further seed for each but RLLC-AdamW, which has one trial.
    assert len(stamps(miniature)) == 6 * (6 + 1) + 2
    assert sorted(path.name for path in miniature.iterdir()) == [
        "compare-digits-mlp.md",
        "compare-digits-mlp.png",
        "records",
    ]


def test_the_table_is_made_from_the_records(miniature):
    asked = plan(Compare("digits-mlp", seeds=2, steps=40, out=miniature))
    folder = Folder(str(miniature / "records"))
    for texts in rows_of(miniature)[2:]:
        tried = [records.read(folder, asked.cell(s, 0)) for s in asked.tried[texts[0]]]
        best = choose(tried).cell.setting
        assert texts[1].rstrip("*") == f"{best.rates[0]:g}"
        ends = [records.read(folder, asked.cell(best, seed)) for seed in range(2)]
        there = [100 * best_point(r).test_accuracy for r in ends]
        assert texts[6] == f"{statistics.mean(there):.2f} ± {statistics.stdev(there):.2f}"


def test_a_second_run_trains_nothing_and_says_the_same(miniature, capsys):
    before, rows = stamps(miniature), rows_of(miniature)
    assert cli.main([*MINIATURE, str(miniature)]) == 0
    assert stamps(miniature) == before
    assert rows_of(miniature) == rows
    assert all(row[4] in capsys.readouterr().out for row in rows[2:3])


def test_a_damaged_record_is_reported_and_made_again(miniature, capsys):
    before, rows = stamps(miniature), rows_of(miniature)
    victim = miniature / "records" / min(before)
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    assert cli.main([*MINIATURE, str(miniature)]) == 0
    out = capsys.readouterr().out.replace("\n", "")
    assert victim.name in out and "made again" in out
    after = stamps(miniature)
    assert {name for name in before if before[name] != after[name]} == {victim.name}
    assert [row[:7] for row in rows_of(miniature)] == [row[:7] for row in rows]  # times may differ


def test_fresh_makes_every_record_again(tmp_path):
    small = ["--optimizers", "sgd", "M(0.5)", "--lr", "0.1", "--seeds", "2", "--steps", "10"]
    ask = ["compare", "digits-mlp", *small, "--workers", "1", "--out", str(tmp_path)]
    asked = plan(Compare("digits-mlp", ("sgd", "M(0.5)"), lr=(0.1,), seeds=2, steps=10, out=tmp_path))
    for made in [
        asked.cell(s, seed) for settings in asked.tried.values() for s in settings for seed in (0, 1)
    ]:
        records.save(Folder(str(tmp_path / "records")), made, train(made))
    before = stamps(tmp_path)
    assert cli.main(ask) == 0
    assert stamps(tmp_path) == before
    rows = rows_of(tmp_path)
    assert cli.main([*ask, "--fresh"]) == 0
    assert stamps(tmp_path).keys() == before.keys()
    assert not stamps(tmp_path).items() & before.items()
    assert [row[:7] for row in rows_of(tmp_path)] == [row[:7] for row in rows]


@pytest.mark.parametrize("full", ["compare-digits-mlp.png", "compare-digits-mlp.md"])
def test_a_disk_that_is_full_at_the_end_costs_one_line(miniature, tmp_path, monkeypatch, capsys, full):
    shutil.copytree(miniature / "records", tmp_path / "records")

    def replace(partial, path):
        if Path(path).name == full:
            raise OSError(28, "No space left on device")
        os.rename(partial, path)

    monkeypatch.setattr(files.os, "replace", replace)
    assert cli.main([*MINIATURE, str(tmp_path)]) == 1
    line = f"rllc: cannot write {tmp_path / full} (No space left on device); choose another --out\n"
    assert capsys.readouterr().err == line
    assert not (tmp_path / full).exists() and not list(tmp_path.glob(".*"))


# A test run in the background ignores SIGINT, and a child inherits that.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from rllc.lab import cli
sys.exit(cli.main())
"""


def test_ctrl_c_keeps_finished_runs_and_ends_the_workers(tmp_path):
    ask = [sys.executable, "-c", INTERRUPTIBLE, *MINIATURE, str(tmp_path), "--steps", "400"]
    process = subprocess.Popen(ask, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 180  # of a busy machine, where two processes import torch beside others
    while not list(tmp_path.glob("records/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)  # ends only when no worker holds the pipe
    assert process.returncode == 130
    assert err.strip() == "rllc: stopped; finished runs are kept, the same command goes on from there"
    kept = list((tmp_path / "records").iterdir())
    assert 0 < len(kept) < 36
    assert not (tmp_path / "compare-digits-mlp.png").exists()


def three_seeds(setting, lost=0):
    made = [
        record([0.1, v], test=[0.1, v - 0.1], setting=setting, seed=i) for i, v in enumerate((0.8, 0.9, 0.7))
    ]
    gone = [record([0.1, 0.2], setting=setting, seed=9, diverged_at=10)] * lost
    return tuple(made + gone)


def row(setting, tried=None, name="SGD", **changes):
    made = three_seeds(setting, **changes)
    return Row(name, tried or (setting,), made, tried or (setting,))


def test_numbers_are_mean_and_standard_deviation_in_percent():
    (texts,) = table([row(SGD(0.1))])
    assert texts == ("SGD", "0.1", "", *["80.00 ± 10.00", "70.00 ± 10.00"] * 2, "1.50")


def test_diverged_runs_are_counted_and_left_out_of_the_mean():
    tried = SGD(0.1), SGD(1.0)
    lost, none = table([row(SGD(0.1), tried, lost=1), Row("Adam", tried, (), tried)])
    assert lost[0] == "SGD (1 of 4 seeds diverged)"
    assert lost[3] == "80.00 ± 10.00"
    assert none == ("Adam", "all", "", "diverged", "", "", "", "")


def test_a_rate_at_the_edge_of_its_grid_is_marked_and_explained():
    asked = plan(Compare("digits-mlp"))
    tried = SGD(0.1), SGD(0.2), SGD(0.3)
    inside, edge = (row(SGD(lr), tried) for lr in (0.2, 0.3))
    assert [table([row])[0][1] for row in (inside, edge)] == ["0.2", "0.3*"]
    assert "wider grid" in notes(asked, [edge], 2) and "wider grid" not in notes(asked, [inside], 2)
    laws = tuple(dataclasses.replace(TWO_UNITS, law_lr=lr) for lr in (0.001, 0.003, 0.01))
    low, middle = (row(law, laws) for law in laws[:2])
    assert [table([row])[0][1:3] for row in (low, middle)] == [("0.01", "0.001*"), ("0.01", "0.003")]
    assert "wider grid" in notes(asked, [low], 2) and "wider grid" not in notes(asked, [middle], 2)


def test_a_memory_shows_its_law_rate_and_one_seed_has_no_deviation():
    made = row(TWO_UNITS, name=TWO_UNITS.memory)
    (texts,) = table([made._replace(records=made.records[:1])])
    assert texts[2:4] == (f"{TWO_UNITS.law_lr:g}", "80.00")


@pytest.mark.parametrize("width", [80, 120])
def test_a_narrow_terminal_shows_every_name_and_number(miniature, width):
    asked = plan(Compare("digits-mlp", seeds=2, steps=40, out=miniature))
    tried = [record([0.1, 0.5, 0.61], setting=TWO_UNITS, seed=seed) for seed in (0, 1)]
    row = Row("M(0.9) + M(0.0) + M_2(0.6)", (TWO_UNITS,), tuple(tried), (TWO_UNITS,))
    console = Console(width=width, file=io.StringIO())
    console.print(_rich_table(asked, [row], width))
    lines = console.file.getvalue().splitlines()
    words = " ".join(lines).split()
    for text in (*" ".join(table([row])[0]).split(), *" ".join(COLUMNS).split()):
        assert text in words
    assert max(map(len, lines)) <= width


def test_a_plan_has_everything_resolved():
    asked = plan(Compare("digits-mlp", optimizers=("adam", "Adam", "M(.9)"), lr=(0.1, 0.1)))
    assert {name: len(settings) for name, settings in asked.tried.items()} == {"Adam": 1, "M(0.9)": 1}
    assert (asked.steps, asked.seeds, asked.rungs) == (DIGITS.steps, 3, ())
    assert asked.device in ("cpu", "cuda")


@pytest.mark.parametrize("out", ["file:///tmp/here", "memory://here", "s3://bucket/runs"])
def test_a_folder_where_no_picture_can_be_written_is_refused_before_training(out):
    with pytest.raises(Refused, match="pictures need a folder of this machine"):
        plan(Compare("digits-mlp", out=Path(out)))


def test_records_and_picture_go_to_the_same_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    few = "compare digits-mlp --optimizers sgd --lr 0.1 --seeds 1 --steps 10 --workers 1 --out ~/here"
    assert cli.main(few.split()) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"here"}
    assert {path.suffix for path in (tmp_path / "here").iterdir()} == {"", ".png", ".md"}
