"""Optimizers by name: their parameters, and what is refused."""

import pytest

from rllc import laws
from rllc.lab.errors import Refused
from rllc.lab.memoryless.names import NAMES, Given, named
from rllc.memoryless import Adam, Linear, Lion, memory_effect


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_a_form_of_its_parameters(name):
    chosen = named(name)
    assert chosen.form.stationary() is not None
    assert NAMES[name].parameters.text in chosen.title
    assert memory_effect(chosen.form).verdict in ("regularises", "anti-regularises", "neutral")


def test_given_parameters_replace_the_tables():
    assert named("adamw").form == Adam(0.9, 0.97, 0.3, weight_decay=0.1)
    assert named("adamw", Given(beta2=0.5, weight_decay=0.0)).form == Adam(0.9, 0.5, 0.3)
    assert named("signum", Given(beta=0.8)).form == Lion(0.8, 0.8, 0.3)
    assert named("heavy-ball", Given(beta=0.5)).title == "heavy-ball (β 0.5)"
    assert named("heavy-ball", Given(weight_decay=0.2)).title == "heavy-ball (β 0.7, weight decay 0.2)"


def test_memories_in_the_notation():
    chosen = named("M(0.9)+M(0)", law=(0.9, 1.0))
    assert isinstance(chosen.form, Linear)
    assert chosen.form.law.equivalent(laws.nesterov(1.0, 0.9))
    assert chosen.title == "M(0.9) + M(0.0) (law 0.9 1)"
    assert named("M_2(0.6)").form.law.law.tolist() == [1, 1]


def test_steps_of_a_long_memory_begin_smaller():
    assert named("M(0.9)").largest < named("M(0.7)").largest
    assert named("heavy-ball", Given(beta=0.9)).largest < named("heavy-ball").largest


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("heavyball",), "did you mean heavy-ball?"),
        (("nothing",), "known are heavy-ball, ema"),
        (
            ("heavy-ball", Given(beta2=0.9)),
            "--beta2 has no meaning for heavy-ball; it has --beta, --weight-decay",
        ),
        (("M(0.9)", Given(beta=0.9)), "--beta has no meaning for a memory"),
        (("nesterov-iterates", Given(weight_decay=0.1)), "it has --beta"),
        (("adam", Given(), (1.0,)), "--law goes with a memory"),
        (("adam", Given(eps=0.0)), "eps must be a positive finite number"),
        (("adam", Given(beta2=1.0)), "beta2 must be in [0, 1)"),
        (("heavy-ball", Given(beta=1.0)), "must lie in (-1, 1)"),
        (("M(1.0)",), "inside the unit circle"),
        (("M(0.9", Given()), "expected ')'"),
        (("M(0.9)", Given(), (1.0, 2.0)), "a law for 1 memory unit"),
    ],
)
def test_refusals(arguments, said):
    with pytest.raises(Refused) as reason:
        named(*arguments)
    assert said in str(reason.value)
    assert "\n" not in str(reason.value)
