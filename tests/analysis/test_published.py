"""Published result files: what their names say, what is left out, what is refused and how."""

import csv
import gzip
import math

import pytest

from robustjax.analysis.groups import groups
from robustjax.analysis.published import load_published
from robustjax.analysis.published_names import parse_name
from robustjax.cli import main
from robustjax.errors import UserError
from robustjax.evaluation.pretraining import PRETRAIN_FLOPS, pretrain_flops

PARAMS = {"14m": 7_629_056, "70m": 44_672_000, "410m": 353_824_768, "2.8b": 2_646_435_840,
          "12b": 11_586_560_000}  # fmt: skip
HARDENED = "advtrained_pythia_spam_gcg_vs_gcg"
TRAINING = "training_pythia_spam_gcg"


def evaluation_row(asr=0.5, iteration=1, **other):
    return {
        "asr": asr,
        "iteration": iteration,
        "num_params": PARAMS["14m"],
        "model_size": PARAMS["14m"],
        "seed_idx": 0,
        "adv_training_round": 0,
        "flops_per_iteration": 1e12,
        "dataset_n_val": 200,
        "adversarial_eval_n_correct_pre_attack": 180,
        "model_name_or_path": "Org/robust_llm_clf_x",
    } | other


def training_row(round_=1, total=1e15, **other):
    return {
        "train_total_flops": total,
        "adv_training_round": round_,
        "num_params": PARAMS["14m"],
        "seed_idx": 0,
        "run_id": "r0",
        "model_key": "clf_x",
    } | other


@pytest.fixture
def published(tmp_path):
    """Writes files of rows, or of text, into a folder."""

    def write(**files):
        folder = tmp_path / "published"
        folder.mkdir(exist_ok=True)
        for name, rows in files.items():
            with open(folder / f"{name}.csv", "w", newline="") as file:
                if isinstance(rows, str):
                    file.write(rows)
                    continue
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        return folder

    return write


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("finetuned_pythia_pm_rt", ("finetuned", "password_match", "none", "random_token", 1.0)),
        ("finetuned_qwen2p5_wl_beast", ("finetuned", "word_length", "none", "beast", 1.0)),
        (
            "advtrained_pythia_imdb_randomtoken_vs_gcg_infix90_to_160m_asr_only",
            ("advtrained", "imdb", "random_token", "gcg", 0.9),
        ),
        (
            "advtrained_pythia_imdb_gcg_no_ramp_vs_gcg_prefix_410m_up",
            ("advtrained", "imdb", "gcg+no_ramp", "gcg", 0.0),
        ),
        ("training_pythia_helpful_gcg_410m_up", ("training", "helpful", "gcg", "", 1.0)),
        ("strongreject_qwen2p5_gcg", ("strongreject", "strongreject", "none", "gcg", 1.0)),
    ],
)
def test_what_a_name_says(tmp_path, name, said):
    found = parse_name(tmp_path / f"{name}.csv.gz")
    assert (found.role, found.task, found.trained_on, found.attack, found.position) == said
    assert found.asr_only == name.endswith("_asr_only")
    assert found.part == next((p for p in ("410m_up", "to_160m") if p in name), "")


