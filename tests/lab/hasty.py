"""`rllc` with a checkpoint at every evaluation: python hasty.py run ... Workers import this file too.

HASTY_BYTES in the environment is the size of the largest file that a worker can write.
"""

import os
import sys

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
    sys.exit(cli.main())
