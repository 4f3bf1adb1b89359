"""Attention over caches and over rows of one width or several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.evaluation.flops import executed_flops
from robustjax.models import transformer
from robustjax.models.attention import Context, Own, Stretch, attend
from tests.models.tiny import define, jit, make_params, make_tokens, relative_error, seeded

encode, forward = (jit(getattr(transformer, name)) for name in ("encode", "forward"))


def positions_of(mask):
    return jnp.maximum(jnp.cumsum(mask, -1) - 1, 0)


@pytest.mark.parametrize(("width", "groups"), [(127, 2), (128, 4), (200, 2), (257, 4)])
def test_causal_attention_in_parts_is_attention(width, groups):
    """Long rows only meet the keys that they see; padding on the left, and a context, too."""
    shapes = ((2, 1, width, 4, 8), *((2, 1, width, groups, 8),) * 2, *((2, groups, 3, 8),) * 2)
    queries, keys, values, *context = (
        jnp.asarray(seeded(f"{place}", shape)) for place, shape in enumerate(shapes)
    )
    real = np.arange(width) >= np.array([[0], [40]])
    mask = jnp.asarray(np.tril(np.ones((width, width), bool)) & real[:, None, None])
    contexts = [Context(*context, jnp.ones((2, 3), bool))]

    def attended(arrays, visible, is_causal):
        def run(*arrays):
            return attend(*arrays, visible, contexts, "highest", is_causal=is_causal)

        return jax.jit(run)(*arrays)

    arrays = queries, keys, values
    seen = real[:, None]  # a token of the padding sees nothing of its own row
    found, expected = (attended(arrays, mask, is_causal) for is_causal in (True, False))
    np.testing.assert_allclose(found[seen], expected[seen], atol=2e-6)
    twice = [np.concatenate([one, one], axis=2) for one in arrays]
    stretches = (Own(mask, 3), Own(mask, 3))
    both = attended(twice, stretches, True)
    for row in (both[:, :, :width], both[:, :, width:]):
        np.testing.assert_allclose(row[seen], expected[seen], atol=2e-6)

    def products(is_causal, visible=mask, arrays=arrays):
        def run(*arrays):
            return attend(*arrays, visible, [contexts[0]], "highest", is_causal=is_causal)

        beside = arrays[0].size * 3 * 2  # of the context's three tokens, scores and mixing
        return executed_flops(run, *arrays) - 2 * beside

    share = products(True) / products(False)
    assert share == 1 if width < 128 else 0.6 < share < 0.65
    assert products(True, stretches, twice) == 2 * products(True)


@pytest.mark.parametrize(
    ("family", "scanned"),
    [("neox", False), ("neox-sequential", True), ("qwen2", False), ("llama", True)],
)
def test_rows_laid_end_to_end_are_rows_of_their_own(family, scanned):
    """Three rows of five tokens, then two of seven that see less of what stands before them."""
    definition = define(family, scanned=scanned)
    params = make_params(definition)
    tokens, mask = make_tokens("batch", (12, 9, 7), 12)
    before, beside = (
        encode(definition, params, tokens[:, part], mask[:, part])
        for part in (slice(0, 4), slice(4, 7))
    )
    stretches = (Stretch(3, 5, 3), Stretch(2, 7, 1))

    def seen(rows, width, known):
        """Embeddings, positions, mask and the two places that are read, of rows by themselves."""
        x = jnp.asarray(seeded(f"{width}", (len(tokens), rows, width, definition.config.width)))
        real = np.arange(width) < np.array([[width], [width - 2], [width - 1]])[..., None]
        real = np.broadcast_to(real, x.shape[:3])
        positions = mask[:, : 4 + known].sum(-1)[:, None, None] + positions_of(real)
        read = np.stack([np.full(x.shape[:2], 1), transformer.last_real(real)], -1)
        return x, positions, jnp.asarray(real), read

    def known_of(cache, count):
        return cache if count == 3 else cache.first(count)

    pieces = [seen(*one) for one in stretches]
    expected = [
        forward(definition, params, *piece[:3], (before, known_of(beside, one.known)), piece[3])
        for one, piece in zip(stretches, pieces, strict=True)
    ]

    begins = np.cumsum([0, 15])
    widths = [one.width for one in stretches]
    reads = [
        piece[3] + begin + width * np.arange(piece[3].shape[1])[:, None]
        for piece, begin, width in zip(pieces, begins, widths, strict=True)
    ]
    x, positions, real = (
        jnp.concatenate([piece.reshape(len(tokens), 1, -1, *piece.shape[3:]) for piece in kind], 2)
        for kind in list(zip(*pieces, strict=True))[:3]
    )
    read = np.concatenate([one.reshape(len(tokens), 1, -1) for one in reads], 2)
    found = jax.jit(transformer.forward, static_argnames=("definition", "stretches"))(
        *(definition, params, x, positions, real, (before, beside), read), stretches=stretches
    )
    flat = jnp.concatenate([one.reshape(len(tokens), 1, -1, one.shape[-1]) for one in expected], 2)
    assert relative_error(found, flat) < 1e-5
