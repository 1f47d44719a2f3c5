"""Means, deviations and tests agree with what is known of them."""

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from made_up import CIFAR, seeds

from rllc.lab.evidence.outcomes import (
    Sample,
    accuracies,
    best_on_validation,
    compare,
    error_of_difference,
    losses,
    quickest,
)
from rllc.lab.optimizers import paper_trials
from rllc.lab.selection import Row

numbers = st.lists(st.floats(0, 1), min_size=2, max_size=5).map(tuple)
MIRROR = {"above": "below", "ahead": "behind", "level": "level", "behind": "ahead", "below": "above"}


def row(name, records):
    setting = paper_trials(name)[:1]
    return Row(name, setting, tuple(records), setting)


def test_a_sample_of_a_row_leaves_out_what_diverged():
    records = [*seeds("SGD", [[0.1, 0.9, 0.5], [0.1, 0.8, 0.7]]), *seeds("SGD", [0.9], diverged_at=3)]
    assert accuracies(row("SGD", records), "last") == Sample((0.5, 0.7))
    assert accuracies(row("SGD", records), "best") == Sample((0.9, 0.8))
    assert losses(row("SGD", records), "last").mean == pytest.approx(0.4)
    assert accuracies(row("SGD", records), "last").std == pytest.approx(0.02**0.5)
    assert Sample((1.0,)).std is None and Sample(()).std is None


@pytest.mark.parametrize(
    "ours, theirs, outcome",
    [
        ((0.90, 0.91, 0.92), (0.80, 0.81, 0.82), "above"),  # t = 12.2
        ((0.90, 0.92, 0.94), (0.88, 0.90, 0.92), "ahead"),  # t = 1.22
        ((0.90, 0.92, 0.94), (0.89, 0.91, 0.93), "level"),  # t = 0.61
        ((0.9, 0.9), (0.8, 0.8), "above"),  # without any spread
        ((0.9, 0.9), (0.9, 0.9), "level"),
        ((0.9,), (0.8, 0.8), None),
    ],
)
def test_outcomes(ours, theirs, outcome):
    assert compare(Sample(ours), Sample(theirs)) == outcome
    assert compare(Sample(theirs), Sample(ours)) == MIRROR.get(outcome)


@given(numbers, numbers)
def test_above_and_below_are_what_welch_tells_apart(a, b):
    if min(Sample(a).std, Sample(b).std) > 1e-6:
        error = error_of_difference(Sample(a), Sample(b))
        test = scipy.stats.ttest_ind(a, b, equal_var=False)
        assert test.statistic == pytest.approx((Sample(a).mean - Sample(b).mean) / error)
        assert (compare(Sample(a), Sample(b)) in ("above", "below")) == (test.pvalue < 0.05)


def test_the_quickest_run_counts_on_the_machine_of_most():
    slowed = [*seeds("SGD", [0.5], ms=9.0), *seeds("SGD", [0.5], ms=2.0), *seeds("Adam", [0.5], ms=3.0)]
    elsewhere = [*seeds("SGD", [0.5], ms=0.1, hardware="a GPU"), *seeds("Adam", [0.5], ms=0.2, diverged_at=1)]
    there = seeds("SGD", [0.5], ms=0.1, hardware="a GPU", task=CIFAR)
    assert quickest([*slowed, *elsewhere, *there]) == {
        ("fashion-mlp", "SGD"): 2.0,
        ("fashion-mlp", "Adam"): 3.0,
        ("cifar10-mlp", "SGD"): 0.1,
    }


def test_the_best_on_validation_is_chosen_without_a_look_at_test_data():
    good = row("M(0.9)", seeds("M(0.9)", [0.5, 0.5], valid=[0.1, 0.9]))
    lucky = row("M_2(0.6)", seeds("M_2(0.6)", [0.99, 0.99], valid=[0.1, 0.8]))
    lost = row("M_3(0.6)", seeds("M_3(0.6)", [0.99], valid=[0.1, 0.99], diverged_at=3))
    assert best_on_validation([lucky, good, lost]) is good
    assert best_on_validation([lost]) is None
