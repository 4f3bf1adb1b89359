"""A text is cut only where its tokens are those of the two halves."""

import json
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustjax.data.cuts import cuts_before_spaces, pieces
from robustjax.data.piece_encoder import PieceEncoder
from tests.attacks.tiny import letters_tokenizer
from tests.tokenizer_kinds import KINDS, MARKS, RUNS, SCRIPTS

FRAGMENTS = (
    *(*RUNS, *MARKS, *SCRIPTS, *"the Friday , 1 23 x ! ~ 's 'LL \u017f \u0338 \u212a".split(" ")),
    *(
        "<|im_start|>",
        "<|endoftext|>",
        "<tool_call>",
        "<|im_",
        " ",
        "   ",
        "\u00a0",
        "\x00",
        "\x85",
    ),
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join),
    st.lists(st.sampled_from(FRAGMENTS), max_size=8).map(" ".join),
)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [""]),
        (" ", [" "]),
        ("send the report", ["send", " the", " report"]),
        ("a   b c", ["a", "   b", " c"]),
        ("a, b\n c", ["a,", " b\n c"]),
        ("né é d", ["né é d"]),
        ("x \u0301 y", ["x", " \u0301 y"]),
    ],
)
def test_cuts_stand_before_the_first_space_after_a_printable_character(text, expected):
    assert pieces(text) == expected


@settings(max_examples=150)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_pieces_have_the_tokens_of_the_text(tokenizer, texts):
    assert ["".join(pieces(text)) for text in texts] == texts
    assert PieceEncoder(tokenizer).encode(texts) == tokenizer.encode(texts)


def test_texts_of_words_are_cut_and_each_word_is_tokenised_once(tokenizer, monkeypatch):
    encoder = PieceEncoder(tokenizer)
    asked = []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda texts: asked.extend(texts) or encode(texts))

    encoder.encode(["send the report", "read the report", "send"])
    encoder.encode(["write the report"])

    assert asked == ["send", " the", " report", "read", "write"]


def test_nothing_composes_with_a_space_or_across_a_printable_character():
    """Step 2 of the rule, for all of Unicode."""
    for code in range(sys.maxunicode + 1):
        if not 0xD800 <= code < 0xE000:
            character = chr(code)
            alone = unicodedata.normalize("NFC", character)
            assert unicodedata.normalize("NFC", "a " + character) == "a " + alone
            assert unicodedata.normalize("NFC", character + "a ") == alone + "a "


def change(description, *path, value):
    """A copy with one entry replaced."""
    copy = json.loads(json.dumps(description))
    entry = copy
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    return copy


def test_what_is_not_proved_is_not_cut(tokenizer):
    description = json.loads(tokenizer._backend.to_str())
    assert cuts_before_spaces(description)

    last = ("pre_tokenizer",)
    if "pretokenizers" in description["pre_tokenizer"]:
        last = ("pre_tokenizer", "pretokenizers", -1)
        split = ("pre_tokenizer", "pretokenizers", 0)
        pattern = description["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        llama3 = {"Regex": pattern.replace(r"|\p{N}|", r"|\p{N}{1,3}|")}
        assert not cuts_before_spaces(change(description, *split, "pattern", value=llama3))
        assert not cuts_before_spaces(change(description, *split, "invert", value=True))
        assert not cuts_before_spaces(change(description, *split, "behavior", value="Removed"))
    for path, value in (
        (("model", "type"), "Unigram"),
        (("model", "dropout"), 0.1),
        (("normalizer",), {"type": "NFD"}),
        (("normalizer",), {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}),
        (("pre_tokenizer",), None),
        (("pre_tokenizer",), {"type": "Sequence", "pretokenizers": []}),
        (("pre_tokenizer",), {"type": "Metaspace"}),
        ((*last, "add_prefix_space"), True),
        ((*last, "use_regex"), not description["pre_tokenizer"].get("use_regex", False)),
        (("added_tokens", 1, "lstrip"), True),
        (("added_tokens", 1, "rstrip"), True),
        (("added_tokens", 1, "single_word"), True),
        (("added_tokens", 1, "content"), "the end"),
        (("added_tokens", 1, "content"), "user: "),
    ):
        assert not cuts_before_spaces(change(description, *path, value=value)), path


def test_whole_texts_are_tokenised_where_the_rule_is_not_proved(monkeypatch):
    tokenizer = letters_tokenizer("abc ", extra=["a b"])
    asked = []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda texts: asked.extend(texts) or encode(texts))

    got = PieceEncoder(tokenizer).encode(["a b", "a c", "a b"])

    assert asked == ["a b", "a c"]
    assert got == encode(["a b", "a c", "a b"])
