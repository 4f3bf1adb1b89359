"""Every token of an attacked prompt belongs to the segments whose text it stands for."""

import dataclasses
import functools
import unicodedata

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from robustjax.attacks.retokenize import SlotText, retokenise
from robustjax.data.prompts import ChunkKind, Example, split_at_slot
from robustjax.data.segments import (
    ANSWER_PROMPT,
    CONTENT,
    INSTRUCTIONS,
    SLOT,
    PromptTokens,
    Segment,
    Span,
    locate,
    segments_of,
    slot_obstacle,
)
from robustjax.data.tokens import Tokenizer
from tests.attacks.tiny import letters_tokenizer
from tests.tokenizer_kinds import KINDS, MARKING, MARKS, RUNS, SCRIPTS

IMMUTABLE, PERTURBABLE, OVERWRITABLE = ChunkKind
INSERT = (IMMUTABLE, PERTURBABLE, IMMUTABLE)
OVERWRITE = (IMMUTABLE, IMMUTABLE, OVERWRITABLE, IMMUTABLE)

FRAGMENTS = (
    *RUNS,
    *MARKS,
    *SCRIPTS,
    *"the Friday , 12 x \u0301 <|im_end|> \x00 \x1b".split(" "),
    *("  ", "</s>"),
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join),
    st.sampled_from(["Please send it by Friday", "pneumonoultramicroscopic" * 99, "👩\u200d👩"]),
)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return (KINDS | MARKING)[request.param]()


any_kind = pytest.mark.parametrize("tokenizer", [*KINDS, *MARKING], indirect=True)


def example_of(*chunks):
    instructions, *content, answer_prompt = chunks
    return Example(0, instructions, tuple(content), answer_prompt, 0, 1, " A", " B")


def tokens_of(tokenizer, chunks, slot, kinds=INSERT, position=1.0):
    return locate(tokenizer, segments_of(example_of(*chunks), kinds, position, slot))


def shown(tokenizer, tokens):
    """Each span as the names of its segments and its text."""
    return [
        (
            "+".join(segment.name for segment in tokens.segments[span.first : span.last + 1]),
            tokenizer.decode([tokens.ids[span.start : span.stop]])[0],
        )
        for span in tokens.spans
    ]


def owners_by_bytes(tokenizer, tokens):
    """The segments whose bytes each token holds, for text that is normalised as it stands."""
    alphabet = _alphabet()
    edges = np.cumsum([0, *[len(segment.text.encode()) for segment in tokens.segments]])
    added = tokenizer._backend.get_added_tokens_decoder()
    lengths = []
    for token in tokens.ids:
        text = tokenizer._backend.id_to_token(token)
        lengths.append(len(text.encode() if token in added else bytes(map(alphabet.get, text))))
    stops = np.cumsum(lengths, dtype=int)[:, None]
    assert stops[-1:].sum() == edges[-1]
    starts = stops - np.array(lengths, int)[:, None]
    inside = np.maximum(edges[:-1], starts) < np.minimum(edges[1:], stops)  # [tokens, segments]
    assert inside.any(1).all()
    last = inside.shape[1] - 1 - inside[:, ::-1].argmax(1)
    return list(zip(inside.argmax(1).tolist(), last.tolist(), strict=True))


