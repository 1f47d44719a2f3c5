"""`rllc table`, `rllc figure`, `rllc report` and `rllc run`, through the command line."""

from dataclasses import replace

import pytest
from made_up import BENCHMARKS, FASHION, seeds
from PIL import Image

from rllc.lab import cli, records
from rllc.lab.cells import digest
from rllc.lab.files import Folder
from rllc.lab.options import Run
from rllc.lab.run import _next, plans
from rllc.lab.search import GRIDS
from rllc.lab.studies import PAPER_TASKS, STUDIES

MEMORIES = ("M(0.9)", "M(0.9) + M(0.0)")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of made-up runs of five optimizers on fashion-mlp, two seeds of each."""
    folder = tmp_path_factory.mktemp("runs")
    made = [
        r
        for name in (*BENCHMARKS, *MEMORIES)
        for r in seeds(name, [[0.1] + [0.8] * 49 + [0.87], [0.1] + [0.81] * 49 + [0.89]])
    ]
    Folder(str(folder)).write("all.parquet", records.pack(made))
    return str(folder)


def test_a_table_is_printed_and_nothing_else(runs, capsys):
    assert cli.main(["table", "2", runs, "--reading", "last", "--against", "paper"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "88.00 ± 1.41" in out
    assert "88.67 ± 0.15" in out  # the paper's momentum SGD
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * 11 and len(set(map(len, lines))) == 1


@pytest.mark.parametrize(
    "kind, starts", [("latex", "% needs"), ("html", "<figure"), ("markdown", "**Table 1")]
)
def test_a_table_comes_in_three_formats(runs, capsys, kind, starts):
    assert cli.main(["table", "1", runs, "--format", kind]) == 0
    assert capsys.readouterr().out.startswith(starts)


def test_a_damaged_file_is_left_out_and_named(runs, tmp_path, capsys):
    folder = Folder(str(tmp_path))
    folder.write("all.parquet", (Folder(runs)).read("all.parquet"))
    folder.write("torn.parquet", b"PAR1")
    assert cli.main(["table", "2", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "88.00" in out and err.count("\n") == 1 and "torn.parquet" in err and "left out" in err


def test_a_figure_is_written_in_the_format_of_its_name(runs, tmp_path, capsys):
    path = tmp_path / "bands.png"
    assert cli.main(["figure", "5", runs, "--out", str(path)]) == 0
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 600
    assert cli.main(["figure", "5", runs, "--out", str(tmp_path / "bands.pdf")]) == 0
    assert (tmp_path / "bands.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bands.pdf", "bands.png"]


def test_a_report_is_one_file(runs, tmp_path):
    path = tmp_path / "page.html"
    assert cli.main(["report", runs, "--out", str(path)]) == 0
    assert path.read_text().lower().startswith("<!doctype html>")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    "line, said",
    [
        ("table 1 nowhere", "there are no records in nowhere"),
        ("table 3 {runs}", "3"),
        ("table 1 {runs} --study units", "rllc run units"),
        ("table 1 {runs} --study controls", "rllc run controls"),
        ("table 1 {runs} --reading first", "--reading"),
        ("table 1 {runs} --study adaptive --reading last", "leave out --reading last"),
        ("figure 1 {runs}", "rllc run table1"),
        ("figure 3 {runs}", "cost.py"),
        ("figure 3 memory://costs", "memory://costs"),
        ("figure 5 {runs} --out picture.doc", "does not end in a format"),
        ("figure 5 {runs} --out missing/picture.png", "cannot write"),
        ("report nowhere", "there are no records in nowhere"),
        ("report {runs} --out missing/page.html", "cannot write"),
        ("report {runs} --out .", "cannot write . (. is a folder); choose another --out"),
        ("report {runs} --out /", "cannot write / (/ is a folder); choose another --out"),
        ("run tabel1", "did you mean table1?"),
        ("run table1 --tasks mnist", "unknown task 'mnist'"),
        ("run table1 --optimizers adma", "did you mean adam?"),
        ("run table1 --seeds 0", "--seeds must be 1 or more, got 0"),
        ("run table1 --time-limit 0", "--time-limit must be more than 0 minutes, got 0"),
        ("run table1 --time-limit nan", "--time-limit must be more than 0 minutes, got nan"),
        ("run table1 --grid wide", "--grid"),
        ("run units --out file/below", "cannot write to"),
        ("run units --out=", "--out has no name; choose a folder"),
        ("runs merge {runs} --out=", "no folder given; name those to merge"),
        ("run units --out memory://here", "ends with them; choose another --out"),
        ("runs list nowhere", "there are no records in nowhere"),
        ("runs tidy", "tidy"),
    ],
)
def test_refusals(line, said, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert cli.main(line.format(runs=runs).split()) == 2
    out, err = capsys.readouterr()
    assert said in err and err.startswith("rllc: ") and err.count("\n") == 1 and out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_brackets_in_names_are_no_markup(tmp_path, capsys):
    odd = Folder(str(tmp_path / "[/b]"))
    made = replace(seeds("SGD", [[0.5] * 51])[0], hardware="[/i] [red]x", versions={"[/u]": "1"})
    records.write(odd / "records", made)
    page = f"{odd.url}/[red].html"
    assert cli.main(["report", odd.url, "--out", page]) == 0
    assert page in "".join(capsys.readouterr().out.splitlines())
    assert cli.main(["runs", "show", odd.url, digest(made.cell)]) == 0
    shown = capsys.readouterr().out
    assert "[/i] [red]x" in shown and "[/u] 1" in shown
    assert cli.main(["runs", "list", odd.url]) == 0


def test_plans_are_the_studys_or_what_was_asked_for():
    everything = plans(Run("table1"))
    assert tuple(plan.task.name for plan in everything) == PAPER_TASKS
    assert {(plan.steps, plan.seeds, plan.rungs) for plan in everything} == {(10_000, 3, ())}
    assert sum(len(settings) for settings in everything[0].tried.values()) == 3 * 15 + 8 * 18
    (asked,) = plans(Run("table1", ("fashion-mlp",), ("adam", "M(.9)"), 1, 500, "short"))
    assert asked.task is FASHION and list(asked.tried) == ["Adam", "M(0.9)"]
    assert (asked.steps, asked.seeds, asked.rungs) == (500, 1, GRIDS["short"])
    assert plans(Run("units"))[0].steps == STUDIES["units"].steps == 3000


@pytest.mark.parametrize(
    "asked, said",
    [
        (Run("table1"), "rllc table 1 runs"),
        (Run("table1", ("fashion-mlp",), ("sgd", "muon")), "rllc table 1 runs"),
        (Run("table1", ("fashion-mlp",), ("muon",)), "rllc report runs"),
        (Run("controls"), "rllc table 1 runs --study controls"),
        (Run("adaptive"), "rllc table 1 runs --study adaptive"),
        (Run("adaptive", (), ("muon",)), "rllc report runs"),
        (Run("controls", out="my runs"), "rllc table 1 'my runs' --study controls"),
        (Run("adaptive", (), ("muon",), out="my runs"), "rllc report 'my runs'"),
    ],
)
def test_what_is_named_next_shows_what_was_made(asked, said):
    assert _next(asked, plans(asked)) == said


def test_a_small_study_from_run_to_table(tmp_path, capsys):
    few = ["--optimizers", "sgd", "M(0.9)", "--steps", "30", "--seeds", "2", "--workers", "1"]
    ask = ["run", "table1", "--tasks", "digits-mlp", *few, "--grid", "short", "--out", str(tmp_path)]
    assert cli.main(ask) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "not in table1: digits-mlp; see `rllc runs list` and `rllc report`"
    assert "everything has its record" in last and last.endswith(f" Next: rllc report {tmp_path}")
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    capsys.readouterr()
    assert len(list((tmp_path / "records").iterdir())) == 15 + 5 + 2 + 1 + 18 + 6 + 2 + 1
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())
    assert cli.main(["runs", "list", str(tmp_path)]) == 0
    assert "digits-mlp" in capsys.readouterr().out
