"""Greedy generation is transformers' own, token for token, for both families of models."""

import dataclasses

import numpy as np
import pytest

from robustjax.data.tokens import Tokenizer
from robustjax.evaluation.generate import GenerationConfig, generate
from robustjax.models.loading import load_victim
from tests.attacks.tiny import TEXTS
from tests.models.folders import make_hugging_face

pytestmark = [pytest.mark.slow, pytest.mark.torch]

COUNT = 64
PROMPTS = (*TEXTS, "A", " ".join(TEXTS[:3]))


class Ending(Tokenizer):
    """Another tokenizer, with an ordinary token for the one that ends and pads a text."""

    def __init__(self, other, end):
        super().__init__(other._backend, other._config)
        self.eos_id = self.pad_id = end


@pytest.mark.parametrize("family", ["neox", "qwen2"])
def test_greedy_generation(family, tiny_tokenizer, tmp_path):
    import torch
    import transformers

    folder = make_hugging_face(tmp_path / "lm", tiny_tokenizer, family, context=256, head="lm")
    victim = load_victim(folder, head="lm")
    rows = victim.tokenizer.encode(PROMPTS)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()

    def theirs(rows, end):
        """Left-padded, as transformers wants it."""
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        model.generation_config.eos_token_id = end
        model.generation_config.pad_token_id = 0 if end is None else end
        said = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=COUNT, do_sample=False
        )[:, width:].numpy()
        return [row[: np.argmax(row == end) if end in row else None].tolist() for row in said]

    def ours(end, batch_size=4):
        config = GenerationConfig(max_new_tokens=COUNT, batch_size=batch_size)
        ending = dataclasses.replace(victim, tokenizer=Ending(victim.tokenizer, end))
        return [one.ids for one in generate(ending, PROMPTS, range(len(PROMPTS)), config)]

    endless = [theirs([row], None)[0] for row in rows]
    assert all(len(ids) == COUNT for ids in endless)
    assert len({tuple(ids) for ids in endless}) > 5, "the prompts make no difference"
    said = set(np.concatenate(endless).tolist())
    never = next(token for token in range(1, victim.tokenizer.num_ids) if token not in said)
    assert ours(never) == endless == theirs(rows, None)
    assert ours(never, batch_size=1) == endless

    early = endless[0][20]
    assert ours(early) == [theirs([row], early)[0] for row in rows] == theirs(rows, early)
