"""From nested mappings to settings: every mistake is one message that names the field."""

import copy
import dataclasses

import pytest
from ml_collections import ConfigDict

from robustjax.attacks.gcg import GCG
from robustjax.attacks.random_token import RandomToken
from robustjax.errors import UserError
from robustjax.settings import StudyConfig, build, build_attack, describe
from robustjax.training.schedule import AttackSchedule
from tests import tiny_study


@pytest.fixture
def values():
    return tiny_study.get_config().to_dict()


def change(values, path, value):
    """A copy of nested dicts with one leaf set, or deleted when the value is `...`."""
    changed = copy.deepcopy(values)
    *folders, leaf = path.split("/")
    inner = changed
    for name in folders:
        inner = inner[name]
    if value is ...:
        del inner[leaf]
    else:
        inner[leaf] = value
    return changed


def test_what_is_given_and_what_is_left_out(values):
    config = build(StudyConfig, values, "config")
    point = config.points["nano-27k"]
    assert (config.task.name, config.task.num_train, config.task.seed) == ("word_length", 48, 0)
    assert config.evaluation.attacks["gcg"] == GCG(2, 4, 16, candidate_chunk=16)
    assert config.evaluation.attacks["random_token"] == RandomToken(8, 4, iterations_per_pass=8)
    training = point.advtrain["gcg"].attacks["gcg"]
    assert training.attack == config.evaluation.attacks["gcg"]
    assert (training.schedule, training.share) == (AttackSchedule(start=1, end=2), 1.0)
    assert point.finetune.train.optimizer.learning_rate == 1e-2
    assert point.search.edges == (64, 1024)


def test_describing_undoes_building(values):
    config = build(StudyConfig, values, "config")
    described = describe(config)
    assert described["evaluation"]["attacks"]["gcg"]["name"] == "gcg"
    assert described["points"]["nano-27k"]["finetune"]["train"]["optimizer"]["beta1"] == 0.9
    assert build(StudyConfig, described, "config") == config
    assert build(StudyConfig, ConfigDict(described).to_dict(), "config") == config


def test_a_list_is_a_tuple_and_a_whole_number_is_a_float(values):
    values = change(values, "seeds", [1, 2])
    values = change(values, "evaluation/min_accuracy", 1)
    config = build(StudyConfig, values, "config")
    assert config.seeds == (1, 2)
    assert type(config.evaluation.min_accuracy) is float


