"""What a port must keep true, whatever its family: one forward pass, many ways to run it."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from robustjax.data.batching import pad_rows
from robustjax.models import transformer
from robustjax.models.gpt_neox import GPTNeoXConfig
from robustjax.models.transformer import Cache, Definition, Remat
from tests.models.tiny import CONFIGS, define, jit, make_params, make_tokens, relative_error, seeded

FAMILIES = tuple(CONFIGS)
WIDTH, LENGTHS = 12, (12, 9, 7)
LAYOUTS = pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
CASES = [(family, index % 2 == 1) for index, family in enumerate(FAMILIES)]
# Every family once, half of them scanned: that both layouts are one function has its own test.
EACH_CASE = pytest.mark.parametrize(
    ("family", "scanned"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)

apply, encode, embed, forward, project = (
    jit(getattr(transformer, name)) for name in ("apply", "encode", "embed", "forward", "project")
)
last_real = jax.jit(transformer.last_real)


@pytest.fixture(scope="module")
def batch():
    return make_tokens("batch", LENGTHS, WIDTH)


def positions_of(mask):
    return jnp.maximum(jnp.cumsum(mask, -1) - 1, 0)


def class_scores(definition, params, x, positions, mask, caches, read):
    """Class scores of embeddings [B, C, T, D] that are read at [B, C]."""
    hidden = transformer.forward(
        definition, params, x, positions, mask, caches, read=read[..., None]
    )
    return transformer.project(definition, params, hidden[:, :, 0])


scores = jit(class_scores)


@jit
def scores_and_slopes(definition, params, x, positions, mask, caches, read):
    """The scores, and the gradient of a fixed combination of them with respect to `x`."""

    def combined(x):
        out = class_scores(definition, params, x, positions, mask, caches, read)
        return (out * jnp.asarray(seeded("slopes", out.shape), out.dtype)).sum(), out

    slopes, out = jax.grad(combined, has_aux=True)(x)
    return out, slopes


def whole(definition, params, tokens, mask):
    """Scores and slopes of whole prompts, without a cache; one row of each example."""
    x = embed(definition, params, tokens)[:, None]
    read = last_real(mask)[:, None]
    out, slopes = scores_and_slopes(
        definition, params, x, positions_of(mask)[:, None], jnp.asarray(mask)[:, None], (), read
    )
    return np.asarray(out)[:, 0], np.asarray(slopes)[:, 0]


def cut_prompts(tokens, mask, cuts):
    """Splits each prompt in two, both right-padded: (before, its mask, after, its mask)."""
    places = np.arange(tokens.shape[1])[None]
    before_mask = mask & (places < cuts[:, None])
    shifted = np.minimum(places + cuts[:, None], tokens.shape[1] - 1)
    after = np.take_along_axis(tokens, shifted, 1)
    after_mask = places < (mask.sum(1) - cuts)[:, None]
    return np.where(before_mask, tokens, 0), before_mask, np.where(after_mask, after, 0), after_mask


@EACH_FAMILY
def test_scanned_and_unrolled_layers_are_the_same_function(family, batch):
    unrolled, scanned = (
        apply(definition, make_params(definition), *batch)
        for definition in (define(family, scanned=scanned) for scanned in (False, True))
    )
    assert relative_error(scanned, unrolled) < 1e-6


def test_fresh_weights_are_the_same_scanned_or_not():
    unrolled, scanned = (define("neox", scanned=scanned) for scanned in (False, True))
    ours, theirs = transformer.init(unrolled, 3), transformer.init(scanned, 3)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours["embed"], theirs["embed"]))
    for index in range(unrolled.config.layers):
        pair = (
            transformer.layer_params(unrolled, ours, index),
            transformer.layer_params(scanned, theirs, index),
        )
        assert jax.tree.all(jax.tree.map(np.array_equal, *pair))
    other = transformer.init(unrolled, 4)
    assert not np.array_equal(ours["head"]["kernel"], other["head"]["kernel"])


def gradient_program(definition, tokens, mask):
    def loss(params):
        return jnp.square(transformer.apply(definition, params, tokens, mask)).mean()

    return jit(jax.grad(loss), static_argnums=())


@LAYOUTS
def test_recomputing_changes_no_gradient(scanned, batch):
    gradients = {}
    for remat in get_args(Remat):
        definition = define("neox", scanned=scanned, remat=remat)
        gradient = gradient_program(definition, *batch)(make_params(definition))
        gradients[remat] = ravel_pytree(gradient)[0]
    for remat in ("dots", "blocks"):
        assert relative_error(gradients[remat], gradients["none"]) < 1e-6


@LAYOUTS
def test_what_is_kept_for_the_backward_pass_is_what_was_asked_for(scanned):
    tokens, mask = make_tokens("remat", (64, 64), 64)
    config = dataclasses.replace(CONFIGS["neox"], layers=6)
    kept = []
    for remat in get_args(Remat):
        definition = define(config, scanned=scanned, remat=remat)

        def loss(params, definition=definition):
            return jnp.square(transformer.apply(definition, params, tokens, mask)).mean()

        params = transformer.abstract_params(definition)
        backward = jax.eval_shape(lambda params, loss=loss: jax.vjp(loss, params)[1], params)
        sizes = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (backward, params))
        kept.append(next(sizes) - next(sizes))
    assert kept[0] > 2 * kept[1] > 4 * kept[2] > 0


def test_an_attack_recomputes_nothing(batch):
    tokens, mask = batch
    for remat in get_args(Remat):
        definition = define("neox", remat=remat)
        params = transformer.abstract_params(definition)

        def whole(params, definition=definition):
            return transformer.apply(definition, params, tokens, mask)

        def tail(params, definition=definition):
            x = transformer.embed(definition, params, tokens)[:, None]
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)[:, None]
            return transformer.forward(definition, params, x, positions, mask[:, None])

        assert ("remat" in str(jax.make_jaxpr(whole)(params))) == (remat != "none")
        assert "remat" not in str(jax.make_jaxpr(tail)(params))


@EACH_CASE
def test_a_cached_prefix_changes_nothing_wherever_the_prompt_is_cut(family, scanned, batch):
    definition = define(family, scanned=scanned)
    params = make_params(definition)
    tokens, mask = batch
    expected, expected_slopes = whole(definition, params, tokens, mask)
    for cut in range(WIDTH):  # 0 leaves a cache with nothing in it
        cuts = np.minimum(cut, mask.sum(1) - 1)
        before, before_mask, after, after_mask = cut_prompts(tokens, mask, cuts)
        cache = encode(definition, params, before, before_mask)
        got, slopes = scores_and_slopes(
            definition,
            params,
            embed(definition, params, after)[:, None],
            (cuts[:, None] + positions_of(after_mask))[:, None],
            after_mask[:, None],
            (cache,),
            last_real(after_mask)[:, None],
        )
        assert relative_error(got[:, 0], expected) < 1e-5, cut
        places = np.minimum(np.arange(WIDTH)[None] + cuts[:, None], WIDTH - 1)
        wanted = np.take_along_axis(expected_slopes, places[..., None], 1)
        wanted = np.where(after_mask[..., None], wanted, 0)
        assert relative_error(slopes[:, 0], wanted) < 1e-5, cut


@EACH_CASE
def test_a_language_model_goes_on_after_a_cached_prefix(family, scanned, batch):
    definition = define(family, scanned=scanned, head="lm")
    params = make_params(definition)
    tokens, mask = batch
    expected = np.asarray(apply(definition, params, tokens, mask))
    for cut in (0, 3, 6, WIDTH - 1):
        cuts = np.minimum(cut, mask.sum(1) - 1)
        before, before_mask, after, after_mask = cut_prompts(tokens, mask, cuts)
        cache = encode(definition, params, before, before_mask)
        positions = (cuts[:, None] + positions_of(after_mask))[:, None]
        x = embed(definition, params, after)[:, None]
        hidden = forward(definition, params, x, positions, after_mask[:, None], (cache,))
        got = project(definition, params, hidden[:, 0])
        places = np.minimum(np.arange(WIDTH)[None] + cuts[:, None], WIDTH - 1)
        wanted = np.take_along_axis(expected, places[..., None], 1)
        real = after_mask[..., None]
        assert relative_error(np.where(real, got, 0), np.where(real, wanted, 0)) < 1e-5, cut


@LAYOUTS
def test_a_cache_in_two_pieces_is_the_same_cache(scanned, batch):
    definition = define("neox", scanned=scanned)
    params = make_params(definition)
    before, before_mask, after, after_mask = cut_prompts(*batch, np.array([6, 5, 3]))
    whole_cache = encode(definition, params, before, before_mask)

    def piece(part):
        keys, values = (
            jax.tree.map(lambda leaf: leaf[..., part, :], side) for side in whole_cache[:2]
        )
        return Cache(keys, values, whole_cache.mask[:, part])

    x = embed(definition, params, after)[:, None]
    positions = (before_mask.sum(1)[:, None] + positions_of(after_mask))[:, None]
    read = last_real(after_mask)[:, None]
    one, two = (
        scores(definition, params, x, positions, after_mask[:, None], caches, read)
        for caches in ((whole_cache,), (piece(slice(4)), piece(slice(4, None))))
    )
    assert relative_error(two, one) < 1e-6


@EACH_CASE
def test_rows_that_share_a_cache_are_scored_as_if_alone(family, scanned, batch):
    definition = define(family, scanned=scanned)
    params = make_params(definition)
    cuts = np.array([4, 3, 0])
    before, before_mask, after, after_mask = cut_prompts(*batch, cuts)
    rows = np.stack([after, np.roll(after, 1, axis=0), (after * 5 + 1) % 90], axis=1)
    row_mask = np.stack([after_mask, np.roll(after_mask, 1, axis=0), after_mask[::-1]], axis=1)
    positions = cuts[:, None, None] + positions_of(row_mask)
    read = last_real(row_mask)
    cache = encode(definition, params, before, before_mask)
    x = embed(definition, params, rows)
    together = scores(definition, params, x, positions, row_mask, (cache,), read)
    for row in range(rows.shape[1]):
        one = np.s_[:, row : row + 1]
        inputs = x[one], positions[one], row_mask[one], (cache,), read[one]
        alone = scores(definition, params, *inputs)
        assert relative_error(together[one], alone) < 1e-5
        texts = [
            [*before[i, :cut].tolist(), *rows[i, row][row_mask[i, row]].tolist()]
            for i, cut in enumerate(cuts)
        ]
        uncached = apply(definition, params, *pad_rows(texts, 2 * WIDTH, 0))
        assert relative_error(together[:, row], uncached) < 1e-5


@jit
def feed(definition, params, token, place, real, prefix, rows):
    """Runs one more token of every row after a shared prefix and the row's own tokens so far."""
    position = prefix.mask.sum(-1)[:, None] + rows.mask.sum(-1)
    x = transformer.embed(definition, params, token)[:, :, None]
    hidden, new = transformer.forward_and_keep(
        definition, params, x, position[..., None], real[..., None], (prefix, rows)
    )

    def put(old, one, axis):
        return jax.lax.dynamic_update_slice_in_dim(old, one, place, axis)

    keys, values = (
        jax.tree.map(lambda old, one: put(old, one, -2), *pair)
        for pair in ((rows.keys, new.keys), (rows.values, new.values))
    )
    rows = Cache(keys, values, put(rows.mask, new.mask, -1))
    return transformer.project(definition, params, hidden[:, :, 0]), rows


