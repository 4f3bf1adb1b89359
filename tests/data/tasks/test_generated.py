import re

import pytest

from robustjax.data.prompts import ChunkKind
from robustjax.data.tasks import TASKS, TaskConfig, load_task, words
from robustjax.errors import UserError

GENERATED = ("word_length", "password_match")
PAIR = {
    "word_length": re.compile(r"Word 1: ([a-z]+)\nWord 2: ([a-z]+)\n---\n"),
    "password_match": re.compile(r"System password: ([a-z]+)\nUser password: ([a-z]+)\n---\n"),
}


@pytest.fixture(scope="module", params=GENERATED)
def whole(request):
    """The whole of each generated task."""
    return load_task(TaskConfig(request.param, num_train=25_000, num_validation=24_990))


def pairs(name, examples):
    return [PAIR[name].fullmatch(example.content[0]).groups() for example in examples]


def test_the_word_list_is_the_expected_one():
    found = words.load_words()

    assert words.hash_words(found) == words.SHA256
    assert len(set(found)) == len(found) == 25_000
    assert list(found) == sorted(found)
    assert all(re.fullmatch("[a-z]{2,16}", word) for word in found)


def test_another_word_list_is_refused(monkeypatch):
    monkeypatch.setattr(words, "SHA256", "0" * 64)
    words.load_words.cache_clear()
    with pytest.raises(UserError, match=r"wordfreq \d.* another word list .* install wordfreq"):
        words.load_words()


def test_the_prompt_has_the_published_layout(whole):
    example = whole.train[0]

    assert PAIR[whole.name].fullmatch(example.content[0])
    assert example.content[1:] == ("",)
    assert example.instructions.endswith("\n\n")
    assert len(example.instructions.split()) <= 25, "a small model must learn from it"
    assert example.answer_prompt == "\n\nAnswer:"
    assert [kind.name for kind in whole.chunk_kinds] == [
        "IMMUTABLE", "IMMUTABLE", "OVERWRITABLE", "IMMUTABLE",
    ]  # fmt: skip


def test_labels_follow_from_the_words(whole):
    for example in (*whole.train, *whole.validation):
        (pair,) = pairs(whole.name, [example])
        if whole.name == "word_length":
            assert example.label == int(len(pair[1]) > len(pair[0]))
        else:
            assert example.label == int(pair[0] == pair[1])
        assert example.target_label == 1 - example.label
        assert example.gen_target == whole.class_names[example.label]
        assert example.proxy_gen_target == whole.class_names[example.target_label]


def test_class_balance_and_ties(whole):
    count = sum(example.label for example in whole.train)
    if whole.name == "password_match":
        assert count == 12_500
        return
    assert 0.40 < count / 25_000 < 0.47  # ties count as FIRST
    words_of = zip(whole.train, pairs(whole.name, whole.train), strict=True)
    ties = [example.gen_target for example, (a, b) in words_of if len(a) == len(b)]
    assert len(ties) > 1000 and set(ties) == {" FIRST"}


def test_validation_shares_nothing_with_training(whole):
    train, validation = pairs(whole.name, whole.train), pairs(whole.name, whole.validation)
    if whole.name == "word_length":
        assert not {frozenset(p) for p in train} & {frozenset(p) for p in validation}
        assert whole.source["validation_pairs_seen_in_training"] > 0, "nothing tested here"
    else:
        systems = [system for system, _ in train]
        assert not set(systems) & {system for system, _ in validation}
        assert len(set(systems)) == len(systems) / 2


def test_ids_are_stable_when_the_split_is_cut(whole):
    part = load_task(TaskConfig(whole.name, num_train=50, num_validation=20))

    assert part.train == whole.train[:50]
    assert part.validation == whole.validation[:20]
    ids = [example.example_id for example in whole.train]
    assert sorted(ids) == list(range(25_000)) and ids != sorted(ids)


def test_the_seed_picks_the_data(whole):
    other = load_task(TaskConfig(whole.name, num_train=50, num_validation=50, seed=1))

    assert not set(pairs(whole.name, other.train)) <= set(pairs(whole.name, whole.train))
    for split in ("train", "validation"):
        ids = [[e.example_id for e in getattr(task, split)[:50]] for task in (whole, other)]
        assert ids[0] != ids[1], "the shuffle does not depend on the seed"


def test_the_first_examples_are_pinned():
    """A change here changes every published result of these tasks."""
    found = {
        name: [(e.example_id, *pairs(name, [e])[0], e.label) for e in task.train + task.validation]
        for name in GENERATED
        for task in [load_task(TaskConfig(name, num_train=2, num_validation=1))]
    }
    assert found == {
        "word_length": [
            (7702, "passer", "asian", 0),
            (18563, "drop", "converts", 1),
            (23240, "gay", "netanyahu", 1),
        ],
        "password_match": [
            (7702, "organised", "organised", 1),
            (18563, "fabric", "realization", 0),
            (21765, "luka", "effected", 0),
        ],
    }


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": 0}, "task.num_train=0: .* 25000 train examples, choose 1 to 25000"),
        ({"num_validation": 25_001}, "task.num_validation=25001: .* choose 1 to 2"),
        ({"num_train": -1}, "task.num_train=-1: must not be negative"),
        ({"seed": -1}, "task.seed=-1"),
        ({"train_path": "a.jsonl"}, "task.train_path='a.jsonl' has no effect"),
        ({"class_names": (" A", " B")}, "task.class_names=.* has no effect"),
    ],
)
def test_a_wrong_setting_is_named(name, changes, message):
    with pytest.raises(UserError, match=message):
        load_task(TaskConfig(**({"name": name, "num_train": 5, "num_validation": 5} | changes)))


def test_the_instruction_can_be_replaced():
    task = load_task(TaskConfig("word_length", 1, 1, instruction="Longer?\n\n"))
    assert task.train[0].text.startswith("Longer?\n\nWord 1: ")


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(UserError, match="'wordlength' .* jsonl, password_match, word_length"):
        load_task(TaskConfig("wordlength", 1, 1))
    assert set(TASKS) == {"jsonl", *GENERATED}


def test_only_the_slot_chunk_is_modifiable(whole):
    assert whole.chunk_kinds.count(ChunkKind.IMMUTABLE) == 3
