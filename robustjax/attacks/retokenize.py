"""Text and tokens of an attack slot: what is reported must re-tokenise to what was scored.

A prompt is text ``before + slot + after``; the model reads ids ``before_ids + slot_ids +
after_ids``. The two agree only if tokenising the joined text gives exactly those ids. ``SlotText``
knows one prompt's surroundings and answers that for many slots with two batched tokenizer calls.

Only the slot's neighbourhood is tokenised where that provably gives the same verdict: the left edge
is the start of a word, with a letter or digit before it and at least two words between it and the
slot. A byte-level pre-tokenizer always cuts there, and no token of a run (spaces, dashes, ...) can
span the cut.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from robustjax.data.tokens import Tokenizer

_WORD_START = re.compile(r"(?<=[A-Za-z0-9]) (?=[A-Za-z])")
_WORDS_KEPT = 3
_START_PATTERN = "@&"
_START_TRIALS = 10_000


@dataclasses.dataclass(frozen=True)
class SlotText:
    """The surroundings of one attack slot, as text and as ids.

    Attributes:
        before: the whole text before the slot.
        after: the whole text after it.
        before_ids: ids of ``before`` inside the joined prompt.
        after_ids: ids of ``after`` inside the joined prompt.
        left: the end of ``before`` that is tokenised again with every slot.
        left_ids: its ids.
    """

    before: str
    after: str
    before_ids: tuple[int, ...]
    after_ids: tuple[int, ...]
    left: str
    left_ids: tuple[int, ...]

    @classmethod
    def surrounding(cls, tokenizer: Tokenizer, before: str, after: str) -> "SlotText":
        """Tokenises what surrounds a slot and finds how far left a slot can reach."""
        before_ids, after_ids = tokenizer.encode([before, after])
        left = before[_left_edge(before) :]
        (left_ids,) = tokenizer.encode([left])
        head = len(before_ids) - len(left_ids)
        (head_ids,) = tokenizer.encode([before[: len(before) - len(left)]])
        if head_ids != before_ids[:head] or left_ids != before_ids[head:]:
            left, left_ids = before, before_ids  # this tokenizer does not cut at word starts
        return cls(before, after, tuple(before_ids), tuple(after_ids), left, tuple(left_ids))

    @classmethod
    def of_ids(cls, before_ids: Sequence[int], after_ids: Sequence[int]) -> "SlotText":
        """Surroundings that are known as ids only, for a slot that stays empty."""
        return cls("", "", tuple(before_ids), tuple(after_ids), "", ())

    def joined(self, slot: str) -> str:
        """The neighbourhood's text around a slot's text."""
        return self.left + slot + self.after

    def expected(self, slot_ids: Sequence[int]) -> list[int]:
        """The ids that ``joined`` must have if the slot stands cleanly."""
        return [*self.left_ids, *slot_ids, *self.after_ids]

    def middle(self, ids: Sequence[int]) -> list[int] | None:
        """The slot's ids within the ids of ``joined``; None if the surroundings changed."""
        start, stop = len(self.left_ids), len(ids) - len(self.after_ids)
        if stop < start or tuple(ids[:start]) != self.left_ids:
            return None
        if tuple(ids[stop:]) != self.after_ids:
            return None
        return list(ids[start:stop])


def _left_edge(before: str) -> int:
    """Where re-tokenisation may start; 0 when no safe place is found."""
    edges = [match.start() for match in _WORD_START.finditer(before)]
    return edges[-_WORDS_KEPT] if len(edges) >= _WORDS_KEPT else 0


