"""`rllc` with a checkpoint at every evaluation: python hasty.py run ...

On Linux its workers are forked from itself: another process to fork them from would take as long again to
start. Elsewhere they import this file too.
HASTY_BYTES in the environment is the size of the largest file that a worker can write.
"""

import multiprocessing
import os
import sys

import torch._dynamo  # before the fork: the first step of an optimizer would import it  # noqa: F401

from rllc.lab import cli, sweep, training

finish_in_a_worker = sweep._finish


def finish(out, cell):
    training.SAVE_SECONDS = 0.0
    if "HASTY_BYTES" in os.environ:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["HASTY_BYTES"]),) * 2)
    return finish_in_a_worker(out, cell)


if __name__ == "__main__":
    sweep._finish = finish
    if sys.platform == "linux":
        sweep._context = lambda: multiprocessing.get_context("fork")
    sys.exit(cli.main())
