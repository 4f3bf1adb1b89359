"""Commands that the pages show are commands that the program takes."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from robustjax.command_flags import parse_config_and_workdir
from robustjax.commands.attack import AttackRunConfig
from robustjax.commands.finetune import FinetuneRunConfig
from robustjax.settings import StudyConfig, build

ROOT = Path(__file__).parents[1]
SETTINGS = {"study": StudyConfig, "finetune": FinetuneRunConfig, "attack": AttackRunConfig}
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
    values, workdir = parse_config_and_workdir(arguments)
    build(SETTINGS[command], values, "config")
    assert workdir.startswith("runs/")


@pytest.mark.parametrize("name", ["README.md", "docs/attack_your_model.md"])
def test_links_lead_somewhere(name):
    page = ROOT / name
    links = re.findall(r"\]\(([^):]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        assert (page.parent / link).exists(), link
