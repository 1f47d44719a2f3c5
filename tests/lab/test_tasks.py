"""Splits share nothing, normalisation is the paper's, augmentation repeats and does what it says."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from rllc.lab import data, tasks
from rllc.lab.data import Arrays, Characters
from rllc.lab.networks import CHARACTERS
from rllc.lab.tasks import TASKS, Task, augment, tensors


@pytest.fixture(autouse=True)
def forget():
    tensors.cache_clear()
    yield
    tensors.cache_clear()


def test_the_digits_are_split_into_three_thirds_that_share_nothing():
    splits = tensors(TASKS["digits-mlp"], "cpu")
    assert [len(part.labels) for part in splits] == [599, 599, 599]
    mean, std = TASKS["digits-mlp"].mean[0], TASKS["digits-mlp"].std[0]
    grey = [torch.round((part.images * std + mean) * 16).flatten(1).numpy() for part in splits]
    rows = np.column_stack([np.concatenate(grey), torch.cat([part.labels for part in splits])])
    images, labels = load_digits(return_X_y=True)
    expected = np.column_stack([images, labels])
    assert np.array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    assert min(torch.bincount(part.labels).min() for part in splits) > 45  # every digit everywhere


def test_the_digits_are_normalised():
    images = tensors(TASKS["digits-mlp"], "cpu").train.images
    assert abs(images.mean()) < 1e-3
    assert abs(images.std() - 1) < 1e-3


@pytest.mark.parametrize(
    "name, train, valid",
    [("mnist-mlp", 54000, 6000), ("fashion-conv", 54000, 6000), ("cifar10-conv", 45000, 5000)],
)
def test_splits_of_the_paper(name, train, valid, monkeypatch):
    """On images of one pixel whose label and grey level tell which image it is."""
    task = TASKS[name]
    number = np.arange(train + valid)
    images = np.repeat((number % 251).astype(np.uint8)[:, None, None, None], len(task.mean), axis=1)
    arrays = Arrays(images, (number % 10).astype(np.uint8), images[:10000], np.zeros(10000, np.uint8))
    monkeypatch.setattr(data, "load", lambda source: arrays)
    splits = tensors(task, "cpu")
    assert [len(part.labels) for part in splits] == [train, valid, 10000]
    assert torch.equal(torch.cat([splits.train.labels, splits.valid.labels]), torch.from_numpy(number % 10))
    grey = torch.cat([splits.train.images, splits.valid.images])[:, 0, 0, 0] * task.std[0] + task.mean[0]
    assert np.allclose(255 * grey, number % 251, atol=1e-3)


@pytest.fixture
def numbered(monkeypatch):
    """The splits of a text whose characters are all different: 0, 1, 2, ... in windows of 8."""
    text = np.arange(1000, dtype=np.int64)
    monkeypatch.setattr(data, "load", lambda source: Characters(text, text))
    return tensors(replace(TASKS["shakespeare-gpt"], valid=100, test=84, context=8), "cpu")


def test_labels_are_the_next_characters(numbered):
    for characters, following in numbered:
        assert characters.dtype == following.dtype == torch.int64
        assert characters.shape == following.shape == (len(following), 8)
        assert torch.equal(following, characters + 1)
        assert (characters.diff(dim=1) == 1).all()


def test_training_windows_begin_everywhere_the_others_follow_one_another(numbered):
    first = [part.images[:, 0].tolist() for part in numbered]
    assert first == [list(range(808)), list(range(816, 908, 8)), list(range(916, 992, 8))]


def test_no_character_is_in_two_splits(numbered):
    seen = [set(part.images.unique().tolist()) | set(part.labels.unique().tolist()) for part in numbered]
    assert seen == [set(range(816)), set(range(816, 913)), set(range(916, 997))]


def test_windows_are_views_of_one_text(numbered):
    parts = [tensor for split in numbered for tensor in split]
    assert len({tensor.untyped_storage().data_ptr() for tensor in parts}) == 1
    assert parts[0].untyped_storage().nbytes() == 8 * 1000


@pytest.mark.skipif(not os.environ.get("RLLC_DATA_DIR"), reason="RLLC_DATA_DIR is not set")
def test_shakespeare_is_split_as_on_the_hub():
    train, valid, test = tensors(TASKS["shakespeare-gpt"], "cpu")
    assert train.images.shape == (1_003_854 - 64, 64)
    assert valid.images.shape == test.images.shape == (55_769 // 64, 64)
    assert max(int(part.labels[:, 0].max()) for part in (train, valid, test)) < CHARACTERS


def test_every_task_of_the_paper_is_there():
    images = [task for task in TASKS.values() if isinstance(task, Task)]
    assert {task.name for task in images} == {
        "digits-mlp",
        *(f"{source}-{net}" for source in ("mnist", "fashion", "cifar10") for net in ("mlp", "conv")),
        "cifar10-resnet20",
    }
    assert [task.name for task in TASKS.values() if task.augment] == ["cifar10-resnet20"]
    assert all(task.batch == 128 for task in images)
    assert all(name == task.name for name, task in TASKS.items())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_augmentation_is_a_function_of_its_generator():
    images = torch.randn(16, 3, 32, 32, generator=generator())
    before = images.clone()
    first, again, other = (augment(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert first.shape == images.shape


def test_without_zoom_and_rotation_every_second_image_is_mirrored(monkeypatch):
    monkeypatch.setattr(tasks, "ZOOM", (1.0, 1.0))
    monkeypatch.setattr(tasks, "ROTATION", 0.0)
    images = torch.randn(200, 1, 8, 8, generator=generator())
    out = augment(images, generator(3))
    plain = (out - images).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (out - images.flip(-1)).abs().amax((1, 2, 3)) < 1e-4
    assert (plain ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


def test_zoom_and_crop_keep_to_their_bounds(monkeypatch):
    """On images that hold their own coordinates: 1 / zoom is the slope, and crops stay within the image."""
    monkeypatch.setattr(tasks, "ROTATION", 0.0)
    side = torch.linspace(-1, 1, 33)[:32] + 1 / 32
    images = side.view(1, 1, 1, 32).expand(500, 1, 32, 32)
    out = augment(images, generator(4))[:, 0, 16, 12:20]  # the middle, where no border is near
    zoom = ((out[:, -1] - out[:, 0]) / (side[19] - side[12])).abs()
    centre = (out[:, 3] + out[:, 4]) / 2
    assert zoom.min() > 0.799 and zoom.max() < 1.201
    assert zoom.min() < 0.81 and zoom.max() > 1.19
    assert (centre.abs() <= (1 - zoom).abs() + 1e-4).all()


def test_rotation_turns_by_up_to_its_bound(monkeypatch):
    monkeypatch.setattr(tasks, "ZOOM", (1.0, 1.0))
    side = torch.linspace(-1, 1, 33)[:32] + 1 / 32
    images = side.view(1, 1, 32, 1).expand(500, 1, 32, 32)  # the height of each pixel
    out = augment(images, generator(5))[:, 0, 16]
    angle = torch.asin((out[:, 19] - out[:, 12]) / (side[19] - side[12]))
    assert 0.97 * tasks.ROTATION < angle.abs().max() <= 1.001 * tasks.ROTATION
