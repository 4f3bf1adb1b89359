"""Every analysis against values computed independently from published result files.

`published_extract.json` holds some of the published numbers and golden values. Where a folder with
all files and `golden.json.gz` lies at `ROBUSTJAX_PUBLISHED_RESULTS`, by default beside the project,
those are used instead.
"""

import csv
import gzip
import json
import math
import os
from pathlib import Path

import pytest

from robustjax.analysis import canvas
from robustjax.analysis.groups import groups
from robustjax.analysis.published import load_published
from robustjax.analysis.report import write_published_report
from robustjax.evaluation import metrics
from robustjax.evaluation.pretraining import PRETRAIN_FLOPS, pretrain_flops

ROOT = Path(__file__).parents[2]
EVERYTHING = Path(
    os.environ.get("ROBUSTJAX_PUBLISHED_RESULTS", ROOT / "../shared/data/published_results")
)
FAMILIES = {"pythia": "pythia", "qwen": "qwen2.5"}
ATTACKS = {"gcg": "gcg", "rt": "random_token", "beast": "beast"}
METHODS = {"raw_finite": "raw_finite", "laplace": "laplace1_all"}
TOLERANCE = {"rel": 1e-6, "abs": 1e-12}


def write_extract(extract, folder):
    """CSV files of the published form from an extract."""
    folder.mkdir()
    for name, runs in extract["evaluations"].items():
        separator = "/" if name.startswith("strongreject") else "_"
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            prefix = f"adversarial_eval{separator}"
            writer.writerow(
                ["asr", "iteration", "model_size", "num_params", "seed_idx", "adv_training_round",
                 "flops_per_iteration", f"{prefix}n_correct_pre_attack",
                 f"{prefix}n_incorrect_post_attack", "dataset_n_val", "model_name_or_path"]
            )  # fmt: skip
            for run in runs:
                places = run["iterations"]
                places = range(places) if isinstance(places, int) else places
                for iteration, broken in zip(places, run["broken"], strict=True):
                    writer.writerow(
                        [broken / run["correct"], iteration, run["num_params"], run["num_params"],
                         run["seed"], run["round"], run["flops_per_iteration"], run["correct"],
                         run["post"], run["offered"], run["model"]]
                    )  # fmt: skip
    for name, rows in extract["trainings"].items():
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["num_params", "seed_idx", "adv_training_round", "train_total_flops", "run_id",
                 "model_key"]
            )  # fmt: skip
            writer.writerows(rows)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with published files, and the golden values."""
    if (EVERYTHING / "golden.json.gz").exists():
        with gzip.open(EVERYTHING / "golden.json.gz", "rt") as file:
            return EVERYTHING, json.load(file)
    extract = json.loads(Path(__file__).with_name("published_extract.json").read_text())
    folder = tmp_path_factory.mktemp("published") / "files"
    write_extract(extract, folder)
    return folder, extract["golden"]


@pytest.fixture(scope="module")
def golden(source):
    return source[1]


@pytest.fixture(scope="module")
def report(source, tmp_path_factory):
    """Folder of the report, with the pretraining figures as released."""
    with pytest.MonkeyPatch.context() as patch:
        for name, result in (("draw", None), ("png", b"png"), ("svg", b"svg")):
            patch.setattr(canvas, name, lambda *_, result=result: result)
        out = tmp_path_factory.mktemp("report")
        page, _ = write_published_report(source[0], out, pretraining="released")
    return page.parent


@pytest.fixture(scope="module")
def lines(report):
    return json.loads((report / "fits.json").read_text())


@pytest.fixture(scope="module")
def found(source):
    """Groups by family and task, with the pretraining figures as released."""
    study = load_published(source[0], "released")
    return {(group.model_family, group.task): group for group in groups(study)}


def table(report, stem):
    with open(report / f"{stem}.csv", newline="") as file:
        return list(csv.DictReader(file))


def pick(rows, **columns):
    return [row for row in rows if all(row[name] == value for name, value in columns.items())]


def size_of(point):
    """`pythia-14m` as the golden values call it: 14m, but 0.5B of Qwen2.5."""
    family, _, size = point.partition("-")
    return size.upper() if family == "qwen2.5" else size


def agrees(row, wanted, columns=("slope", "intercept", "r2")):
    assert row["n"] == wanted["n"]
    for column in columns:
        assert row[column] == pytest.approx(wanted[column], **TOLERANCE), (row, wanted)


def of_suffix_or_prefix(report, stem, name):
    """Rows about GCG against victims trained on it, at the position of an experiment."""
    family, task, position = experiment(name)
    attack = "gcg@0" if position == "prefix" else "gcg"
    return pick(
        table(report, stem), model_family=family, task=task, attack=attack, trained_on="gcg"
    )


def undefended(wanted):
    return {
        "family": FAMILIES[wanted["family"]],
        "task": wanted["dataset"],
        "attack": ATTACKS[wanted["attack"]],
        "training_attack": None,
        "position": "suffix",
    }


def experiment(name):
    family, kind, task = name.split("/")
    position = "prefix" if kind.endswith("prefix") else "suffix"
    return FAMILIES[family], task, position


def test_a_success_against_size(golden, lines):
    for wanted in golden["finetuned"].values():
        who = {k: v for k, v in undefended(wanted).items() if k != "training_attack"}
        rows = pick(lines["headline"], **who)
        assert {size_of(row["point"]) for row in rows} == set(wanted["asr"])
        for row in rows:
            assert row["iteration"] == wanted["headline_iteration"]
            rates = wanted["asr"][size_of(row["point"])][str(row["iteration"])]["smoothed"]
            for column in ("median", "min", "max"):
                assert row[column] == pytest.approx(rates[column], **TOLERANCE)


def test_b_compute_of_the_first_iteration(golden, lines, report):
    checked = 0
    for wanted in golden["finetuned"].values():
        stem = f"asr_vs_attack_compute_{ATTACKS[wanted['attack']]}"
        rows = pick(
            table(report, stem),
            model_family=FAMILIES[wanted["family"]],
            task=wanted["dataset"],
            trained_on="none",
            iteration="1",
        ) if (report / f"{stem}.csv").exists() else []  # fmt: skip
        for row in rows:
            fit = wanted["fit"][size_of(row["point"])]
            if fit["x"] == "log10_flops_frac" and row["attack_fraction_of_pretraining"]:
                fraction = float(row["attack_fraction_of_pretraining"])
                assert fraction == pytest.approx(fit["flops_frac_at_iter1"], rel=1e-9)
                checked += 1
    assert checked >= 15


def test_c_slopes_of_attack_scaling(golden, lines):
    for wanted in golden["finetuned"].values():
        for method, name in METHODS.items():
            rows = pick(lines["attack_scaling"], **undefended(wanted), method=method)
            assert {size_of(row["point"]) for row in rows} == set(wanted["fit"])
            for row in rows:
                fit = wanted["fit"][size_of(row["point"])]
                agrees(row, fit[name])
                if method == "raw_finite":
                    assert row["n_dropped"] == fit["n_dropped_0_or_1"]


def test_c_corrected_pretraining_moves_intercepts_only(golden, source, lines):
    corrected = groups(load_published(source[0]))
    from robustjax.analysis.fits import attack_scaling_rows

    rows = [row for group in corrected for row in attack_scaling_rows(group)]
    checked = 0
    for wanted in golden["finetuned"].values():
        if "fit_fixed_pretrain" in wanted:
            for row in pick(rows, **undefended(wanted), method="raw_finite"):
                agrees(row, wanted["fit_fixed_pretrain"][size_of(row["point"])]["raw_finite"])
                checked += 1
    assert checked >= 5


def test_d_slope_against_size(golden, lines):
    for wanted in golden["finetuned"].values():
        for method, name in METHODS.items():
            (row,) = pick(lines["size_trend"], **undefended(wanted), method=method)
            agrees(row, wanted["slope_vs_log10_params"][name])
            assert row["loso_low"] <= row["slope"] <= row["loso_high"]


def test_e_f_success_over_rounds(golden, report):
    for name, wanted in golden["adversarial"].items():
        mine = of_suffix_or_prefix(report, "asr_vs_round", name)
        for size, values in wanted["sizes"].items():
            for values_of_round in values["rounds"]:
                (row,) = [
                    row
                    for row in mine
                    if size_of(row["point"]) == size
                    and int(row["round"]) == values_of_round["round"]
                ]
                last = values_of_round["asr@128"]
                assert int(row["num_seeds"]) == last["n"]
                assert float(row["value"]) == pytest.approx(last["median"], **TOLERANCE)
                smooth = pytest.approx(last["median_smoothed"], **TOLERANCE)
                assert float(row["smoothed"]) == smooth
                fraction = float(row["defence_fraction_of_pretraining"])
                assert fraction == pytest.approx(values_of_round["defence_frac"], rel=1e-9)
                if last["n"] > 1:
                    assert float(row["low"]) == pytest.approx(last["min"], **TOLERANCE)
                    assert float(row["high"]) == pytest.approx(last["max"], **TOLERANCE)


def test_g_attack_scaling_at_budgets(golden, lines, found):
    from robustjax.analysis.budgets import budget_rounds

    for name, wanted in golden["adversarial"].items():
        family, task, position = experiment(name)
        attack = "gcg@0" if position == "prefix" else "gcg"
        for budget, of_size in wanted["attack_fit_by_round"].items():
            if float(budget) > 0:  # -1 is the last round
                rounds = budget_rounds(found[family, task].runs(attack, "gcg"), float(budget))
                mine = {size_of(point): number for point, number in rounds.items()}
                assert {size: mine[size] for size in of_size} == {
                    size: fit["round"] for size, fit in of_size.items()
                }
            for size, fit in of_size.items():
                for method, golden_method in METHODS.items():
                    (row,) = [
                        row
                        for row in pick(
                            lines["attack_scaling"], family=family, task=task, attack="gcg",
                            training_attack="gcg", position=position, round=fit["round"],
                            method=method,
                        )
                        if size_of(row["point"]) == size
                    ]  # fmt: skip
                    is_borrowed = row["x"] == "iteration"
                    columns = ("slope", "r2") if is_borrowed else ("slope", "intercept", "r2")
                    agrees(row, fit[golden_method], columns)


@pytest.mark.parametrize("method", ["median_fit", "seed_fit"])
def test_h_offence_against_defence(golden, lines, method):
    for name, wanted in golden["adversarial"].items():
        family, task, position = experiment(name)
        for target, values in wanted["offence_defence"].items():
            rows = pick(
                lines["offence_defence"], family=family, task=task, attack="gcg",
                training_attack="gcg", position=position, method=method,
            )  # fmt: skip
            rows = [row for row in rows if round(100 * row["target"]) == int(target[:-3])]
            fits = {size_of(row["point"]): row for row in rows}
            for size, golden_fits in values["per_size"].items():
                fit = golden_fits and golden_fits[method]
                if not fit or fit["slope"] is None:
                    assert size not in fits
                    continue
                is_borrowed = fits[size]["y"] == "iteration"
                columns = ("slope", "r2") if is_borrowed else ("slope", "intercept", "r2")
                agrees(fits[size], fit, columns)
                if method == "median_fit":
                    assert fits[size]["n_censored"] == golden_fits["censored_rounds"]


def test_h_first_crossings(golden, report):
    for name, wanted in golden["adversarial"].items():
        mine = of_suffix_or_prefix(report, "offence_vs_defence", name)
        for size, values in wanted["sizes"].items():
            for of_round in values["rounds"]:
                if of_round["round"] == 0:
                    continue
                for percent in (1, 2, 5, 10):
                    crossing = of_round[f"iter_for_{percent}pct"]
                    (row,) = [
                        row
                        for row in pick(mine, round=str(of_round["round"]))
                        if size_of(row["point"]) == size
                        and round(100 * float(row["target"])) == percent
                    ]
                    reached = int(row["num_seeds"]) - int(row["num_censored"])
                    assert reached == crossing["n_reached"]
                    if reached:
                        median = pytest.approx(crossing["median"], **TOLERANCE)
                        assert float(row["iterations"]) == median


def test_i_strongreject(golden, report):
    rows = pick(table(report, "asr_vs_size"), task="strongreject")
    assert {size_of(row["point"]) for row in rows} == set(golden["strongreject"])
    for row in rows:
        wanted = golden["strongreject"][size_of(row["point"])]
        assert float(row["value"]) == pytest.approx(wanted["asr"], **TOLERANCE)
        assert int(row["trials"]) == wanted["n"]
        bounds = (float(row["low"]), float(row["high"]))
        assert bounds == pytest.approx(wanted["wilson95"], **TOLERANCE)
        assert float(row["smoothed"]) == pytest.approx(wanted["asr_smoothed"], **TOLERANCE)


def test_rounds_until_an_attack_is_rare(golden, report):
    rows = table(report, "efficiency")
    for name, of_target in golden["efficiency"].items():
        family, task, _ = experiment(name)
        for target, of_size in of_target.items():
            mine = pick(rows, model_family=family, task=task, attack="gcg", target=target)
            for size, wanted in of_size.items():
                (row,) = [row for row in mine if size_of(row["point"]) == size]
                if wanted is None:
                    assert row["round"] == ""
                else:
                    assert int(row["round"]) == wanted["round"]
                    share = float(row["defence_fraction_of_pretraining"])
                    assert share == pytest.approx(wanted["defence_frac"], rel=1e-9)


def test_iterations_for_success_and_accuracy(golden, found):
    for wanted in golden["finetuned"].values():
        group = found[FAMILIES[wanted["family"]], wanted["dataset"]]
        for point in group.sizes:
            runs = [
                run
                for run in group.runs(ATTACKS[wanted["attack"]], "none")
                if run.victim.point == point
            ]
            deciles = wanted["iterations_for_success_decile"][size_of(point)]
            for run in runs:
                curve = [0.0, *(run.curve[k] for k in sorted(run.curve))]
                mine = metrics.iterations_for_success(curve)
                assert mine == [deciles[str(d)][run.victim.seed] for d in range(11)]
            accuracies = sorted(run.metrics["accuracy_before"] for run in runs)
            wanted_accuracy = wanted["pre_attack_accuracy"].get(size_of(point))
            if wanted_accuracy and not math.isnan(runs[0].flops_per_iteration):
                assert accuracies[0] == pytest.approx(wanted_accuracy["min"])
                assert accuracies[-1] == pytest.approx(wanted_accuracy["max"])


def test_pretraining_compute(golden):
    for size, wanted in golden["pretrain_flops"].items():
        family = "qwen2.5" if size.endswith("B") else "pythia"
        point = f"{family}-{size.lower()}"
        assert PRETRAIN_FLOPS[point] == pytest.approx(wanted["fixed"], rel=1e-12)
        assert pretrain_flops(point, "released") == pytest.approx(wanted["upstream"], rel=1e-12)