@pytest.mark.parametrize(
    "name",
    ["results", "finetuned_llama_imdb_gcg", "finetuned_pythia_imdb_gcg_middle", "training_pythia",
     "advtrained_pythia_imdb_gcg", "finetuned_pythia_imdb_gcg_asr_only_prefix"],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_grammar(published, name):
    folder = published(**{name: [evaluation_row()]})
    with pytest.raises(UserError, match=f"{name}.csv: .*expected finetuned_FAMILY.*rename"):
        load_published(folder)


def test_only_csv_files_are_looked_at(published):
    folder = published(finetuned_pythia_imdb_gcg=[evaluation_row()])
    (folder / "golden.json.gz").write_bytes(b"")
    (folder / "README.md").write_text("")
    (folder / "more").mkdir()
    assert len(load_published(folder).attacks) == 1
    with pytest.raises(UserError, match="holds no file that ends in .csv"):
        load_published(folder / "more")
    with pytest.raises(UserError, match="not a folder"):
        load_published(folder / "README.md")


def test_a_run_is_what_the_file_says(published):
    rows = [evaluation_row(k / 180, k) for k in range(12)]
    rows[3]["adversarial_eval_n_correct_pre_attack"] = 180.0  # written as a float somewhere
    (run,) = load_published(published(finetuned_pythia_imdb_gcg=rows)).attacks
    assert (run.victim.point, run.victim.model_family, run.victim.task) == (
        "pythia-14m", "pythia", "imdb",
    )  # fmt: skip
    assert run.curve == {k: k / 180 for k in range(1, 12)}  # not iteration 0
    assert (run.num_examples, run.num_attacked, run.headline_iteration) == (200, 180, 10)
    assert (run.flops_per_iteration, run.flops_per_example) == (1e12, 1e12 / 180)
    assert run.metrics["num_broken"] == 10
    assert run.metrics["accuracy_before"] == 0.9
    assert run.trained_on == "none"
    assert run.defence_flops == run.mean_defence_flops == 0


@pytest.mark.parametrize(
    ("task", "attack", "last", "headline"),
    [("wl", "gcg", 10, 2), ("spam", "beast", 25, 10), ("imdb", "gcg", 6, 6)],
)
def test_the_headline_iteration(published, task, attack, last, headline):
    rows = [evaluation_row(0.5, k) for k in range(last + 1)]
    (run,) = load_published(published(**{f"finetuned_pythia_{task}_{attack}": rows})).attacks
    assert run.headline_iteration == headline


def test_rank_says_nothing_about_size(published):
    """A file that lacks the small sizes gives the others their own pretraining compute."""
    rows = [
        evaluation_row(num_params=PARAMS[size], model_size=PARAMS[size], model_idx=rank)
        for rank, size in enumerate(("410m", "2.8b"))
    ]
    runs = load_published(published(finetuned_pythia_imdb_gcg=rows)).attacks
    assert [run.pretrain_flops for run in runs] == [
        PRETRAIN_FLOPS["pythia-410m"], PRETRAIN_FLOPS["pythia-2.8b"],
    ]  # fmt: skip


def test_an_unknown_size_has_no_pretraining_figure(published):
    rows = [evaluation_row(num_params=12345, model_size=12345)]
    study = load_published(published(finetuned_pythia_imdb_gcg=rows))
    assert study.attacks[0].victim.point == "pythia-12345"
    assert math.isnan(study.attacks[0].pretrain_flops)
    assert "pretraining compute of pythia-12345 is not known" in study.notes


@pytest.mark.parametrize("pretraining", ["corrected", "released"])
def test_qwen_sizes_are_exchanged_as_released_only_on_request(published, pretraining):
    rows = [evaluation_row(num_params=3_085_942_784, model_size=3_085_942_784)]
    folder = published(finetuned_qwen2p5_spam_gcg=rows)
    (run,) = load_published(folder, pretraining).attacks
    assert run.pretrain_flops == float(pretrain_flops("qwen2.5-3b", pretraining))
    own = float(PRETRAIN_FLOPS["qwen2.5-3b"])
    assert (run.pretrain_flops == own) == (pretraining == "corrected")


@pytest.mark.parametrize(
    ("name", "factor"),
    [("finetuned_pythia_spam_gcg", 1.78), ("finetuned_pythia_wl_gcg", 1.0),
     ("finetuned_pythia_spam_rt", 1.0)],
)  # fmt: skip
def test_uncounted_flops_of_the_largest_are_put_right(published, name, factor):
    row = evaluation_row(num_params=PARAMS["12b"], model_size=PARAMS["12b"])
    (run,) = load_published(published(**{name: [row]})).attacks
    assert run.flops_per_iteration == factor * 1e12


def test_files_of_success_rates_alone(published):
    columns = ("asr", "iteration", "model_size", "seed_idx", "adv_training_round")
    rows = [
        {"Unnamed: 0": k, **{c: evaluation_row(k / 177, k)[c] for c in columns}} for k in range(12)
    ]
    study = load_published(published(finetuned_pythia_imdb_gcg_asr_only=rows))
    (run,) = study.attacks
    assert (run.num_attacked, run.num_examples) == (177, 200)
    assert math.isnan(run.flops_per_iteration)
    assert any("counted in iterations" in note for note in study.notes)


def test_attacked_examples_are_the_most_that_fit(published):
    columns = ("asr", "iteration", "model_size", "seed_idx", "adv_training_round")
    rows = [{c: evaluation_row(k / 60, k)[c] for c in columns} for k in range(3)]
    (run,) = load_published(published(finetuned_pythia_imdb_gcg_asr_only=rows)).attacks
    assert run.num_attacked == 180  # the largest multiple of 60 up to 200


def test_rates_that_are_shares_of_no_number_are_refused(published):
    columns = ("asr", "iteration", "model_size", "seed_idx", "adv_training_round")
    rows = [{c: evaluation_row(0.123456 * k, k)[c] for c in columns} for k in range(3)]
    folder = published(finetuned_pythia_imdb_gcg_asr_only=rows)
    with pytest.raises(UserError, match="line 2: the rates .* shares of no number .* up to 200"):
        load_published(folder)


@pytest.mark.parametrize("iterations", [(12, 24), (0, 12, 24)])
def test_a_grid_that_begins_late_is_said_to(published, iterations):
    rows = [
        evaluation_row(k / 100, k, adv_training_round=number, dataset_n_val=500)
        for number in (1, 2)
        for k in iterations
    ]
    trainings = [training_row(k, k * 1e15) for k in range(3)]
    study = load_published(published(**{HARDENED: rows, TRAINING: trainings}))
    assert any("measured from iteration 12 on" in note for note in study.notes)


def test_slashes_and_duplicates_and_missing_seeds(published):
    rows = [evaluation_row(0.5, 1), evaluation_row(0.5, 1), evaluation_row(0.6, 2, seed_idx="")]
    text = ",".join(rows[0]).replace("adversarial_eval_", "adversarial_eval/")
    text += "".join("\n" + ",".join(map(str, row.values())) for row in rows)
    study = load_published(published(finetuned_pythia_imdb_gcg=text))
    assert study.attacks[0].curve == {1: 0.5}
    assert study.attacks[0].num_attacked == 180
    assert set(study.notes) == {
        "finetuned_pythia_imdb_gcg.csv: 1 rows repeat another row in every column; left out",
        "finetuned_pythia_imdb_gcg.csv: 1 rows have no seed; left out",
    }


def test_an_iteration_told_twice_counts_once(published):
    rows = [evaluation_row(0.5, 1), evaluation_row(0.7, 1)]
    study = load_published(published(finetuned_pythia_imdb_gcg=rows))
    assert study.attacks[0].curve == {1: 0.7}
    (note,) = study.notes
    assert note.endswith(": 1 rows repeat an iteration; the last of each is used")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asr": 1.2}, r"line 2: asr is '1.2', not a number in 0..1"),
        ({"asr": "high"}, r"line 2: asr is 'high', not a number in 0..1"),
        ({"asr": ""}, r"line 2: asr is '', not a number"),
        ({"iteration": -1}, r"line 2: iteration is '-1', not a number of at least 0"),
        ({"iteration": 1.5}, r"line 2: iteration is '1.5', not an integer"),
        ({"adv_training_round": "x"}, r"line 2: adv_training_round is 'x'"),
        ({"flops_per_iteration": -3}, r"line 2: flops_per_iteration is '-3'"),
        ({"flops_per_iteration": "inf"}, r"line 2: flops_per_iteration is 'inf'"),
        (
            {"adversarial_eval_n_correct_pre_attack": 201},
            r"line 2: adversarial_eval_n_correct_pre_attack is 201, more than dataset_n_val, 200",
        ),
    ],
)
def test_values_outside_their_range(published, change, message):
    folder = published(finetuned_pythia_imdb_gcg=[evaluation_row(**change)])
    with pytest.raises(UserError, match=f"finetuned_pythia_imdb_gcg.csv, {message}"):
        load_published(folder)


