import gzip
import hashlib
import json

import pyarrow
import pyarrow.parquet
import pytest

from robustjax.data.tasks import TaskConfig, load_task
from robustjax.errors import UserError

ROWS = [{"text": f"text {i}", "label": i % 2} for i in range(6)]
RECORD = {
    "instructions": "Judge.\n\n",
    "content": ["a b", ""],
    "answer_prompt": "\n\nAnswer:",
    "clf_label": 0,
    "proxy_clf_label": 1,
    "gen_target": " NO",
    "proxy_gen_target": " YES",
}
OTHER_RECORD = RECORD | {
    "clf_label": 1, "proxy_clf_label": 0, "gen_target": " YES", "proxy_gen_target": " NO",
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Writes rows (objects, or lines as they stand) and returns the file's path."""

    def write_file(name, rows):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        data = "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return write_file


def load(train, validation, **changes):
    settings = {"num_train": 0, "num_validation": 0} | changes
    return load_task(TaskConfig("jsonl", train_path=train, validation_path=validation, **settings))


def test_text_and_label_rows(write):
    train, validation = write("t.jsonl", ROWS), write("v.jsonl.gz", ROWS[:4])
    task = load(train, validation, instruction="Judge.\n\n", class_names=(" NO", " YES"))

    assert [kind.name for kind in task.chunk_kinds] == ["IMMUTABLE", "PERTURBABLE", "IMMUTABLE"]
    example = task.validation[1]
    assert (example.example_id, example.text) == (1, "Judge.\n\ntext 1\n\nAnswer:")
    assert (example.label, example.target_label) == (1, 0)
    assert (example.gen_target, example.proxy_gen_target) == (" YES", " NO")
    assert task.source["validation_texts_seen_in_training"] == 4
    with open(train, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    assert task.source["train_file"] == {"file": "t.jsonl", "sha256": digest, "rows": 6}
    json.dumps(task.source)


def test_training_is_shuffled_and_keeps_the_line_as_its_id(write):
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(40)]
    train, validation = write("t.jsonl", rows), write("v.jsonl", rows)
    task = load(train, validation)
    ids = [example.example_id for example in task.train]

    assert sorted(ids) == list(range(40)) and ids != sorted(ids)
    assert all(e.content == (f"text {e.example_id}",) for e in task.train)
    assert [e.example_id for e in task.validation] == list(range(40))
    assert load(train, validation, num_train=7).train == task.train[:7]
    assert load(train, validation, num_validation=7).validation == task.validation[:7]
    assert [e.example_id for e in load(train, validation, seed=1).train] != ids


def test_more_than_two_classes_aim_for_the_next_one(write):
    path = write("t.jsonl", [{"text": "t", "label": label} for label in (2, 0, 1)])
    task = load(path, path)

    assert task.class_names == (" CLASS0", " CLASS1", " CLASS2")
    assert [(e.label, e.target_label) for e in task.validation] == [(2, 0), (0, 1), (1, 2)]


def test_records_are_taken_as_they_stand(write):
    path = write("t.jsonl", [RECORD | {"extra": 1}, OTHER_RECORD])
    task = load(path, path)

    assert [kind.name for kind in task.chunk_kinds][2:] == ["OVERWRITABLE", "IMMUTABLE"]
    assert task.class_names == (" NO", " YES")
    assert task.validation[0].text == "Judge.\n\na b\n\nAnswer:"


def test_a_record_with_text_in_its_last_chunk_is_attacked_by_insertion(write):
    path = write("t.jsonl", [RECORD | {"content": ["a"]}, OTHER_RECORD | {"content": [""]}])

    assert [kind.name for kind in load(path, path).chunk_kinds] == [
        "IMMUTABLE", "PERTURBABLE", "IMMUTABLE",
    ]  # fmt: skip


def test_a_validation_file_alone_is_enough_to_attack(write):
    task = load("", write("v.jsonl", ROWS))
    assert task.train == () and len(task.validation) == 6

    one_class = load("", write("v.jsonl", ROWS[::2]), class_names=(" NO", " YES"))
    assert {e.target_label for e in one_class.validation} == {1}


def test_blank_lines_and_a_byte_order_mark_are_passed_over(write):
    path = write("t.jsonl", ["\ufeff" + json.dumps(ROWS[0]), "", json.dumps(ROWS[1]), "  "])
    assert [e.example_id for e in load("", path).validation] == [0, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is list, not a JSON object"),
        ('"text"', "is str, not a JSON object"),
        ({"text": "t"}, "field 'label' is missing"),
        ({"label": 1}, "field 'text' is missing"),
        ({"text": "t", "label": "1"}, "'label' is '1': expected an integer"),
        ({"text": "t", "label": 1.0}, "'label' is 1.0: expected an integer"),
        ({"text": "t", "label": True}, "'label' is True: expected an integer"),
        ({"text": "t", "label": None}, "'label' is None: expected an integer"),
        ({"text": "t", "label": -1}, "'label' is -1: expected an integer"),
        ({"text": " \n", "label": 1}, "'text' is .*: expected a text that is not empty"),
        ({"text": 5, "label": 1}, "'text' is 5: expected a text"),
        ('{"text": "\\ud800", "label": 1}', "surrogate"),
        ('{"text": "\udcff", "label": 1}', "is not UTF-8"),
        ({"content": ["t"], "clf_label": 1}, "'instructions' is missing"),
        (RECORD, "another form than .*, line 1"),
    ],
)
def test_a_wrong_line_is_named(write, line, message):
    good, bad = write("good.jsonl", ROWS), write("bad.jsonl", [ROWS[0], line, ROWS[1]])
    pattern = rf"bad.jsonl, line 2: .*{message}"
    with pytest.raises(UserError, match=pattern) as caught:
        load(good, bad)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=pattern):
        load(bad, good)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [RECORD, {**OTHER_RECORD, "content": ["a"]}],
            "line 2: field 'content' has 1 chunks, .* has 2",
        ),
        ([RECORD, {**RECORD, "proxy_clf_label": 0}], "line 2: .* are both 0"),
        ([RECORD, {**OTHER_RECORD, "proxy_clf_label": 2}], "line 2: label 2 is not in 0..1"),
        ([RECORD, {k: v for k, v in RECORD.items() if k != "content"}], "'content' is missing"),
        ([{"text": "t", "label": 1}] * 2, "every label is 1: at least two classes"),
        ([{"text": "t", "label": label} for label in (1, 2)], r"labels are \[1, 2\], not 0..1"),
        ([{"text": "t", "label": label} for label in (0, 2)], r"labels are \[0, 2\], not 0..1"),
        ([], "is empty"),
    ],
)
def test_a_wrong_file_is_named(write, rows, message):
    path = write("bad.jsonl", rows)
    with pytest.raises(UserError, match=rf"bad.jsonl.*{message}") as caught:
        load(path, path)
    assert "\n" not in str(caught.value)


