"""Runs on a Ray cluster of two nodes give what this process gives; lost workers and clusters are no loss."""

import importlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from made import TWO_UNITS, cell

from rllc.lab import checkpoints, records, sweep, training
from rllc.lab.cells import Cell, digest
from rllc.lab.errors import Broken, OutOfTime, Refused
from rllc.lab.files import Folder
from rllc.lab.settings import SGD
from rllc.lab.training import train

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from rllc.lab import cluster  # noqa: E402

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test


@pytest.fixture(scope="module")
def address():
    """A cluster of two nodes of one core each."""
    node = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": cluster.OBJECT_STORE}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    nodes.add_node(**node)
    yield nodes.address
    nodes.shutdown()


@pytest.fixture(scope="module")
def workers(address):
    os.environ["RLLC_CACHE_DIR"] = "some/where"  # set where the driver is, and relative to it
    try:
        with cluster.pool(address, 0) as joined:
            yield joined
    finally:
        del os.environ["RLLC_CACHE_DIR"]


def killed(when):
    """A task whose worker is killed at its third evaluation, `when` this is said to happen."""

    def finish(out, cell, progress):
        training.SAVE_SECONDS = 0.0

        def add(steps):
            evaluations.append(steps)
            if len(evaluations) == 3 and when(Path(out.url) / "was killed"):
                os.kill(os.getpid(), signal.SIGKILL)
            progress.add.remote(steps).future().result()

        evaluations = []
        return sweep.finish(out, cell, add, lambda: False)

    return ray.remote(finish)


def once(mark):
    if mark.exists():
        return False
    mark.touch()
    return True


def always(mark):
    return True


def test_two_nodes_give_the_same_bits_as_this_process(workers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells, heard, before = [cell(TWO_UNITS, seed) for seed in (0, 1)], [], workers.steps()
    wanted = [train(made).points for made in cells]  # first: compiles kernels for the workers, too
    assert sweep.sweep(workers, Folder("runs"), cells, heard.append) == []
    for made, points in zip(cells, wanted, strict=True):
        assert records.read(Folder("runs/records"), made).result.points == points
    assert heard == sorted(heard) and heard[-1] - before == 2 * 12


def test_workers_know_where_the_data_are(workers):
    where = ray.remote(lambda: os.environ.get("RLLC_CACHE_DIR"))
    assert ray.get(where.remote()) == os.path.abspath("some/where")


def test_a_folder_that_cannot_be_written_is_reported(workers, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Broken, match=r"^cannot write to .*file \(.*\); finished runs are kept$"):
        sweep.sweep(workers, Folder(f"{tmp_path}/file"), [cell()])


def test_at_the_deadline_runs_end_with_a_checkpoint_and_none_begin(workers, tmp_path):
    out, long = Folder(str(tmp_path)), {"steps": 1_000_000, "points": 5000}
    cells = [cell(SGD(0.1), seed, **long) for seed in range(6)]
    with pytest.raises(OutOfTime):
        sweep.sweep(cluster._Cluster(), out, cells, deadline=time.monotonic() + 0.5)
    begun = {
        name: checkpoints.load(out / "checkpoints", name)["step"]
        for name in checkpoints.names(out / "checkpoints")
    }
    assert len(begun) <= 2 and all(step % 200 == 0 for step in begun.values())
    assert set(begun) <= {digest(cell) for cell in cells}
    assert records.read_all(out / "records") == ([], [])


def test_a_cluster_without_gpus_refuses_runs_for_one(workers, tmp_path):
    with pytest.raises(Refused, match="has no GPU; use --device cpu"):
        workers.submit(Folder(str(tmp_path)), Cell(cell().task, SGD(0.1), 0, 10, "cuda"))


# Last of those that share the workers: another must be started for whoever comes next.


def test_a_run_whose_worker_is_killed_goes_on_from_its_checkpoint(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_finish", killed(once))
    this, before = cell(TWO_UNITS, points=6), workers.steps()
    assert sweep.sweep(workers, Folder(str(tmp_path)), [this]) == []
    assert (tmp_path / "was killed").exists()
    assert records.read(Folder(f"{tmp_path}/records"), this).result.points == train(this).points
    # The first worker did 6 steps, of which 4 were counted; the second began at step 4.
    assert workers.steps() - before == 4 + 12


def test_a_worker_that_is_killed_again_and_again_is_reported(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_finish", killed(always))
    monkeypatch.setattr(cluster, "RETRIES", 0)
    with pytest.raises(Broken, match=r"^the Ray cluster lost a worker .*; finished runs are kept") as reason:
        sweep.sweep(workers, Folder(str(tmp_path)), [cell()])
    assert "\n" not in str(reason.value)


def settled(reason):
    ended, future = Future(), Future()
    ended.set_exception(reason)
    cluster._settle(future, cell(), ended)
    return future


def of_a_task(cause):
    return ray.exceptions.RayTaskError("finish", "Traceback ...\nmany lines", cause)


def test_what_ray_says_is_said_in_one_line():
    room = settled(ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."))
    assert room.result() == sweep.out_of_memory(cell())
    ours = Broken("cannot write")
    assert settled(of_a_task(ours)).exception() is ours
    lost = settled(of_a_task(ray.exceptions.ActorDiedError())).exception()
    assert isinstance(lost, Broken) and "\n" not in str(lost)
    bug = of_a_task(TypeError("a bug"))
    assert settled(bug).exception() is bug


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_where_there_is_no_cluster_it_says_so_at_once(address):
    with pytest.raises(Refused, match=rf"no Ray cluster at '{address}' .*; use --cluster local, or"):
        cluster._connect(address, 0)


def test_a_cluster_that_wants_a_token_says_what_to_set():
    refused = ConnectionError("Failed to connect to Ray cluster at head:6379")
    refused.__cause__ = RuntimeError(
        "Traceback ...\nray.exceptions.AuthenticationError: RPC error: InvalidAuthToken"
    )
    said = cluster._unreachable("head:6379", refused)
    assert "'head:6379' wants a token; set RAY_AUTH_MODE=token" in said and "\n" not in said


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "rllc.lab.cluster")
    with pytest.raises(Refused, match=r"pip install 'rllc\[cluster\]'"):
        importlib.import_module("rllc.lab.cluster")


# A test run in the background ignores SIGINT, and a child inherits that.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from rllc.lab import cli
sys.exit(cli.main())
"""


def processes_with(mark):
    """Those that have this in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found += [process.name] if mark.encode() in (process / "environ").read_bytes() else []
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_ctrl_c_ends_a_local_cluster_with_all_its_processes(tmp_path):
    ask = ["run", "units", "--tasks", "digits-mlp", "--optimizers", "sgd", "--steps", "300", "--seeds", "99"]
    ask += ["--device", "cpu", "--cluster", "local", "--workers", "1", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *ask],
        env=os.environ
        | {"RLLC_TEST": str(tmp_path), "HOME": str(tmp_path / "home")},  # Ray puts a token there
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("records/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(processes_with(str(tmp_path))) >= 4  # this one, Ray's head and node, a worker
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    ours = [line for line in err.splitlines() if not line.startswith("[")]  # Ray's own, on a busy machine
    assert ours == ["rllc: stopped; finished runs are kept, the same command goes on from there"]
    while processes_with(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_with(str(tmp_path)) == []
