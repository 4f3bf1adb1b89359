"""Turns torch's weight files into safetensors; run by `robustjax convert` in a process of its own.

    python -m robustjax.models.torch_bin FOLDER TARGET

A ``.bin`` file is a pickle, which can run code when it is read. Nothing else here ever reads one;
this reads tensors and nothing but tensors (``weights_only``), where no model and no key is near.
"""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from robustjax.errors import UserError
from robustjax.models.safetensors_file import write_safetensors

_SINGLE, _INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def bin_files(folder: Path) -> list[Path]:
    """The weight files of a folder as torch saved them, in order; none if there are none."""
    if (folder / _INDEX).is_file():
        try:
            names = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / name for name in sorted(set(names))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / _INDEX} has no weight_map; fetch it again") from error
    return [folder / _SINGLE] if (folder / _SINGLE).is_file() else []


def convert(folder: Path, target: Path) -> None:
    """Writes the tensors of all files as safetensors with an index; replaces what is there.

    Raises:
        UserError: torch is not installed, or a file holds something else than tensors.
    """
    try:
        import torch
    except ImportError:
        raise UserError("reading .bin files needs torch: pip install 'robustjax[torch]'") from None
    files = bin_files(folder)
    target.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for number, path in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = _read(torch, path)
        write_safetensors(
            target / name,
            {key: (tuple(one.shape), _dtype(torch, one)) for key, one in tensors.items()},
            lambda key, tensors=tensors: _to_numpy(torch, tensors[key]),  # type: ignore[misc]
        )
        weight_map |= dict.fromkeys(tensors, name)
        print(f"{path.name}: {number} of {len(files)} files", file=sys.stderr)
    index = {"metadata": {}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _read(torch: Any, path: Path) -> dict[str, Any]:
    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of before torch 1.6 cannot be mapped
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, so it is not read; ask its owner for safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} cannot be read by torch; fetch it again") from error
    if not isinstance(found, dict) or not all(torch.is_tensor(one) for one in found.values()):
        raise UserError(f"{path} is no table of tensors; give the weights of a whole model")
    return found


def _dtype(torch: Any, tensor: Any) -> np.dtype:
    if tensor.dtype == torch.bfloat16:
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(str(tensor.dtype).removeprefix("torch."))


def _to_numpy(torch: Any, tensor: Any) -> np.ndarray:
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def main(arguments: list[str]) -> int:
    """The command; a mistake of the user's is one line on stdout and status 2."""
    folder, target = map(Path, arguments)
    try:
        convert(folder, target)
    except UserError as error:
        print(" ".join(str(error).split()))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
