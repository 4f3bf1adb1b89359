"""Examples that do not fit are named, counted, and refused or dropped; none is cut."""

import dataclasses

import numpy as np
import pytest

from robustjax.data.lengths import fit, named_difference, needed_tokens
from robustjax.data.prompts import ChunkKind, Example, Task
from robustjax.errors import UserError


def make_task(train, validation=(2, 3)):
    """A task whose texts repeat a word as often as told; labels alternate."""

    def example(index, count):
        label = index % 2
        return Example(
            10 + index, "", ("word " * count,), "\nAnswer:", label, 1 - label, f" {label}", " x"
        )

    return Task(
        "counted",
        (" 0", " 1"),
        (ChunkKind.IMMUTABLE, ChunkKind.PERTURBABLE, ChunkKind.IMMUTABLE),
        tuple(example(*item) for item in enumerate(train)),
        tuple(example(*item) for item in enumerate(validation)),
        source={"file": "x"},
    )


@pytest.fixture
def lengths_of(tiny_tokenizer):
    return lambda examples: [len(ids) for ids in tiny_tokenizer.encode([e.text for e in examples])]


def test_what_fits_stays_as_it_is(tiny_tokenizer):
    task = make_task([1, 2, 3, 4])
    fitted = fit(task, tiny_tokenizer, 1000, "refuse")
    assert fitted.source == {"file": "x", "dropped_too_long": {"train": 0, "validation": 0}}
    assert dataclasses.replace(fitted, source=task.source) == task


def test_refusing_names_the_first_and_counts_them(tiny_tokenizer, lengths_of):
    task = make_task([1, 50, 2, 60])
    tokens = lengths_of(task.train)
    with pytest.raises(UserError) as caught:
        fit(task, tiny_tokenizer, 30, "refuse")
    message = str(caught.value)
    assert f"train example 11 of task 'counted' has {tokens[1]} tokens, 30 fit" in message
    assert "2 of 4 train examples" in message and "task.too_long=drop" in message
    with pytest.raises(UserError, match="validation example 11 .* 1 of 2 validation examples"):
        fit(make_task([1, 2], [1, 50]), tiny_tokenizer, 30, "refuse")


def test_dropping_keeps_order_ids_and_texts_of_the_rest(tiny_tokenizer):
    task = make_task([1, 50, 2, 3, 60], [4, 5, 70])
    fitted = fit(task, tiny_tokenizer, 30, "drop")
    assert fitted.train == (task.train[0], task.train[2], task.train[3])
    assert fitted.validation == task.validation[:2]
    assert fitted.source["dropped_too_long"] == {"train": 2, "validation": 1}
    assert task.source == {"file": "x"}


def test_the_room_is_exact(tiny_tokenizer):
    task = make_task([1, 2, 3, 20])
    (*_, longest) = needed_tokens(task.train, task.chunk_kinds, tiny_tokenizer, [1.0])
    fit(task, tiny_tokenizer, int(longest), "refuse")
    with pytest.raises(UserError, match=f"has {longest} tokens"):
        fit(task, tiny_tokenizer, int(longest) - 1, "refuse")


def test_a_text_cut_open_can_need_more_tokens(tiny_tokenizer, lengths_of):
    task = make_task([7, 8])
    whole = np.array(lengths_of(task.train))
    cut = needed_tokens(task.train, task.chunk_kinds, tiny_tokenizer, [1.0, 0.5])
    assert (cut >= whole).all()
    for example, needed in zip(task.train, cut, strict=True):
        (chunk,) = example.content
        for at in (len(chunk), int(len(chunk) * 0.5)):
            parts = tiny_tokenizer.encode([chunk[:at], chunk[at:] + example.answer_prompt])
            assert sum(map(len, parts)) <= needed
    assert (cut > whole).any()


def test_a_split_may_be_empty_but_no_class_may_be_lost(tiny_tokenizer):
    fitted = fit(make_task([], [1, 2]), tiny_tokenizer, 30, "drop")
    assert fitted.train == () and len(fitted.validation) == 2
    with pytest.raises(UserError, match="no train example of class 1 .* at most 30 tokens"):
        fit(make_task([1, 50, 2, 60]), tiny_tokenizer, 30, "drop")


@pytest.mark.parametrize(
    ("kept", "text"),
    [([0, 1, 2, 3, 4], "0"), ([0, 2, 4], "2 (11, 13)"), ([4], "4 (10, 11, 12, ...)")],
)
def test_what_was_left_out_is_named(kept, text):
    given = make_task([1, 1, 1, 1, 1]).train
    assert named_difference(given, [given[index] for index in kept]) == text
