"""The command line: a mistake is one line and status 2, and nothing is started or left behind."""

import functools
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustjax.cli import main

ROOT = Path(__file__).parents[1]
TINY = f"--config={ROOT / 'tests' / 'tiny_study.py'}"
SMOKE = f"--config={ROOT / 'configs' / 'smoke.py'}"


@pytest.fixture(autouse=True)
def no_cache_beside_results(monkeypatch):
    """Tests share one cache of compiled programs; the command would set another for good."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))


@pytest.fixture
def refuse(capsys, monkeypatch, tmp_path):
    """refuse(arguments...) -> the one line with which the command refuses them."""

    def compute(*args, **kwargs):
        raise AssertionError("something was computed")

    def call(*arguments, workdir=tmp_path / "workdir"):
        monkeypatch.setattr("robustjax.stage_work.finetune", compute)
        monkeypatch.setattr("robustjax.models.victim.init_params", compute)
        monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the one before
        before = _files(tmp_path)
        status = main(["study", *arguments, *([f"--workdir={workdir}"] if workdir else [])])
        out, err = capsys.readouterr()
        assert (status, out) == (2, ""), err
        (line,) = err.splitlines()
        assert line.startswith("robustjax study: ") and err.endswith("\n")
        assert "Traceback" not in line and len(line) < 500
        assert _files(tmp_path) == before, "something was written"
        return line.removeprefix("robustjax study: ")

    return call


def _files(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if not path.is_dir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.task.num_trainx=3"], 'Did you mean "num_train" instead of "num_trainx"?'),
        (["--config.task.num_train=x"], "--config.task.num_train=x: invalid literal for int"),
        (["--config.task.num_train=100000"], "task.num_train=100000: task 'word_length' has 25000"),
        (["--config.task.num_train=-1"], "task.num_train=-1: must not be negative"),
        (["--config.task.name=spma"], "task 'spma' does not exist: choose one of harmless, help"),
        (
            ["--config.task.name=strongreject", "--config.task.num_train=0"],
            "task.name='strongreject' has no classes to tell apart",
        ),
        (["--config.task.too_long=cut"], "task.too_long='cut': choose one of refuse, drop"),
        (
            ["--config.points.nano-27k.finetune.train.epochs=0"],
            "config.points.nano-27k.finetune.train: epochs=0 must be at least 1",
        ),
        (["--config.points.nano-27k.finetune.train.epochs=x"], "invalid literal for int"),
        (
            ["--config.points.nano-27k.finetune.num_train=49"],
            "points.nano-27k.finetune: num_train=49 is more than the task's 48 training examples",
        ),
        (
            ["--config.points.nano-27k.advtrain.gcg.examples_per_round=49"],
            "points.nano-27k.advtrain.gcg: examples_per_round=49 is more than the 48",
        ),
        (["--config.evaluation.num_examples=65"], "num_examples=65 is more than the 64 validation"),
        (["--config.evaluation.attacks.gcg=5"], "`5` is not a dict"),
        (["--config.evaluation.attacks.gcg.name=beasts"], "name='beasts' is no attack; known: gcg"),
        (["--config.evaluation.attacks.gcg.num_candidates=10000"], "num_candidates=10000 is more"),
        (["--config.evaluation.seed=-1"], "evaluation: seed: -1 is no seed"),
        (["--config.mesh.data=5"], "data 5 x fsdp 1 x tensor 1 = 5 devices, more than the 4"),
        (["--config.mesh.data=0"], "mesh.data: 0 is not a number of devices"),
        (["--config.seeds=(1,1)"], "seeds=(1, 1): give at least one, and none twice"),
        (["--configg=x"], "Unknown command line flag 'configg'"),
        (["elsewhere"], "'elsewhere' is no flag; did you mean --workdir=elsewhere?"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_in_values(refuse, arguments, message):
    assert message in refuse(TINY, *arguments)


def test_the_device_table_is_shown(refuse):
    assert "(process 0: 4 x cpu 'cpu')" in refuse(TINY, "--config.mesh.data=5")


def test_names_with_dashes_can_be_overridden_in_either_spelling(refuse):
    line = refuse(TINY, '--config.points["nano-27k"].finetune.train.epochs=0')
    assert "epochs=0 must be at least 1" in line


def test_names_with_dots_too(refuse, tmp_path):
    (tmp_path / "dotted.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'points': {'qwen2.5-0.5b': {'x': 1}}}, allow_dotted_keys=True)\n"
    )
    line = refuse(f"--config={tmp_path / 'dotted.py'}", "--config.points.qwen2.5-0.5b.x=one")
    assert "invalid literal for int() with base 10: 'one'" in line


def test_what_is_missing(refuse, tmp_path):
    assert refuse(TINY, workdir=None) == "--workdir is missing"
    assert refuse(workdir=None) == "--config is missing"
    assert refuse() == "--config is missing"
    assert refuse("--config=missing.py") == "--config=missing.py: no such file"
    assert refuse("--config", "missing.py") == "--config=missing.py: no such file"
    assert refuse(f"--config={tmp_path}") == f"--config={tmp_path}: no such file"


def test_config_arguments(refuse):
    line = refuse(f"{SMOKE}:tsk=x")
    known = "task, seed, points, pretrain"
    assert line == f"ValueError in the config: argument 'tsk' is unknown; known: {known}"
    assert "argument seed='x' must be of type int" in refuse(f"{SMOKE}:seed=x")
    assert "task 'x' does not exist" in refuse(f"{SMOKE}:task=x")
    assert "task.validation_path is empty" in refuse(f"{SMOKE}:task=jsonl")
    assert "KeyError in the config: x" in refuse(f"{SMOKE}:points=x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ValueError('two\\nlines')", "ValueError in the config: two lines"),
        ("raise OSError('disk')", "disk"),
        ("1 / 0", "ZeroDivisionError in the config: division by zero"),
        ("import sys; sys.exit(3)", "SystemExit in the config: 3"),
        ("import no_such_module", "in the config: No module named 'no_such_module'"),
        ("x =", "SyntaxError in the config: invalid syntax"),
        ("x = 3", "has no attribute 'get_config'"),
        ("def get_config(): return 3", "must return an ml_collections.ConfigDict"),
        ("def get_config(): return None", "must return an ml_collections.ConfigDict"),
        (
            "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict()",
            "config.task is missing; set it",
        ),
    ],
)
def test_a_config_that_does_not_work(refuse, tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text + "\n")
    assert message in refuse(f"--config={tmp_path / 'broken.py'}")


def test_no_workdir_to_write_to(refuse, tmp_path):
    (tmp_path / "file").write_text("mine")
    line = refuse(TINY, workdir=tmp_path / "file")
    assert f"workdir {tmp_path / 'file'}: no write permission" in line
    assert "workdir /proc/x: no write permission" in refuse(TINY, workdir="/proc/x")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def jsonl(tmp_path):
    """jsonl(train rows, validation rows) -> overrides for a task from files; rows may be text."""

    def write(train, validation):
        paths = {}
        for name, rows in (("train", train), ("validation", validation)):
            paths[name] = tmp_path / f"{name}.jsonl.gz"
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            paths[name].write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
        return [
            TINY,
            "--config.task.name=jsonl",
            "--config.task.num_train=0",
            "--config.task.num_validation=0",
            f"--config.task.train_path={paths['train']}",
            f"--config.task.validation_path={paths['validation']}",
        ]

    return write


def rows(count):
    return [{"text": f"the text number {i}", "label": i % 2} for i in range(count)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "train.jsonl.gz, line 13: is not JSON"),
        ("[1]", "train.jsonl.gz, line 13: is list, not a JSON object"),
        ('{"text": "x"}', "train.jsonl.gz, line 13: field 'label' is missing"),
        ('{"text": 3, "label": 0}', "train.jsonl.gz, line 13: field 'text' is 3"),
        ('{"text": "x", "label": -1}', "train.jsonl.gz, line 13: field 'label' is -1"),
        ('{"text": "x", "label": 7}', "train.jsonl.gz: labels are [0, 1, 7], not 0..2: renumber"),
    ],
)
def test_a_bad_line_of_a_file_is_named(refuse, jsonl, line, message):
    assert message in refuse(*jsonl([*rows(12), line], rows(8)))


def test_files_that_are_no_data(refuse, jsonl, tmp_path):
    one_class = [row | {"label": 0} for row in rows(12)]
    assert "every label is 0: at least two classes" in refuse(*jsonl(one_class, rows(8)))
    assert "train.jsonl.gz is empty" in refuse(*jsonl([], rows(8)))
    given = jsonl(rows(12), rows(8))
    (tmp_path / "train.jsonl.gz").unlink()
    assert "train.jsonl.gz cannot be read (No such file or directory)" in refuse(*given)
    no_train = [x for x in given if "train_path" not in x]
    assert "has no train examples: set task.train_path" in refuse(*no_train)


def test_an_example_longer_than_the_context(refuse, jsonl):
    long = {"text": " ".join(map(str, range(2000))), "label": 0}
    line = refuse(*jsonl([*rows(12), long], rows(8)))
    # 1024 tokens of context less the widest slot: twice the four tokens that random_token draws.
    assert "train example 12 of task 'jsonl' has " in line and " tokens, 1016 fit" in line
    assert "1 of 13 train examples are too long" in line
    assert "validation example 8" in refuse(*jsonl(rows(12), [*rows(8), long]))


def test_dropping_must_leave_enough(refuse, jsonl):
    long = {"text": " ".join(map(str, range(2000))), "label": 0}
    given = jsonl([*rows(10), long], rows(8))
    line = refuse(
        *given, "--config.task.too_long=drop", "--config.points.nano-27k.finetune.num_train=11"
    )
    assert "num_train=11 is more than the task's 10 training examples" in line


def test_unknown_commands_and_help(capsys):
    assert main(["studdy"]) == 2
    out, err = capsys.readouterr()
    known = "study, finetune, advtrain, attack, plan, report, data, convert"
    assert (out, err) == ("", f"robustjax studdy: no command 'studdy'; known: {known}\n")
    for arguments, status in ([], 2), (["--help"], 0), (["help"], 0), (["study", "--help"], 0):
        assert main(arguments) == status
        assert capsys.readouterr().out.startswith("usage: robustjax COMMAND")


def test_report_without_results(capsys, tmp_path):
    for arguments, message in (
        ([], "--out is missing"),
        ([f"--out={tmp_path}"], "give either the workdirs of runs or published files"),
        ([str(tmp_path / "no"), f"--out={tmp_path / 'out'}"], "is not a folder"),
        ([str(tmp_path), f"--out={tmp_path / 'out'}"], "no finished stage"),
    ):
        assert main(["report", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("robustjax report: ") and message in line
    assert not list(tmp_path.iterdir())


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "robustjax", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        **options,
    )


def test_as_a_process_from_another_folder(tmp_path):
    process = command("study", TINY, "--workdir=w", "--config.task.num_trainx=3", cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, len(err.splitlines())) == (2, "", 1), err
    assert "num_trainx" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "preempted")],
)
def test_interrupting_says_how_to_go_on(tmp_path, number, status, word):
    # A CI that runs in the background ignores SIGINT, and so would everything it starts.
    heed = functools.partial(signal.signal, number, signal.SIG_DFL)
    process = command("study", TINY, f"--workdir={tmp_path}", preexec_fn=heed)
    while process.poll() is None and not (tmp_path / "manifest.json").exists():
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (status, ""), err
    assert err.splitlines()[-1] == f"robustjax study: {word}; the same command goes on"
    assert "Traceback" not in err
