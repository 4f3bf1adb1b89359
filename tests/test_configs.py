"""Every config that is shipped builds, with every argument it takes."""

import dataclasses
import importlib
from pathlib import Path

import pytest

import configs.attack
import configs.study
from configs.common import parse_arg
from configs.points import NANO, PUBLISHED_POINTS, ROUNDS
from robustjax.attacks.search import ATTACKS
from robustjax.command_flags import parse_config_and_workdir
from robustjax.commands.advtrain import AdvtrainRunConfig
from robustjax.commands.attack import AttackRunConfig
from robustjax.commands.finetune import FinetuneRunConfig
from robustjax.data.tasks import TASKS
from robustjax.evaluation.transfer import cells, spaced_rounds
from robustjax.models import registry
from robustjax.models.layers import Numerics
from robustjax.planning.chips import parse_slice
from robustjax.runtime.mesh import MeshConfig
from robustjax.settings import StudyConfig, build, describe
from robustjax.training.embedding import EmbeddingAttack
from robustjax.training.schedule import AttackSchedule

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if "def get_config" in path.read_text(encoding="utf-8")
)


SETTINGS = {
    "smoke": StudyConfig,
    "hardening": StudyConfig,
    "transfer": StudyConfig,
    "study": StudyConfig,
    "finetune": FinetuneRunConfig,
    "advtrain": AdvtrainRunConfig,
    "attack": AttackRunConfig,
}


def build_config(name, arg):
    values = importlib.import_module(f"configs.{name}").get_config(arg).to_dict()
    return build(SETTINGS[name], values, "config")


def build_study(name, arg):
    config = build_config(name, arg)
    assert isinstance(config, StudyConfig)
    return config


def test_there_is_something_to_check():
    assert "smoke" in EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("arg", [None, *(f"task={task}" for task in TASKS), "seed=3"])
def test_every_config_builds(name, arg):
    config = build_config(name, arg)
    if arg and arg.startswith("task="):
        assert config.task.name == arg.removeprefix("task=")
    if arg == "seed=3":
        seeds = config.seeds if isinstance(config, StudyConfig) else (config.seed,)
        assert seeds[0] == 3


@pytest.mark.parametrize("name", [name for name in SETTINGS if SETTINGS[name] is StudyConfig])
def test_every_field_of_a_study_is_there_to_be_overridden(name):
    values = importlib.import_module(f"configs.{name}").get_config().to_dict()
    assert values == describe(build(StudyConfig, values, "config"))


def overridden(name, *flags):
    config = f"--config={ROOT / 'configs' / name}"
    values, _ = parse_config_and_workdir([config, *flags, "--workdir=w"])
    return build(StudyConfig, values, "config")


def test_fields_that_a_config_leaves_alone_can_be_overridden():
    of = "--config.points.pythia-1.4b"
    flags = {
        "numerics.param_dtype": "bfloat16",
        "remat": "blocks",
        "search.count_padding": "True",
        "finetune.keep_checkpoints": "3",
        "advtrain.gcg.checkpoint_every": "7",
        "advtrain.gcg.attacks.gcg.attack.num_tokens": "5",
    }
    argument = "study.py:point=pythia-1.4b,attack=gcg"
    study = overridden(argument, *(f"{of}.{name}={value}" for name, value in flags.items()))
    point = study.points["pythia-1.4b"]
    assert (point.numerics, point.remat) == (Numerics(param_dtype="bfloat16"), "blocks")
    assert point.search.count_padding and not point.advtrain["gcg"].search.count_padding
    assert point.finetune.keep_checkpoints == 3
    assert point.advtrain["gcg"].checkpoint_every == 7
    assert point.advtrain["gcg"].attacks["gcg"].attack.num_tokens == 5
    assert study.evaluation.attacks["gcg"].num_tokens == 10
    demo = overridden("smoke.py", "--config.evaluation.attacks.gcg.candidate_chunk=16")
    assert demo.evaluation.attacks["gcg"].candidate_chunk == 16


