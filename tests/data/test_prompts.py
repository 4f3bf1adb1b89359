import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustjax.data.prompts import ROW_FIELDS, ChunkKind, Example, Task, split_at_slot
from robustjax.errors import UserError

IMMUTABLE, PERTURBABLE, OVERWRITABLE = ChunkKind
REVIEW = (IMMUTABLE, PERTURBABLE, IMMUTABLE)
WORDS = (IMMUTABLE, IMMUTABLE, OVERWRITABLE, IMMUTABLE)


def make_row(**changes):
    row = {
        "instructions": "Judge.\n\n",
        "content": ["0123456789"],
        "answer_prompt": "\n\nAnswer:",
        "clf_label": 0,
        "proxy_clf_label": 1,
        "gen_target": " NO",
        "proxy_gen_target": " YES",
    }
    return row | changes


def make_task(**changes):
    example = Example.from_row(make_row(), 3)
    return Task(**({"name": "t", "class_names": (" NO", " YES"), "chunk_kinds": REVIEW,
                    "train": (), "validation": (example,)} | changes))  # fmt: skip


def test_a_row_becomes_an_example_as_it_stands():
    example = Example.from_row(make_row(content=["a", "b"], extra=1), example_id=7)

    assert example == Example(7, "Judge.\n\n", ("a", "b"), "\n\nAnswer:", 0, 1, " NO", " YES")
    assert example.chunks == ("Judge.\n\n", "a", "b", "\n\nAnswer:")
    assert example.text == "Judge.\n\nab\n\nAnswer:"


@pytest.mark.parametrize("name", ROW_FIELDS)
def test_a_missing_field_is_named(name):
    row = make_row()
    del row[name]
    with pytest.raises(UserError, match=f"'{name}' is missing"):
        Example.from_row(row, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"content": "text"}, "'content' is 'text'"),
        ({"content": []}, "'content'"),
        ({"content": ["a", None]}, r"'content\[1\]' is None"),
        ({"instructions": None}, "'instructions' is None"),
        ({"clf_label": True}, "'clf_label' is True"),
        ({"clf_label": 0.0}, "'clf_label' is 0.0"),
        ({"proxy_clf_label": -1}, "'proxy_clf_label' is -1"),
        ({"proxy_clf_label": 0}, "both 0"),
        ({"content": ["\ud800"]}, "surrogate"),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        Example.from_row(make_row(**changes), 0)


@pytest.mark.parametrize(
    ("position", "kept"),
    [(1.0, "0123456789"), (0.29, "01"), (0.9, "012345678"), (0.25, "01"), (0.0, "")],
)
def test_the_slot_is_cut_into_the_perturbable_chunk(position, kept):
    before, after = split_at_slot(Example.from_row(make_row(), 0), REVIEW, position)

    assert before == "Judge.\n\n" + kept
    assert before + after == "Judge.\n\n0123456789\n\nAnswer:"


@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_an_overwritable_chunk_is_dropped(position):
    example = Example.from_row(make_row(content=["words ", "old"]), 0)

    assert split_at_slot(example, WORDS, position) == ("Judge.\n\nwords ", "\n\nAnswer:")


@given(text=st.text(max_size=20), position=st.floats(0, 1))
def test_before_and_after_always_join_to_the_clean_prompt(text, position):
    example = dataclasses.replace(Example.from_row(make_row(), 0), content=(text,))

    assert "".join(split_at_slot(example, REVIEW, position)) == example.text


@pytest.mark.parametrize("position", [-0.01, 1.01, float("nan")])
def test_a_position_outside_the_chunk_is_refused(position):
    with pytest.raises(ValueError, match="position="):
        split_at_slot(Example.from_row(make_row(), 0), REVIEW, position)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_kinds": (IMMUTABLE,) * 3}, "0 modifiable"),
        ({"chunk_kinds": (PERTURBABLE, OVERWRITABLE, IMMUTABLE)}, "2 modifiable"),
        ({"chunk_kinds": WORDS}, "validation example 3 of task 't' has 3 chunks"),
        ({"class_names": (" NO",)}, "two different names"),
        ({"class_names": (" NO", " NO")}, "two different names"),
    ],
)
def test_a_task_checks_its_invariants(changes, message):
    with pytest.raises(ValueError, match=message):
        make_task(**changes)


def test_a_label_beyond_the_classes_is_refused():
    bad = Example.from_row(make_row(proxy_clf_label=2), 5)
    with pytest.raises(ValueError, match="train example 5 .* target_label=2"):
        make_task(train=(bad,))


def test_an_empty_or_unknown_split_is_refused():
    assert len(make_task().split("validation")) == 1
    with pytest.raises(UserError, match="no train examples"):
        make_task().split("train")
    with pytest.raises(UserError, match="split='test'"):
        make_task().split("test")
