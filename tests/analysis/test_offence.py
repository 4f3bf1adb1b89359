"""Attack against defence, budgets, efficiency and the answers, on runs made up by hand."""

import dataclasses
import math

import pytest

from robustjax.analysis import (
    answers,
    budgets,
    efficiency,
    offence,
    plots,
    scaling_plots,
    tables,
)
from robustjax.analysis.fits import attack_scaling_rows, headline_rows, size_trend_rows
from robustjax.analysis.groups import groups
from robustjax.analysis.load import Study
from robustjax.analysis.stages import AttackRun, Victim, attack_label
from robustjax.evaluation import metrics

SIZES = {"small": 10_000, "medium": 100_000, "large": 1_000_000, "huge": 10_000_000}
PRETRAIN = 1e18


def run(
    curve,
    size="small",
    round_=0,
    seed=0,
    attack="gcg",
    trained_on="gcg",
    cost=None,
    pretrain=PRETRAIN,
    flops=1e9,
    position=1.0,
    n=100,
    mean_cost=None,
):
    cost = float(1e14 * round_ if cost is None else cost)
    last = max(curve)
    return AttackRun(
        source="made up",
        victim=Victim("nano", "spam", SIZES[size], size, seed),
        attack=attack_label(attack, (), position),
        position=position,
        attack_seed=0,
        trained_on=trained_on,
        round=round_,
        defence_flops=cost,
        mean_defence_flops=cost if mean_cost is None else mean_cost,
        pretrain_flops=pretrain,
        metrics={
            "variant": "", "num_examples": 2 * n, "num_attacked": n, "num_correct_before": n,
            "iterations": last, "accuracy_before": 0.9, "accuracy_after": 0.1,
            "asr_first_success_at": {},
        },
        curve=curve,
        headline_iteration=last,
        flops_per_iteration=flops,
        detection={},
    )  # fmt: skip


def group_of(*runs):
    (group,) = groups(Study((), (), tuple(runs), (), {}))
    return group


def logistic(odds, slope=1.0, last=10):
    """Success with base-10 log-odds `odds + slope log10(iteration)`."""
    return {k: 1 / (1 + 10 ** -(odds + slope * math.log10(k))) for k in range(1, last + 1)}


def test_crossings_are_interpolated_from_zero_and_priced_per_offered_example():
    group = group_of(run({1: 0.04, 2: 0.1, 3: 0.4}, round_=1), run({1: 0.0, 2: 0.01}, round_=2))
    rows = {(row["round"], row["target"]): row for row in offence.offence_rows(group)}
    assert rows[1, 0.02]["iterations"] == pytest.approx(0.5)
    assert rows[1, 0.05]["iterations"] == pytest.approx(1 + 0.01 / 0.06)
    assert rows[2, 0.01]["iterations"] == pytest.approx(2)  # reached, not exceeded
    assert math.isnan(rows[2, 0.02]["iterations"])
    assert (rows[2, 0.02]["num_censored"], rows[2, 0.02]["iterations_run"]) == (1, 2)
    assert rows[1, 0.02]["defence"] == pytest.approx(1e14 / PRETRAIN)
    # 1e9 FLOPs an iteration over 200 offered examples.
    assert rows[1, 0.02]["cost_of_iteration"] == pytest.approx(1e9 / 200 / PRETRAIN)
    assert rows[1, 0.02]["x"] == rows[1, 0.02]["y"] == "flops_fraction"


@pytest.mark.parametrize(
    ("facts", "units"),
    [
        ({"pretrain": math.nan}, ("flops", "flops")),
        ({"flops": math.nan}, ("flops_fraction", "iteration")),
    ],
)
def test_units_are_the_best_that_are_known(facts, units):
    group = group_of(*(run({1: 0.05, 2: 0.2}, round_=k, **facts) for k in range(1, 5)))
    for row in offence.offence_rows(group):
        assert (row["x"], row["y"]) == units
    for row in offence.offence_defence_rows(group):
        assert (row["x"], row["y"]) == units


