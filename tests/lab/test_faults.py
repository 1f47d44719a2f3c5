"""Whatever goes wrong, no finished run is lost, a line says what happened, a rerun gives the same bits.

Ctrl-C is in test_compare.py, a killed worker in test_sweep.py and test_cluster.py.
"""

import contextlib
import functools
import hashlib
import io
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import hasty
import pytest
import torch
from made import DIGITS, TWO_UNITS, cell
from rich.console import Console

from rllc.lab import checkpoints, checks, files, pruning, records, run, runs, sweep, training
from rllc.lab.cells import digest
from rllc.lab.errors import Broken, Damaged
from rllc.lab.files import Folder
from rllc.lab.making import making
from rllc.lab.options import Prune, Run
from rllc.lab.search import Plan, search
from rllc.lab.settings import (
    SGD,
    Adam,
    Averaged,
    Cosine,
    Exponential,
    Hypergradient,
    Polynomial,
    ScheduleFree,
)
from rllc.lab.sweep import finish
from rllc.lab.tasks import Examples, Splits
from rllc.lab.training import train


def never():
    return False


def always():
    return True


def silent(steps):
    pass


# Interrupted at every evaluation


@pytest.fixture
def often(monkeypatch):
    """A checkpoint at every evaluation."""
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)


def made_up(network, channels, **changes):
    task = replace(DIGITS, name=f"made-up-{network}", network=network, batch=8, **changes)
    images = torch.randn(40, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40) % 10
    return task, Splits(
        *(Examples(images[part], labels[part]) for part in (slice(24), slice(24, 32), slice(32, 40)))
    )


CONV = made_up("conv", 1)
RESNET = made_up("resnet20", 3, augment=True)


@pytest.mark.parametrize(
    ("setting", "task"),
    [
        (TWO_UNITS, None),
        (Cosine(SGD(0.1, momentum=0.9)), None),
        (Averaged(SGD(0.1), Polynomial()), None),
        (ScheduleFree(1e-3), None),
        (Hypergradient(0.01, 1e-3), None),
        (Adam(1e-3), CONV),
        (TWO_UNITS, RESNET),
        (Averaged(Adam(1e-3), Exponential(0.9)), RESNET),
    ],
    ids=lambda part: type(part).__name__ if hasattr(part, "lr") or part is None else None,
)
def test_a_run_stopped_at_every_evaluation_ends_with_the_same_bits(tmp_path, monkeypatch, setting, task):
    asked, keep = cell(setting, steps=12, points=4), Folder(str(tmp_path))
    if task is not None:
        asked = replace(asked, task=task[0])
        monkeypatch.setattr(training, "tensors", lambda *_: task[1])
    whole = train(asked)
    for done in (3, 6, 9):
        heard = []
        assert train(asked, heard.append, keep, always) is None
        assert heard == [*([done - 3] if done > 3 else []), 3]  # went on, did not begin again
        assert checkpoints.load(keep, digest(asked))["step"] == done
    resumed = train(asked, keep=keep, stop=always)  # nothing to stop after the last evaluation
    assert resumed.points == whole.points and len(whole.points) == 5
    assert resumed.diverged_at is None
    assert len({point.valid_loss for point in whole.points}) == 5


def test_a_run_is_saved_once_a_minute_without_being_stopped(tmp_path, monkeypatch):
    keep, asked = Folder(str(tmp_path)), cell(steps=12, points=4)
    saved = []
    monkeypatch.setattr(checkpoints, "save", lambda folder, name, state: saved.append(state["step"]))
    train(asked, keep=keep)
    assert saved == []
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    train(asked, keep=keep)
    assert saved == [3, 6, 9, 12]


def test_a_run_that_diverges_after_it_was_stopped_says_where(tmp_path):
    asked = cell(SGD(3.0), steps=100, points=50)
    whole, resumed, stops = train(asked), None, 0
    assert whole.diverged_at is not None and whole.diverged_at > 4
    while resumed is None:
        resumed, stops = train(asked, keep=Folder(str(tmp_path)), stop=always), stops + 1
    assert (resumed.points, resumed.diverged_at) == (whole.points, whole.diverged_at) and stops > 2


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_a_truncated_checkpoint_costs_its_run_and_a_line(tmp_path, kept):
    out, asked = Folder(str(tmp_path)), cell(TWO_UNITS)
    assert finish(out, asked, silent, always) == (False, "")
    path = tmp_path / "checkpoints" / f"{digest(asked)}.checkpoint"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(Damaged, match="truncated or altered"):
        train(asked, keep=out / "checkpoints")
    said = f"checkpoint {path} is truncated or altered; its run starts again"
    heard = []
    assert finish(out, asked, heard.append, never) == (True, said)
    assert records.read(out / "records", asked).result.points == train(asked).points
    assert heard == [4, 4, 4, 0] and not path.exists()


