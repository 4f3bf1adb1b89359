"""Text and tokens of an attack slot: what is reported must re-tokenise to what was scored.

A prompt is text ``before + slot + after``; the model reads ids ``before_ids + slot_ids +
after_ids``. The two agree only if tokenising the joined text gives exactly those ids. ``SlotText``
knows one prompt's surroundings and answers that for many slots with few batched tokenizer calls.

Only the slot's neighbourhood is tokenised where that provably gives the same verdict: from a cut
before the slot to a cut after it, by the rule of ``robustjax.data.cuts``. Where there is no such
cut, or the rule is not proved for the tokenizer, it is the whole text.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from robustjax.data.cuts import pieces
from robustjax.data.piece_encoder import PieceEncoder
from robustjax.data.segments import slot_obstacle
from robustjax.data.tokens import Tokenizer

# One piece on each side would do. The others cost next to nothing, since all candidates share them.
_PIECES_BEFORE = 3
_PIECES_AFTER = 2
_START_PATTERN = "@&"
_START_TRIALS = 10_000
_TRIALS_AT_ONCE = 512


@dataclasses.dataclass(frozen=True)
class SlotText:
    """The surroundings of one attack slot, as text and as ids.

    Attributes:
        before: the whole text before the slot.
        after: the whole text after it.
        before_ids: ids of ``before`` inside the joined prompt.
        after_ids: ids of ``after`` inside the joined prompt.
        left: the end of ``before`` that is tokenised again with every slot.
        left_ids: its ids, the last of ``before_ids``.
        right: the beginning of ``after`` that is tokenised again with every slot.
        right_ids: its ids, the first of ``after_ids``.
    """

    before: str
    after: str
    before_ids: tuple[int, ...]
    after_ids: tuple[int, ...]
    left: str
    left_ids: tuple[int, ...]
    right: str
    right_ids: tuple[int, ...]

    @classmethod
    def surrounding(cls, tokenizer: Tokenizer, before: str, after: str) -> "SlotText":
        """Tokenises what surrounds a slot and finds how far a slot can reach."""
        left, right = before, after
        if tokenizer.cuts_before_spaces:
            left = "".join(pieces(before)[-_PIECES_BEFORE:])
            right = "".join(pieces(after)[:_PIECES_AFTER])
        before_ids, left_ids = map(tuple, tokenizer.encode_opening([before, left]))
        after_ids, right_ids = map(tuple, tokenizer.encode_inside([after, right]))
        return cls(before, after, before_ids, after_ids, left, left_ids, right, right_ids)

    @classmethod
    def of_ids(cls, before_ids: Sequence[int], after_ids: Sequence[int]) -> "SlotText":
        """Surroundings that are known as ids only, for a slot that stays empty."""
        return cls("", "", tuple(before_ids), tuple(after_ids), "", (), "", ())

    def joined(self, slot: str) -> str:
        """The neighbourhood's text around a slot's text."""
        return self.left + slot + self.right

    def expected(self, slot_ids: Sequence[int]) -> list[int]:
        """The ids that ``joined`` must have if the slot stands cleanly."""
        return [*self.left_ids, *slot_ids, *self.right_ids]

    def middle(self, ids: Sequence[int]) -> list[int] | None:
        """The slot's ids within the ids of ``joined``; None if the surroundings changed."""
        start, stop = len(self.left_ids), len(ids) - len(self.right_ids)
        if stop < start or tuple(ids[:start]) != self.left_ids:
            return None
        if tuple(ids[stop:]) != self.right_ids:
            return None
        return list(ids[start:stop])


