"""One run: a pure function of its cell, which gives the same numbers, to the bit, on the same machine.

    train(Cell(TASKS["digits-mlp"], Adam(1e-3), seed=0, steps=1000)) -> Result

Initial weights, the order of images in each epoch and the augmentation of each step come from streams of
their own, derived from the seed: two optimizers with one seed see the same weights and the same batches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rllc.lab import networks
from rllc.lab.optimizers import Setting
from rllc.lab.tasks import Examples, Splits, Task, augment, tensors
from rllc.torch import RLLC

__all__ = ["Cell", "Point", "Result", "canonical", "digest", "evaluation_steps", "points_for", "train"]

FORMAT = 1  # raise it when the engine changes the numbers of a run: old records are then no longer found
EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Cell:
    """Everything that determines the numbers of one run. `device` is "cpu" or "cuda"."""

    task: Task
    setting: Setting
    seed: int
    steps: int
    device: str = "cpu"
    points: int = 50


class Point(NamedTuple):
    """What is measured after `step` steps: mean losses in nats, accuracies in [0, 1], the law L (k numbers).

    train_loss is the mean over the steps since the point before, None at step 0; law is empty where
    the optimizer has none.
    """

    step: int
    train_loss: float | None
    valid_loss: float
    valid_accuracy: float
    test_loss: float
    test_accuracy: float
    law: tuple[float, ...]


class Result(NamedTuple):
    """A run's points, the step by which its loss was no longer finite (or None), and its times.

    ms_per_step is the median over chunks of the time of one training step (batch, gradient, optimizer)
    without evaluation; seconds is all of it.
    """

    points: tuple[Point, ...]
    diverged_at: int | None
    ms_per_step: float
    seconds: float


def train(cell: Cell, report: Callable[[int], None] = lambda steps: None) -> Result:
    """Train the cell's network and measure it at the cell's evaluation steps.

    `report` is called with the number of steps done since it was called last.
    """
    started = time.perf_counter()
    with _reproducible():
        splits = tensors(cell.task, cell.device)
        run = _start(cell, splits)
        points, times = [_measure(run, splits, 0, None)], []
        for first, last in _chunks(cell):
            loss, seconds = _advance(run, cell, splits.train, range(first, last))
            times.append(1000 * seconds / (last - first))
            report(last - first)
            if not math.isfinite(loss):
                break
            points.append(_measure(run, splits, last, loss))
        diverged_at = None if math.isfinite(loss) else last
    return Result(tuple(points), diverged_at, statistics.median(times), time.perf_counter() - started)


def points_for(steps: int) -> int:
    """How many evaluations suit a run: 50, fewer in short runs, which they would otherwise dominate."""
    return min(50, max(10, steps // 10), steps)


def evaluation_steps(steps: int, points: int) -> list[int]:
    """0 and about `points` further steps, evenly spread, the last one `steps`."""
    return sorted({0} | {max(1, round(steps * i / points)) for i in range(1, points + 1)})


def canonical(cell: Cell) -> str:
    """The cell as JSON: the same text for the same cell, another for any other."""
    return json.dumps({"format": FORMAT} | _plain(cell), sort_keys=True, allow_nan=False)


def digest(cell: Cell) -> str:
    """32 hexadecimal digits that name the cell."""
    return hashlib.sha256(canonical(cell).encode()).hexdigest()[:32]


class _Run(NamedTuple):
    net: nn.Module
    optimizer: torch.optim.Optimizer
    layout: torch.memory_format


def _start(cell: Cell, splits: Splits) -> _Run:
    _, channels, height, width = splits.train.images.shape
    net = networks.build(cell.task.network, (channels, height, width), _stream(cell.seed, "weights", 0))
    # Measured on a CPU: convolutions take a fifth less time with channels last.
    layout = torch.contiguous_format if cell.task.network == "mlp" else torch.channels_last
    net = net.to(cell.device).to(memory_format=layout)  # type: ignore[call-overload]
    return _Run(net, cell.setting.build(net.parameters()), layout)


def _advance(run: _Run, cell: Cell, train: Examples, steps: range) -> tuple[float, float]:
    """Do these steps; the mean loss over them and the seconds they took."""
    total = torch.zeros((), dtype=torch.float64, device=cell.device)
    started = time.perf_counter()
    for batch in _batches(cell, train, steps):
        total += _step(run, batch)
    mean = total.item() / len(steps)  # waits for the device
    return mean, time.perf_counter() - started


def _step(run: _Run, batch: Examples) -> Tensor:
    """One step of the optimizer; the loss before it, a tensor of one entry."""
    run.optimizer.zero_grad()
    loss = F.cross_entropy(run.net(batch.images.contiguous(memory_format=run.layout)), batch.labels)
    loss.backward()
    run.optimizer.step()
    return loss.detach()


def _batches(cell: Cell, train: Examples, steps: range) -> Iterator[Examples]:
    """The batches of these steps, which depend on the seed and the step alone: a run can resume anywhere."""
    generator = torch.Generator(cell.device)
    per_epoch = len(train.labels) // cell.task.batch
    for step in steps:
        epoch, place = divmod(step, per_epoch)
        if step == steps.start or place == 0:
            order = _epoch_order(cell, len(train.labels), epoch)
        index = order[place * cell.task.batch : (place + 1) * cell.task.batch]
        images = train.images[index]
        if cell.task.augment:
            images = augment(images, generator.manual_seed(_stream(cell.seed, "augmentation", step)))
        yield Examples(images, train.labels[index])


def _epoch_order(cell: Cell, n: int, epoch: int) -> Tensor:
    """A permutation of the n training images; what does not fill a batch at its end sits the epoch out."""
    generator = torch.Generator().manual_seed(_stream(cell.seed, "order", epoch))
    return torch.randperm(n, generator=generator).to(cell.device)


def _stream(seed: int, purpose: str, index: int) -> int:
    """An independent seed for each purpose and index."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()[:8]) >> 1


def _measure(run: _Run, splits: Splits, step: int, train_loss: float | None) -> Point:
    run.net.eval()
    valid, test = _evaluate(run, splits.valid), _evaluate(run, splits.test)
    run.net.train()
    law = tuple(run.optimizer.law.tolist()) if isinstance(run.optimizer, RLLC) else ()
    return Point(step, train_loss, *valid, *test, law)


@torch.no_grad()
def _evaluate(run: _Run, examples: Examples) -> tuple[float, float]:
    """Mean loss and accuracy."""
    loss, correct = torch.zeros(2, dtype=torch.float64, device=examples.labels.device)
    for images, labels in zip(*(part.split(EVALUATION_BATCH) for part in examples), strict=True):
        logits = run.net(images.contiguous(memory_format=run.layout))
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    return loss.item() / len(examples.labels), correct.item() / len(examples.labels)


def _chunks(cell: Cell) -> Iterator[tuple[int, int]]:
    stops = evaluation_steps(cell.steps, cell.points)
    return itertools.pairwise(stops)


@contextlib.contextmanager
def _reproducible() -> Iterator[None]:
    """One thread, because sums over several depend on their number; only deterministic GPU convolutions."""
    threads, chosen = torch.get_num_threads(), torch.backends.cudnn.deterministic
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = chosen


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries that name their type; other values as they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__} | fields
    return value
