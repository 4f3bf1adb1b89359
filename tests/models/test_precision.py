"""Which precision the lowered programs ask for: accelerators compute float32 products in less."""

import dataclasses
import functools
import re

import jax
import pytest

from robustjax.attacks import gcg
from robustjax.models import transformer
from robustjax.training.step import TrainBatch, accumulate_gradients
from tests.attacks.tiny import ATTACK, make_examples, make_run, make_victim
from tests.models.tiny import CONFIGS, define

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
    for program in gcg.programs(ATTACK, run):
        found = products(program.function, *program.arguments)
        assert len(found) > 5
        assert set(found) == {("HIGHEST", "HIGHEST")}


def test_faster_products_are_asked_for_by_name():
    definition = define("neox")
    numerics = dataclasses.replace(definition.numerics, matmul_precision="default")
    for function, arguments in programs(dataclasses.replace(definition, numerics=numerics)):
        assert set(products(function, *arguments)) == {("DEFAULT", "DEFAULT")}
