"""Adversarial training: what enters the pool and the training set; a kill changes no bit."""

import dataclasses

import jax
import numpy as np
import pytest

from robustjax import load_victim
from robustjax.attacks.gcg import GCG
from robustjax.attacks.random_token import RandomToken
from robustjax.attacks.search import SearchConfig
from robustjax.errors import UserError
from robustjax.evaluation import records
from robustjax.evaluation.records import read_records
from robustjax.runtime import checkpoint, interrupts
from robustjax.runtime.checkpoint import Checkpoints
from robustjax.runtime.runlog import MetricsLog, read_json, read_metrics
from robustjax.training import adversarial as module
from robustjax.training.adversarial import AdversarialConfig, train_adversarially
from robustjax.training.embedding import EmbeddingAttack
from robustjax.training.loop import TrainConfig, Trainer
from robustjax.training.optimizer import OptimizerConfig
from robustjax.training.pool import PoolConfig, choose_to_attack, round_rng, sample_round
from robustjax.training.rounds import TrainingAttack, records_path, round_folder, shares_of
from robustjax.training.schedule import AttackSchedule
from tests.training.conftest import same_bits

ROUNDS, ATTACKED, SEED = 3, 4, 5
GCG_ATTACK = GCG(num_tokens=2, num_candidates=8, candidate_chunk=8, top_k=16)
CONFIG = AdversarialConfig(
    attacks={"gcg": TrainingAttack(GCG_ATTACK, AttackSchedule(start=1, end=3))},
    num_rounds=ROUNDS,
    examples_per_round=ATTACKED,
    # Half of a round's eight texts are adversarial: all of the first pool, a part of later ones.
    pool=PoolConfig(max_examples=8, max_adversarial_share=0.5),
    # One update a round, so that every loss seen is that of the weights before the round.
    train=TrainConfig(1, 8, 4, OptimizerConfig(learning_rate=1e-2), edges=(128,)),
    search=SearchConfig(batch_size=2, edges=(128,)),
)


def attacking(**schedule):
    return {"gcg": TrainingAttack(GCG_ATTACK, AttackSchedule(**schedule))}


@pytest.fixture(scope="module")
def run(make_victim, small_task):
    """run(folder) -> hardened victim and summary."""

    def call(folder, config=CONFIG, victim=None, **options):
        folder.mkdir(exist_ok=True)
        victim = victim or make_victim()
        return train_adversarially(
            victim, small_task, config, seed=SEED, folder=folder, label="test", **options
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


# Two passes of three updates a round, each saved: every place in a round is one to go on from.
LONG = dataclasses.replace(
    CONFIG,
    attacks=attacking(start=2),
    num_rounds=2,
    pool=PoolConfig(max_examples=20, max_adversarial_share=0.2),
    train=dataclasses.replace(CONFIG.train, epochs=2),
    checkpoint_every=1,
)


@pytest.fixture(scope="module")
def long(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    victim, summary = run(folder, LONG)
    return Run(folder, victim, summary, [], [])


def assert_like(long, folder, result):
    victim, summary = result
    assert same_bits(victim.params, long.victim.params) and summary == long.summary
    assert newest_metadata(folder) == newest_metadata(long.folder)
    files = sorted(path.relative_to(long.folder) for path in long.folder.rglob("*.jsonl"))
    assert len(files) == 3  # of two rounds, and the metrics
    for file in files:
        assert (folder / file).read_bytes() == (long.folder / file).read_bytes(), file


def newest_metadata(folder):
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return newest.name, read_json(newest / "metadata.json")


@pytest.mark.parametrize("n", range(1, 13))
def test_killed_at_any_update_and_resumed_is_the_same_as_straight(
    run, long, killed_at, tmp_path, n
):
    with killed_at(Checkpoints, "save", n):
        run(tmp_path, LONG)
    assert_like(long, tmp_path, run(tmp_path, LONG))


# It looks once between rounds; in an attack after each of two iterations of two batches and after
# each batch; then after each update, and between two passes.
@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 8, 10, 11, 13, 16, 20])
def test_preempted_it_saves_and_goes_on_where_it_was(run, long, tmp_path, monkeypatch, n):
    """The n-th time that it looks; what was done by then is not done again."""
    with monkeypatch.context() as patch:
        looks = iter(range(1, n + 1))
        patch.setattr(interrupts, "is_preempted", lambda: next(looks, n) == n)
        with pytest.raises(interrupts.PreemptedError):
            run(tmp_path, LONG)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    steps = sum("loss" in line for line in read_metrics(tmp_path / "metrics.jsonl"))
    saved = Checkpoints(tmp_path / "checkpoints").latest_step() or 0
    assert saved == steps
    assert (tmp_path / "rounds/001/attacks/gcg/attack_state.npz").exists() == (n in (2, 3, 6))
    if n in (2, 3, 4, 6):  # it was left within a batch, or after the first one
        found = records.read_complete_records(records_path(tmp_path, 1, "gcg"))
        assert len(found) == {2: 0, 3: 0, 4: 2, 6: 2}[n]
    assert_like(long, tmp_path, run(tmp_path, LONG))
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before)


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(run, long, killed_at, tmp_path, caplog):
    with killed_at(Checkpoints, "save", 6):
        run(tmp_path, LONG)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000004", "00000005"]
    for path in (tmp_path / "checkpoints" / names[1] / "arrays").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\0" * path.stat().st_size)
    result = run(tmp_path, LONG)
    assert f"checkpoint {tmp_path}/checkpoints/00000005: " in caplog.text
    assert "trying the one before it" in caplog.text
    assert_like(long, tmp_path, result)


