"""`robustjax attack`: what it leaves, what it refuses, and that it goes on."""

import csv
import dataclasses
import json
import shutil

import jax
import pytest

from robustjax import given_model
from robustjax.evaluation import records
from robustjax.evaluation.detection import read_scores
from robustjax.evaluation.pretraining import PRETRAIN_FLOPS
from robustjax.given_model import GivenModel
from robustjax.models.model_folder import load_model, save_model
from robustjax.models.transformer import Definition
from robustjax.runtime.files import write_json
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh
from robustjax.stage_work import Past
from tests.commands.conftest import contents, read
from tests.commands.short import ATTACK, FINETUNE, GCG, TASK, TRAINING
from tests.models.folders import make_hugging_face
from tests.models.tiny import CONFIGS

NANO = f"{ATTACK}:point=nano-27k,task=word_length,attack=gcg"


@pytest.fixture
def attacked(run, trained, folders):
    """The workdir of an attack on `trained`; each process makes it once."""
    workdir = folders / "attacked"
    if not (workdir / "DONE").exists():
        given = f"--config.model.path={trained}"
        status, out, err = run("attack", NANO, *GCG, given, f"--workdir={workdir}")
        assert (status, out) == (0, f"{workdir}\n"), err
        assert "attack nano-27k gcg: 16/16 example-iterations" in err
        assert " attacked ones broken: " in err.splitlines()[-1]
    return workdir


def test_what_it_leaves(attacked, trained):
    summary = read(attacked / "summary.json")
    found = records.read_records(attacked / "attack_records.jsonl")
    metrics = json.loads(records.canonical_json(records.summarise(found)))
    assert {name: summary[name] for name in metrics} == metrics
    assert (summary["num_attacked"], summary["iterations"], summary["seed"]) == (8, 2, 0)
    assert (summary["trained_on"], summary["round"], summary["defence_flops"]) == ("none", 0, 0)
    assert summary["pretrain_flops"] == read(trained / "summary.json")["flops_algorithmic"]
    assert summary["attack_config"]["num_candidates"] == 16
    assert summary["versions"]["jax"] == jax.__version__
    assert summary["config_hash"] == read(attacked / "DONE")["config_hash"]
    timing = read(attacked / "timing.json")
    assert timing.keys() == {"seconds", "seconds_compile", "seconds_per_iteration_and_example"}
    manifest = read(attacked / "manifest.json")
    assert manifest["config"]["attack"]["name"] == "gcg"
    assert manifest["data"]["dropped_too_long"] == {"train": 0, "validation": 0}


def test_a_second_run_does_nothing(run, attacked, trained):
    before = {path: path.stat().st_mtime_ns for path in attacked.rglob("*")}
    command = "attack", NANO, *GCG, f"--config.model.path={trained / 'model'}"
    status, out, err = run(*command, f"--workdir={attacked}")
    assert (status, out, err) == (0, f"{attacked}\n", "attack: done already; nothing to do\n")
    assert {path: path.stat().st_mtime_ns for path in attacked.rglob("*")} == before


def test_interrupted_it_goes_on_to_the_same_bytes(run, attacked, trained, tmp_path):
    workdir = tmp_path / "again"
    shutil.copytree(attacked, workdir)
    (workdir / "DONE").unlink()
    (workdir / "summary.json").unlink()
    lines = (workdir / "attack_records.jsonl").read_bytes().splitlines(keepends=True)
    torn = b"".join(lines[:-3]) + lines[-3][:100]
    (workdir / "attack_records.jsonl").write_bytes(torn)
    command = "attack", NANO, *GCG, f"--config.model.path={trained}", f"--workdir={workdir}"
    status, _, err = run(*command)
    assert status == 0
    assert "2/16" not in err, "it started from the beginning"
    assert contents(workdir) == contents(attacked)


