"""GPT-NeoX (Pythia): fused QKV, partial rotary embedding, exact GELU, parallel residual.

Source: Black et al. 2022 (arXiv 2204.06745), Biderman et al. 2023 (arXiv 2304.01373), and the
Hugging Face ``gpt_neox`` configuration, whose field values the named constructors repeat.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from robustjax.errors import UserError
from robustjax.models.attention import Context, Visible, attend
from robustjax.models.config_fields import ConfigFields
from robustjax.models.layers import (
    Alone,
    LayerNorm,
    Linear,
    Numerics,
    Trunk,
    gather_tokens,
    rotary_frequencies,
    rotate,
)
from robustjax.models.port import AxesTree, Names, Port


@dataclasses.dataclass(frozen=True)
class GPTNeoXConfig:
    """Shape of a GPT-NeoX model.

    Attributes:
        vocab: rows of the embedding table (padded vocabulary).
        width: ``D``; ``width // heads`` is the head width ``K``.
        hidden: ``F``, width of the feed-forward layer.
        rotary_fraction: share of the head width that is rotated.
        context: longest sequence the model is meant for, in tokens.
        init_scale: standard deviation of freshly drawn weights.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    hidden: int
    context: int = 2048
    rotary_fraction: float = 0.25
    rotary_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    parallel_residual: bool = True
    init_scale: float = 0.02

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(
                f"model: width {self.width} is no multiple of {self.heads} heads; mend "
                "num_attention_heads"
            )

    @property
    def head_width(self) -> int:
        """Width ``K`` of one attention head."""
        return self.width // self.heads

    @property
    def key_value_heads(self) -> int:
        """Heads that keys and values have (all of them here)."""
        return self.heads

    @property
    def rotary_dims(self) -> int:
        """Dimensions of each head that are rotated."""
        return int(self.head_width * self.rotary_fraction)


