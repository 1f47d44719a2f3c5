"""Claims of arXiv 2402.15262 on the cost of RLLC (A.4.2), decided from timings and counts of FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rllc.lab.evidence.timings import Network
from rllc.lab.evidence.verdicts import HOLDS, NOT, PARTLY, Verdict
from rllc.notation import parse

__all__ = ["FUSED", "as_many_units", "clock_time", "flops"]

SOURCE = "A.4.2, Figure 3"
SIMILAR = 1.1  # of a benchmark's
FUSED = "Adam, fused"

Ratios = Mapping[str, float]  # by memory


def clock_time(found: Sequence[Network]) -> Verdict:
    """Whether a training step takes about as long as with Adam."""
    return Verdict(
        "RLLC optimizers take approximately the same clock time as the benchmarks.",
        SOURCE,
        _word([_times(on) for on in found]),
        _each(
            found,
            lambda on: (
                f"a step takes {_range(_times(on))} as long as with Adam as torch makes it"
                f" by default{_fused(on)}; {_alone(on)}"
            ),
        ),
        f"Holds: a training step takes at most {SIMILAR} times as long as with Adam, with every memory on"
        " every network; does not: with none on any.",
    )


def flops(found: Sequence[Network]) -> Verdict:
    """Whether a training step has about as many FLOPs as with Adam."""
    return Verdict(
        "RLLC optimizers take approximately as many FLOPs as the benchmarks.",
        SOURCE,
        _word([_counts(on) for on in found]),
        _each(found, lambda on: f"a step has {_range(_counts(on))} Adam's FLOPs; {_update(on)}"),
        f"Holds: network and update together have at most {SIMILAR} times the FLOPs they have with Adam, with"
        " every memory on every network; does not: with none on any.",
    )


def as_many_units(found: Sequence[Network]) -> Verdict:
    """Whether one unit is as fast as momentum SGD, two as Adam."""
    return Verdict(
        "RLLC can be as fast as a benchmark with the same number of memory units.",
        SOURCE,
        _word([_units(on, k) for on in found for k in (1, 2)]),
        _each(
            found,
            lambda on: (
                f"a step takes {_range(_units(on, 1))} as long as with momentum SGD, and"
                f" {_range(_units(on, 2))} as long as with Adam"
            ),
        ),
        "Of this implementation: one unit beside momentum SGD, two beside Adam. Holds: a training step takes"
        f" at most {SIMILAR} times as long, with all of these memories on every network; does not: with none"
        " on any.",
    )


def _word(ratios: Sequence[Ratios]) -> str:
    similar = [ratio <= SIMILAR for of in ratios for ratio in of.values()]
    return HOLDS if all(similar) else PARTLY if any(similar) else NOT


def _each(found: Sequence[Network], said: Callable[[Network], str]) -> str:
    return " ".join(f"On {on.task} {said(on)}." for on in found)


def _range(ratios: Ratios) -> str:
    """ "1.10 (A) to 1.50 (B) times (1 of 2 at most 1.1)", or "1.10 (A) times" where there is one."""
    least, most = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    if len(ratios) == 1:
        return f"{ratios[least]:.2f} ({least}) times"
    similar = sum(ratio <= SIMILAR for ratio in ratios.values())
    ends = f"{ratios[least]:.2f} ({least}) to {ratios[most]:.2f} ({most})"
    return f"{ends} times ({similar} of {len(ratios)} at most {SIMILAR})"


def _times(on: Network, benchmark: str = "Adam") -> Ratios:
    unit = on.step[benchmark].ratio.median  # 1 of Adam's
    return {name: on.step[name].ratio.median / unit for name in on.memories}


def _fused(on: Network) -> str:
    """Beside the fastest Adam there is, where it was timed."""
    return f", with its fused one {_range(_times(on, FUSED))}" if FUSED in on.step else ""


def _counts(on: Network) -> Ratios:
    adam = on.flops + on.update_flops("Adam")
    return {name: (on.flops + on.update_flops(name)) / adam for name in on.memories}


def _units(on: Network, k: int) -> Ratios:
    """Of the memories of k units to the benchmark of k units."""
    times = _times(on, "momentum SGD" if k == 1 else "Adam")
    return {name: ratio for name, ratio in times.items() if parse(name).k == k}


def _alone(on: Network) -> str:
    torch, jax = ([by[name].ratio.median for name in on.memories] for by in (on.torch, on.jax))
    part = [100 * on.torch[name].ms.median / on.step[name].ms.median for name in on.memories]
    return (
        f"the optimizer alone takes {_ends(torch, '.1f')} times Adam's time in PyTorch, where it is"
        f" {_ends(part, '.2g')} % of the step, and {_ends(jax, '.1f')} times in JAX"
    )


def _update(on: Network) -> str:
    size = on.step["Adam"].parameters
    each = _ends([on.update_flops(name) / size for name in on.memories], ".0f")
    return f"the update has {each} a parameter, Adam's {on.update_flops('Adam') / size:.0f}"


def _ends(values: Sequence[float], form: str) -> str:
    return f"{min(values):{form}} to {max(values):{form}}"