def test_a_workdir_of_another_config_is_refused(refused, attacked, trained, tmp_path):
    before = contents(attacked)
    given = f"--config.model.path={trained}"
    for override, message in {
        "--config.seed=1": "seed: 0 there, 1 here",
        "--config.attack.position=0.9": "attack.position: 1.0 there, 0.9 here",
        "--config.num_examples=7": "num_examples: 8 there, 7 here",
        "--config.split=train": "split: 'validation' there, 'train' here",
    }.items():
        line = refused("attack", NANO, *GCG, given, override, workdir=attacked)
        assert line.startswith("robustjax attack: workdir of another config: ")
        assert message in line
    mesh, rules = make_mesh(MeshConfig()), AxisRules()
    victim = load_model(trained / "model", mesh, rules)
    other = victim.with_params(jax.tree.map(lambda leaf: leaf * 2, victim.params))
    shutil.copytree(trained, tmp_path / "other")
    save_model(tmp_path / "other" / "model", other)
    given = f"--config.model.path={tmp_path / 'other'}"
    assert "model.weights: " in refused("attack", NANO, *GCG, given, workdir=attacked)
    assert contents(attacked) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"{ATTACK}:attack=foo"], "config.attack.name='foo' is no attack; known: gcg"),
        ([ATTACK], "config.model.point and config.model.path are both empty"),
        ([NANO], "config.model.path is empty, and scaling point nano-27k has no published weights"),
        ([NANO, "--config.split=test"], "config.split='test' is unknown; use train, validation"),
        ([NANO, "--config.num_examples=-1"], "config: num_examples=-1 must not be negative"),
        ([NANO, "--config.seed=-1"], "config: seed: -1 is no seed"),
        ([NANO, "--config.attack.position=2"], "config.attack: position=2.0 must lie"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_mistakes(refused, arguments, message):
    assert message in refused("attack", *arguments)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.model.point=nano-80k", "config.model.point=nano-80k has 2 layers of width 48"),
        ("--config.model.head=lm", "config.model.head=lm: "),
        ("--config.num_examples=65", "config.num_examples=65 is more than the 64 validation"),
    ],
)
def test_mistakes_about_a_model(refused, trained, override, message):
    assert message in refused("attack", NANO, *GCG, f"--config.model.path={trained}", override)


def test_buckets_narrower_than_the_context(refused, trained):
    given = f"--config.model.path={trained}", "--config.search.edges=(64,)"
    line = refused("attack", NANO, *given)
    assert "config.search.edges=(64,) end below the model's context of 1024 tokens" in line


def test_another_number_of_classes(refused, trained, tmp_path):
    rows = "".join(f'{{"text": "number {i}", "label": {i % 3}}}\n' for i in range(9))
    (tmp_path / "three.jsonl").write_text(rows)
    data = f"--config.task.validation_path={tmp_path / 'three.jsonl'}"
    line = refused("attack", f"{ATTACK}:task=jsonl", f"--config.model.path={trained}", data)
    assert "tells 2 classes apart, config.task has 3" in line


def test_a_report_of_training_and_attacks(run, trained, attacked, tmp_path):
    command = "attack", NANO, *GCG, f"--config.model.path={trained}"
    prefix = tmp_path / "prefix"
    assert run(*command, "--config.attack.position=0.0", f"--workdir={prefix}")[0] == 0
    status, out, err = run("report", trained, attacked, prefix, f"--out={tmp_path / 'report'}")
    assert (status, out) == (0, f"{tmp_path / 'report' / 'index.html'}\n"), err
    page = (tmp_path / "report" / "index.html").read_text()
    assert "GCG at 0" in page
    rates = set()
    for path in (tmp_path / "report").glob("*.csv"):
        with open(path, newline="") as file:
            rates |= {cell for row in csv.reader(file) for cell in row}
    assert {"gcg", "gcg@0"} <= rates
    alone = run("report", attacked, f"--out={tmp_path / 'alone'}")
    assert alone[:2] == (0, f"{tmp_path / 'alone' / 'index.html'}\n")


PROBE = "--config.attack.probe_size=4", "--config.attack.probe_reduction=4"
BEAST = f"{ATTACK}:point=nano-27k,task=word_length,attack=beast"


def test_companions_that_are_missing_or_do_not_fit(refused, trained, base):
    """Refused before anything is loaded."""
    model, same = f"--config.model.path={trained}", f"--config.companion.path={trained}"
    other = f"--config.companion.path={base}"
    for command, message in {
        (BEAST, *TASK, model): "config.companion.path is empty, but beast samples tokens from a "
        "language model; give one",
        (NANO, *GCG, *PROBE, model): "config.companion.path is empty, but gcg with probe sampling "
        "asks a smaller model first; give one",
        (NANO, *GCG, model, same): "config.companion is set, but gcg asks no second model",
        (BEAST, *TASK, model, same): f"config.companion.path: {trained} has the head 'classifier'; "
        "give a model with the head 'lm'",
        (BEAST, *TASK, model, other): "companion base has another tokenizer than nano-27k",
        (NANO, *GCG, *PROBE, model, other): f"config.companion.path: {base} has no classifier head",
        (NANO, *GCG, *PROBE, model, f"{same}/none"): "config.companion.path: ",
        (NANO, "--config.model.head=lm", model, "--config.attack.untargeted=True"): "untargeted="
        "True: a language model is attacked toward a text",
    }.items():
        assert message in refused("attack", *command)


