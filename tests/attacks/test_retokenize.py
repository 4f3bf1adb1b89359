"""The verdict on a slot's neighbourhood is the verdict on the whole prompt."""

import dataclasses

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from robustjax.attacks import retokenize
from robustjax.attacks.retokenize import SlotText, clean_start, random_start
from robustjax.data.tokens import Tokenizer, train_byte_bpe
from tests.attacks.tiny import TEXTS, letters_tokenizer, neox_like_tokenizer
from tests.conftest import SENTENCES

BEFORE = (
    "",
    " ",
    "x",
    "Is it spam?\n\nPlease send the report before Friday",
    "Is it spam?\n\nPlease send the report before Friday ",
    "the lazy dog rains in the mountains" + " " * 7,
    "the lazy dog rains in the mountains and Friday ---",
    "the lazy dog rains ==== in ==== the ====",
    "the lazy dog rains in the mountains\n\n\n",
    "Word 1: cafe\nWord 2: naive\n---\n",
    "the lazy dog runs past the nai" + "\u0308ve cafe\u0301",
    "the lazy dog runs   over   two   spaces   a word",
    "a b c d e f 1 2 3 4 5 ' s ' t 's",
    "déjà vu 北京 😀 1,234.56 €",
)
AFTER = ("\n\nAnswer:", "", " and so on\n\nAnswer:", "\u0301 end", "   \n", "-- x", "og ends")
RUNS = (
    " ",
    "  ",
    "   ",
    "-",
    "--",
    "=",
    "==",
    "\n",
    "\n\n",
    "\u0301",
    "\u0308",
    "e",
    "'",
    "s",
    "@&",
)


@pytest.fixture(scope="module", params=["bytes", "neox"])
def tokenizer(request, tiny_tokenizer):
    if request.param == "bytes":
        return tiny_tokenizer
    return neox_like_tokenizer([*SENTENCES, *TEXTS, "   ", "-----", "====", "\n\n\n"])


def surround(tokenizer, before, after):
    return SlotText.surrounding(tokenizer, before, after)


def whole_prompt_verdict(tokenizer, before, after, slot):
    """Whether decoding, joining and tokenising everything again gives the ids back."""
    (text,) = tokenizer.decode([slot])
    before_ids, after_ids, alone, whole = tokenizer.encode(
        [before, after, text, before + text + after]
    )
    return alone == slot and whole == before_ids + slot + after_ids


def whole_prompt_middle(tokenizer, before, after, slot, width):
    """The slot's ids inside the whole prompt, or None if it does not fit."""
    (text,) = tokenizer.decode([slot])
    before_ids, after_ids, whole = tokenizer.encode([before, after, before + text + after])
    start, stop = len(before_ids), len(whole) - len(after_ids)
    if not 1 <= stop - start <= width or set(whole[start:stop]) & tokenizer.special_ids:
        return None
    fits = whole[:start] == before_ids and whole[stop:] == after_ids
    return whole[start:stop] if fits else None


def candidate_slots(tokenizer, rng, count, width=3):
    """Random slots, and slots of runs that like to merge with what surrounds them."""
    slots = rng.choice(tokenizer.allowed_attack_ids, (count, width))
    pieces = [ids for ids in tokenizer.encode(list(RUNS)) if len(ids) == 1]
    for slot in slots[::2]:
        for position in rng.choice(width, 2):
            slot[position] = pieces[rng.integers(len(pieces))][0]
    return slots.astype(np.int32)


def test_survivors_are_those_of_the_whole_prompt(tokenizer):
    rng = np.random.default_rng(0)
    kept = 0
    for before in BEFORE:
        for after in AFTER:
            slots = candidate_slots(tokenizer, rng, 40)
            current = slots[3]
            (got,) = retokenize.survivors(
                tokenizer, [surround(tokenizer, before, after)], slots[None], current[None]
            )
            for slot, verdict in zip(slots.tolist(), got, strict=True):
                expected = slot != current.tolist() and whole_prompt_verdict(
                    tokenizer, before, after, slot
                )
                assert verdict == expected, (before, after, slot)
            kept += got.sum()
    assert 400 < kept < 3000  # out of 3920: both verdicts were put to the test


