"""Figures 1, 2, 4 and 5 show the numbers of the records, and refuse with a remedy where there are none."""

import itertools
import re

import numpy as np
import pytest
from made_up import CIFAR, FASHION, MNIST, run, seeds
from matplotlib.text import Text

from rllc.lab.errors import Refused
from rllc.lab.evidence.figures import figure
from rllc.lab.evidence.law_claims import LIMIT, THREE, TWO
from rllc.lab.evidence.law_paths import rewriting
from rllc.lab.optimizers import PAPER, paper_trials
from rllc.lab.tasks import TASKS
from rllc.notation import parse

RESNET = TASKS["cifar10-resnet20"]
CURVES = [[0.1, 0.7, 0.80], [0.1, 0.7, 0.90]]


def every_optimizer(task, **more):
    return [record for name in PAPER for record in seeds(name, CURVES, task=task, **more)]


def with_laws(name, *laws, **more):
    setting = paper_trials(name)[0]
    return [run(setting, [0.5] * len(law), seed, law=law, **more) for seed, law in enumerate(laws)]


PATHS = [(1.0, 1.0), (0.5, 1.2), (-0.1, 1.0)], [(1.0, 1.0), (0.3, 1.0), (-0.3, 0.6)]
THREES = [(1.0, 1.0, 1.0), (2.0, -9.0, 9.0), (1.0, -4.0, 4.4)]


def drawn(axes):
    return [line.get_ydata() for line in axes.lines]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_figure_1_is_resnet_with_means_over_seeds():
    (axes,) = figure(1, every_optimizer(RESNET)).axes
    assert axes.get_title(loc="left") == "cifar10-resnet20"
    assert len(axes.lines) == 7 and np.allclose(drawn(axes), [10, 70, 85])
    assert axes.lines[0].get_xdata().tolist() == [0, 5000, 10000]
    assert sorted(texts(axes))[:2] == ["Adam  85.00", "M(0.9)  85.00"]


def test_figure_4_is_every_other_task():
    made = figure(4, [*every_optimizer(RESNET), *every_optimizer(CIFAR), *every_optimizer(MNIST, steps=3000)])
    titles = [axes.get_title(loc="left") for axes in made.axes]
    assert titles == ["mnist-mlp, shortened to 3,000 steps", "cifar10-mlp"]
    assert [len(axes.lines) for axes in made.axes] == [7, 7]
    assert made.get_suptitle() == "Test accuracy in %, mean over 2 seeds"


def test_figure_5_has_a_panel_for_each_memory_with_its_band():
    made = figure(
        5, [*seeds("M(0.9)", CURVES), *seeds(TWO, CURVES), *seeds(THREE, [0.5]), *seeds("SGD", CURVES)]
    )
    first, second, *empty = made.axes
    band = first.collections[0].get_paths()[0].vertices
    at_end = band[band[:, 0] == 10_000, 1]
    assert np.allclose([at_end.min(), at_end.max()], [80, 90])
    assert first.get_xlabel() == "steps; at the end 80.00 to 90.00"
    assert first.get_ylabel() == "fashion-mlp" and len(second.collections) == 1
    assert len(empty) == 2 and not any(axes.collections for axes in empty)  # one seed has no band


def test_figure_2_has_the_path_and_where_it_passes_known_optimizers():
    time, plane, three, limit = figure(2, [*with_laws(TWO, *PATHS), *with_laws(THREE, THREES)]).axes
    mean = np.mean(PATHS, axis=0)
    assert np.allclose(drawn(time)[:2], mean.T)
    # The mean path is left of the NAG line where x < 0.9 y, first between 0 and 5000.
    nag = 5000 * (0.1 / (0.1 + 0.9 * mean[1, 1] - mean[1, 0]))
    sgd = 5000 * (1 + mean[1, 0] / (mean[1, 0] - mean[2, 0]))
    assert {f" NAG, step {nag:,.0f}", f" SGD, step {sgd:,.0f}"} <= set(texts(time))
    paths = [line.get_xydata() for line in plane.lines]
    assert any(path.shape == mean.shape and np.allclose(path, mean) for path in paths)
    assert {"momentum", "NAG", "SGD", "0", "10,000"} <= set(texts(plane))
    on_sgd, on_nag = [line.get_xydata()[0] for line in plane.lines if line.get_fillstyle() == "none"]
    assert np.isclose(on_sgd[0], 0) and np.isclose(on_nag @ [1, -0.9], 0)
    assert np.allclose(drawn(three)[:3], np.transpose(THREES))
    rewritten = np.array(THREES) @ rewriting(parse(THREE), parse(LIMIT)).T
    assert np.allclose(drawn(limit)[:3], rewritten.T)
    assert abs(rewritten).max() < 2.5  # tame, where the law itself goes to 9


def test_figure_2_is_of_the_task_with_most_seeds_then_of_the_last():
    def on(task, count, steps=10_000):
        return [
            *with_laws(TWO, *[PATHS[0]] * count, task=task, steps=steps),
            *with_laws(THREE, *[THREES] * count, task=task, steps=steps),
        ]

    assert "on fashion-mlp, 2 seeds" in figure(2, [*on(FASHION, 2), *on(CIFAR, 1)]).get_suptitle()
    assert "on cifar10-mlp, one seed" in figure(2, [*on(FASHION, 1), *on(CIFAR, 1)]).get_suptitle()
    shortened = on(CIFAR, 2, steps=3000)
    assert "on fashion-mlp, one seed" in figure(2, [*on(FASHION, 1), *shortened]).get_suptitle()
    assert "on cifar10-mlp, 2 seeds" in figure(2, shortened).get_suptitle()


@pytest.mark.parametrize(
    "number, remedy",
    [
        (1, "cifar10-resnet20, which has not been run: rllc run table1 --tasks cifar10-resnet20"),
        (2, f"figure 2 needs {TWO} and {THREE} on one task: rllc run table1 --optimizers"),
        (4, "figure 4 needs a task of Table 1 that has been run: rllc run table1"),
        (5, "rllc run table1 --seeds 3"),
        (3, "there is no figure 3 from runs; there are 1, 2, 4, 5"),
    ],
)
def test_without_records_a_figure_is_refused(number, remedy):
    with pytest.raises(Refused, match=re.escape(remedy)):
        figure(number, [])


def test_diverged_runs_are_not_drawn():
    lost = [*seeds("M(0.9)", CURVES, diverged_at=3), *seeds(TWO, CURVES)]
    with pytest.raises(Refused):
        figure(5, seeds("M(0.9)", CURVES, diverged_at=3))
    assert len(figure(4, lost).axes[0].lines) == 1


@pytest.mark.parametrize("number", (1, 2, 4))
def test_labels_do_not_overlap(number):
    """Curves that end at the same place, the hardest case; paths as they are."""
    runs = [*every_optimizer(RESNET), *every_optimizer(MNIST)]
    laws = [*with_laws(TWO, *PATHS), *with_laws(THREE, THREES)]
    made = figure(number, laws if number == 2 else runs)
    made.draw_without_rendering()
    for axes in made.axes:
        boxes = [Text.get_window_extent(text) for text in axes.texts]  # of the text without its leader
        for a, b in itertools.combinations(boxes, 2):
            beside, above = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert beside < 1 or above < 0.25 * a.height
