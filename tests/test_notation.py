"""Text <-> propagator: what is read, what is refused and where, and that nothing else can happen."""

import string

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memories import unions
from rllc import CM, M, Propagator, as_propagator, parse


@pytest.mark.parametrize(
    ("text", "p"),
    [
        ("M(0.9)", M(0.9)),
        ("M2(0.6)", M(0.6, 2)),
        ("M_2(0.6)", M(0.6, 2)),
        ("M_2(+.6)", M(0.6, 2)),
        ("M(0)", M(0.0)),
        ("M(-0.)", M(-0.0)),
        ("M(1e-05)", M(1e-5)),
        ("M(9E-1)", M(0.9)),
        ("M(0.00009e+4)", M(0.9)),
        ("CM(0.3+0.2i)", CM(0.3 + 0.2j)),
        ("CM_2(.3-.2j)", CM(0.3 - 0.2j, 2)),
        ("CM2(-.3-.2j)", CM(-0.3 - 0.2j, 2)),
        ("CM(0.9i)", CM(0.9j)),
        ("CM(-0.9i)", CM(-0.9j)),
        ("CM(1e-5-1.5e-7i)", CM(1e-5 - 1.5e-7j)),
        ("M(0.9)+M(0)", M(0.9) | M(0)),
        ("M(0.9) ⊕ M_2(0.6) ⊕ CM_2(0.3 + 0.2i)", M(0.9) | M(0.6, 2) | CM(0.3 + 0.2j, 2)),
        (" M\t_ 2 ( - 0.6 )\n+\r\nCM ( 0.3\v- 0.2 i )\f", M(-0.6, 2) | CM(0.3 - 0.2j)),
        ("M_64(0.5)", M(0.5, 64)),
        ("+".join(["M(0)"] * 64), Propagator(np.zeros((64, 64)), np.ones(64))),
    ],
)
def test_reads(text, p):
    assert parse(text) == p


@given(unions)
def test_repr_round_trips(p):
    assert parse(repr(p)) == p


@given(st.floats(-1, 1, exclude_min=True, exclude_max=True))
@example(-0.0)
@example(5e-324)
@example(0.1 + 0.2)
@example(-1 + 2**-53)
def test_every_float_round_trips(beta):
    assert parse(repr(M(beta))).B[0, 0] == beta


@given(st.floats(-0.7, 0.7), st.floats(-0.7, 0.7).filter(bool))
@example(-0.0, -5e-324)
@example(1e-5, 1e-300)
def test_every_complex_number_round_trips(re, im):
    p = CM(complex(re, im), 2)
    assert parse(repr(p)) == p