def test_retokenised_ids_are_those_of_the_whole_prompt(tokenizer):
    rng = np.random.default_rng(1)
    fitted = 0
    for before in BEFORE:
        for after in AFTER:
            slots = candidate_slots(tokenizer, rng, 20)
            ids, mask, fits = retokenize.retokenise(
                tokenizer, [surround(tokenizer, before, after)], slots[None], 4
            )
            for slot, row, real, fit in zip(slots.tolist(), ids[0], mask[0], fits[0], strict=True):
                expected = whole_prompt_middle(tokenizer, before, after, slot, 4)
                assert fit == (expected is not None), (before, after, slot)
                assert row[real].tolist() == (expected or [])
                assert (row[~real] == tokenizer.pad_id).all()
                assert not real[real.sum() :].any(), "real ids come first"
            fitted += fits.sum()
    assert 300 < fitted < 1900


@settings(max_examples=60)
@given(
    pieces=st.lists(st.sampled_from([*RUNS, *" abcdefgh the lazy dog Friday 1 9".split(" ")])),
    slot=st.lists(st.sampled_from(RUNS), min_size=1, max_size=3),
    after=st.sampled_from(AFTER),
)
def test_any_mixture_of_runs_and_words_gets_the_whole_prompts_verdict(
    tiny_tokenizer, pieces, slot, after
):
    before = "send the report to the bank " + " ".join(pieces)
    (ids,) = tiny_tokenizer.encode(["".join(slot)])
    (got,) = retokenize.survivors(
        tiny_tokenizer,
        [surround(tiny_tokenizer, before, after)],
        np.array([[ids]], np.int32),
        np.zeros((1, len(ids)), np.int32),
    )

    assert got.tolist() == [whole_prompt_verdict(tiny_tokenizer, before, after, ids)]


def test_only_the_neighbourhood_is_tokenised_again(tiny_tokenizer):
    before = "Please send the report before Friday " * 50 + "and then"

    surrounding = surround(tiny_tokenizer, before, "\n\nAnswer:")

    assert surrounding.left == " Friday and then"
    assert surrounding.right == "\n\nAnswer:"
    assert list(surrounding.before_ids) == tiny_tokenizer.encode([before])[0]


def test_the_neighbourhood_never_ends_inside_a_run(tokenizer):
    """There a longer run could be one token, whatever the shorter ones are."""
    cut = 0
    for text in (
        *BEFORE,
        "lazy dog   jumps   over   the   brown   fox",
        "one -- two -- three -- 4",
    ):
        surrounding = surround(tokenizer, text, text)
        assert text.endswith(surrounding.left) and text.startswith(surrounding.right)
        for place in (len(text) - len(surrounding.left), len(surrounding.right)):
            if 0 < place < len(text):
                cut += 1
                assert "!" <= text[place - 1] <= "~" and text[place] == " "
    assert cut > 15


def test_a_tokenizer_that_does_not_cut_at_words_gets_the_whole_text():
    """Even where this text's own tokens would allow a cut."""
    vocab = {token: i for i, token in enumerate(["<|endoftext|>", *" abcdefx", "c ", "c d"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("c", " "), ("c ", "d")]))
    merges_across_words = Tokenizer(backend, {"eos_token": "<|endoftext|>"})

    for text in ("a b c d e f", "c d c d a d e f"):
        surrounding = surround(merges_across_words, text, text)
        (ids,) = merges_across_words.encode([text])
        assert (surrounding.left, surrounding.right) == (text, text)
        for part in ("before_ids", "left_ids", "after_ids", "right_ids"):
            assert list(getattr(surrounding, part)) == ids


def test_each_candidate_is_judged_in_its_own_prompt(tiny_tokenizer):
    slots = candidate_slots(tiny_tokenizer, np.random.default_rng(5), 30)
    prompts = [(BEFORE[3], AFTER[0]), (BEFORE[5], AFTER[2]), (BEFORE[6], AFTER[5])]

    got = retokenize.survivors(
        tiny_tokenizer,
        [surround(tiny_tokenizer, *prompt) for prompt in prompts],
        np.stack([slots] * 3),
        np.zeros((3, 3), np.int32),
    )

    expected = [
        [whole_prompt_verdict(tiny_tokenizer, *prompt, slot) for slot in slots.tolist()]
        for prompt in prompts
    ]
    np.testing.assert_array_equal(got, expected)
    assert len({tuple(row) for row in expected}) == 3


def test_text_that_spells_a_special_token_does_not_fit():
    tokenizer = letters_tokenizer("ab", special="aa")
    slots = np.array([[[1, 1], [1, 2], [2, 1]]], np.int32)

    ids, mask, fits = retokenize.retokenise(tokenizer, [surround(tokenizer, "b", "b")], slots, 4)

    assert tokenizer.encode(["baab"]) == [[2, 0, 2]]
    np.testing.assert_array_equal(fits, [[False, True, True]])
    np.testing.assert_array_equal(mask.sum(-1), [[0, 2, 2]])