@pytest.mark.parametrize(
    "other",
    [
        lambda state: {"step": 4},
        lambda state: state | {"net": {}},
        lambda state: state | {"points": [[1]]},
        lambda state: [1, 2],
    ],
    ids=["parts", "weights", "points", "kind"],
)
def test_a_checkpoint_of_another_layout_costs_its_run_and_a_line(tmp_path, other):
    out, asked = Folder(str(tmp_path)), cell(TWO_UNITS)
    keep, name = out / "checkpoints", digest(asked)
    assert finish(out, asked, silent, always) == (False, "")
    checkpoints.save(keep, name, other(checkpoints.load(keep, name)))
    ended, said = finish(out, asked, silent, never)
    assert ended and said.startswith(f"checkpoint {keep.url}/{name}.checkpoint does not fit (")
    assert said.endswith("); its run starts again") and "\n" not in said
    assert records.read(out / "records", asked).result.points == train(asked).points


@pytest.mark.parametrize("body", [b"", b"no state", b"PK\x03\x04 cut", b"\x80\x02]q\x00."])
def test_a_checkpoint_that_torch_cannot_load_costs_its_run_and_a_line(tmp_path, body):
    out, asked = Folder(str(tmp_path)), cell(TWO_UNITS)
    file = f"{digest(asked)}.checkpoint"
    (out / "checkpoints").write(file, hashlib.sha256(body).digest() + body)
    ended, said = finish(out, asked, silent, never)
    assert ended and said.startswith(f"checkpoint {tmp_path}/checkpoints/{file} ")
    assert said.endswith("); its run starts again") and "\n" not in said
    assert records.read(out / "records", asked).result.points == train(asked).points