def survivors(
    tokenizer: Tokenizer,
    surroundings: Sequence[SlotText],
    candidates: Int[np.ndarray, "B C A"],
    current: Int[np.ndarray, "B A"],
) -> Bool[np.ndarray, "B C"]:
    """Which candidates may be scored: the five conditions of Howe et al. 2024 (arXiv 2407.18213).

    A candidate survives if (a) the joined text tokenises to the substituted ids, (b) its own text
    does so alone, (c, d) nothing before or after the slot changes (part of a), and (e) it differs
    from the current slot.
    """
    examples, count, width = candidates.shape
    rows = candidates.reshape(-1, width).tolist()
    texts = tokenizer.decode(rows)
    alone = tokenizer.encode(texts)
    left = [index for index, row in enumerate(rows) if alone[index] == row]
    around = [surroundings[index // count] for index in left]
    joined = tokenizer.encode(
        [s.joined(texts[index]) for s, index in zip(around, left, strict=True)]
    )
    clean = np.zeros(len(rows), bool)
    clean[left] = [
        ids == s.expected(rows[index]) for ids, s, index in zip(joined, around, left, strict=True)
    ]
    differs = (candidates != current[:, None]).any(-1)
    return clean.reshape(examples, count) & differs


def retokenise(
    tokenizer: Tokenizer,
    surroundings: Sequence[SlotText],
    slots: Int[np.ndarray, "B C A"],
    width: int,
) -> tuple[Int[np.ndarray, "B C W"], Bool[np.ndarray, "B C W"], Bool[np.ndarray, "B C"]]:
    """The ids that the text of each slot really has inside its prompt.

    Args:
        slots: drawn ids; they may decode to text that tokenises differently.
        width: ``W``, room for the new ids.

    Returns:
        New ids padded on the right, their mask, and which slots fit: at least one and at most
        ``width`` ids, none of them special, with nothing changed before or after.
    """
    examples, count, drawn = slots.shape
    texts = tokenizer.decode(slots.reshape(-1, drawn).tolist())
    around = [surroundings[index // count] for index in range(examples * count)]
    joined = tokenizer.encode([s.joined(text) for s, text in zip(around, texts, strict=True)])
    ids = np.full((examples * count, width), tokenizer.pad_id, np.int32)
    mask = np.zeros((examples * count, width), bool)
    fits = np.zeros(examples * count, bool)
    for index, (surrounding, row) in enumerate(zip(around, joined, strict=True)):
        middle = surrounding.middle(row)
        # The text of ordinary tokens may spell a special one.
        if middle and len(middle) <= width and tokenizer.special_ids.isdisjoint(middle):
            ids[index, : len(middle)] = middle
            mask[index, : len(middle)] = True
            fits[index] = True
    shape = (examples, count)
    return ids.reshape(*shape, width), mask.reshape(*shape, width), fits.reshape(shape)


def clean_start(
    tokenizer: Tokenizer, surrounding: SlotText, num_tokens: int, seed: int, example_id: int
) -> list[int] | None:
    """Ids of a starting slot that stands cleanly in its prompt.

    ``@&@&...`` if that works; otherwise its tokens are replaced by random ones, position after
    position, until a slot survives; None after 10,000 trials.
    """
    (start,) = tokenizer.encode([(_START_PATTERN * num_tokens)[:num_tokens]])
    rng = np.random.default_rng([seed, example_id])
    allowed = tokenizer.allowed_attack_ids
    if len(start) == num_tokens:
        slot = list(start)
    else:
        slot = [int(i) for i in rng.choice(allowed, num_tokens)]
    for trial in range(_START_TRIALS):
        if _is_clean(tokenizer, surrounding, slot):
            return slot
        slot[trial % num_tokens] = int(rng.choice(allowed))
    return None


def random_start(
    tokenizer: Tokenizer, surrounding: SlotText, num_tokens: int, seed: int, example_id: int
) -> list[int] | None:
    """Ids of a random starting slot that stands cleanly in its prompt.

    Draws whole slots until one is clean, of tokens that are so by themselves: most single bytes
    form no character, and a slot with one of those never is.

    Returns:
        The ids, or None after 10,000 draws.
    """
    rng = np.random.default_rng([seed, example_id, 1])  # another stream than that of clean_start
    for _ in range(_START_TRIALS if len(tokenizer.standalone_ids) else 0):
        slot = rng.choice(tokenizer.standalone_ids, num_tokens).tolist()
        if _is_clean(tokenizer, surrounding, slot):
            return slot
    return None


def _is_clean(tokenizer: Tokenizer, surrounding: SlotText, slot: list[int]) -> bool:
    (text,) = tokenizer.decode([slot])
    alone, joined = tokenizer.encode([text, surrounding.joined(text)])
    return alone == slot and joined == surrounding.expected(slot)
