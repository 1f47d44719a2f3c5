"""The paper's notation for linear memory, read by hand: nothing is evaluated.

    memory   = block { ( "+" | "⊕" ) block }
    block    = "M"  [ order ] "(" real ")"
             | "CM" [ order ] "(" complex ")"
    order    = [ "_" ] positive            a Jordan block of that size; without it, 1
    real     = [ sign ] number
    complex  = [ [ sign ] number sign ] number unit  |  sign number unit
    sign     = "+" | "-"
    unit     = "i" | "j"
    number   = ( digits [ "." [ digits ] ] | "." digits ) [ ( "e" | "E" ) [ sign ] digits ]
    positive = "1".."9" [ digits ]
    digits   = "0".."9" { "0".."9" }

ASCII white space may stand between tokens ("M", "CM", "_", an order, a sign, a number, "i", "(", ")", "+"),
not inside them. At most 1,000 characters and 64 units in all, where M_m counts m and CM_m counts 2m.

    parse("M(0.9) + M_2(0.6) + CM(0.3+0.2i)")          parse(repr(p)) == p for every union of such blocks

The notation is that of arXiv 2402.15262, section 5.
"""

from __future__ import annotations

import functools
import operator
import re
from dataclasses import dataclass
from typing import NoReturn

from rllc.propagator import CM, M, Propagator

__all__ = ["as_propagator", "parse"]

MAX_CHARACTERS = 1000
MAX_UNITS = 64
EXAMPLE = "M(0.9) + M_2(0.6) + CM(0.3+0.2i)"

# Spelled out, because \d and \s would let digits and spaces of other scripts in.
SPACE = " \t\r\n\f\v"
NAME = re.compile(r"CM|M")
UNION = re.compile(r"[+⊕]")
SIGN = re.compile(r"[+-]")
ORDER = re.compile(r"[1-9][0-9]*")
NUMBER = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
UNIT = re.compile(r"[ij]")


def parse(text: str) -> Propagator:
    """The propagator that a text such as "M(0.9) + M_2(0.6) + CM(0.3+0.2i)" names.

    Accepted is the grammar at the head of this module (arXiv 2402.15262, section 5), and repr(p) of every
    union p of Jordan block propagators, within the limits: parse(repr(p)) == p exactly.

    Raises:
        ValueError: the text is not in the grammar, a modulus is 1 or more, there are more than 64 units or
            more than 1,000 characters; the message names the position (the first character is 1) and why.
    """
    if not isinstance(text, str):
        raise ValueError(f"memory in the paper's notation is a text such as {EXAMPLE!r}, got {text!r:.80}")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"memory is written in at most {MAX_CHARACTERS:,} characters, got {len(text):,};"
            " build larger ones with rllc.M, rllc.CM and |"
        )
    return _memory(_Reader(text))


def as_propagator(memory: str | Propagator) -> Propagator:
    """The propagator itself, or the one that a text names (see `parse`).

    Raises:
        ValueError: memory is neither a propagator nor a text that names one.
    """
    if isinstance(memory, Propagator):
        return memory
    if isinstance(memory, str):
        return parse(memory)
    raise ValueError(
        f"memory is a text such as {EXAMPLE!r} or an rllc.Propagator, got {type(memory).__name__}"
    )


@dataclass
class _Reader:
    """A text and how far it has been read."""

    text: str
    at: int = 0

    def take(self, token: re.Pattern[str]) -> str:
        """The token that comes next, past white space; "" and no move if something else comes."""
        found = token.match(self.text, self.next(self.at))
        if found is None:
            return ""
        self.at = found.end()
        return found.group()

    def need(self, token: re.Pattern[str], name: str) -> str:
        """The token that must come next."""
        return self.take(token) or self.refuse(f"expected {name}, found {self._found()}")

    def refuse(self, reason: str, at: int | None = None) -> NoReturn:
        """Raise ValueError with the position, here or at the one given, and the reason."""
        position = self.next(self.at if at is None else at) + 1
        shown = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        raise ValueError(f"cannot read memory {shown!a}: at position {position}, {reason}") from None

    def next(self, at: int) -> int:
        """Where the white space at a place ends."""
        return len(self.text) - len(self.text[at:].lstrip(SPACE))

    def _found(self) -> str:
        at = self.next(self.at)
        return ascii(self.text[at]) if at < len(self.text) else "the end of the text"


def _memory(reader: _Reader) -> Propagator:
    blocks = [_block(reader, units=0)]
    while not _at_end(reader):
        reader.need(UNION, "'+' between blocks")
        blocks.append(_block(reader, units=sum(block.k for block in blocks)))
    return functools.reduce(operator.or_, blocks)


def _at_end(reader: _Reader) -> bool:
    return reader.next(reader.at) == len(reader.text)


def _block(reader: _Reader, units: int) -> Propagator:
    start = reader.at
    kind = reader.need(NAME, "a block, M(real) or CM(complex)")
    order = _order(reader)
    units += order if kind == "M" else 2 * order
    if units > MAX_UNITS:  # before anything of that size is built
        reader.refuse(f"the memory grows to {_few(units)} units; at most {MAX_UNITS} are read", start)
    reader.need(re.compile(r"\("), "'('")
    inside = reader.at
    value = _value(reader)
    reader.need(re.compile(r"\)"), "')'")
    try:
        return _built(kind, value, order)
    except ValueError as reason:
        reader.refuse(str(reason), inside)


def _few(units: int) -> str:
    return f"{units:,}" if units < 10**9 else "more than a thousand million"


def _built(kind: str, value: complex, order: int) -> Propagator:
    if kind == "M":
        return M(value, order)  # type: ignore[arg-type]  # M itself refuses a complex number
    if not isinstance(value, complex):
        raise ValueError(f"CM needs an imaginary part as in CM(0.3+0.2i); use M({value}) for a real one")
    return CM(value, order)


def _order(reader: _Reader) -> int:
    marked = reader.take(re.compile("_"))
    text = reader.need(ORDER, "an order, 1 or more") if marked else reader.take(ORDER)
    return int(text or "1")


def _value(reader: _Reader) -> complex:
    """A float, or a complex where an imaginary unit is written."""
    first = _signed(reader)
    if reader.take(UNIT):
        return complex(0.0, first)
    sign = reader.take(SIGN)
    if not sign:
        return first
    second = _number(reader, sign)
    reader.need(UNIT, "'i' after the imaginary part")
    return complex(first, second)


def _signed(reader: _Reader) -> float:
    return _number(reader, reader.take(SIGN))


def _number(reader: _Reader, sign: str) -> float:
    return float(sign + reader.need(NUMBER, "a decimal number such as 0.9"))
