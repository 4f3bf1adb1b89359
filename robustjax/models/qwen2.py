"""Qwen2.5, and its near relations Llama and Mistral: grouped-query attention, RMS norm, SwiGLU.

Source: Qwen Team 2024 (arXiv 2412.15115), Grattafiori et al. 2024 (arXiv 2407.21783) for the rotary
scaling of Llama 3, and the Hugging Face ``qwen2``, ``llama`` and ``mistral`` configurations. The
three differ only in what ``Qwen2Config`` says: biases on queries, keys and values, and the scaling
of rotations.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from robustjax.errors import UserError
from robustjax.models.attention import Context, Visible, attend
from robustjax.models.config_fields import ConfigFields
from robustjax.models.layers import (
    Alone,
    Linear,
    Numerics,
    RMSNorm,
    Trunk,
    gather_tokens,
    rotary_frequencies,
    rotate,
)
from robustjax.models.port import AxesTree, Names, Port


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """How Llama 3 stretches slow rotations to contexts longer than it was pretrained on.

    Rotations that turn less than ``low_factor`` times within ``original_context`` are slowed down
    by ``factor``, those that turn more than ``high_factor`` times are kept, and in between it is
    blended.
    """

    factor: float
    low_factor: float
    high_factor: float
    original_context: int

    def __call__(self, frequencies: Float[np.ndarray, " half"]) -> Float[np.ndarray, " half"]:
        """The scaled radians per position."""
        turns = frequencies * self.original_context / (2 * np.pi)
        kept = (turns - self.low_factor) / (self.high_factor - self.low_factor)
        kept = np.clip(kept, 0.0, 1.0)
        return (frequencies * (kept + (1 - kept) / self.factor)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
    """Shape of a Qwen2, Llama or Mistral model.

    Attributes:
        vocab: rows of the embedding table (padded vocabulary).
        width: ``D``.
        hidden: ``F``, width of the feed-forward layer.
        key_value_heads: heads of keys and values, each shared by a group of query heads.
        head_width: ``K``; ``width // heads`` in most models.
        context: longest sequence the model is meant for, in tokens.
        is_tied: whether a language-model head is the embedding table.
        qkv_bias: whether queries, keys and values have biases.
        model_type: what Hugging Face calls the architecture.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    hidden: int
    context: int = 32_768
    rotary_theta: float = 1_000_000.0
    rotary_scaling: RotaryScaling | None = None
    norm_epsilon: float = 1e-6
    is_tied: bool = False
    qkv_bias: bool = True
    init_scale: float = 0.02
    model_type: str = "qwen2"

    def __post_init__(self) -> None:
        if self.heads % self.key_value_heads:
            raise UserError(
                f"model: {self.heads} heads are no multiple of {self.key_value_heads} key/value "
                "heads; mend num_key_value_heads"
            )


