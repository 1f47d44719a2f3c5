"""Validation data choose; test data and diverged runs have no say."""

from hypothesis import given
from hypothesis import strategies as st
from made import record, with_test

from rllc.lab.selection import best_point, choose, finished
from rllc.lab.settings import SGD

accuracy = st.sampled_from([0.1, 0.5, 0.7, 0.9])
curves = st.lists(st.tuples(accuracy, accuracy, accuracy), min_size=1, max_size=6)


@given(curves, st.data())
def test_test_accuracies_do_not_matter(valids, data):
    made = [record(list(valid), setting=SGD(0.1 * (i + 1))) for i, valid in enumerate(valids)]
    shuffled = [with_test(r, data.draw(st.tuples(accuracy, accuracy, accuracy))) for r in made]
    assert choose(made).cell == choose(shuffled).cell
    assert best_point(choose(made)).step == best_point(choose(shuffled)).step


@given(curves)
def test_the_best_validation_accuracy_of_any_point_wins(valids):
    made = [record(list(valid), setting=SGD(0.1 * (i + 1))) for i, valid in enumerate(valids)]
    assert best_point(choose(made)).valid_accuracy == max(max(valid) for valid in valids)


def test_a_diverged_run_is_never_chosen():
    good, bad = record([0.1, 0.5], setting=SGD(0.1)), record([0.1, 0.99], setting=SGD(1.0), diverged_at=10)
    assert choose([bad, good]) is good
    assert choose([bad]) is None
    assert choose([]) is None
    assert finished([bad, good]) == (good,)


def test_ties_go_to_the_lower_validation_loss_then_to_the_first():
    a = record([0.1, 0.9], loss=[2.0, 0.3], setting=SGD(0.1))
    b = record([0.1, 0.9], loss=[2.0, 0.2], setting=SGD(0.2))
    c = record([0.1, 0.9], loss=[2.0, 0.2], setting=SGD(0.3))
    assert choose([a, b, c]) is b
    assert best_point(record([0.5, 0.9, 0.9], loss=[1.0, 0.5, 0.5])).step == 10
    assert best_point(record([0.5, 0.9, 0.9], loss=[1.0, 0.5, 0.4])).step == 20
