"""The keyed draws against NumPy: which tokens, which replacements, which random slots."""

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import candidates
from tests.attacks.tiny import fold_in, random_bits, seed_key

VOCAB = 50
u32 = jnp.uint32


def gradients(seed, positions=3):
    return np.random.default_rng(seed).normal(size=(positions, VOCAB)).astype(np.float32)


def example_key(seed, example_id, iteration):
    (key,) = candidates.example_keys(u32(seed), jnp.array([example_id], u32), u32(iteration))
    return key


def plain_replacements(gradient, seed, example_id, iteration, top_k, count):
    """The rule in plain NumPy: the `count` pairs whose own random numbers are smallest."""
    key = fold_in(fold_in(seed_key(seed), example_id), iteration)
    pairs = []
    for position, row in enumerate(gradient):
        for token in sorted(np.argsort(row)[:top_k]):
            pairs.append((random_bits(fold_in(key, position * VOCAB + token)), position, token))
    return [(position, token) for _, position, token in sorted(pairs)[:count]]


def test_replacements_are_the_smallest_keyed_draws_among_the_top_tokens():
    for seed, example_id, iteration in ((0, 0, 1), (3, 70_000, 12), (2**32 - 1, 2**31, 7)):
        gradient = gradients(iteration)

        tokens = candidates.top_tokens(jnp.asarray(gradient), 8)
        positions, replacements = candidates.sample_replacements(
            example_key(seed, example_id, iteration), tokens, VOCAB, 10
        )

        expected = plain_replacements(gradient, seed, example_id, iteration, 8, 10)
        got = list(zip(positions.tolist(), replacements.tolist(), strict=True))
        assert got == expected
        assert len(set(got)) == 10


def test_ranks_that_swap_by_rounding_change_no_draw():
    gradient = gradients(0)
    top = np.argsort(gradient, axis=1)[:, :8]
    shuffled = gradient.copy()
    # The same set, its ranks reversed.
    np.put_along_axis(shuffled, top[:, ::-1], np.take_along_axis(gradient, top, 1), axis=1)

    def drawn(gradient):
        tokens = candidates.top_tokens(jnp.asarray(gradient), 8)
        return candidates.sample_replacements(example_key(0, 1, 2), tokens, VOCAB, 12)

    np.testing.assert_array_equal(drawn(gradient), drawn(shuffled))


def test_a_smaller_top_k_draws_the_same_pairs_in_the_same_order():
    """Each pair has a random number of its own, whatever else is in the pool."""
    gradient = jnp.asarray(gradients(4))

    def drawn(top_k, count):
        tokens = candidates.top_tokens(gradient, top_k)
        positions, replacements = candidates.sample_replacements(
            example_key(5, 6, 7), tokens, VOCAB, count
        )
        return list(zip(positions.tolist(), replacements.tolist(), strict=True))

    small, large = drawn(4, 12), drawn(8, 24)
    assert [pair for pair in large if pair in set(small)] == small


def test_every_replacement_is_equally_likely():
    tokens = jnp.broadcast_to(jnp.arange(10), (2, 10))

    def first(iteration):
        key = candidates.example_keys(u32(0), jnp.zeros(1, u32), iteration)[0]
        positions, replacements = candidates.sample_replacements(key, tokens, VOCAB, 1)
        return positions[0] * 10 + replacements[0]

    draws = jax.jit(jax.vmap(first))(jnp.arange(4000, dtype=u32))
    counts = np.bincount(np.asarray(draws), minlength=20)
    # 19 degrees of freedom: 99.99 % of fair draws lie below 51.
    assert ((counts - 200) ** 2 / 200).sum() < 51


def test_keys_differ_in_seed_example_and_iteration():
    ids = jnp.array([0, 1, 2], u32)
    keys = [
        jax.random.key_data(candidates.example_keys(u32(seed), ids, u32(iteration)))
        for seed in (0, 1)
        for iteration in (0, 1, 2)
    ]

    assert len({tuple(key) for rows in keys for key in np.asarray(rows).tolist()}) == 18


def test_one_token_is_replaced():
    slot = jnp.array([5, 6, 7])

    got = candidates.replace_one(slot, jnp.array([2, 0]), jnp.array([40, 41]))

    np.testing.assert_array_equal(got, [[5, 6, 40], [41, 6, 7]])


def test_random_slots_are_uniform_over_what_is_allowed():
    allowed = jnp.array([3, 4, 8, 20, 21, 49], jnp.int32)

    @jax.jit
    def draw(iterations):
        keys = jax.vmap(lambda i: candidates.example_keys(u32(0), jnp.zeros(1, u32), i)[0])(
            iterations
        )
        return jax.vmap(lambda key: candidates.random_slot(key, u32(0), allowed, 3))(keys)

    slots = np.asarray(draw(jnp.arange(2000, dtype=u32)))

    assert set(np.unique(slots)) == set(allowed.tolist())
    for position in range(3):
        counts = np.array([(slots[:, position] == token).sum() for token in allowed.tolist()])
        # 5 degrees of freedom: 99.99 % of fair draws lie below 26.
        assert ((counts - 2000 / 6) ** 2 / (2000 / 6)).sum() < 26
    pairs = {(a, b) for a, b, _ in slots.tolist()}
    assert len(pairs) == 36, "positions depend on each other"


def test_attempts_draw_anew():
    allowed = jnp.arange(1000, dtype=jnp.int32)
    key = example_key(0, 0, 1)
    slots = [candidates.random_slot(key, u32(attempt), allowed, 4).tolist() for attempt in range(3)]

    assert len({tuple(slot) for slot in slots}) == 3
    assert slots[1] == candidates.random_slot(key, u32(1), allowed, 4).tolist()
