"""Crossings and changes of units, against made-up paths and direct calculation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllc.lab.evidence.law_paths import crossings, lines, missed, rewriting
from rllc.laws import nesterov
from rllc.notation import parse

coordinates = st.floats(-2, 2).filter(lambda x: abs(x) > 1e-3)
paths = st.lists(st.tuples(coordinates, coordinates), min_size=2, max_size=8)
THREE, LIMIT = parse("M(0.9) + M(0.8) + M(0.7)"), parse("M(0.9) + M_2(0.75)")


@pytest.mark.parametrize(
    "path, found",
    [
        ([(0, (1, 1)), (100, (0, 1))], [("NAG", 10)]),
        ([(0, (1, 1)), (100, (0.5, 1)), (200, (-0.5, 1))], [("NAG", 20), ("SGD", 150)]),
        ([(0, (1, -1)), (100, (1, 1)), (300, (-1, 1))], [("momentum", 50), ("NAG", 110), ("SGD", 200)]),
        ([(0, (-1, 1)), (100, (1, 1))], [("SGD", 50), ("NAG", 95)]),
        ([(0, (0.5, 1)), (10, (0, 1)), (20, (0.5, 1))], []),  # touches
        ([(0, (0.5, 1)), (10, (0, 1)), (20, (-3, 1))], [("SGD", 10)]),
        ([(0, (0.5, 1)), (10, (0, 1)), (20, (0, 2)), (30, (-3, 1))], [("SGD", 10)]),
        ([(0, (0.9, 1)), (10, (0, 1))], []),  # begins and ends on a line
        ([(0, (1, -0.5)), (10, (-1, -0.5))], []),  # SGD and NAG with negative rates
        ([(0, (1, 1))], []),
    ],
)
def test_crossings(path, found):
    made = crossings(path, beta=0.9)
    assert [name for name, _ in made] == [name for name, _ in found]
    assert [step for _, step in made] == pytest.approx([step for _, step in found])


@given(paths)
def test_crossings_lie_on_their_lines_in_time_order(laws):
    path = list(zip(range(0, 10 * len(laws), 10), laws, strict=True))
    made = crossings(path, beta=0.5)
    assert [step for _, step in made] == sorted(step for _, step in made)
    for name, step in made:
        law = [np.interp(step, [s for s, _ in path], [law[j] for law in laws]) for j in (0, 1)]
        x, y = lines(0.5)[name]
        assert law[0] * y - law[1] * x == pytest.approx(0, abs=1e-9)
        assert law[0] * x + law[1] * y > 0


def test_the_line_of_nag_is_nesterovs_law():
    law = np.array(nesterov(lr=0.1, beta=0.9).law)
    assert law / law[1] == pytest.approx(lines(0.9)["NAG"])


def test_rewriting_is_least_squares_over_the_abstract_rules():
    direct = np.linalg.lstsq(LIMIT.abstract_rule(600), THREE.abstract_rule(600), rcond=None)[0]
    assert rewriting(THREE, LIMIT) == pytest.approx(direct, abs=1e-9)
    rest = THREE.abstract_rule(600) @ [2.3, -9.4, 9.3] - LIMIT.abstract_rule(600) @ direct @ [2.3, -9.4, 9.3]
    whole = np.linalg.norm(THREE.abstract_rule(600) @ [2.3, -9.4, 9.3])
    assert missed(THREE, LIMIT, [2.3, -9.4, 9.3]) == pytest.approx(np.linalg.norm(rest) / whole, rel=1e-6)


def test_in_other_units_of_the_same_memory_nothing_is_missed():
    Q = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0], [1.0, 0.0, 1.0]])
    moved = THREE.change_basis(Q)
    assert rewriting(THREE, moved) == pytest.approx(np.linalg.inv(Q), abs=1e-7)
    assert missed(THREE, moved, [1.0, -2.0, 3.0]) < 1e-5


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3])
def test_two_close_momenta_become_a_jordan_block(epsilon):
    """Appendix A.3: l_1 M(β + ε) + l_2 M(β - ε) is (l_1 + l_2) m_1 + ε (l_1 - l_2) m_2 up to ε²."""
    near = parse(f"M(0.9) + M({0.75 + epsilon}) + M({0.75 - epsilon})")
    expected = np.array([[1, 0, 0], [0, 1, 1], [0, epsilon, -epsilon]])
    assert abs(rewriting(near, LIMIT) - expected).max() < 30 * epsilon**2
    assert missed(near, LIMIT, [1, 1, 1]) < 10 * epsilon**2
