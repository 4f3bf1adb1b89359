"""A study whose points are trained as language models first: what it leaves, what stands on it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from robustjax import load_victim, stage_work, study_work
from robustjax.analysis.load import load_study
from robustjax.data.tasks import load_task
from robustjax.errors import UserError
from robustjax.evaluation.perplexity import perplexity
from robustjax.models import registry
from robustjax.models.checksum import folder_sha256
from robustjax.settings import StudyConfig, build
from robustjax.study_plan import Planner
from tests import tiny_study

POINT, WHO = "nano-27k", "nano-27k-s0"
ATTACK = f"attack/{WHO}/none-r0/random_token"


def settings(arg="pretrain", **pretrain):
    """The tiny study; fields of its pretraining are set by name."""
    values = tiny_study.get_config(arg).to_dict()
    if pretrain:
        values["points"][POINT]["pretrain"] |= pretrain
    return build(StudyConfig, values, "config")


def plan(config, workdir):
    planner = Planner(config, load_task(config.task), workdir)
    return {planned.name: planned for planned in planner.plan()}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("pretrained")


@pytest.fixture(scope="module")
def started_from(workdir):
    """The victim that clean training was given; the study is run up to there."""
    given = []
    original = stage_work.finetune

    def note(victim, *args, **kwargs):
        given.append(victim)
        return original(victim, *args, **kwargs)

    stages = plan(settings(), workdir)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stage_work, "finetune", note)
        for name in ("tokenizer", f"pretrain/{WHO}", f"finetune/{WHO}"):
            stages[name].run()
    return given[-1]


def read(path):
    return json.loads(path.read_text())


def test_pretraining_comes_before_the_rest_of_its_point(tmp_path):
    stages = plan(settings(), tmp_path)
    assert list(stages)[:3] == ["tokenizer", f"pretrain/{WHO}", f"finetune/{WHO}"]
    assert stages[f"pretrain/{WHO}"].job == stages[f"finetune/{WHO}"].job
    without = list(plan(settings(arg=None), tmp_path))
    assert without == [name for name in stages if not name.startswith("pretrain/")]


def test_its_model_is_a_language_model(started_from, workdir):
    folder = workdir / "pretrain" / WHO
    victim, summary = load_victim(folder, head="lm"), read(folder / "summary.json")
    validation = load_task(settings().task).split("validation")
    found = perplexity(victim, [example.text for example in validation])
    assert summary["validation_perplexity"] == pytest.approx(found, rel=1e-6)
    assert (summary["kind"], summary["point"], summary["num_train"]) == ("pretrain", POINT, 48)
    assert summary["num_params"] == victim.num_params
    assert summary["started_from"] == stage_work.FROM_SCRATCH


def test_clean_training_starts_from_its_weights_with_a_fresh_head(started_from, workdir):
    base = load_victim(workdir / "pretrain" / WHO, head="lm")
    assert started_from.definition.head == "classifier"
    assert started_from.num_params == registry.scaling_point(POINT).classifier_params
    for part in ("embed", "blocks", "final_norm"):
        jax.tree.map(np.testing.assert_array_equal, started_from.params[part], base.params[part])
    head = np.asarray(started_from.params["head"]["kernel"])
    assert head.shape == (24, 2) and 0.01 < head.std() < 0.03
    summary = read(workdir / "finetune" / WHO / "summary.json")
    model = workdir / "pretrain" / WHO / "model"
    assert summary["started_from"] == folder_sha256(model, is_ours=True)


def test_pretraining_is_what_an_attack_s_compute_is_compared_with(
    started_from, workdir, monkeypatch
):
    past = []
    monkeypatch.setattr(study_work, "attack_into", lambda *args, **kwargs: past.append(args[3]))
    plan(settings(), workdir)[ATTACK].execute(workdir / ATTACK)
    pretrained = read(workdir / "pretrain" / WHO / "summary.json")["flops_algorithmic"]
    trained = read(workdir / "finetune" / WHO / "summary.json")["flops_algorithmic"]
    assert past[0].pretrain_flops == pretrained != trained


def test_a_report_reads_past_it(started_from, workdir):
    study = load_study([workdir])
    assert (len(study.finetunes), study.incomplete) == (1, ())


def test_a_finished_stage_is_recognised_and_one_of_other_settings_refused(started_from, workdir):
    done = {name for name, one in plan(settings(), workdir).items() if one.stage.is_done()}
    assert done == {"tokenizer", f"pretrain/{WHO}", f"finetune/{WHO}"}
    stages = plan(settings(checkpoint_every=7), workdir)
    assert {name for name, one in stages.items() if one.stage.is_done()} == done
    with pytest.raises(UserError, match="pretrain.num_train: 0 there, 40 here"):
        plan(settings(num_train=40), workdir)


def test_what_stands_on_it_has_it_in_its_hash(tmp_path):
    with_it, longer, without = (
        {name: one.stage.config_hash for name, one in plan(config, tmp_path).items()}
        for config in (settings(), settings(num_train=40), settings(arg=None))
    )
    assert with_it["tokenizer"] == longer["tokenizer"] == without["tokenizer"]
    for name in without:
        if name != "tokenizer":
            assert len({with_it[name], longer[name], without[name]}) == 3, name


def test_without_it_the_hashed_leaves_are_those_of_clean_training_alone(tmp_path):
    """A field that a study never changes is no leaf: workdirs of before stay valid."""
    stages = plan(settings(arg=None), tmp_path)
    trained = stages[f"finetune/{WHO}"]
    names = {"task", "upstream", "point", "seed", "numerics", "remat", "finetune"}
    assert trained.leaves.keys() == names
    assert trained.leaves["finetune"].keys() == {"train", "num_train"}
    assert trained.leaves["upstream"] == stages["tokenizer"].stage.config_hash


def test_settings_that_do_not_fit_the_data_name_it(tmp_path):
    with pytest.raises(UserError, match=f"points.{POINT}.pretrain: num_train=49 is more than"):
        plan(settings(num_train=49), tmp_path)


def test_edges_must_reach(tmp_path):
    config = settings()
    train = dataclasses.replace(config.points[POINT].finetune.train, edges=(64,))
    with pytest.raises(UserError, match=f"points.{POINT}.pretrain.train.edges=.* of 1024"):
        settings(train=dataclasses.asdict(train))


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [("pretrain", "classifier", "lm"), ("finetune", "lm", "classifier")],
)
def test_each_stage_has_its_own_objective(field, wrong, right):
    values = tiny_study.get_config("pretrain").to_dict()
    values["points"][POINT][field]["objective"] = wrong
    message = f"config.points.{POINT}: {field}.objective='{wrong}': .* set it to '{right}'"
    with pytest.raises(UserError, match=message):
        build(StudyConfig, values, "config")
