"""An attacked prompt in segments, and which of its tokens belong to which.

The segments are the chunks of an example, the modifiable one replaced by what of it stands before
the attack slot, the slot, and what of it stands after. Their texts join to the prompt. Their tokens
need not: a token can belong to several segments, as where a position cuts a word in two, or where
a content's last sign and the newlines of the answer prompt are one token. Such tokens form a span
of their own.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from robustjax.data.prompts import ChunkKind, Example, slot_place
from robustjax.data.tokens import Tokenizer

INSTRUCTIONS = "instructions"
CONTENT = "content"
SLOT = "slot"
ANSWER_PROMPT = "answer_prompt"


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A part of a prompt's text.

    Attributes:
        name: `instructions`, `content`, `slot` or `answer_prompt`.
        kind: what an attack may do to the chunk that it is, or is part of.
        text: its text, may be empty.
    """

    name: str
    kind: ChunkKind
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens that belong to the same segments.

    Attributes:
        first: index of the first segment they belong to.
        last: index of the last one; `first`, unless each of the tokens reaches into several.
        start: index of the first token.
        stop: index after the last token.
    """

    first: int
    last: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class PromptTokens:
    """The tokens of a prompt, segment by segment.

    Attributes:
        segments: the segments; exactly one is the slot.
        ids: the ids of their joined text.
        spans: who owns which tokens, in order, without gaps; none is empty.
        slot: the tokens of the slot, None if it does not stand cleanly.
        obstacle: why it does not, None if it does. It does if the tokens of the joined text are
            those of the text before the slot, then the slot's, then those of the text after it,
            and no token of the slot is special.
    """

    segments: tuple[Segment, ...]
    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    slot: range | None
    obstacle: str | None

    def __post_init__(self) -> None:
        """Checks that the spans are in order and cover every token once."""
        edges = [0, *itertools.chain.from_iterable((s.start, s.stop) for s in self.spans)]
        contiguous = edges[:-1:2] == edges[1::2] if self.spans else True
        in_order = all(
            one.first <= one.last <= other.last and one.first <= other.first
            for one, other in itertools.pairwise(self.spans)
        )
        full = all(span.start < span.stop for span in self.spans)
        if not (contiguous and in_order and full and edges[-1] == len(self.ids)):
            raise ValueError(f"spans {self.spans} do not cover {len(self.ids)} tokens in order")
        if (self.slot is None) != (self.obstacle is not None):
            raise ValueError(f"slot={self.slot} but obstacle={self.obstacle!r}")


def segments_of(
    example: Example, chunk_kinds: tuple[ChunkKind, ...], position: float, slot: str
) -> tuple[Segment, ...]:
    """Cuts an attacked prompt where `robustjax.data.prompts.slot_place` says.

    Args:
        example: the example.
        chunk_kinds: the task's chunk kinds, one for each of `example.chunks`.
        position: where the slot stands, in [0, 1].
        slot: the attack's text.

    Raises:
        ValueError: `position` is outside [0, 1], or `chunk_kinds` does not fit the example.
    """
    index, head, tail = slot_place(example, chunk_kinds, position)
    names = [INSTRUCTIONS, *[CONTENT] * len(example.content), ANSWER_PROMPT]
    chunks = list(map(Segment, names, chunk_kinds, example.chunks))
    name, kind = names[index], chunk_kinds[index]
    cut = [Segment(SLOT, kind, slot)]
    if kind is ChunkKind.PERTURBABLE:
        cut = [Segment(name, kind, head), *cut, Segment(name, kind, tail)]
    return (*chunks[:index], *cut, *chunks[index + 1 :])


def locate(tokenizer: Tokenizer, segments: Sequence[Segment]) -> PromptTokens:
    """Tokenises a prompt and finds the tokens of each segment.

    Raises:
        ValueError: not exactly one segment is the slot.
    """
    names = [segment.name for segment in segments]
    if names.count(SLOT) != 1:
        raise ValueError(f"segments {names}: exactly one must be the slot")
    index = names.index(SLOT)
    texts = [segment.text for segment in segments]
    before, after = "".join(texts[:index]), "".join(texts[index + 1 :])
    text = before + texts[index] + after
    (whole,) = tokenizer.encode([text])
    (before_ids,) = tokenizer.encode_opening([before])
    (after_ids,) = tokenizer.encode_inside([after])
    cuts = list(itertools.accumulate(map(len, texts[:-1])))
    (characters,) = tokenizer.character_spans([text])
    shared = [_tokens_across(tokenizer, text, characters, cut) for cut in cuts]

    obstacle = _obstacle(tokenizer, whole, before_ids, after_ids)
    slot = None
    if obstacle is None:
        slot = range(len(before_ids), len(whole) - len(after_ids))
        # Now the slot's edges are known for certain, and whatever lies beyond stays there.
        shared = [
            (min(lo, slot.start), min(hi, slot.start))
            if place < index
            else (max(lo, slot.stop), max(hi, slot.stop))
            for place, (lo, hi) in enumerate(shared)
        ]
        for place, edge in ((index - 1, slot.start), (index, slot.stop)):
            if 0 <= place < len(shared):
                shared[place] = (edge, edge)
    else:
        obstacle = _merged_token(text, characters, shared, index) or obstacle
    return PromptTokens(tuple(segments), tuple(whole), _spans(len(whole), shared), slot, obstacle)


def slot_obstacle(tokenizer: Tokenizer, before: str, slot: str, after: str) -> str | None:
    """Why a slot's text does not stand cleanly between two texts; None if it does."""
    kind = ChunkKind.PERTURBABLE
    parts = (
        Segment(CONTENT, kind, before),
        Segment(SLOT, kind, slot),
        Segment(CONTENT, kind, after),
    )
    return locate(tokenizer, parts).obstacle


