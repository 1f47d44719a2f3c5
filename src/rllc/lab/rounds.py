"""Times of several contenders side by side, in rounds, so that what slows the machine slows all of them.

race(contenders, Effort(rounds=40, steps=10), "title")     ms a step of each in each round
quartiles(times["a"] / times["b"])                         quartiles of the ratio within a round
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

__all__ = ["ALONE", "STEP", "Contender", "Effort", "Quartiles", "quartiles", "race"]

STEP, ALONE = "training step", "optimizer alone"  # what is timed


class Quartiles(NamedTuple):
    """The lower quartile, the median and the upper quartile over rounds."""

    low: float
    median: float
    high: float


class Effort(NamedTuple):
    """How many rounds, and how many steps each contender does in one."""

    rounds: int
    steps: int


class Contender(NamedTuple):
    """What is timed: a function that does some number of steps. For what flops are, see Cost."""

    run: Callable[[int], None]
    flops: float | None = None
    compile_seconds: float | None = None
    cached: bool = True  # whether what it finds in the caches matters


def race(
    contenders: Mapping[str, Contender], effort: Effort, title: str, console: Console | None = None
) -> dict[str, np.ndarray]:
    """ms a step of each contender in each round, (rounds,); the order is shuffled in every round.

    Of several steps one is made before, untimed: in training the caches hold one's own, here another's.
    """
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:  # a first time, for what is only made then
        contenders[name].run(effort.steps)
    for number in track(range(effort.rounds), title, console=console, transient=console is not None):
        random.Random(number).shuffle(names)
        for name in names:
            if effort.steps > 1 and contenders[name].cached:
                contenders[name].run(1)
            started = time.perf_counter()
            contenders[name].run(effort.steps)
            times[name].append(1000 * (time.perf_counter() - started) / effort.steps)
    return {name: np.array(values) for name, values in times.items()}


def quartiles(values: np.ndarray) -> Quartiles:
    """Of (rounds,) numbers."""
    return Quartiles(*np.quantile(values, (0.25, 0.5, 0.75)).tolist())
