"""A committed record can be made again from its own configuration."""

from pathlib import Path

import pytest

from rllc.lab.files import Folder
from rllc.lab.records import read_all
from rllc.lab.training import train

RECORDS = Folder(str(Path(__file__).parents[2] / "results" / "records"))
# Between AVX-512 and plain SSE2 arithmetic losses and the law of this run differ by 2e-7 at most.
OTHER_HARDWARE = 1e-5


def test_300_steps_on_the_digits_give_the_committed_numbers():
    kept = [r for r in read_all(RECORDS)[0] if r.cell.task.name == "digits-mlp" and r.cell.steps == 300]
    (record,) = kept
    result = train(record.cell)
    assert len(result.points) == 31 and result.points[-1].test_accuracy > 0.95
    for made, committed in zip(result.points, record.result.points, strict=True):
        assert made.step == committed.step
        assert made.law == pytest.approx(committed.law, abs=OTHER_HARDWARE)
        losses = (made.train_loss or 0, made.valid_loss, made.test_loss)
        expected = (committed.train_loss or 0, committed.valid_loss, committed.test_loss)
        assert losses == pytest.approx(expected, abs=OTHER_HARDWARE)
        assert made.test_accuracy == pytest.approx(committed.test_accuracy, abs=1.5 / 599)