@functools.cache
def _alphabet():
    """The byte that each character of a byte-level vocabulary stands for."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = iter(range(256, 512))
    return {chr(byte if byte in plain else next(moved)): byte for byte in range(256)}


any_prompt = given(
    chunks=st.tuples(TEXTS, TEXTS, TEXTS, TEXTS),
    slot=TEXTS,
    position=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    kinds=st.sampled_from([OVERWRITE, (IMMUTABLE, PERTURBABLE, IMMUTABLE, IMMUTABLE)]),
)


@any_kind
@settings(max_examples=150)
@any_prompt
def test_any_prompt_is_covered_and_agrees_with_the_engine(tokenizer, chunks, slot, position, kinds):
    check_prompt(tokenizer, chunks, slot, position, kinds)


@any_kind
@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@any_prompt
def test_two_thousand_prompts(tokenizer, chunks, slot, position, kinds):
    check_prompt(tokenizer, chunks, slot, position, kinds)


def check_prompt(tokenizer, chunks, slot, position, kinds):
    example = example_of(*chunks)
    before, after = split_at_slot(example, kinds, position)
    segments = segments_of(example, kinds, position, slot)
    tokens = locate(tokenizer, segments)

    index = [segment.name for segment in segments].index(SLOT)
    texts = [segment.text for segment in segments]
    assert ("".join(texts[:index]), texts[index]) == (before, slot)
    assert "".join(texts[index + 1 :]) == after
    assert [list(tokens.ids)] == tokenizer.encode([before + slot + after])
    covered = [token for span in tokens.spans for token in range(span.start, span.stop)]
    assert covered == list(range(len(tokens.ids)))

    surrounding = SlotText.surrounding(tokenizer, before, after)
    if tokens.slot is not None:
        assert tokens.ids[: tokens.slot.start] == surrounding.before_ids
        assert tokens.ids[tokens.slot.stop :] == surrounding.after_ids
    slot_ids = tokenizer.encode_inside([slot])[0]
    if slot_ids and tokenizer.decode([slot_ids]) == [slot]:
        width = len(tokens.ids)
        ids, mask, fits = retokenise(
            tokenizer, [surrounding], np.array([[slot_ids]], np.int32), width
        )
        expected = tokens.slot is not None and len(tokens.slot) > 0
        assert fits[0, 0] == expected
        if expected:
            assert ids[0, 0][mask[0, 0]].tolist() == [tokens.ids[i] for i in tokens.slot]

    text = before + slot + after
    is_byte_level = isinstance(tokenizer._backend.decoder, tokenizers.decoders.ByteLevel)
    if is_byte_level and unicodedata.normalize("NFC", text) == text:
        normal = all(
            unicodedata.normalize("NFC", text[place:]) == text[place:]
            for place in np.cumsum([len(part) for part in texts])
        )
        if normal:
            owners = owners_by_bytes(tokenizer, tokens)
            for span in tokens.spans:
                for first, last in owners[span.start : span.stop]:
                    # An empty segment lies wherever its neighbours meet.
                    held = range(span.first, span.last + 1)
                    assert [i for i in held if texts[i]] == [
                        i for i in range(first, last + 1) if texts[i]
                    ]


@any_kind
def test_words_that_meet_cleanly_are_in_their_segments(tokenizer):
    tokens = tokens_of(tokenizer, ("Is it spam?\n\n", "the lazy dog", "\n\nAnswer:"), " fox")

    (first, text), *others = shown(tokenizer, tokens)
    # The mark that some put at the beginning is a space's.
    assert [(first, text.removeprefix(" ")), *others] == [
        (INSTRUCTIONS, "Is it spam?\n\n"),
        (CONTENT, "the lazy dog"),
        (SLOT, " fox"),
        (ANSWER_PROMPT, "\n\nAnswer:"),
    ]
    assert tokens.obstacle is None


def test_an_overwritten_chunk_gives_way_to_the_slot(tokenizer):
    chunks = ("Compare.\n", "Word 1: a\n---\n", "old", "\n\nAnswer:")
    tokens = tokens_of(tokenizer, chunks, "fox", OVERWRITE)

    assert [(s.name, s.kind, s.text) for s in tokens.segments] == [
        (INSTRUCTIONS, IMMUTABLE, chunks[0]),
        (CONTENT, IMMUTABLE, chunks[1]),
        (SLOT, OVERWRITABLE, "fox"),
        (ANSWER_PROMPT, IMMUTABLE, chunks[3]),
    ]
    assert [name for name, _ in shown(tokenizer, tokens)][-2:] == [SLOT, ANSWER_PROMPT]
    assert [tokens.ids[i] for i in tokens.slot] == tokenizer.encode(["fox"])[0]


@pytest.mark.parametrize("position", [0.0, 0.4, 1.0])
def test_a_perturbable_chunk_stands_on_both_sides_of_the_slot(tokenizer, position):
    tokens = tokens_of(tokenizer, ("a ", "0123456789", " b"), "@", position=position)
    cut = int(10 * position)

    assert [segment.name for segment in tokens.segments] == [
        *(INSTRUCTIONS, CONTENT, SLOT, CONTENT, ANSWER_PROMPT)
    ]
    assert [segment.text for segment in tokens.segments[1:4]] == [
        *("0123456789"[:cut], "@", "0123456789"[cut:])
    ]


def letters(merges):
    """Single letters, and the merges that are named."""
    tokens = ["<|endoftext|>", *"abcdef", *[one + two for one, two in merges]]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    backend.decoder = tokenizers.decoders.Fuse()
    return Tokenizer(backend, {"eos_token": "<|endoftext|>"})


def test_a_token_of_two_segments_is_a_span_of_its_own():
    tokenizer = letters([("b", "c")])

    tokens = tokens_of(tokenizer, ("ab", "ca", "f"), "d")

    assert shown(tokenizer, tokens) == [
        (INSTRUCTIONS, "a"),
        (f"{INSTRUCTIONS}+{CONTENT}", "bc"),
        (CONTENT, "a"),
        (SLOT, "d"),
        (ANSWER_PROMPT, "f"),
    ]
    assert (tokens.slot, tokens.obstacle) == (range(3, 4), None)


@pytest.mark.parametrize(
    ("content", "slot", "position", "obstacle"),
    [
        ("ab", "ca", 1.0, "the token 'bc' reaches across the place where the attack slot begins"),
        ("cab", "ab", 0.0, "the token 'bc' reaches across the place where the attack slot ends"),
        ("bc", "", 0.5, "the token 'bc' reaches across the place where the attack slot begins"),
        ("bc", "a", 0.5, None),
        ("ab", "d", 1.0, None),
        ("ab", "", 1.0, None),
    ],
)
def test_a_slot_that_shares_a_token_says_which(content, slot, position, obstacle):
    tokenizer = letters([("b", "c")])

    tokens = tokens_of(tokenizer, ("d", content, "f"), slot, position=position)

    assert tokens.obstacle == obstacle
    assert (tokens.slot is None) == (obstacle is not None)
    before, after = split_at_slot(example_of("d", content, "f"), INSERT, position)
    assert slot_obstacle(tokenizer, before, slot, after) == tokens.obstacle


def test_other_tokens_beside_the_slot_are_an_obstacle_without_a_shared_one(tokenizer):
    """Two tabs are one token at the end of a text, and two before a word."""
    tokens = tokens_of(tokenizer, ("", "the lazy\t\t", ""), "fox")

    assert all(span.first == span.last for span in tokens.spans)
    assert tokens.obstacle == (
        "the text before the attack slot has other tokens with the slot after it"
    )


def test_a_slot_that_spells_a_special_token_is_no_slot():
    tokenizer = letters_tokenizer("ab", special="aa")

    assert slot_obstacle(tokenizer, "b", "aa", "b") == (
        "the attack slot's text spells a special token (id 0)"
    )
    assert slot_obstacle(tokenizer, "b", "ab", "b") is None


def test_what_normalisation_composes_belongs_to_both(tokenizer):
    composed = tokens_of(tokenizer, ("cafe", "\u0301 lazy", " x"), "dog")
    apart = tokens_of(tokenizer, ("cafe\u0301", " lazy", " x"), "dog")

    (shared,) = [span for span in composed.spans if span.first < span.last]
    assert (shared.first, shared.last) == (0, 1)
    assert "é" in tokenizer.decode([composed.ids[shared.start : shared.stop]])[0]
    assert composed.ids == apart.ids
    assert all(span.first == span.last for span in apart.spans)


def test_offsets_count_spaces_though_the_tokenizer_trims_them():
    tokenizer = KINDS["neox"]()

    (spans,) = tokenizer.character_spans(["the lazy dog"])

    assert (spans[0][0], spans[-1][1]) == (0, 12)
    assert all(one[1] == other[0] for one, other in zip(spans, spans[1:], strict=False))


def test_spans_that_do_not_cover_the_tokens_are_refused():
    segments = (Segment(SLOT, PERTURBABLE, "ab"),)
    fine = PromptTokens(segments, (1, 2), (Span(0, 0, 0, 2),), range(2), None)
    for spans in (
        (),
        (Span(0, 0, 0, 1),),
        (Span(0, 0, 1, 2),),
        (Span(0, 0, 0, 1), Span(0, 0, 0, 2)),
        (Span(1, 1, 0, 1), Span(0, 0, 1, 2)),
        (Span(0, 0, 0, 2), Span(0, 0, 2, 2)),
    ):
        with pytest.raises(ValueError, match="do not cover 2 tokens"):
            dataclasses.replace(fine, spans=spans)
    with pytest.raises(ValueError, match="obstacle"):
        dataclasses.replace(fine, obstacle="something")
    with pytest.raises(ValueError, match="exactly one"):
        locate(letters_tokenizer("ab"), [Segment(CONTENT, PERTURBABLE, "ab")])
