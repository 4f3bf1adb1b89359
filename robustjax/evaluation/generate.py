"""What a language model answers: generation with a KV cache, greedy or sampled.

As in BEAST's sampler, what precedes is in two caches: the prompt is encoded once, right-padded and
without its last token, and each row's own tokens grow in a second one. Positions count the real
tokens of a row, so padding moves nothing. A sampled token is keyed by (seed, example id, place in
the answer), never by the row's place in a batch, so a row's answer does not depend on the others.

The device writes a few tokens at a time; then the host looks whether every row has ended.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from robustjax.attacks import candidates, sampling
from robustjax.attacks.frame import check_positive
from robustjax.attacks.sampling import Pairs
from robustjax.data.batching import group_by_bucket, pad_rows
from robustjax.errors import UserError
from robustjax.models import transformer
from robustjax.models.transformer import Cache, Definition, Params
from robustjax.models.victim import BUCKET_EDGES, Victim
from robustjax.runtime.compilation import make_room_for_programs
from robustjax.runtime.progress import Progress
from robustjax.runtime.rows import fetch

_AT_ONCE = 16
"""Tokens of each row between two looks of the host."""


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How a model answers.

    Attributes:
        max_new_tokens: tokens after which an answer is cut off.
        temperature: 0 takes the likeliest token each time; above it, tokens are sampled from the
            whole distribution at this temperature.
        stop: texts that end an answer, beside the tokenizer's end-of-sequence and pad tokens; what
            is reported ends before them.
        batch_size: prompts answered at once; a short last batch is filled up.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_positive(self, "max_new_tokens", "batch_size")
        if not 0.0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature} must be 0 (greedy) or more")
        if "" in self.stop:
            raise UserError(f"stop={self.stop} holds an empty text, which ends nothing; remove it")


class Generated(NamedTuple):
    """An answer.

    Attributes:
        text: what the model says, without what ended it.
        ids: its tokens up to the one that ended it, which is left out if it is a token's own
            meaning to end; of an answer that a stop text ended, as many as it took to spell it.
        is_cut: whether ``max_new_tokens`` ended it.
    """

    text: str
    ids: list[int]
    is_cut: bool


def generate(
    victim: Victim,
    prompts: Sequence[str],
    example_ids: Sequence[int],
    config: GenerationConfig,
    *,
    seed: int = 0,
    label: str = "generate",
) -> list[Generated]:
    """Answers prompts, in length buckets.

    Args:
        victim: a language model.
        prompts: what it goes on with, read whole.
        example_ids: with the seed they key what is sampled.
        config: settings.
        seed: of the sampling.
        label: name on the progress line.

    Returns:
        An answer to each prompt, in their order.

    Raises:
        UserError: the model is no language model; a prompt is empty, or too long for the context
            together with the answer.
    """
    if victim.definition.head != "lm":
        raise UserError(f"model {victim.name} is a classifier; generation needs head=lm")
    rows = victim.tokenizer.encode(list(prompts))
    room = victim.context - config.max_new_tokens
    for index, row in enumerate(rows):
        if not 1 <= len(row) <= room:
            raise UserError(
                f"prompt {index} has {len(row)} tokens; between 1 and {room} are possible, the "
                f"context of {victim.context} less max_new_tokens={config.max_new_tokens}: shorten "
                "it, or lower max_new_tokens"
            )
    answers: dict[int, Generated] = {}
    buckets = group_by_bucket([len(row) for row in rows], BUCKET_EDGES)
    with Progress(len(rows), label, "texts", patience=3.0) as progress:
        for edge, members in buckets.items():
            make_room_for_programs()
            for start in range(0, len(members), config.batch_size):
                chosen = members[start : start + config.batch_size]
                filled = [*chosen, *[chosen[-1]] * (config.batch_size - len(chosen))]
                new = _answer_batch(
                    *(victim, [rows[i] for i in filled], [example_ids[i] for i in filled]),
                    *(edge, config, seed),
                )
                answers.update(zip(chosen, new, strict=False))  # what fills up is dropped
                progress.advance(len(chosen))
    return [answers[index] for index in range(len(rows))]


def _answer_batch(
    victim: Victim,
    rows: Sequence[Sequence[int]],
    example_ids: Sequence[int],
    width: int,
    config: GenerationConfig,
    seed: int,
) -> list[Generated]:
    tokenizer, definition = victim.tokenizer, victim.definition
    ids, mask = pad_rows(rows, width, tokenizer.pad_id)
    lengths = np.array([len(row) for row in rows])
    newest = np.array([row[-1] for row in rows], np.int32)
    read = np.arange(width)[None] < lengths[:, None] - 1  # the last token is fed first
    ids, mask, read, newest, examples = victim.put_examples(
        (ids, mask, read, newest, np.array(example_ids, np.uint32))
    )
    prefix = read_prompts(definition, victim.params, ids, mask)._replace(mask=read)
    count = min(_AT_ONCE, config.max_new_tokens)
    steps = -(-config.max_new_tokens // count)
    pairs = sampling.empty_pairs(victim, len(rows), 1, steps * count)
    endings = {tokenizer.pad_id, tokenizer.eos_id} - {None}
    said = np.zeros((len(rows), 0), np.int32)
    for step in range(steps):
        pairs, new = write_on(
            *(definition, victim.params, prefix, pairs, newest, np.int32(step * count)),
            *(np.float32(config.temperature), np.uint32(seed), examples),
            count=count,
            is_greedy=config.temperature == 0,
        )
        newest = new[:, -1]
        said = np.concatenate([said, fetch(new)], axis=1)
        known = [
            _finished(tokenizer.decode, row[: config.max_new_tokens], endings, config)
            for row in said.tolist()
        ]
        if not any(answer.is_cut for answer in known):
            break
    return known


def _finished(
    decode: Any, row: list[int], endings: set[Any], config: GenerationConfig
) -> Generated:
    """The answer that a row's tokens hold; it counts as cut off if nothing in them ends it."""
    end = next((place for place, token in enumerate(row) if token in endings), len(row))
    kept = row[:end]
    (text,) = decode([kept])
    places = [place for stop in config.stop if (place := text.find(stop)) >= 0]
    if not places:
        return Generated(text, kept, end == len(row))
    while len(kept) > 1 and any(stop in decode([kept[:-1]])[0] for stop in config.stop):
        kept = kept[:-1]
    return Generated(text[: min(places)], kept, False)


