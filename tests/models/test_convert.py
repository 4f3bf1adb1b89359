"""Conversion: no bit is lost on the way, an interruption costs little, and damage does not pass."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from robustjax import load_victim
from robustjax.cli import main
from robustjax.errors import UserError
from robustjax.models import convert as convert_module
from robustjax.models import hf_save, model_folder
from robustjax.models.convert import convert
from robustjax.models.layers import Numerics
from robustjax.models.model_folder import load_model, save_model
from robustjax.models.transformer import layer_params
from robustjax.models.victim import Victim, param_shardings
from robustjax.runtime.checkpoint import load_params
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh
from tests.models.folders import SHARD, TEXTS, record_of, tensors_of
from tests.models.tiny import CONFIGS, define, make_params


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


def written_at(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("family", "head", "dtype"),
    [
        ("neox", "classifier", "float32"),
        ("neox", "lm", "float16"),
        ("qwen2", "lm", "float32"),
        ("qwen2", "classifier", "bfloat16"),
        ("llama", "lm", "bfloat16"),
    ],
)
def test_to_ours_and_back(family, head, dtype, make_folder, tmp_path):
    folder = make_folder(family, dtype, head=head, num_classes=3)

    ours = convert(folder, tmp_path / "ours")
    back = convert(ours, tmp_path / "back", max_shard_bytes=SHARD)

    assert tensors_of(back) == tensors_of(folder)
    assert len(list(back.glob("*.safetensors"))) > 1
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (back / name).read_bytes() == (folder / name).read_bytes()
    assert record_of(ours)["verified"] and record_of(back)["verified"]
    assert record_of(ours)["weights_sha256"] == record_of(back)["weights_sha256"]


@pytest.mark.parametrize("scanned", [False, True])
def test_to_hugging_face_and_back(scanned, tmp_path, mesh, tiny_tokenizer):
    config = dataclasses.replace(CONFIGS["qwen2"], vocab=tiny_tokenizer.num_ids)
    definition = define(config, scanned=scanned)
    params = make_params(definition)
    first = tmp_path / "first"
    save_model(first, Victim("mine", "mine", definition, params, tiny_tokenizer, mesh, AxisRules()))

    hugging_face = convert(first, tmp_path / "hf")
    second = convert(hugging_face, tmp_path / "second")

    assert record_of(second)["weights_sha256"] == record_of(hugging_face)["weights_sha256"]
    one, other = (load_model(folder, mesh, AxisRules()) for folder in (first, second))
    assert one.definition == dataclasses.replace(other.definition, scanned=scanned)
    for name in ("embed", "final_norm", "head"):
        jax.tree.map(np.testing.assert_array_equal, one.params[name], other.params[name])
    for index in range(config.layers):
        jax.tree.map(
            np.testing.assert_array_equal,
            *(layer_params(victim.definition, victim.params, index) for victim in (one, other)),
        )


def test_other_number_formats_are_read_as_such(tmp_path, tiny_tokenizer, monkeypatch):
    """No device has the weights in both, which would be too much of a large model."""
    mesh = make_mesh(MeshConfig(1, 2, 2))
    definition = define(dataclasses.replace(CONFIGS["qwen2"], vocab=tiny_tokenizer.num_ids))
    params = make_params(definition)
    model = Victim("mine", "mine", definition, params, tiny_tokenizer, mesh, AxisRules())
    save_model(tmp_path, model)
    expected = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
    kinds = set()

    def watched(*given):
        params, metadata = load_params(*given)
        kinds.update(leaf.dtype.name for leaf in jax.tree.leaves(params))
        return params, metadata

    monkeypatch.setattr(model_folder, "load_params", watched)
    loaded = load_model(tmp_path, mesh, AxisRules(), Numerics(param_dtype="bfloat16"))
    assert kinds == {"bfloat16"}
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    shardings = param_shardings(loaded.definition, mesh, AxisRules())
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded.params) == shardings


def test_mixed_types_become_the_type_that_holds_them_all(make_folder, tmp_path):
    folder = make_folder(dtype="bfloat16")
    path = next(iter(sorted(folder.glob("*.safetensors"))))
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name] = tensors[name].astype(np.float32) + 2.0**-20
    save_file(tensors, path)

    back = convert(convert(folder, tmp_path / "ours"), tmp_path / "back")

    found = load_file(back / "model.safetensors")
    assert {str(one.dtype) for one in found.values()} == {"float32"}
    np.testing.assert_array_equal(found[name], tensors[name])


def test_buffers_do_not_decide_the_type(make_folder, tmp_path):
    folder = make_folder(dtype="float16")
    expected = tensors_of(folder)
    path = min(folder.glob("*.safetensors"))
    tensors, name = load_file(path), "gpt_neox.layers.0.attention.rotary_emb.inv_freq"
    save_file(tensors | {name: np.ones(4, np.float32)}, path)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][name] = path.name
    index.write_text(json.dumps(content))

    back = convert(convert(folder, tmp_path / "ours"), tmp_path / "back")

    assert tensors_of(back) == expected


def test_what_would_lose_bits_is_refused(make_folder, tmp_path):
    folder = make_folder()
    path = min(folder.glob("*.safetensors"))
    save_file({name: one.astype(np.float64) for name, one in load_file(path).items()}, path)

    with pytest.raises(UserError, match="F64, which would lose bits"):
        convert(folder, tmp_path / "ours")


def test_a_source_that_is_no_model_leaves_no_target(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "no model"):
        with pytest.raises(UserError):
            convert(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_base_model_gets_a_head_when_asked(make_folder, tmp_path):
    folder = make_folder(head="lm")

    first, again, other = (
        convert(folder, tmp_path / name, num_classes=3, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )

    assert load_victim(first, num_classes=3).logits(TEXTS).shape == (2, 3)
    sums = [record_of(one)["weights_sha256"] for one in (first, again, other)]
    assert sums[0] == sums[1] != sums[2]


def test_a_model_without_any_head(make_folder, tmp_path):
    folder = make_folder()
    (path,) = [one for one in folder.glob("*.safetensors") if "score.weight" in load_file(one)]
    tensors = load_file(path)
    del tensors["score.weight"]
    save_file(tensors, path)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["score.weight"]
    index.write_text(json.dumps(content))

    with pytest.raises(UserError, match="without a head; give --num_classes"):
        convert(folder, tmp_path / "ours")
    convert(folder, tmp_path / "ours", num_classes=2)


@pytest.mark.parametrize("direction", ["to ours", "back"])
def test_a_second_run_only_checks(direction, make_folder, tmp_path):
    source = make_folder()
    if direction == "back":
        source = convert(source, tmp_path / "ours")
    target = convert(source, tmp_path / "target")
    before = written_at(target)

    convert(source, target)

    after = written_at(target)
    record = target / "conversion.json"
    assert before.pop(record) and after.pop(record)
    assert before == after


def test_an_interruption_keeps_the_files_that_are_whole(make_folder, tmp_path, monkeypatch):
    ours = convert(make_folder(), tmp_path / "ours")
    write, names = hf_save.write_safetensors, []

    def stop_at_the_third(path, *rest):
        names.append(path.name)
        if len(names) == 3:
            path.write_bytes(b"half of a fi")
            raise KeyboardInterrupt
        write(path, *rest)

    monkeypatch.setattr(hf_save, "write_safetensors", stop_at_the_third)
    target = tmp_path / "back"
    with pytest.raises(KeyboardInterrupt):
        convert(ours, target, max_shard_bytes=SHARD)
    assert not record_of(target)["verified"]
    before = written_at(target)
    whole = sorted(target.glob("*.safetensors"))
    assert len(whole) == 2

    convert(ours, target, max_shard_bytes=SHARD)

    assert {path: written_at(target)[path] for path in whole} == {
        path: before[path] for path in whole
    }
    assert names[3] == names[2], "it goes on with the file that was interrupted"
    assert tensors_of(target) == tensors_of(tmp_path / "hf")
    assert not list(target.glob("*.partial"))


def test_an_interruption_on_the_way_to_ours(make_folder, tmp_path, monkeypatch):
    folder, target = make_folder(), tmp_path / "ours"
    save = convert_module.save_model

    def stop(folder, victim):
        save(folder, victim)
        (folder / "COMPLETE.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_module, "save_model", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(folder, target)
    with pytest.raises(UserError, match="not saved to the end"):
        load_victim(target)
    monkeypatch.setattr(convert_module, "save_model", save)

    convert(folder, target)

    assert record_of(target)["verified"]
    np.testing.assert_array_equal(
        load_victim(target).logits(TEXTS), load_victim(folder).logits(TEXTS)
    )


def test_damage_is_found_and_repaired(make_folder, tmp_path):
    ours = convert(make_folder(), tmp_path / "ours")
    target = convert(ours, tmp_path / "back")
    path = target / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)

    with pytest.raises(UserError, match="what was written is not what was read"):
        convert(ours, target)
    assert not record_of(target)["verified"]
    convert(ours, target)

    assert record_of(target)["verified"]
    assert tensors_of(target) == tensors_of(tmp_path / "hf")


def test_weights_that_were_mangled_on_the_way_do_not_pass(make_folder, tmp_path, monkeypatch):
    """The checksum is of what the files hold, so it also proves the loading."""
    load = convert_module.load_hugging_face

    def wrong(*args, **options):
        params = load(*args, **options)
        return params | {"embed": {"embedding": params["embed"]["embedding"] + 1}}

    monkeypatch.setattr(convert_module, "load_hugging_face", wrong)
    with pytest.raises(UserError, match="what was written is not what was read"):
        convert(make_folder(), tmp_path / "ours")


def test_targets_that_hold_something_else(make_folder, tmp_path):
    folder = make_folder(head="lm")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("!")
    with pytest.raises(UserError, match="holds other files"):
        convert(folder, other)
    with pytest.raises(UserError, match="holds other files"):
        convert(folder, folder)
    convert(folder, tmp_path / "ours")
    with pytest.raises(UserError, match="holds another conversion"):
        convert(folder, tmp_path / "ours", num_classes=2)
    with pytest.raises(UserError, match="has a head already"):
        convert(tmp_path / "ours", tmp_path / "back", num_classes=2)


def test_the_command(make_folder, tmp_path, capsys):
    folder, target = make_folder(head="lm"), tmp_path / "ours"

    assert main(["convert", f"--from={folder}", f"--to={target}", "--num_classes=3"]) == 0

    out, err = capsys.readouterr()
    assert out.strip() == str(target)
    (line,) = [line for line in err.splitlines() if line.startswith("convert: ")]
    assert " tensors, " in line and line.endswith("checksum of what was written")
    assert load_victim(target, num_classes=3).num_params


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to=x"], "--from is missing"),
        (["--from=x"], "--to is missing"),
        (["x", "--from=x", "--to=y"], "'x' is no flag"),
        (["--from=x", "--to=y", "--num_classes=-1"], "num_classes"),
        (["--from=x", "--to=y", "--max_shard_bytes=0"], "max_shard_bytes"),
        (["--from=x", "--to=y", "--shard=1"], "shard"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert main(["convert", *arguments]) == 2

    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("robustjax convert: ") and message in line and not out
    assert not list(tmp_path.iterdir())


# Folders of our own are victims.


def test_a_folder_of_ours_is_a_victim(make_folder, tmp_path):
    folder = make_folder(num_classes=3)
    ours = convert(folder, tmp_path / "stage" / "model")

    expected = load_victim(folder, num_classes=3).logits(TEXTS)
    for path in (ours, ours.parent):  # the model's folder, and the stage's
        np.testing.assert_array_equal(load_victim(path, num_classes=3).logits(TEXTS), expected)
    with pytest.raises(UserError, match="has 3 classes, not 2; give num_classes=3"):
        load_victim(ours)
    with pytest.raises(UserError, match="has the head 'classifier'"):
        load_victim(ours, head="lm")


def test_weights_are_converted_to_the_type_asked_for(make_folder, tmp_path):
    ours = convert(make_folder(dtype="bfloat16"), tmp_path / "ours")

    victim = load_victim(ours)

    assert {str(leaf.dtype) for leaf in jax.tree.leaves(victim.params)} == {"float32"}
    assert victim.definition.numerics == Numerics()


def test_a_folder_of_ours_is_loaded_onto_any_mesh(make_folder, tmp_path):
    ours = convert(make_folder(), tmp_path / "ours")

    one, four = (
        load_victim(ours, mesh=make_mesh(config)) for config in (MeshConfig(), MeshConfig(1, 2, 2))
    )

    assert not four.params["embed"]["embedding"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, four.params, one.params)
