"""What the runs of `explicit` say: a table for each setting, and curves.

markdown(content)     at the end of training, by setting and strength
figure(content)       accuracy, |∇f|² and sharpness over training
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rllc import laws
from rllc.lab.evidence.drawing import INK, dress, headed, title
from rllc.lab.memoryless.drawing import logarithmic
from rllc.lab.memoryless.explicit import SEEDS, SETTINGS, STRENGTHS, Setting
from rllc.lab.texts import minus, over_seeds, signed, table

__all__ = ["figure", "markdown", "of"]

Array = NDArray[np.float64]
Curves = dict[str, Array]  # name -> (seeds, evaluations)

NAMES = ("step", "train_loss", "squared_gradient", "sharpness", "test_loss", "test_accuracy")
LATE = 5  # evaluations whose mean is what a run is said to have reached
COLOURS = {-2.0: "#882255", -1.0: "#CC79A7", 0.0: "#000000", 1.0: "#56B4E9", 2.0: "#0072B2"}
DRAWN = (Setting(0.001), Setting(0.003, beta=0.5), Setting(0.0001))


def of(content: dict[str, Any], setting: Setting, strength: float) -> Curves:
    """The curves of all seeds; NaN where a run was not finite.

    Raises:
        KeyError: it has not been run with every seed.
    """
    runs = {
        (r["lr"], r["beta"], r["second"], r["strength"], r["seed"]): r
        for r in content["runs"]
        if r["steps"] == setting.steps
    }
    keys = [(setting.lr, setting.beta, setting.second, strength, seed) for seed in SEEDS]
    return {name: np.array([runs[key][name] for key in keys], np.float64) for name in NAMES}


def lost(found: Curves) -> int | None:
    """The step of the first evaluation at which a seed is not finite, or has a loss above twice the first."""
    losses = found["train_loss"]
    bad = (~np.isfinite(losses) | (losses > 2 * losses[:, :1])).any(0)
    return int(found["step"][0, bad.argmax()]) if bad.any() else None


def markdown(content: dict[str, Any]) -> str:
    """The table and how to read it."""
    head = ["setting", "strength", "training loss", "|∇f|²", "sharpness λ", "h m1 λ", "test accuracy, %"]
    head += ["at equal training loss"]
    body = [_line(content, setting, strength) for setting in SETTINGS for strength in STRENGTHS]
    parts = [_what(), _in_short(content), table(head, body).strip(), _how()]
    return "\n\n".join(parts) + "\n\n![curves](explicit.png)\n"


def _in_short(content: dict[str, Any]) -> str:
    """Where runs diverge, and what the term does where they do not."""
    cells = {(s, x): of(content, s, x) for s in SETTINGS for x in STRENGTHS}
    gone = {key for key, found in cells.items() if lost(found) is not None}
    kept = [key for key in cells if key not in gone and key[1] != 0]
    changes = {key: _changes(cells[key], cells[key[0], 0.0]) for key in kept}
    lines = [
        f"- A negative strength diverges in {sum(x < 0 for _, x in gone)} of {2 * len(SETTINGS)} cells, a"
        f" positive one in {sum(x > 0 for _, x in gone)}, strength 0 in {sum(x == 0 for _, x in gone)}."
    ]
    for sign, said in ((1, "positive"), (-1, "negative")):
        ours = [changes[key] for key in kept if key[1] * sign > 0]
        if ours:
            steeper, sharper, gained, equal = (np.array(xs) for xs in zip(*ours, strict=True))
            lines.append(
                f"- Where a {said} strength does not, |∇f|² is {_range(steeper, '.2f')} times that of heavy"
                f" ball, sharpness {_range(sharper, '.2f')} times, test accuracy {_range(gained)}"
                f" points more at the end and {_range(equal)} at equal training loss."
            )
    return "\n".join(lines)


def _changes(found: Curves, plain: Curves) -> tuple[float, float, float, float]:
    """|∇f|² and sharpness as factors, accuracy in points at the end and at equal loss; means over seeds."""
    late = [{name: xs[:, -LATE:].mean() for name, xs in curves.items()} for curves in (found, plain)]
    gained = 100 * (late[0]["test_accuracy"] - late[1]["test_accuracy"])
    steeper, sharper = (late[0][name] / late[1][name] for name in ("squared_gradient", "sharpness"))
    return steeper, sharper, gained, float(at_equal_loss(found, plain).mean())


def _range(values: Array, form: str = "+.2f") -> str:
    low, high = (minus(format(x, form)) for x in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _line(content: dict[str, Any], setting: Setting, strength: float) -> list[str]:
    found, plain = of(content, setting, strength), of(content, setting, 0.0)
    name = [_named(setting), minus(f"{strength:+g}" if strength else "0")]
    step = lost(found)
    if step is not None:
        return [*name, f"diverges by step {step:,}", "–", "–", "–", "–", "–"]
    late = {key: xs[:, -LATE:].mean(1) for key, xs in found.items()}
    return [
        *name,
        over_seeds(late["train_loss"].tolist(), 3),
        over_seeds(late["squared_gradient"].tolist(), 3),
        over_seeds(late["sharpness"].tolist(), 1),
        f"{_moment(setting) * late['sharpness'].mean():.2g}",
        over_seeds((100 * late["test_accuracy"]).tolist()),
        "" if strength == 0 else signed(over_seeds(at_equal_loss(found, plain).tolist())),
    ]


def at_equal_loss(found: Curves, plain: Curves) -> Array:
    """Points of test accuracy more than strength 0 has at the last training losses, (seeds,)."""
    gains = []
    for mine, its, loss, other in zip(
        found["test_accuracy"], plain["test_accuracy"], found["train_loss"], plain["train_loss"], strict=True
    ):
        lowest = max(loss.min(), other.min())
        a, b = (_first_at(x, y, lowest) for x, y in ((loss, mine), (other, its)))
        gains.append(100 * (a - b))
    return np.array(gains)


def _first_at(loss: Array, accuracy: Array, level: float) -> float:
    """The accuracy at the first time that the loss is at the level, between evaluations by proportion."""
    least = np.minimum.accumulate(loss)
    return float(np.interp(-level, -least, accuracy))


def _moment(setting: Setting) -> float:
    """h m1, in units of 1/curvature."""
    return setting.lr * laws.heavy_ball(1.0, setting.beta).first_moment


def _named(setting: Setting) -> str:
    second = ", product from a second batch" if setting.second else ""
    return f"h {setting.lr:g}, β {setting.beta:g}{second}"


def _what() -> str:
    s = SETTINGS[0]
    return (
        f"{s.task}, the paper's network (three layers of 128, ReLU), heavy ball, mini-batches of {s.batch},"
        f" {s.steps:,} steps, {len(SEEDS)} seeds, float32. The explicit correction is added with a strength:"
        " −1 cancels what memory adds to the loss to this order, −2 reverses it, 1 doubles it, 0 is heavy"
        " ball as it is. h 0.03 is what validation data choose for momentum SGD on this task."
    )


def _how() -> str:
    return (
        f"Means of the last {LATE} evaluations, ± standard deviation over seeds; diverges: the loss is not"
        " finite, or above twice its first, with at least one seed. Loss and |∇f|² are of the first 5,000"
        " training images, λ, the largest curvature in size, of the first 500. At equal training loss: points"
        " of test accuracy more than strength 0 has when it first has the least training loss that both"
        " reach. In a direction of curvature λ the explicit term is strength · h m1 λ of a memoryless step:"
        " where h m1 λ > 1 the expansion means nothing, and a strength of −1 climbs."
    )


def figure(content: dict[str, Any]) -> Figure:
    """A row for each of three settings."""
    drawn = Figure(figsize=(12.5, 3.0 * len(DRAWN) + 0.6), layout="constrained")
    grid = drawn.subplots(len(DRAWN), 3, sharex=True, squeeze=False)
    panels = (
        ("test_accuracy", "test accuracy, %"),
        ("squared_gradient", "|∇f|²"),
        ("sharpness", "sharpness λ"),
    )
    for setting, line in zip(DRAWN, grid, strict=True):
        for axes, (name, label) in zip(line, panels, strict=True):
            for strength in STRENGTHS:
                found = of(content, setting, strength)
                xs = _finite_part(found, name) * (100 if name == "test_accuracy" else 1)
                axes.plot(found["step"][0], xs, color=COLOURS[strength], linewidth=1.7)
            if name != "test_accuracy":
                logarithmic(axes)
            dress(axes, "")
            title(axes, f"{_named(setting)}: {label}")
        line[0].set_ylim(_low(content, setting), None)
    for axes in grid[-1]:
        axes.set_xlabel("steps", fontsize=9, color=INK)
    handles = [grid[0, 0].plot([], [], color=COLOURS[s], linewidth=2.2)[0] for s in STRENGTHS]
    said = [minus(f"strength {s:+g}") if s else "strength 0: heavy ball as it is" for s in STRENGTHS]
    drawn.legend(handles, said, loc="outside lower center", ncols=len(said), frameon=False, fontsize=10)
    return headed(
        drawn,
        "Memory's correction added or taken away on fashion-mlp; lines end where a run diverges",
        size=12.5,
    )


def _finite_part(found: Curves, name: str) -> Array:
    """The mean over seeds up to where one is lost, NaN from there."""
    step = lost(found)
    kept = np.ones(found["step"].shape[1], bool) if step is None else found["step"][0] < step
    return np.where(kept, found[name].mean(0), np.nan)


def _low(content: dict[str, Any], setting: Setting) -> float:
    """What accuracies are drawn from: what strength 0 has after a fifth of the run."""
    curve = 100 * of(content, setting, 0.0)["test_accuracy"].mean(0)
    return float(curve[len(curve) // 5] - 4)
