"""Layers and the attention that every port shares.

Arrays inside a model carry two leading axes, ``B`` examples and ``C`` rows of one example (attack
candidates; 1 for ordinary text). Rows of one example share cached keys and values, which therefore
have no ``C`` axis and are never copied per row.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from robustjax.errors import UserError

_MASKED = -1e30  # finite: a row that sees nothing yields garbage, never NaN


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
        y = jnp.einsum(
            "...i,io->...o",
            x,
            self.kernel[...].astype(dtype),
            precision=self.numerics.matmul_precision,
            preferred_element_type=wide,
        )
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
        normal = self.final_norm(hidden)
        if self.head is not None:
            return self.head.sums(normal).astype(jnp.float32)
        scores = jnp.einsum(
            "...d,vd->...v",
            normal,
            self.embed.embedding[...].astype(self.numerics.compute_dtype),
            precision=self.numerics.matmul_precision,
            preferred_element_type=self.numerics.accumulation_dtype,
        )
        return scores.astype(jnp.float32)


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


class Context(NamedTuple):
    """Keys and values that all rows of an example attend to; never copied per row.

    Attributes:
        keys: ``[B, P, G, K]`` (``G`` key/value heads).
        values: ``[B, P, G, K]``.
        mask: ``[B, P]``, true where a real token stands.
    """

    keys: Float[Array, "B P G K"]
    values: Float[Array, "B P G K"]
    mask: Bool[Array, "B P"]


def attend(
    queries: Float[Array, "B C R H K"],
    keys: Float[Array, "B C T G K"],
    values: Float[Array, "B C T G K"],
    mask: Bool[Array, "B C R T"],
    contexts: Sequence[Context],
    precision: str,
) -> Float[Array, "B C R H K"]:
    """Softmax attention over shared contexts and a row's own tokens, jointly normalised.

    Scores are taken block by block and normalised by one maximum and one sum, so the contexts are
    neither concatenated with the row's own keys nor repeated for each row. ``H`` is a multiple of
    ``G`` (grouped-query attention).

    Each block keeps the layout in which its product leaves it (``B G C R M P`` for a context, whose
    rows are one large product, ``B C G R M T`` for a row's own tokens): only what has no token axis
    is transposed, which at a prefix of 900 tokens takes a third of the time away.
    """
    batch, rows, reads, heads, width = queries.shape
    groups = keys.shape[3]
    split = (batch, rows, reads, groups, heads // groups, width)
    q = queries.reshape(split) * (width**-0.5)
    out_type = queries.dtype
    product = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)

    def scores(spec: str, k: Array, visible: Array) -> Array:
        return jnp.where(visible, product(spec, q, k), _MASKED)

    def swapped(x: Array) -> Array:
        """Between ``B G C ...`` and ``B C G ...``."""
        return jnp.swapaxes(x, 1, 2)

    own = scores("bcrgmk,bctgk->bcgrmt", keys, mask[:, :, None, :, None])
    shared = [
        scores("bcrgmk,bpgk->bgcrmp", context.keys, context.mask[:, None, None, None, None])
        for context in contexts
    ]
    top = own.max(-1, keepdims=True)
    for block in shared:
        top = jnp.maximum(top, swapped(block.max(-1, keepdims=True)))
    top = jax.lax.stop_gradient(top)

    weights = jnp.exp(own - top)
    total = weights.sum(-1, keepdims=True)  # [B, C, G, R, M, 1]
    mixed = product("bcgrmt,bctgk->bcgrmk", weights.astype(out_type), values)
    for block, context in zip(shared, contexts, strict=True):
        weights = jnp.exp(block - swapped(top))
        total = total + swapped(weights.sum(-1, keepdims=True))
        mixed = mixed + swapped(
            product("bgcrmp,bpgk->bgcrmk", weights.astype(out_type), context.values)
        )
    mixed = jnp.swapaxes(mixed / total, 2, 3)
    return mixed.astype(out_type).reshape(batch, rows, reads, heads, width)


def gather_tokens(
    x: Shaped[Array, "B C T *rest"], index: Int[Array, "B C R"]
) -> Shaped[Array, "B C R *rest"]:
    """Picks tokens ``index`` of every row."""
    expanded = index.reshape(index.shape + (1,) * (x.ndim - 3))
    return jnp.take_along_axis(x, expanded, axis=2)
