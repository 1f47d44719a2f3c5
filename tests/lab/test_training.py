"""A run is a pure function of its cell."""

import dataclasses
import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import DIGITS, TWO_UNITS, cell

from rllc.lab import training
from rllc.lab.cells import canonical, cell_of, digest, evaluation_steps, points_for
from rllc.lab.settings import SGD, Adam, Rllc
from rllc.lab.tasks import TASKS, Examples, tensors
from rllc.lab.training import train
from rllc.law import GramianRidge, Ridge

NUMBERED = Examples(torch.arange(599.0).view(-1, 1, 1, 1), torch.arange(599))


@pytest.mark.parametrize("setting", [SGD(0.1), SGD(0.03, momentum=0.9), Adam(1e-3), TWO_UNITS])
def test_a_rerun_gives_the_same_bits(setting):
    first = train(cell(setting))
    torch.rand(5)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = train(cell(setting))
        assert torch.get_num_threads() == 2  # put back
    finally:
        torch.set_num_threads(threads)
    assert again.points == first.points
    assert train(cell(setting, seed=1)).points != first.points


def test_it_learns_and_measures_what_it_says():
    result = train(cell(Adam(1e-3), steps=60, points=4))
    assert [point.step for point in result.points] == [0, 15, 30, 45, 60]
    first, last = result.points[0], result.points[-1]
    assert first.train_loss is None
    assert abs(first.valid_loss - 2.3) < 0.5  # ln 10
    assert last.valid_loss < 0.6 * first.valid_loss
    assert last.valid_accuracy > 0.8
    assert result.diverged_at is None
    assert 0 < result.ms_per_step * 60 / 1000 < 2 * result.seconds


def test_points_are_loss_and_accuracy_of_the_network():
    run = training._start(cell(), tensors(DIGITS, "cpu"))
    valid = tensors(DIGITS, "cpu").valid
    point = training._measure(run, tensors(DIGITS, "cpu"), 0, None, True)
    probabilities = torch.softmax(run.net(valid.images).double(), 1)
    expected = -probabilities[range(len(valid.labels)), valid.labels].log().mean()
    assert abs(point.valid_loss - expected) < 1e-6
    assert point.valid_accuracy == (probabilities.argmax(1) == valid.labels).double().mean()


def test_the_laws_path_is_recorded_from_the_start():
    result = train(cell(TWO_UNITS))
    assert result.points[0].law == (1.0, 1.0)
    assert all(len(point.law) == 2 for point in result.points)
    assert result.points[-1].law != (1.0, 1.0)
    assert train(cell(SGD(0.1))).points[-1].law == ()


def test_optimizers_with_one_seed_start_alike():
    assert train(cell(SGD(0.1))).points[0][:-1] == train(cell(TWO_UNITS)).points[0][:-1]


def test_steps_without_a_learning_rate_leave_the_network_alone():
    points = train(cell(SGD(0.0))).points
    assert len({point[2:] for point in points}) == 1


def test_a_diverged_run_stops_and_says_where():
    reported = []
    result = train(cell(SGD(1e6), steps=1000, points=10), reported.append)
    assert result.diverged_at in (100, 200)
    assert sum(reported) == result.diverged_at
    assert [point.step for point in result.points] == list(range(0, result.diverged_at, 100))


def test_a_run_that_breaks_down_in_its_last_step_has_diverged_too():
    # The loss before the first step is finite, the network after it is not.
    result = train(cell(SGD(1e38), steps=1, points=1))
    assert result.diverged_at == 1 and len(result.points) == 1
    assert result.points[0].valid_loss < 10


def test_report_hears_every_step():
    reported = []
    train(cell(steps=25, points=4), reported.append)
    assert sum(reported) == 25 and len(reported) == 4


def labels(steps, **changes):
    return [batch.labels for batch in training._batches(cell(**changes), NUMBERED, steps)]


def test_an_epoch_has_no_image_twice_and_the_next_has_another_order():
    first, second = torch.cat(labels(range(0, 4))), torch.cat(labels(range(4, 8)))
    assert len(first.unique()) == len(second.unique()) == 4 * 128
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.cat(labels(range(0, 4), seed=1)))


def test_images_stay_with_their_labels():
    for images, number in training._batches(cell(), NUMBERED, range(6)):
        assert torch.equal(images.flatten().long(), number)


def test_batches_can_be_taken_up_at_any_step():
    whole, rest = labels(range(0, 11)), labels(range(6, 11))
    assert all(torch.equal(a, b) for a, b in zip(whole[6:], rest, strict=True))


