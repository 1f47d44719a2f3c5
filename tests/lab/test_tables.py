"""Tables hold the numbers of the records, in three formats, and say what they are made of."""

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from made_up import BENCHMARKS, CIFAR, FASHION, MNIST, run, rung, seeds

from rllc.lab.errors import Refused
from rllc.lab.evidence.markup import FORMATS, MISSING, Entry, Group, Line, Table, render
from rllc.lab.evidence.outcomes import Sample
from rllc.lab.evidence.paper import published
from rllc.lab.evidence.tables import difference, ranked, table
from rllc.lab.optimizers import CONTROLS, PAPER, Rates, paper_trials, trials
from rllc.lab.studies import STUDIES


def three_optimizers(**more):
    return [
        *seeds("SGD", [0.88, 0.89, 0.90], **more),
        *seeds("Adam", [0.86, 0.87, 0.88], **more),
        *seeds("M(0.9)", [0.90, 0.91, 0.92], **more),
    ]


def entries(made, name, line=0):
    (group,) = (group for group in made.groups if group.name == name)
    return group.lines[line].entries


def test_means_deviations_and_marks():
    made = table(2, three_optimizers(), "last")
    assert made.columns == ("fashion-mlp",)
    assert entries(made, "SGD") == (Entry("89.00 ± 1.00", "benchmark"),)
    assert entries(made, "Adam") == (Entry("87.00 ± 1.00"),)
    assert entries(made, "M(0.9)") == (Entry("91.00 ± 1.00", "above", best=True),)
    assert entries(made, "M_3(0.6)") == (MISSING,)
    assert [group.name for group in made.groups] == list(PAPER)


def test_of_losses_less_is_better():
    made = table(1, three_optimizers(), "last")
    assert [line.label for line in made.groups[0].lines] == ["loss", "accuracy"]
    assert entries(made, "SGD") == (Entry("0.1100", "benchmark"),)
    assert entries(made, "M(0.9)") == (Entry("0.0900", "above", best=True),)
    assert entries(made, "M(0.9)", 1) == (Entry("91.00", "above", best=True),)


def test_ranks_with_ties_and_without_benchmarks():
    two = {"SGD": Sample((0.9,)), "Adam": Sample((0.9,)), "M(0.9)": Sample((0.9,)), "M(0.5)": Sample((0.8,))}
    assert ranked(two, 1) == {
        "SGD": ("benchmark", True),
        "Adam": ("benchmark", True),
        "M(0.9)": ("", True),
        "M(0.5)": ("", False),
    }
    assert ranked({"M(0.9)": Sample((0.9,))}, 1) == {"M(0.9)": ("", True)}
    assert ranked({}, 1) == {}


def test_readings_one_below_the_other():
    wavering = [run(paper_trials("SGD")[0], [0.1, 0.8, 0.9, 0.7], valid=[0.1, 0.9, 0.8, 0.7])]
    made = table(2, wavering, "all")
    assert [line.label for line in made.groups[0].lines] == [
        "last iterate",
        "best validation",
        "best on test",
    ]
    assert [line.entries[0].text for line in made.groups[0].lines] == ["70.00", "80.00", "90.00"]
    assert "last iterate" in table(2, wavering, "last").title


def test_the_paper_beside_ours():
    made = table(2, three_optimizers(), "last", "paper")  # it has 88.6537 ± 0.05 for SGD
    sigma = (89 - 88.6537) / math.hypot(1, 0.05)
    assert entries(made, "SGD")[0].aside == f"(+{sigma:.1f}σ)"
    assert entries(made, "SGD", 1) == (Entry("88.65 ± 0.05"),)
    assert entries(made, "Adam")[0].aside == f"(−{(88.7757 - 87) / math.hypot(1, 0.01):.1f}σ)"
    assert [line.label for line in made.groups[0].lines] == ["accuracy", "paper"]
    loss = table(1, three_optimizers(), "last", "paper").groups[0].lines
    assert [line.label for line in loss] == ["loss", "paper", "accuracy", "paper"]
    assert loss[1].entries == (Entry("0.3426"),) and loss[0].entries[0].aside == ""


