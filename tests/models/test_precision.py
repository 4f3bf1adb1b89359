"""Which precision the lowered programs ask for: accelerators compute float32 products in less."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import pytest

from robustjax.attacks import gcg
from robustjax.errors import UserError
from robustjax.models import transformer
from robustjax.models.layers import Numerics
from robustjax.training.step import TrainBatch, accumulate_gradients
from tests.attacks.tiny import ATTACK, make_examples, make_run, make_victim
from tests.models.tiny import CONFIGS, define, make_params, make_tokens, relative_error

TOKENS = jax.ShapeDtypeStruct((2, 8), "int32")
MASK = jax.ShapeDtypeStruct((2, 8), "bool")


def products(function, *arguments):
    """The precision of each matrix product in a program, as the compiler is told it."""
    text = jax.jit(function).lower(*arguments).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    found = [re.search(r"precision = \[(\w+), (\w+)\]", line) for line in lines]
    return [match.groups() if match else ("DEFAULT", "DEFAULT") for match in found]


def programs(definition):
    """A forward pass and a training step."""
    params = transformer.abstract_params(definition)
    label = jax.ShapeDtypeStruct((1, 2), "int32")
    weight = jax.ShapeDtypeStruct((1, 2), "float32")
    micro = [jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for x in (TOKENS, MASK)]
    yield functools.partial(transformer.apply, definition), (params, TOKENS, MASK)
    yield (
        functools.partial(accumulate_gradients, definition),
        (params, TrainBatch(*micro, label, weight)),
    )


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_float32_products_are_of_highest_precision(family, scanned):
    for function, arguments in programs(define(family, scanned=scanned)):
        found = products(function, *arguments)
        assert len(found) > 5
        assert set(found) == {("HIGHEST", "HIGHEST")}


def test_an_attack_s_products_are_of_highest_precision(tiny_tokenizer):
    victim = make_victim(tiny_tokenizer)
    run = make_run(victim, make_examples(victim)[:4], ATTACK)
    for program in gcg.programs(ATTACK, run.inputs).values():
        found = products(program.function, *program.arguments)
        assert len(found) > 5
        assert set(found) == {("HIGHEST", "HIGHEST")}


def test_narrow_factors_are_summed_up_in_the_type_asked_for():
    for wide, expected in (("float32", "f32"), ("bfloat16", "bf16")):
        numerics = Numerics("bfloat16", "bfloat16", wide, "default")
        definition = define("qwen2", numerics=numerics, head="lm")
        arguments = (transformer.abstract_params(definition), TOKENS, MASK)
        text = jax.jit(functools.partial(transformer.apply, definition)).lower(*arguments).as_text()
        lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        linear = [line for line in lines if "batching_dims" not in line]
        attention = [line for line in lines if "batching_dims" in line]
        assert len(linear) == 7 * 3 + 1 and len(attention) == 2 * 3
        assert all(re.search(rf"\(.*xbf16>, .*xbf16>\) -> .*x{expected}>", one) for one in linear)
        assert all(one.endswith("xf32>") for one in attention)


@pytest.mark.parametrize(("family", "head"), [("neox", "classifier"), ("qwen2", "lm")])
def test_scores_are_sums_that_are_not_rounded_to_the_type_of_activations(family, head):
    exact = define(family, head=head)
    params, batch = make_params(exact), make_tokens("sums", (12, 7), 12)
    expected = transformer.apply(exact, params, *batch)
    for wide in ("float32", "bfloat16"):
        numerics = Numerics("float32", "bfloat16", wide, "default")
        scores = transformer.apply(define(family, head=head, numerics=numerics), params, *batch)
        assert scores.dtype == jnp.float32
        assert (scores == scores.astype("bfloat16")).all() == (wide == "bfloat16")
        assert 0 < relative_error(scores, expected) < 0.1


@pytest.mark.parametrize(
    ("field", "value", "known"),
    [
        ("param_dtype", "float64", "float32, bfloat16, float16"),
        ("compute_dtype", "bf16", "float32, bfloat16, float16"),
        ("accumulation_dtype", "", "float32, bfloat16, float16"),
        ("matmul_precision", "fastest", "highest, high, default"),
    ],
)
def test_unknown_formats_are_refused(field, value, known):
    with pytest.raises(UserError, match=f"{field}='{value}' is unknown; use {known}"):
        Numerics(**{field: value})


def test_faster_products_are_asked_for_by_name():
    definition = define("neox")
    numerics = dataclasses.replace(definition.numerics, matmul_precision="default")
    for function, arguments in programs(dataclasses.replace(definition, numerics=numerics)):
        assert set(products(function, *arguments)) == {("DEFAULT", "DEFAULT")}
