"""Adversarial training: what enters the pool and the training set; a kill changes no bit."""

import dataclasses

import jax
import numpy as np
import pytest

from robustjax import load_victim
from robustjax.errors import UserError
from robustjax.evaluation import records
from robustjax.evaluation.records import read_records
from robustjax.runtime import checkpoint
from robustjax.runtime.checkpoint import Checkpoints
from robustjax.runtime.runlog import MetricsLog, read_metrics
from robustjax.training import adversarial as module
from robustjax.training.embedding import EmbeddingAttack
from robustjax.training.loop import TrainConfig, Trainer
from robustjax.training.optimizer import OptimizerConfig
from robustjax.training.pool import choose_to_attack, round_rng, sample_round
from robustjax.training.rounds import TrainingAttack, records_path, round_folder
from robustjax.training.schedule import AttackSchedule
from tests.training.conftest import same_bits
from tests.training.hardening import (
    ATTACKED,
    CONFIG,
    GCG_ATTACK,
    ROUNDS,
    SEED,
    Run,
    attacking,
)


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    data, losses = [], []
    save, trainer = Checkpoints.save, module.Trainer

    def watched_save(self, step, arrays, metadata):
        if metadata["epoch"] is None:  # the end of a round
            losses.append([np.inf if x is None else x for x in metadata["losses"]])
        save(self, step, arrays, metadata)

    def watched_trainer(victim, config, rows, *, seed):
        data.append(rows)
        return trainer(victim, config, rows, seed=seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", watched_save)
        patch.setattr(module, "Trainer", watched_trainer)
        victim, summary = run(folder)
    return Run(folder, victim, summary, data, losses)


@pytest.fixture(scope="module")
def pool(straight):
    """All records, oldest round first, within a round by example id."""
    found = []
    for number in range(1, ROUNDS + 1):
        path = records_path(straight.folder, number, "gcg")
        found += sorted(read_records(path), key=lambda record: record.example_id)
    return found


def test_each_round_attacks_fresh_examples_whatever_the_victim_answers(straight, pool, small_task):
    ids = [example.example_id for example in small_task.train]
    for number in range(1, ROUNDS + 1):
        found = pool[(number - 1) * ATTACKED : number * ATTACKED]
        chosen = choose_to_attack(len(ids), ATTACKED, round_rng(SEED, number, "attack"))
        assert {record.example_id for record in found} == {ids[i] for i in chosen}
        assert {len(record.iterations) for record in found} == {number}  # 1, 2, 3 by the schedule
    assert {record.correct_before for record in pool} == {True, False}
    assert len({record.example_id for record in pool}) > ATTACKED


def test_all_attacked_texts_enter_the_pool_with_their_true_labels(straight, pool, small_task):
    truth = {example.example_id: example for example in small_task.train}
    assert {record.success for record in pool} == {True, False}
    for number, (row, losses) in enumerate(
        zip(straight.summary["rounds"], straight.losses, strict=True), 1
    ):
        assert row["pool_size"] == row["num_attacked"] * number == len(losses) == ATTACKED * number
        assert row["num_failures"] == 0
    for record in pool:
        example = truth[record.example_id]
        assert record.label == example.label
        assert record.attacked_text not in (None, example.text)


def test_what_a_round_trains_on(straight, pool, small_task):
    encode = straight.victim.tokenizer.encode
    clean = {example.text: example.label for example in small_task.train}
    before = np.zeros(0)
    for number, (rows, row) in enumerate(
        zip(straight.data, straight.summary["rounds"], strict=True), 1
    ):
        size = ATTACKED * number
        known = np.concatenate([before, np.full(ATTACKED, np.inf)])
        sample = sample_round(CONFIG.pool, len(clean), known, round_rng(SEED, number))
        texts = [example.text for example in small_task.train]
        wanted = [(texts[i], clean[texts[i]]) for i in sample.clean_indices]
        wanted += [(pool[i].attacked_text, pool[i].label) for i in sample.adversarial_indices]
        wanted = [wanted[i] for i in sample.order]
        assert rows.rows == encode([text for text, _ in wanted])
        assert rows.labels == [label for _, label in wanted]
        assert (row["num_clean"], row["num_adversarial"]) == (4, 4)
        assert max(sample.adversarial_indices) < size
        before = np.array(straight.losses[number - 1])


def test_losses_are_stored_where_their_texts_stand_in_the_pool(straight, pool, make_victim):
    victim, before = make_victim(), np.zeros(0)
    for number in range(1, ROUNDS + 1):
        expected = np.concatenate([before, np.full(ATTACKED, np.inf)])
        drawn = sample_round(CONFIG.pool, 20, expected, round_rng(SEED, number)).adversarial_indices
        logits = victim.logits([pool[i].attacked_text for i in drawn])
        labels = [pool[i].label for i in drawn]
        expected[drawn] = np.logaddexp(*logits.T) - logits[np.arange(len(drawn)), labels]
        assert len(set(expected[drawn].round(4))) == len(drawn)  # or a mix-up would not show
        np.testing.assert_allclose(straight.losses[number - 1], expected, rtol=2e-5)
        before = np.array(straight.losses[number - 1])
        victim = load_victim(round_folder(straight.folder, number))
    assert np.isinf(before).any() and np.isfinite(before).sum() > ATTACKED
    assert same_bits(victim.params, straight.victim.params)


def test_compute_adds_up_over_the_rounds(straight, pool):
    total = 0
    for number, (row, rows) in enumerate(
        zip(straight.summary["rounds"], straight.data, strict=True), 1
    ):
        found = pool[(number - 1) * ATTACKED : number * ATTACKED]
        assert row["round"] == number and row["attack_iterations"] == number
        assert row["flops_attack"] == sum(record.flops_algorithmic for record in found) > 0
        assert row["flops_train"] == 6 * straight.victim.num_params * rows.num_tokens
        total += row["flops_attack"] + row["flops_train"]
        assert row["flops_total"] == total
        assert row["flops_attack_executed"] == sum(record.flops_executed for record in found) > 0
        assert row["flops_train_executed"] > 0
        assert row["attack_successes"] == sum(record.success for record in found)


def test_the_mean_loss_and_the_accuracy_of_a_round(straight, small_task):
    lines = read_metrics(straight.folder / "metrics.jsonl")
    assert [(line["step"], line["round"]) for line in lines] == [
        *((1, 1), (1, 1)),
        *((2, 2), (2, 2)),
        *((3, 3), (3, 3)),
    ]
    rows = straight.summary["rounds"]
    for step, end, row in zip(lines[::2], lines[1::2], rows, strict=True):
        assert end["train_loss"] == row["train_loss"] == pytest.approx(step["loss"])
        assert end["accuracy"] == row["accuracy"] and step["learning_rate"] == 1e-2
        assert end["flops_total"] == row["flops_total"] == step["flops"]
        assert step["gradient_norm"] > 0
    logits = straight.victim.logits([example.text for example in small_task.validation])
    right = [row.argmax() == e.label for row, e in zip(logits, small_task.validation, strict=True)]
    assert straight.summary["rounds"][-1]["accuracy"] == np.mean(right)


# A round is two batches attacked, one update, one model saved and one checkpoint.
@pytest.mark.parametrize(
    ("owner", "name", "n"),
    [
        (records, "append_records", 2),
        (records, "append_records", 3),
        (MetricsLog, "write", 2),
        (module, "save_model", 2),
        (Checkpoints, "save", 1),
        (Checkpoints, "save", 3),
        (checkpoint, "fingerprints", 4),  # of the second checkpoint; models are written too
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).split(".")[-1],
)
def test_killed_and_resumed_is_the_same_as_straight(
    run, straight, killed_at, tmp_path, owner, name, n
):
    with killed_at(owner, name, n):
        run(tmp_path)
    hardened, summary = run(tmp_path)
    assert same_bits(hardened.params, straight.victim.params)
    assert summary == straight.summary
    names = ["metrics.jsonl", "checkpoints/00000003/metadata.json"]
    names += [
        records_path(tmp_path, number, "gcg").relative_to(tmp_path)
        for number in range(1, ROUNDS + 1)
    ]
    for file in names:
        assert (tmp_path / file).read_bytes() == (straight.folder / file).read_bytes(), file
    for number in range(1, ROUNDS + 1):
        one, other = (
            load_victim(round_folder(folder, number)).params
            for folder in (tmp_path, straight.folder)
        )
        assert same_bits(one, other)


def test_the_learning_rate_falls_to_zero_within_each_round(run, tmp_path, monkeypatch):
    rates = []
    run_epoch = Trainer.run_epoch

    def note(self, step, state, epoch, log, learning_rate, *rest, **options):
        rates.append([learning_rate(index) for index in range(self.steps_per_epoch)])
        return run_epoch(self, step, state, epoch, log, learning_rate, *rest, **options)

    monkeypatch.setattr(Trainer, "run_epoch", note)
    optimizer = OptimizerConfig(learning_rate=1e-2, schedule="linear")
    train = dataclasses.replace(CONFIG.train, epochs=2, optimizer=optimizer)
    run(tmp_path, dataclasses.replace(CONFIG, train=train))

    assert len(rates) == 2 * ROUNDS
    for first, second in zip(rates[::2], rates[1::2], strict=True):
        count = len(first) + len(second)
        expected = [1e-2 * (1 - index / count) for index in range(count)]
        assert first + second == pytest.approx(expected)


def test_the_victim_given_is_not_touched(make_victim, run, tmp_path):
    victim = make_victim()
    before = jax.device_get(victim.params)
    config = dataclasses.replace(CONFIG, num_rounds=1, attacks=attacking(start=1))
    hardened, _ = run(tmp_path, config, victim)
    assert same_bits(victim.params, before) and not same_bits(hardened.params, before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_rounds": 0}, "num_rounds=0"),
        ({"examples_per_round": 0}, "examples_per_round=0"),
        ({"num_train": -1}, "num_train=-1"),
        ({"checkpoint_every": -1}, "checkpoint_every=-1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints=0"),
        ({"attacks": {}}, "attacks or embedding: neither is given"),
        ({"embedding": EmbeddingAttack()}, "attacks or embedding: both are given"),
        (
            {"attacks": attacking(start=2, rate=-1.0)},
            "attacks.gcg: schedule: round 2 of 3 would have 0 iterations",
        ),
        (
            {
                "attacks": {
                    "gcg": TrainingAttack(GCG_ATTACK, AttackSchedule(1)),
                    "few": TrainingAttack(GCG_ATTACK, AttackSchedule(1), share=0.1),
                }
            },
            "attacks.few.share=0.1 is none of the 4 examples",
        ),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"examples_per_round": 21}, "examples_per_round=21 is more than the 20"),
        ({"num_train": 21}, "num_train=21 is more than the task's 20"),
        ({"num_train": 3}, "examples_per_round=4 is more than the 3"),
        (
            {"train": TrainConfig(1, 8, 8, OptimizerConfig(warmup_steps=2))},
            "warmup_steps: 2 is more than the 1 steps",
        ),
    ],
)
def test_settings_that_do_not_fit_the_data(run, tmp_path, fields, message):
    config = dataclasses.replace(CONFIG, **fields)
    with pytest.raises(UserError, match=message):
        run(tmp_path, config)
    assert not list(tmp_path.iterdir())


def test_language_models_are_not_hardened(make_victim, run, tmp_path):
    with pytest.raises(UserError, match="objective='classifier' does not go with model tiny"):
        run(tmp_path, CONFIG, make_victim(head="lm"))
    assert not list(tmp_path.iterdir())
