"""Chip-hours of jobs: their work as the program itself counts it, times figures of `plan`."""

import json

import pytest

import configs.advtrain
import configs.attack
import configs.finetune
import configs.study
from launch.chip_hours import Cost, Plans, read_plans, tpu_type
from launch.job_work import JobWork, work_of
from robustjax.evaluation.transfer import cells
from robustjax.settings import StudyConfig, build


def plan_row(point="pythia-14m", topology="v5e:2x4", chips=8):
    """As benchmarks/results/plans.json has it, with the figures that are read."""

    def plan(**bounds):
        programs = {name: {"seconds": {"bound": bound}} for name, bound in bounds.items()}
        return {"topology": topology, "chips": chips, "programs": programs}

    attack = plan(encode_prefix=9.0, propose=0.5, score_replacements=1.28)
    sizes = {"batch_size": 16, "microbatch_size": 8}
    return {"point": point, "attack": attack, "training": plan(train_step=2.0)} | sizes


@pytest.mark.parametrize("attack", ["gcg", "random_token", "gcg+random_token"])
@pytest.mark.parametrize("point", ["pythia-14m", "pythia-12b"])
def test_a_study_is_counted_as_the_study_counts_itself(point, attack):
    values = configs.study.get_config(f"point={point},attack={attack},seeds=2").to_dict()
    work = work_of("study", values)
    config = build(StudyConfig, values, "config")
    training, evaluation = config.points[point].advtrain, config.evaluation
    expected, rounds = {}, {"none": 0} | {name: run.num_rounds for name, run in training.items()}
    for name, count in rounds.items():
        named = {"point": point, "seed": 0, "trained_on": name, "num_rounds": count}
        for cell in cells(
            evaluation.transfer, evaluation.attacks, evaluation.num_examples, **named
        ):
            key = cell.label.partition("@")[0]
            expected[key] = expected.get(key, 0) + cell.attack.num_iterations * cell.num_examples
    texts = config.task.num_train * 3
    for name, run in training.items():
        schedule = run.attacks[name].schedule
        iterations = [schedule.iterations(index, run.num_rounds) for index in range(run.num_rounds)]
        expected[name] = expected.get(name, 0) + sum(iterations) * run.examples_per_round
        texts += run.num_rounds * run.pool.max_examples
    assert work.point == point and work.texts == 2 * texts
    # Fractions of an iteration are cut off in every round.
    assert work.iterations == pytest.approx({k: 2 * v for k, v in expected.items()}, rel=0.01)


def test_other_commands_are_counted():
    of = "point=pythia-70m,task=imdb"
    finetune = configs.finetune.get_config(of).to_dict()
    assert work_of("finetune", finetune) == JobWork("pythia-70m", texts=60_000.0)
    attack = configs.attack.get_config(f"{of},attack=random_token").to_dict()
    assert work_of("attack", attack).iterations == {"random_token": 256.0 * 64}
    hardening = work_of("advtrain", configs.advtrain.get_config(f"{of},attack=gcg").to_dict())
    assert hardening.texts == 60 * 1000
    assert hardening.iterations == {"gcg": 60 * 36.0 * 200 + 61 * 10 * 64}


def test_what_a_config_does_not_tell_has_no_figure():
    several = configs.study.get_config().to_dict()
    several["points"] = {"a": {}, "b": {}}
    assert work_of("study", several) is None
    files = configs.finetune.get_config("point=pythia-14m,task=jsonl").to_dict()
    assert work_of("finetune", files) is None
    plans = Plans([plan_row()])
    assert plans.cost(None) is None
    assert plans.cost(JobWork("pythia-31m", 1.0)) is None
    assert plans.cost(JobWork("pythia-14m", 1.0, {"beast": 1.0})) is None


def test_work_times_figures():
    plans = Plans([plan_row()])
    texts = plans.cost(JobWork("pythia-14m", texts=3600.0))
    assert texts == Cost("v5litepod-8", 8, pytest.approx(8 * 2.0 / 8))
    gcg = plans.cost(JobWork("pythia-14m", iterations={"gcg": 3600.0}))
    assert gcg.chip_hours == pytest.approx(8 * (0.5 + 1.28) / 16)
    one_text = plans.cost(JobWork("pythia-14m", iterations={"random_token": 3600.0}))
    assert one_text.chip_hours == pytest.approx(8 * 1.28 / 128 / 16)
    both = JobWork("pythia-14m", 3600.0, {"gcg": 3600.0, "random_token": 3600.0})
    parts = texts.chip_hours + gcg.chip_hours + one_text.chip_hours
    assert plans.cost(both).chip_hours == pytest.approx(parts)


@pytest.mark.parametrize(
    ("topology", "chips", "name"),
    [
        ("v5e:4x4", 16, "v5litepod-16"),
        ("v6e:2x4", 8, "v6e-8"),
        ("v5p:2x2x1", 4, "v5p-8"),
        ("v4:2x2x4", 16, "v4-32"),
    ],
)
def test_slices_have_the_names_of_gcloud(topology, chips, name):
    assert tpu_type(topology, chips) == name


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [{"point": "a"}]}', '{"rows": [3]}'])
def test_a_table_that_is_none_is_refused(tmp_path, text):
    path = tmp_path / "plans.json"
    with pytest.raises(SystemExit, match="no such file"):
        read_plans(path)
    path.write_text(text)
    with pytest.raises(SystemExit, match="not a table of plans"):
        read_plans(path)
    path.write_text(json.dumps({"rows": [plan_row()]}))
    assert read_plans(path).cost(JobWork("pythia-14m")) == Cost("v5litepod-8", 8, 0.0)