def test_probe_sampling(run, refused, trained, attacked, tmp_path):
    """The companion is the victim itself, which is no use but fits."""
    workdir, companion = tmp_path / "w", f"--config.companion.path={trained}"
    command = "attack", NANO, *GCG, *PROBE, f"--config.model.path={trained}"
    status, out, err = run(*command, companion, f"--workdir={workdir}")
    assert (status, out) == (0, f"{workdir}\n"), err
    summary, manifest = read(workdir / "summary.json"), read(workdir / "manifest.json")
    assert (summary["attack"], summary["variant"]) == ("gcg", "probe")
    of_both = {name: manifest["model"][name] for name in manifest["companion"]}
    assert manifest["companion"] == of_both and of_both["weights"]
    assert manifest["config"]["companion"]["path"] == str(trained)
    assert read(workdir / "stage.json")["config"]["companion"]["point"] == "nano-27k"
    wide = "--config.companion.numerics.param_dtype=bfloat16"
    line = refused(*command, companion, wide, workdir=workdir)
    assert "companion.numerics.param_dtype: 'float32' there, 'bfloat16' here" in line
    report = tmp_path / "report"
    assert run("report", workdir, attacked, f"--out={report}")[0] == 0
    assert "GCG (probe sampling)" in (report / "index.html").read_text()
    with open(report / "attack_runs.csv", newline="") as file:
        assert {row["attack"] for row in csv.DictReader(file)} == {"gcg", "gcg+probe"}


def test_an_attack_that_stops_at_success_says_so(run, trained, tmp_path):
    command = "attack", NANO, *GCG, f"--config.model.path={trained}", f"--workdir={tmp_path}"
    status, _, err = run(*command, "--config.attack.stop_at_success=True")
    assert status == 0
    summary = read(tmp_path / "summary.json")
    rate = summary["attack_success_rate_stopped"]
    assert f" attacked ones broken: {100 * rate:.0f} % (" in err.splitlines()[-1]
    assert rate == summary["asr_first_success_at"]["2"] == summary["asr_stopped_at"]["2"]
    assert not {"attack_success_rate", "asr_at", "asr_interval", "accuracy_after"} & summary.keys()


def test_beast_asks_a_language_model(run, base, two_rows, tiny_tokenizer, tmp_path):
    victim = make_hugging_face(tmp_path / "clf", tiny_tokenizer, num_classes=2, context=128)
    workdir = tmp_path / "w"
    status, _, err = run(
        *("attack", f"{ATTACK}:task=jsonl,attack=beast", f"--config.model.path={victim}"),
        *(value for value in two_rows if "config.attack" not in value),
        *("--config.attack.num_iterations=2", "--config.attack.beam_width=2"),
        *("--config.attack.branch_factor=2", f"--config.companion.path={base}"),
        f"--workdir={workdir}",
    )
    assert status == 0, err
    summary = read(workdir / "summary.json")
    assert (summary["attack"], summary["num_failures"], summary["iterations"]) == ("beast", 0, 2)
    assert read(workdir / "manifest.json")["companion"]["head"] == "lm"
    assert run("report", workdir, f"--out={tmp_path / 'report'}")[0] == 0


@pytest.fixture
def base(tmp_path, tiny_tokenizer):
    """A Hugging Face folder with a language model."""
    return make_hugging_face(tmp_path / "base", tiny_tokenizer, head="lm", context=128)