@EACH_CASE
def test_rows_with_caches_of_their_own_grow_token_by_token(family, scanned, batch):
    definition = define(family, scanned=scanned, head="lm")
    params, config = make_params(definition), definition.config
    cuts, width = np.array([5, 3, 0]), 4
    before, before_mask, after, _ = cut_prompts(*batch, cuts)
    rows = np.stack([after, (after * 5 + 1) % 90, (after * 7 + 3) % 90], axis=1)[..., :width]
    lengths = np.array([[4, 3, 4], [2, 4, 4], [4, 4, 3]])
    prefix = encode(definition, params, before, before_mask)
    shape = (*rows.shape[:2], config.key_value_heads, width, config.head_width)
    empty = np.zeros((config.layers, *shape), np.float32)
    keys = empty if scanned else tuple(empty)
    cache = Cache(keys, keys, np.zeros(rows.shape, bool))

    for place in range(width):
        real = place < lengths
        arguments = (definition, params, rows[..., place], place, real, prefix)
        got, grown = feed(*arguments, cache)
        texts = [
            [*before[i, :cut].tolist(), *rows[i, row, : min(place + 1, lengths[i, row])].tolist()]
            for i, cut in enumerate(cuts)
            for row in range(rows.shape[1])
        ]
        ids, mask = pad_rows(texts, WIDTH, 0)
        scores_of_texts = apply(definition, params, ids, mask)
        expected = scores_of_texts[np.arange(len(ids)), mask.sum(1) - 1].reshape(got.shape)
        assert relative_error(got[real], expected[real]) < 1e-5, place
        cache, before_last = grown, cache

    # What a row attends to is its own: with those of its neighbour it says something else.
    neighbours = jax.tree.map(lambda x: np.roll(x, 1, axis=-4), before_last[:2])
    got, _ = feed(*arguments, Cache(*neighbours, before_last.mask))
    assert relative_error(got[real], expected[real]) > 1e-2


