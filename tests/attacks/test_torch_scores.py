"""What a record says of its final text is what transformers and PyTorch say of that text."""

import numpy as np
import pytest

from robustjax.attacks.beam_search import BeamSearch
from robustjax.attacks.beast import BEAST
from robustjax.attacks.gcg import GCG
from robustjax.attacks.random_token import RandomToken
from robustjax.data.prompts import Example
from robustjax.evaluation.evaluate import attack_examples
from robustjax.models.loading import load_victim
from tests.attacks.tiny import CONFIG, INSERT, TEXTS, make_examples
from tests.models.folders import make_hugging_face

pytestmark = [pytest.mark.slow, pytest.mark.torch]

GOALS = (" yes", " no, it is", " the prize")
ATTACKS = {
    "gcg": GCG(num_iterations=4, num_tokens=4, num_candidates=16, top_k=8),
    "gcg-narrow": GCG(
        num_iterations=3, num_tokens=4, num_candidates=16, top_k=8, bf16_scoring=True
    ),
    "random_token": RandomToken(num_iterations=8, num_tokens=4, iterations_per_pass=8),
    "beam_search": BeamSearch(num_iterations=4, num_tokens=4, num_candidates=16),
    "beast": BEAST(num_iterations=4, beam_width=3, branch_factor=4),
}


def asked_of(victim, head):
    if head == "classifier":
        return make_examples(victim, TEXTS[:3])
    return [
        Example(i, "Say it.\n\n", (text,), "\n\nAnswer:", 0, 1, " other", GOALS[i])
        for i, text in enumerate(TEXTS[:3])
    ]


CASES = [("neox", name) for name in ATTACKS] + [("qwen2", "gcg"), ("qwen2", "beast")]


@pytest.mark.parametrize(("family", "name"), CASES)
@pytest.mark.parametrize("head", ["classifier", "lm"])
def test_torch_says_the_same_of_the_final_text(family, head, name, tiny_tokenizer, tmp_path):
    import torch
    import transformers

    fields = {"context": 256, "head": head}
    folder = make_hugging_face(tmp_path / "victim", tiny_tokenizer, family, **fields)
    victim = load_victim(folder, head=head)
    sampler = None
    if name == "beast" and head == "classifier":
        fields["head"] = "lm"
        other = make_hugging_face(tmp_path / "sampler", tiny_tokenizer, family, **fields)
        sampler = load_victim(other, head="lm")
    examples = asked_of(victim, head)

    found, _ = attack_examples(
        *(victim, examples, INSERT, ATTACKS[name]), config=CONFIG, companion=sampler
    )

    assert all(record.failure is None and record.iterations for record in found)
    kind = "SequenceClassification" if head == "classifier" else "CausalLM"
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    model.eval()
    model.config.pad_token_id = model.config.pad_token_id or 0
    # Not AutoTokenizer: of a Qwen2 model that makes Qwen2's own, whatever the folder holds.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)

    def read(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for record in found:
        ids = read(record.attacked_text)
        if head == "classifier":
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].numpy()
            np.testing.assert_allclose(record.logits, logits, rtol=0, atol=1e-4)
            assert record.success == (logits.argmax() != record.label)
            continue
        goal = read(GOALS[record.example_id])
        with torch.no_grad():
            logits = model(torch.tensor([ids + goal])).logits[0, len(ids) - 1 : -1]
        logprobs = torch.log_softmax(logits, -1)[torch.arange(len(goal)), goal].numpy()
        np.testing.assert_allclose(record.target_logprobs, logprobs, rtol=0, atol=1e-4)
        assert record.success == (logits.argmax(-1).tolist() == goal)
