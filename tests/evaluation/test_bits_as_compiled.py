"""Company, order and interruption change no bit of a record, compiled as users compile.

The fast tests of the same compile quickly; what an optimised program does with a row could depend
on where the row stands. Every attack, both families, both kinds of layers, both goals; batches are
scored in several passes of few examples.
"""

import dataclasses

import pytest

from robustjax.attacks import frame, passes
from robustjax.attacks.beam_search import BeamSearch
from robustjax.attacks.beast import BEAST
from robustjax.attacks.gcg import GCG
from robustjax.attacks.random_token import RandomToken
from robustjax.attacks.search import SearchConfig
from robustjax.evaluation.evaluate import attack_examples
from tests.attacks.tiny import INSERT, TEXTS, make_examples, make_victim
from tests.evaluation.interrupted import Interrupted
from tests.models.tiny import CONFIGS

pytestmark = pytest.mark.slow

ATTACKS = {
    "gcg": GCG(num_iterations=3, num_tokens=5, num_candidates=24, top_k=8),
    "random_token": RandomToken(num_iterations=12, num_tokens=4, iterations_per_pass=4),
    "beam_search": BeamSearch(num_iterations=3, num_tokens=4, num_candidates=24, beam_width=3),
    "beast": BEAST(num_iterations=3, beam_width=3, branch_factor=4),
}
MODELS = {
    "neox": ("neox", False, "classifier"),
    "neox-scanned": ("neox", True, "lm"),
    "qwen2": ("qwen2", False, "lm"),
    "qwen2-scanned": ("qwen2", True, "classifier"),
}
CONFIG = SearchConfig(batch_size=6, edges=(64, 512))
PASS_TOKENS = 24 * 11 * 2
"""What two examples of GCG run at most: three passes of a batch."""


@pytest.fixture(scope="module")
def model_of(tiny_tokenizer):
    """A model by its name, and a language model of the same shape for attacks that ask one."""

    def make(name):
        family, scanned, head = MODELS[name]
        config = dataclasses.replace(CONFIGS[family], vocab=512, context=512)
        options = {"config": config, "scanned": scanned}
        sampler = make_victim(tiny_tokenizer, head="lm", **options)
        return make_victim(tiny_tokenizer, head=head, **options), sampler

    return make


@pytest.mark.parametrize(
    ("name", "model"),
    [("gcg", model) for model in MODELS]
    + [(name, model) for name in ATTACKS if name != "gcg" for model in ("neox", "qwen2-scanned")],
)
def test_company_order_and_interruption_change_no_bit(model_of, monkeypatch, tmp_path, name, model):
    monkeypatch.setattr(passes, "TOKENS", PASS_TOKENS)
    at_once = []

    def fitting(*arguments):
        at_once.append(passes.fitting(*arguments))
        return at_once[-1]

    monkeypatch.setattr(frame, "fitting", fitting)
    victim, sampler = model_of(model)
    attack = ATTACKS[name]
    examples = make_examples(victim, [text for text in TEXTS if len(text) < 200])[:6]
    assert len(examples) == 6

    def attacked(members, **options):
        companion = sampler if attack.needs_companion else None
        found, _ = attack_examples(
            *(victim, members, INSERT, attack),
            **{"config": CONFIG, "companion": companion, "save_seconds": 0.0} | options,
        )
        return {record.example_id: record for record in found}

    together = attacked(examples)
    assert not any(record.failure for record in together.values())
    assert name != "gcg" or 1 <= max(one.examples for one in at_once) <= 3
    assert attacked(examples[::-1]) == together
    for alone in (examples[0], examples[-1]):
        assert attacked([alone]) == {alone.example_id: together[alone.example_id]}
    assert attacked(examples[1:4]) == {
        one.example_id: together[one.example_id] for one in examples[1:4]
    }

    path = tmp_path / "attack_records.jsonl"
    Interrupted(monkeypatch, attack).after(2, lambda: attacked(examples, path=path))
    assert (tmp_path / "attack_state.npz").exists()
    assert attacked(examples, path=path) == together
