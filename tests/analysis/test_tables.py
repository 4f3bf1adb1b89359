"""Tables, rates and fits: the numbers behind the figures."""

import math

import pytest

from robustjax.analysis import labels, rates, tables
from robustjax.analysis.groups import groups
from robustjax.analysis.load import load_study
from robustjax.analysis.stages import Victim
from robustjax.evaluation import metrics

SMALL = {"sizes": {"nano-28k": 28_320, "nano-900k": 913_664}, "num_examples": 32}
TINY = {"sizes": {"nano-28k": 28_320}, "num_examples": 8}


@pytest.fixture(scope="module")
def group(shared_study):
    (only,) = groups(load_study([shared_study(**SMALL)]))
    return only


def pick(rows, **columns):
    return [row for row in rows if columns.items() <= row.items()]


@pytest.mark.parametrize(
    ("count", "label"),
    [
        (512, "512"),
        (28_320, "28k"),
        (481_024, "481k"),
        (913_664, "0.9M"),
        (44_672_000, "44.7M"),
        (908_763_136, "908.8M"),
        (1_311_629_312, "1.3B"),
        (11_586_560_000, "11.6B"),
    ],
)
def test_size_labels(count, label):
    assert labels.size_label(count) == label


def test_size_labels_are_never_alike():
    def victims(*counts):
        return [Victim("nano", "spam", count, f"p{i}", 0) for i, count in enumerate(counts)]

    close = labels.size_labels(victims(1_000_000, 1_020_000))
    assert close == {"p0": "1.00M", "p1": "1.02M"}
    assert labels.size_labels(victims(5000, 5000)) == {"p0": "5k (p0)", "p1": "5k (p1)"}


def test_one_seed_has_a_wilson_interval():
    rate = rates.combine([rates.Count(8, 10, 12)])
    assert (rate.value, rate.low, rate.high) == (0.8, *metrics.wilson_interval(8, 10))
    assert rate.interval == rates.WILSON
    assert rate.smoothed == pytest.approx((0.8 * 12 + 1) / 14)
    assert (rate.num_seeds, rate.trials, rate.offered) == (1, 10, 12)


def test_several_seeds_have_median_and_range_and_a_pooled_interval():
    counts = [rates.Count(1, 10, 10), rates.Count(0, 0, 10), rates.Count(6, 10, 10)]
    rate = rates.combine([*counts, rates.Count(10, 20, 20)])
    assert (rate.value, rate.low, rate.high) == (0.5, 0.1, 0.6)
    assert rate.interval == rates.SEED_RANGE
    assert rate.num_seeds == 3
    assert (rate.pooled, rate.trials) == (17 / 40, 40)
    assert (rate.pooled_low, rate.pooled_high) == metrics.wilson_interval(17, 40)
    assert (rate.smoothed_low, rate.smoothed_high) == pytest.approx((2 / 12, 7 / 12))


def test_no_trials_is_nan():
    rate = rates.combine([rates.Count(0, 0, 5)])
    assert rate.trials == 0
    assert math.isnan(rate.value)
    assert math.isnan(rate.smoothed)


def test_final_asr_rows_repeat_the_runs(group):
    rows = tables.asr_against_size(group)
    assert len(rows) == 2 * 3 * 2
    for run in group.attacks:
        if run.round in (0, 3):
            (row,) = pick(
                rows, attack=run.attack, trained_on=run.trained_on, point=run.victim.point
            )
            assert row["value"] == run.metrics["attack_success_rate"]
            assert [row["low"], row["high"]] == run.metrics["asr_interval"]
            assert (row["trials"], row["round"]) == (run.metrics["num_attacked"], run.round)


def test_the_undefended_victim_is_round_0_of_every_defence(group):
    rows = tables.asr_against_round(group)
    for attack in ("gcg", "random_token"):
        (undefended,) = pick(
            tables.asr_against_size(group), attack=attack, trained_on="none", point="nano-28k"
        )
        for defence in ("gcg", "random_token"):
            curve = pick(rows, attack=attack, trained_on=defence, point="nano-28k")
            assert [row["round"] for row in curve] == [0, 1, 2, 3]
            assert curve[0]["value"] == undefended["value"]


def test_defence_compute_leaves_out_round_0_and_gives_the_fraction_of_pretraining(group):
    rows = tables.asr_against_defence_compute(group)
    assert {row["round"] for row in rows} == {1, 2, 3}
    (row,) = pick(rows, attack="gcg", trained_on="gcg", point="nano-28k", round=3)
    (training,) = [
        stage
        for stage in group.trainings
        if (stage.victim.point, stage.trained_on) == ("nano-28k", "gcg")
    ]
    assert row["defence_flops"] == training.rounds[-1].flops_total
    pretrain = 6 * 28_320 * 200_000_000
    assert row["defence_fraction_of_pretraining"] == pytest.approx(row["defence_flops"] / pretrain)