def test_no_room_for_the_state_of_a_checkpoint_does_not_cost_it(tmp_path, monkeypatch):
    keep = Folder(str(tmp_path))
    checkpoints.save(keep, "name", {"step": 1})

    def short(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", short)
    with pytest.raises(RuntimeError, match="allocate"):
        checkpoints.load(keep, "name")


def test_no_room_for_a_checkpoint_does_not_cost_it(tmp_path):
    with pytest.raises(RuntimeError, match="allocate"), checkpoints.fitting(Folder(str(tmp_path)), "name"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("place", [0, 31, 32, -1], ids=["digest", "its end", "state", "the end"])
def test_a_checkpoint_with_one_bit_altered_is_refused_by_name(tmp_path, place):
    keep, asked = Folder(str(tmp_path)), cell(TWO_UNITS)
    assert train(asked, keep=keep, stop=always) is None
    path = tmp_path / f"{digest(asked)}.checkpoint"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match=f"checkpoint {path} is truncated or altered"):
        train(asked, keep=keep)
    assert path.read_bytes() == content


# kill -9 at any moment


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_a_run_is_whole_or_not_there_and_goes_on(tmp_path, often):
    process = hasty.process(hasty.killed_at_every_moment, str(tmp_path))
    process.join(300)
    moments = process.exitcode
    assert moments == 4 * 3 + 1  # open, flush, rename three checkpoints and a record; delete a checkpoint
    asked = cell(TWO_UNITS)
    whole, stages = train(asked).points, []
    for moment in range(1, moments + 1):
        out = Folder(f"{tmp_path}/{moment}")
        found, damaged = records.read_all(out / "records")
        assert damaged == [] and [record.cell for record in found] in ([], [asked])
        assert not found or found[0].result.points == whole
        state = checkpoints.load(out / "checkpoints", digest(asked)) or {"step": 0}
        stages.append(13 if found else state["step"])
        assert finish(out, asked, silent, never) == (True, "")
        assert [record.result.points for record in records.read_all(out / "records")[0]] == [whole]
    assert stages == [0] * 3 + [4] * 3 + [8] * 3 + [12] * 3 + [13]


def test_one_file_written_by_two_at_once_is_always_whole(tmp_path):
    folder, contents = Folder(str(tmp_path)), {bytes([letter]) * 200_000 for letter in b"ab"}
    with ThreadPoolExecutor(2) as writers:
        ends = [writers.submit(lambda c: [folder.write("f", c) for _ in range(50)], c) for c in contents]
        while not folder.exists("f"):
            time.sleep(0.001)
        while not all(end.done() for end in ends):
            assert folder.read("f") in contents
        assert all(len(end.result()) == 50 for end in ends)
    assert os.listdir(tmp_path) == ["f"]


# `rllc run`, with workers that are threads of this process, so that faults can be put into them


class Threads:
    """A sweep.Pool."""

    def __init__(self, workers):
        self.executor = ThreadPoolExecutor(workers)
        self.stopping = threading.Event()
        self.done = []

    def submit(self, out, cell):
        return self.executor.submit(finish, out, cell, self.done.append, self.stopping.is_set)

    def steps(self):
        return sum(self.done)

    def stop(self):
        self.stopping.set()


@contextlib.contextmanager
def threads(workers):
    pool = Threads(workers)
    try:
        yield pool
    finally:
        pool.stop()
        pool.executor.shutdown(cancel_futures=True)


@pytest.fixture(autouse=True)
def in_threads(monkeypatch):
    monkeypatch.setattr(sweep, "pool", threads)


def asked(out, **changes):
    """Three rates for SGD, then a second seed of the best."""
    return Run("units", ("digits-mlp",), ("sgd",), 2, 20, out=str(out), workers=1, device="cpu", **changes)


def go(options):
    """What `rllc run` prints, line by line, after the one that these runs are in no table of the study."""
    out = io.StringIO()
    run.main(options, Console(file=out, width=200))
    first, *lines = (line for line in out.getvalue().splitlines() if line.strip())
    assert first.startswith("not in units: digits-mlp, SGD; see")
    return lines


def go_prune(folder):
    """What `rllc runs prune --yes` prints, line by line."""
    out = io.StringIO()
    pruning.prune(Prune(str(folder), yes=True), Console(file=out))
    return out.getvalue().splitlines()


def whole(options):
    """Every record of a finished command is there once, and is what a run without a pause gives."""
    found, damaged = runs.gather(options.out)
    assert len(found) == 4 and damaged == []
    (plan,) = run.plans(options)
    first = {plan.cell(setting, 0) for setting in plan.tried["SGD"]}
    assert {record.cell for record in found if record.cell.seed == 0} == first
    assert all(record.result.points == train(record.cell).points for record in found)
    return {records.name_in(Folder(options.out) / "records", record.cell): record for record in found}


@pytest.mark.parametrize("where", ["{tmp_path}", "memory://{tmp_path}"])
def test_at_the_time_limit_it_stops_and_the_next_command_goes_on(tmp_path, where, monkeypatch):
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(checks, "folder", lambda out: None)  # memory is refused, as processes do not share it
    out, commands, seen = where.format(tmp_path=tmp_path), 0, set()
    while True:
        (line,) = go(asked(out, time_limit=1e-9))
        commands += 1
        if line.startswith("everything has its record"):
            break
        assert line.startswith("stopped at the time limit; the same command goes on from there")
        assert "Next" not in line  # there may be no run yet of which a table could be made
        for name in checkpoints.names(Folder(out) / "checkpoints"):
            seen.add((name, checkpoints.load(Folder(out) / "checkpoints", name)["step"]))
    assert len(whole(asked(out))) == 4
    assert len(seen) >= 4 and all(0 < step < 20 for _, step in seen)
    assert commands <= 4 * 10 + 1  # each gets one evaluation further, at least
    assert checkpoints.names(Folder(out) / "checkpoints") == []


def test_a_run_that_ended_without_leaving_its_record_is_no_success(tmp_path, monkeypatch):
    """A folder that the workers do not share with this process, as of another machine."""
    monkeypatch.setattr(records, "save", lambda folder, cell, result: None)
    with pytest.raises(Broken, match=rf"^3 runs have ended, but {tmp_path}/records has no record of them"):
        go(asked(tmp_path))


def test_damaged_files_are_told_in_a_line_each_and_made_again(tmp_path):
    go(asked(tmp_path))
    before = whole(asked(tmp_path))
    path, victim = min(before.items())
    Path(path).write_bytes(Path(path).read_bytes()[:-50])
    (Folder(str(tmp_path)) / "checkpoints").write(f"{digest(victim.cell)}.checkpoint", b"half a checkpoint")
    damaged, truncated, ended = go(asked(tmp_path))
    assert damaged.startswith(f"record {path} is damaged (") and damaged.endswith("); it is made again")
    assert truncated.endswith(
        f"{digest(victim.cell)}.checkpoint is truncated or altered; its run starts again"
    )
    assert ended.startswith("everything has its record")
    after = whole(asked(tmp_path))
    assert {name for name in after if after[name] != before[name]} == {path}


def test_a_full_disk_costs_one_line_and_no_record(tmp_path, monkeypatch):
    real, left = os.fsync, 2

    def fsync(file):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(Broken) as reason:
        go(asked(tmp_path))
    assert (
        str(reason.value) == f"cannot write to {tmp_path} (No space left on device); finished runs are kept"
    )
    (kept,) = (tmp_path / "records").iterdir()  # the other flush was the probe's
    before = kept.read_bytes()
    monkeypatch.setattr(files.os, "fsync", real)
    go(asked(tmp_path))
    assert len(whole(asked(tmp_path))) == 4 and kept.read_bytes() == before
    assert go_prune(tmp_path) == ["there is nothing to delete"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, often, monkeypatch):
    keep, this = Folder(str(tmp_path)), cell(TWO_UNITS)
    assert train(this, keep=keep, stop=always) is None
    before = checkpoints.load(keep, digest(this))["step"]
    monkeypatch.setattr(files.os, "fsync", lambda file: os.write(-1, b""))  # bad file descriptor
    with pytest.raises(OSError):
        train(this, keep=keep)
    monkeypatch.undo()
    assert checkpoints.load(keep, digest(this))["step"] == before == 4
    assert train(this, keep=keep).points == train(this).points


def test_a_run_without_memory_is_told_and_missing_and_the_others_are_there(tmp_path, monkeypatch):
    def short(cell, *rest):
        if cell.setting == SGD(0.03):
            torch.empty(1 << 50)  # refused at once
        return train(cell, *rest)

    monkeypatch.setattr(training, "train", short)
    said = io.StringIO()
    with pytest.raises(Broken, match=r"^1 runs ran out of memory and are missing; try fewer --workers$"):
        run.main(asked(tmp_path), Console(file=said, width=200))
    lines = [line for line in said.getvalue().splitlines() if line.strip()]
    name = "SGD (lr 0.03) on digits-mlp, seed 0, ran out of memory and has no record; try fewer --workers"
    assert lines[1] == name
    found, _ = runs.gather(str(tmp_path))
    assert sorted((r.cell.setting.lr, r.cell.seed) for r in found) == [(0.01, 0), (0.1, 0), (0.1, 1)]
    monkeypatch.undo()
    monkeypatch.setattr(sweep, "pool", threads)
    go(asked(tmp_path))
    whole(asked(tmp_path))


def test_a_diverged_run_is_recorded_as_such_and_never_chosen(tmp_path):
    out, console = Folder(str(tmp_path)), Console(file=io.StringIO())
    tried = {"SGD": (SGD(1e6), SGD(0.1), SGD(1e7)), "momentum SGD": (SGD(1e6, 0.9),)}
    plan = Plan(DIGITS, tried, seeds=2, steps=20)
    with threads(1) as pool, making(pool, out, [plan], console) as maker:
        sgd, momentum = search(plan, functools.partial(maker.records, plan))
    assert [record.cell.setting for record in sgd.records] == [SGD(0.1)] * 2
    assert momentum.records == ()
    found, _ = runs.gather(str(tmp_path))
    ends = {(r.cell.setting, r.cell.seed): r.result.diverged_at for r in found}
    lost = {setting for (setting, _), step in ends.items() if step is not None}
    assert lost == {SGD(1e6), SGD(1e7), SGD(1e6, 0.9)}
    assert len(ends) == 5  # no second seed of what diverged


# `rllc run` as it is, with worker processes


FEW = ("--tasks", "digits-mlp", "--optimizers", "sgd", "--seeds", "2", "--steps", "200")


def command(out, *more, name="first", **environment):
    """The process, and a function that waits for its end and says how it ended and what it said."""
    said = f"{out}.{name}"
    ask = ["run", "units", *FEW, "--device", "cpu", "--out", str(out), *more]
    process = hasty.process(hasty.command, ask, said, os.environ | environment)

    def end():
        process.join(300)
        return process.exitcode, *(Path(f"{said}.{stream}").read_text() for stream in ("out", "err"))

    return process, end


def test_killed_with_all_its_workers_it_is_ended_by_two_commands_at_once(tmp_path):
    first, end = command(tmp_path, "--workers", "2")
    deadline = time.monotonic() + 300
    while not (list(tmp_path.glob("records/*.parquet")) and list(tmp_path.glob("checkpoints/*.checkpoint"))):
        assert first.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(first.pid, signal.SIGKILL)
    assert end()[0] == -signal.SIGKILL
    found, damaged = records.read_all(Folder(f"{tmp_path}/records"))
    assert 0 < len(found) < 4 and damaged == []
    for _, end in [command(tmp_path, "--workers", "1", name=name) for name in ("one", "other")]:
        status, said, err = end()
        assert status == 0, err
        assert "everything has its record" in said
    ended, damaged = records.read_all(Folder(f"{tmp_path}/records"))
    assert len(ended) == 4 and damaged == []
    assert all(record.result.points == train(record.cell).points for record in ended)
    go_prune(tmp_path)  # a run may have been killed between its record and the end of its checkpoint
    assert checkpoints.names(Folder(f"{tmp_path}/checkpoints")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_worker_that_cannot_write_says_so_in_one_line(tmp_path):
    _, end = command(tmp_path, "--workers", "1", HASTY_BYTES="2000")  # a record has more
    status, _, err = end()
    assert status == 1
    assert err == f"rllc: cannot write to {tmp_path} (File too large); finished runs are kept\n"
    assert not any(tmp_path.glob("*/*"))