def test_the_start_is_the_pattern_where_it_is_clean(tiny_tokenizer):
    surrounding = surround(tiny_tokenizer, BEFORE[3], AFTER[0])

    for width in (1, 4, 5):
        slot = clean_start(tiny_tokenizer, surrounding, width, 0, 0)
        assert tiny_tokenizer.decode([slot]) == [("@&" * width)[:width]]


@pytest.mark.parametrize("training_text", [" @ @ @ @ @", "@&@&@&@&@&"])
def test_a_start_is_found_where_the_pattern_is_not_clean(training_text):
    """Its first sign joins the space before it; its signs join each other."""
    tokenizer = train_byte_bpe([training_text], vocab_size=258)
    before = "the lazy dog rains in the mountains "
    surrounding = surround(tokenizer, before, AFTER[0])
    pattern = tokenizer.encode(["@", "&"]) * 2
    assert not whole_prompt_verdict(tokenizer, before, AFTER[0], [id for (id,) in pattern])

    starts = [clean_start(tokenizer, surrounding, 4, 0, example) for example in (1, 1, 2)]

    for start in starts:
        assert len(start) == 4
        assert whole_prompt_verdict(tokenizer, before, AFTER[0], start)
    assert starts[0] == starts[1] != starts[2]


def test_a_random_start_stands_cleanly_and_belongs_to_its_example(tiny_tokenizer):
    surrounding = surround(tiny_tokenizer, BEFORE[3], AFTER[0])

    starts = [random_start(tiny_tokenizer, surrounding, 10, 0, example) for example in (1, 1, 2)]
    other_seed = random_start(tiny_tokenizer, surrounding, 10, 1, 1)

    for start in [*starts, other_seed]:
        assert len(start) == 10
        assert set(start) <= set(tiny_tokenizer.allowed_attack_ids.tolist())
        assert whole_prompt_verdict(tiny_tokenizer, BEFORE[3], AFTER[0], start)
    assert starts[0] == starts[1]
    assert starts[0] != starts[2]
    assert starts[0] != other_seed


@pytest.mark.parametrize("find", [clean_start, random_start])
def test_no_start_is_found_where_none_can_be(find, tiny_tokenizer, monkeypatch):
    """After exactly so many trials, and few calls of the tokenizer."""
    monkeypatch.setattr(retokenize, "_START_TRIALS", 3_000)
    surrounding = dataclasses.replace(
        surround(tiny_tokenizer, BEFORE[3], AFTER[0]), left_ids=(1, 2, 3)
    )
    batches = []
    decode = tiny_tokenizer.decode
    monkeypatch.setattr(
        tiny_tokenizer, "decode", lambda rows: batches.append(len(rows)) or decode(rows)
    )

    assert find(tiny_tokenizer, surrounding, 4, 0, 0) is None
    assert sum(batches) == 3_000
    assert len(batches) < 15


@pytest.mark.parametrize("find", [clean_start, random_start])
def test_the_start_does_not_depend_on_how_many_are_tried_at_once(find, monkeypatch):
    """The first clean one of the same sequence."""
    tokenizer = train_byte_bpe([" @ @ @ @ @"], vocab_size=258)
    surrounding = surround(tokenizer, "the lazy dog rains in the mountains ", AFTER[0])
    at_once = [find(tokenizer, surrounding, 4, 0, example) for example in range(6)]
    monkeypatch.setattr(retokenize, "_TRIALS_AT_ONCE", 1)

    one_by_one = [find(tokenizer, surrounding, 4, 0, example) for example in range(6)]

    assert at_once == one_by_one
    assert None not in at_once and len(set(map(tuple, at_once))) == 6


def test_a_start_that_is_not_found_says_what_is_in_the_way(tiny_tokenizer):
    surrounding = surround(tiny_tokenizer, BEFORE[3], AFTER[0])
    merging = train_byte_bpe(["@&@&@&@&@&"], vocab_size=258)
    glued = letters_tokenizer("@&", special="@@")

    for tokenizer, prompt, ending in (
        (tiny_tokenizer, surrounding, "itself at position 0.9 (10,000 tried)"),
        (merging, surround(merging, "x", "y"), "; with '@&@&' there, there are 2 tokens"),
        (
            glued,
            surround(glued, "@", "&"),
            "; with '@&@&' there, the token '@@' reaches across the place where the attack slot "
            "begins",
        ),
    ):
        reason = retokenize.why_no_start(tokenizer, prompt, 4, 0.9)
        assert reason.startswith("no slot of 4 tokens re-tokenises to itself at position 0.9")
        assert reason.endswith(ending)