class Qwen2Block(nnx.Module):
    """One transformer block."""

    def __init__(self, config: Qwen2Config, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width, hidden = config.width, config.hidden
        heads = config.heads * config.head_width
        groups = config.key_value_heads * config.head_width

        def linear(features_in: int, features_out: int, *, use_bias: bool = False) -> Linear:
            return Linear(
                features_in,
                features_out,
                use_bias=use_bias,
                init_scale=config.init_scale,
                numerics=numerics,
                rngs=rngs,
            )

        self.attention_norm = RMSNorm(width, epsilon=config.norm_epsilon, numerics=numerics)
        self.mlp_norm = RMSNorm(width, epsilon=config.norm_epsilon, numerics=numerics)
        self.query = linear(width, heads, use_bias=config.qkv_bias)
        self.key = linear(width, groups, use_bias=config.qkv_bias)
        self.value = linear(width, groups, use_bias=config.qkv_bias)
        self.attention_out = linear(heads, width)
        self.mlp_gate = linear(width, hidden)
        self.mlp_up = linear(width, hidden)
        self.mlp_down = linear(hidden, width)

    def keys_values(
        self, x: Float[Array, "B C T D"], positions: Int[Array, "B C T"]
    ) -> tuple[Float[Array, "B C T G K"], Float[Array, "B C T G K"]]:
        """Keys (rotated) and values of every token: all a cached prefix needs of its last block."""
        return self._keys_values(self.attention_norm(x), positions)

    def alone(self, x: Float[Array, "B C T D"], positions: Int[Array, "B C T"]) -> Alone:
        """What does not depend on other tokens."""
        normal = self.attention_norm(x)
        queries = rotate(self._heads(self.query(normal)), positions, self._turns())
        return Alone(queries, *self._keys_values(normal, positions), None)

    def __call__(
        self,
        x: Float[Array, "B C T D"],
        positions: Int[Array, "B C T"],
        visible: Visible,
        contexts: Sequence[Context],
        read: Int[Array, "B C R"] | None,
        alone: Alone | None = None,
    ) -> tuple[
        Float[Array, "B C R D"], tuple[Float[Array, "B C T G K"], Float[Array, "B C T G K"]]
    ]:
        """Runs the block.

        Args:
            x: token states.
            positions: position of each token, for the rotary embedding.
            visible: which own tokens each output position sees.
            contexts: shared keys and values to attend to as well.
            read: the positions to compute outputs for; all of them when None.
            alone: what is known already of each token by itself.

        Returns:
            New states at the read positions, and the keys and values of all tokens.
        """
        if alone is None:
            normal = self.attention_norm(x)
            keys, values = self._keys_values(normal, positions)
            if read is not None:
                x, normal = gather_tokens(x, read), gather_tokens(normal, read)
                positions = gather_tokens(positions, read)
            queries = rotate(self._heads(self.query(normal)), positions, self._turns())
        else:
            queries, keys, values, _ = alone
            if read is not None:
                x, queries = gather_tokens(x, read), gather_tokens(queries, read)
        precision = self.numerics.matmul_precision
        mixed = attend(queries, keys, values, visible, contexts, precision, is_causal=read is None)
        x = x + self.attention_out(mixed.reshape(*mixed.shape[:3], -1))
        return x + self._mlp(self.mlp_norm(x)), (keys, values)

    def _keys_values(self, normal: Array, positions: Array) -> tuple[Array, Array]:
        keys, values = self._heads(self.key(normal)), self._heads(self.value(normal))
        return rotate(keys, positions, self._turns()), values

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:3], -1, self.config.head_width)

    def _turns(self) -> np.ndarray:
        turns = rotary_frequencies(self.config.head_width, self.config.rotary_theta)
        return turns if self.config.rotary_scaling is None else self.config.rotary_scaling(turns)

    def _mlp(self, x: Array) -> Array:
        return self.mlp_down(jax.nn.silu(self.mlp_gate(x)) * self.mlp_up(x))


def trunk(
    config: Qwen2Config,
    numerics: Numerics,
    *,
    head: Literal["classifier", "lm"],
    outputs: int,
    rngs: nnx.Rngs,
) -> Trunk:
    """What stands around the blocks; a language-model head may be tied, a classifier's never is."""
    return Trunk(
        config.vocab,
        config.width,
        final_norm=RMSNorm(config.width, epsilon=config.norm_epsilon, numerics=numerics),
        outputs=outputs,
        is_tied=config.is_tied and head == "lm",
        init_scale=config.init_scale,
        numerics=numerics,
        rngs=rngs,
    )


BLOCK_AXES: AxesTree = {
    "attention_norm": {"scale": ("embed",)},
    "mlp_norm": {"scale": ("embed",)},
    "query": {"kernel": ("embed", "heads"), "bias": ("heads",)},
    "key": {"kernel": ("embed", "heads"), "bias": ("heads",)},
    "value": {"kernel": ("embed", "heads"), "bias": ("heads",)},
    "attention_out": {"kernel": ("heads", "embed")},
    "mlp_gate": {"kernel": ("embed", "mlp")},
    "mlp_up": {"kernel": ("embed", "mlp")},
    "mlp_down": {"kernel": ("mlp", "embed")},
}