def test_shorter_runs_are_not_measured_by_the_papers():
    made = table(2, [*three_optimizers(), *seeds("SGD", [0.97] * 3, task=MNIST, steps=3000)], "last", "paper")
    shorter, full = entries(made, "SGD")  # in the order of Table 1
    assert shorter == Entry("97.00 ± 0.00", "benchmark", best=True) and full.aside
    assert [entry.text for entry in entries(made, "SGD", 1)] == ["98.16 ± 0.03", "88.65 ± 0.05"]


def test_of_shorter_runs_the_order_is_compared():
    papers = {name: published("mnist-mlp", name).accuracy for name in ("SGD", "momentum SGD", "Adam")}
    order = [
        r for name, accuracy in papers.items() for r in seeds(name, [accuracy] * 2, task=MNIST, steps=3000)
    ]
    made = table(2, [*three_optimizers(), *order], "last", "paper")
    assert made.notes[-1].endswith("best on test: mnist-mlp 1.00 / 1.00 / 1.00.")
    assert "Rank" not in " ".join(table(2, [*three_optimizers(), *order], "last").notes)


@pytest.mark.parametrize(
    "ours, std, text",
    [
        ((0.91,), 0.01, "+1.00"),  # one seed: in points
        ((0.89, 0.89), 0.0, "−1.00"),  # no spread on either side
        ((0.91, 0.91), 0.005, "+2.0σ"),
        ((0.89, 0.91), 0.005, "+0.0σ"),
        ((0.91, 0.93), 0.02**0.5 / 10, "+1.0σ"),  # both deviations are 0.0141
    ],
)
def test_differences(ours, std, text):
    assert difference(Sample(ours), 0.90, std) == text


def notes(*records, which=2):
    return " ".join(table(which, records, "last").notes)


def test_notes_say_how_long_and_of_how_many():
    text = notes(*three_optimizers(), *seeds("SGD", [0.97], task=MNIST, steps=3000))
    assert "3,000 (shortened: the paper has 10,000) on mnist-mlp; 10,000 on fashion-mlp" in text
    assert "Means over 3 seeds" in text and "fewer for SGD on mnist-mlp (1)" in text
    assert "Tasks not run: mnist-conv, fashion-conv, cifar10-mlp, cifar10-conv, cifar10-resnet20." in text
    assert "no run of all steps: Adam on mnist-mlp" not in text  # many are missing: some are counted
    assert "and 14 more" in text
    assert "shortened" not in notes(*three_optimizers())
    alike = notes(*three_optimizers(), *(r for n in ("SGD", "Adam") for r in seeds(n, [0.97], task=MNIST)))
    assert (
        "Means over 3 seeds, ± their standard deviation (with n − 1); fewer for all on mnist-mlp (1)."
        in alike
    )


def test_notes_say_how_rates_were_chosen():
    grid = [run(setting, [0.1, 0.8]) for setting in paper_trials("SGD")]
    assert "Rates: the one of best validation accuracy with seed 0, of 15 tried." in notes(*grid)
    some = [rung("SGD", place, [0.1, 0.5]) for place in range(15)]
    text = notes(*some, *grid[3:5])
    assert "chosen by successive halving: 2 of 15 ran all steps" in text
    assert "Only part of the grid has been tried for SGD on fashion-mlp (2 of 15)." in notes(*grid[3:5])
    assert "Only part" not in text
    assert "In 1 of 1 cells a chosen rate is at the edge" in notes(*grid)  # of equal ones the first
    assert "edge" not in notes(*grid, run(paper_trials("SGD")[7], [0.1, 0.9]))


def test_what_diverged_is_marked_and_named():
    sgd = seeds("SGD", [0.88, 0.90, 0.10])
    sgd[2] = replace(sgd[2], result=sgd[2].result._replace(diverged_at=500))
    adam = seeds("Adam", [0.5], diverged_at=10)
    made = table(2, [*sgd, *adam], "last")
    assert entries(made, "SGD")[0].text == "89.00 ± 1.41†"
    assert entries(made, "Adam") == (Entry("diverged"),)
    text = " ".join(made.notes)
    assert "† diverged and left out of the mean: SGD on fashion-mlp (1 of 3 seeds)." in text
    assert "Every rate that ran all steps diverged: Adam on fashion-mlp." in text