def _obstacle(
    tokenizer: Tokenizer, whole: list[int], before_ids: list[int], after_ids: list[int]
) -> str | None:
    start, stop = len(before_ids), len(whole) - len(after_ids)
    if whole[:start] != before_ids:
        return "the text before the attack slot has other tokens with the slot after it"
    if stop < start or whole[stop:] != after_ids:
        return "the text after the attack slot has other tokens with the slot before it"
    special = tokenizer.special_ids.intersection(whole[start:stop])
    if special:
        return f"the attack slot's text spells a special token (id {min(special)})"
    return None


def _merged_token(
    text: str,
    characters: Sequence[tuple[int, int]],
    shared: Sequence[tuple[int, int]],
    slot: int,
) -> str | None:
    """Says which token of the prompt belongs both to the slot and to a neighbour, if one does."""
    for place, edge in ((slot - 1, "begins"), (slot, "ends")):
        lo, hi = shared[place] if 0 <= place < len(shared) else (0, 0)
        if lo < hi:
            # Up to the next token: normalisation may have left characters of this one uncounted.
            stop = characters[hi][0] if hi < len(characters) else len(text)
            own = text[characters[lo][0] : stop]
            who = f"token {own!r} reaches" if hi - lo == 1 else f"tokens of {own!r} reach"
            return f"the {who} across the place where the attack slot {edge}"
    return None


def _tokens_across(
    tokenizer: Tokenizer, text: str, characters: list[tuple[int, int]], cut: int
) -> tuple[int, int]:
    """The tokens `[lo, hi)` that stand for something on both sides of a cut between characters."""
    start, stop = _composed_across(tokenizer, text, cut)
    lo = bisect.bisect_right(characters, start, key=lambda span: span[1])
    hi = bisect.bisect_left(characters, stop, key=lambda span: span[0])
    return lo, max(lo, hi)


def _composed_across(tokenizer: Tokenizer, text: str, cut: int) -> tuple[int, int]:
    """The characters `[start, stop)` around a cut that normalisation mixes; none if it does not."""
    start = stop = cut
    whole = tokenizer.normalise(text)
    if _mixes(tokenizer, text, whole, cut):
        while _mixes(tokenizer, text, whole, start):
            start -= 1
        while _mixes(tokenizer, text, whole, stop):
            stop += 1
    return start, stop


def _mixes(tokenizer: Tokenizer, text: str, whole: str, place: int) -> bool:
    """Whether a text normalises otherwise (to ``whole``) than its halves."""
    halves = tokenizer.normalise(text[:place]) + tokenizer.normalise(text[place:])
    return 0 < place < len(text) and halves != whole


def _spans(count: int, shared: Sequence[tuple[int, int]]) -> tuple[Span, ...]:
    """Groups tokens by the segments they belong to, from the tokens across each inner edge."""
    tokens = np.arange(count)
    lo, hi = np.array(shared, int).reshape(-1, 2, 1).swapaxes(0, 1)
    first = (hi <= tokens).sum(0)  # the edges that lie wholly before a token
    last = (lo <= tokens).sum(0)  # those, and the edges that it reaches across
    changes = np.flatnonzero((np.diff(first) != 0) | (np.diff(last) != 0)) + 1
    return tuple(
        Span(int(first[start]), int(last[start]), start, stop)
        for start, stop in itertools.pairwise([0, *changes.tolist(), count])
        if start < stop  # there may be no token at all
    )
