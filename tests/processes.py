"""Several processes for a test, each forked from one that has imported what they all need."""

import datetime

import torch

# A process of a busy machine may be late; one that never comes is an error.
TIMEOUT = datetime.timedelta(minutes=3)
# The first step of an optimizer imports the second and the third, the first torch.compile the last.
PRELOAD = ["shards", "torch._dynamo", "rllc.torch.fused_cpu", "torch._dynamo.backends.common"]


def run(function, count, *args):
    """function(rank, *args) on that many processes; raises what one of them raised."""
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    torch.multiprocessing.start_processes(function, args, nprocs=count, start_method="forkserver")
