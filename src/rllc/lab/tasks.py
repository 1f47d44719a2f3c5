"""What is learned: data, network, split and normalisation under a name (arXiv 2402.15262, A.5).

TASKS["mnist-mlp"]           a Task, TASKS["shakespeare-gpt"] a TextTask
tensors(task, "cpu")         its Splits(train, valid, test): normalised float32 images and int64 labels
augment(images, generator)   random crop, flip and rotation of a batch
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rllc.lab import data
from rllc.lab.data import CIFAR10, DIGITS, FASHION, MNIST, SHAKESPEARE, Source, Text

__all__ = ["TASKS", "Examples", "Splits", "Task", "TextTask", "augment", "tensors"]

ZOOM = (0.8, 1.2)  # side of the crop over the side of the image (A.5.3)
ROTATION = math.radians(15)  # largest angle; the paper does not give its own
FULL_SCALE = 255.0


@dataclass(frozen=True)
class Task:
    """Everything about a training problem that changes its numbers.

    Validation images are the last `valid` of the training file; what is left trains. Images are divided by
    `full_scale`, then normalised by mean and std, each with one entry per channel.
    """

    name: str
    data: Source
    network: str
    valid: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    full_scale: float = FULL_SCALE
    augment: bool = False
    batch: int = 128
    steps: int = 10_000  # unless asked otherwise

    @property
    def evaluation_cost(self) -> int:
        """An evaluation comes after as many training steps at least.

        They take about as long as it does; of convolutions, where it is seconds, more than twice as long.
        """
        batches = self.valid // self.batch
        return max(1, batches if self.network == "mlp" else 4 * batches)


@dataclass(frozen=True)
class TextTask:
    """Everything about predicting the next character of a text that changes its numbers.

    The last `test` characters of the text are for testing, the `valid` before them for validation, what is
    left trains. An example is `context` characters in a row.
    """

    name: str
    data: Text
    network: str
    valid: int
    test: int
    context: int
    batch: int
    steps: int  # unless asked otherwise
    augment: ClassVar[bool] = False

    @property
    def evaluation_cost(self) -> int:
        """An evaluation takes about as long as this many training steps."""
        return max(1, self.valid // (self.batch * self.context))


def _mnist(network: str) -> Task:
    return Task(f"mnist-{network}", MNIST, network, 6000, (0.1307,), (0.3081,))


def _fashion(network: str) -> Task:
    return Task(f"fashion-{network}", FASHION, network, 6000, (0.3,), (0.3,))


def _cifar10(network: str, augment: bool = False) -> Task:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    return Task(f"cifar10-{network}", CIFAR10, network, 5000, mean, std, augment=augment)


# The digits are ours, for a first look in a minute: 599 / 599 / 599 images of 8x8 in 17 grey levels.
_DIGITS = Task("digits-mlp", DIGITS, "mlp", 599, (0.3039,), (0.3757,), full_scale=16.0, steps=600)

# 90, 5 and 5 %, split as on the hub; batch and width are such that a step takes 40 ms on one core.
_SHAKESPEARE = TextTask(
    "shakespeare-gpt", SHAKESPEARE, "gpt", valid=55_770, test=55_770, context=64, batch=24, steps=3000
)

TASKS: dict[str, Task | TextTask] = {
    task.name: task
    for task in (
        _DIGITS,
        _mnist("mlp"),
        _mnist("conv"),
        _fashion("mlp"),
        _fashion("conv"),
        _cifar10("mlp"),
        _cifar10("conv"),
        _cifar10("resnet20", augment=True),
        _SHAKESPEARE,
    )
}


class Examples(NamedTuple):
    """Images (n, channels, height, width) float32 and labels (n,) int64 on one device.

    Of a text: characters (n, context) int64, and as labels the character after each of them, (n, context).
    """

    images: Tensor
    labels: Tensor


class Splits(NamedTuple):
    """The three parts of a task's data; no image or character is in two of them."""

    train: Examples
    valid: Examples
    test: Examples


@functools.lru_cache(maxsize=1)
def tensors(task: Task | TextTask, device: str) -> Splits:
    """The task's data, normalised, on the device; the last one asked for is kept."""
    return _windows(task, device) if isinstance(task, TextTask) else _images(task, device)


def _images(task: Task, device: str) -> Splits:
    arrays = data.load(task.data)
    images, labels = _normalised(task, arrays.train_images), torch.from_numpy(arrays.train_labels).long()
    test = Examples(_normalised(task, arrays.test_images), torch.from_numpy(arrays.test_labels).long())
    first = len(labels) - task.valid
    parts = Examples(images[:first], labels[:first]), Examples(images[first:], labels[first:]), test
    return Splits(*(Examples(part.images.to(device), part.labels.to(device)) for part in parts))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop at a zoom of 0.8 to 1.2, flip every second image, rotate: a new (n, channels, height, width).

    One bilinear sampling for the whole batch. Outside the image lies zero, which after normalisation is the
    mean colour. The generator must be on the images' device.
    """
    u = torch.rand(5, len(images), generator=generator, device=images.device)
    zoom = ZOOM[0] + (ZOOM[1] - ZOOM[0]) * u[0]
    angle = ROTATION * (2 * u[1] - 1)
    mirror = torch.where(u[2] < 0.5, -1.0, 1.0)
    room = (1 - zoom).abs()  # how far the crop can move inside the image, or the image inside the crop
    x, y = room * (2 * u[3] - 1), room * (2 * u[4] - 1)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    affine = torch.stack([mirror * cos, -sin, x, mirror * sin, cos, y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _normalised(task: Task, images: data.Bytes) -> Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (task.mean, task.std))
    return torch.from_numpy(images).float().div_(task.full_scale).sub_(mean).div_(std)


def _windows(task: TextTask, device: str) -> Splits:
    """Training windows begin at every character, as views of one text; the others follow one another."""
    text = torch.from_numpy(data.load(task.data).text).long().to(device)
    train, valid, test = text.split([len(text) - task.valid - task.test, task.valid, task.test])
    parts = (train, 1), (valid, task.context), (test, task.context)
    return Splits(*(_next(part, task.context, step) for part, step in parts))


def _next(text: Tensor, context: int, step: int) -> Examples:
    """Windows of the text, one every `step` characters, and the same windows one character on: no copies."""
    return Examples(text[:-1].unfold(0, context, step), text[1:].unfold(0, context, step))
