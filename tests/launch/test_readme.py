"""launch/README.md from top to bottom, as a person would type it: all of it, as a dry run."""

import re
import subprocess
import sys

from tests.launch.conftest import ROOT

README = (ROOT / "launch" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:^ {4}.*\n)+", README, flags=re.MULTILINE)
SCRIPT = re.sub(r"^ {4}", "", "".join(BLOCKS), flags=re.MULTILINE)
COMMANDS = re.sub(r"\\\n\s*", "", SCRIPT).splitlines()


def run(project, environment, script):
    """The whole page in one shell, in a clone with an environment as `make` leaves it."""
    programs = project / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(
        f'#!/bin/bash\nexec env PYTHONPATH={ROOT} {sys.executable} "$@"\n'
    )
    (programs / "robustjax").write_text("#!/bin/bash\n[[ $1 == report && $3 == --out=* ]]\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    variables = {"PROJECT", "ZONE", "TPU_NAME", "HOSTS"}
    environment = {name: value for name, value in environment.items() if name not in variables}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=project,
        env=environment | {"DRY_RUN": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # supervise shows there what the scripts say
        text=True,
    )


def test_every_command_is_run(project, environment, cloud):
    (project / "configs").symlink_to(ROOT / "configs")
    done = run(project, environment, SCRIPT)
    assert done.returncode == 0, done.stdout
    # Nothing was created, and every command that the dry runs show is one that gcloud takes.
    assert cloud.states() == {}
    given = {tuple(call[:3]) for call in cloud.calls()}
    assert {("compute", "tpus", "queued-resources"), ("storage", "buckets", "create")} <= given
    shown = "\n".join(line for line in done.stdout.splitlines() if line.startswith("gcloud "))
    assert shown.count("queued-resources create") == 2  # by hand, and by supervise
    assert len(shown.splitlines()) > 15
    # What is shown can be typed: it is, to have its flags checked. There is no slice to be reached.
    subprocess.run(["bash", "-c", shown], env=environment, capture_output=True, check=False)
    assert cloud.refused() == "" and cloud.calls("tpu-vm", "ssh")
    assert "PROJECT=your-project ZONE=your-zone" in SCRIPT and "your-zone" in shown


def test_the_page_has_what_it_promises():
    first = re.split(r"^## ", README, flags=re.MULTILINE)
    titles = [section.splitlines()[0] for section in first[1:]]
    assert titles[:2] == ["Costs, and how to end them", "A first run in ten commands"]
    ten = re.findall(r"(?:^ {4}.*\n)+", first[2], flags=re.MULTILINE)[0]
    assert len(re.sub(r"\\\n\s*", "", ten).splitlines()) == 10
    assert {"Quotas", "When stuck", "Traps of slices with several hosts"} <= {*titles}
    for verb in "create setup run status logs attach progress stop delete".split():
        assert f"`{verb}`" in README
    assert len(COMMANDS) >= 20


def test_every_script_tells_its_flags_and_verbs():
    for name in ("tpu", "gpu", "local"):
        done = subprocess.run(
            [ROOT / "launch" / f"{name}.sh", "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0 and f"launch/{name}.sh" in done.stdout, name