NAMES = Names(
    prefix="model.",
    block_prefix="layers.{}.",
    block={
        "input_layernorm.weight": ("attention_norm", "scale"),
        "post_attention_layernorm.weight": ("mlp_norm", "scale"),
        "self_attn.q_proj.weight": ("query", "kernel"),
        "self_attn.q_proj.bias": ("query", "bias"),
        "self_attn.k_proj.weight": ("key", "kernel"),
        "self_attn.k_proj.bias": ("key", "bias"),
        "self_attn.v_proj.weight": ("value", "kernel"),
        "self_attn.v_proj.bias": ("value", "bias"),
        "self_attn.o_proj.weight": ("attention_out", "kernel"),
        "mlp.gate_proj.weight": ("mlp_gate", "kernel"),
        "mlp.up_proj.weight": ("mlp_up", "kernel"),
        "mlp.down_proj.weight": ("mlp_down", "kernel"),
    },
    trunk={
        "embed_tokens.weight": ("embed", "embedding"),
        "norm.weight": ("final_norm", "scale"),
    },
    lm_head="lm_head.weight",
    ignored=("rotary_emb.inv_freq",),
)

_CLASS_NAMES = {"qwen2": "Qwen2", "llama": "Llama", "mistral": "Mistral"}


def config_from_hugging_face(content: Mapping[str, Any]) -> Qwen2Config:
    """Reads a `config.json` of model type `qwen2`, `llama` or `mistral`."""
    fields = ConfigFields(content)
    model_type = fields.get("model_type", "qwen2")
    fields.require("hidden_act", "silu", default="silu")
    fields.require("attention_bias", False, default=False)
    fields.require("mlp_bias", False, default=False)
    heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
    rope = fields.rope()
    return Qwen2Config(
        vocab=fields.get("vocab_size"),
        width=width,
        layers=fields.get("num_hidden_layers"),
        heads=heads,
        key_value_heads=fields.get("num_key_value_heads", heads),
        head_width=fields.get("head_dim", width // heads),
        hidden=fields.get("intermediate_size"),
        context=_context(fields, model_type),
        rotary_theta=float(rope.get("rope_theta", 10_000.0)),
        rotary_scaling=_rotary_scaling(rope),
        norm_epsilon=fields.get("rms_norm_eps", 1e-6),
        is_tied=fields.get("tie_word_embeddings", False),
        qkv_bias=model_type == "qwen2",
        init_scale=fields.get("initializer_range", 0.02),
        model_type=model_type,
    )


def _context(fields: ConfigFields, model_type: str) -> int:
    """The context; where attention slides, only as far as it still sees everything."""
    context = fields.get("max_position_embeddings", 2048 if model_type == "llama" else 32_768)
    slides = model_type == "mistral" or fields.get("use_sliding_window", False)
    return min(context, fields.get("sliding_window", context)) if slides else context


def _rotary_scaling(rope: ConfigFields) -> RotaryScaling | None:
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    rope.require("rope_type", "llama3", default="default")
    return RotaryScaling(
        factor=float(rope.get("factor", 8.0)),
        low_factor=float(rope.get("low_freq_factor", 1.0)),
        high_factor=float(rope.get("high_freq_factor", 4.0)),
        original_context=rope.get("original_max_position_embeddings"),
    )


def config_to_hugging_face(config: Qwen2Config) -> dict[str, Any]:
    """The `config.json` of a config, in the older spelling that every version reads."""
    name = _CLASS_NAMES[config.model_type]
    content: dict[str, Any] = {
        "model_type": config.model_type,
        "architectures": {
            "classifier": f"{name}ForSequenceClassification",
            "lm": f"{name}ForCausalLM",
        },
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.context,
        "rope_theta": config.rotary_theta,
        "rms_norm_eps": config.norm_epsilon,
        "initializer_range": config.init_scale,
        "hidden_act": "silu",
        "tie_word_embeddings": config.is_tied,
        "sliding_window": None,
    }
    if config.rotary_scaling is not None:
        scaling = config.rotary_scaling
        content["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_factor,
            "high_freq_factor": scaling.high_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return content


PORT = Port(
    config_type=Qwen2Config,
    model_types=tuple(_CLASS_NAMES),
    block=Qwen2Block,
    trunk=trunk,
    block_axes=BLOCK_AXES,
    names=NAMES,
    config_from_hugging_face=config_from_hugging_face,
    config_to_hugging_face=config_to_hugging_face,
)
