"""Each verdict follows from the numbers by its rule: made-up records, every word."""

import numpy as np
import pytest
from made_up import CIFAR, FASHION, MNIST, run, rung, seeds

from rllc.lab.evidence.claims import _expected_best, markdown, verdicts
from rllc.lab.evidence.law_claims import THREE, TWO
from rllc.lab.evidence.outcomes import Sample
from rllc.lab.evidence.paper import published
from rllc.lab.evidence.verdicts import HOLDS, NOT, PARTLY, UNTESTED, Duel, most, not_below
from rllc.lab.optimizers import paper_trials

TABLES, MOMENTUM, GENERAL, FAST, SCHEDULE, RELIABLE, BLOCKS, NAG, COUPLED, CONSISTENT, TIME = range(11)
LOW, MID, HIGH = [0.80, 0.81, 0.82], [0.84, 0.85, 0.86], [0.90, 0.91, 0.92]


def decided(place, *records):
    return verdicts([record for some in records for record in some])[place]


def test_without_records_nothing_is_tested():
    empty = verdicts([])
    assert [verdict.verdict for verdict in empty] == [UNTESTED] * 11
    assert len({verdict.claim for verdict in empty}) == 11
    assert all(verdict.text and verdict.rule and verdict.source for verdict in empty)


def test_shortened_tasks_decide_nothing():
    def of(task, steps):
        on = {"task": task, "steps": steps}
        memories = *seeds("M(0.9)", HIGH, **on), *seeds(TWO, HIGH, law=[(1.0, 1.0), (0.0, 0.5)], **on)
        return [*memories, *(r for name in ("SGD", "momentum SGD", "Adam") for r in seeds(name, MID, **on))]

    assert {verdict.verdict for verdict in verdicts(of(MNIST, 9_999))} == {UNTESTED}
    alone = verdicts(of(FASHION, 10_000))
    assert HOLDS in {verdict.verdict for verdict in alone}
    assert verdicts(of(FASHION, 10_000) + of(MNIST, 9_999)) == alone


def duels(*outcomes):
    return [Duel(Sample(()), Sample(()), outcome) for outcome in outcomes]


@pytest.mark.parametrize(
    "outcomes, by_most, by_not_below",
    [
        (("above", "above", "level"), HOLDS, HOLDS),
        (("above", "above", "below"), PARTLY, PARTLY),
        (("above", "level"), PARTLY, HOLDS),
        (("ahead", "ahead", "level"), PARTLY, HOLDS),
        (("ahead", "level"), NOT, HOLDS),
        (("level", "behind", "behind"), NOT, PARTLY),
        (("below", "below", "level"), NOT, NOT),
        ((), UNTESTED, UNTESTED),
    ],
)
def test_rules(outcomes, by_most, by_not_below):
    assert most(duels(*outcomes)) == by_most
    assert not_below(duels(*outcomes)) == by_not_below


@pytest.mark.parametrize("ours, word", [(HIGH, HOLDS), (LOW, NOT), (MID, NOT), ([0.9], UNTESTED)])
def test_momentum_with_a_learned_rate_against_momentum(ours, word):
    verdict = decided(MOMENTUM, seeds("M(0.9)", ours), seeds("momentum SGD", MID))
    assert verdict.verdict == word
    if word == HOLDS:
        numbers = "last iterate 91.00 to 85.00, +6.00 ± 0.82, above"
        assert numbers in verdict.text and "Comparisons: 1; last iterate 1 above" in verdict.text


def test_a_claim_on_which_readings_disagree_holds_partly():
    peaks = [[0.1, high, 0.5] for high in HIGH]  # far above at its best, far below at the end
    verdict = decided(MOMENTUM, seeds("M(0.9)", peaks), seeds("momentum SGD", MID))
    assert verdict.verdict == PARTLY
    assert "last iterate 1 below; best validation 1 above; best on test 1 above" in verdict.text
    assert "Which evaluation of a run is reported decides." in verdict.text


def test_the_best_are_chosen_on_validation_data():
    lucky = seeds("M_2(0.6)", HIGH, valid=[0.1, 0.2])
    verdict = decided(GENERAL, lucky, seeds("M(0.9)", LOW), seeds("Adam", MID), seeds("SGD", LOW))
    assert verdict.verdict == NOT and "M(0.9) against Adam" in verdict.text
    verdict = decided(GENERAL, lucky, seeds("M(0.9)", HIGH), seeds("Adam", MID))
    assert verdict.verdict == HOLDS


def test_most_tasks_are_more_than_half():
    def on(task, ours):
        return [*seeds("M(0.9)", ours, task=task), *seeds("Adam", MID, task=task)]

    assert decided(GENERAL, on(FASHION, HIGH), on(MNIST, HIGH), on(CIFAR, MID)).verdict == HOLDS
    assert decided(GENERAL, on(FASHION, HIGH), on(MNIST, MID), on(CIFAR, MID)).verdict == PARTLY
    assert decided(GENERAL, on(FASHION, HIGH), on(MNIST, HIGH), on(CIFAR, LOW)).verdict == PARTLY


