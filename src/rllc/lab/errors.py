"""What the command line turns into one line and an exit code; anything else is a bug, with a traceback."""

import difflib
import errno
from collections.abc import Collection

LONGEST = 200  # characters
FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG  # of an OSError: no room where something is written
NO_ROOM = ("allocate memory", "not enough memory", "out of memory", "alloc_failed")


class Refused(ValueError):
    """What was asked for cannot be done as asked; the message is one line with the remedy (exit code 2)."""


def unknown(what: str, text: str, known: Collection[str], between: str = ", ", also: str = "") -> str:
    """The message about a name that is none: a guess at what was meant, the names that are, and what else."""
    near = difflib.get_close_matches(text.lower(), known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"unknown {what} {text!r}; {meant}known are {between.join(known)}{also}"


def first_line(reason: BaseException) -> str:
    """What an error says, for a place within one line: the name of its type if it says nothing."""
    return (str(reason).strip().splitlines() or [type(reason).__name__])[0][:LONGEST]


def is_out_of_memory(reason: Exception) -> bool:
    """Whether memory ran out; on the CPU torch raises a plain RuntimeError, and so do CUDA's libraries."""
    return isinstance(reason, MemoryError) or any(part in str(reason).lower() for part in NO_ROOM)


class Broken(RuntimeError):
    """Something outside failed on the way: a worker was killed, a disk is full (exit code 1)."""


class Damaged(Broken):
    """A record or checkpoint that cannot be read; the message is one line that names the file."""


class OutOfTime(Exception):
    """The time limit has passed and everything unfinished has a checkpoint; not an error."""
