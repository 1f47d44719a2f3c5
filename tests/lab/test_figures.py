"""The picture shows what is in the records."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import TWO_UNITS, record
from matplotlib.colors import to_rgb

from rllc.lab.evidence.drawing import colours, spread, unit_names
from rllc.lab.evidence.figures import comparison
from rllc.lab.optimizers import DEFAULTS, PAPER
from rllc.lab.selection import Row
from rllc.lab.settings import RLLC_ADAMW, SGD
from rllc.notation import parse


def rows():
    sgd = [record([0.1, 0.7, v], seed=i) for i, v in enumerate((0.8, 0.9))]
    lost = record([0.1, 0.2, 0.3], seed=2, diverged_at=20)
    memory = [record([0.1, 0.8, 0.85], setting=TWO_UNITS, seed=i, law=(1.0, 0.5 + i)) for i in (0, 1)]
    return [
        Row("SGD", (SGD(0.1),), (*sgd, lost), (SGD(0.1),)),
        Row(TWO_UNITS.memory, (TWO_UNITS,), tuple(memory), (TWO_UNITS,)),
        Row("Adam", (SGD(0.1),), (), ()),
    ]


def test_curves_are_means_and_bands_go_from_smallest_to_largest():
    figure = comparison(rows(), "a title")
    accuracy, law = figure.axes
    sgd = accuracy.lines[0]
    assert sgd.get_xdata().tolist() == [0, 10, 20]
    assert np.allclose(sgd.get_ydata(), [10, 70, 85])  # the diverged seed is left out
    band = accuracy.collections[0].get_paths()[0].vertices
    assert np.allclose([band[band[:, 0] == 20, 1].min(), band[band[:, 0] == 20, 1].max()], [80, 90])
    assert np.allclose(law.lines[1].get_ydata(), 1.0)  # the mean of 0.5 and 1.5
    assert [text.get_text() for text in law.get_legend().get_texts()] == ["M(0.9)", "M(0.0)"]
    assert figure.get_suptitle() == "a title"


def test_every_end_is_in_view_and_labelled():
    accuracy = comparison(rows(), "").axes[0]
    low, high = accuracy.get_ylim()
    assert low < 80 and high > 90 and low > 10  # and the first steps are cut away
    assert [text.get_text() for text in accuracy.texts] == ["SGD  85.0", "M(0.9) + M(0.0)  85.0"]


def test_an_end_far_below_the_others_is_named_but_does_not_flatten_them():
    ends = [record([0.1, 0.9, 0.95 + i / 1000], setting=TWO_UNITS) for i in range(4)]
    good = [Row(f"M(0.{i})", (), (end,), ()) for i, end in enumerate(ends)]
    bad = Row("Adam", (), (record([0.1, 0.3, 0.2], setting=TWO_UNITS),), ())
    accuracy = comparison([*good, bad], "").axes[0]
    assert accuracy.get_ylim()[0] > 85
    assert "Adam  20.0" in [text.get_text() for text in accuracy.texts]


def test_a_comparison_in_which_all_diverged_is_still_a_picture():
    assert len(comparison([Row("SGD", (SGD(1.0),), (), ())], "").axes) == 1


@pytest.mark.parametrize("count", [3, 5])
def test_laws_go_on_in_a_second_row_of_panels(count):
    memories = ["M(0.9)", "M(0.8)", "M(0.7)", "M(0.6)", "M(0.5)"][:count]
    made = [Row(m, (), (record([0.1, 0.5], setting=TWO_UNITS, law=(1.0,)),), ()) for m in memories]
    axes = comparison(made, "").axes
    assert len(axes) == 1 + count
    assert axes[-1].get_title(loc="left") == f"law of {memories[-1]}"


def test_colours_differ_and_some_keep_theirs():
    assert len(set(colours(PAPER).values())) == len(PAPER)
    chosen = colours(DEFAULTS)
    assert len({to_rgb(colour) for colour in chosen.values()}) == len(DEFAULTS)
    others = colours(["M(0.5)", "Adam", RLLC_ADAMW])
    assert all(others[name] == chosen[name] for name in ("Adam", RLLC_ADAMW))


@pytest.mark.parametrize(
    "text", ["M(0.9)", "M(0.9) + M(0.0)", "M_2(0.6)", "M(0.9) + CM(0.3+0.2i) + M_3(0.5)"]
)
def test_every_unit_has_a_name(text):
    names = unit_names(text, parse(text).k)
    assert len(names) == len(set(names)) == parse(text).k


def test_laws_of_what_is_no_linear_memory_have_numbered_units():
    """Either had ended `rllc compare` without a picture, after all training."""
    ours = Row("RLLC-AdamW", (), (record([0.1, 0.5], setting=TWO_UNITS, law=(1.0,)),), ())
    stored = Row("M(0.9) + M(0.0), bfloat16", (), (record([0.1, 0.5], law=(1.0, 2.0)),), ())
    _, one, two = comparison([ours, stored], "").axes
    assert one.get_title(loc="left") == "law of RLLC-AdamW" and len(one.lines) == 2  # and the axis
    assert [text.get_text() for text in two.get_legend().get_texts()] == ["unit 1", "unit 2"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from([0.02, 0.1]))
def test_labels_are_moved_apart_in_order(places, room):
    places = sorted(places)
    moved = spread(places, room)
    assert all(b - a >= room - 1e-9 for a, b in itertools.pairwise(moved))
    assert abs(sum(moved) - sum(places)) < 1e-9
    if all(b - a >= room for a, b in itertools.pairwise(places)):
        assert np.allclose(moved, places, atol=1e-12)
