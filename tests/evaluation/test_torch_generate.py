"""Greedy generation is transformers' own, token for token, for every family of models."""

import dataclasses

import numpy as np
import pytest

from robustjax.evaluation.generate import GenerationConfig, generate
from robustjax.models.loading import load_victim
from tests.attacks.tiny import TEXTS
from tests.models.folders import make_hugging_face

pytestmark = [pytest.mark.slow, pytest.mark.torch]

COUNT = 64
PROMPTS = (*TEXTS, "A", " ".join(TEXTS[:3]))


@pytest.mark.parametrize("family", ["neox", "qwen2"])
def test_greedy_generation(family, tiny_tokenizer, tmp_path):
    import torch
    import transformers

    folder = make_hugging_face(tmp_path / "lm", tiny_tokenizer, family, context=256, head="lm")
    victim = load_victim(folder, head="lm")
    config = GenerationConfig(max_new_tokens=COUNT, batch_size=4)
    ours = generate(victim, PROMPTS, range(len(PROMPTS)), config)

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    end = victim.tokenizer.pad_id
    settings = {"max_new_tokens": COUNT, "do_sample": False, "eos_token_id": end}
    settings |= {"pad_token_id": end, "use_cache": True}

    def theirs(prompts):
        inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        rows = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :].numpy()
        return [row[: np.argmax(row == end) if end in row else None].tolist() for row in rows]

    padded = theirs(PROMPTS)
    alone = [theirs([prompt])[0] for prompt in PROMPTS]
    assert [answer.ids for answer in ours] == alone == padded
    assert sum(len(ids) == COUNT for ids in alone) >= 3, "too few long answers to prove anything"
    assert len({tuple(ids) for ids in alone}) > 5
    assert [answer.text for answer in ours] == [tokenizer.decode(ids) for ids in alone]

    other = dataclasses.replace(config, batch_size=1)
    assert generate(victim, PROMPTS, range(len(PROMPTS)), other) == ours
