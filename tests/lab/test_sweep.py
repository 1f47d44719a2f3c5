"""Workers give what the process itself gives, and failures are said in one line."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from made import TWO_UNITS, cell

from rllc.lab import checkpoints, records, training
from rllc.lab import sweep as sweep_module
from rllc.lab.cells import digest
from rllc.lab.errors import Broken, OutOfTime
from rllc.lab.files import Folder
from rllc.lab.settings import SGD
from rllc.lab.sweep import kept, pool, sweep
from rllc.lab.training import train


def die(out, cell):
    os._exit(1)


def test_workers_have_the_environment_of_their_pool(monkeypatch):
    for value in ("one", "two"):  # the process that they are forked from has that of the first
        monkeypatch.setenv("RLLC_TEST", value)
        with pool(1) as workers:
            assert workers._executor.submit(os.getenv, "RLLC_TEST").result() == value


def test_a_worker_gives_the_same_bits_as_this_process(tmp_path):
    cells = [cell(TWO_UNITS, seed) for seed in (0, 1)]
    out, heard = Folder(str(tmp_path)), []
    with pool(2) as workers:
        assert sweep(workers, out, cells, heard.append) == []
    for made in cells:
        assert records.read(out / "records", made).result.points == train(made).points
    assert heard[-1] == 2 * 12  # steps
    assert heard == sorted(heard)
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_reported_also_when_more_is_asked_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "_finish", die)
    with pool(1) as workers:
        for _ in range(2):
            with pytest.raises(Broken, match="worker process was killed"):
                sweep(workers, Folder(str(tmp_path)), [cell()])
    assert not multiprocessing.active_children()


def test_at_the_deadline_workers_end_with_a_checkpoint(tmp_path):
    out, long = Folder(str(tmp_path)), cell(SGD(0.1), steps=1_000_000, points=5000)
    waiting = [cell(SGD(0.1), seed, steps=1_000_000, points=5000) for seed in range(1, 9)]
    with pytest.raises(OutOfTime), pool(1) as workers:
        sweep(workers, out, [long, *waiting], deadline=time.monotonic())
    assert checkpoints.load(out / "checkpoints", digest(long))["step"] == 200
    assert records.read_all(out / "records") == ([], [])
    assert len(checkpoints.names(out / "checkpoints")) < len(waiting)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("name", ["wait", "submit"])
def test_ctrl_c_is_not_raised_where_it_could_leave_a_lock_held(tmp_path, monkeypatch, name):
    """Twice within `wait`, or `submit`: both go on to their end, and the pool can be shut down."""
    before, ended = signal.signal(signal.SIGINT, signal.default_int_handler), []
    with pytest.raises(KeyboardInterrupt), pool(1) as workers:
        owner = sweep_module if name == "wait" else workers
        original = getattr(owner, name)

        def interrupted(*arguments):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            answer = original(*arguments)
            ended.append(name)
            return answer

        monkeypatch.setattr(owner, name, interrupted)
        sweep(workers, Folder(str(tmp_path)), [cell(SGD(0.1), steps=1_000_000, points=5000)])
    assert ended == [name]
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    assert not multiprocessing.active_children()


def test_memory_is_short_in_every_librarys_words(tmp_path, monkeypatch):
    short = [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ]
    for reason in [*short, RuntimeError("expected scalar type Float but found Double")]:

        def train(*rest, reason=reason):
            raise reason

        monkeypatch.setattr(training, "train", train)
        ask = Folder(str(tmp_path)), cell(), print, bool
        if reason in short:
            assert sweep_module.finish(*ask) == sweep_module.out_of_memory(cell())
        else:
            with pytest.raises(RuntimeError, match="scalar type"):
                sweep_module.finish(*ask)


def test_a_damaged_record_is_told_once_and_not_kept(tmp_path):
    folder = Folder(str(tmp_path))
    there, damaged, absent = (cell(TWO_UNITS, seed) for seed in range(3))
    result = train(there)
    records.save(folder, there, result)
    folder.write(f"{digest(damaged)}.parquet", b"PAR1")
    said = []
    found = kept(folder, [there, damaged, damaged, absent], said.append)
    assert {made: record.result for made, record in found.items()} == {there: result}
    assert len(said) == 1 and records.name_in(folder, damaged) in said[0]
