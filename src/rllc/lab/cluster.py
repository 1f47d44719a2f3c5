"""Runs on a Ray cluster: each is a Ray task of one core, and Ray decides where and when.

    with cluster.pool("auto", 0) as workers:
        sweep(workers, Folder("s3://bucket/runs"), cells)

Every machine needs `rllc[cluster]` of the same version, the data, and the folder of the records: under the
same path, or as a URL. Where a worker is killed or a machine goes away, Ray gives its run to another worker,
which goes on from the checkpoint.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from rllc.lab import sweep
from rllc.lab.cells import Cell
from rllc.lab.errors import Broken, Refused, first_line
from rllc.lab.files import Folder
from rllc.lab.progress import Progress
from rllc.lab.sweep import Outcome, Pool

try:
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise Refused("Ray is not installed; pip install 'rllc[cluster]', or leave out --cluster") from None

__all__ = ["pool"]

RUNS_PER_GPU = 8  # small networks keep a GPU waiting, and share it well
RETRIES = 3  # of a run whose worker was lost
KNOCK_SECONDS = 5.0
OBJECT_STORE = 100 * 2**20  # bytes; next to nothing goes through it
FOLDERS = ("RLLC_DATA_DIR", "RLLC_CACHE_DIR")


@contextmanager
def pool(address: str, workers: int) -> Iterator[Pool]:
    """Workers on a Ray cluster; on any error, Ctrl-C too, their runs are ended at once.

    "local" starts a cluster of `workers` processes on this machine and ends it. "auto" joins the cluster
    this machine is part of, "host:port" the one with that head; there the cores decide, and not `workers`.

    Raises:
        Refused: there is no such cluster, or it cannot be started.
        Broken: the connection was lost.
    """
    try:
        _connect(address, workers)
        yield _Cluster()
    except RayError as reason:
        raise _lost(reason) from None
    finally:
        ray.shutdown()


def _connect(address: str, workers: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
    here = address == "local"
    try:
        if not here and address != "auto":
            _knock(address)
        ray.init(
            address,
            num_cpus=workers if here else None,
            object_store_memory=OBJECT_STORE if here else None,
            include_dashboard=False if here else None,
            runtime_env={"env_vars": _environment()},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as reason:
        raise Refused(_unreachable(address, reason)) from None


def _unreachable(address: str, reason: Exception) -> str:
    if "AuthenticationError" in str(reason.__cause__):
        return (
            f"the Ray cluster at {address!r} wants a token; set RAY_AUTH_MODE=token and put the token into"
            " ~/.ray/auth_token or RAY_AUTH_TOKEN"
        )
    return (
        f"there is no Ray cluster at {address!r} ({first_line(reason)}); use --cluster local, or start"
        " one with `ray start --head` and give its host:port"
    )


def _knock(address: str) -> None:
    """Raises OSError or ValueError if nobody is there: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), KNOCK_SECONDS).close()


def _environment() -> dict[str, str]:
    """Where this process has its data, for workers with another working directory."""
    return {name: os.path.abspath(os.environ[name]) for name in FOLDERS if os.environ.get(name)}


class _Cluster:
    """The Pool of the cluster that this process has joined."""

    def __init__(self) -> None:
        # Beside this process, because what is on another machine can be lost.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._progress: Any = ray.remote(Progress).options(num_cpus=0, scheduling_strategy=here).remote()
        self._finish = ray.remote(_finish)
        self._gpus = ray.cluster_resources().get("GPU", 0)

    def submit(self, out: Folder, cell: Cell) -> Future[Outcome]:
        """Have Ray find a core, and a part of a GPU if need be, and `finish` this cell there."""
        on_gpu = cell.device == "cuda"
        if on_gpu and not self._gpus:
            raise Refused("the Ray cluster has no GPU; use --device cpu")
        task = self._finish.options(
            num_cpus=1, num_gpus=1 / RUNS_PER_GPU if on_gpu else 0, max_retries=RETRIES
        )
        future: Future[Outcome] = Future()
        future.set_running_or_notify_cancel()  # a task that is stopped ends by itself, with a checkpoint
        ended = task.remote(out.absolute(), cell, self._progress).future()
        ended.add_done_callback(lambda ended: _settle(future, cell, ended))
        return future

    def steps(self) -> int:
        """How many training steps the workers have done together."""
        return ray.get(self._progress.steps.remote())

    def stop(self) -> None:
        """Let every run end at its next evaluation, with a checkpoint, and none begin."""
        ray.get(self._progress.stop.remote())


def _settle(future: Future[Outcome], cell: Cell, ended: Future[Outcome]) -> None:
    """Give the task's outcome to the future, in our words."""
    reason = ended.exception()
    cause = reason.cause if isinstance(reason, RayTaskError) else reason
    if reason is None:
        future.set_result(ended.result())
    elif isinstance(cause, OutOfMemoryError):
        future.set_result(sweep.out_of_memory(cell))
    elif isinstance(cause, Broken | Refused):
        future.set_exception(cause)
    elif isinstance(cause, RayError):
        future.set_exception(_lost(cause))
    else:
        future.set_exception(reason)  # a bug; Ray's exception has the worker's traceback


def _lost(reason: BaseException) -> Broken:
    return Broken(
        f"the Ray cluster lost a worker or a machine ({first_line(reason)}); finished runs are kept:"
        " run the same command again"
    )


# What runs in the cluster, beside `Progress`.


def _finish(out: Folder, cell: Cell, progress: Any) -> Outcome:
    def stopping() -> bool:
        # Not ray.get: while that waits, Ray gives the core away to one run more.
        return progress.stopping.remote().future().result()

    if stopping():  # while this one was waiting for a core
        return Outcome(False)
    return sweep.finish(out, cell, progress.add.remote, stopping)
