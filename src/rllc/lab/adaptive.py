"""`rllc run adaptive`: RLLC-AdamW at one rate beside peers that are tuned for each stopping time.

    plan = Adaptive(TASKS["mnist-mlp"], CONTENDERS, steps=10_000, seeds=3)
    search(plan, among(records))     (contender, stopping time) -> Reached

A run that does not know its end is a run for every stopping time T before it: what counts is the evaluation
at step T. At each T validation data choose among five rates with seed 0; then come the other seeds. The rate
of RLLC-AdamW is not chosen. Further rates, for everyone, show what a wrong one costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rllc.lab.cells import Cell, Point, evaluation_steps, points_for
from rllc.lab.errors import Refused
from rllc.lab.optimizers import AROUND_ADAM, AROUND_FREE, AROUND_ONE, AROUND_RLLC, Rates, trials
from rllc.lab.records import Record
from rllc.lab.search import RecordsOf
from rllc.lab.selection import full_length, on_same_data, usual_device
from rllc.lab.settings import RLLC_ADAMW, RllcAdamW, Setting
from rllc.lab.tasks import TASKS, Task, TextTask

__all__ = [
    "ADAPTIVE_TASKS",
    "CONTENDERS",
    "CONTROL",
    "COSINE",
    "STOPS",
    "STUDY",
    "Adaptive",
    "Contender",
    "Found",
    "Reached",
    "at",
    "plans_in",
    "search",
    "stops_of",
]

STUDY = "adaptive"
ADAPTIVE_TASKS = ("digits-mlp", "mnist-mlp", "fashion-mlp", "cifar10-mlp")
STOPS = (1000, 3000, 10_000)


@dataclass(frozen=True)
class Contender:
    """An optimizer under the name of its row: the rates to choose from, or the one that is always taken."""

    name: str
    optimizer: str
    rates: tuple[float, ...]
    fixed: float | None = None

    @property
    def wide(self) -> tuple[float, ...]:
        """The rates and one a decade beyond either end: four decades."""
        first, last = (float(f"{rate:.3g}") for rate in (self.rates[0] / 10, self.rates[-1] * 10))
        return (first, *self.rates, last)

    def setting(self, rate: float) -> Setting:
        """The optimizer at this rate."""
        (setting,) = trials(self.optimizer, Rates(lr=(rate,)))
        return setting


def _tuned(name: str, rates: tuple[float, ...]) -> Contender:
    return Contender(name, name, rates)


def _ours(name: str) -> Contender:
    return Contender(name, name, AROUND_RLLC, fixed=RllcAdamW().lr)


COSINE = "Adam + cosine"
CONTROL = "Adam 0.003, polynomial average"
CONTENDERS = (
    *map(_ours, (RLLC_ADAMW, *(f"{RLLC_ADAMW}, {part}" for part in ("law only", "search only")))),
    Contender(CONTROL, "Adam, polynomial average", AROUND_ADAM, fixed=3e-3),
    Contender("Adam 0.003", "Adam", AROUND_ADAM, fixed=3e-3),
    _tuned("momentum SGD", (0.003, 0.01, 0.03, 0.1, 0.3)),
    _tuned("Adam", AROUND_ADAM),
    _tuned(COSINE, AROUND_ADAM),
    _tuned("Adam, polynomial average", AROUND_ADAM),
    _tuned("schedule-free AdamW", AROUND_FREE),
    _tuned("Prodigy", AROUND_ONE),
    _tuned("D-Adaptation Adam", AROUND_ONE),
    _tuned("Mechanic Adam", AROUND_ONE),
    _tuned("AdEMAMix", AROUND_ADAM),
    _tuned("Muon", AROUND_ADAM),
    _tuned("hypergradient Adam", AROUND_ADAM),
)


@dataclass(frozen=True)
class Adaptive:
    """The runs of the study on one task.

    Raises:
        Refused: no reasonable number of evaluations meets all stopping times.
    """

    task: Task | TextTask
    contenders: tuple[Contender, ...]
    steps: int
    seeds: int
    device: str = "cpu"

    def __post_init__(self) -> None:
        _points(self.task, self.steps, self.stops)

    @property
    def stops(self) -> tuple[int, ...]:
        """The stopping times, the last of them the end of the longest runs."""
        return stops_of(self.steps)

    def cell(self, setting: Setting, seed: int, stop: int) -> Cell:
        """The run that shows what the setting has reached at a stopping time."""
        steps, met = (stop, (stop,)) if setting.knows_its_end else (self.steps, self.stops)
        return Cell(self.task, setting, seed, steps, self.device, _points(self.task, steps, met))

    def tries(self, contender: Contender) -> list[Cell]:
        """All its rates with seed 0; the two outermost at the last stopping time only."""
        pairs = [(rate, stop) for stop in self.stops for rate in contender.rates]
        pairs += [(rate, self.stops[-1]) for rate in contender.wide]
        return list(dict.fromkeys(self.cell(contender.setting(rate), 0, stop) for rate, stop in pairs))

    def training_steps(self) -> int:
        """How many there will be at most, if no run is there yet."""
        return sum(map(self._training_steps, self.contenders))

    def _training_steps(self, contender: Contender) -> int:
        runs = [self.cell(contender.setting(contender.rates[0]), 1, stop) for stop in self.stops]
        further = runs if contender.fixed is None else dict.fromkeys(runs)
        whole = (self.seeds - 1) * sum(cell.steps for cell in further)
        return whole + sum(cell.steps for cell in self.tries(contender))


class Reached(NamedTuple):
    """A contender at a stopping time: its rate, a record for each seed of it, seed 0 of each rate tried.

    The rate is None where every rate to choose from had diverged by then.
    """

    rate: float | None
    records: tuple[Record, ...]
    tried: Mapping[float, Record]


Found = Mapping[tuple[str, int], Reached]


def search(plan: Adaptive, records_of: RecordsOf) -> Found:
    """What each contender reached at each stopping time; those without any record are left out."""
    tries = records_of("all rates", {c.name: plan.tries(c) for c in plan.contenders})
    tried = {
        (c, stop): _by_rate(plan, c, stop, tries[c.name]) for c in plan.contenders for stop in plan.stops
    }
    rates = {
        (c, stop): c.fixed if c.fixed is not None else _best(c, stop, ours)
        for (c, stop), ours in tried.items()
    }
    cells = {key: _all_seeds(plan, *key, rate) for key, rate in rates.items()}
    finals = {c.name: [cell for stop in plan.stops for cell in cells[c, stop]] for c in plan.contenders}
    made = {record.cell: record for ours in records_of("all seeds", finals).values() for record in ours}
    return {
        (c.name, stop): Reached(
            rates[c, stop], tuple(made[cell] for cell in ours if cell in made), tried[c, stop]
        )
        for (c, stop), ours in cells.items()
        if tried[c, stop]
    }


def plans_in(records: Sequence[Record]) -> list[Adaptive]:
    """Of each task on which RLLC-AdamW has been run: the plan with all contenders, on its data, as long.

    On the device on which most of its runs there are, at other rates too: a few runs elsewhere hide nothing.
    """
    default = RllcAdamW()
    ours = on_same_data([record for record in records if record.cell.setting == default])
    tried = [record.cell for record in records if isinstance(record.cell.setting, RllcAdamW)]
    found = []
    for name in TASKS:
        named = [record.cell for record in ours if record.cell.task.name == name]
        here = [cell for cell in named if _most_points(cell.task, cell.steps, stops_of(cell.steps))]
        if here:
            steps = full_length((cell.steps for cell in here), STOPS[-1])
            full = [cell for cell in here if cell.steps == steps]
            task, devices = here[0].task, {cell.device for cell in full}
            alike = (cell.device for cell in tried if (cell.task, cell.steps) == (task, steps))
            device = usual_device(device for device in alike if device in devices)
            seeds = 1 + max(cell.seed for cell in full if cell.device == device)
            found.append(Adaptive(task, CONTENDERS, steps, seeds, device))
    return found


def at(record: Record, stop: int) -> Point | None:
    """The evaluation at a stopping time; None if the run had diverged by then."""
    return next((point for point in record.result.points if point.step == stop), None)


def stops_of(steps: int) -> tuple[int, ...]:
    """The stopping times of runs of that length: those of STOPS before its end, and its end."""
    return (*(stop for stop in STOPS if stop < steps), steps)


def _most_points(task: Task | TextTask, steps: int, stops: Sequence[int]) -> int:
    """As many evaluations as suit the run, or the next fewer that fall on all stopping times, or none."""
    tried = range(points_for(task, steps), 0, -1)
    return next((points for points in tried if set(stops) <= set(evaluation_steps(steps, points))), 0)


def _points(task: Task | TextTask, steps: int, stops: Sequence[int]) -> int:
    if points := _most_points(task, steps, stops):
        return points
    raise Refused(
        f"of {steps:,} steps no even evaluations fall on {', '.join(map(str, stops[:-1]))}; take a multiple"
        " of 1000 for --steps"
    )


def _by_rate(
    plan: Adaptive, contender: Contender, stop: int, records: Sequence[Record]
) -> dict[float, Record]:
    """The record of each rate, with seed 0, that shows this stopping time."""
    held = {record.cell: record for record in records}
    cells = {rate: plan.cell(contender.setting(rate), 0, stop) for rate in contender.wide}
    return {rate: held[cell] for rate, cell in cells.items() if cell in held}


def _best(contender: Contender, stop: int, tried: Mapping[float, Record]) -> float | None:
    """The rate, of those to choose from, that is best on validation data by then; of equal ones the least."""
    points = {rate: at(tried[rate], stop) for rate in contender.rates if rate in tried}
    merits = {rate: _merit(tried[rate], point) for rate, point in points.items() if point is not None}
    return max(merits, key=lambda rate: merits[rate], default=None)


def _merit(record: Record, point: Point) -> tuple[float, float]:
    """Accuracy, then loss; of a text the loss alone."""
    if isinstance(record.cell.task, TextTask):
        return -point.valid_loss, 0.0
    return point.valid_accuracy, -point.valid_loss


def _all_seeds(plan: Adaptive, contender: Contender, stop: int, rate: float | None) -> list[Cell]:
    if rate is None:
        return []
    return [plan.cell(contender.setting(rate), seed, stop) for seed in range(plan.seeds)]
