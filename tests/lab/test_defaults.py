"""benchmarks/defaults.py in miniature: its runs, its records and its table."""

import sys
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
from made import unpadded

from rllc.lab import sweep
from rllc.lab.files import Folder

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import defaults


class Here:
    """A pool that runs in this process, and counts the runs."""

    def __init__(self, ran):
        self.ran = ran

    def submit(self, out, cell):
        self.ran.append(cell)
        future = Future()
        future.set_result(sweep.finish(out, cell, lambda steps: None, lambda: False))
        return future

    def steps(self):
        return 0


@pytest.fixture
def ran(monkeypatch):
    """The runs that were made, one pair of rates, one eps and one memory being all there is."""
    made = []

    @contextmanager
    def pool(workers):
        yield Here(made)

    monkeypatch.setattr(sweep, "pool", pool)
    monkeypatch.setattr(defaults, "STEPS", {"digits-mlp": 4})
    monkeypatch.setattr(defaults, "MEMORIES", ("M(0.9) + M(0.0)",))
    monkeypatch.setattr(defaults, "RATES", ((0.1, 0.01),))
    monkeypatch.setattr(defaults, "EPS", (1.0,))
    return made


def test_what_is_missing_is_run_once_and_the_table_has_every_variant(tmp_path, ran, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["defaults.py", "--out", str(tmp_path), "--workers", "1"])
    defaults.main()
    wanted = defaults.every_cell()
    assert ran == wanted and len(wanted) == 1 + 3
    assert len((Folder(str(tmp_path)) / "records").names(".parquet")) == len(wanted)
    text = (tmp_path / "defaults.md").read_text()
    assert text == capsys.readouterr().out[-len(text) :]
    rows = [row.split(" | ")[0] for row in unpadded(text).splitlines() if " = " in row.split(" | ")[0]]
    assert [row.removeprefix("| ") for row in rows] == list(defaults.variants("M(0.9) + M(0.0)"))
    defaults.main()
    assert ran == wanted and (tmp_path / "defaults.md").read_text() == text


def test_a_run_that_has_no_room_is_no_row(tmp_path, ran, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["defaults.py", "--out", str(tmp_path)])
    monkeypatch.setattr(sweep, "finish", lambda out, cell, *rest: sweep.Outcome(False, "no memory"))
    with pytest.raises(SystemExit, match="4 runs ran out of memory"):
        defaults.main()
    assert not (tmp_path / "defaults.md").exists()
