"""The paper's numbers are the printed ones."""

import pytest

from rllc.lab.evidence.paper import published
from rllc.lab.optimizers import PAPER
from rllc.lab.studies import PAPER_TASKS


def test_every_cell_is_there():
    cells = [published(task, name) for task in PAPER_TASKS for name in PAPER]
    assert None not in cells and len(set(cells)) == 77
    assert all(0 < c.loss < 2 and 0.5 < c.accuracy < 1 and 0 < c.std < 0.013 for c in cells)


@pytest.mark.parametrize(
    "task, name, numbers",
    [
        ("mnist-conv", "Adam", (0.0304, 0.98988, 0.0004)),
        ("fashion-mlp", "M(0.9) + M_2(0.6)", (0.3536, 0.890295, 0.0013)),
        ("cifar10-conv", "M(0.9) + M(0.0) + M_2(0.6)", (0.7216, 0.757648, 0.0028)),
        ("cifar10-resnet20", PAPER[-1], (0.5337, 0.830663, 0.0089)),
    ],
)
def test_numbers_as_printed(task, name, numbers):
    assert published(task, name) == pytest.approx(numbers)


def test_what_the_paper_does_not_have_is_none():
    assert published("digits-mlp", "Adam") is None
    assert published("mnist-mlp", "M(0.5)") is None