def hardening(slope=0.7, sizes=("small", "medium", "large"), rounds=6, seeds=2, last=400):
    """Runs in which success needs `round ** slope` iterations to come to 10 %."""
    return [
        run(
            {k: min(1.0, 0.1 * k / (20 * number**slope * (1 + 0.1 * seed))) for k in
             range(1, last + 1)},
            size, number, seed,
        )
        for size in sizes
        for number in range(1, rounds + 1)
        for seed in range(seeds)
    ]  # fmt: skip


def test_the_slope_is_that_of_the_needed_iterations():
    rows = offence.offence_defence_rows(group_of(*hardening()))
    for method in (offence.MEDIAN_FIT, offence.SEED_FIT, offence.CENSORED):
        (row,) = [
            r for r in rows
            if (r["method"], r["point"], r["target"]) == (method, "small", 0.1)
        ]  # fmt: skip
        assert row["slope"] == pytest.approx(0.7, abs=1e-3)
        assert row["n_censored"] == 0
        assert (row["training_attack"], row["position"], row["round"] if "round" in row else 0) == (
            "gcg", "suffix", 0,
        )  # fmt: skip


def test_what_is_not_reached_is_dropped_by_the_released_fits_and_censored_by_ours():
    # Budgets of 60 iterations: from round 5 on, 10 % would need 20 * 5 ** 0.7 = 62.
    cut = [r for r in hardening(seeds=3, rounds=9, last=60)]
    rows = [
        row for row in offence.offence_defence_rows(group_of(*cut))
        if (row["point"], row["target"]) == ("small", 0.1)
    ]  # fmt: skip
    by_method = {row["method"]: row for row in rows}
    assert by_method["median_fit"]["n"] + by_method["median_fit"]["n_censored"] == 9
    assert by_method["seed_fit"]["n"] + by_method["seed_fit"]["n_censored"] == 27
    assert by_method["censored"]["n"] == 27
    assert by_method["censored"]["n_censored"] == by_method["seed_fit"]["n_censored"] > 0
    assert by_method["censored"]["slope"] == pytest.approx(0.7, abs=0.05)


def test_the_figure_shows_what_was_measured_after_several_rounds():
    few = [
        dataclasses.replace(one, metrics={**one.metrics, "num_attacked": 30}) for one in hardening()
    ]
    once = [run({1: 0.2, 2: 0.5}, size, 1, attack="random_token") for size in SIZES]
    figure = scaling_plots.offence_against_defence(group_of(*few, *once))
    assert {row["attack"] for row in figure.rows} == {"gcg", "random_token"}
    titles = [panel.title for panel in figure.drawing.panels]
    assert titles == [f"GCG attack to {target},\ntrained on GCG" for target in ("5%", "10%")]
    alone = scaling_plots.offence_against_defence(group_of(*once))
    assert alone.drawing is None and alone.rows


def test_accuracy_over_rounds_is_drawn_as_observed():
    figure = plots.accuracy_against_round(group_of(*hardening(sizes=("small",), rounds=2)))
    (line,) = figure.drawing.panels[0].lines
    assert [point.y for point in line.points] == [row["value"] for row in figure.rows]
    assert [row["smoothed"] for row in figure.rows] != [row["value"] for row in figure.rows]


def test_released_fits_take_the_mean_cost_and_ours_the_victims_own():
    runs = [
        run(
            {1: 0.2 / number**0.5, 2: 0.5},
            round_=number,
            seed=seed,
            cost=1e14 * number ** (1 + seed),
            mean_cost=1e14 * number,
        )
        for number in range(1, 6)
        for seed in range(2)
    ]  # fmt: skip
    rows = [
        row for row in offence.offence_defence_rows(group_of(*runs)) if row["target"] == 0.01
    ]  # fmt: skip
    slopes = {row["method"]: row["slope"] for row in rows}
    assert slopes["median_fit"] == pytest.approx(slopes["seed_fit"]) == pytest.approx(0.5)
    assert slopes["censored"] < 0.45