def test_notes_name_runs_on_other_images_which_are_in_no_mean():
    others = replace(FASHION, data=replace(FASHION.data, digest="other"))
    made = [*three_optimizers(), *seeds("SGD", [0.5, 0.5], task=others)]
    assert entries(table(2, made, "last"), "SGD")[0].text == "89.00 ± 1.00"
    assert notes(*made).endswith("Left out: runs on other images (2).") and "Left out" not in notes(*made[:9])


def test_one_longer_run_does_not_erase_a_task():
    made = [*three_optimizers(), *seeds("SGD", [0.5], steps=20_000), *seeds("SGD", [0.5], steps=3000)]
    assert entries(table(2, made, "last"), "Adam")[0].text == "87.00 ± 1.00"
    assert notes(*made).endswith("Left out: runs of 20,000 steps on fashion-mlp (1).")


def test_controls_stand_beside_the_benchmarks_and_the_memory_that_validation_chose():
    memory = seeds("M(0.9)", [0.91, 0.91])
    other = seeds("M_2(0.6)", [0.92, 0.92], valid=[0.1, 0.5])
    control = seeds("Adam + cosine", [0.93, 0.95])
    made = table("controls", [*three_optimizers()[:6], *memory, *other, *control], "last")
    assert [group.name for group in made.groups] == [*BENCHMARKS, *CONTROLS, "RLLC, the best on validation"]
    assert entries(made, "Adam + cosine") == (Entry("94.00 ± 1.41", "above", best=True),)
    assert entries(made, "RLLC, the best on validation")[0].text == "91.00 ± 0.00"
    assert "RLLC, the best on validation: M(0.9) on fashion-mlp." in made.notes
    shorter = seeds("Adam + cosine", [0.93, 0.95], steps=3000)
    made = table("controls", [*three_optimizers(), *shorter], "last")
    assert entries(made, "SGD") == (MISSING,)  # which ran longer


def test_units_have_their_cost_beside_their_accuracy():
    study = STUDIES["units"]
    records = [
        run(study.trials(name)[0], [0.1, 0.8 + k / 100], seed, steps=3000, ms=2.0 + k / 2)
        for k, name in enumerate(study.optimizers[:3])
        for seed in (0, 1)
    ]
    made = table("units", records, "last")
    assert made.columns == (
        "units",
        "accuracy, last iterate",
        "ms/step",
        "× one unit",
        "bytes/parameter",
        "× Adam",
    )
    texts = [entry.text for entry in entries(made, "M(0.9) + M(0.8) + M(0.7)")]
    assert texts == ["3", "82.00 ± 0.00", "3.00", "1.50", "12", "1.5"]
    assert len(made.groups) == 3


def test_precision_has_a_line_for_each_dtype():
    study = STUDIES["precision"]
    settings = [study.trials(name)[0] for name in study.optimizers]
    records = [run(s, [0.1, 0.8 + i / 100], steps=3000) for i, s in enumerate(settings)]
    made = table("precision", records, "last")
    assert [group.name for group in made.groups] == list(study.optimizers)
    assert [entries(made, name)[0].text for name in study.optimizers] == ["80.00", "81.00", "82.00"]


def test_the_language_model_has_losses_and_rates():
    task = replace(FASHION, name="shakespeare-gpt")
    adam, memory = trials("Adam", Rates())[2], trials("M(0.9)", Rates())[3]
    records = [run(s, [0.1, a], task=task, steps=1000) for s, a in ((adam, 0.5), (memory, 0.6))]
    made = table("shakespeare", records, "last")
    assert [entry.text for entry in entries(made, "Adam")] == ["0.001", "", "0.5000", "50.00", "2.00"]
    assert [entry.text for entry in entries(made, "M(0.9)")][:3] == ["0.03", "0.01", "0.4000"]
    assert "shortened" not in " ".join(made.notes)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((3, "last"), "there is no table 3"),
        ((1, "median"), "unknown reading 'median'; known are last, validation, best, all"),
        ((1, "last", "theory"), "unknown 'theory' to compare with; known is paper"),
        (("controls", "last", "paper"), "only tables 1 and 2"),
        (("units", "last"), "make some: rllc run units"),
    ],
)
def test_refusals_have_a_remedy(arguments, message):
    which, reading, *against = arguments
    with pytest.raises(Refused, match=re.escape(message)):
        table(which, three_optimizers(), reading, *against)