def test_augmentation_depends_on_seed_and_step_only():
    augmented = dataclasses.replace(cell(), task=dataclasses.replace(DIGITS, augment=True))
    images = Examples(torch.randn(599, 1, 8, 8), torch.arange(599))
    whole = list(training._batches(augmented, images, range(0, 5)))
    late = list(training._batches(augmented, images, range(3, 5)))
    assert torch.equal(whole[3].images, late[0].images) and torch.equal(whole[4].images, late[1].images)
    plain = next(training._batches(cell(), images, range(1)))
    assert torch.equal(plain.labels, whole[0].labels) and not torch.equal(plain.images, whole[0].images)


@given(st.integers(1, 20_000), st.integers(1, 60))
def test_evaluation_steps_run_from_0_to_the_end(steps, points):
    chosen = evaluation_steps(steps, points)
    assert chosen[0] == 0 and chosen[-1] == steps
    assert all(a < b for a, b in itertools.pairwise(chosen))
    assert len(chosen) == min(points, steps) + 1
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert max(gaps) - min(gaps) <= 1


@given(st.sampled_from(list(TASKS.values())), st.integers(1, 20_000))
def test_points_for_is_50_for_all_but_short_runs(task, steps):
    points = points_for(task, steps)
    assert 1 <= points <= steps and points <= 50
    assert points == 50 or steps < max(500, 50 * task.evaluation_cost)
    assert points <= 2 or points * task.evaluation_cost <= steps


def test_networks_of_convolutions_are_evaluated_less_often():
    assert {name: task.evaluation_cost for name, task in TASKS.items()} == {
        "digits-mlp": 4,
        "mnist-mlp": 46,
        "mnist-conv": 184,
        "fashion-mlp": 46,
        "fashion-conv": 184,
        "cifar10-mlp": 39,
        "cifar10-conv": 156,
        "cifar10-resnet20": 156,
        "shakespeare-gpt": 36,
    }


def test_the_digest_tells_any_two_cells_apart():
    base = cell(TWO_UNITS)
    others = [
        dataclasses.replace(base, seed=1),
        dataclasses.replace(base, steps=13),
        dataclasses.replace(base, points=4),
        dataclasses.replace(base, device="cuda"),
        dataclasses.replace(base, tested=False),
        dataclasses.replace(base, task=dataclasses.replace(DIGITS, batch=64)),
        dataclasses.replace(
            base, task=dataclasses.replace(DIGITS, data=dataclasses.replace(DIGITS.data, digest="0"))
        ),
        *(
            dataclasses.replace(base, setting=dataclasses.replace(TWO_UNITS, **change))
            for change in (
                {"lr": 0.5},
                {"law_lr": 0.5},
                {"law": (1.0, 0.0)},
                {"guard": False},
                {"inverse": Ridge(1e-3)},
                {"inverse": GramianRidge(1e-9)},
            )
        ),
        dataclasses.replace(base, setting=SGD(0.01)),
        dataclasses.replace(base, setting=SGD(0.01, momentum=0.9)),
    ]
    assert len({digest(other) for other in [base, *others]}) == len(others) + 1
    assert digest(cell(TWO_UNITS)) == digest(base)


def test_a_cell_without_test_data_trains_alike_and_knows_nothing_of_them():
    tested, untested = train(cell(TWO_UNITS)), train(dataclasses.replace(cell(TWO_UNITS), tested=False))
    assert untested.points == tuple(p._replace(test_loss=None, test_accuracy=None) for p in tested.points)
    with pytest.raises(ValueError, match="not measured at step 12"):
        untested.points[-1].on_test_data()


def test_cells_of_before_that_choice_keep_their_digests():
    text = canonical(cell(TWO_UNITS))
    assert "tested" not in text and cell_of(text) == cell(TWO_UNITS)
    untested = dataclasses.replace(cell(TWO_UNITS), tested=False)
    assert '"tested": false' in canonical(untested) and cell_of(canonical(untested)) == untested
    with pytest.raises(ValueError, match="another version"):  # one cell, one text
        cell_of(json.dumps(json.loads(text) | {"tested": True}, sort_keys=True))


def test_the_configuration_names_every_hyperparameter():
    setting = json.loads(canonical(cell(TWO_UNITS)))["setting"]
    default = GramianRidge()
    assert setting["inverse"] == {"type": "GramianRidge"} | dataclasses.asdict(default)
    assert setting["type"] == Rllc.__name__
    assert {"memory", "lr", "law_lr", "law", "guard"} < set(setting)
    adam = json.loads(canonical(cell(Adam(1e-3))))["setting"]
    assert adam == {"type": "Adam"} | json.loads(json.dumps(dataclasses.asdict(Adam(1e-3))))
