"""Workers give what the process itself gives, and failures are said in one line."""

import multiprocessing
import os

import pytest
from made import TWO_UNITS, cell

from rllc.lab import records
from rllc.lab import sweep as sweep_module
from rllc.lab.errors import Broken
from rllc.lab.sweep import missing, pool, sweep
from rllc.lab.training import train


def die(folder, cell):
    os._exit(1)


def test_a_worker_gives_the_same_bits_as_this_process(tmp_path):
    cells = [cell(TWO_UNITS, seed) for seed in (0, 1)]
    heard = []
    with pool(2) as workers:
        sweep(workers, tmp_path, cells, heard.append)
    for made in cells:
        assert records.read(tmp_path, made).result.points == train(made).points
    assert heard[-1] == 2 * 12  # steps
    assert heard == sorted(heard)


def test_a_killed_worker_and_a_full_disk_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "_run", die)
    with pytest.raises(Broken, match="worker process was killed"), pool(1) as workers:
        sweep(workers, tmp_path, [cell()])
    monkeypatch.undo()
    gone = tmp_path / "gone"
    with pytest.raises(Broken, match=r"cannot write a record to .*gone"), pool(1) as workers:
        sweep(workers, gone, [cell()])
    assert not multiprocessing.active_children()


def test_missing_are_those_without_a_readable_record(tmp_path):
    kept, damaged, absent = (cell(TWO_UNITS, seed) for seed in range(3))
    result = train(kept)
    records.save(tmp_path, kept, result)
    records.save(tmp_path, damaged, result).write_bytes(b"PAR1")
    said = []
    assert missing(tmp_path, [kept, damaged, absent, absent], said.append) == [damaged, absent]
    assert len(said) == 1 and str(records.path_of(tmp_path, damaged)) in said[0]