def test_a_coarse_grid_has_no_fit_of_ours_and_no_verdict():
    coarse = [
        run({12: 0.3, 24: 0.5}, size, number) for size in SIZES for number in range(1, 7)
    ]  # fmt: skip
    group = group_of(*coarse)
    rows = offence.offence_defence_rows(group)
    assert {row["method"] for row in rows} <= {"median_fit", "seed_fit"}
    assert all(row["is_coarse"] for row in rows)
    (finding,) = answers.compute_balance(group)
    assert finding.verdict == answers.WITHHELD


@pytest.mark.parametrize(
    ("slope", "verdict", "words"),
    [(0.6, answers.YES, "advantage offence"), (1.5, answers.NO, "advantage defence")],
)
def test_who_gains_from_compute(slope, verdict, words):
    runs = [
        one
        for index, size in enumerate(SIZES)
        for one in hardening(slope + 0.02 * index, (size,), seeds=1)
    ]
    (finding,) = answers.compute_balance(group_of(*runs))
    assert finding.verdict == verdict
    assert words in finding.sentence


def test_no_verdict_where_the_interval_includes_one_or_too_much_is_censored():
    mixed = [
        one
        for slope, size in zip((0.6, 1.3, 0.8, 1.2), SIZES, strict=True)
        for one in hardening(slope, (size,), seeds=1)
    ]
    (finding,) = answers.compute_balance(group_of(*mixed))
    assert (finding.verdict, "includes 1" in finding.sentence) == (answers.UNCLEAR, True)
    unreached = [
        run({1: 0.0, 2: 0.0} if number > 3 else {1: 0.005 / number, 2: 0.03}, size, number)
        for size in SIZES
        for number in range(1, 9)
    ]
    (finding,) = answers.compute_balance(group_of(*unreached))
    assert (finding.verdict, "too many" in finding.sentence) == (answers.WITHHELD, True)
    few = hardening(rounds=3)
    (finding,) = answers.compute_balance(group_of(*few))
    assert finding.verdict == answers.WITHHELD


def test_the_target_is_not_finer_than_one_example():
    fine = answers.compute_balance(group_of(*hardening()))
    assert "GCG to 1%" in fine[0].subject
    runs = [
        run(one.curve, one.victim.point, one.round, one.victim.seed, n=30) for one in hardening()
    ]
    assert "GCG to 5%" in answers.compute_balance(group_of(*runs))[0].subject