@pytest.mark.parametrize("name", ATTACKS)
def test_any_attack_by_name(name):
    config = build_config("attack", f"attack={name},point=pythia-70m")
    assert config.attack.name == name
    assert config.model.point == "pythia-70m"
    values = configs.attack.get_config(f"attack={name}").to_dict()["attack"]
    fields = {field.name for field in dataclasses.fields(ATTACKS[name])}
    assert values.keys() == fields | {"name"}, "a field that is not there cannot be overridden"


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("point", ["", ",point=nano-27k", ",point=pythia-70m"])
def test_any_training_attack_by_name(name, point):
    config = build_config("advtrain", f"attack={name}{point}")
    assert config.advtrain.attacks[name].attack.name == name
    assert config.advtrain.embedding is None and config.advtrain.label == name


def test_training_attacks_together_and_on_embeddings():
    config = build_config("advtrain", "attack=gcg+random_token,point=pythia-70m")
    assert list(config.advtrain.attacks) == ["gcg", "random_token"]
    assert config.advtrain.num_rounds == 163  # the longer of the two
    attacks = config.advtrain.attacks
    assert attacks["gcg"].schedule == AttackSchedule(8, 64)
    assert attacks["random_token"].schedule == AttackSchedule(1024, 2048)
    config = build_config("advtrain", "attack=embedding,point=nano-27k")
    assert config.advtrain.embedding == EmbeddingAttack() and not config.advtrain.attacks


def test_published_points_are_hardened_as_in_the_paper():
    config = build_config("advtrain", "point=pythia-410m,task=imdb").advtrain
    assert (config.num_rounds, config.examples_per_round) == (21, 200)
    assert dataclasses.astuple(config.pool) == (1000, 0.8, 0.5, 0.005)
    assert (config.train.epochs, config.train.batch_size) == (1, 8)
    optimizer = config.train.optimizer
    assert (optimizer.name, optimizer.learning_rate) == ("adafactor", 1e-5)
    assert optimizer.schedule == "constant"
    # The same compute for every size, within the limits of the paper.
    uncapped = [953, 413, 163, 59, 21, 8, 6, 3, 1, 1]
    points = [name for name in ROUNDS if name.startswith("pythia")]
    for point, wanted in zip(points, uncapped, strict=True):
        for attack, most in {"gcg": 60, "random_token": 250}.items():
            assert ROUNDS[point][attack] == min(max(wanted, 5), most)
            built = build_config("advtrain", f"point={point},attack={attack}")
            assert built.advtrain.num_rounds == ROUNDS[point][attack]
    assert set(ROUNDS) <= set(registry.POINTS)


def test_the_ladder_trains_with_its_own_settings():
    for name, row in NANO.items():
        config = build_config("finetune", f"point={name}")
        assert config.finetune.train.optimizer.learning_rate == row["finetune"]["learning_rate"]
        assert config.task.instruction == build_study("smoke", None).task.instruction
    published = build_config("finetune", "point=pythia-70m")
    assert published.finetune.train.optimizer.learning_rate == 1e-5
    assert published.task.instruction == ""


def test_a_part_of_the_ladder():
    whole = build_study("smoke", None)
    assert len(whole.points) >= 5
    names = sorted(whole.points)[:2]
    assert sorted(build_study("smoke", f"points={'+'.join(names)}").points) == names


def test_the_demo_asks_what_it_promises():
    config = build_study("smoke", None)
    gcg = config.evaluation.attacks["gcg"]
    assert (gcg.num_tokens, gcg.num_candidates) == (10, 128) and gcg.num_iterations >= 10
    assert config.evaluation.num_examples >= 64 and config.evaluation.min_accuracy >= 0.9
    for point in config.points.values():
        assert point.advtrain["gcg"].num_rounds >= 3
        assert {run.label for run in point.advtrain.values()} == {"gcg", "random_token"}


