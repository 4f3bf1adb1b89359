"""Commands that the pages show are commands that the program takes."""

import itertools
import re
import shlex
import sys
from pathlib import Path

import pytest

from robustjax import cli
from robustjax.command_flags import parse_config, parse_config_and_workdir
from robustjax.commands.advtrain import AdvtrainRunConfig
from robustjax.commands.attack import AttackRunConfig
from robustjax.commands.finetune import FinetuneRunConfig
from robustjax.commands.plan_slice import run_config_class
from robustjax.data.prompts import ChunkKind
from robustjax.data.tasks import FACTS
from robustjax.planning.chips import parse_slice
from robustjax.settings import StudyConfig, build
from tests.data.tasks.owners import builder_class

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "study": StudyConfig,
    "finetune": FinetuneRunConfig,
    "advtrain": AdvtrainRunConfig,
    "attack": AttackRunConfig,
}
COMMAND = re.compile(r"^ {4}(?:\.venv/bin/)?robustjax ((?:.*\\\n)*.*)$", re.MULTILINE)


def commands():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for match in COMMAND.finditer(page.read_text(encoding="utf-8")):
            yield page.name, shlex.split(match[1].replace("\\\n", " "))


WITH_CONFIG = [(page, words) for page, words in commands() if words[0] in SETTINGS]


def test_there_are_commands_to_check():
    assert {words[0] for _, words in WITH_CONFIG} == {*SETTINGS}
    assert {page for page, _ in WITH_CONFIG} >= {"README.md", "attack_your_model.md"}


@pytest.mark.parametrize(("page", "words"), WITH_CONFIG, ids=lambda value: str(value)[:60])
def test_the_settings_build(page, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    command, *arguments = words
    arguments = [one for one in arguments if one != "--dry_run"]
    values, workdir = parse_config_and_workdir(arguments)
    build(SETTINGS[command], values, "config")
    assert workdir.startswith("runs/")


PLANS = [words[1:] for _, words in commands() if words[0] == "plan"]


def test_there_are_plans_to_check():
    assert {"--local" in words for words in PLANS} == {False, True}


@pytest.mark.parametrize("words", PLANS, ids=lambda words: " ".join(words)[:60])
def test_the_plans_take_their_flags(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    arguments = [one for one in words if one != "--local"]
    values, given = parse_config(arguments, cli.define_slice_flags)
    settings = build(run_config_class(values), values, "config")
    if "--local" not in words:
        assert parse_slice(given.topology or settings.topology).chips > 0


def test_the_data_commands_take_their_flags():
    found = [words for _, words in commands() if words[0] == "data"]
    assert {words[1] for words in found} == {"list", "prepare", "show"}
    for _, verb, *flags in found:
        flags = list(itertools.takewhile(lambda word: word != "#", flags))
        assert {flag[2:].split("=")[0] for flag in flags} <= cli._DATA_FLAGS[verb]


@pytest.mark.parametrize("name", FACTS)
def test_each_task_has_a_card_that_is_true(name):
    facts = FACTS[name]
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    card = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
    assert facts.summary.lower() in card.lower()
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", card, flags=re.MULTILINE))
    assert rows["licence"] == facts.licence and facts.homepage in rows["source"]
    for split, size in facts.sizes.items():
        assert f"{split} {size}" in rows["examples"]
    for label, class_name in enumerate(facts.class_names):
        assert f"{label} {class_name.strip()}" in rows["labels"]
    kinds = facts.chunk_kinds
    done = {kind for kind in ("insert", "replace") if kind in rows["an attack may"]}
    assert done == {"replace" if ChunkKind.OVERWRITABLE in kinds else "insert"}
    for source in builder_class(name).SOURCES.values():
        published = source.url.rsplit("/", 1)[1]
        assert published in rows["source"] and source.file_name in rows["source"]
        assert ("noted at the first" in rows["checksum"]) == (not source.sha256)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "launch/README.md",
        "docs/buckets.md",
        "docs/attack_your_model.md",
        "docs/adversarial_training.md",
        "docs/chat_models.md",
        "docs/evaluation.md",
        "docs/analysis.md",
        "docs/statistics.md",
    ],
)
def test_links_lead_somewhere(name):
    page = ROOT / name
    links = re.findall(r"\]\(([^):]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        assert (page.parent / link).exists(), link
