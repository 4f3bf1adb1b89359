"""An attacked chat: what is reported is, to transformers and PyTorch, what was optimised."""

import numpy as np
import pytest

from robustjax.attacks.beast import BEAST
from robustjax.attacks.gcg import GCG
from robustjax.data.chat import ChatConfig, templated, turn_of
from robustjax.data.prompts import Example, Task
from robustjax.evaluation.evaluate import attack_examples
from robustjax.models.loading import load_victim
from tests.attacks.tiny import CONFIG, INSERT, TEXTS
from tests.models.folders import make_hugging_face

pytestmark = [pytest.mark.slow, pytest.mark.torch]

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}\n[end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
ATTACKS = {
    "gcg": GCG(num_iterations=12, num_tokens=6, num_candidates=32, top_k=32, keep_best=True),
    "beast": BEAST(num_iterations=8, beam_width=4, branch_factor=8),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("family", ["neox", "qwen2"])
def test_the_reported_conversation_has_the_loss_that_was_optimised(
    family, name, tiny_tokenizer, tmp_path
):
    import torch
    import transformers

    tokenizer = tiny_tokenizer.with_chat_template(TEMPLATE)
    folder = make_hugging_face(tmp_path / "chat", tokenizer, family, context=256, head="lm")
    victim = load_victim(folder, head="lm")
    task = Task(
        *("toy", (), INSERT, ()),
        tuple(
            Example(i, "", (t,), ".", 0, 1, " No", " Sure, here") for i, t in enumerate(TEXTS[:3])
        ),
    )
    config = ChatConfig(apply_template=True, system="Be brief.")
    chats = templated(task, victim.tokenizer, config, [1.0])
    found, _ = attack_examples(victim, chats.validation, INSERT, ATTACKS[name], config=CONFIG)

    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    turn = turn_of(victim.tokenizer, config)
    for record in found:
        losses = [step.loss for step in record.iterations]
        # The best so far is scored again beside other candidates, which moves it by rounding.
        assert np.diff(losses).max() <= 1e-5
        assert name != "gcg" or losses[-1] < losses[0]
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": turn.of(record.attacked_text)},
        ]
        prompt = list(
            theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        )
        goal = theirs.encode("Sure, here", add_special_tokens=False)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + goal])).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits, -1)[range(len(goal)), goal].numpy()
        np.testing.assert_allclose(-logprobs.mean(), losses[-1], atol=1e-4)
        np.testing.assert_allclose(record.target_logprobs, logprobs, atol=1e-4)
