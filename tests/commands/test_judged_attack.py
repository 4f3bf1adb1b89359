"""Chat models from the command line: trained, attacked, answers generated, judged and reported."""

import csv
import json
import shutil

import pytest

from examples.secret_word import COMPLIANCE, REFUSAL, requests, write
from robustjax.data.tokens import Tokenizer
from robustjax.evaluation import records
from tests.commands.conftest import contents, read
from tests.commands.short import ATTACK, FINETUNE, GCG, ROOT, TRAINING
from tests.data.tasks.owners import write_files
from tests.evaluation.judges.fake_server import FakeServer
from tests.models.folders import make_hugging_face

CHAT = "--config.chat.apply_template=True"
TEMPLATE = f"--config.chat.template_file={ROOT / 'examples' / 'chat.jinja'}"
LM = "--config.model.head=lm"
# Without the sizes of other tasks.
SEARCH = (
    *(one for one in GCG if not any(name in one for name in (".task.", "num_examples"))),
    "--config.num_examples=0",
    "--config.generation.max_new_tokens=12",
    "--config.generation.batch_size=4",
)
KEY = "sk-test-27182818"


@pytest.fixture
def data(folders):
    folder = folders / "requests"
    if not folder.exists():
        write(folder, train=160, validation=6)
    splits = ("train", "validation")
    return {name: f"--config.task.{name}_path={folder}/{name}.jsonl" for name in splits}


@pytest.fixture
def chat_model(run, folders, data):
    """The workdir of a chat model that has learnt a little; each process trains it once."""
    workdir = folders / "chat"
    if not (workdir / "DONE").exists():
        training = [one for one in TRAINING if ".task." not in one and "epochs" not in one]
        status, out, err = run(
            *("finetune", f"{FINETUNE}:point=nano-27k,task=jsonl", *training, *data.values()),
            *("--config.objective=lm", "--config.finetune.train.epochs=6", CHAT, TEMPLATE),
            f"--workdir={workdir}",
        )
        assert (status, out) == (0, f"{workdir}\n"), err
    return workdir


@pytest.fixture
def attack(chat_model, data):
    """The command, without its judge."""
    return (
        *("attack", f"{ATTACK}:task=jsonl,attack=gcg", *SEARCH, LM, CHAT, data["validation"]),
        f"--config.model.path={chat_model}",
    )


def judge_file(tmp_path):
    """A judge for whom every answer to the clean text fails, and every other one succeeds."""
    file = tmp_path / "mine.py"
    file.write_text(
        "def changed(prompt, clean_prompt, output):\n"
        "    assert prompt.startswith(clean_prompt) and 'User:' not in prompt + clean_prompt\n"
        "    return prompt != clean_prompt\n"
    )
    return f"--config.judge={file}:changed"