def undefended(odds_by_size, seeds=3):
    return [
        run(logistic(odds + 0.02 * seed), size, seed=seed, trained_on="none", cost=0)
        for size, odds in odds_by_size.items()
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(
    ("odds", "verdict"),
    [
        ((0.5, 0.1, -0.32, -0.7), answers.YES),
        ((-0.7, -0.32, 0.1, 0.5), answers.NO),
        ((0.3, -0.5, 0.4, -0.4), answers.UNCLEAR),
    ],
)
def test_does_size_help(odds, verdict):
    group = group_of(*undefended(dict(zip(SIZES, odds, strict=True))))
    (finding,) = answers.size_alone(group)
    assert finding.verdict == verdict
    assert "leaving out one" in finding.sentence


def test_one_size_does_not_carry_a_trend():
    """Flat but for the last size, which alone makes the line fall."""
    few = dict(zip(("small", "medium"), (0.1, 0.0), strict=True))
    (finding,) = answers.size_alone(group_of(*undefended(few)))
    assert finding.verdict == answers.WITHHELD


def defended(odds_by_size, drop, attack="gcg", position=1.0, seeds=2):
    return [
        run(
            logistic(odds - (drop[size] if isinstance(drop, dict) else drop) * (number > 0)),
            size, number, seed, attack=attack, position=position,
        )
        for size, odds in odds_by_size.items()
        for number in (0, 1, 2)
        for seed in range(seeds)
    ]  # fmt: skip


FALLING = dict(zip(SIZES, (0.5, 0.1, -0.32, -0.7), strict=True))


@pytest.mark.parametrize(
    ("drop", "verdict"), [(1.5, answers.YES), (0.05, answers.NO), (0.4, answers.UNCLEAR)]
)
def test_what_training_buys_against_size(drop, verdict):
    drops = {size: drop + 0.02 * index for index, size in enumerate(SIZES)}
    (finding,) = answers.training_against_size(group_of(*defended(FALLING, drops)))
    assert finding.verdict == verdict
    assert ", for 0.02 to 0.02 % of the pretraining compute" in finding.sentence
    dear = [dataclasses.replace(one, pretrain_flops=1e14) for one in defended(FALLING, drops)]
    (finding,) = answers.training_against_size(group_of(*dear))
    assert ", for 2 to 2 times the pretraining compute" in finding.sentence


def test_transfer_and_whether_it_grows_with_size():
    growing = {size: 0.3 + 0.4 * index for index, size in enumerate(SIZES)}
    runs = defended(FALLING, 1.0) + defended(FALLING, growing, position=0.9)
    (finding,) = answers.transfer(group_of(*runs))
    assert finding.subject == "GCG at 0.9, trained on GCG"
    assert finding.verdict == answers.YES
    assert "more so for larger models" in finding.sentence
    worse = defended(FALLING, {size: -0.5 - 0.01 * len(size) for size in SIZES}, position=0.0)
    (finding,) = answers.transfer(group_of(*defended(FALLING, 1.0), *worse))
    assert finding.verdict == answers.NO


def test_undefended_victims_stand_in_for_round_zero():
    runs = [one for one in defended(FALLING, 1.5) if one.round] + undefended(FALLING)
    (finding,) = answers.training_against_size(group_of(*runs))
    assert finding.verdict == answers.YES


def test_one_word_for_several_findings():
    def findings(*words):
        return [answers.Finding("nano", "spam", "x", word, "") for word in words]

    assert answers.overall(findings("yes", "withheld", "yes")) == "yes"
    assert answers.overall(findings("yes", "no")) == "mixed"
    assert answers.overall(findings("withheld")) == answers.overall([]) == "withheld"


def test_round_zero_of_the_same_experiment_comes_before_the_undefended():
    """Those may have been attacked for fewer iterations."""
    short = [run(logistic(0.5, last=2), trained_on="none", cost=0, seed=seed) for seed in range(3)]
    runs = short + [run(logistic(1.0), round_=number) for number in (0, 1)]
    group = group_of(*runs)
    zero, one = tables.asr_against_round(group)
    assert (zero["round"], zero["num_seeds"], zero["iterations"]) == (0, 1, 10)
    assert one["round"] == 1
    (row,) = tables.headline(group)
    assert (row["iterations_before"], row["iterations_after"], row["seeds_before"]) == (10, 10, 1)
    (row,) = tables.headline(group_of(*short, runs[-1]))
    assert (row["iterations_before"], row["iterations_after"], row["seeds_before"]) == (2, 10, 3)


def test_long_curves_are_thinned_in_figures_but_keep_their_ends():
    group = group_of(run(logistic(-3, last=1280), trained_on="none"))
    rows = tables.asr_against_attack_compute(group, "gcg")
    iterations = [row["iteration"] for row in rows]
    assert len(iterations) == tables.MOST_ITERATIONS
    assert (iterations[0], iterations[-1]) == (1, 1280)


def budget_runs(costs, size="small", seed=0):
    return [
        run(logistic(0), size, number, seed, cost=cost * PRETRAIN) for number, cost in costs.items()
    ]


def test_the_round_of_a_budget():
    """Nearest, the first of equals, at least 1, and never more than the smaller size's."""
    small = budget_runs({0: 0.0, 1: 4e-4, 2: 9e-4, 3: 9e-4})
    assert budgets.budget_rounds(small, 1e-3) == {"small": 2}
    assert budgets.budget_rounds(small, 1e-4) == {"small": 1}
    large = budget_runs({0: 0.0, 1: 1e-4, 2: 2e-4, 3: 9e-4}, "large")
    assert budgets.budget_rounds(small + large, 1e-3) == {"small": 2, "large": 2}
    unknown = [run(logistic(0), round_=1, pretrain=math.nan)]
    assert budgets.budget_rounds(unknown, 1e-3) == {}


def test_a_size_without_the_round_of_a_budget_is_named():
    runs = budget_runs({1: 4e-4, 2: 1e-3}) + budget_runs({1: 4e-4, 3: 1.1e-3}, "large")
    group = group_of(*runs)
    chosen = budgets.rounds_by_rule(group, "gcg", "gcg")
    assert list(chosen) == ["0.001", "last"]  # no round had cost anything like the others
    assert list(chosen["0.001"]) == ["small"]
    assert list(chosen["last"]) == ["small", "large"]
    (line,) = [line for line in budgets.gaps(group) if "at 0.001 of" in line]
    assert "1.0M (round 2)" in line


def test_rounds_until_an_attack_is_rare():
    odds = {1: 0.5, 2: -0.2, 3: 0.3, 4: -2.0}  # it comes back in round 3
    runs = [run(logistic(value, 0), round_=number) for number, value in odds.items()]
    rows = {row["target"]: row for row in efficiency.efficiency_rows(group_of(*runs))}
    assert [rows[target]["round"] for target in (0.5, 0.25, 0.1, 0.05)] == [2, 4, 4, 4]
    assert rows[0.25]["defence_flops"] == 4e14
    assert rows[0.25]["defence_fraction_of_pretraining"] == 4e14 / PRETRAIN
    barely = efficiency.efficiency_rows(group_of(run({1: 0.0495}, round_=1)))
    assert math.isnan(barely[-1]["round"])  # smoothed it is 0.054
    never = efficiency.efficiency_rows(group_of(run(logistic(0), round_=1)))
    assert math.isnan(never[-1]["round"])


def test_attack_scaling_finds_the_slope_and_its_unit():
    curves = logistic(-1.0, 2.0)
    counted = {k: round(10_000 * rate) / 10_000 for k, rate in curves.items()}
    for facts, unit, name in (
        ({}, 1e9 / PRETRAIN, "flops_fraction"),
        ({"pretrain": math.nan}, 1e9, "flops"),
        ({"flops": math.nan}, 1.0, "iteration"),
    ):
        runs = [run(counted, trained_on="none", n=10_000, **facts)]
        rows = {row["method"]: row for row in attack_scaling_rows(group_of(*runs))}
        assert {row["x"] for row in rows.values()} == {name}
        for row in rows.values():
            assert row["slope"] == pytest.approx(2.0, abs=2e-3)
            at_one = row["intercept"] + row["slope"] * math.log10(unit)
            assert at_one == pytest.approx(-1.0, abs=5e-3)
        assert rows["binomial"]["ci_low"] is None  # one seed


def test_rates_of_zero_and_one_are_dropped_and_counted_by_the_released_method_alone():
    curve = {1: 0.0, 2: 0.0, 3: 0.1, 4: 0.5, 5: 1.0}
    runs = [run(curve, trained_on="none")]
    rows = {row["method"]: row for row in attack_scaling_rows(group_of(*runs))}
    assert (rows["raw_finite"]["n"], rows["raw_finite"]["n_dropped"]) == (2, 3)
    assert (rows["laplace"]["n"], rows["laplace"]["n_dropped"]) == (5, 0)
    assert (rows["binomial"]["n"], rows["binomial"]["n_dropped"]) == (5, 0)


def test_trend_of_slopes_names_the_size_it_hangs_on():
    slopes = dict(zip(SIZES, (2.0, 1.7, 1.4, 0.2), strict=True))
    runs = [
        run(logistic(-1, slope), size, trained_on="none", n=1000) for size, slope in slopes.items()
    ]
    (row,) = [r for r in size_trend_rows(group_of(*runs)) if r["method"] == "laplace"]
    assert row["most_influential"] == "huge"
    assert row["loso_low"] < row["slope"] < row["loso_high"] < 0
    assert (row["round"], row["training_attack"], row["n"]) == ("undefended", None, 4)


def test_headlines_are_smoothed_medians_over_seeds():
    runs = [run({1: 0.1, 2: rate}, seed=seed, trained_on="none") for seed, rate in
            enumerate((0.0, 0.5, 0.2))]  # fmt: skip
    (row,) = headline_rows(group_of(*runs))
    assert (row["iteration"], row["median"]) == (2, metrics.smoothed(0.2, 200))
    assert (row["min"], row["max"]) == (metrics.smoothed(0.0, 200), metrics.smoothed(0.5, 200))