class GPTNeoXBlock(nnx.Module):
    """One transformer block."""

    def __init__(self, config: GPTNeoXConfig, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width, hidden = config.width, config.hidden

        def linear(features_in: int, features_out: int) -> Linear:
            return Linear(
                features_in,
                features_out,
                use_bias=True,
                init_scale=config.init_scale,
                numerics=numerics,
                rngs=rngs,
            )

        self.attention_norm = LayerNorm(width, epsilon=config.norm_epsilon, numerics=numerics)
        self.mlp_norm = LayerNorm(width, epsilon=config.norm_epsilon, numerics=numerics)
        # Output columns are ordered (head, q|k|v, K), as in the published weights, so that a
        # split over heads keeps each head's three parts together.
        self.qkv = linear(width, 3 * width)
        self.attention_out = linear(width, width)
        self.mlp_in = linear(width, hidden)
        self.mlp_out = linear(hidden, width)

    def keys_values(
        self, x: Float[Array, "B C T D"], positions: Int[Array, "B C T"]
    ) -> tuple[Float[Array, "B C T H K"], Float[Array, "B C T H K"]]:
        """Keys (rotated) and values of every token: all a cached prefix needs of its last block."""
        _, keys, values = self._project(self.attention_norm(x), positions)
        return keys, values

    def alone(self, x: Float[Array, "B C T D"], positions: Int[Array, "B C T"]) -> Alone:
        """What does not depend on other tokens."""
        projected = self._project(self.attention_norm(x), positions)
        is_parallel = self.config.parallel_residual
        return Alone(*projected, self._mlp(self.mlp_norm(x)) if is_parallel else None)

    def __call__(
        self,
        x: Float[Array, "B C T D"],
        positions: Int[Array, "B C T"],
        visible: Visible,
        contexts: Sequence[Context],
        read: Int[Array, "B C R"] | None,
        alone: Alone | None = None,
    ) -> tuple[
        Float[Array, "B C R D"], tuple[Float[Array, "B C T H K"], Float[Array, "B C T H K"]]
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
        mlp = None
        if alone is None:
            queries, keys, values = self._project(self.attention_norm(x), positions)
        else:
            queries, keys, values, mlp = alone
        if read is not None:
            x, queries = gather_tokens(x, read), gather_tokens(queries, read)
            mlp = None if mlp is None else gather_tokens(mlp, read)
        precision = self.numerics.matmul_precision
        mixed = attend(queries, keys, values, visible, contexts, precision, is_causal=read is None)
        attention = self.attention_out(mixed.reshape(*mixed.shape[:3], -1))
        if self.config.parallel_residual:
            out = x + attention + (self._mlp(self.mlp_norm(x)) if mlp is None else mlp)
        else:
            x = x + attention
            out = x + self._mlp(self.mlp_norm(x))
        return out, (keys, values)

    def _project(self, x: Array, positions: Array) -> tuple[Array, Array, Array]:
        config = self.config
        fused = self.qkv(x).reshape(*x.shape[:3], config.heads, 3 * config.head_width)
        queries, keys, values = (
            fused[..., part * config.head_width : (part + 1) * config.head_width]
            for part in range(3)
        )
        turns = rotary_frequencies(config.rotary_dims, config.rotary_theta)
        return rotate(queries, positions, turns), rotate(keys, positions, turns), values

    def _mlp(self, x: Array) -> Array:
        return self.mlp_out(_gelu(self.mlp_in(x)))


def _gelu(x: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
    """Exact GELU through erf, as torch computes it.

    JAX's own goes through erfc, which on a CPU takes three times as long for the same digits.
    """
    return x * (0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5)))


def trunk(
    config: GPTNeoXConfig,
    numerics: Numerics,
    *,
    head: Literal["classifier", "lm"],
    outputs: int,
    rngs: nnx.Rngs,
) -> Trunk:
    """What stands around the blocks; no head is tied."""
    del head
    return Trunk(
        config.vocab,
        config.width,
        final_norm=LayerNorm(config.width, epsilon=config.norm_epsilon, numerics=numerics),
        outputs=outputs,
        is_tied=False,
        init_scale=config.init_scale,
        numerics=numerics,
        rngs=rngs,
    )


BLOCK_AXES: AxesTree = {
    "attention_norm": {"scale": ("embed",), "bias": ("embed",)},
    "mlp_norm": {"scale": ("embed",), "bias": ("embed",)},
    "qkv": {"kernel": ("embed", "heads"), "bias": ("heads",)},
    "attention_out": {"kernel": ("heads", "embed"), "bias": ("embed",)},
    "mlp_in": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "mlp_out": {"kernel": ("mlp", "embed"), "bias": ("embed",)},
}

NAMES = Names(
    prefix="gpt_neox.",
    block_prefix="layers.{}.",
    block={
        "input_layernorm.weight": ("attention_norm", "scale"),
        "input_layernorm.bias": ("attention_norm", "bias"),
        "post_attention_layernorm.weight": ("mlp_norm", "scale"),
        "post_attention_layernorm.bias": ("mlp_norm", "bias"),
        "attention.query_key_value.weight": ("qkv", "kernel"),
        "attention.query_key_value.bias": ("qkv", "bias"),
        "attention.dense.weight": ("attention_out", "kernel"),
        "attention.dense.bias": ("attention_out", "bias"),
        "mlp.dense_h_to_4h.weight": ("mlp_in", "kernel"),
        "mlp.dense_h_to_4h.bias": ("mlp_in", "bias"),
        "mlp.dense_4h_to_h.weight": ("mlp_out", "kernel"),
        "mlp.dense_4h_to_h.bias": ("mlp_out", "bias"),
    },
    trunk={
        "embed_in.weight": ("embed", "embedding"),
        "final_layer_norm.weight": ("final_norm", "scale"),
        "final_layer_norm.bias": ("final_norm", "bias"),
    },
    lm_head="embed_out.weight",
    ignored=("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"),
)


def config_from_hugging_face(content: Mapping[str, Any]) -> GPTNeoXConfig:
    """Reads a `config.json` of model type `gpt_neox`."""
    fields = ConfigFields(content)
    fields.require("hidden_act", "gelu", default="gelu")
    fields.require("attention_bias", True, default=True)
    fields.require("tie_word_embeddings", False, default=False)
    rope = fields.rope(theta_name="rotary_emb_base")
    rope.require("rope_type", "default", default="default")
    share = fields.get("rotary_pct", 0.25)
    return GPTNeoXConfig(
        vocab=fields.get("vocab_size"),
        width=fields.get("hidden_size"),
        layers=fields.get("num_hidden_layers"),
        heads=fields.get("num_attention_heads"),
        hidden=fields.get("intermediate_size"),
        context=fields.get("max_position_embeddings", 2048),
        rotary_fraction=rope.get("partial_rotary_factor", share),
        rotary_theta=float(rope.get("rope_theta", 10_000.0)),
        norm_epsilon=fields.get("layer_norm_eps", 1e-5),
        parallel_residual=fields.get("use_parallel_residual", True),
        init_scale=fields.get("initializer_range", 0.02),
    )


def config_to_hugging_face(config: GPTNeoXConfig) -> dict[str, Any]:
    """The `config.json` of a config, in the older spelling that every version reads."""
    return {
        "model_type": "gpt_neox",
        "architectures": {
            "classifier": "GPTNeoXForSequenceClassification",
            "lm": "GPTNeoXForCausalLM",
        },
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.context,
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rotary_theta,
        "layer_norm_eps": config.norm_epsilon,
        "use_parallel_residual": config.parallel_residual,
        "initializer_range": config.init_scale,
        "hidden_act": "gelu",
        "attention_bias": True,
        "tie_word_embeddings": False,
    }


PORT = Port(
    config_type=GPTNeoXConfig,
    model_types=("gpt_neox",),
    block=GPTNeoXBlock,
    trunk=trunk,
    block_axes=BLOCK_AXES,
    names=NAMES,
    config_from_hugging_face=config_from_hugging_face,
    config_to_hugging_face=config_to_hugging_face,
)
