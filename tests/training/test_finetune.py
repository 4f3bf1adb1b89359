"""Clean training of either head: interrupted anywhere it ends with the same bits."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from robustjax import load_victim
from robustjax.errors import UserError
from robustjax.evaluation.perplexity import perplexity
from robustjax.runtime import checkpoint
from robustjax.runtime.checkpoint import Checkpoints
from robustjax.runtime.runlog import MetricsLog, read_metrics
from robustjax.training import finetune as module
from robustjax.training.finetune import FinetuneConfig, finetune
from robustjax.training.loop import TrainConfig
from robustjax.training.optimizer import OptimizerConfig
from tests.training.conftest import same_bits

CONFIG = FinetuneConfig(
    TrainConfig(
        epochs=2,
        batch_size=4,
        microbatch_size=4,
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="cosine"),
        edges=(64, 128),
    ),
    checkpoint_every=2,
)
LM_CONFIG = dataclasses.replace(CONFIG, objective="lm")
STEPS = 10  # 20 texts of one bucket: 5 steps an epoch


@pytest.fixture(scope="module")
def run(make_victim, small_task):
    """run(folder) -> trained victim and summary."""

    def call(folder, config=CONFIG):
        folder.mkdir(exist_ok=True)
        victim = make_victim(head=config.objective)
        return finetune(victim, small_task, config, seed=1, folder=folder, label="test")

    return call


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, *run(folder)


@pytest.fixture(scope="module")
def straight_lm(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight-lm")
    return folder, *run(folder, LM_CONFIG)


def test_what_a_run_leaves(straight, make_victim, small_task):
    folder, trained, summary = straight
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "validation_accuracy" in line] == [5, 10]
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert rates[0] == pytest.approx(1e-2) and rates == sorted(rates, reverse=True)
    assert (summary["steps"], summary["epochs"], summary["num_train"]) == (STEPS, 2, 20)
    assert summary["validation_accuracy"] == lines[-1]["validation_accuracy"]
    assert (summary["num_params"], summary["num_validation"]) == (trained.num_params, 8)
    tokens = sum(map(len, trained.tokenizer.encode([e.text for e in small_task.train])))
    assert summary["flops_algorithmic"] == 2 * 6 * trained.num_params * tokens
    assert same_bits(load_victim(folder).params, trained.params)
    assert Checkpoints(folder / "checkpoints").latest_step() == STEPS


def test_what_a_language_model_s_run_leaves(straight_lm, make_victim, small_task):
    folder, trained, summary = straight_lm
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "validation_perplexity" in line] == [5, 10]
    assert (summary["kind"], summary["steps"], summary["num_train"]) == ("pretrain", STEPS, 20)
    assert "validation_accuracy" not in summary
    texts = [example.text for example in small_task.validation]
    assert summary["validation_perplexity"] == lines[-1]["validation_perplexity"]
    assert summary["validation_perplexity"] == pytest.approx(perplexity(trained, texts), rel=1e-6)
    tokens = sum(map(len, trained.tokenizer.encode([e.text for e in small_task.train])))
    assert summary["flops_algorithmic"] == 2 * 6 * trained.num_params * tokens
    assert same_bits(load_victim(folder, head="lm").params, trained.params)


def test_a_language_model_learns_held_out_texts(make_victim, small_task, tmp_path):
    """To a third of the vocabulary at most; it starts out knowing less than nothing."""
    train = dataclasses.replace(CONFIG.train, epochs=8)
    victim = make_victim(head="lm")
    texts = [example.text for example in small_task.validation]
    assert perplexity(victim, texts) > 500
    config = FinetuneConfig(train, objective="lm")
    _, summary = finetune(victim, small_task, config, seed=1, folder=tmp_path, label="test")
    assert summary["validation_perplexity"] <= 512 / 3


@pytest.mark.parametrize(("head", "objective"), [("lm", "classifier"), ("classifier", "lm")])
def test_head_and_objective_go_together(make_victim, small_task, tmp_path, head, objective):
    config = dataclasses.replace(CONFIG, objective=objective)
    message = (
        f"objective='{objective}' does not go with model tiny, which has the head '{head}'; set "
        f"objective='{head}', or load the model with head='{objective}'"
    )
    with pytest.raises(UserError, match=message):
        finetune(make_victim(head=head), small_task, config, seed=1, folder=tmp_path, label="test")
    assert not list(tmp_path.iterdir())


def test_the_victim_given_is_not_touched(make_victim, small_task, tmp_path):
    # Memory that NumPy looks at would not be given away: these weights nobody has looked at.
    given, before = make_victim(), make_victim().params
    victim = given.with_params(jax.tree.map(jnp.copy, given.params))
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, epochs=1))
    trained, _ = finetune(victim, small_task, config, seed=1, folder=tmp_path, label="test")
    assert same_bits(victim.params, before) and not same_bits(trained.params, before)


# Saves come after steps 2, 4, 5, 7, 9 and 10, the lines of later steps stand in the log by then.
@pytest.mark.parametrize(
    ("owner", "name", "n"),
    [
        (Checkpoints, "save", 1),
        (Checkpoints, "save", 3),
        (Checkpoints, "save", 6),
        (checkpoint, "fingerprints", 1),  # torn, which shows at the next save
        (checkpoint, "fingerprints", 4),
        (MetricsLog, "write", 8),
        (module, "save_model", 1),
        (module, "read_metrics", 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).split(".")[-1],
)
def test_killed_and_resumed_is_the_same_as_straight(
    run, straight, killed_at, tmp_path, owner, name, n
):
    with killed_at(owner, name, n):
        run(tmp_path)
    trained, summary = run(tmp_path)
    folder, expected, expected_summary = straight
    assert same_bits(trained.params, expected.params)
    assert same_bits(load_victim(tmp_path).params, expected.params)
    assert summary == expected_summary
    assert (tmp_path / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("owner", "name", "n"),
    [
        (Checkpoints, "save", 4),
        (MetricsLog, "write", 6),  # the first epoch's perplexity, before its checkpoint
        (module, "save_model", 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).split(".")[-1],
)
def test_a_language_model_killed_and_resumed_is_the_same_as_straight(
    run, straight_lm, killed_at, tmp_path, owner, name, n
):
    with killed_at(owner, name, n):
        run(tmp_path, LM_CONFIG)
    trained, summary = run(tmp_path, LM_CONFIG)
    folder, expected, expected_summary = straight_lm
    assert same_bits(trained.params, expected.params)
    assert same_bits(load_victim(tmp_path, head="lm").params, expected.params)
    assert summary == expected_summary
    assert (tmp_path / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


def test_a_finished_run_only_reports_again(run, straight, monkeypatch):
    folder, expected, summary = straight
    monkeypatch.setattr(Checkpoints, "save", None)  # training would call it
    trained, again = run(folder)
    assert again == summary and same_bits(trained.params, expected.params)


def test_only_the_first_examples_are_used_when_fewer_are_asked_for(
    make_victim, small_task, tmp_path
):
    train = dataclasses.replace(CONFIG.train, epochs=1)
    config = FinetuneConfig(train, num_train=4)
    victim = make_victim()
    _, summary = finetune(victim, small_task, config, seed=1, folder=tmp_path, label="test")
    assert (summary["num_train"], summary["steps"]) == (4, 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FinetuneConfig(num_train=21), "num_train=21 is more than the task's 20"),
        (
            FinetuneConfig(TrainConfig(1, 4, 4, OptimizerConfig(warmup_steps=6))),
            "warmup_steps: 6 is more than the 5 steps",
        ),
    ],
)
def test_settings_that_do_not_fit_the_data(make_victim, small_task, tmp_path, config, message):
    config.check(1000)
    with pytest.raises(UserError, match=message):
        finetune(make_victim(), small_task, config, seed=1, folder=tmp_path, label="test")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["num_train", "checkpoint_every"])
def test_bad_settings(name):
    with pytest.raises(UserError, match=f"{name}=-1"):
        FinetuneConfig(**{name: -1})