def change(path):
    path.write_bytes(path.read_bytes().replace(b"true", b"True", 1))


@pytest.mark.parametrize(
    ("harm", "what"), [(change, "was changed"), (lambda path: path.unlink(), "is missing")]
)
def test_texts_that_are_not_those_of_the_pool_are_refused(run, killed_at, tmp_path, harm, what):
    with killed_at(Checkpoints, "save", 3):
        run(tmp_path, LONG)
    path = records_path(tmp_path, 1, "gcg")
    harm(path)
    with pytest.raises(UserError, match=rf"{path} {what} since round 1 was trained on it; put it"):
        run(tmp_path, LONG)


def test_several_attacks_share_the_examples_of_a_round(run, tmp_path, small_task):
    config = dataclasses.replace(
        LONG,
        attacks=attacking(start=1)
        | {"words": TrainingAttack(RandomToken(2, 2), AttackSchedule(3), share=3.0)},
        num_rounds=1,
    )
    assert shares_of(config.attacks, 4) == {"gcg": 1, "words": 3}
    _, summary = run(tmp_path, config)
    (row,) = summary["rounds"]
    found = {name: read_records(records_path(tmp_path, 1, name)) for name in config.attacks}
    ids = {name: {record.example_id for record in one} for name, one in found.items()}
    assert {name: len(one) for name, one in ids.items()} == {"gcg": 1, "words": 3}
    chosen = choose_to_attack(20, ATTACKED, round_rng(SEED, 1, "attack"))
    assert ids["gcg"] | ids["words"] == {small_task.train[i].example_id for i in chosen}
    assert {record.attack for record in found["words"]} == {"random_token"}
    assert {len(record.iterations) for record in found["words"]} == {3}
    assert (summary["trained_on"], row["pool_size"], row["num_attacked"]) == ("gcg+words", 4, 4)
    assert row["attack_iterations"] == 3  # the most of any
    assert row["attacks"]["words"]["num_attacked"] == 3
    assert row["flops_attack"] == sum(r.flops_algorithmic for one in found.values() for r in one)


@pytest.mark.parametrize(("share", "counts"), [(1.0, (2, 2)), (2.9, (1, 3)), (0.5, (3, 1))])
def test_shares_of_a_round(share, counts):
    attacks = attacking(start=1) | {"b": TrainingAttack(GCG_ATTACK, AttackSchedule(1), share)}
    assert tuple(shares_of(attacks, 4).values()) == counts


def test_a_training_attack_may_ask_a_second_model(run, tmp_path, make_victim):
    asking = dataclasses.replace(GCG_ATTACK, probe_size=2, probe_reduction=4)
    attacks = {"probed": TrainingAttack(asking, AttackSchedule(1))}
    config = dataclasses.replace(CONFIG, attacks=attacks, num_rounds=1)
    assert config.needs_companion and not CONFIG.needs_companion
    with pytest.raises(UserError, match="no companion: gcg with probe sampling asks"):
        run(tmp_path / "without", config)
    _, summary = run(tmp_path / "with", config, companion=make_victim(seed=3))
    (record, *_) = read_records(records_path(tmp_path / "with", 1, "probed"))
    assert record.variant == "probe" and summary["rounds"][0]["num_attacked"] == ATTACKED