def test_a_validation_label_that_training_lacks_is_named(write):
    train, validation = write("t.jsonl", ROWS), write("v.jsonl", [{"text": "t", "label": 2}])
    with pytest.raises(UserError, match="v.jsonl, line 1: label 2 .*t.jsonl has 2 classes"):
        load(train, validation)
    with pytest.raises(UserError, match="task.class_names has 2 names"):
        load(train, validation, class_names=(" A", " B"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "gone.jsonl"}, "gone.jsonl cannot be read .No such file"),
        ({"validation": ""}, "task.validation_path is empty"),
        ({"num_train": 7}, "task.num_train=7: task 'jsonl' has 6 train examples"),
        ({"num_validation": 9}, "task.num_validation=9: .* has 6 validation examples"),
        ({"train": "", "num_train": 1}, "task.num_train=1: task 'jsonl' has 0 train examples"),
    ],
)
def test_a_wrong_setting_is_named(write, changes, message):
    path = write("t.jsonl", ROWS)
    with pytest.raises(UserError, match=message):
        load(**({"train": path, "validation": path} | changes))


@pytest.mark.parametrize("rows", [ROWS, [RECORD, OTHER_RECORD] * 3])
def test_a_parquet_file_is_as_good_as_jsonl(tmp_path, write, rows):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    given = str(path)
    table, lines = load(given, given), load(*[write("rows.jsonl", rows)] * 2)
    assert (table.train, table.validation) == (lines.train, lines.validation)
    assert table.chunk_kinds == lines.chunk_kinds and table.class_names == lines.class_names
    assert table.source["train_file"]["rows"] == 6

    whole = path.read_bytes()
    for broken in (whole[:-20], whole[: len(whole) // 2], b"", b"PAR1"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="rows.parquet is not a whole Parquet file"):
            load(given, given)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*ROWS, {"text": "a"}]), path)
    with pytest.raises(UserError, match="rows.parquet, line 7: field 'label' is None"):
        load(given, given)


def test_a_file_that_is_not_gzip_or_cut_short_is_named(tmp_path, write):
    good = write("good.jsonl.gz", ROWS)
    (tmp_path / "plain.jsonl.gz").write_text(json.dumps(ROWS[0]))
    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "good.jsonl.gz").read_bytes()[:-12])
    for name in ("plain.jsonl.gz", "cut.jsonl.gz"):
        with pytest.raises(UserError, match=f"{name} is not a whole gzip file"):
            load(good, str(tmp_path / name))
