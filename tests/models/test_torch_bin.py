"""Weights in torch's own format: refused, or read as tensors alone and in another process."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from robustjax import load_victim
from robustjax.cli import main
from robustjax.errors import UserError
from robustjax.models.convert import convert
from tests.models.folders import TEXTS, record_of, tensors_of

pytestmark = [pytest.mark.slow, pytest.mark.torch]


class Evil:
    """A pickle that leaves a folder behind when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def to_torch(folder, files=1, change=lambda tensors: tensors, **options):
    """Replaces a folder's safetensors by torch's files with the same tensors."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors*")):
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        path.unlink()
    tensors = change(tensors)
    if files == 1:
        torch.save(tensors, folder / "pytorch_model.bin", **options)
        return
    weight_map = {}
    for number in range(files):
        name = f"pytorch_model-{number + 1:05d}-of-{files:05d}.bin"
        part = dict(list(tensors.items())[number::files])
        torch.save(part, folder / name, **options)
        weight_map |= dict.fromkeys(part, name)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("files", [1, 3])
def test_the_weights_are_those_of_safetensors(files, dtype, make_folder, tmp_path):
    folder = make_folder(dtype=dtype)
    expected = tensors_of(folder)
    to_torch(folder, files)

    ours = convert(folder, tmp_path / "ours", allow_torch_bin=True)

    assert tensors_of(convert(ours, tmp_path / "back")) == expected
    assert record_of(ours)["verified"]
    assert not (ours / "from_torch").exists()


def test_files_of_older_versions(make_folder, tmp_path):
    folder = make_folder()
    expected = tensors_of(folder)
    to_torch(folder, _use_new_zipfile_serialization=False)

    ours = convert(folder, tmp_path / "ours", allow_torch_bin=True)

    assert tensors_of(convert(ours, tmp_path / "back")) == expected


def test_buffers_that_older_versions_saved_are_left_out(make_folder, tmp_path):
    folder = make_folder()
    expected = tensors_of(folder)
    buffers = {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool).tril(),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
    }
    to_torch(folder, change=lambda tensors: tensors | buffers)

    ours = convert(folder, tmp_path / "ours", allow_torch_bin=True)

    assert tensors_of(convert(ours, tmp_path / "back")) == expected


def test_they_are_read_only_when_asked_and_the_remedy_works(
    make_folder,
    tmp_path,
    monkeypatch,
    capsys,
):
    folder = make_folder()
    logits = load_victim(folder).logits(TEXTS)
    to_torch(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="can run code") as error:
        load_victim(folder)
    with pytest.raises(UserError, match="can run code"):
        convert(folder, tmp_path / "ours")
    command = str(error.value).split("robustjax ")[-1]

    assert main(command.split()) == 0

    assert capsys.readouterr().out.strip() == "FOLDER"
    assert (load_victim("FOLDER").logits(TEXTS) == logits).all()


def test_code_in_a_file_is_never_run(make_folder, tmp_path):
    folder = make_folder()
    trap = tmp_path / "trap"
    to_torch(folder, change=lambda tensors: tensors | {"extra": Evil(trap)})

    with pytest.raises(UserError, match="holds more than tensors"):
        convert(folder, tmp_path / "ours", allow_torch_bin=True)

    assert not trap.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert trap.exists(), "the trap would not have shown anything"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not a pickle", "holds more than tensors|cannot be read"), (b"", "cannot be read")],
)
def test_damaged_files(content, message, make_folder, tmp_path):
    folder = make_folder()
    to_torch(folder)
    (folder / "pytorch_model.bin").write_bytes(content)

    with pytest.raises(UserError, match=message):
        convert(folder, tmp_path / "ours", allow_torch_bin=True)


def test_nothing_of_an_earlier_attempt_is_taken_over(make_folder, tmp_path):
    folder = make_folder()
    expected = tensors_of(folder)
    to_torch(folder)
    left = tmp_path / "ours" / "from_torch" / "model-00001-of-00001.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"another model's")

    ours = convert(folder, tmp_path / "ours", allow_torch_bin=True)

    assert tensors_of(convert(ours, tmp_path / "back")) == expected


def test_an_index_that_makes_no_sense(make_folder, tmp_path):
    folder = make_folder()
    to_torch(folder, files=2)
    (folder / "pytorch_model.bin.index.json").write_text("{}")

    with pytest.raises(UserError, match="index.json has no weight_map"):
        convert(folder, tmp_path / "ours", allow_torch_bin=True)


def test_torch_that_is_not_installed(make_folder, tmp_path, monkeypatch):
    folder = make_folder()
    to_torch(folder)
    (tmp_path / "torch.py").write_text("raise ImportError('no torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(UserError, match=r"needs torch: pip install 'robustjax\[torch\]'"):
        convert(folder, tmp_path / "ours", allow_torch_bin=True)
