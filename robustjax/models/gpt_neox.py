"""GPT-NeoX (Pythia): fused QKV, partial rotary embedding, exact GELU, parallel residual.

Source: Black et al. 2022 (arXiv 2204.06745), Biderman et al. 2023 (arXiv 2304.01373), and the
Hugging Face ``gpt_neox`` configuration, whose field values the named constructors repeat.
"""

import dataclasses
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from robustjax.models.layers import (
    Context,
    Embedding,
    LayerNorm,
    Linear,
    Numerics,
    attend,
    gather_tokens,
    rotate,
)


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

    def __call__(
        self,
        x: Float[Array, "B C T D"],
        positions: Int[Array, "B C T"],
        mask: Bool[Array, "B C R T"],
        contexts: Sequence[Context],
        read: Int[Array, "B C R"] | None,
    ) -> tuple[
        Float[Array, "B C R D"], tuple[Float[Array, "B C T H K"], Float[Array, "B C T H K"]]
    ]:
        """Runs the block.

        Args:
            x: token states.
            positions: position of each token, for the rotary embedding.
            mask: which own tokens each output position sees.
            contexts: shared keys and values to attend to as well.
            read: the positions to compute outputs for; all of them when None.

        Returns:
            New states at the read positions, and the keys and values of all tokens.
        """
        queries, keys, values = self._project(self.attention_norm(x), positions)
        if read is not None:
            x, queries = gather_tokens(x, read), gather_tokens(queries, read)
        mixed = attend(queries, keys, values, mask, contexts, self.numerics.matmul_precision)
        attention = self.attention_out(mixed.reshape(*mixed.shape[:3], -1))
        if self.config.parallel_residual:
            out = x + attention + self._mlp(self.mlp_norm(x))
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
        turn = {"rotary_dims": config.rotary_dims, "theta": config.rotary_theta}
        return rotate(queries, positions, **turn), rotate(keys, positions, **turn), values

    def _mlp(self, x: Array) -> Array:
        return self.mlp_out(jax.nn.gelu(self.mlp_in(x), approximate=False))


class GPTNeoXTrunk(nnx.Module):
    """What stands around the blocks: embedding, final norm, and a head (classes or vocabulary)."""

    def __init__(self, config: GPTNeoXConfig, numerics: Numerics, *, outputs: int, rngs: nnx.Rngs):
        scale = config.init_scale
        self.embed = Embedding(
            config.vocab, config.width, init_scale=scale, numerics=numerics, rngs=rngs
        )
        self.final_norm = LayerNorm(config.width, epsilon=config.norm_epsilon, numerics=numerics)
        self.head = Linear(
            config.width, outputs, use_bias=False, init_scale=0.02, numerics=numerics, rngs=rngs
        )


BLOCK_AXES = {
    "attention_norm": {"scale": ("embed",), "bias": ("embed",)},
    "mlp_norm": {"scale": ("embed",), "bias": ("embed",)},
    "qkv": {"kernel": ("embed", "heads"), "bias": ("heads",)},
    "attention_out": {"kernel": ("heads", "embed"), "bias": ("embed",)},
    "mlp_in": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "mlp_out": {"kernel": ("mlp", "embed"), "bias": ("embed",)},
}
"""Logical axes of one block's weights (``runtime.mesh`` maps them to the mesh)."""

TRUNK_AXES = {
    "embed": {"embedding": ("vocab", "embed")},
    "final_norm": {"scale": ("embed",), "bias": ("embed",)},
    "head": {"kernel": ("embed", "vocab")},
}
"""Logical axes of the weights around the blocks."""

HF_BLOCK_KEYS = {
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
}
"""Hugging Face names below ``gpt_neox.layers.N.``; every ``kernel`` is the transposed ``weight``."""

HF_TRUNK_KEYS = {
    "gpt_neox.embed_in.weight": ("embed", "embedding"),
    "gpt_neox.final_layer_norm.weight": ("final_norm", "scale"),
    "gpt_neox.final_layer_norm.bias": ("final_norm", "bias"),
}
HF_HEAD_KEYS = {"classifier": "score.weight", "lm": "embed_out.weight"}
HF_IGNORED = ("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq")
"""Buffers of older checkpoints that hold no weights."""
