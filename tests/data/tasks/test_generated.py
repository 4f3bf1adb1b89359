import hashlib
import json
import re

import numpy as np
import pytest

from robustjax.data.prompts import ChunkKind
from robustjax.data.tasks import FACTS, TASKS, TaskConfig, load_task, stored, words
from robustjax.errors import UserError

GENERATED = ("word_length", "password_match")
PAIR = {
    "word_length": re.compile(r"Word 1: ([a-z]+)\nWord 2: ([a-z]+)\n---\n"),
    "password_match": re.compile(r"System password: ([a-z]+)\nUser password: ([a-z]+)\n---\n"),
}

BYTES = {
    "word_length": "bd8d9a2ae54facbd1a93be8517bd98b304fba0159891d76c5579df544e48a3b0",
    "password_match": "cb3fdd3577aae193a6466e6f5e1dbebfa0ee3cd888bdc450cae247f23054621f",
}


@pytest.fixture(scope="module", params=GENERATED)
def whole(request):
    """The whole of each generated task."""
    return load_task(TaskConfig(request.param))


def test_sizes(whole):
    assert len(whole.train) == len(whole.validation) == 25_000


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
        assert count == sum(example.label for example in whole.validation) == 12_500
        return
    assert 0.40 < count / 25_000 < 0.47  # ties count as FIRST
    words_of = zip(whole.train, pairs(whole.name, whole.train), strict=True)
    ties = [example.gen_target for example, (a, b) in words_of if len(a) == len(b)]
    assert len(ties) > 1000 and set(ties) == {" FIRST"}


def test_validation_shares_nothing_with_training(whole):
    train, validation = pairs(whole.name, whole.train), pairs(whole.name, whole.validation)
    if whole.name == "word_length":
        assert not {frozenset(p) for p in train} & {frozenset(p) for p in validation}
        assert whole.source["leaked_pairs_replaced"] > 0, "nothing tested here"
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
            (21765, "hemisphere", "brooding", 0),
        ],
        "password_match": [
            (7702, "organised", "organised", 1),
            (18563, "fabric", "realization", 0),
            (21765, "luka", "effected", 0),
        ],
    }


def test_the_bytes_are_pinned(whole):
    """The same on every machine; nothing of the data may change unnoticed."""
    digest = hashlib.sha256()
    for example in (*whole.train, *whole.validation):
        fields = [example.example_id, *example.chunks, example.label, example.gen_target]
        digest.update(json.dumps(fields).encode() + b"\n")
    assert (whole.name, digest.hexdigest()) == (whole.name, BYTES[whole.name])


@pytest.mark.slow
def test_the_built_data_set_is_the_one_in_memory(whole, tmp_path):
    builder = stored.prepare(FACTS[whole.name], str(tmp_path))
    for split, examples in (("train", whole.train), ("validation", whole.validation)):
        assert builder.info.splits[split].num_examples == 25_000
        assert tuple(stored.read(builder, split, np.arange(25_000))) == examples
    assert dict(builder.info.metadata) == whole.source


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": 25_001}, "task.num_train=25001: .* has 25000 train examples .0 takes all"),
        ({"num_validation": 25_001}, "task.num_validation=25001: .* has 25000 validation examples"),
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
    with pytest.raises(UserError, match="'wordlength' .* password_match, .* word_length, jsonl"):
        load_task(TaskConfig("wordlength", 1, 1))
    assert set(TASKS) > {"jsonl", *GENERATED}


def test_only_the_slot_chunk_is_modifiable(whole):
    assert whole.chunk_kinds.count(ChunkKind.IMMUTABLE) == 3
