"""What a text is inside a longer one, where a tokenizer marks the beginning of texts."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from robustjax.data.beginnings import marks_beginnings
from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError
from tests.tokenizer_kinds import KINDS, MARKING, MARKS, RUNS, SCRIPTS, SPACE, Plainly

FRAGMENTS = (*RUNS, *MARKS, *SCRIPTS, *"the Friday , 12 x half past </s> <s> \x00".split(" "))
TEXTS = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=8).flatmap(
    lambda parts: st.sampled_from(["".join(parts), " ".join(parts)])
)


@pytest.fixture(scope="module", params=MARKING)
def plainly(request):
    return Plainly(request.param)


@settings(max_examples=300)
@given(text=TEXTS)
def test_where_a_token_ends_the_parts_have_the_tokens_of_the_whole(plainly, text):
    """Wherever that is, but in front of a mark that stands within the text, after `</s>`."""
    tokenizer = plainly.tokenizer
    (ids,), (spans,) = tokenizer.encode([text]), tokenizer.character_spans([text])
    for place in range(1, len(ids)):
        cut = spans[place - 1][1]
        is_edge = all(not a < cut < b for a, b in spans) and spans[place][0] == cut
        if is_edge and ids[place - 1] not in tokenizer.special_ids:
            (opening,) = tokenizer.encode_opening([text[:cut]])
            (inside,) = tokenizer.encode_inside([text[cut:]])
            assert (opening, inside) == (ids[:place], ids[place:]), text[cut:]


@pytest.mark.parametrize(
    ("kind", "text", "whole", "opening", "inside"),
    [
        ("llama", "the dog", "_the _dog", "_the _dog", "the _dog"),
        ("llama", " the dog", "_ _the _dog", "_ _the _dog", "_the _dog"),
        ("llama", "", "", "_", ""),
        ("llama", "the</s>dog", "_the </s> _dog", "_the </s> _dog", "the </s> _dog"),
        ("llama", "the</s>", "_the </s>", "_the </s> _", "the </s>"),
        ("metaspace", "the dog", "_the _dog", "_the _dog", "the _dog"),
        ("metaspace", " the dog", "_the _dog", "_the _dog", "_the _dog"),
        ("metaspace", "", "", "_", ""),
        ("metaspace", "the</s>", "_the </s>", "_the </s>", "the </s>"),
        ("metaspace_always", "the</s>dog", "_the </s> _dog", "_the </s> _dog", "the </s> _dog"),
        ("metaspace_always", "the</s>", "_the </s>", "_the </s> _", "the </s>"),
        ("metaspace_always", "", "", "_", ""),
    ],
)
def test_the_mark_stands_at_the_beginning_alone(kind, text, whole, opening, inside):
    tokenizer = MARKING[kind]()
    asked = tokenizer.encode, tokenizer.encode_opening, tokenizer.encode_inside
    for encode, expected in zip(asked, (whole, opening, inside), strict=True):
        (ids,) = encode([text])
        shown = " ".join(map(tokenizer._backend.id_to_token, ids))
        assert shown == expected.replace("_", SPACE)


def test_rows_are_decoded_as_they_stand_behind_others(plainly):
    tokenizer = plainly.tokenizer
    rows = np.random.default_rng(0).choice(tokenizer.allowed_attack_ids, (300, 4))

    texts = tokenizer.decode(rows)

    assert texts == [plainly.text(row) for row in rows.tolist()]
    assert 30 < sum(text.startswith(" ") for text in texts) < 270
    (ids,) = tokenizer.encode_inside([" the"])
    assert tokenizer.decode([[tokenizer.eos_id, *ids, 99_999]]) == [" the"]


def test_texts_that_share_no_beginning_are_told_apart_in_one_call(plainly):
    texts = ["12", "the", "", "=== x", "12", " half", "\u0301", "-- ", "北京"]

    for encode in (plainly.tokenizer.encode_opening, plainly.tokenizer.encode_inside):
        assert encode(texts) == [encode([text])[0] for text in texts]


@pytest.mark.parametrize(
    ("text", "opening", "inside"),
    [
        ("b", "_ b", "b"),  # merges with none
        ("a", "_ a", "a"),  # with `0` behind it and before it, but not with `1`
        ("ab", "_ a b", "a b"),
        ("ba", "_ b a", "b a"),
        ("", "_", ""),  # the mark merges with `0`, but not with `1`
        ("c", "_c", "c"),  # with both behind it
        ("d", "_ d", "d"),  # with both before it, but not with `a`
    ],
)
def test_a_neighbour_that_merges_gives_way_to_the_next(text, opening, inside):
    merges = ["_ 0", "0 a", "a 0", "_0 a", "_ c", "_c 0", "_c 1", "_0 d", "1 d"]
    tokens = ["</s>", *"_01abcd", *(merge.replace(" ", "") for merge in merges)]
    vocab = {token.replace("_", SPACE): index for index, token in enumerate(tokens)}
    pairs = [tuple(merge.replace("_", SPACE).split(" ")) for merge in merges]
    backend = tokenizers.Tokenizer(models.BPE(vocab, pairs))
    backend.normalizer = normalizers.Prepend(SPACE)
    tokenizer = Tokenizer(backend, {"eos_token": "</s>"})

    found = *tokenizer.encode_opening([text]), *tokenizer.encode_inside([text])

    shown = [" ".join(map(backend.id_to_token, ids)).replace(SPACE, "_") for ids in found]
    assert shown == [opening, inside]


def test_byte_level_tokenizers_are_read_as_before():
    for kind in KINDS.values():
        tokenizer, texts = kind(), ["", "the dog", " the", "\n\nAnswer:", "\u0301 x", "'s"]
        assert tokenizer.encode_opening(texts) == tokenizer.encode(texts)
        assert tokenizer.encode_inside(texts) == tokenizer.encode(texts)
        assert tokenizer.decode(tokenizer.encode(texts)) == texts


@pytest.mark.parametrize(
    ("name", "part", "marks"),
    [
        ("normalizer", normalizers.NFC(), False),
        ("normalizer", normalizers.Strip(), False),
        ("normalizer", normalizers.Prepend("_"), True),
        ("normalizer", normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("_")]), True),
        ("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False), False),
        ("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True), True),
        ("pre_tokenizer", pre_tokenizers.Metaspace(SPACE, "never"), False),
        ("pre_tokenizer", pre_tokenizers.Metaspace(SPACE, "first"), True),
        ("pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Metaspace()]), True),
        ("decoder", decoders.ByteLevel(), False),
        ("decoder", decoders.Metaspace(SPACE, "always"), True),
        ("decoder", decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), False),
        ("decoder", decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)]), True),
    ],
)
def test_what_marks_a_beginning(name, part, marks):
    assert marks_beginnings({name: json.loads(part.__getstate__())}) == marks


def test_a_tokenizer_without_a_single_character_is_refused():
    backend = tokenizers.Tokenizer(models.WordLevel({"<eos>": 0, SPACE + "a": 1}, "<eos>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()

    with pytest.raises(UserError, match="marks the beginning of a text, and knows no letter"):
        Tokenizer(backend, {"eos_token": "<eos>"})


def test_it_may_add_a_space_as_a_byte_level_tokenizer_too():
    backend = tokenizers.Tokenizer.from_str(KINDS["neox"]()._backend.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = Tokenizer(backend, {"eos_token": "<|endoftext|>"})

    assert tokenizer.encode(["the dog"]) == KINDS["neox"]().encode([" the dog"])
    assert tokenizer.encode_inside(["the dog"]) == KINDS["neox"]().encode(["the dog"])
    assert not tokenizer.cuts_before_spaces