POINT = "points/nano-27k"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("task/num_trainx", 3, "config.task.num_trainx: no such field; did you mean num_train?"),
        ("task/zzz", 3, "config.task.zzz: no such field; known: name, num_train"),
        ("task/name", ..., "config.task.name is missing; set it"),
        ("task", ..., "config.task is missing; set it"),
        ("task", 3, "config.task=3 is int, expected TaskConfig"),
        ("task/num_train", "3", "config.task.num_train='3' is str, expected int"),
        ("task/num_train", 3.0, "config.task.num_train=3.0 is float, expected int"),
        ("task/num_train", True, "config.task.num_train=True is bool, expected int"),
        ("task/num_train", None, "config.task.num_train=None is NoneType, expected int"),
        ("workers", 0, "config: workers=0 must be at least 1"),
        (
            "evaluation/transfer/on_the_way/num_examples",
            9,
            r"transfer.on_the_way.num_examples=9 is more than num_examples=8",
        ),
        ("seeds", 3, "config.seeds=3 is int, expected tuple"),
        ("seeds", (0, "1"), r"config.seeds\[1\]='1' is str, expected int"),
        ("seeds", (), r"config: seeds=\(\): give at least one"),
        ("seeds", (1, 1), r"config: seeds=\(1, 1\): give at least one, and none twice"),
        ("seeds", (-1,), "config: seeds: -1 is no seed"),
        ("seeds", (2**32,), "config: seeds: 4294967296 is no seed"),
        ("points", {}, "config: points is empty"),
        ("points/x", 3, r"config.points.x=3 is int, expected PointConfig"),
        (f"{POINT}/finetune/train/epochs", 0, "config.points.nano-27k.finetune.train: epochs=0"),
        (f"{POINT}/finetune/train/edges", (64,), "finetune.train.edges=.* context of 1024"),
        (f"{POINT}/search/edges", (64,), "points.nano-27k.search.edges=.* context of 1024"),
        (f"{POINT}/numerics", {"compute_dtype": "f32"}, "numerics: compute_dtype='f32' is unknown"),
        (f"{POINT}/remat", "all", "nano-27k.remat='all' is unknown; use none, dots, blocks"),
        (f"{POINT}/finetune/objective", "mlm", "objective='mlm' is unknown; use classifier, lm"),
        (f"{POINT}/search/batch_size", 0, "nano-27k.search: batch_size=0"),
        (f"{POINT}/advtrain/gcg/train/edges", (64,), "advtrain.gcg.train.edges=.* of 1024"),
        (
            f"{POINT}/advtrain/gcg/attacks/gcg/schedule/start",
            "1",
            "schedule.start='1' is str, expected int",
        ),
        (f"{POINT}/advtrain/x", {}, "advtrain.x: attacks or embedding: neither is given"),
        (f"{POINT}/advtrain/x", {"attacks": {"a": {}}}, "advtrain.x.attacks.a.attack is missing"),
        (f"{POINT}/advtrain/none", {"embedding": {}}, "advtrain: 'none' is no name"),
        (f"{POINT}/advtrain/gcg/attacks/none", ("gcg",), "attacks.none=.* expected TrainingAttack"),
        (f"{POINT}/advtrain/gcg/embedding", {"epsilon": 0.0}, "embedding: epsilon=0.0 must be"),
        (f"{POINT}/advtrain/gcg/pool/decay", float("nan"), "advtrain.gcg.pool: pool.decay: nan"),
        ("evaluation/attacks", {}, "config.evaluation: attacks is empty"),
        ("evaluation/attacks/gcg", 5, "config.evaluation.attacks.gcg=5 is no attack"),
        ("evaluation/attacks/gcg/name", "x", "gcg.name='x' is no attack; known: gcg, random_token"),
        ("evaluation/attacks/gcg/name", ["gcg"], r"gcg.name=\['gcg'\] is no attack"),
        ("evaluation/attacks/gcg/name", ..., "gcg.name=None is no attack"),
        ("evaluation/attacks/gcg/top_k", 0, "config.evaluation.attacks.gcg: top_k=0"),
        (
            "evaluation/attacks/gcg/probe_size",
            4,
            "config.evaluation: attacks.gcg: gcg with probe sampling asks .* evaluation.companion",
        ),
        (
            "evaluation/attacks/b",
            {"name": "beast"},
            "attacks.b: beast samples tokens from a language model; set evaluation.companion",
        ),
        (
            f"{POINT}/advtrain/gcg/attacks/gcg/attack/probe_size",
            4,
            "points.nano-27k.advtrain.gcg: a training attack asks a second model; set eval",
        ),
        ("evaluation/attacks/..", {"name": "gcg"}, "attacks: '..' is no name"),
        ("evaluation/attacks/a b", {"name": "gcg"}, "attacks: 'a b' is no name"),
        ("evaluation/attacks/none", {"name": "gcg"}, "attacks: 'none' is no name"),
        (
            "evaluation/transfer/on_the_way/attacks",
            ("beast",),
            r"transfer.on_the_way.attacks: 'beast' is not in attacks",
        ),
        (
            "evaluation/transfer/on_the_way/trained_on",
            ("beast",),
            r"transfer.on_the_way.trained_on: 'beast' is not in this study; known: gcg, none",
        ),
        (
            "evaluation/transfer/on_the_way/points",
            ("nano-80k",),
            r"transfer.on_the_way.points: 'nano-80k' is not .*; known: nano-27k",
        ),
        (
            "evaluation/transfer/on_the_way/rounds",
            "some",
            r"transfer.on_the_way: rounds='some' is unknown; use last, all, spaced",
        ),
        (
            "evaluation/sampler",
            {"point": "nano-27k", "train": {}},
            r"evaluation.sampler: train.objective='classifier': a sampler is a language model",
        ),
        (
            "evaluation/sampler",
            {"point": "pythia-14m", "train": {"objective": "lm"}},
            r"evaluation.sampler: point='pythia-14m' has published weights: convert them",
        ),
        ("evaluation/num_examples", 0, "num_examples=0 must be at least 1"),
        ("evaluation/min_accuracy", 1.5, "min_accuracy=1.5 is not a share"),
        ("evaluation/min_accuracy", float("nan"), "min_accuracy=nan is not a share"),
        ("evaluation/seed", -1, "config.evaluation: seed: -1 is no seed"),
        ("mesh/data", 0, "config.mesh: mesh.data: 0"),
    ],
)
def test_mistakes(values, path, value, message):
    with pytest.raises(UserError, match=message) as caught:
        build(StudyConfig, change(values, path, value), "config")
    assert "\n" not in str(caught.value)


def test_workers_have_one_device_each(values):
    values = change(values, "mesh/data", 2)
    build(StudyConfig, values, "config")
    with pytest.raises(UserError, match=r"config: workers=2: .* mesh=\(2, 1, 1\); set workers=1"):
        build(StudyConfig, change(values, "workers", 2), "config")
    values["mesh"], values["attack_mesh"] = {}, {"tensor": 2}
    with pytest.raises(UserError, match=r"workers=2: .* attack_mesh=\(1, 1, 2\); set workers=1"):
        build(StudyConfig, change(values, "workers", 2), "config")


def test_points_that_a_study_cannot_run(values):
    point = values["points"]["nano-27k"]
    with pytest.raises(UserError, match="scaling point 'nano-1t' is unknown; known: nano-27k"):
        build(StudyConfig, change(values, "points/nano-1t", point), "config")
    with pytest.raises(UserError, match=r"nano-27k is trained from scratch, .* pythia-70m has wei"):
        build(StudyConfig, change(values, "points/pythia-70m", point), "config")
    published = change(values, "points", {"pythia-70m": point})
    edges = {"edges": (64, 2048)}
    assert build(StudyConfig, with_edges(published, edges), "config").starts_from_weights(
        "pythia-70m"
    )
    lm = {"objective": "lm", "train": edges}
    for path, value, message in (
        ("points/pythia-70m/pretrain", lm, "points.pythia-70m.pretrain: .* trained already"),
        (
            "evaluation/sampler",
            {"point": "nano-27k", "train": lm},
            "evaluation.sampler has the tokenizer of the task, and pythia-70m another",
        ),
    ):
        with pytest.raises(UserError, match=message):
            build(StudyConfig, with_edges(change(published, path, value), edges), "config")


def with_edges(values, edges):
    """All widths of every point replaced."""

    def replaced(value):
        if not isinstance(value, dict):
            return value
        return {k: edges["edges"] if k == "edges" else replaced(v) for k, v in value.items()}

    return replaced(values)


def test_an_attack_by_itself():
    assert build_attack({"name": "gcg", "num_iterations": 3}, "attack") == GCG(num_iterations=3)
    with pytest.raises(UserError, match="attack.width: no such field"):
        build_attack({"name": "gcg", "width": 3}, "attack")


def test_settings_are_frozen(values):
    config = build(StudyConfig, values, "config")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seeds = (1,)
