"""What a search executes, counted from the shapes of its programs; nothing is run."""

import numpy as np
import pytest

from robustjax.attacks import gcg
from robustjax.attacks.frame import abstract_inputs
from robustjax.attacks.gcg import GCG
from robustjax.attacks.search import SearchConfig, plan, prepare
from robustjax.data.prompts import ANSWER_PROMPT, Example
from robustjax.evaluation.flops import executed_flops, forward_flops
from robustjax.models.registry import layer_loop, scaling_point
from robustjax.models.transformer import Definition, count_params
from tests.attacks.tiny import INSERT, make_victim

AFTER = 4  # tokens between a suffix and the end: an answer prompt


def costs(point, before):
    """Executed FLOPs of each program of GCG on one example, and the number of weights."""
    shape = scaling_point(point).config
    definition = Definition(shape, **layer_loop(shape))
    inputs = abstract_inputs(definition, (before, AFTER, 0), rows=1)
    found = gcg.programs(GCG(), inputs)
    names = ("encode_prefix", "propose", "score_replacements")
    counted = {name: executed_flops(found[name].function, *found[name].arguments) for name in names}
    return counted, count_params(definition)


@pytest.mark.parametrize(("point", "least"), [("pythia-1b", 28), ("pythia-70m", 70)])
def test_a_search_executes_a_small_part_of_its_algorithmic_flops(point, least):
    """Of a prompt of 311 tokens, slot and all; every candidate survives."""
    attack = GCG()
    prompt = 311
    executed, num_params = costs(point, prompt - attack.num_tokens - AFTER)
    per_iteration = executed["propose"] + executed["score_replacements"]
    total = executed["encode_prefix"] + attack.num_iterations * per_iteration

    # By convention a forward and a backward pass, and a forward pass of each candidate, with no
    # credit for what is in a cache.
    passes = 3 + attack.num_candidates
    algorithmic = attack.num_iterations * passes * forward_flops(num_params, prompt)

    assert algorithmic / total >= least


def test_a_long_prefix_costs_little_more_than_a_short_one():
    def iteration(before):
        executed, _ = costs("pythia-70m", before)
        return executed["propose"] + executed["score_replacements"]

    assert 1 < iteration(900) / iteration(60) <= 1.35


def test_texts_of_mixed_length_make_few_buckets(tiny_tokenizer):
    """64 of 30 to 900 tokens, or of up to a context of 2048, with the slot as a suffix."""
    victim = make_victim(tiny_tokenizer, context=2048)
    for longest in (900, 2000):
        lengths = np.linspace(30, longest, 64).astype(int)
        texts = [" a" * length for length in lengths]
        examples = [
            Example(i, "Is it spam?", (text,), ANSWER_PROMPT, 0, 1, " A", " B")
            for i, text in enumerate(texts)
        ]
        prompts, failures = prepare(victim, examples, INSERT, GCG(), 0)
        assert len(prompts) == 64 and not failures
        assert len({batch.shape for batch in plan(prompts, SearchConfig())}) <= 4