SMALL = Table(
    "Table 2. A title",
    ("one_task", "two"),
    (
        Group("M(0.9) + CM(0.0+0.9i)", (Line("loss", (Entry("1 ± 2", "above", True, "(+1σ)"), MISSING)),)),
        Group("SGD", (Line("loss", (Entry("3%", "benchmark"), Entry("4"))), Line("p", (MISSING, MISSING)))),
    ),
    ("x < y & 5 %_",),
)


def test_markdown():
    text = render(SMALL, "markdown")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1 and len({line.count("|") for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("M(0.9) + CM(0.0+0.9i)", "loss", "▲ **1 ± 2** (+1σ)", "–")
    ]
    assert [cell.strip() for cell in lines[4].split("|")[1:-1]] == ["", "p", "–", "–"]
    assert "- ● the best benchmark, ▲ better than the best benchmark, **bold** the best of all." in text
    assert text.startswith("**Table 2. A title**\n\n|") and text.endswith("- x < y & 5 %_\n")


def test_latex():
    text = render(SMALL, "latex")
    assert text.startswith(r"% needs \usepackage{booktabs} \usepackage{graphicx} \usepackage{xcolor}")
    assert r"$M(0.9) \oplus C\!M(0.0+0.9i)$ & loss & \textcolor{rllcabove}{\textbf{1 $\pm$ 2}} (+1$" in text
    assert r"SGD & loss & \textcolor{rllcbenchmark}{3\%} & 4 \\" in text
    assert r"\caption{A title}" in text and r"x < y \& 5 \%\_" in text and r"one\_task" in text
    assert text.isascii()
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert sorted(re.findall(r"\\begin{(\w+)}", text)) == sorted(re.findall(r"\\end{(\w+)}", text))


def test_html_is_well_formed_and_says_what_is_a_heading():
    figure = ET.fromstring(render(SMALL, "html"))
    assert figure.attrib["class"] == "rllc-table"
    names = [cell for cell in figure.iter("th") if cell.get("scope") == "rowgroup"]
    assert [(cell.text, cell.get("rowspan")) for cell in names] == [
        ("M(0.9) + CM(0.0+0.9i)", "1"),
        ("SGD", "2"),
    ]
    first, *_ = figure.iter("td")
    assert first.get("class") == "above" and "".join(first.itertext()) == "▲ 1 ± 2 (+1σ)"
    assert [strong.text for strong in first.iter("strong")] == ["1 ± 2"]
    assert len(list(figure.iter("td"))) == 6
    assert [note.text for note in figure.iter("li")][1:] == ["x < y & 5 %_"]


def test_without_marks_and_labels_there_is_no_legend_and_no_column_for_them():
    bare = Table("t", ("a",), (Group("SGD", (Line("", (Entry("1"),)),)),), ())
    assert (
        render(bare, "markdown")
        == "**t**\n\n| optimizer |   a |\n| --------- | --: |\n| SGD       |   1 |\n\n"
    )
    assert "bold" not in render(bare, "latex") + render(bare, "html")


@pytest.mark.parametrize("format", FORMATS)
def test_every_number_is_in_every_format(format):
    records = [*three_optimizers(), *three_optimizers(task=CIFAR)]
    made = table(1, records, "all", "paper")
    text = render(made, format)
    for group in made.groups:
        for line in group.lines:
            assert all(
                entry.text.replace("–", "--" if format == "latex" else "–") in text for entry in line.entries
            )
    with pytest.raises(ValueError, match="unknown format 'rst'; known are markdown, latex, html"):
        render(made, "rst")
