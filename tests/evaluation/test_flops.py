"""Counted compute against counts by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from robustjax.attacks import gcg, ranking
from robustjax.attacks.frame import abstract_inputs
from robustjax.evaluation.flops import executed_flops, forward_flops, training_flops
from robustjax.models import transformer
from robustjax.models.registry import scaling_point
from robustjax.models.transformer import Definition, count_params
from robustjax.training.step import TrainBatch, accumulate_gradients
from tests.attacks.tiny import ATTACK, make_examples, make_run, make_victim

X = jax.ShapeDtypeStruct((3, 4), jnp.float32)
Y = jax.ShapeDtypeStruct((4, 5), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((4, 4), jnp.float32)


def test_algorithmic_flops_of_pythia_14m():
    """Howe et al. 2024: a causal language model's 14,067,712 weights, one token."""
    num_params = count_params(Definition(scaling_point("pythia-14m").config, head="lm"))

    assert num_params == 14_067_712
    assert forward_flops(num_params, 1) == 28_135_424
    assert training_flops(num_params, 1) == 84_406_272
    assert training_flops(num_params, 12) == 1_012_875_264


def test_a_matrix_product_is_two_operations_for_each_of_its_terms():
    assert executed_flops(jnp.matmul, X, Y) == 2 * 3 * 4 * 5
    assert executed_flops(lambda x: jnp.tanh(x) + 1, X) == 0


def test_batched_and_mapped_products_count_every_row():
    batch = jax.ShapeDtypeStruct((7, 3, 4), jnp.float32)
    weights = jax.ShapeDtypeStruct((7, 4, 5), jnp.float32)

    assert executed_flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), batch, weights) == (
        7 * 2 * 3 * 4 * 5
    )
    assert executed_flops(jax.vmap(jnp.matmul), batch, weights) == 7 * 2 * 3 * 4 * 5
    assert executed_flops(jax.vmap(jnp.matmul, in_axes=(0, None)), batch, Y) == 7 * 2 * 3 * 4 * 5


def test_a_scan_counts_its_body_as_often_as_it_runs():
    def scanned(x, w):
        return jax.lax.scan(lambda carry, _: (carry @ w, None), x, None, length=6)[0]

    def nested(x, w):
        return jax.lax.scan(lambda carry, _: (scanned(carry, w), None), x, None, length=5)[0]

    assert executed_flops(scanned, X, SQUARE) == 6 * 2 * 3 * 4 * 4
    assert executed_flops(nested, X, SQUARE) == 5 * 6 * 2 * 3 * 4 * 4
    stack = jax.ShapeDtypeStruct((9, 3, 4), jnp.float32)
    assert executed_flops(lambda s, y: jax.lax.map(lambda x: x @ y, s), stack, Y) == (
        9 * 2 * 3 * 4 * 5
    )


def test_nested_programs_are_looked_into():
    inner = jax.jit(jnp.matmul)
    outer = jax.jit(lambda x, y: inner(x, y) + jax.checkpoint(jnp.matmul)(x, y))

    assert executed_flops(outer, X, Y) == 2 * 2 * 3 * 4 * 5


def test_a_gradient_costs_two_products_more():
    def loss(x, y):
        return jnp.sin(x @ y).sum()

    assert executed_flops(jax.grad(loss), X, Y) == 2 * 2 * 3 * 4 * 5
    assert executed_flops(jax.grad(loss, argnums=(0, 1)), X, Y) == 3 * 2 * 3 * 4 * 5


def test_a_condition_counts_its_dearer_branch():
    def either(flag, x, y):
        return jax.lax.cond(flag, lambda: x @ y, lambda: jnp.zeros((3, 5)))

    assert executed_flops(either, jax.ShapeDtypeStruct((), bool), X, Y) == 2 * 3 * 4 * 5


def test_a_loop_of_unknown_length_is_refused_only_if_it_costs():
    def loop(x, w):
        return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x)

    def idle(x):
        return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x)

    with pytest.raises(ValueError, match="while loop"):
        executed_flops(loop, X, SQUARE)
    assert executed_flops(idle, X) == 0


def linear_terms(config):
    """Multiplications of a token in one block: keys, values and queries; then all that follows."""
    width = config.width
    return 3 * width * width, width * width + 2 * width * config.hidden


def test_executed_flops_of_scoring_are_the_hand_count(tiny_tokenizer):
    victim = make_victim(tiny_tokenizer)
    attack = dataclasses.replace(ATTACK, candidate_chunk=16)
    run = make_run(victim, make_examples(victim)[:4], attack)
    config = victim.definition.config
    rows = len(run.prompts) * attack.num_candidates
    prefix, tail = run.batch.before.shape[1], attack.num_tokens + run.batch.after.shape[1]
    project, rest = linear_terms(config)
    head = config.width * victim.definition.num_classes

    out = config.width * config.width
    alone = project + rest - out  # of a token by itself, where the feed-forward layer is parallel

    def of_a_row(run_tokens, beside):
        attend = 2 * config.width * (prefix + beside + run_tokens)  # scores and mixing of a query
        first_block = run_tokens * (out + attend)
        last_block = run_tokens * project + rest + attend  # only the last token goes on
        return first_block + last_block + head

    # Of the first block, the incumbents' tails and the one replaced token of each candidate.
    first = 2 * (len(run.prompts) * tail + rows) * alone

    def counted(attack):
        score = gcg.programs(attack, run.inputs)["score_replacements"]
        return executed_flops(score.function, *score.arguments)

    parts = ranking.cut(attack, run.inputs)
    assert len(parts) == 3 and parts[0].start == 0 < parts[-1].start
    # The incumbent's tokens before the last part are beside all rows, most of them out of sight.
    beside = parts[-1].start
    per_part = [
        2 * len(run.prompts) * count * of_a_row(tail - start, beside) for count, start in parts
    ]
    assert counted(attack) == first + sum(per_part)
    one_by_one = dataclasses.replace(attack, candidate_chunk=1)
    assert counted(one_by_one) == first + 2 * rows * of_a_row(tail, 0)


