"""The verdict on a slot's neighbourhood is the whole prompt's, whatever stands there."""

import collections
import dataclasses
import functools

import numpy as np
import pytest

from robustjax.attacks.retokenize import SlotText, survivors
from tests.tokenizer_kinds import KINDS, MARKING, MARKS, RUNS, SCRIPTS, Plainly

ORDINARY = "Is it spam?\n\nPlease send the report before Friday; the meeting was moved"
WIDTH = 5

BEFORE = {
    "ordinary text": ORDINARY,
    "a word that goes on": ORDINARY + " to half pa",
    "a space": ORDINARY + " ",
    "spaces": ORDINARY + " " * 48,
    "words between spaces": "the   lazy   dog   rains   in   the   mountains",
    "dashes": ORDINARY + " " + "-" * 21,
    "equals signs": ORDINARY + "\n" + "=" * 30,
    "underscores": ORDINARY + " a_b " + "_" * 9,
    "newlines": ORDINARY + "\n" * 5,
    "Windows newlines": ORDINARY + "!\r\n\r\n",
    "newlines after spaces": ORDINARY + ".  \n \n",
    "tabs": ORDINARY + "\t" * 6,
    "spaces of other kinds": ORDINARY + " \u00a0\u2003\u3000\u00a0",
    "combining marks": ORDINARY + " cafe" + "\u0301\u0323",
    "a letter that marks compose with": ORDINARY + " nai",
    "marks after a space": ORDINARY + " \u0308\u0301",
    "Hangul parts": ORDINARY + " \u1112\u1161",
    "digits": ORDINARY + " 1,234.5600",
    "mixed scripts": ORDINARY + "北京市朝 Приве नमस्ते שלו",
    "no cut at all": "北京市朝阳区こんにちは" * 4,
    "an emoji of several parts": ORDINARY + " 👩\u200d",
    "an apostrophe": ORDINARY + " it'",
    "a special token": ORDINARY + "<|endoftext|>",
    "special tokens and a name": ORDINARY + "<|im_end|>\n<|im_start|>user",
    "a special token of others": ORDINARY + " to half past</s>",
    "half a special token": ORDINARY + " <|im_",
    "an added token": ORDINARY + " <tool_call>",
    "nothing": "",
    "one space": " ",
}
LIKELY = (
    *("ordinary text", "a word that goes on", "spaces", "dashes", "equals signs", "newlines"),
    *("combining marks", "digits", "mixed scripts", "special tokens and a name"),
)
"""Those that stand in mails and chats; the others are judged a quarter as often."""
AFTER = (
    "\n\nAnswer:",
    "",
    " and so on, until Friday.\n\nAnswer:",
    "ved to half past nine; it rains in the mountains.\n\nAnswer:",
    "\u0301 rains in the mountains",
    "    \n in the mountains",
    "-- x and   so on",
    "= \u0338 half",
    "start|> half past",
    "9 to 5",
    "\n",
    "'s end is near",
)


@pytest.fixture(scope="module", params=[*KINDS, *MARKING])
def plainly(request):
    return Plainly(request.param)


@pytest.fixture(scope="module")
def tokenizer(plainly):
    return plainly.tokenizer


byte_level = pytest.mark.parametrize("plainly", KINDS, indirect=True)


@functools.cache
def snippets(tokenizer):
    """Ids of short texts that like to merge: runs, marks, scripts, pieces of special tokens."""
    texts = [run * n for run in RUNS for n in (1, 2, 3, 7)]
    texts += [*MARKS, *SCRIPTS, *"e i \u0301 \u0338 <| im_ start |> > end of text".split(" ")]
    rows = tokenizer.encode_inside(texts)
    return [row for row in rows if row and tokenizer.special_ids.isdisjoint(row)]


def candidates(tokenizer, rng, count):
    """Slots that stem from one slot as an attack's do, half of them with a snippet at a place."""
    base = rng.choice(tokenizer.standalone_ids, WIDTH)
    slots = np.repeat(base[None], count, 0)
    pool = snippets(tokenizer)
    for index, slot in enumerate(slots):
        kind = index % 4
        if kind < 2:
            slot[rng.integers(WIDTH)] = rng.choice(tokenizer.allowed_attack_ids)
        else:  # at an edge, where it meets the surroundings
            row = pool[rng.integers(len(pool))][:WIDTH]
            if kind == 2:
                slot[: len(row)] = row
            else:
                slot[WIDTH - len(row) :] = row
    slots[rng.integers(count)] = base
    return slots.astype(np.int32), base.astype(np.int32)