def test_attack_compute_grows_by_one_iteration_a_row(group):
    rows = pick(
        tables.asr_against_attack_compute(group, "gcg"), trained_on="none", point="nano-900k"
    )
    (run,) = [
        run
        for run in group.attacks
        if (run.attack, run.round, run.victim.point) == ("gcg", 0, "nano-900k")
    ]
    assert [row["iteration"] for row in rows] == list(range(1, 9))
    flops = 2 * 913_664 * 90 * 100
    assert [row["attack_flops"] for row in rows] == pytest.approx([k * flops for k in range(1, 9)])
    assert [row["value"] for row in rows] == [run.metrics["asr_at"][str(k)] for k in range(1, 9)]


def test_transfer_to_a_longer_attack_reads_the_curve_at_the_longest_training_round(group):
    rows = tables.transfer_across_iterations(group)
    (few,) = pick(rows, attack="gcg", point="nano-28k", series="trained")
    (many,) = pick(rows, attack="gcg", point="nano-28k", series="last")
    (run,) = [run for run in group.last_runs("gcg", "gcg") if run.victim.point == "nano-28k"]
    assert (few["iteration"], many["iteration"], few["round"]) == (4, 8, 3)
    assert few["value"] == run.metrics["asr_at"]["4"]
    assert many["value"] == run.metrics["asr_at"]["8"]


def test_transfer_to_a_longer_attack_needs_a_longer_attack(shared_study):
    short = {"gcg": 4, "random_token": 6}
    (group,) = groups(load_study([shared_study(**{**TINY, "iterations": short})]))
    assert {row["attack"] for row in tables.transfer_across_iterations(group)} == {"random_token"}


def test_transfer_to_another_attack_shows_gcg_against_both_defences(group):
    rows = tables.transfer_across_attacks(group)
    assert {row["attack"] for row in rows} == {"gcg"}
    assert {row["trained_on"] for row in rows} == {"none", "gcg", "random_token"}


def test_headline_compares_the_attack_with_training_on_itself(group):
    for row in tables.headline(group):
        assert (row["attack"], row["trained_on"], row["round_after"]) == ("gcg", "gcg", 3)
        apart = (
            row["asr_pooled_high_after"] < row["asr_pooled_low_before"]
            or row["asr_pooled_high_before"] < row["asr_pooled_low_after"]
        )
        assert row["intervals_overlap"] == ("no" if apart else "yes")
    assert {row["intervals_overlap"] for row in tables.headline(group)} == {"no"}


def test_headline_intervals_that_overlap(shared_study):
    (group,) = groups(load_study([shared_study(**TINY, fixed_asr=1.0)]))
    assert {row["intervals_overlap"] for row in tables.headline(group)} == {"yes"}


def test_clean_accuracy_prefers_validation_and_falls_back_on_attack_records(group, lone_attack):
    rows = tables.clean_accuracy(group)
    assert {row["source"] for row in rows} == {"validation"}
    (row,) = pick(rows, trained_on="gcg", point="nano-28k")
    assert (row["value"], row["trials"], row["round"]) == (pytest.approx(111 / 128), 128, 3)
    (alone,) = groups(load_study([lone_attack()]))
    (row,) = tables.clean_accuracy(alone)
    assert (row["source"], row["trials"]) == ("attack records", 64)
    assert row["value"] == alone.attacks[0].metrics["accuracy_before"]


def test_seeds_are_combined(shared_study):
    (group,) = groups(load_study([shared_study(**TINY, seeds=(0, 1, 2))]))
    row = tables.asr_against_size(group)[0]
    values = sorted(
        run.metrics["attack_success_rate"]
        for run in group.runs("gcg", "none")
        if run.victim.point == "nano-28k"
    )
    assert (row["low"], row["value"], row["high"]) == tuple(values)
    assert row["num_seeds"] == 3


def test_tasks_are_kept_apart(shared_study):
    found = groups(load_study([shared_study(**TINY), shared_study(**TINY, task="imdb")]))
    assert [group.task for group in found] == ["imdb", "spam"]
    assert all(len(group.finetunes) == 1 for group in found)


def test_attacks_have_names_and_labels():
    assert labels.attack_name("gcg") == "GCG"
    assert labels.attack_name("gcg@0.9") == "GCG at 0.9"
    assert labels.attack_name("mine+momentum+new@0") == "mine (momentum, new) at 0"
    assert labels.base_name("gcg+momentum+probe@0.9") == labels.base_name("gcg@0") == "gcg"
    assert labels.attack_file_name("gcg+bf16@0.5") == "gcg_with_bf16_at_0.5"