@pytest.mark.parametrize("head", ["classifier", "lm"])
@EACH_FAMILY
def test_padding_on_either_side_changes_nothing(family, head, batch):
    definition = define(family, head=head)
    params = make_params(definition)
    tokens, mask = batch
    left = [np.take_along_axis(a, _to_the_right(mask), 1) for a in (tokens, mask)]
    junk = np.where(mask, tokens, 17)  # what stands in the padding must not matter
    right_padded = apply(definition, params, tokens, mask)
    left_padded = apply(definition, params, *left)
    junk_padded = apply(definition, params, junk, mask)
    row, length = 2, LENGTHS[2]
    bare = apply(definition, params, tokens[row:, :length], mask[row:, :length])[0]
    if head == "classifier":
        on_the_right = on_the_left = np.s_[row]
    else:
        on_the_right, on_the_left = np.s_[row, :length], np.s_[row, WIDTH - length :]
    assert relative_error(right_padded[on_the_right], bare) < 1e-6
    assert relative_error(junk_padded[on_the_right], bare) < 1e-6
    assert relative_error(left_padded[on_the_left], bare) < 1e-6


def _to_the_right(mask):
    """Indices that move each row's padding from its right to its left."""
    places = np.arange(mask.shape[1])[None]
    return (places + mask.sum(1)[:, None]) % mask.shape[1]


