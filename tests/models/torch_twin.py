"""The same model in PyTorch, made by transformers from a folder that we saved."""

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from robustjax.models.hf_save import save_hugging_face

_CLASSES = {
    "classifier": transformers.AutoModelForSequenceClassification,
    "lm": transformers.AutoModelForCausalLM,
}


class TorchTwin:
    """Loads what `save_hugging_face` wrote, and answers in NumPy arrays."""

    def __init__(self, folder, definition, params):
        save_hugging_face(folder, definition, params)
        self.definition = definition
        self.model, report = _CLASSES[definition.head].from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
        assert not any(report.values()), report
        self.model.eval().requires_grad_(False)
        self.model.config.pad_token_id = 0

    def first_block(self, tokens, mask):
        """States after the first block, [B, T, D]."""
        with torch.no_grad():
            out = self.model.base_model(output_hidden_states=True, **_inputs(tokens, mask))
        return out.hidden_states[1].numpy()

    def scores(self, tokens, mask):
        """What the model itself puts out: class scores [B, N], or token scores [B, T, V]."""
        with torch.no_grad():
            return self.model(**_inputs(tokens, mask)).logits.numpy()

    def slopes(self, tokens, mask, weights):
        """Gradient of sum(weights * scores) with respect to the token embeddings, [B, T, D].

        The classifier is read at the last real token; transformers would read the last place, since
        it cannot see the padding in embeddings.
        """
        inputs = _inputs(tokens, mask)
        embeddings = self.model.get_input_embeddings()(inputs.pop("input_ids")).detach()
        embeddings.requires_grad_(True)
        hidden = self.model.base_model(inputs_embeds=embeddings, **inputs).last_hidden_state
        if self.definition.head == "classifier":
            places = torch.arange(hidden.shape[1]) * inputs["attention_mask"]
            hidden = hidden[torch.arange(len(hidden)), places.max(1).values]
            scores = self.model.score(hidden)
        else:
            scores = self.model.get_output_embeddings()(hidden)
        (scores * torch.tensor(np.asarray(weights))).sum().backward()
        return embeddings.grad.numpy()


def _inputs(tokens, mask):
    tokens, mask = (np.array(jnp.asarray(array, jnp.int32)) for array in (tokens, mask))
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    arrays = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
    return {name: torch.tensor(array, dtype=torch.long) for name, array in arrays.items()}
