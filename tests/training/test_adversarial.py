"""Adversarial training: what enters the pool and the training set; a kill changes no bit."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from robustjax import load_victim
from robustjax.attacks.gcg import GCG
from robustjax.attacks.search import SearchConfig
from robustjax.errors import UserError
from robustjax.evaluation import records
from robustjax.evaluation.records import read_records
from robustjax.runtime import checkpoint
from robustjax.runtime.checkpoint import Checkpoints
from robustjax.runtime.runlog import MetricsLog
from robustjax.training import adversarial as module
from robustjax.training.adversarial import AdversarialConfig, round_folder, train_adversarially
from robustjax.training.loop import TrainConfig, Trainer
from robustjax.training.optimizer import OptimizerConfig
from robustjax.training.pool import PoolConfig, choose_to_attack, round_rng, sample_round
from robustjax.training.schedule import AttackSchedule
from tests.training.conftest import same_bits

ROUNDS, ATTACKED, SEED = 3, 4, 5
CONFIG = AdversarialConfig(
    attack=GCG(num_tokens=2, num_candidates=8, candidate_chunk=8, top_k=16),
    schedule=AttackSchedule(start=1, end=3),
    num_rounds=ROUNDS,
    examples_per_round=ATTACKED,
    # Half of a round's eight texts are adversarial: all of the first pool, a part of later ones.
    pool=PoolConfig(max_examples=8, max_adversarial_share=0.5),
    # One update a round, so that every loss seen is that of the weights before the round.
    train=TrainConfig(1, 8, 4, OptimizerConfig(learning_rate=1e-2), edges=(128,)),
    search=SearchConfig(batch_size=2, edges=(128,)),
)


@pytest.fixture(scope="module")
def run(make_victim, small_task):
    """run(folder) -> hardened victim and summary."""

    def call(folder, config=CONFIG, victim=None):
        folder.mkdir(exist_ok=True)
        victim = victim or make_victim()
        return train_adversarially(
            victim, small_task, config, seed=SEED, folder=folder, label="test"
        )

    return call


@dataclasses.dataclass
class Run:
    """A run from beginning to end, watched: every round's training set and saved pool losses."""

    folder: object
    victim: object
    summary: dict
    data: list
    losses: list


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    data, losses = [], []
    save, trainer = Checkpoints.save, module.Trainer

    def watched_save(self, step, arrays, metadata):
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
        path = round_folder(straight.folder, number) / "attack_records.jsonl"
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
        assert row["attack_successes"] == sum(record.success for record in found)


def test_the_mean_loss_and_the_accuracy_of_a_round(straight, small_task):
    lines = [json.loads(x) for x in (straight.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line, row in zip(lines, straight.summary["rounds"], strict=True):
        assert row["train_loss"] == pytest.approx(line["loss"])
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
        (checkpoint._Write, "_complete", 4),  # of the second checkpoint; models are written too
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
    names += [f"rounds/{number:03d}/attack_records.jsonl" for number in range(1, ROUNDS + 1)]
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

    def note(self, step, state, epoch, log, learning_rate, **options):
        rates.append([learning_rate(index) for index in range(self.steps_per_epoch)])
        return run_epoch(self, step, state, epoch, log, learning_rate, **options)

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
    config = dataclasses.replace(CONFIG, num_rounds=1, schedule=AttackSchedule(start=1))
    hardened, _ = run(tmp_path, config, victim)
    assert same_bits(victim.params, before) and not same_bits(hardened.params, before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_rounds": 0}, "num_rounds=0"),
        ({"examples_per_round": 0}, "examples_per_round=0"),
        ({"num_train": -1}, "num_train=-1"),
        ({"schedule": AttackSchedule(start=2, rate=-1.0)}, "would have 0 iterations"),
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
