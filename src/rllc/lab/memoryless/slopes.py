"""The table of measured orders: every named optimizer, and some memories, on the three small problems.

experiment(path)     a record of `rllc memoryless` for each
markdown(content)    without / with the correction
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rllc.lab.memoryless import study
from rllc.lab.memoryless.command import DEFAULT_TASKS, Memoryless
from rllc.lab.memoryless.names import NAMES
from rllc.lab.memoryless.orders import LAST
from rllc.lab.memoryless.records import collect
from rllc.lab.texts import minus, table

__all__ = ["experiment", "markdown"]

Law = tuple[float, ...]
MEMORIES: tuple[tuple[str, Law], ...] = (
    ("M(0.9) + M_2(0.6)", (0.3, 0.5, -0.2)),
    ("M(0.9) + M_2(0.6)", (1.0, 1.0, 1.0)),
    ("M_2(0.6)", (0.0, 1.0)),
    ("M_3(0.5)", (1.0, 1.0, 1.0)),
    ("M(-0.7)", (1.0,)),
    ("M_4(0)", (0.0, 0.0, 0.0, 1.0)),
)


def experiment(path: Path) -> dict[str, Any]:
    """Every row; those that the file has are not made again."""
    asked: list[tuple[str, Law, float | None]] = [(name, (), None) for name in NAMES]
    asked += [("heavy-ball", (), 0.1)]
    asked += [(name, law, None) for name, law in MEMORIES]
    keys: list[dict[str, Any]] = [
        {"asked": name, "law": list(law), "decay_asked": decay} for name, law, decay in asked
    ]
    return collect(path, keys, _run)


def _run(key: dict[str, Any]) -> dict[str, Any]:
    options = Memoryless(key["asked"], law=tuple(key["law"]), weight_decay=key["decay_asked"])
    planned = study.plan(options)
    return study.record(planned, study.measure(planned))


def markdown(content: dict[str, Any]) -> str:
    """The table."""
    head = ["optimizer", "smallest h", "memory", "τ", *DEFAULT_TASKS]
    body = [_line(run) for run in content["runs"]]
    return (
        f"{table(head, body)}\nWithout / with the correction, largest distance over n h <= 1, order over the"
        f" last {LAST} of seven halvings, float64. * not within {study.NEAR} of 1 and 2 at these step sizes."
        " τ is that of gradients large against sqrt(eps).\n"
    )


def _line(run: dict[str, Any]) -> list[str]:
    effect = run["effect"]
    tasks = {found["task"]: found for found in run["tasks"]}
    return [
        f"{run['name']} ({run['parameters']})" if run["parameters"] else run["name"],
        _power(run["tasks"][0]["h"][-1]),
        effect["verdict"],
        "–" if effect["delay"] is None else minus(f"{round(effect['delay'], 6):.3g}"),
        *(_orders(tasks[name]) for name in DEFAULT_TASKS),
    ]


def _power(h: float) -> str:
    return f"1/{round(1 / h):,}"


def _orders(found: dict[str, Any]) -> str:
    both = (found["order_without"], found["order_with"])
    if None in both:
        return "none"
    near = all(abs(order - j) <= study.NEAR for order, j in zip(both, study.EXPECTED, strict=True))
    return f"{both[0]:.2f} / {both[1]:.2f}" + ("" if near else " *")
