"""Optimizers by name, as closed forms of learning rate 1.

    named("heavy-ball", Given(beta=0.9))     Chosen: its text, its parameters, its closed form
    named("M(0.9) + M_2(0.6)", law=(1, 2))   any linear memory

Parameters that are not given are those of the table in docs/memoryless.md: chosen so that the orders of the
distances can be seen at step sizes that can be run. For adaptive methods h β2/(1-β2) must be small against
sqrt(eps).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rllc import laws
from rllc.lab.errors import Refused, unknown
from rllc.lab.texts import is_memory
from rllc.laws import FixedLaw
from rllc.memoryless import Adam, Linear, Lion, NesterovIterates, RMSProp
from rllc.memoryless.effect import Form
from rllc.notation import parse

__all__ = ["NAMES", "Chosen", "Given", "named"]


class Given(NamedTuple):
    """Parameters; None is one not given, or, in the table of names, one that the optimizer does not have."""

    beta: float | None = None
    beta2: float | None = None
    eps: float | None = None
    weight_decay: float | None = None

    @property
    def text(self) -> str:
        """Those that are there; no weight decay is not told."""
        told = [
            ("β", self.beta),
            ("β2", self.beta2),
            ("eps", self.eps),
            ("weight decay", self.weight_decay or None),
        ]
        return ", ".join(f"{sign} {x:g}" for sign, x in told if x is not None)


class Named(NamedTuple):
    """How an optimizer is made, its parameters, what else is fixed, and the largest h of its error study."""

    make: Callable[[Given], Form]
    parameters: Given
    fixed: str = ""
    largest: float = 2.0**-6


class Chosen(NamedTuple):
    """An optimizer with its parameters."""

    name: str
    parameters: str
    form: Form
    largest: float

    @property
    def title(self) -> str:
        """Name and parameters."""
        return f"{self.name} ({self.parameters})" if self.parameters else self.name


def _linear(law: Callable[[float], FixedLaw]) -> Callable[[Given], Form]:
    """Of a law of one decay β."""
    return lambda p: Linear(law(_number(p.beta)), _number(p.weight_decay))


def _adam(nesterov: bool = False, outside: bool = False) -> Callable[[Given], Form]:
    def make(p: Given) -> Form:
        beta, beta2, eps, decay = map(_number, p)
        return Adam(beta, beta2, eps, outside, nesterov, decay)

    return make


def _number(value: float | None) -> float:
    return 0.0 if value is None else value


COARSE, FINE, FINEST = 2.0**-6, 2.0**-8, 2.0**-9
LONG = 10.0  # first moment of a law from which on h must be smaller for the orders to be seen

NAMES: dict[str, Named] = {
    "heavy-ball": Named(_linear(lambda beta: laws.heavy_ball(1.0, beta)), Given(0.7, weight_decay=0.0)),
    "ema": Named(_linear(lambda beta: laws.ema_momentum(1.0, beta)), Given(0.9, weight_decay=0.0)),
    "nesterov": Named(_linear(lambda beta: laws.nesterov(1.0, beta)), Given(0.7, weight_decay=0.0)),
    "nesterov-iterates": Named(lambda p: NesterovIterates(_number(p.beta)), Given(0.7)),
    "qhm": Named(_linear(lambda beta: laws.qhm(1.0, beta, 0.7)), Given(0.9, weight_decay=0.0), "ν 0.7"),
    "aggmo": Named(
        _linear(lambda _: laws.aggmo(1.0, (0.0, 0.6, 0.9))),
        Given(weight_decay=0.0),
        "decays 0, 0.6, 0.9",
        FINE,
    ),
    "complex-momentum": Named(
        _linear(lambda _: laws.complex_momentum(1.0, 0.6j)), Given(weight_decay=0.0), "γ 0.6i"
    ),
    "optimistic": Named(_linear(lambda _: laws.optimistic(1.0)), Given(weight_decay=0.0)),
    "ab2": Named(_linear(lambda _: laws.adams_bashforth(1.0)), Given(weight_decay=0.0)),
    "adam": Named(_adam(), Given(0.9, 0.97, 0.3), largest=FINEST),
    "adamw": Named(_adam(), Given(0.9, 0.97, 0.3, 0.1), largest=FINEST),
    "adam-eps-outside": Named(_adam(outside=True), Given(0.9, 0.9, 0.3, 0.0), largest=FINE),
    "nadam": Named(_adam(nesterov=True), Given(0.9, 0.97, 0.3, 0.0), largest=FINEST),
    "rmsprop": Named(
        lambda p: Adam(0.0, _number(p.beta2), _number(p.eps)),
        Given(beta2=0.9, eps=0.3),
        "bias corrected",
        FINE,
    ),
    "rmsprop-uncorrected": Named(
        lambda p: RMSProp(_number(p.beta2), _number(p.eps)), Given(beta2=0.97, eps=0.3), largest=FINEST
    ),
    "lion": Named(lambda p: Lion(*map(_number, p)), Given(0.9, 0.95, 0.3, 0.1)),
    "signum": Named(
        lambda p: Lion(_number(p.beta), _number(p.beta), _number(p.eps), _number(p.weight_decay)),
        Given(0.9, eps=0.3, weight_decay=0.0),
    ),
}


NOTHING = Given()


def named(name: str, given: Given = NOTHING, law: Sequence[float] = ()) -> Chosen:
    """The optimizer of that name, or the linear memory in the paper's notation with that law (else ones).

    Raises:
        Refused: there is none of that name, a parameter makes no sense for it, or has no sensible value.
    """
    try:
        return _memory(name, given, law) if is_memory(name) else _of_table(name, given, law)
    except Refused:
        raise
    except ValueError as reason:
        raise Refused(str(reason)) from reason


def _of_table(name: str, given: Given, law: Sequence[float]) -> Chosen:
    if name not in NAMES:
        raise Refused(unknown("optimizer", name, NAMES, also=', or a memory such as "M(0.9) + M(0)"'))
    if law:
        raise Refused(f'--law goes with a memory such as "M(0.9) + M(0)", not with {name}')
    make, own, fixed, largest = NAMES[name]
    parameters = _merged(name, own, given)
    form = make(parameters)
    if isinstance(form, Linear) and parameters != own:
        largest = min(largest, _largest(form.law))
    return Chosen(name, ", ".join(filter(None, (parameters.text, fixed))), form, largest)


def _memory(text: str, given: Given, law: Sequence[float]) -> Chosen:
    memory = parse(text)
    parameters = _merged("a memory in this notation", Given(weight_decay=0.0), given)
    fixed = FixedLaw(memory, tuple(law) or (1.0,) * memory.k)
    said = ", ".join(filter(None, (f"law {' '.join(f'{x:g}' for x in fixed.law)}", parameters.text)))
    return Chosen(repr(memory), said, Linear(fixed, _number(parameters.weight_decay)), _largest(fixed))


def _largest(fixed: FixedLaw) -> float:
    """The largest step size at which the orders are seen."""
    return COARSE if abs(fixed.first_moment) <= LONG else FINEST


def _merged(name: str, own: Given, given: Given) -> Given:
    wrong = [field for field, x in given._asdict().items() if x is not None and getattr(own, field) is None]
    if wrong:
        has = [f"--{f.replace('_', '-')}" for f, x in own._asdict().items() if x is not None]
        option = f"--{wrong[0].replace('_', '-')}"
        raise Refused(f"{option} has no meaning for {name}; it has {', '.join(has) or 'no such options'}")
    return own._replace(**{field: x for field, x in given._asdict().items() if x is not None})
