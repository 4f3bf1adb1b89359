"""Every config that is shipped builds, with every argument it takes."""

import importlib
from pathlib import Path

import pytest

from configs.common import parse_arg
from robustjax.data.tasks import TASKS
from robustjax.settings import StudyConfig, build

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if "def get_config" in path.read_text(encoding="utf-8")
)


def build_study(name, arg):
    values = importlib.import_module(f"configs.{name}").get_config(arg).to_dict()
    return build(StudyConfig, values, "config")


def test_there_is_something_to_check():
    assert "smoke" in EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("arg", [None, *(f"task={task}" for task in TASKS), "seed=3"])
def test_every_config_builds(name, arg):
    config = build_study(name, arg)
    if arg and arg.startswith("task="):
        assert config.task.name == arg.removeprefix("task=")
    if arg == "seed=3":
        assert config.seeds == (3,)


def test_a_part_of_the_ladder():
    whole = build_study("smoke", None)
    assert len(whole.points) >= 5
    names = sorted(whole.points)[:2]
    assert sorted(build_study("smoke", f"points={'+'.join(names)}").points) == names


def test_the_demo_asks_what_it_promises():
    config = build_study("smoke", None)
    gcg = config.evaluation.attacks["gcg"]
    assert (gcg.num_tokens, gcg.num_candidates) == (10, 128) and gcg.num_iterations >= 10
    assert config.evaluation.num_examples >= 64 and config.evaluation.min_accuracy >= 0.9
    for point in config.points.values():
        assert point.advtrain["gcg"].num_rounds >= 3
        assert {one.attack.name for one in point.advtrain.values()} == {"gcg", "random_token"}


def test_arguments_have_types():
    defaults = {"task": "spam", "seed": 0, "rate": 0.5, "fast": False}
    assert parse_arg(None, **defaults) == parse_arg("", **defaults) == defaults
    given = parse_arg("task=a=b,seed=7,rate=1,fast", **defaults)
    assert given == {"task": "a=b", "seed": 7, "rate": 1.0, "fast": True}
    for arg, message in {
        "sed=1": "argument 'sed' is unknown; known: task, seed, rate, fast",
        "seed=x": "argument seed='x' must be of type int",
        "fast=yes": "argument fast='yes' must be True or False",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_arg(arg, **defaults)
