"""Layers that every port shares.

Arrays inside a model carry two leading axes, ``B`` examples and ``C`` rows of one example (attack
candidates; 1 for ordinary text). Rows of one example share cached keys and values, which therefore
have no ``C`` axis and are never copied per row.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from robustjax.errors import UserError

MASKED = -1e30  # finite: what sees nothing yields garbage, never NaN
_SCORES_IN_MEMORY = 1 << 20
"""Scores of a vocabulary that may be in memory at once."""
_VOCABULARY_PART = 2048
"""Columns of the vocabulary that are scored at once where there would be more."""


_TYPES = ("float32", "bfloat16", "float16")
_PRECISIONS = ("highest", "high", "default")


@dataclasses.dataclass(frozen=True)
class Numerics:
    """Number formats of a model: float32, bfloat16 or float16 by name.

    Softmax, norms, rotary angles and the sums of attention are float32 whatever these say.

    Attributes:
        param_dtype: storage type of the weights.
        compute_dtype: type of activations, and of the factors of matrix products.
        accumulation_dtype: type in which products with weights are summed up, biases included,
            before they become activations, and in which gradients of microbatches are summed up.
        matmul_precision: ``highest`` makes float32 products true float32 on every backend
            (accelerators take fewer bits for ``high``, and fewest for ``default``).
    """

    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    accumulation_dtype: str = "float32"
    matmul_precision: str = "highest"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            known = _PRECISIONS if field.name == "matmul_precision" else _TYPES
            value = getattr(self, field.name)
            if value not in known:
                raise UserError(f"{field.name}={value!r} is unknown; use {', '.join(known)}")


class Linear(nnx.Module):
    """``y = x @ kernel + bias`` with ``kernel`` of shape ``[in, out]``."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool,
        init_scale: float,
        numerics: Numerics,
        rngs: nnx.Rngs,
    ):
        self.numerics = numerics
        kernel = init_scale * jax.random.normal(rngs.params(), (in_features, out_features))
        self.kernel = nnx.Param(kernel.astype(numerics.param_dtype))
        self.bias = (
            nnx.Param(jnp.zeros((out_features,), numerics.param_dtype)) if use_bias else None
        )

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """Maps the last axis."""
        return self.sums(x).astype(self.numerics.compute_dtype)

    def sums(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """Maps the last axis; in ``accumulation_dtype``."""
        dtype, wide = self.numerics.compute_dtype, self.numerics.accumulation_dtype
        # As one matrix: on a CPU its product is faster than one with more axes.
        y = jnp.dot(
            x.reshape(-1, x.shape[-1]),
            self.kernel[...].astype(dtype),
            precision=self.numerics.matmul_precision,
            preferred_element_type=wide,
        ).reshape(*x.shape[:-1], -1)
        if self.bias is not None:
            y = y + jnp.broadcast_to(self.bias[...].astype(wide), y.shape)
        return y


class LayerNorm(nnx.Module):
    """Layer norm with scale and bias, computed in float32, returned in the input's type."""

    def __init__(self, features: int, *, epsilon: float, numerics: Numerics):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((features,), numerics.param_dtype))
        self.bias = nnx.Param(jnp.zeros((features,), numerics.param_dtype))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalises the last axis."""
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        scale = jnp.broadcast_to(self.scale[...].astype(jnp.float32), normal.shape)
        bias = jnp.broadcast_to(self.bias[...].astype(jnp.float32), normal.shape)
        return (normal * scale + bias).astype(x.dtype)


class Embedding(nnx.Module):
    """Token embedding table ``[V, D]``."""

    def __init__(
        self, vocab: int, features: int, *, init_scale: float, numerics: Numerics, rngs: nnx.Rngs
    ):
        self.numerics = numerics
        table = init_scale * jax.random.normal(rngs.params(), (vocab, features))
        self.embedding = nnx.Param(table.astype(numerics.param_dtype))

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """Looks up the rows of the tokens."""
        return self.embedding[...].astype(self.numerics.compute_dtype)[tokens]


class RMSNorm(nnx.Module):
    """Root-mean-square norm with scale, computed in float32, returned in the input's type."""

    def __init__(self, features: int, *, epsilon: float, numerics: Numerics):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((features,), numerics.param_dtype))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalises the last axis."""
        wide = x.astype(jnp.float32)
        mean_square = jnp.square(wide).mean(-1, keepdims=True)
        normal = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        scale = jnp.broadcast_to(self.scale[...].astype(jnp.float32), normal.shape)
        return (normal * scale).astype(x.dtype)


class Trunk(nnx.Module):
    """What stands around the blocks: embedding, final norm, and a head (classes or vocabulary).

    A tied head has no weights: it reads the embedding table (sharing by use, so that a parameter
    tree never holds one array twice).
    """

    def __init__(
        self,
        vocab: int,
        width: int,
        *,
        final_norm: nnx.Module,
        outputs: int,
        is_tied: bool,
        init_scale: float,
        numerics: Numerics,
        rngs: nnx.Rngs,
    ):
        self.numerics = numerics
        self.embed = Embedding(vocab, width, init_scale=init_scale, numerics=numerics, rngs=rngs)
        self.final_norm = final_norm
        self.head = (
            None
            if is_tied
            else Linear(
                width, outputs, use_bias=False, init_scale=0.02, numerics=numerics, rngs=rngs
            )
        )

    def project(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch N"]:
        """Final norm and head: float32 scores of classes, or of the vocabulary."""
        return self._scores(self.final_norm(hidden), self._head_weights())

    def rivalry(self, hidden: Float[Array, "B C R D"], tokens: Int[Array, "B R"]) -> "Rivalry":
        """The score of one token at each place, and what it has against it.

        The scores of a whole vocabulary are never in memory at once: they are taken a few thousand
        columns at a time, with a running maximum and sum. (On a CPU that is also three times as
        fast as writing them out and reading them again.)

        Args:
            tokens: one token of the vocabulary for each place, the same for all rows.
        """
        normal, weights = self.final_norm(hidden), self._head_weights()
        vocab = weights.shape[-1]
        few = math.prod(normal.shape[:-1]) * vocab <= _SCORES_IN_MEMORY
        width = vocab if few else min(_VOCABULARY_PART, vocab)

        def part(carry: tuple[Array, Array], first: Array) -> tuple[tuple[Array, Array], None]:
            top, total = carry
            begin = jnp.minimum(first, vocab - width)  # the last part overlaps the one before
            scores = self._scores(normal, jax.lax.dynamic_slice_in_dim(weights, begin, width, -1))
            index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1) + begin
            left_out = (index < first) | (index == tokens[:, None, :, None])
            scores = jnp.where(left_out, MASKED, scores)
            new = jnp.maximum(top, jax.lax.stop_gradient(scores.max(-1)))
            total = total * jnp.exp(top - new) + jnp.exp(scores - new[..., None]).sum(-1)
            return (new, total), None

        score = jnp.einsum(
            "bcrd,dbr->bcr",
            normal,
            weights[:, tokens].astype(self.numerics.compute_dtype),
            precision=self.numerics.matmul_precision,
            preferred_element_type=self.numerics.accumulation_dtype,
        ).astype(jnp.float32)
        start = (jnp.full(score.shape, MASKED), jnp.zeros(score.shape))
        (top, total), _ = jax.lax.scan(part, start, jnp.arange(0, vocab, width))
        return Rivalry(score, top, jnp.log(total) + top)

    def _head_weights(self) -> Float[Array, "D N"]:
        """Of the head, or the embedding table that it shares."""
        if self.head is not None:
            return self.head.kernel[...]
        return self.embed.embedding[...].T

    def _scores(
        self, normal: Float[Array, "*batch D"], weights: Float[Array, "D N"]
    ) -> Float[Array, "*batch N"]:
        scores = jnp.einsum(
            "...d,dv->...v",
            normal,
            weights.astype(self.numerics.compute_dtype),
            precision=self.numerics.matmul_precision,
            preferred_element_type=self.numerics.accumulation_dtype,
        )
        return scores.astype(jnp.float32)


class Rivalry(NamedTuple):
    """One token of the vocabulary against all others; float32.

    Attributes:
        score: of the token.
        top: highest score of another.
        logsum: logarithm of the sum of the exponentials of all others.
    """

    score: Float[Array, "B C R"]
    top: Float[Array, "B C R"]
    logsum: Float[Array, "B C R"]


def rotary_frequencies(rotary_dims: int, theta: float) -> Float[np.ndarray, " half"]:
    """Radians per position of each pair of rotated dimensions, rounded to float32 once."""
    half = rotary_dims // 2
    return (theta ** (-np.arange(half) / half)).astype(np.float32)


def rotate(
    x: Float[Array, "B C T H K"],
    positions: Int[Array, "B C T"],
    frequencies: Float[np.ndarray, " half"],
) -> Float[Array, "B C T H K"]:
    """Rotary position embedding (half-split form) on the first ``2 x half`` of each head.

    Angles are float32: bfloat16 rounds position 257 to 256.
    """
    half = len(frequencies)
    rotary_dims = 2 * half
    angle = positions[..., None].astype(jnp.float32) * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angle)[:, :, :, None, :], jnp.sin(angle)[:, :, :, None, :]
    first, second = (
        x[..., :half].astype(jnp.float32),
        x[..., half:rotary_dims].astype(jnp.float32),
    )
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(
        [*(part.astype(x.dtype) for part in turned), x[..., rotary_dims:]], axis=-1
    )


class Alone(NamedTuple):
    """What a block computes of each token by itself, before tokens attend to one another.

    Attributes:
        queries: ``[B, C, T, H, K]``, rotated.
        keys: ``[B, C, T, G, K]``, rotated.
        values: ``[B, C, T, G, K]``.
        mlp: ``[B, C, T, D]`` where the feed-forward layer runs beside attention, else None.
    """

    queries: Float[Array, "B C T H K"]
    keys: Float[Array, "B C T G K"]
    values: Float[Array, "B C T G K"]
    mlp: Float[Array, "B C T D"] | None


def gather_tokens(
    x: Shaped[Array, "B C T *rest"], index: Int[Array, "B C R"]
) -> Shaped[Array, "B C R *rest"]:
    """Picks tokens ``index`` of every row."""
    expanded = index.reshape(index.shape + (1,) * (x.ndim - 3))
    return jnp.take_along_axis(x, expanded, axis=2)
