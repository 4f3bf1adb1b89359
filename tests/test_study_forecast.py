"""A dry run of a study: counts against what the run itself counts, and what is printed."""

import json

import pytest

from robustjax.data.tasks import load_task
from robustjax.planning import rates
from robustjax.settings import StudyConfig, build
from robustjax.study import run_study
from robustjax.study_forecast import print_forecast
from robustjax.study_plan import Planner
from tests import tiny_study
from tests.test_study_transfer import values

WHO = "nano-27k-s0"


@pytest.fixture(scope="module")
def config():
    return build(StudyConfig, values(), "config")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("forecast")
    run_study(config, folder)
    return folder


@pytest.fixture(scope="module")
def costs(config, workdir):
    planner = Planner(config, load_task(config.task), workdir)
    return {stage.name: stage.cost() for stage in planner.plan()}


def spent(workdir, stage):
    summary = json.loads((workdir / stage / "summary.json").read_text())
    return summary["flops_algorithmic"], summary["flops_executed"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sampler", f"finetune/{WHO}"])
def test_clean_training_costs_what_was_forecast(costs, workdir, stage):
    assert tuple(costs[stage]) == spent(workdir, stage)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["none-r0/gcg", "gcg-r1/gcg@0", "gcg-r1/beast"])
def test_an_attack_costs_at_most_what_was_forecast(costs, workdir, attack):
    stage = f"attack/{WHO}/{attack}"
    algorithmic, executed = spent(workdir, stage)
    # Not every candidate survives, and BEAST's first texts are shorter than its last.
    assert algorithmic <= costs[stage].algorithmic <= 1.7 * algorithmic
    # What few candidates ask for now and then is not in it.
    assert 0.99 * executed <= costs[stage].executed <= 1.1 * executed


@pytest.mark.slow
def test_hardening_costs_about_what_was_forecast(costs, workdir):
    algorithmic, executed = spent(workdir, f"advtrain/{WHO}/gcg")
    cost = costs[f"advtrain/{WHO}/gcg"]
    assert 0.8 * algorithmic <= cost.algorithmic <= 1.5 * algorithmic
    assert 0.8 * executed <= cost.executed <= 2 * executed


def test_a_dry_run_prints_every_stage_and_writes_nothing(config, tmp_path, capsys):
    print_forecast(config, tmp_path / "never")
    out, err = capsys.readouterr()
    planner = Planner(config, load_task(config.task), tmp_path / "never")
    names = [stage.name for stage in planner.plan()]
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == names
    assert lines[-2].startswith("total")
    assert lines[-1].startswith(f"{len(names)} stages; about 0:0")
    assert "study: measuring nano-27k" in err
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_what_is_done_is_said_and_not_counted(config, workdir, capsys):
    print_forecast(config, workdir)
    out, _ = capsys.readouterr()
    rows = out.splitlines()[1:-2]
    assert all(row.split()[1] == "done" for row in rows)
    assert "about 0:00 left" in out


def test_a_point_too_large_to_be_measured_has_a_lower_bound(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rates, "is_small", lambda definition: False)
    monkeypatch.setattr(rates, "yardstick", lambda: 1e6)
    print_forecast(config, tmp_path / "never")
    out, err = capsys.readouterr()
    assert "at least" in out and "measuring" not in err


def test_the_command_takes_the_flag(tmp_path, capsys, monkeypatch):
    from robustjax.cli import main

    monkeypatch.setattr(rates, "is_small", lambda definition: False)
    monkeypatch.setattr(rates, "yardstick", lambda: 1e12)
    path = tiny_study.__file__
    assert main(["study", f"--config={path}", f"--workdir={tmp_path / 'w'}", "--dry_run"]) == 0
    assert f"finetune/{WHO}" in capsys.readouterr().out
    assert not (tmp_path / "w").exists()
