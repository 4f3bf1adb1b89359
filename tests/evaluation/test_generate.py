"""Generation against the plain algorithm: the whole text read again for every token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.errors import UserError
from robustjax.evaluation.generate import GenerationConfig, generate
from robustjax.models import transformer
from tests.attacks.tiny import TEXTS, make_victim
from tests.models.tiny import CONFIGS

COUNT = 20  # more than the device writes at once
GREEDY = GenerationConfig(max_new_tokens=COUNT, batch_size=4)
SAMPLED = dataclasses.replace(GREEDY, temperature=1.5)
PROMPTS = (*TEXTS[:4], "A", " ".join(TEXTS[:2]))
IDS = (3, 0, 7, 2**32 - 1, 12, 13)


@pytest.fixture(scope="module", params=["neox", "qwen2"])
def victim(request, tiny_tokenizer):
    config = dataclasses.replace(CONFIGS[request.param], vocab=512, context=128)
    return make_victim(tiny_tokenizer, head="lm", config=config)


@pytest.fixture(scope="module")
def greedy(victim):
    return generate(victim, PROMPTS, IDS, GREEDY)


def plain(victim, prompt, example_id, config, seed):
    """Token after token, without cache, padding or batch, up to what ends an answer."""
    (row,) = victim.tokenizer.encode([prompt])
    said, width = [], 96

    @jax.jit
    def scores_of(params, ids, mask):
        return transformer.apply(victim.definition, params, ids, mask)

    for place in range(config.max_new_tokens):
        ids = np.zeros((1, width), np.int32)
        ids[0, : len(row)] = row
        scores = scores_of(victim.params, ids, np.arange(width)[None] < len(row))[0, len(row) - 1]
        if config.temperature:
            key = jax.random.fold_in(jax.random.key(np.uint32(seed)), np.uint32(example_id))
            noise = jax.random.gumbel(jax.random.fold_in(key, place), scores.shape)
            scores = scores / config.temperature + noise
        token = int(jnp.argmax(scores))
        if token in (victim.tokenizer.pad_id, victim.tokenizer.eos_id):
            break
        said.append(token)
        row = [*row, token]
    return said


def test_greedy_is_the_plain_algorithm(victim, greedy):
    for prompt, answer in zip(PROMPTS, greedy, strict=True):
        assert answer.ids == plain(victim, prompt, 0, GREEDY, 0)
        assert answer.text == victim.tokenizer.decode([answer.ids])[0]
    assert any(len(answer.ids) == COUNT and answer.is_cut for answer in greedy)


def test_sampling_is_the_plain_algorithm(victim):
    for prompt, one, answer in zip(
        PROMPTS[:3], IDS, generate(victim, PROMPTS, IDS, SAMPLED, seed=5), strict=False
    ):
        assert answer.ids == plain(victim, prompt, one, SAMPLED, 5)


@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_company_and_order_change_nothing(victim, config):
    together = generate(victim, PROMPTS, IDS, config, seed=1)
    backwards = generate(victim, PROMPTS[::-1], IDS[::-1], config, seed=1)
    assert backwards[::-1] == together
    for place in (0, 4):
        assert generate(victim, [PROMPTS[place]], [IDS[place]], config, seed=1) == [together[place]]


def test_a_sample_depends_on_seed_and_example(victim):
    (first, other), (again, _) = (
        generate(victim, [PROMPTS[0]] * 2, [1, 2], SAMPLED, seed=seed) for seed in (0, 1)
    )
    assert len({tuple(first.ids), tuple(other.ids), tuple(again.ids)}) == 3


def test_a_longer_limit_only_adds(victim, greedy):
    short = dataclasses.replace(GREEDY, max_new_tokens=3)
    for answer, whole in zip(generate(victim, PROMPTS, IDS, short), greedy, strict=True):
        assert answer.ids == whole.ids[:3]
        assert answer.is_cut == (len(whole.ids) >= 3)


def test_a_stop_text_ends_an_answer_before_it(victim, greedy):
    place = max(range(len(PROMPTS)), key=lambda i: len(greedy[i].text))
    stop = greedy[place].text[4:7]
    (answer,) = generate(
        victim, [PROMPTS[place]], [0], dataclasses.replace(GREEDY, stop=(stop, "never said"))
    )
    assert answer.text == greedy[place].text[: greedy[place].text.index(stop)]
    assert not answer.is_cut
    assert stop in victim.tokenizer.decode([answer.ids])[0]
    assert stop not in victim.tokenizer.decode([answer.ids[:-1]])[0]


def test_an_end_of_text_token_ends_an_answer(victim, greedy):
    """A tokenizer in which the token that the longest answer says sixth ends a text."""
    place = max(range(len(PROMPTS)), key=lambda i: len(greedy[i].ids))
    said = greedy[place].ids
    first = said.index(said[5])
    ending = dataclasses.replace(victim, tokenizer=_ending_with(victim.tokenizer, said[5]))
    (answer,) = generate(ending, [PROMPTS[place]], [0], GREEDY)
    assert answer.ids == said[:first] and not answer.is_cut


def _ending_with(tokenizer, token):
    from robustjax.data.tokens import Tokenizer

    class Ending(Tokenizer):
        def __init__(self):
            super().__init__(tokenizer._backend, tokenizer._config)
            self.eos_id = token

    return Ending()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be an integer of at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0 must be 0 (greedy) or more"),
        ({"stop": ("a", "")}, "holds an empty text"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UserError) as caught:
        GenerationConfig(**settings)
    assert message in str(caught.value)


def test_what_does_not_fit_is_refused(victim, tiny_tokenizer):
    for prompts, message in (
        ([PROMPTS[0], ""], "prompt 1 has 0 tokens; between 1 and 108"),
        (["a, " * 120], "context of 128 less max_new_tokens=20"),
    ):
        with pytest.raises(UserError) as caught:
            generate(victim, prompts, range(len(prompts)), GREEDY)
        assert message in str(caught.value)
    with pytest.raises(UserError, match="is a classifier"):
        generate(make_victim(tiny_tokenizer), ["a"], [0], GREEDY)
