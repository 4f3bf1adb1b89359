"""A study whose points start from weights that are there already, in Hugging Face's format."""

import dataclasses
import json

import pytest

from robustjax.data.tasks import load_task
from robustjax.errors import UserError
from robustjax.evaluation.pretraining import PRETRAIN_FLOPS
from robustjax.given_model import find
from robustjax.models.checksum import folder_sha256
from robustjax.models.fresh import fresh_victim, ladder_tokenizer
from robustjax.models.hf_save import save_hugging_face
from robustjax.models.layers import Numerics
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh
from robustjax.settings import StudyConfig, build
from robustjax.study import run_study
from robustjax.study_plan import Planner
from tests import tiny_study

POINT, WHO = "nano-27k", "nano-27k-s0"


def write_model(folder, point=POINT, texts=("It rains in the mountains",)):
    """A language model of a point's shape."""
    victim = fresh_victim(
        point,
        ladder_tokenizer(list(texts) * 50),
        num_classes=2,
        seed=5,
        mesh=make_mesh(MeshConfig()),
        rules=AxisRules(),
        numerics=Numerics(),
        head="lm",
    )
    save_hugging_face(folder, victim.definition, victim.params, victim.tokenizer)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("base") / "model")


def config_for(paths):
    values = tiny_study.get_config(f"rounds=1,points={'+'.join(paths)}").to_dict()
    for point, path in paths.items():
        values["points"][point]["path"] = str(path)
    return build(StudyConfig, values, "config")


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_clean_training_starts_from_the_given_weights(base, tmp_path):
    config = config_for({POINT: base})
    run_study(config, tmp_path / "study")
    summary = read(tmp_path / "study" / "finetune" / WHO / "summary.json")
    assert summary["started_from"] == folder_sha256(base, is_ours=False)
    assert summary["pretrain_flops"] is None  # nothing is known of a nano model's
    given = find(dataclasses.replace(_model(), path=str(base)), "classifier", 2)
    tokenizer = read(tmp_path / "study" / "tokenizer" / "stage.json")["config"]
    assert tokenizer["fingerprint"] == given.tokenizer.fingerprint
    attack = read(tmp_path / "study" / "attack" / WHO / "gcg-r1" / "gcg" / "summary.json")
    assert attack["num_attacked"] == 8 and attack["pretrain_flops"] is None


def _model():
    from robustjax.given_model import ModelConfig

    return ModelConfig()


def test_other_weights_are_another_study(base, tmp_path):
    def hashes(folder):
        config = config_for({POINT: folder})
        planner = Planner(config, load_task(config.task), tmp_path / "x")
        return {stage.name: stage.stage.config_hash for stage in planner.plan()}

    again = write_model(tmp_path / "again")
    other = write_model(tmp_path / "other", texts=("Another text with other words",))
    assert hashes(base) == hashes(again)
    assert not set(hashes(base).values()) & set(hashes(other).values())


def test_points_of_different_tokenizers_are_refused(base, tmp_path):
    other = write_model(tmp_path / "other", "nano-80k", texts=("Another text with other words",))
    config = config_for({POINT: base, "nano-80k": other})
    with pytest.raises(UserError, match="nano-80k has another tokenizer than nano-27k"):
        Planner(config, load_task(config.task), tmp_path / "x").plan()


def test_a_model_of_another_shape_is_refused(base, tmp_path):
    config = config_for({"nano-80k": base})
    with pytest.raises(UserError, match=r"points.nano-80k.point=nano-80k has 2 layers of width 48"):
        Planner(config, load_task(config.task), tmp_path / "x").plan()


def test_published_weights_are_looked_for_by_the_point_s_name(tmp_path, monkeypatch):
    asked = []

    def refuse(name, revision, **kwargs):
        asked.append(name)
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    values = tiny_study.get_config("rounds=1").to_dict()
    point = values["points"].pop(POINT)
    text = json.dumps(point).replace("[64, 1024]", "[64, 2048]")
    values["points"]["pythia-14m"] = json.loads(text)
    config = build(StudyConfig, values, "config")
    with pytest.raises(UserError, match="EleutherAI/pythia-14m' .* cannot be downloaded"):
        Planner(config, load_task(config.task), tmp_path).plan()
    assert asked == ["EleutherAI/pythia-14m"] and "pythia-14m" in PRETRAIN_FLOPS