def survivors(
    tokenizer: Tokenizer,
    surroundings: Sequence[SlotText],
    candidates: Int[np.ndarray, "B C A"],
    current: Int[np.ndarray, "B A"] | Int[np.ndarray, "B C A"],
) -> Bool[np.ndarray, "B C"]:
    """Which candidates may be scored: the five conditions of Howe et al. 2024 (arXiv 2407.18213).

    A candidate survives if (a) the joined text tokenises to the substituted ids, (b) its own text
    does so alone (without the mark that a beginning may get), (c, d) nothing before or after the
    slot changes (part of a), and (e) it differs from the current slot.

    Args:
        current: the slot that an example's candidates stem from, or that each of them does.
    """
    examples, count, width = candidates.shape
    current = current if current.ndim == 3 else current[:, None]
    verdict = (candidates != current).any(-1).reshape(-1)
    asked = np.flatnonzero(verdict)
    rows = candidates.reshape(-1, width)[asked].tolist()
    around = [surroundings[index] for index in (asked // count).tolist()]
    verdict[asked] = _are_clean(tokenizer, around, rows)
    return verdict.reshape(examples, count)


def _are_clean(
    tokenizer: Tokenizer, around: Sequence[SlotText], rows: Sequence[list[int]]
) -> Bool[np.ndarray, " N"]:
    """Whether slots re-tokenise to themselves, alone and each in its own surroundings."""
    encoder = PieceEncoder(tokenizer)
    texts = tokenizer.decode(rows)
    alone = encoder.encode_inside(texts)
    # Most slots fail alone if they fail at all, and what is left shares its pieces with them.
    left = [index for index, row in enumerate(rows) if alone[index] == row]
    joined = encoder.encode([around[index].joined(texts[index]) for index in left])
    clean = np.zeros(len(rows), bool)
    clean[left] = [
        ids == around[index].expected(rows[index]) for index, ids in zip(left, joined, strict=True)
    ]
    return clean


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
    joined = PieceEncoder(tokenizer).encode(
        [s.joined(text) for s, text in zip(around, texts, strict=True)]
    )
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
    (start,) = tokenizer.encode_inside([_start_text(num_tokens)])
    rng = np.random.default_rng([seed, example_id])
    allowed = tokenizer.allowed_attack_ids
    slot = np.array(start if len(start) == num_tokens else rng.choice(allowed, num_tokens))

    def trials(first: int, count: int) -> list[list[int]]:
        """The next slots: the current one, and the same with one token after the other replaced."""
        rows = []
        for trial, token in enumerate(rng.choice(allowed, count).tolist(), first):
            rows.append(slot.tolist())
            slot[trial % num_tokens] = token
        return rows

    return _first_clean(tokenizer, surrounding, trials)


def random_start(
    tokenizer: Tokenizer, surrounding: SlotText, num_tokens: int, seed: int, example_id: int
) -> list[int] | None:
    """Ids of a random starting slot that stands cleanly in its prompt.

    Draws whole slots until one is clean, of tokens that are so by themselves: most single bytes
    form no character, and a slot with one of those never is.

    Returns:
        The ids, or None after 10,000 draws.
    """
    if not len(tokenizer.standalone_ids):
        return None
    rng = np.random.default_rng([seed, example_id, 1])  # another stream than that of clean_start

    def trials(first: int, count: int) -> list[list[int]]:
        return rng.choice(tokenizer.standalone_ids, (count, num_tokens)).tolist()

    return _first_clean(tokenizer, surrounding, trials)


def why_no_start(
    tokenizer: Tokenizer, surrounding: SlotText, num_tokens: int, position: float
) -> str:
    """What is said of an example in which no starting slot was found: that, and what is in the way.

    Args:
        position: where the slot was to stand, for the message only.
    """
    (ids,) = tokenizer.encode_inside([_start_text(num_tokens)])
    (text,) = tokenizer.decode([ids])
    reason = slot_obstacle(tokenizer, surrounding.before, text, surrounding.after)
    if reason is None and len(ids) != num_tokens:
        reason = f"there are {len(ids)} tokens"
    return (
        f"no slot of {num_tokens} tokens re-tokenises to itself at position {position} "
        f"({_START_TRIALS:,} tried)" + (f"; with {text!r} there, {reason}" if reason else "")
    )


def _start_text(num_tokens: int) -> str:
    return (_START_PATTERN * num_tokens)[:num_tokens]


def _first_clean(
    tokenizer: Tokenizer,
    surrounding: SlotText,
    trials: Callable[[int, int], list[list[int]]],
) -> list[int] | None:
    """The first clean slot of those that ``trials(first, count)`` gives, batch after batch."""
    done, size = 0, 1  # nearly always the first will do
    while done < _START_TRIALS:
        size = min(size, _START_TRIALS - done)
        rows = trials(done, size)
        clean = _are_clean(tokenizer, [surrounding] * size, rows)
        if clean.any():
            return rows[int(clean.argmax())]
        done, size = done + size, min(8 * size, _TRIALS_AT_ONCE)
    return None
