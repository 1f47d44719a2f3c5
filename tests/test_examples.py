"""The examples run as they stand, and a run that is killed at any moment goes on to the bit."""

import importlib.util
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from same import same

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS = {
    "ddp": "torch",
    "with_accelerate": "accelerate",
    "with_flax": "flax",
    "with_lightning": "lightning",
    "with_trainer": "transformers",
}
# Runs a script for each line it is told, in a fork of a process that has imported what most would.
FORKS = """
import os, runpy, signal, sys
import torch._dynamo, rllc.torch.fused_cpu
for line in sys.stdin:
    folder, *sys.argv = line.rstrip().split("\\t")
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        signal.alarm(300)
        os.chdir(folder)
        runpy.run_path(sys.argv[0], run_name="__main__")
        break
    print("ended", os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def start():
    """start(example, folder, *arguments): its process, and the lines that it says, the last how it ended."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    # Threads would wait for one another on a busy machine.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKS], env=environment, **pipes) as process:

        def start(example, folder, *arguments):
            print(folder, EXAMPLES / f"{example}.py", *arguments, sep="\t", file=process.stdin, flush=True)
            pid = int(next(process.stdout))
            return pid, lines(process.stdout)

        yield start


def lines(stdout):
    for line in stdout:
        yield line
        if line.startswith("ended "):
            return


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*NEEDS, "resume"}


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_runs_and_learns(name, start, tmp_path):
    if importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed: pip install '.[examples]'")
    _, said = start(name, tmp_path)
    *said, ended = said
    assert ended == "ended 0\n"
    first, last, law = re.search(r"loss ([\d.]+) -> ([\d.]+), law \[(.+)\]", "".join(said)).groups()
    assert float(last) < 0.8 * float(first)
    weights = [float(weight) for weight in law.split(",")]
    begun = [0.01] if name == "with_trainer" else [1.0, 1.0]
    assert all(0 < weight != start for weight, start in zip(weights, begun, strict=True))
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_a_run_killed_between_or_in_its_steps_goes_on_to_the_bit(start, tmp_path):
    steps, whole, killed = 60, tmp_path / "whole.pt", tmp_path / "killed.pt"
    runpy.run_path(str(EXAMPLES / "resume.py"))["main"](whole, steps)
    for last_words in ("step 7,", "step 20,"):
        pid, said = start("resume", tmp_path, killed, steps)
        next(line for line in said if line.startswith(last_words))
        os.kill(pid, signal.SIGKILL)
        assert f"ended {signal.SIGKILL:d}\n" in said
        killed.with_suffix(".partial").write_bytes(b"half a file")  # what a death while writing leaves
    _, said = start("resume", tmp_path, killed, steps)
    begun, *_, ended = said
    resumed = int(re.fullmatch(r"resumed after step (\d+)\n", begun)[1])
    assert 20 <= resumed < steps and ended == "ended 0\n"
    one, other = (torch.load(path, weights_only=True) for path in (whole, killed))
    assert one["done"] == steps and len(one["opt"]["state"]) == 4
    same(one, other)
