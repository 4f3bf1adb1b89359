"""Commands on tasks made of their owners' files: built when first asked for, and read."""

import pytest

from tests.commands.conftest import read
from tests.commands.short import ATTACK, FINETUNE, GCG, ROOT, TRAINING
from tests.data.tasks.owners import builder_class, sha256, write_files
from tests.models.folders import make_hugging_face

# What is left of these for tasks of any size.
SEARCH = (
    *(one for one in GCG if not any(name in one for name in (".task.", "num_examples", "edges"))),
    "--config.num_examples=0",
)
EDGES = "--config.search.edges=(64,128)"
FITTING = tuple(one for one in TRAINING if ".task." not in one)
WHOLE = ("--config.task.num_train=0", "--config.task.num_validation=0")


@pytest.fixture
def given(tmp_path):
    """given(task) -> the flags of a task that is built from small files."""

    def flags(name):
        folder = write_files(name, tmp_path / "files")
        where = {"data_dir": tmp_path / "data", "manual_dir": folder}
        return [f"--config.task.{key}={path}" for key, path in where.items()]

    return flags


def test_training_and_attack_on_mails(run, refused, given, tmp_path):
    data = given("spam")
    command = "finetune", f"{FINETUNE}:point=nano-27k,task=spam", *FITTING, *WHOLE
    model = tmp_path / "model"
    status, out, err = run(*command, *data, f"--workdir={model}")
    assert (status, out) == (0, f"{model}\n"), err
    files = read(model / "manifest.json")["data"]["files"]
    sources = builder_class("spam").SOURCES
    assert files == {
        one.url: sha256((tmp_path / "files" / one.file_name).read_bytes())
        for one in sources.values()
    }
    # Built now, the files are not asked for; and where the data set lies does not matter.
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    moved = f"--config.task.data_dir={tmp_path / 'elsewhere'}"
    status, _, err = run(*command, moved, f"--workdir={model}")
    assert (status, err) == (0, "finetune: done already; nothing to do\n")
    workdir = tmp_path / "attack"
    status, _, err = run(
        *("attack", f"{ATTACK}:point=nano-27k,task=spam", *SEARCH, *WHOLE, moved),
        *("--config.search.edges=(64,1024)", f"--config.model.path={model}"),
        f"--workdir={workdir}",
    )
    assert status == 0, err
    assert read(workdir / "summary.json")["num_examples"] == 5
    line = refused(*command, moved, "--config.task.num_train=10")
    assert "num_train=10: task 'spam' has 9" in line


def test_prompts_without_classes_are_for_language_models(
    run, refused, given, tiny_tokenizer, tmp_path
):
    base = make_hugging_face(tmp_path / "base", tiny_tokenizer, head="lm", context=128)
    path, data = f"--config.model.path={base}", given("strongreject")
    command = "attack", f"{ATTACK}:task=strongreject", path, *SEARCH, EDGES
    workdir = tmp_path / "w"
    status, _, err = run(*command, *data, "--config.model.head=lm", f"--workdir={workdir}")
    assert status == 0, err
    summary = read(workdir / "summary.json")
    assert (summary["num_examples"], summary["num_attacked"]) == (4, 4)
    # Nothing is downloaded or built before it is refused.
    nowhere = f"--config.task.data_dir={tmp_path / 'unused'}"
    study = f"--config={ROOT / 'configs' / 'smoke.py'}:task=strongreject"
    for arguments in (
        (*command, nowhere),
        ("finetune", f"{FINETUNE}:point=nano-27k,task=strongreject", nowhere),
        ("study", study, nowhere),
    ):
        line = refused(*arguments)
        assert "task.name='strongreject' has no classes to tell apart: attack a language" in line
    assert not (tmp_path / "unused").exists()
    trained = "finetune", f"{FINETUNE}:point=nano-27k,task=strongreject", "--config.objective=lm"
    line = refused(*trained, *data)
    assert "task 'strongreject' has no train examples: take another split" in line
