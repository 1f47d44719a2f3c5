"""What the command line turns into one line and an exit code; anything else is a bug, with a traceback."""


class Refused(ValueError):
    """What was asked for cannot be done as asked; the message is one line with the remedy (exit code 2)."""


class Broken(RuntimeError):
    """Something outside failed on the way: a worker was killed, a disk is full (exit code 1)."""


class Damaged(Broken):
    """A record or checkpoint that cannot be read; the message is one line that names the file."""


class OutOfTime(Exception):
    """The time limit has passed and everything unfinished has a checkpoint; not an error."""