def test_every_round_is_evaluated_once_whatever_happens(run, killed_at, tmp_path):
    calls = []

    def evaluate(number, victim, flops):
        calls.append((number, flops, jax.device_get(victim.params)))
        return {"breaks": 0.5 + number}

    with killed_at(Checkpoints, "save", 3):  # within round 1: it went on from before it
        run(tmp_path, LONG, evaluate=evaluate)
    with killed_at(Checkpoints, "save", 5):  # round 1 is evaluated; round 2 is not saved
        run(tmp_path, LONG, evaluate=evaluate)
    assert [call[0] for call in calls] == [0, 1]
    with killed_at(Checkpoints, "save", 2):  # within round 2
        run(tmp_path, LONG, evaluate=evaluate)
    assert [call[0] for call in calls] == [0, 1, 1]  # it skips itself what it did before
    _, summary = run(tmp_path, LONG, evaluate=evaluate)
    assert [call[0] for call in calls] == [0, 1, 1, 2]
    spent = [0, *(row["flops_total"] for row in summary["rounds"])]
    assert [call[1] for call in calls] == [spent[number] for number, *_ in calls]
    assert same_bits(calls[1][2], calls[2][2])
    for number in (1, 2):
        assert same_bits(load_victim(round_folder(tmp_path, number)).params, calls[1 + number][2])
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "breaks" in line]
    expected = [{"step": 6 * n, "round": n, "breaks": 0.5 + n} for n in (0, 1, 2)]
    assert lines == expected


EMBEDDING = dataclasses.replace(
    LONG, attacks={}, embedding=EmbeddingAttack(num_steps=2, num_tokens=3), num_rounds=2
)


@pytest.fixture(scope="module")
def embedded(run, tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("embedded"), []
    trainer = module.Trainer

    def watched_trainer(victim, config, rows, *, seed):
        data.append(rows)
        return trainer(victim, config, rows, seed=seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Trainer", watched_trainer)
        victim, summary = run(folder, EMBEDDING)
    return Run(folder, victim, summary, data, [])


def test_a_round_on_embeddings_keeps_no_texts(embedded, small_task, straight):
    assert embedded.summary["trained_on"] == "embedding"
    assert not (round_folder(embedded.folder, 1) / "attacks").exists()
    texts = {example.text: example for example in small_task.train}
    slots = []
    for row, data in zip(embedded.summary["rounds"], embedded.data, strict=True):
        assert (row["num_adversarial"], row["num_clean"], row["pool_size"]) == (4, 16, 0)
        assert row["attack_iterations"] == 2
        moved = [i for i, free in enumerate(data.free) if free]
        assert len(moved) == 4 and {len(data.free[i]) for i in moved} == {3}
        tokens = sum(len(data.rows[i]) for i in moved)
        # Two passes; two steps, each a forward and a backward pass.
        assert row["flops_attack"] == 2 * 2 * 6 * embedded.victim.num_params * tokens
        assert row["flops_train"] == 2 * 6 * embedded.victim.num_params * data.num_tokens
        for i, ids in enumerate(data.rows):
            rest = [x for place, x in enumerate(ids) if place not in data.free[i]]
            example = texts[embedded.victim.tokenizer.decode([rest])[0]]
            assert data.labels[i] == example.label
            name = f"{example.example_id} (embedding)" if i in moved else str(example.example_id)
            assert data.names[i] == name
        slots += [tuple(data.rows[i][place] for place in data.free[i]) for i in moved]
    assert len(set(slots)) > 4  # other slots in another round


def test_hardened_on_embeddings_it_is_another_model_than_without(run, embedded, tmp_path):
    still = dataclasses.replace(EMBEDDING.pool, max_adversarial_share=0.0)
    victim, _ = run(tmp_path, dataclasses.replace(EMBEDDING, pool=still))
    assert not same_bits(victim.params, embedded.victim.params)


@pytest.mark.parametrize("n", [2, 7])
def test_a_round_on_embeddings_is_resumed(run, embedded, killed_at, tmp_path, n):
    with killed_at(Checkpoints, "save", n):
        run(tmp_path, EMBEDDING)
    victim, summary = run(tmp_path, EMBEDDING)
    assert same_bits(victim.params, embedded.victim.params) and summary == embedded.summary
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    assert metrics == (embedded.folder / "metrics.jsonl").read_bytes()


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