def test_damaged_files(published):
    row = evaluation_row()
    for column in ("asr", "iteration", "seed_idx", "adv_training_round"):
        folder = published(
            finetuned_pythia_imdb_gcg=[{k: v for k, v in row.items() if k != column}]
        )
        with pytest.raises(UserError, match=f"imdb_gcg.csv: column {column} is missing"):
            load_published(folder)
    lacking = {k: v for k, v in row.items() if k not in ("num_params", "model_size")}
    with pytest.raises(UserError, match="column num_params is missing"):
        load_published(published(finetuned_pythia_imdb_gcg=[lacking]))
    with pytest.raises(UserError, match="has no row"):
        load_published(published(finetuned_pythia_imdb_gcg="asr,iteration\n"))
    short = "asr,iteration,seed_idx,adv_training_round,num_params\n0.5,1\n"
    with pytest.raises(UserError, match="line 2: 2 cells, the header 5"):
        load_published(published(finetuned_pythia_imdb_gcg=short))
    folder = published(finetuned_pythia_imdb_gcg=[row])
    (folder / "finetuned_pythia_imdb_gcg.csv").unlink()
    (folder / "finetuned_pythia_imdb_gcg.csv.gz").write_bytes(gzip.compress(b"asr")[:-4])
    with pytest.raises(UserError, match="csv.gz: cannot be read"):
        load_published(folder)


