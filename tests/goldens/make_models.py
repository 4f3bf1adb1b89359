"""Writes `models.npz`: what PyTorch makes of the tiny models. Needs the extra `parity`.

python -m tests.goldens.make_models
"""

import tempfile
from pathlib import Path

import numpy as np

from tests.models.tiny import CONFIGS, define, make_params, make_tokens, seeded
from tests.models.torch_twin import TorchTwin


def main():
    arrays = {}
    tokens, mask = make_tokens("goldens", (10, 6), 10)
    for family in CONFIGS:
        for head in ("classifier", "lm"):
            definition = define(family, head=head)
            with tempfile.TemporaryDirectory() as folder:
                twin = TorchTwin(Path(folder), definition, make_params(definition))
                scores = twin.scores(tokens, mask)
                if head == "lm":
                    scores = scores[:, :6]  # the padding of the shorter row is nobody's business
                else:
                    weights = seeded("slopes", scores.shape).astype(np.float32)
                    arrays[f"{family}/slopes"] = twin.slopes(tokens, mask, weights)
            arrays[f"{family}/{head}"] = scores
    np.savez_compressed(Path(__file__).with_name("models.npz"), **arrays)


if __name__ == "__main__":
    main()
