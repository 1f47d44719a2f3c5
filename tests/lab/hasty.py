"""`rllc` with a checkpoint at every evaluation, and a run that is killed at every moment.

Functions for processes forked from one that has imported what they need; to import it takes longer than what
they do. On Linux workers are forked, too; elsewhere they import this file.
HASTY_BYTES in the environment is the size of the largest file that a worker can write.
"""

import multiprocessing
import os
import signal
import sys

import torch._dynamo  # before the fork: the first step of an optimizer would import it  # noqa: F401
from made import TWO_UNITS, cell

from rllc.lab import cli, files, sweep, training

finish_in_a_worker = sweep._finish


def process(function, *arguments):
    """One that has begun with this."""
    context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    context.set_forkserver_preload([__name__])
    begun = context.Process(target=function, args=arguments)
    begun.start()
    return begun


def finish(out, cell):
    training.SAVE_SECONDS = 0.0
    if "HASTY_BYTES" in os.environ:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["HASTY_BYTES"]),) * 2)
    return finish_in_a_worker(out, cell)


def command(arguments, said, environment):
    """`rllc` with these arguments, alone in its group with its workers; what it says goes to files."""
    os.setsid()
    os.environ.update(environment)
    for stream, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{said}.{stream}", os.O_WRONLY | os.O_CREAT), number)
    sweep._finish = finish
    if sys.platform == "linux":
        sweep._context = lambda: multiprocessing.get_context("fork")
    sys.exit(cli.main(arguments))


def killed_at_every_moment(folder):
    """A run for each time that a file is to be opened, flushed, renamed or deleted, killed right then."""
    training.SAVE_SECONDS = 0.0
    training.train(cell(TWO_UNITS))  # all that takes time the first time, before it is done many times
    last, status = 0, 1
    while status != 0:
        last += 1
        child = os.fork()
        if child == 0:
            _run_until(f"{folder}/{last}", last)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
    sys.exit(last - 1)  # so many moments there are


def _run_until(out, last):
    moments = 0

    def deadly(function):
        def counted(*args, **kwargs):
            nonlocal moments
            moments += 1
            if moments == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted

    files.open = deadly(open)
    files.os.fsync, files.os.replace, files.os.remove = map(deadly, (os.fsync, os.replace, os.remove))
    sweep.finish(files.Folder(out), cell(TWO_UNITS), lambda steps: None, lambda: False)