@functools.partial(jax.jit, static_argnames=("definition",))
def read_prompts(
    definition: Definition, params: Params, tokens: Int[Array, "B P"], mask: Bool[Array, "B P"]
) -> Cache:
    """``transformer.encode``, compiled."""
    return transformer.encode(definition, params, tokens, mask)


@functools.partial(
    jax.jit,
    static_argnames=("definition", "count", "is_greedy"),
    donate_argnames=("pairs",),
)
def write_on(
    definition: Definition,
    params: Params,
    prefix: Cache,
    pairs: Pairs,
    newest: Int[Array, " B"],
    length: Int[Array, ""],
    temperature: Float[Array, ""],
    seed: UInt32[Array, ""],
    example_id: UInt32[Array, " B"],
    *,
    count: int,
    is_greedy: bool,
) -> tuple[Pairs, Int[Array, "B N"]]:
    """Writes ``count`` more tokens of each row, whatever ends it.

    Args:
        prefix: cache of each prompt without its last token.
        pairs: keys and values of that token and of all that were written but the newest.
        newest: the token that comes before the first one to be written.
        length: tokens that ``pairs`` holds.
        temperature: looked at only when sampling.

    Returns:
        ``pairs`` with ``count`` tokens more, and the new tokens.
    """
    rows = newest.shape[0]
    width = jax.tree.leaves(pairs)[0].shape[-2]
    start = prefix.mask.sum(-1, dtype=jnp.int32)[:, None, None]

    def write(carry: tuple[Pairs, Array], place: Array) -> tuple[tuple[Pairs, Array], Array]:
        pairs, newest = carry
        x = transformer.embed(definition, params, newest)[:, None, None]
        so_far = jnp.broadcast_to(jnp.arange(width) < place, (rows, 1, width))
        hidden, new = transformer.forward_and_keep(
            *(definition, params, x, start + place, jnp.ones((rows, 1, 1), bool)),
            (prefix, Cache(*pairs, so_far)),
        )
        pairs = jax.tree.map(
            lambda old, one: jax.lax.dynamic_update_slice_in_dim(old, one, place, axis=-2),
            pairs,
            (new.keys, new.values),
        )
        scores = transformer.project(definition, params, hidden)[:, 0, 0]
        if not is_greedy:
            keys = candidates.example_keys(seed, example_id, place.astype(jnp.uint32))
            noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[1:]))(keys)
            scores = scores / temperature + noise
        newest = scores.argmax(-1).astype(jnp.int32)
        return (pairs, newest), newest

    (pairs, _), said = jax.lax.scan(write, (pairs, newest), length + jnp.arange(count))
    return pairs, said.T