def hardened_rows(rounds=(1, 2, 3), **other):
    return [
        evaluation_row(0.1 * k, k, adv_training_round=number, dataset_n_val=500, **other)
        for number in rounds
        for k in range(4)
    ]


def test_defence_compute_is_joined_by_model_seed_and_round(published):
    """The released mean is over all rows of a size and round, the victim's own over its own."""
    trainings = [
        *(training_row(k, k * 1e15) for k in range(5)),
        *(training_row(k, k * 3e15, model_key="clf_other", run_id="r1") for k in range(5)),
    ]
    study = load_published(published(**{HARDENED: hardened_rows(), TRAINING: trainings}))
    runs = [run for run in study.attacks if run.trained_on == "gcg"]
    assert [run.defence_flops for run in runs] == [1e15, 2e15, 3e15]
    assert [run.mean_defence_flops for run in runs] == [2e15, 4e15, 6e15]


def test_a_victim_without_a_training_row_is_refused(published):
    trainings = [training_row(k, k * 1e15) for k in range(3)]
    folder = published(**{HARDENED: hardened_rows(), TRAINING: trainings})
    with pytest.raises(UserError, match="line 10: no training row of clf_x, seed 0, round 3"):
        load_published(folder)


def test_another_victims_training_row_does_not_stand_in(published):
    trainings = [training_row(k, k * 1e15) for k in range(3)]
    trainings += [training_row(3, 3e15, model_key="clf_other")]
    folder = published(**{HARDENED: hardened_rows(), TRAINING: trainings})
    with pytest.raises(UserError, match="no training row of clf_x, seed 0, round 3"):
        load_published(folder)


def test_without_a_training_file_the_cost_is_unknown(published):
    study = load_published(published(**{HARDENED: hardened_rows()}))
    assert all(math.isnan(run.defence_flops) for run in study.attacks)
    assert f"{HARDENED}.csv: no training file beside it, defence compute unknown" in study.notes