@EACH_CASE
def test_no_token_sees_a_later_one(family, scanned, batch):
    definition = define(family, scanned=scanned, head="lm")
    params = make_params(definition)
    tokens, mask = batch
    x = embed(definition, params, tokens)[:, None]

    def at(x, place):
        positions = positions_of(mask)[:, None]
        hidden = transformer.forward(definition, params, x, positions, mask[:, None])
        return jnp.square(transformer.project(definition, params, hidden[:, 0])[:, place]).sum()

    slope = jit(jax.grad(at), static_argnums=())
    for place in (0, 4, 6):
        size = np.abs(slope(x, place)[:, 0]).max(-1)
        assert (size[:, : place + 1] > 1e-4).all()
        assert (size[:, place + 1 :] == 0).all()


@EACH_CASE
def test_reading_few_positions_equals_reading_all(family, scanned, batch):
    definition = define(family, scanned=scanned)
    params = make_params(definition)
    tokens, mask = batch
    read = np.array([[[11, 0]], [[2, 8]], [[6, 6]]])
    x = embed(definition, params, tokens)[:, None]
    places = positions_of(mask)[:, None]
    everything = forward(definition, params, x, places, mask[:, None])
    some = forward(definition, params, x, places, mask[:, None], read=read)
    expected = np.take_along_axis(np.asarray(everything), read[..., None], 2)
    assert some.shape == (3, 1, 2, definition.config.width)
    assert relative_error(some, expected) < 1e-6