@pytest.fixture
def two_rows(tmp_path):
    """A task of two texts."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "It rains.", "label": 0}\n{"text": "Win a prize", "label": 1}\n')
    return (
        f"--config.task.validation_path={path}",
        *(value for value in GCG if "task" not in value and "edges" not in value),
        "--config.num_examples=0",
        "--config.search.edges=(32,128)",
    )


def test_a_base_model_needs_a_head(run, refused, base, two_rows, tmp_path):
    command = "attack", f"{ATTACK}:task=jsonl", f"--config.model.path={base}", *two_rows
    line = refused(*command)
    assert "has no classifier head, and a fresh one answers at random" in line
    assert "config.model.head=lm" in line and "config.model.allow_fresh_head=True" in line
    allowed = "--config.model.allow_fresh_head=True"
    status, _, err = run(*command, allowed, f"--workdir={tmp_path / 'w'}")
    assert status == 0, err
    assert read(tmp_path / "w" / "summary.json")["num_examples"] == 2


def test_a_classifier_is_no_language_model(refused, tiny_tokenizer, two_rows, tmp_path):
    folder = make_hugging_face(tmp_path / "clf", tiny_tokenizer, num_classes=3, context=128)
    command = "attack", f"{ATTACK}:task=jsonl", f"--config.model.path={folder}", *two_rows
    assert "has no language-model head" in refused(*command, "--config.model.head=lm")
    assert "tells 3 classes apart, config.task has 2" in refused(*command)


def test_a_language_model_is_attacked_toward_a_text(run, base, two_rows, tmp_path):
    command = "attack", f"{ATTACK}:task=jsonl", f"--config.model.path={base}", *two_rows
    names = "--config.task.class_names=(' no',' yes')"
    workdir = tmp_path / "w"
    head = "--config.model.head=lm"
    status, out, err = run(*command, head, names, f"--workdir={workdir}")
    assert (status, out) == (0, f"{workdir}\n"), err
    found = records.read_records(workdir / "attack_records.jsonl")
    assert len(found) == 2
    for record in found:
        assert record.attacked and record.logits is None
        assert record.target_logprobs and max(record.target_logprobs) < 0
    summary = read(workdir / "summary.json")
    assert (summary["point"], summary["model_family"]) == ("base", "gpt_neox")
    assert run("report", workdir, f"--out={tmp_path / 'report'}")[0] == 0


@pytest.mark.slow
def test_a_perplexity_filter_reports_what_it_detects(run, trained, tmp_path):
    reader = tmp_path / "reader"
    task = f"{FINETUNE}:point=nano-27k,task=word_length"
    given = *TRAINING, "--config.objective=lm", f"--workdir={reader}"
    assert run("finetune", task, *given)[0] == 0
    workdir = tmp_path / "filtered"
    command = "attack", NANO, *GCG, f"--config.model.path={trained}", f"--workdir={workdir}"
    scorer = f"--config.perplexity_filter.model.path={reader}"
    status, _, err = run(*command, scorer, "--config.perplexity_filter.proportion=0.25")
    assert status == 0 and "; the filter flags" in err
    found = read(workdir / "summary.json")["perplexity_filter"]
    assert found["proportion"] == 0.25 and found["num_prepared_on"] > 1
    assert 0 <= found["true_positive_rate"] <= 1
    scores = read_scores(workdir / "perplexity_scores.jsonl")
    assert len(scores) == read(workdir / "summary.json")["num_examples"]
    status, _, err = run(*command, scorer)
    assert status == 2 and "perplexity_filter.proportion: 0.25 there, 0.01 here" in err


def test_a_perplexity_filter_needs_a_language_model(run, trained, tmp_path):
    command = "attack", NANO, *GCG, f"--config.model.path={trained}", f"--workdir={tmp_path}"
    status, _, err = run(*command, f"--config.perplexity_filter.model.path={trained}")
    assert status == 2 and "attack: config.perplexity_filter.model.path: " in err
    assert "has the head 'classifier'; give a model with the head 'lm'" in err


def given_in(folder):
    return GivenModel(folder, True, Definition(CONFIGS["neox"]), "nano-27k", "nano")


def test_a_hardened_model_tells_its_past(tmp_path):
    """As the folders of a study lie: RUN/rounds/002/model."""
    rounds = [{"round": 1, "flops_total": 5}, {"round": 2, "flops_total": 9}]
    summary = {"kind": "advtrain", "victim_seed": 3, "trained_on": "gcg", "rounds": rounds}
    summary["pretrain_flops"] = 4
    write_json(tmp_path / "run" / "summary.json", summary)
    given = given_in(tmp_path / "run" / "rounds" / "002" / "model")
    assert given_model.read_past(given) == (3, Past("gcg", 2, 9, 4))


def test_what_pretraining_cost_is_handed_on(tmp_path):
    given = given_in(tmp_path / "model")
    assert given_model.read_past(given) == (0, Past())
    for kind in ("finetune", "pretrain"):
        for flops in (7, None):
            summary = {"kind": kind, "victim_seed": 1, "pretrain_flops": flops}
            write_json(tmp_path / "summary.json", summary)
            assert given_model.read_past(given) == (1, Past(pretrain_flops=flops))


def test_of_published_weights_it_is_looked_up(tmp_path):
    given = dataclasses.replace(given_in(tmp_path), is_ours=False, point="pythia-70m")
    assert given_model.read_past(given) == (0, Past(pretrain_flops=PRETRAIN_FLOPS["pythia-70m"]))


def test_another_instruction_than_in_training_is_told(run, trained, tmp_path):
    command = "attack", NANO, *GCG, f"--config.model.path={trained}", f"--workdir={tmp_path}"
    status, _, err = run(*command, "--config.task.instruction=Which is longer? ")
    assert status == 0
    assert "note: config.task.instruction='Which is longer? ', but the model was trained" in err
