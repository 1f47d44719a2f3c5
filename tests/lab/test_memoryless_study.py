"""`rllc memoryless`: what it prints and writes, and what it refuses."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from rllc.lab.errors import Refused
from rllc.lab.memoryless import command, drawing, study
from rllc.lab.memoryless.command import Memoryless


def said(options):
    console = Console(file=io.StringIO(), width=120)
    command.main(options, console)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, said(Memoryless("heavy-ball", ("tanh-net",), h=2.0**-7, halvings=5, out=out))


def test_it_prints_distances_orders_and_the_verdict(printed):
    _, text = printed
    assert "heavy-ball (β 0.7)" in text
    assert "Memory regularises ½|∇f|²: mean delay τ = 2.333 steps" in text
    assert "fade by a factor of 0.7000 a step" in text
    order = next(line for line in text.splitlines() if "order " in line).split()
    assert order[0] == "order" and abs(float(order[1]) - 1) < 0.03 and abs(float(order[2]) - 2) < 0.1


def test_it_writes_a_record_and_a_picture(printed):
    out, text = printed
    assert sorted(path.name for path in out.iterdir()) == [
        "memoryless-heavy-ball.json",
        "memoryless-heavy-ball.png",
    ]
    assert (out / "memoryless-heavy-ball.png").read_bytes()[:4] == b"\x89PNG"
    record = json.loads((out / "memoryless-heavy-ball.json").read_text())
    (found,) = record["tasks"]
    assert found["h"] == pytest.approx([2.0**-k for k in range(7, 13)]) and found["time"] == 1.0
    assert all(0 < a < b for a, b in zip(found["with"], found["without"], strict=True))
    assert abs(math.log2(found["without"][1] / found["without"][-1]) / 4 - found["order_without"]) < 1e-6
    assert record["dtype"] == "float64" and set(record["versions"]) >= {"jax", "optax", "rllc"}
    assert record["effect"]["delay"] == pytest.approx(0.7 / 0.3)
    assert f"{out}/memoryless-heavy-ball.json" in text.replace("\n", "")


def test_real_digits_over_time(tmp_path, monkeypatch):
    """Two intervals of the run that `--task digits-mlp` makes, with fewer steps."""
    monkeypatch.setattr(study, "INTERVALS", 2)
    monkeypatch.setattr(study, "HIDDEN", (8,))
    monkeypatch.setattr(study, "_fading", lambda form, problems: (0.7, ""))
    plan = study.plan(Memoryless("heavy-ball", ("digits-mlp",), h=0.005, halvings=1, time=0.2, out=tmp_path))
    found = study.measure(plan)
    (measured,) = found.measured
    assert measured.sizes.tolist() == [0.005, 0.0025] and measured.steps == 40
    assert measured.distances.shape == (2, 2, 2)
    without, corrected = measured.slopes
    assert abs(without - 1) < 0.15 and corrected > 1.6
    assert len(drawing.study("title", found.measured).axes) == 1
    assert study.record(plan, found)["tasks"][0]["over_time"] == measured.distances.tolist()


def test_the_first_step_on_digits_has_the_length_of_its_gradient():
    from rllc import laws
    from rllc.lab.memoryless.problems import valley
    from rllc.memoryless import Linear

    assert study._first_step(Linear(laws.heavy_ball(1.0, 0.9)), valley()) == pytest.approx(0.002)


def test_a_memory_without_effect_has_a_record_and_a_picture(tmp_path):
    text = said(Memoryless("M(0)", ("tanh-net",), halvings=2, out=tmp_path))
    assert "Memory is neutral to this order: τ = 0" in text
    assert (tmp_path / "memoryless-M-0.0.png").read_bytes()[:4] == b"\x89PNG"
    (found,) = json.loads((tmp_path / "memoryless-M-0.0.json").read_text())["tasks"]
    assert found["without"] == found["with"] == [0.0] * 3 and found["order_with"] is None


@pytest.mark.parametrize("intervals", [1, 5])
def test_a_picture_says_that_distances_are_zero(intervals):
    sizes = study.halvings(0.1, 2)
    figure = drawing.study("title", [study.Measured("valley", sizes, 10, np.zeros((3, intervals, 2)))])
    assert "both distances are zero" in [text.get_text() for text in figure.axes[0].texts]
    figure.canvas.draw()


def test_memories_that_differ_by_a_sign_have_files_of_their_own():
    slugs = {"M(0.5)": "M-0.5", "M(-0.5)": "M-minus-0.5", "CM(0.3+0.2i)": "CM-0.3-0.2i"}
    slugs |= {"CM(0.3-0.2i)": "CM-0.3-minus-0.2i", "M(0.9) + M_2(0.6)": "M-0.9-M-2-0.6"}
    slugs |= {"adam": "adam", "nesterov-iterates": "nesterov-iterates"}
    assert {name: study._slug(name) for name in slugs} == slugs


def test_stars_and_where_there_is_no_order():
    sizes = study.halvings(0.1, 4)
    shapes = {1.0: "1.00", 1.2: "1.20*"}
    for power, text in shapes.items():
        distances = (sizes**power)[:, None, None].repeat(2, axis=2)
        measured = study.Measured("valley", sizes, 10, distances)
        assert study.order_text(measured, 0) == text
    assert study.order_text(study.Measured("valley", sizes, 10, 0 * distances), 1) == "none"


def test_memory_that_does_not_decay_is_told():
    from rllc.lab.memoryless.names import named
    from rllc.lab.memoryless.problems import valley
    from rllc.memoryless import memory_effect

    form = named("M(0.9999999)").form
    decay, warning = study._fading(form, [valley()])
    assert abs(decay - 1) < 1e-5
    text = "\n".join(study.verdict(study.Study((), memory_effect(form), decay, warning, 0.0)))
    assert "Warning: the memory of this method does not decay (measured: a factor of 1.000000 a step" in text
    assert "Memory decays" not in text


def test_verdicts_in_words():
    from rllc.lab.memoryless.names import named
    from rllc.memoryless import memory_effect

    def lines(name):
        return study.verdict(study.Study((), memory_effect(named(name).form), 0.9, "", 0.0))[:-1]

    assert lines("ab2") == ["Memory anti-regularises ½|∇f|²: mean delay τ = −0.5 steps"]
    assert lines("M(0)") == ["Memory is neutral to this order: τ = 0"]
    assert lines("lion")[1] == "Where gradients are small against sqrt(ε) τ is 18"
    anti, small = lines("adam")
    assert anti == "Memory anti-regularises |∇f|₁,ε: mean delay τ = −23.33 steps, where gradients are large"
    assert small.startswith(
        "Where gradients are small against sqrt(ε) τ is 9; it changes its sign at |g| = 0.3"
    )


def test_iterates_that_do_not_stay_finite_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "errors", lambda form, problem, sizes, *_: np.full((len(sizes), 1, 2), np.inf))
    plan = study.plan(Memoryless("heavy-ball", ("valley",), h=0.25, out=tmp_path))
    with pytest.raises(
        Refused, match=r"on valley the iterates do not stay finite with h = 0.25; give a smaller"
    ):
        study.measure(plan)


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"h": 0.0}, "--h must be a positive finite number, got 0"),
        ({"h": -0.1}, "--h must be a positive finite number, got -0.1"),
        ({"h": math.nan}, "--h must be a positive finite number, got nan"),
        ({"time": math.inf}, "--time must be a positive finite number, got inf"),
        ({"halvings": 0}, "--halvings must be 1 or more, got 0"),
        ({"task": ("tanh",)}, "unknown task 'tanh'; did you mean tanh-net?"),
        ({"task": ()}, "--task names no task"),
        ({"name": "adma"}, "did you mean adam?"),
        ({"beta2": 0.9}, "--beta2 has no meaning"),
        ({"h": 0.5, "time": 0.1}, "give a smaller --h"),
    ],
)
def test_refusals(changed, reason, tmp_path):
    options = dataclasses.replace(Memoryless("heavy-ball", ("tanh-net",), out=tmp_path / "out"), **changed)
    with pytest.raises(Refused) as caught:
        said(options)
    assert reason in str(caught.value)
    assert not list(tmp_path.glob("out/*"))


def test_jax_may_be_missing(monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"jax and optax not installed; pip install 'rllc\[lab,jax\]'"):
        said(Memoryless("adam"))