@EACH_FAMILY
def test_the_classifier_pools_at_the_last_real_token_even_if_padding_stands_inside(family, batch):
    definition = define(family)
    params = make_params(definition)
    tokens, mask = batch
    tokens = tokens.at[:, 3].set(0)  # the padding id, as a token of the text
    got = apply(definition, params, tokens, mask)
    x = embed(definition, params, tokens)[:, None]
    hidden = forward(definition, params, x, positions_of(mask)[:, None], mask[:, None])
    everywhere = np.asarray(project(definition, params, hidden[:, 0]))
    expected = everywhere[np.arange(3), np.array(LENGTHS) - 1]
    assert relative_error(got, expected) < 1e-6
    assert relative_error(got, everywhere[:, 2]) > 0.1


def test_last_real():
    mask = jnp.array([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0]], bool)
    np.testing.assert_array_equal(last_real(mask), [1, 3, 0, 2])


@EACH_FAMILY
def test_a_language_model_scores_the_next_token_at_every_place(family, batch):
    definition = define(family, head="lm")
    params = make_params(definition)
    tokens, mask = batch
    out = apply(definition, params, tokens, mask)
    assert out.shape == (3, WIDTH, definition.config.vocab)
    assert out.dtype == jnp.float32
    shorter = apply(definition, params, tokens[:, :5], mask[:, :5])
    assert relative_error(shorter, out[:, :5]) < 1e-6


@pytest.mark.parametrize("num_classes", [2, 3])
def test_number_of_classes(num_classes, batch):
    definition = define("neox", num_classes=num_classes)
    assert apply(definition, make_params(definition), *batch).shape == (3, num_classes)


@LAYOUTS
def test_the_cache_of_narrow_heads_and_a_prefix_has_the_documented_shape(scanned, batch):
    definition = define("neox", scanned=scanned)
    config = definition.config
    cache = encode(definition, make_params(definition), *batch)
    shape = (3, config.key_value_heads, WIDTH, config.head_width)
    if scanned:
        assert cache.keys.shape == cache.values.shape == (config.layers, *shape)
    else:
        assert [keys.shape for keys in cache.keys] == [shape] * config.layers
    assert cache.layer(1).keys.shape == shape


def test_float32_products_are_lowered_at_the_highest_precision(batch):
    definition = define("neox")
    lowered = apply.lower(definition, make_params(definition), *batch).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert products
    assert all("HIGHEST, HIGHEST" in line for line in products)


def test_narrow_compute_keeps_scores_in_float32(batch):
    wide = define("neox")
    narrow = dataclasses.replace(
        wide, numerics=dataclasses.replace(wide.numerics, compute_dtype="bfloat16")
    )
    params = make_params(wide)
    got = apply(narrow, params, *batch)
    assert got.dtype == jnp.float32
    assert 0 < relative_error(got, apply(wide, params, *batch)) < 0.1


@pytest.mark.parametrize("has_gradient", [False, True], ids=["forward", "gradient"])
def test_scanned_weights_are_read_where_they_lie(has_gradient):
    """An attack's passes make no copy of the stack, and keep no layer's for their gradient."""
    shape = GPTNeoXConfig(vocab=64, width=128, layers=16, heads=4, hidden=512)
    definition = Definition(shape, scanned=True)
    params = transformer.abstract_params(definition)
    x = jax.ShapeDtypeStruct((1, 1, 4, 128), jnp.float32)
    ids, mask = (jax.ShapeDtypeStruct((1, 1, 4), dtype) for dtype in (jnp.int32, jnp.bool_))

    def run(params, x, positions, mask):
        return transformer.forward(definition, params, x, positions, mask).sum()

    function = jax.grad(run, argnums=1) if has_gradient else run
    memory = jax.jit(function).lower(params, x, ids, mask).compile().memory_analysis()
    weights = sum(4 * leaf.size for leaf in jax.tree.leaves(params["blocks"]))
    assert memory.temp_size_in_bytes < weights / 4