def test_more_passes_execute_hardly_more_flops():
    definition = Definition(scaling_point("pythia-70m").config)
    inputs = abstract_inputs(definition, (200, 4, 0), rows=8)

    def counted(chunk):
        score = gcg.programs(gcg.GCG(candidate_chunk=chunk), inputs)["score_replacements"]
        return executed_flops(score.function, *score.arguments)

    assert counted(128) < counted(32) < 1.03 * counted(128)


ROWS = 3
SHAPES = [(point, scanned) for point in ("nano-27k", "pythia-14m") for scanned in (False, True)]


def definition_of(point, scanned, head="classifier", **options):
    return Definition(scaling_point(point).config, head=head, scanned=scanned, **options)


def rows_of(width):
    return (
        jax.ShapeDtypeStruct((ROWS, width), jnp.int32),
        jax.ShapeDtypeStruct((ROWS, width), jnp.bool_),
    )


def of_layers(config, tokens, pairs, *, reads):
    """Multiplications of all blocks for a row.

    Args:
        tokens: that run.
        pairs: of a query and a key that meet, per token of a middle block on average.
        reads: tokens that go on in the last block.
    """
    project, rest = linear_terms(config)
    attend = 2 * config.width * pairs  # scores and mixing
    middle = tokens * (project + rest + attend)
    last = tokens * project + reads * (rest + attend)
    return (config.layers - 1) * middle + last


@pytest.mark.parametrize(("point", "scanned"), SHAPES)
def test_a_forward_pass_is_the_hand_count(point, scanned):
    definition = definition_of(point, scanned)
    config, width = definition.config, 60

    counted = executed_flops(
        functools.partial(transformer.apply, definition),
        *(transformer.abstract_params(definition), *rows_of(width)),
    )

    row = of_layers(config, width, width, reads=1) + config.width * definition.num_classes
    assert counted == 2 * ROWS * row


@pytest.mark.parametrize(("point", "scanned"), SHAPES)
def test_a_long_language_model_s_forward_pass_is_the_hand_count(point, scanned):
    """Every token goes on, and long rows meet the keys of a quarter's end, not all."""
    definition = definition_of(point, scanned, head="lm")
    config, width = definition.config, 256

    counted = executed_flops(
        functools.partial(transformer.apply, definition),
        *(transformer.abstract_params(definition), *rows_of(width)),
    )

    pairs = (64 + 128 + 192 + 256) // 4
    row = of_layers(config, width, pairs, reads=width) + width * config.width * config.vocab
    assert counted == 2 * ROWS * row


@pytest.mark.parametrize(("point", "scanned"), SHAPES)
def test_a_cached_tail_is_the_hand_count(point, scanned):
    """A tail meets its prefix and itself; nothing of the prefix is run again."""
    definition = definition_of(point, scanned)
    config, prefix, tail, candidates = definition.config, 40, 12, 5
    params = transformer.abstract_params(definition)
    cache = jax.eval_shape(
        functools.partial(transformer.encode, definition), params, *rows_of(prefix)
    )
    shape = (ROWS, candidates, tail)
    embedded = jax.ShapeDtypeStruct((*shape, config.width), jnp.float32)
    positions = jax.ShapeDtypeStruct(shape, jnp.int32)
    mask = jax.ShapeDtypeStruct(shape, jnp.bool_)
    read = jax.ShapeDtypeStruct((ROWS, candidates, 1), jnp.int32)

    def run(params, x, positions, mask, cache, read):
        return transformer.forward(definition, params, x, positions, mask, (cache,), read)

    counted = executed_flops(run, params, embedded, positions, mask, cache, read)

    row = of_layers(config, tail, prefix + tail, reads=1)
    assert counted == 2 * ROWS * candidates * row


@pytest.mark.parametrize(("point", "scanned"), SHAPES)
def test_the_gradients_of_a_train_step_are_the_hand_count(point, scanned):
    """Of each product two more: one for each factor. What is computed again counts again."""
    definition = definition_of(point, scanned)
    config, width, parts = definition.config, 60, 2

    def counted(definition):
        shapes = [x.shape for x in rows_of(width)]
        arrays = [
            jax.ShapeDtypeStruct((parts, *shape), dtype)
            for shape, dtype in (
                *zip(shapes, (jnp.int32, jnp.bool_), strict=True),
                ((ROWS,), jnp.int32),
                ((ROWS,), jnp.float32),
            )
        ]
        gradients = functools.partial(accumulate_gradients, definition)
        params = transformer.abstract_params(definition)
        return executed_flops(gradients, params, TrainBatch(*arrays))

    row = of_layers(config, width, width, reads=1) + config.width * definition.num_classes
    whole = 3 * 2 * parts * ROWS * row
    assert counted(definition) == whole

    # Of the middle blocks all products are run again but two: nobody asks for the results of the
    # output and the down projection again.
    again = counted(dataclasses.replace(definition, remat="blocks"))
    project, _ = linear_terms(config)
    rerun = project + config.width * config.hidden + 2 * config.width * width
    assert again - whole == 2 * parts * ROWS * (config.layers - 1) * width * rerun


def test_a_program_on_several_devices_counts_all_of_them():
    mesh = jax.sharding.AbstractMesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    x = jax.ShapeDtypeStruct((12, 4), jnp.float32)

    sharded = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(split, whole), out_specs=split)

    assert executed_flops(sharded, x, Y) == executed_flops(jnp.matmul, x, Y) == 2 * 12 * 4 * 5