def test_zeros_with_a_sign_written_by_hand():
    p = Propagator([[-0.0]], [1.0])
    assert repr(p) == "M(-0.0)" and parse(repr(p)) == p
    p = Propagator([[-0.0, 0.5], [-0.5, -0.0]], [1.0, 0.0])
    assert repr(p) == "CM(-0.0+0.5i)" and parse(repr(p)) == p


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("", 1, "expected a block, M(real) or CM(complex), found the end of the text"),
        ("  ", 3, "found the end of the text"),
        ("N(0.9)", 1, "found 'N'"),
        ("m(0.9)", 1, "found 'm'"),
        ("\u0421(0.9)", 1, r"found '\u0421'"),  # a Cyrillic letter
        ("\u039c(0.9)", 1, r"found '\u039c'"),  # a Greek one
        ("M(0\u0669)", 4, r"expected ')', found '\u0669'"),  # an Arabic digit
        ("M(0\uff0e9)", 4, r"found '\uff0e'"),  # a full-width point
        ("M\u2082(0.9)", 2, r"found '\u2082'"),
        ("M(\u22120.9)", 3, r"found '\u2212'"),  # a typographer's minus
        ("M(0.9)\xa0", 7, r"found '\xa0'"),
        ("M(0_9)", 4, "expected ')', found '_'"),
        ("M__2(0.9)", 3, "expected an order, 1 or more, found '_'"),
        ("M_(0.9)", 3, "expected an order, 1 or more, found '('"),
        ("M_0(0.9)", 3, "expected an order, 1 or more, found '0'"),
        ("M_02(0.9)", 3, "expected an order, 1 or more, found '0'"),
        ("M_-1(0.9)", 3, "expected an order, 1 or more, found '-'"),
        ("M_1.5(0.9)", 4, "expected '(', found '.'"),
        ("C M(0.9i)", 1, "found 'C'"),
        ("M", 2, "expected '(', found the end of the text"),
        ("M 0.9", 3, "expected '(', found '0'"),
        ("M()", 3, "expected a decimal number such as 0.9, found ')'"),
        ("M(0.9", 6, "expected ')', found the end of the text"),
        ("M(0.9))", 7, "expected '+' between blocks, found ')'"),
        ("M((0.9))", 3, "found '('"),
        ("M(.)", 3, "found '.'"),
        ("M(0x1)", 4, "expected ')', found 'x'"),
        ("M(0.9e)", 6, "expected ')', found 'e'"),
        ("M(nan)", 3, "found 'n'"),
        ("M(inf)", 3, "found 'i'"),
        ("M(--0.9)", 4, "found '-'"),
        ("M(0.5+0.1)", 10, "expected 'i' after the imaginary part, found ')'"),
        ("M(0.3+0.2i)", 3, "M needs a real number, got (0.3+0.2j); use CM(0.3+0.2i)"),
        ("M(0.9i)", 3, "M needs a real number"),
        ("CM(0.3)", 4, "CM needs an imaginary part as in CM(0.3+0.2i); use M(0.3)"),
        ("CM(0.3+0i)", 4, "use M(0.3) for a real number"),
        ("CM(0.2i+0.3)", 8, "expected ')', found '+'"),
        ("CM(i)", 4, "expected a decimal number such as 0.9, found 'i'"),
        ("M(1)", 3, "1.0 is not inside the unit circle"),
        ("M(-1.0)", 3, "-1.0 is not inside the unit circle"),
        ("M(1e400)", 3, "inf is not inside the unit circle"),
        ("CM(0.6+0.8i)", 4, "(0.6+0.8j) is not inside the unit circle"),
        ("CM(1e308+1e308i)", 4, "is not inside the unit circle"),
        ("M(0.9)+", 8, "expected a block, M(real) or CM(complex), found the end of the text"),
        ("+M(0.9)", 1, "found '+'"),
        ("M(0.9) M(0)", 8, "expected '+' between blocks, found 'M'"),
        ("M(0.9)*M(0)", 7, "expected '+' between blocks, found '*'"),
        ("M(0.9) - M(0)", 8, "expected '+' between blocks, found '-'"),
        ("2M(0.9)", 1, "found '2'"),
        ("M_65(0)", 1, "the memory grows to 65 units; at most 64 are read"),
        ("M(0) + CM_32(0.5i)", 8, "the memory grows to 65 units; at most 64 are read"),
        ("M_" + "9" * 900 + "(0)", 1, "more than a thousand million units; at most 64"),
        ("+".join(["M(0)"] * 65), 64 * 5 + 1, "65 units"),
        ("__import__('os')", 1, "found '_'"),
    ],
)
def test_refuses_by_position_and_reason(text, position, reason):
    with pytest.raises(ValueError) as refusal:
        parse(text)
    message = str(refusal.value)
    assert f"at position {position}, " in message
    assert reason in message
    assert "\n" not in message and message.isascii() and len(message) < 300


def test_refuses_a_long_text_at_once():
    assert parse("M(0.5)" + " " * 994) == M(0.5)
    with pytest.raises(ValueError, match=r"at most 1,000 characters, got 1,001; build larger ones with"):
        parse("M(0.5)" + " " * 995)


@pytest.mark.parametrize("memory", [0.9, None, b"M(0.9)", ["M(0.9)"], np.eye(2)])
def test_refuses_what_is_no_text(memory):
    with pytest.raises(ValueError, match="such as 'M"):
        parse(memory)
    with pytest.raises(ValueError, match=r"a text such as .* or an rllc\.Propagator, got"):
        as_propagator(memory)


def test_as_propagator_takes_both():
    p = M(0.9)
    assert as_propagator(p) is p
    assert as_propagator("M(0.9)") == p


near_misses = st.text(alphabet="MC_+-().eij0123456789 ⊕", max_size=30)


@settings(max_examples=300)
@given(st.text(max_size=40) | near_misses | st.text(alphabet=string.printable, max_size=1100))
def test_garbage_is_refused_with_a_value_error_or_read(text):
    try:
        p = parse(text)
    except ValueError:
        return
    assert parse(repr(p)) == p
    assert set(text) <= set("MC_+-().eEij0123456789⊕" + string.whitespace)


@settings(max_examples=200)
@given(unions, st.data())
def test_one_wrong_character_never_does_more_than_a_value_error(p, data):
    text = repr(p)
    at = data.draw(st.integers(0, len(text) - 1))
    broken = text[:at] + data.draw(st.characters()) + text[at + 1 :]
    try:
        assert isinstance(parse(broken), Propagator)
    except ValueError as refusal:
        assert "cannot read memory" in str(refusal)
