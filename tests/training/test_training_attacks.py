"""What a model can be trained against: several attacks, one with a second model, embeddings."""

import dataclasses

import pytest

from robustjax.attacks.random_token import RandomToken
from robustjax.errors import UserError
from robustjax.evaluation.records import read_records
from robustjax.runtime.checkpoint import Checkpoints
from robustjax.training import adversarial as module
from robustjax.training.embedding import EmbeddingAttack
from robustjax.training.pool import choose_to_attack, round_rng
from robustjax.training.rounds import TrainingAttack, records_path, round_folder, shares_of
from robustjax.training.schedule import AttackSchedule
from tests.training.conftest import same_bits
from tests.training.hardening import (
    ATTACKED,
    CONFIG,
    GCG_ATTACK,
    LONG,
    SEED,
    Run,
    attacking,
)


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
    _, summary = run(tmp_path / "with", config, companion=make_victim(weights=0.8))
    (record, *_) = read_records(records_path(tmp_path / "with", 1, "probed"))
    assert record.variant == "probe" and summary["rounds"][0]["num_attacked"] == ATTACKED


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


def test_a_round_on_embeddings_keeps_no_texts(embedded, small_task):
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