def test_the_chance_of_the_best_of_many():
    assert _expected_best(1) == pytest.approx(0, abs=1e-6)
    assert _expected_best(2) == pytest.approx(np.pi**-0.5)
    assert _expected_best(3) == pytest.approx(1.5 * np.pi**-0.5)


@pytest.mark.parametrize(
    "ours, word",
    [([0.1, 0.899, 0.9, 0.9], HOLDS), ([0.1, 0.5, 0.9, 0.9], NOT), ([0.1, 0.5, 0.5, 0.9], NOT)],
)
def test_convergence_is_against_the_fastest_benchmark(ours, word):
    slow, fast = seeds("SGD", [[0.1, 0.5, 0.5, 0.901]] * 2), seeds("Adam", [[0.1, 0.5, 0.9, 0.9]] * 2)
    verdict = decided(FAST, seeds("M(0.9)", [ours] * 2), slow, fast)
    assert verdict.verdict == word
    assert "Adam at step 6,666" in verdict.text


def test_what_never_arrives_is_slower():
    verdict = decided(FAST, seeds("M(0.9)", [0.5, 0.5]), seeds("SGD", [0.9, 0.9]))
    assert verdict.verdict == NOT and "M(0.9) never, SGD at step 10,000" in verdict.text


@pytest.mark.parametrize("control, word", [(LOW, HOLDS), (MID, HOLDS), (HIGH, NOT)])
def test_against_schedules(control, word):
    verdict = decided(SCHEDULE, seeds("M(0.9)", MID), seeds("Adam + cosine", control))
    assert verdict.verdict == word and "M(0.9) against Adam + cosine" in verdict.text


def test_controls_of_another_length_are_no_controls():
    shorter = seeds("Adam + cosine", HIGH, steps=3000)
    assert decided(SCHEDULE, seeds("M(0.9)", MID), shorter).verdict == UNTESTED


def test_reliable_is_a_small_spread_and_a_small_shortfall():
    steady, wild = [0.90, 0.90, 0.90], [0.80, 0.85, 0.90]
    assert decided(RELIABLE, seeds(TWO, steady), seeds(THREE, wild)).verdict == HOLDS
    assert decided(RELIABLE, seeds(TWO, wild), seeds(THREE, steady)).verdict == NOT
    assert decided(RELIABLE, seeds(TWO, [0.8] * 3), seeds(THREE, wild)).verdict == PARTLY
    assert decided(RELIABLE, seeds(TWO, steady), seeds("M_2(0.6)", wild)).verdict == UNTESTED
    text = decided(RELIABLE, seeds(TWO, steady), seeds(THREE, wild)).text
    assert f"last iterate, standard deviation: {TWO} 0.00, {THREE} 5.00" in text
    assert f"last iterate, shortfall: {TWO} 0.00, {THREE} 5.00" in text


def test_blocks_are_jordan_and_complex_ones():
    names = ("M_2(0.6)", "M_3(0.6)", "M(0.9) + M(-0.9) + CM(0.0+0.9i)")
    good = [record for name in names for record in seeds(name, HIGH)]
    verdict = decided(BLOCKS, good, seeds("M(0.9)", LOW), seeds("SGD", MID))
    assert verdict.verdict == HOLDS and "Comparisons: 3; last iterate 3 above" in verdict.text
    assert "M_2(0.6): last iterate +6.00 (1 above)" in verdict.text
    assert decided(BLOCKS, seeds("M(0.9)", HIGH), seeds("SGD", MID)).verdict == UNTESTED


def with_law(name, *laws):
    setting = paper_trials(name)[0]
    return [run(setting, [0.1] + [0.5] * (len(law) - 1), seed, law=law) for seed, law in enumerate(laws)]


LEADS, FALLS, STAYS = (
    [(1.0, 1.0), (1.2, 1.0), (0.0, 1.0), (-0.2, 1.0)],
    [(1.0, 1.0), (0.5, 1.0), (0.1, 0.8), (0.1, 0.4)],
    [(1.0, 1.0), (1.1, 1.0), (1.2, 0.9), (1.3, 0.8)],
)


@pytest.mark.parametrize(
    "laws, word",
    [((LEADS, LEADS), HOLDS), ((LEADS, FALLS), PARTLY), ((FALLS, STAYS), PARTLY), ((STAYS,), NOT)],
)
def test_from_momentum_past_nag_to_the_gradient(laws, word):
    assert decided(NAG, with_law(TWO, *laws)).verdict == word


