"""The time and FLOPs of a step of each optimizer, as benchmarks/cost.py measures them.

save(folder, costs)     one Parquet file with a row for each Cost
read(folder)            the Costs of a folder
networks(costs)         the same by network and optimizer
"""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rllc.lab.errors import Damaged, Refused, first_line
from rllc.lab.files import Folder
from rllc.lab.rounds import ALONE, STEP, Quartiles
from rllc.lab.texts import is_memory

__all__ = ["FILE", "Cost", "Network", "networks", "read", "save"]

FILE = "cost.parquet"


class Cost(NamedTuple):
    """One measurement: an optimizer on a network, as a whole training step or alone.

    Ratios are to Adam of the same framework within the same round. FLOPs are of one step: in a training step
    those of the network, forward and backward; of an optimizer alone in JAX those of its update.
    """

    what: str  # STEP or ALONE
    task: str
    optimizer: str
    framework: str  # "torch" or "jax"
    parameters: int
    batch: int
    rounds: int
    steps: int  # in a round
    ms: Quartiles  # of one step
    ratio: Quartiles  # to Adam's
    flops: float | None
    compile_seconds: float | None
    made: str  # UTC
    versions: dict[str, str]
    commit: str | None
    hardware: str


_QUARTILES = pa.struct([(name, pa.float64()) for name in Quartiles._fields])
_TYPES = {
    **dict.fromkeys(("parameters", "batch", "rounds", "steps"), pa.int64()),
    **dict.fromkeys(("ms", "ratio"), _QUARTILES),
    **dict.fromkeys(("flops", "compile_seconds"), pa.float64()),
}
SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in Cost._fields])


def save(folder: Folder, costs: Sequence[Cost]) -> None:
    """Write the measurements, in place of those that were there.

    Raises:
        OSError: the folder cannot be written, or is full; what was there before is still there.
    """
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([_row(cost) for cost in costs], schema=SCHEMA), file)
    folder.write(FILE, file.getvalue())


def read(folder: Folder) -> list[Cost]:
    """The measurements in a folder.

    Raises:
        Refused: there are none, or the folder cannot be read.
        Damaged: they cannot be read.
    """
    if folder.url.endswith(".parquet"):
        raise Refused(
            f"{folder.url} holds runs, and this is made from timings of a step: rllc figure 3 results/cost"
        )
    try:
        content = folder.read(FILE)
    except FileNotFoundError:
        remedy = f"python benchmarks/cost.py --out {shlex.quote(folder.url)}"
        raise Refused(
            f"there are no timings of optimizers in {folder.url}; make them with: {remedy}"
        ) from None
    except OSError as reason:
        raise Refused(f"cannot read {folder.url} ({first_line(reason)}); name another folder") from reason
    try:
        rows = pq.read_table(pa.BufferReader(content), schema=SCHEMA).to_pylist()
        return [_cost(row) for row in rows]
    except (OSError, ValueError, TypeError, pa.ArrowException) as reason:
        raise Damaged(f"{folder.path(FILE)} is damaged ({first_line(reason)})") from reason


def _row(cost: Cost) -> dict[str, Any]:
    parts = {"ms": cost.ms._asdict(), "ratio": cost.ratio._asdict(), "versions": json.dumps(cost.versions)}
    return cost._asdict() | parts


def _cost(row: dict[str, Any]) -> Cost:
    quartiles = {name: Quartiles(**row[name]) for name in ("ms", "ratio")}
    return Cost(**row | quartiles | {"versions": json.loads(row["versions"])})


class Network(NamedTuple):
    """The measurements on one network: each optimizer in a training step, alone in PyTorch, alone in JAX."""

    task: str
    step: dict[str, Cost]
    torch: dict[str, Cost]
    jax: dict[str, Cost]

    @property
    def memories(self) -> list[str]:
        """The optimizers that are RLLC."""
        return [name for name in self.step if is_memory(name)]

    @property
    def flops(self) -> float:
        """Of the network, forward and backward, for one batch."""
        return self.step["Adam"].flops or 0.0

    def update_flops(self, name: str) -> float:
        """Of the optimizer's update."""
        return self.jax[name].flops or 0.0


def networks(costs: Sequence[Cost]) -> list[Network]:
    """The measurements by network and optimizer, in the order in which they were made."""

    def of(*kind: str) -> dict[str, Cost]:
        return {cost.optimizer: cost for cost in costs if (cost.task, cost.what, cost.framework) == kind}

    return [
        Network(task, of(task, STEP, "torch"), of(task, ALONE, "torch"), of(task, ALONE, "jax"))
        for task in dict.fromkeys(cost.task for cost in costs)
    ]