@pytest.mark.parametrize("task", TASKS)
def test_the_ladder_can_be_pretrained(task):
    with_it, without = (build_study("smoke", f"task={task}{arg}") for arg in (",pretrain", ""))
    for name, point in with_it.points.items():
        assert point.pretrain.objective == "lm"
        assert dataclasses.replace(point, pretrain=None) == without.points[name]


def test_arguments_have_types():
    defaults = {"task": "spam", "seed": 0, "rate": 0.5, "fast": False}
    assert parse_arg(None, **defaults) == parse_arg("", **defaults) == defaults
    given = parse_arg("task=a=b,seed=7,rate=1,fast", **defaults)
    assert given == {"task": "a=b", "seed": 7, "rate": 1.0, "fast": True}
    for arg, message in {
        "sed=1": "argument 'sed' is unknown; known: task, seed, rate, fast",
        "seed=x": "argument seed='x' must be of type int",
        "fast=yes": "argument fast='yes' must be True or False",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_arg(arg, **defaults)


@pytest.mark.parametrize(("point", "rounds"), [("pythia-70m", (60, 163)), ("qwen2.5-3b", (10, 10))])
def test_the_paper_s_plan_of_a_scaling_point(point, rounds):
    config = build_study("study", f"point={point},task=imdb")
    settings = config.points[point]
    assert tuple(run.num_rounds for run in settings.advtrain.values()) == rounds
    assert config.seeds == (0, 1, 2, 3, 4) and config.starts_from_weights(point)
    evaluation = config.evaluation

    def planned(trained_on, count):
        named = {"point": point, "seed": 0, "trained_on": trained_on, "num_rounds": count}
        found = cells(evaluation.transfer, evaluation.attacks, evaluation.num_examples, **named)
        return [(cell.round, cell.label, cell.attack.num_iterations) for cell in found]

    assert planned("none", 0) == [(0, "gcg", 10), (0, "random_token", 1280)]
    found = planned("gcg", rounds[0])
    spaced = spaced_rounds(rounds[0])
    assert [one for one in found if one[0] == rounds[0]] == [
        (rounds[0], label, 128) for label in ("gcg", "gcg@0.9", "gcg@0")
    ]
    assert [one[:2] for one in found if one[0] != rounds[0]] == [
        (number, label) for number in spaced[:-1] for label in ("gcg", "gcg@0.9")
    ]
    with_beast = build_study("study", f"point={point},sampler=models/lm").evaluation
    assert with_beast.companion == "models/lm" and "beast" in with_beast.attacks


def test_two_studies_of_one_training_attack_each_are_the_whole_one():
    """No cell is in both, and none is missing."""
    point = "pythia-1.4b"

    def planned(arg):
        config = build_study("study", f"point={point},sampler=models/lm{arg}")
        trainings = {name: run.num_rounds for name, run in config.points[point].advtrain.items()}
        evaluation, found = config.evaluation, []
        for name, rounds in {"none": 0, **trainings}.items():
            named = {"point": point, "seed": 0, "trained_on": name, "num_rounds": rounds}
            these = cells(evaluation.transfer, evaluation.attacks, evaluation.num_examples, **named)
            found += [(name, cell.round, cell.label, cell.attack) for cell in these]
        return found

    whole, *parts = map(planned, ("", ",attack=gcg", ",attack=random_token"))
    assert sorted(map(str, parts[0] + parts[1])) == sorted(map(str, whole))
    assert len(whole) == len({str(cell) for cell in whole}) > 10
    with pytest.raises(ValueError, match="attack='beast' must be one of gcg, random_token"):
        configs.study.get_config("attack=beast")


def test_the_sweep_is_the_papers_study():
    arguments = list(configs.study.sweep())
    assert len(arguments) == 10 * 4 * 2 * 5 == len(set(arguments))
    for argument in (arguments[0], arguments[-1]):
        config = build_study("study", argument)
        assert len(config.seeds) == len(config.points) == 1


@pytest.mark.parametrize("point", PUBLISHED_POINTS)
def test_a_published_point_runs_as_its_row_says(point):
    row = PUBLISHED_POINTS[point]
    chosen = parse_slice(row["topology"])
    attack = build_config("attack", f"point={point}")
    hardening = build_config("advtrain", f"point={point}")
    training = build_config("finetune", f"point={point}")
    shape = registry.scaling_point(point).config
    of_training = MeshConfig(-1, row["fsdp"], row["train_tensor"])
    assert attack.mesh == MeshConfig(-1, 1, row["tensor"])
    assert hardening.mesh == training.mesh == of_training
    for config in (attack, hardening, training):
        assert config.topology == row["topology"]
        assert chosen.chips % (config.mesh.fsdp * config.mesh.tensor) == 0
        # Whole heads on every device, and whole rows of a batch.
        assert shape.heads % config.mesh.tensor == 0 == shape.key_value_heads % config.mesh.tensor
    assert row["batch_size"] % (chosen.chips // row["tensor"]) == 0
    assert attack.attack.candidate_chunk == row["candidate_chunk"]
    assert attack.search.batch_size == row["batch_size"]
    assert attack.model.numerics == Numerics(**row["numerics"])
    assert hardening.model.numerics == training.model.numerics == Numerics(**row["train_numerics"])
    assert training.model.numerics.param_dtype == "float32"
    assert training.finetune.train.microbatch_size == row["microbatch_size"]


@pytest.mark.parametrize("point", PUBLISHED_POINTS)
def test_a_study_of_a_published_point_runs_as_its_row_says(point):
    row = PUBLISHED_POINTS[point]
    study = build_study("study", f"point={point}")
    settings = study.points[point]
    assert study.mesh == MeshConfig(-1, row["fsdp"], row["train_tensor"])
    assert (study.attack_mesh or study.mesh) == MeshConfig(-1, 1, row["tensor"])
    assert settings.numerics == Numerics(**row["train_numerics"])
    assert (settings.attack_numerics or settings.numerics) == Numerics(**row["numerics"])
    # One override is enough where there is one layout.
    assert study.attack_mesh != study.mesh and settings.attack_numerics != settings.numerics
    assert settings.remat == row["remat"]
    runs = settings.advtrain
    for train in (settings.finetune.train, *(run.train for run in runs.values())):
        assert train.microbatch_size == row["microbatch_size"]
    for search in (settings.search, *(run.search for run in runs.values())):
        assert search.batch_size == row["batch_size"]
    for attack in (study.evaluation.attacks["gcg"], runs["gcg"].attacks["gcg"].attack):
        assert attack.candidate_chunk == row["candidate_chunk"]


def test_a_study_of_pythia_12b_is_split_over_its_slice_and_computes_in_bfloat16():
    study = build_study("study", "point=pythia-12b,task=imdb,attack=gcg,seed=0,seeds=1")
    assert study.mesh == MeshConfig(data=-1, fsdp=4, tensor=4)
    assert study.attack_mesh == MeshConfig(data=-1, fsdp=1, tensor=4)
    trained = study.points["pythia-12b"].numerics
    attacked = study.points["pythia-12b"].attack_numerics
    assert (trained.param_dtype, attacked.param_dtype) == ("float32", "bfloat16")
    assert trained.compute_dtype == attacked.compute_dtype == "bfloat16"
    assert trained.matmul_precision == "default"


def test_a_study_of_a_model_without_a_row_is_for_one_device():
    study = build_study("study", "point=nano-27k,task=word_length")
    settings = study.points["nano-27k"]
    assert (study.mesh, study.attack_mesh) == (MeshConfig(), None)
    assert (settings.numerics, settings.attack_numerics) == (Numerics(), None)


def test_every_published_point_has_a_row():
    assert set(PUBLISHED_POINTS) == set(ROUNDS)