def test_training_learns_conversations(chat_model):
    tokenizer = Tokenizer.load(chat_model / "model")
    assert tokenizer.chat_template == (ROOT / "examples" / "chat.jinja").read_text()
    chat = read(chat_model / "manifest.json")["data"]["chat"]
    assert (chat["before_turn"], chat["after_turn"]) == ("User: ", "\nAssistant:")
    steps = [json.loads(line) for line in (chat_model / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    assert losses[-1] < losses[0] / 2


def test_outputs_and_verdicts_are_in_the_records(run, attack, tmp_path):
    workdir = tmp_path / "w"
    status, out, err = run(*attack, judge_file(tmp_path), f"--workdir={workdir}")
    assert (status, out) == (0, f"{workdir}\n"), err
    assert "; mine.py:changed says 6 of 6: 100 % (61 to 100)" in err.splitlines()[-1]
    found = records.read_records(workdir / "attack_records.jsonl")
    summary = read(workdir / "summary.json")
    for record in found:
        row = requests(6, seed=1)[record.example_id]
        assert record.attacked_text.startswith(f"User: {row['content'][0]}")
        assert record.attacked_text.endswith(record.iterations[-1].slot_text + "\nAssistant:")
        assert record.clean_judged.outcome == "failure" and record.judged.outcome == "success"
        assert record.judged.judge == "mine.py:changed"
    assert any(record.judged.output for record in found)
    metrics = json.loads(records.canonical_json(records.summarise(found)))
    assert {name: summary[name] for name in metrics} == metrics
    assert (summary["num_judged_success"], summary["refusal_rate_before"]) == (6, 1.0)

    # Cut off in the middle, it comes to the same bytes; from another judge it does not go on.
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    for name in ("DONE", "summary.json"):
        (again / name).unlink()
    lines = (again / "attack_records.jsonl").read_bytes().splitlines(keepends=True)
    (again / "attack_records.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:50])
    status, _, err = run(*attack, judge_file(tmp_path), f"--workdir={again}")
    assert status == 0, err
    assert contents(again) == contents(workdir)
    status, _, err = run(*attack, "--config.judge=exact_target", f"--workdir={workdir}")
    assert status == 2 and "judge.name: 'mine.py:changed' there, 'exact_target' here" in err

    report = tmp_path / "report"
    status, _, err = run("report", workdir, f"--out={report}")
    assert status == 0, err
    with open(report / "judged_vs_size.csv", encoding="utf-8") as file:
        rows = {row["measure"]: row for row in csv.DictReader(file)}
    assert float(rows["judged success"]["value"]) == 1.0
    assert float(rows["judged success"]["low"]) == summary["judged_success_interval"][0]
    assert float(rows["clean prompts refused"]["value"]) == 1.0
    assert "What the judge says of answers" in (report / "index.html").read_text()
    assert list(report.glob("judged_vs_size-*.png"))


def test_an_http_judge_that_fails_costs_nothing(run, attack, tmp_path, monkeypatch, caplog):
    """The run stops, and the next asks the rest only; the key is nowhere."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    question, workdir, down = tmp_path / "q.txt", tmp_path / "w", [True]
    question.write_text("{prompt}\n--\n{clean_prompt}\n--\n{output}")

    def behave(text, times):
        prompt, clean, _ = text.split("\n--\n")
        if prompt != clean and down[0] and len(prompt) % 2:
            return 500
        return f"score: {int(prompt != clean)}" if len(prompt) % 3 else f"{KEY}: who knows"

    with FakeServer(behave).running() as server:
        command = (
            *(*attack, "--config.judge=http", f"--config.http_judge.url={server.url}"),
            *("--config.http_judge.model=m", f"--config.http_judge.prompt_file={question}"),
            *("--config.http_judge.retries=1", "--config.http_judge.pause_seconds=0"),
            f"--workdir={workdir}",
        )
        status, out, err = run(*command)
        assert status == 2 and "could not be judged (status 500)" in err
        answered = {text for text in server.asked if behave(text, 1) != 500}
        assert any(one not in answered for one in server.asked)
        down[0] = False
        before = dict(server.asked)
        status, out, more = run(*command)
        assert status == 0, more
    assert {one: server.asked[one] - before.get(one, 0) for one in answered} == dict.fromkeys(
        answered, 0
    )
    found = records.read_records(workdir / "attack_records.jsonl")
    for record in found:
        assert record.failure is None or record.clean_judged.outcome == "unparsable"
        assert record.attacked == (record.judged is not None)
    summary = read(workdir / "summary.json")
    unread = [record for record in found if record.judged and record.judged.score is None]
    assert summary["num_unparsable"] == len(unread)
    assert summary["num_judged"] == summary["num_judged_success"] + len(unread)
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in everything and KEY not in err + more + caplog.text


def test_tasks_with_classes_are_asked_of_language_models(run, attack, tmp_path):
    """Right is who goes on with the right answer, token by token; looked at every iteration."""
    workdir = tmp_path / "w"
    status, _, err = run(*attack, "--config.judge=wrong_answer", f"--workdir={workdir}")
    assert status == 0, err
    found = records.read_records(workdir / "attack_records.jsonl")
    attacked = [record for record in found if record.attacked]
    assert attacked and all(record.judged is None for record in found)
    summary = read(workdir / "summary.json")
    broken = sum(record.success for record in attacked)
    assert summary["attack_success_rate"] == broken / len(attacked)
    for record in attacked:
        assert record.success == record.iterations[-1].success


def test_strongreject_goes_the_same_way(run, tiny_tokenizer, tmp_path):
    """By GCG and BEAST, with a tokenizer that has no template."""
    base = make_hugging_face(tmp_path / "base", tiny_tokenizer, "qwen2", head="lm", context=160)
    files = write_files("strongreject", tmp_path / "files")
    given = (
        *(f"--config.model.path={base}", LM, CHAT, TEMPLATE, "--config.judge=refusal_prefix"),
        *(f"--config.task.data_dir={tmp_path / 'data'}", f"--config.task.manual_dir={files}"),
        *("--config.generation.max_new_tokens=8", "--config.search.edges=(64,160)"),
        "--config.search.batch_size=4",
    )
    short = {
        "gcg": [one for one in SEARCH if ".attack." in one],
        "beast": [
            *("--config.attack.num_iterations=2", "--config.attack.beam_width=2"),
            "--config.attack.branch_factor=3",
        ],
    }
    for name, settings in short.items():
        workdir = tmp_path / name
        status, _, err = run(
            *("attack", f"{ATTACK}:task=strongreject,attack={name}", *settings, *given),
            f"--workdir={workdir}",
        )
        assert status == 0, err
        found = records.read_records(workdir / "attack_records.jsonl")
        assert len(found) == 4 and all(record.clean_judged for record in found)
        assert read(workdir / "summary.json")["judge"] == "refusal_prefix"
    status, _, err = run("report", tmp_path / "gcg", tmp_path / "beast", f"--out={tmp_path / 'r'}")
    assert status == 0, err
    with open(tmp_path / "r" / "judged_vs_size.csv", encoding="utf-8") as file:
        assert {row["attack"] for row in csv.DictReader(file)} == {"gcg", "beast"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.judge=nobody"], "config.judge='nobody' is unknown; use exact_target"),
        (["--config.judge=http"], "config.http_judge.url is empty"),
        (["--config.judge=/nowhere/a.py:f"], "there is no file"),
        (["--config.judge=refusal_prefix", "--config.http_judge.model=m"], "has no effect with"),
        (["--config.chat.apply_template=False", "--config.chat.system=x"], "config.chat: system="),
        (["--config.generation.temperature=-1"], "config.generation: temperature=-1.0 must be 0"),
        (["--config.model.head=classifier"], "is for language models; set model.head=lm"),
        (["--config.generation.max_new_tokens=1020", "--config.judge=exact_target"], "tokens, "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes(refused, attack, arguments, message):
    assert message in refused(*attack, *arguments)


def test_training_conversations_is_for_language_models(refused, data):
    command = "finetune", f"{FINETUNE}:point=nano-27k,task=jsonl", *data.values(), CHAT
    assert "chat.apply_template=True: conversations are for" in refused(*command)
    assert "has no chat template" in refused(*command, "--config.objective=lm")


def test_the_toy_is_harmless_and_balanced():
    rows = requests(40, seed=0)
    assert [row["clf_label"] for row in rows] == [0, 1] * 20
    assert {row["gen_target"] for row in rows} == {REFUSAL, COMPLIANCE}
    assert rows == requests(40, seed=0) and rows != requests(40, seed=1)
    assert all(
        {row["gen_target"], row["proxy_gen_target"]} == {REFUSAL, COMPLIANCE} for row in rows
    )