def slow_verdicts(plainly, before, after, slots, current):
    """All five conditions, from texts that are built and tokenised as a whole."""
    before_ids, after_ids = plainly.opening(before), plainly.inside(after)
    start, end = len(before_ids), len(after_ids)
    texts = [plainly.text(slot) for slot in slots.tolist()]
    wholes = [plainly.whole(before + text + after) for text in texts]
    alone = map(plainly.inside, texts)
    return np.array(
        [
            whole == before_ids + slot + after_ids
            and own == slot
            and whole[:start] == before_ids
            and whole[len(whole) - end :] == after_ids
            and slot != current.tolist()
            for slot, whole, own in zip(slots.tolist(), wholes, alone, strict=True)
        ]
    )


@dataclasses.dataclass
class Judged:
    """Candidates of one prompt with their verdicts from the whole text."""

    name: str
    surrounding: SlotText
    slots: np.ndarray
    current: np.ndarray
    expected: np.ndarray

    def wrong(self, tokenizer, surrounding=None):
        """The candidates that `survivors` judges wrongly."""
        surrounding = surrounding or self.surrounding
        (got,) = survivors(tokenizer, [surrounding], self.slots[None], self.current[None])
        return [(self.name, surrounding.after, slot) for slot in self.slots[got != self.expected]]


def judge(plainly, count, seed, names=tuple(BEFORE)):
    """So many candidates for each text before and each after the slot."""
    rng, tokenizer = np.random.default_rng(seed), plainly.tokenizer
    for name in names:
        before = BEFORE[name]
        for after in AFTER:
            slots, current = candidates(tokenizer, rng, count)
            yield Judged(
                name,
                SlotText.surrounding(tokenizer, before, after),
                slots,
                current,
                slow_verdicts(plainly, before, after, slots, current),
            )


@pytest.fixture(scope="module")
def judged(plainly):
    return list(judge(plainly, 30, seed=0))


def assert_all_right(tokenizer, judged):
    """Nothing is judged wrongly, and both verdicts occur after each kind of text."""
    shares = collections.defaultdict(float)
    for prompt in judged:
        assert prompt.wrong(tokenizer) == []
        shares[prompt.name] += prompt.expected.mean() / len(AFTER)
    assert all(0.02 < share < 0.95 for share in shares.values()), shares
    assert 0.4 < np.mean(list(shares.values())) < 0.8, shares


def test_ten_thousand_verdicts_are_those_of_the_whole_prompt(tokenizer, judged):
    assert sum(len(prompt.slots) for prompt in judged) > 10_000
    assert_all_right(tokenizer, judged)


@pytest.mark.slow
def test_ten_thousand_verdicts_after_each_likely_kind_of_text(plainly):
    assert 840 * len(AFTER) > 10_000
    others = [name for name in BEFORE if name not in LIKELY]
    assert_all_right(plainly.tokenizer, judge(plainly, 840, 1, LIKELY))
    assert_all_right(plainly.tokenizer, judge(plainly, 210, 2, others))


@byte_level
@pytest.mark.parametrize(("left", "right"), [(4, None), (12, None), (None, 1)])
def test_a_fixed_number_of_characters_gets_verdicts_wrong(left, right, tokenizer, judged):
    """What the tests above would see if a neighbourhood were too small."""
    wrong = []
    for prompt in judged:
        true = prompt.surrounding
        texts = (true.before[-left:] if left else true.left, true.after[:right])
        left_ids, right_ids = map(tuple, tokenizer.encode(texts))
        mutant = dataclasses.replace(
            true, left=texts[0], left_ids=left_ids, right=texts[1], right_ids=right_ids
        )
        wrong += prompt.wrong(tokenizer, mutant)

    assert len(wrong) > 2


def test_the_parent_of_each_candidate_can_be_its_own(plainly, tokenizer):
    slots, base = candidates(tokenizer, np.random.default_rng(3), 40)
    surrounding = SlotText.surrounding(tokenizer, ORDINARY, "\n\nAnswer:")
    parents = np.repeat(base[None], 40, 0)
    parents[::3] = slots[::3]

    (got,) = survivors(tokenizer, [surrounding], slots[None], parents[None])

    expected = [
        slow_verdicts(plainly, ORDINARY, "\n\nAnswer:", slot[None], parent)[0]
        for slot, parent in zip(slots, parents, strict=True)
    ]
    np.testing.assert_array_equal(got, expected)
    assert not got[::3].any() and 5 < got.sum() < 30


@byte_level
def test_only_words_beside_the_slot_are_tokenised_again(tokenizer):
    words = " Please send the report before Friday" * 50
    surrounding = SlotText.surrounding(tokenizer, "Dear" + words, "s and" + words)

    assert (surrounding.left, surrounding.right) == (" report before Friday", "s and")
    (before_ids, after_ids) = tokenizer.encode([surrounding.before, surrounding.after])
    assert surrounding.before_ids == tuple(before_ids)
    assert surrounding.after_ids == tuple(after_ids)
    assert before_ids[-len(surrounding.left_ids) :] == list(surrounding.left_ids)
    assert after_ids[: len(surrounding.right_ids)] == list(surrounding.right_ids)
