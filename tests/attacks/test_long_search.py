"""Twenty iterations of GCG are the plain algorithm, however it is cut into programs."""

import dataclasses

import pytest

from robustjax.attacks.gcg import GCG
from robustjax.attacks.search import SearchConfig, prepare
from robustjax.evaluation.evaluate import attack_examples
from tests.attacks.reference import assert_follows_gcg, assert_reports_what_was_scored
from tests.attacks.tiny import INSERT, make_examples, make_victim
from tests.models.tiny import CONFIGS

pytestmark = pytest.mark.slow

SEED = 5


@pytest.mark.parametrize(
    ("family", "batch_size", "chunk", "scanned"),
    [
        ("neox", 1, 0, False),
        ("neox", 3, 4, True),
        ("qwen2", 8, 16, False),
        ("qwen2", 3, 4, False),
    ],
)
def test_twenty_iterations_are_the_plain_algorithm(
    family, scanned, batch_size, chunk, tiny_tokenizer
):
    shape = dataclasses.replace(CONFIGS[family], vocab=512, context=512)
    victim = make_victim(tiny_tokenizer, config=shape, scanned=scanned)
    examples = make_examples(victim)[:3]
    attack = GCG(num_iterations=20, num_tokens=4, num_candidates=16, top_k=8, candidate_chunk=chunk)
    config = SearchConfig(batch_size=batch_size, edges=(48, 96))

    found, _ = attack_examples(victim, examples, INSERT, attack, seed=SEED, config=config)

    prompts, _ = prepare(victim, examples, INSERT, attack, SEED)
    starts = {prompt.example.example_id: prompt.slot for prompt in prompts}
    records = {record.example_id: record for record in found}
    for example in examples:
        record = records[example.example_id]
        start = starts[example.example_id]
        assert_follows_gcg(victim, example, INSERT, attack, SEED, record, start)
        assert_reports_what_was_scored(victim, example, INSERT, 1.0, record)
