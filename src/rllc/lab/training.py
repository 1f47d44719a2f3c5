"""One run: a pure function of its cell, which gives the same numbers, to the bit, on the same machine.

    train(Cell(TASKS["digits-mlp"], Adam(1e-3), seed=0, steps=1000)) -> Result

Initial weights, the order of images in each epoch and the augmentation of each step come from streams of
their own, derived from the seed: two optimizers with one seed see the same weights and the same batches.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn
from torch.nn import functional as F

from rllc.lab import checkpoints, networks
from rllc.lab.cells import Cell, Point, Result, digest, evaluation_steps
from rllc.lab.files import Folder
from rllc.lab.graphs import Captured
from rllc.lab.methods import Method
from rllc.lab.settings import SGD, Adam, Rllc
from rllc.lab.tasks import Examples, Splits, Task, TextTask, augment, tensors
from rllc.torch import RLLC, RLLCAdamW

__all__ = ["train"]

# Images at once in an evaluation. On a CPU what a ResNet's layers hand on must fit the cache: half the time.
EVALUATION_BATCH = {"cpu": 250, "cuda": 1000}
SAVE_SECONDS = 60.0
# Settings whose step, on a GPU, asks nothing back from it and uses no number of the host that changes.
CAPTURABLE = SGD | Adam | Rllc

Losses = tuple[float, float, float | None, float | None]


def train(
    cell: Cell,
    report: Callable[[int], None] = lambda steps: None,
    keep: Folder | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Result | None:
    """Train the cell's network and measure it at the cell's evaluation steps.

    `report` is called with the number of steps done since it was called last. After each evaluation `stop`
    is asked whether to end there, and then the result is None. With a folder to keep checkpoints in, a run is
    saved once a minute and where it is stopped, and goes on from there to the same bits.

    Raises:
        Damaged: there is a checkpoint of this cell that cannot be read or does not fit.
        OSError: a checkpoint cannot be written.
    """
    with _reproducible():
        splits = tensors(cell.task, cell.device)
        run = _start(cell, splits)
        if keep is not None and (state := checkpoints.load(keep, digest(cell))) is not None:
            with checkpoints.fitting(keep, digest(cell)):
                run.restore(state)
            report(run.step)
        saved = time.perf_counter()
        for first, last in _chunks(cell, run.step):
            finite = _chunk(run, cell, splits, first, last)
            report(last - first)
            if not finite:
                return run.result(diverged_at=last)
            stopped = last < cell.steps and stop()
            if keep is not None and (stopped or time.perf_counter() - saved > SAVE_SECONDS):
                checkpoints.save(keep, digest(cell), run.state())
                saved = time.perf_counter()
            if stopped:
                return None
    return run.result(diverged_at=None)


@dataclass
class _Run:
    """A run on its way: what is trained, and what has been measured up to `step`."""

    net: nn.Module
    method: Method
    layout: torch.memory_format
    train_on: Callable[..., Any]  # images and labels: one step; the loss before it, until the next
    step: int = 0
    points: list[Point] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # ms per step, a number for each chunk
    seconds: float = 0.0

    def result(self, diverged_at: int | None) -> Result:
        return Result(tuple(self.points), diverged_at, statistics.median(self.times), self.seconds)

    def law(self) -> tuple[float, ...]:
        """L, if the optimizer has one; of laws for several scopes, one after the other."""
        optimizer = self.method.optimizer
        return tuple(optimizer.law.flatten().tolist()) if isinstance(optimizer, RLLC | RLLCAdamW) else ()

    def state(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        progress = {
            "step": self.step,
            "points": [[*point] for point in self.points],
            "times": self.times,
            "seconds": self.seconds,
        }
        return progress | {name: part.state_dict() for name, part in self._parts().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where the checkpoint was made."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step, self.times, self.seconds = state["step"], state["times"], state["seconds"]
        self.points = [Point._make((*values, tuple(law))) for *values, law in state["points"]]

    def _parts(self) -> dict[str, Any]:
        parts = {"net": self.net} | self.method._asdict()
        return {name: part for name, part in parts.items() if part is not None}


def _start(cell: Cell, splits: Splits) -> _Run:
    net, layout = _network(cell.task, cell.seed, cell.device, splits)
    how = cell.setting.method(net, cell.steps)
    step = functools.partial(_step, net, how, layout)
    captured = cell.device == "cuda" and isinstance(cell.setting, CAPTURABLE)
    return _Run(net, how, layout, Captured(step) if captured else step)


def _network(
    task: Task | TextTask, seed: int, device: str, splits: Splits
) -> tuple[nn.Module, torch.memory_format]:
    """The network before training, and the layout of images it is fastest with."""
    shape = splits.train.images.shape[1:]
    net = networks.build(task.network, tuple(shape), _stream(seed, "weights", 0))
    layout = networks.layout(task.network)
    return net.to(device).to(memory_format=layout), layout  # type: ignore[call-overload]


def _chunk(run: _Run, cell: Cell, splits: Splits, first: int, last: int) -> bool:
    """The steps between two evaluations and the evaluation after them; whether all losses are finite."""
    started = time.perf_counter()
    if first == 0:
        before = _untrained(cell.task, cell.seed, cell.device, cell.tested)
        run.points.append(Point(0, None, *before, run.law()))
    loss, seconds = _advance(run, cell, splits.train, range(first, last))
    run.times.append(1000 * seconds / (last - first))
    point = _measure(run, splits, last, loss, cell.tested) if math.isfinite(loss) else None
    finite = point is not None and math.isfinite(point.valid_loss + (point.test_loss or 0.0))
    if point is not None and finite:
        run.points.append(point)
    run.step = last
    run.seconds += time.perf_counter() - started
    return finite


def _advance(run: _Run, cell: Cell, train: Examples, steps: range) -> tuple[float, float]:
    """Do these steps; the mean loss over them and the seconds they took."""
    total = torch.zeros((), dtype=torch.float64, device=cell.device)
    started = time.perf_counter()
    for batch in _batches(cell, train, steps):
        total += run.train_on(*batch)
    mean = total.item() / len(steps)  # waits for the device
    return mean, time.perf_counter() - started


def _step(net: nn.Module, how: Method, layout: torch.memory_format, images: Tensor, labels: Tensor) -> Tensor:
    """One step of the optimizer; the loss before it, a tensor of one entry."""
    optimizer, schedule, average = how
    optimizer.zero_grad()
    loss = F.cross_entropy(net(images.contiguous(memory_format=layout)), labels)
    loss.backward()
    optimizer.step()
    if schedule is not None:
        schedule.step()
    if average is not None:
        average.update_parameters(net)
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
        images = train.images.index_select(0, index)  # in half the time of train.images[index]
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


@functools.lru_cache(maxsize=16)
def _untrained(task: Task | TextTask, seed: int, device: str, tested: bool) -> Losses:
    """Losses and accuracies at the initial weights, which all optimizers share: measured once."""
    splits = tensors(task, device)
    net, layout = _network(task, seed, device, splits)
    return _losses(net.eval(), splits, layout, tested)


def _measure(run: _Run, splits: Splits, step: int, train_loss: float | None, tested: bool) -> Point:
    with _measured(run) as net:
        return Point(step, train_loss, *_losses(net, splits, run.layout, tested), run.law())


@contextlib.contextmanager
def _measured(run: _Run) -> Iterator[nn.Module]:
    """The network to measure, in evaluation mode: the average where there is one, also an optimizer's own."""
    net, averaging = run.method.average or run.net, _averaging(run.method.optimizer)
    net.eval()
    if averaging is not None:
        averaging.eval()
    yield net
    if averaging is not None:
        averaging.train()
    net.train()


