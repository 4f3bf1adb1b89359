"""Hugging Face folders in and out: nothing lost, nothing silently wrong. No torch needed."""

import dataclasses
import io
import json
import logging

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import robustjax
from robustjax.data.batching import pad_rows
from robustjax.errors import UserError
from robustjax.models import transformer, victim
from robustjax.models.architectures import port_of_model_type
from robustjax.models.hf_load import load_hugging_face, read_hugging_face_config
from robustjax.models.hf_save import save_hugging_face
from robustjax.models.loading import load_victim
from robustjax.models.registry import POINTS
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh
from robustjax.runtime.progress import Progress
from tests.models.tiny import CONFIGS, define, jit, make_params, relative_error

RULES = AxisRules()


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


@pytest.fixture
def saved(tmp_path):
    """A folder with a tiny classifier, to be damaged."""
    definition = define("neox")
    save_hugging_face(tmp_path, definition, make_params(definition))
    return tmp_path


def load(folder, mesh, definition=None, **options):
    definition = define("neox") if definition is None else definition
    return load_hugging_face(folder, definition, mesh, RULES, **options)


def edit(folder, change):
    """Rewrites the weights of a folder after a change to the dictionary of tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def assert_same_bits(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("head", ["classifier", "lm"])
@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_there_and_back(family, scanned, head, tmp_path, mesh):
    definition = define(family, scanned=scanned, head=head)
    params = make_params(definition)
    save_hugging_face(tmp_path, definition, params, max_shard_bytes=20_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    config = read_hugging_face_config(tmp_path)
    assert config == definition.config
    assert_same_bits(load(tmp_path, mesh, definition, strict=True), params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["neox", "qwen2"])
def test_back_and_there(family, dtype, tmp_path, mesh):
    """Hugging Face -> ours -> Hugging Face gives the same tensors, bit for bit."""
    numerics = dataclasses.replace(define(family).numerics, param_dtype=dtype)
    definition = define(family, numerics=numerics)
    first, second = tmp_path / "first", tmp_path / "second"
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), make_params(definition))
    save_hugging_face(first, definition, params)
    save_hugging_face(second, definition, load(first, mesh, definition))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert str(tensor.dtype) == dtype
        assert tensor.tobytes() == theirs[name].tobytes(), name


def test_a_sharded_load_splits_as_placing_does(saved):
    mesh = make_mesh(MeshConfig(1, 2, 2))
    for scanned in (False, True):
        definition = define("neox", scanned=scanned)
        expected = victim.place_params(make_params(definition), definition, mesh, RULES)
        got = load_hugging_face(saved, definition, mesh, RULES)
        assert_same_bits(got, expected)
        same = jax.tree.map(lambda a, b: a.sharding == b.sharding, got, expected)
        assert jax.tree.all(same), same


def test_each_tensor_keeps_its_own_type_until_it_is_read(saved, mesh):
    types = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
    expected = {}

    def mix(tensors):
        for index, name in enumerate(sorted(tensors)):
            tensors[name] = tensors[name].astype(types[index % 4])
            expected[name] = tensors[name].astype(np.float32)
        tensors["gpt_neox.layers.0.attention.bias"] = np.tril(np.ones((1, 1, 8, 8), bool))
        tensors["gpt_neox.layers.1.attention.masked_bias"] = np.array(-1e4, np.float16)
        tensors["gpt_neox.layers.1.attention.rotary_emb.inv_freq"] = np.ones(2, np.float32)

    edit(saved, mix)
    params = load(saved, mesh)
    table = expected["gpt_neox.embed_in.weight"]
    kernel = expected["gpt_neox.layers.2.mlp.dense_4h_to_h.weight"].T
    np.testing.assert_array_equal(params["embed"]["embedding"], table)
    np.testing.assert_array_equal(params["blocks"]["02"]["mlp_out"]["kernel"], kernel)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_a_base_model_gets_a_seeded_head_and_says_so(tmp_path, mesh, caplog):
    lm, classifier = define("neox", head="lm"), define("neox", num_classes=3)
    save_hugging_face(tmp_path, lm, make_params(lm))
    with caplog.at_level(logging.WARNING):
        params = load(tmp_path, mesh, classifier, seed=1)
    assert "no classifier head (embed_out.weight is left out)" in caplog.text
    head = np.asarray(params["head"]["kernel"])
    assert head.shape == (32, 3)
    assert 0.01 < head.std() < 0.03
    np.testing.assert_array_equal(head, load(tmp_path, mesh, classifier, seed=1)["head"]["kernel"])
    assert not np.array_equal(head, load(tmp_path, mesh, classifier, seed=2)["head"]["kernel"])
    with pytest.raises(UserError, match=r"score.weight of shape \[3, 32\] is missing"):
        load(tmp_path, mesh, classifier, strict=True)


def test_a_model_saved_without_any_head(saved, mesh):
    def strip(tensors):
        del tensors["score.weight"]
        for name in list(tensors):
            tensors[name.removeprefix("gpt_neox.")] = tensors.pop(name)

    edit(saved, strip)
    params, whole = load(saved, mesh), make_params(define("neox"))
    assert_same_bits(params["blocks"], whole["blocks"])
    with pytest.raises(UserError, match="embed_out.weight.*is missing.*as a classifier"):
        load(saved, mesh, define("neox", head="lm"))


def test_a_tied_head_that_was_saved_too_must_be_the_table(tmp_path, mesh):
    definition = define("qwen2", head="lm")
    save_hugging_face(tmp_path, definition, make_params(definition))
    table = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    edit(tmp_path, lambda tensors: tensors.update({"lm_head.weight": table.copy()}))
    assert "head" not in load(tmp_path, mesh, definition, strict=True)
    edit(tmp_path, lambda tensors: tensors.update({"lm_head.weight": table + 1}))
    with pytest.raises(UserError, match="lm_head.weight differs.*tie_word_embeddings"):
        load(tmp_path, mesh, definition)


BIAS = "gpt_neox.layers.1.attention.dense.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(BIAS), rf"{BIAS} of shape \[32\] is missing"),
        (lambda t: t.update({BIAS: t[BIAS][:5]}), rf"{BIAS} has shape \[5\], expected \[32\]"),
        (lambda t: t.update(spare=np.ones(3, np.float32)), r"spare of shape \[3\]"),
        (lambda t: t.update({BIAS: t[BIAS].astype(np.int8)}), f"{BIAS} has type I8"),
        (
            lambda t: t.update({"score.weight": np.ones((3, 32), np.float32)}),
            r"score.weight has shape \[3, 32\], expected \[2, 32\].*number of classes",
        ),
        (
            lambda t: t.update({"gpt_neox.embed_in.weight": np.ones((90, 32), np.float32)}),
            r"embed_in.weight has shape \[90, 32\], expected \[96, 32\]",
        ),
    ],
)
def test_wrong_tensors_are_named(change, message, saved, mesh):
    edit(saved, change)
    with pytest.raises(UserError, match=message):
        load(saved, mesh)


def test_damaged_files(saved, mesh):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    for content, message in (
        (whole[:-10], "promises .* bytes, the file has"),
        (whole + b"x", "promises .* bytes, the file has"),
        (whole[:500], "truncated or no safetensors file"),
        (whole[:3], "truncated or no safetensors file"),
        (b"", "truncated or no safetensors file"),
        (whole[:8] + b"?" + whole[9:], "header is not JSON"),
        (whole.replace(b'"F32"', b'"F64"', 1), "cannot be bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            load(saved, mesh, strict=True)


def test_a_tensor_twice_in_a_file(saved, mesh):
    path = saved / "model.safetensors"
    first, second = (f'"gpt_neox.layers.{i}.input_layernorm.bias"'.encode() for i in (0, 1))
    path.write_bytes(path.read_bytes().replace(first, second))
    with pytest.raises(UserError, match="input_layernorm.bias is there 2 times"):
        load(saved, mesh)


def test_wrong_indices(tmp_path, mesh):
    definition = define("neox")
    save_hugging_face(tmp_path, definition, make_params(definition), max_shard_bytes=20_000)
    index = tmp_path / "model.safetensors.index.json"
    good = index.read_text()

    def fails(message):
        with pytest.raises(UserError, match=message):
            load(tmp_path, mesh)
        index.write_text(good)

    edit_json(index, lambda content: content["weight_map"].pop(BIAS))
    fails(f"{BIAS} should be in no file, but is in model-0000")
    last = json.loads(good)["weight_map"]["score.weight"]
    edit_json(index, lambda content: content["weight_map"].update(ghost=last))
    fails(f"ghost should be in {last}, but is in no file")
    edit_json(index, lambda content: content["weight_map"].update(ghost="gone.safetensors"))
    fails("names gone.safetensors, which is not there")
    edit_json(index, lambda content: content.pop("weight_map"))
    fails("no weight_map")
    index.write_text("{")
    fails("is not JSON")
    doubled = load_file(tmp_path / last)
    doubled[BIAS] = np.ones(32, np.float32)
    save_file(doubled, tmp_path / last)
    fails(f"tensor {BIAS} is in model-0000.* and in {last}")


def test_weights_that_could_run_code_are_refused(saved, mesh):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(UserError, match="can run code.*robustjax convert --allow_torch_bin"):
        load(saved, mesh)
    (saved / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="holds no model.safetensors"):
        load(saved, mesh)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("neox", {"model_type": "bert"}, "model_type 'bert' has no port.*gpt_neox, qwen2"),
        ("neox", {"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; only 'gelu'"),
        ("neox", {"hidden_size": None}, "hidden_size is missing"),
        ("neox", {"hidden_size": "32"}, "hidden_size is '32'"),
        ("neox", {"num_attention_heads": 5}, "width 32 is no multiple of 5 heads"),
        ("neox", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("qwen2", {"num_key_value_heads": 3}, "4 heads are no multiple of 3"),
        ("llama", {"attention_bias": True}, "attention_bias is True"),
        ("llama", {"rope_scaling": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
    ],
)
def test_configs_beyond_the_ports(family, fields, message, tmp_path):
    definition = define(family)
    save_hugging_face(tmp_path, definition, make_params(definition))
    edit_json(tmp_path / "config.json", lambda content: content.update(fields))
    with pytest.raises(UserError, match=message):
        read_hugging_face_config(tmp_path)


def test_both_spellings_of_the_rotary_fields():
    read = port_of_model_type("gpt_neox").config_from_hugging_face
    shape = {
        "vocab_size": 50304,
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 512,
    }
    pythia = POINTS["pythia-14m"].config
    assert read(shape | {"rotary_pct": 0.25, "rotary_emb_base": 10000}) == pythia
    new = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    assert read(shape | {"rope_parameters": new}) == pythia
    other = read(shape | {"rotary_pct": 0.5, "rotary_emb_base": 500})
    assert (other.rotary_fraction, other.rotary_theta) == (0.5, 500.0)


def test_a_sliding_window_bounds_the_context():
    read = port_of_model_type("mistral").config_from_hugging_face
    shape = {
        "model_type": "mistral",
        "vocab_size": 96,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 32768,
    }
    assert read(shape).context == 32768
    assert read(shape | {"sliding_window": 4096}).context == 4096
    unused = {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}
    assert read(shape | unused).context == 32768


# From a folder to a victim.


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("victim")
    config = dataclasses.replace(CONFIGS["neox"], vocab=tiny_tokenizer.num_ids)
    definition = define(config, num_classes=3)
    save_hugging_face(folder, definition, make_params(definition), tiny_tokenizer)
    return folder


def test_load_victim(folder, tiny_tokenizer):
    loaded = robustjax.load_victim(folder, num_classes=3, strict=True, batch_size=2)
    texts = ["It rains in the mountains.", "Win a prize", "a<|endoftext|>b"]
    got = loaded.logits(texts)
    assert got.shape == (3, 3)
    assert loaded.tokenizer.fingerprint == tiny_tokenizer.fingerprint
    ids, mask = pad_rows(loaded.tokenizer.encode(texts), 24, 0)
    expected = jit(transformer.apply)(loaded.definition, loaded.params, ids, mask)
    assert relative_error(got, expected) < 1e-5


def test_scoring_many_texts_shows_progress(folder, capsys, monkeypatch):
    loaded = robustjax.load_victim(folder, num_classes=3, batch_size=2)
    texts = ["It rains.", "Win a prize " * 4, "a", "b", "c"]
    loaded.logits(texts)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(victim, "_PATIENCE_SECONDS", 0.0)
    with Progress(3, "study", unit="stages", stream=io.StringIO()):
        loaded.logits(texts)
    assert capsys.readouterr().err.startswith("study 1/3 | logits: 5/5 texts, ")


def test_load_victim_as_a_language_model_needs_its_head(folder):
    with pytest.raises(UserError, match="embed_out.weight.*is missing"):
        load_victim(folder, head="lm")


def test_a_tokenizer_with_more_ids_than_the_embedding(tmp_path, tiny_tokenizer):
    definition = define("neox")  # 96 rows; the tokenizer has 512 ids
    save_hugging_face(tmp_path, definition, make_params(definition), tiny_tokenizer)
    with pytest.raises(UserError, match="tokenizer has 512 ids, its embedding only 96 rows"):
        load_victim(tmp_path)


@pytest.mark.parametrize("name", ["pythia-14m", "EleutherAI/pythia-14m@step1000", "no such/name"])
def test_without_a_network_the_message_says_so(name):
    with pytest.raises(UserError, match="cannot be downloaded.*folder"):
        load_victim(name)


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(UserError, match="nano-27k has no published weights"):
        load_victim("nano-27k")
    with pytest.raises(UserError, match="num_classes is 1"):
        load_victim(tmp_path, num_classes=1)
    with pytest.raises(UserError, match="config.json cannot be read"):
        load_victim(tmp_path)