def test_the_steps_of_the_transition():
    text = decided(NAG, with_law(TWO, LEADS, FALLS)).text
    assert "after the start in 1 of them" in text and "SGD at step 6,666 (in 1 of 2 runs)" in text
    assert "NAG is passed at steps 667 to 4,166" in text
    assert "from (1.00, 1.00) to (−0.05, 0.70) in the mean of 2 runs" in text


APART = [(1.0, 1.0, 1.0), (2.0, -4.0, 5.0), (2.0, -8.0, 9.0), (1.0, -4.0, 4.5)]
TOGETHER = [(1.0, 1.0, 1.0), (2.0, 4.0, 5.0), (2.0, 8.0, 9.0), (1.0, 4.0, 4.5)]
OPPOSITE = [(1.0, -5.0, 1.0), (1.0, -4.0, 2.0), (1.0, -2.0, 4.0), (1.0, -1.0, 5.0)]  # and rise together


@pytest.mark.parametrize(
    "laws, word",
    [((APART, APART), HOLDS), ((APART, TOGETHER), PARTLY), ((TOGETHER,), NOT), ((OPPOSITE,), NOT)],
)
def test_coupling(laws, word):
    verdict = decided(COUPLED, with_law(THREE, *laws))
    assert verdict.verdict == word
    changes = np.diff(laws[0], axis=0)
    correlation = f"{np.corrcoef(changes[:, 1], changes[:, 2])[0, 1]:.3f}".replace("-", "−")
    assert f"correlations {correlation}" in verdict.text


def test_consistent_is_a_small_spread_and_a_gain_beyond_it():
    sgd = seeds("SGD", MID)
    assert decided(CONSISTENT, seeds("M(0.9)", HIGH), sgd).verdict == HOLDS
    within = [0.855, 0.865, 0.875]  # 1.5 standard deviations above
    assert decided(CONSISTENT, seeds("M(0.9)", within), sgd).verdict == PARTLY
    assert decided(CONSISTENT, seeds("M(0.9)", [0.7, 0.8, 0.9]), sgd).verdict == NOT
    text = decided(CONSISTENT, seeds("M(0.9)", HIGH), sgd).text
    assert "last iterate 1.00 and 1.00" in text and "clear on 2 of 7 tasks" in text


@pytest.mark.parametrize("ms, word", [(2.1, HOLDS), (2.6, PARTLY), (3.2, NOT)])
def test_time_is_beside_adams_on_the_same_machine(ms, word):
    elsewhere = seeds("M_2(0.6)", [0.8], ms=50.0, hardware="elsewhere")
    verdict = decided(TIME, seeds("M(0.9)", MID, ms=ms), seeds("Adam", MID, ms=2.0), elsewhere)
    assert verdict.verdict == word and f"M(0.9) {ms / 2:.2f}." in verdict.text
    assert "M_2" not in verdict.text


def test_times_of_shorter_runs_do_not_count():
    full = [*seeds("M(0.9)", MID, ms=3.0), *seeds("Adam", MID, ms=2.0)]
    shorter = [*seeds("M(0.9)", [0.5] * 4, ms=1.0, steps=500), rung("Adam", 2, [0.1, 0.5], ms=0.1)]
    assert decided(TIME, full, shorter) == decided(TIME, full)
    assert "1.50 in the median" in decided(TIME, full).text


def around_the_paper(shift, names, std=0.001, **more):
    """Three seeds of each at the paper's accuracy, moved."""
    means = {name: published("fashion-mlp", name).accuracy + shift for name in names}
    return [r for name, mean in means.items() for r in seeds(name, [mean - std, mean, mean + std], **more)]


def test_whether_the_papers_accuracies_come_out_again():
    names = ("SGD", "momentum SGD", "Adam", "M(0.9)")
    assert decided(TABLES, around_the_paper(0.0, names)).verdict == HOLDS
    assert decided(TABLES, around_the_paper(0.02, names)).verdict == NOT
    half = around_the_paper(0.0, names[:2]) + around_the_paper(0.02, names[2:])
    assert decided(TABLES, half).verdict == PARTLY
    text = decided(TABLES, around_the_paper(0.001, names)).text
    assert "4 cells on fashion-mlp; last iterate 100 % within two units, ours 0.10 points above" in text
    assert "fashion-mlp 1.00 / 1.00 / 1.00" in text  # the same order
    assert decided(TABLES, around_the_paper(0.0, names, steps=3000)).verdict == UNTESTED


def test_markdown_has_the_claim_the_verdict_the_numbers_and_the_rule():
    verdict = decided(MOMENTUM, seeds("M(0.9)", HIGH), seeds("momentum SGD", MID))
    text = markdown([verdict])
    assert text.startswith(f"### {verdict.claim}\n\n**Holds** (section 6, Table 1). Comparisons: 1;")
    assert text.endswith(f"\n\n*{verdict.rule}*\n")