def _averaging(optimizer: torch.optim.Optimizer) -> AdamWScheduleFree | RLLC | RLLCAdamW | None:
    """The optimizer, if it holds weights to measure that are not those it trains."""
    if isinstance(optimizer, AdamWScheduleFree):
        return optimizer
    is_ours = isinstance(optimizer, RLLC | RLLCAdamW) and optimizer.param_groups[0].get("average") is not None
    return optimizer if is_ours else None


def _losses(net: nn.Module, splits: Splits, layout: torch.memory_format, tested: bool) -> Losses:
    """Loss and accuracy on validation data, then on test data, unless those are not asked for."""
    test = _evaluate(net, splits.test, layout) if tested else (None, None)
    return *_evaluate(net, splits.valid, layout), *test


@torch.no_grad()
def _evaluate(net: nn.Module, examples: Examples, layout: torch.memory_format) -> tuple[float, float]:
    """Mean loss and accuracy."""
    device = examples.labels.device
    loss, correct = torch.zeros(2, dtype=torch.float64, device=device)
    size = EVALUATION_BATCH[device.type]
    for images, labels in zip(*(part.split(size) for part in examples), strict=True):
        logits = net(images.contiguous(memory_format=layout))
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    return loss.item() / examples.labels.numel(), correct.item() / examples.labels.numel()


def _chunks(cell: Cell, done: int) -> Iterator[tuple[int, int]]:
    """The first and the last step of each chunk that begins at or after step `done`."""
    return ((a, b) for a, b in itertools.pairwise(evaluation_steps(cell.steps, cell.points)) if a >= done)


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