def test_a_counter_that_falls_is_not_believed(published):
    totals = {0: 0.0, 1: 1e15, 2: 0.4e15, 3: 2e15}
    trainings = [training_row(k, total) for k, total in totals.items()]
    study = load_published(published(**{HARDENED: hardened_rows(), TRAINING: trainings}))
    own = [run.defence_flops for run in study.attacks]
    assert own[0] == 1e15 and math.isnan(own[1]) and own[2] == 2e15
    assert [run.mean_defence_flops for run in study.attacks] == [1e15, 0.4e15, 2e15]
    assert any("lower than a round before" in note and "round 2" in note for note in study.notes)


def test_parts_of_an_experiment_are_one(published):
    """Rates alone of the small sizes beside whole rows of the large, each with its trainings."""
    columns = ("asr", "iteration", "model_size", "seed_idx", "adv_training_round")
    small = [{c: row[c] for c in columns} for row in hardened_rows()]
    size = {"num_params": PARAMS["410m"], "model_size": PARAMS["410m"]}
    large = hardened_rows(**size, model_name_or_path="Org/robust_llm_clf_large")
    files = {
        f"{HARDENED}_to_160m_asr_only": small,
        f"{HARDENED}_410m_up": large,
        f"{TRAINING}_to_160m": [training_row(k, k * 1e15) for k in range(4)],
        f"{TRAINING}_410m_up": [
            *(training_row(k, k * 5e15, run_id="r5", model_key="clf_y") for k in range(4)),
            *(
                training_row(k, k * 9e15, num_params=PARAMS["410m"], model_key="clf_large")
                for k in range(4)
            ),
        ],
    }
    (group,) = groups(load_published(published(**files)))
    assert list(group.sizes) == ["pythia-14m", "pythia-410m"]
    first = [run for run in group.attacks if run.round == 1]
    # The small part joins its own trainings; the mean, as released, mixes both files.
    assert [run.defence_flops for run in first] == [1e15, 9e15]
    assert [run.mean_defence_flops for run in first] == [3e15, 9e15]


def test_the_same_victim_in_two_files_is_refused(published):
    folder = published(
        finetuned_pythia_imdb_gcg=[evaluation_row()],
        finetuned_pythia_imdb_gcg_to_160m=[evaluation_row()],
    )
    with pytest.raises(UserError, match="pythia-14m, seed 0, round 0.*leave one out"):
        load_published(folder)


def test_positions_are_other_attacks(published):
    rows = hardened_rows()
    trainings = [training_row(k, k * 1e15) for k in range(4)]
    folder = published(
        **{HARDENED: rows, f"{HARDENED}_prefix": rows, f"{HARDENED}_infix90": rows},
        **{TRAINING: trainings},
    )
    (group,) = groups(load_published(folder))
    assert group.attack_names == ["gcg", "gcg@0.9", "gcg@0"]


def test_the_command(published, tmp_path, capsys, monkeypatch):
    from robustjax.analysis import canvas

    monkeypatch.setattr(canvas, "draw", lambda *_: None)
    monkeypatch.setattr(canvas, "png", lambda _: b"png")
    monkeypatch.setattr(canvas, "svg", lambda _: b"svg")
    rows = [evaluation_row(0.05 * k, k) for k in range(11)]
    folder = published(finetuned_pythia_imdb_gcg=[*rows, rows[0]])
    assert main(["report", f"--published={folder}", f"--out={tmp_path / 'R'}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("report: finetuned_pythia_imdb_gcg.csv: 1 rows repeat")
    assert said[-1] == str(tmp_path / "R" / "index.html")
    page = (tmp_path / "R" / "index.html").read_text()
    assert "1 rows repeat another row" in page
    for arguments in ([], ["a", f"--published={folder}"]):
        assert main(["report", *arguments, f"--out={tmp_path / 'R'}"]) != 0
        assert "either the workdirs of runs or published files" in capsys.readouterr().err
