"""A `gcloud` that keeps its slices in a folder, and knows no flag that the real one does not.

Put on PATH by conftest.py. `$FAKE_GCLOUD` is the folder:

    calls.jsonl     the arguments of every call
    refused.jsonl   what the real gcloud would have refused: a fault of the caller's
    faults.json     what is to go wrong, see `Cloud.fail`
    slices.json     name -> state, workers
    hosts/NAME/N/   the home of a worker, in which commands really run
    buckets/        what is behind gs://

A command on a worker runs as `ssh` would run it: by a shell of its own, with nothing of the
caller's environment.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

# The reference pages of `gcloud compute tpus queued-resources create|describe|delete` and `gcloud
# compute tpus tpu-vm describe|ssh|scp` (docs.cloud.google.com/sdk/gcloud/reference), release GA.
WIDE = {"--project", "--quiet", "--format", "--verbosity", "--account", "--configuration"}
CONNECTION = {
    "--dry-run",
    "--force-key-file-overwrite",
    "--internal-ip",
    "--plain",
    "--ssh-key-file",
    "--strict-host-key-checking",
    "--worker",
    "--zone",
    "--ssh-key-expiration",
    "--ssh-key-expire-after",
}
DOCUMENTED = {
    ("queued-resources", "create"): {
        *("--zone", "--runtime-version", "--accelerator-type", "--topology", "--type"),
        *("--node-id", "--node-count", "--node-prefix", "--async", "--boot-disk", "--data-disk"),
        *("--description", "--guaranteed", "--internal-ips", "--labels", "--metadata"),
        *("--metadata-from-file", "--network", "--range", "--reserved", "--scopes"),
        *("--service-account", "--shielded-secure-boot", "--spot", "--subnetwork", "--tags"),
        *("--valid-after-duration", "--valid-after-time", "--valid-until-duration"),
        *("--valid-until-time", "--reservation-host-folder", "--reservation-host-organization"),
        "--reservation-host-project",
    },
    ("queued-resources", "describe"): {"--zone"},
    ("queued-resources", "delete"): {"--zone", "--async", "--force"},
    ("tpu-vm", "describe"): {"--zone"},
    ("tpu-vm", "ssh"): {*CONNECTION, "--ssh-flag", "--command", "--output-directory"},
    ("tpu-vm", "scp"): {*CONNECTION, "--compress", "--recurse", "--scp-flag"},
}
# The same of commands that only the README gives.
OTHERS = {
    ("auth", "login"): set(),
    ("services", "enable"): {"--async"},
    ("storage", "buckets", "create"): {"--location", "--uniform-bucket-level-access"},
    ("storage", "rsync"): {"--recursive", "--dry-run", "--exclude"},
    ("storage", "rm"): {"--recursive"},
    ("compute", "tpus", "queued-resources", "list"): {"--zone", "--filter", "--limit"},
}
STORAGE_LS = {"--long", "--recursive", "--json", "--etag", "--readable-sizes", "--all-versions"}
WITHOUT_VALUE = {
    *("--quiet", "--dry-run", "--force-key-file-overwrite", "--internal-ip", "--plain", "--async"),
    *("--guaranteed", "--internal-ips", "--reserved", "--shielded-secure-boot", "--spot"),
    *("--force", "--compress", "--recurse"),
}


class RefusedError(Exception):
    """The real gcloud would not take these arguments."""


class Cloud:
    """The slices, and what is to go wrong with them."""

    def __init__(self, root: Path):
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    # What tests say and ask.

    def fail(
        self,
        *words: str,
        status: int = 1,
        says: str = "",
        prints: str | None = None,
        times: int = -1,
        meets: int = 0,
    ):
        """Calls with these words in them fail, the next `times` times or always.

        They say `says` on stderr. What prints something prints that, and nothing else is done. With
        status 0 they go on once `meets` of them have begun.
        """
        fault = {"words": words, "status": status, "says": says, "times": times, "meets": meets}
        fault["prints"] = prints
        with self._locked():
            self._write("faults.json", [*self._read("faults.json", []), fault])

    def heal(self):
        """Nothing goes wrong any more."""
        self._write("faults.json", [])

    def will_be(self, *states: str, workers: int = 1):
        """The states of slices that are created from now on, each seen once, the last for ever."""
        self._write("next.json", {"states": states, "workers": workers})

    def behave(self, **jobs):
        """What robustjax does on worker N: `worker_N={"waits": True, "status": 1, "writes": True}`.

        One that waits does so until `release`, or until it is asked to end.
        """
        (self.root / "released").unlink(missing_ok=True)
        self._write("jobs.json", jobs)

    def release(self):
        """What waits ends."""
        (self.root / "released").touch()

    def preempt(self, name: str):
        """A slice is taken away."""
        with self._locked():
            slices = self._read("slices.json", {})
            slices[name]["states"] = ["SUSPENDED"]
            self._write("slices.json", slices)
            self._clear(name)

    def calls(self, *words: str) -> list[list[str]]:
        """The calls with these words in them."""
        path = self.root / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if set(words) <= set(call)]

    def refused(self) -> str:
        """What the real one would have refused."""
        path = self.root / "refused.jsonl"
        return path.read_text() if path.exists() else ""

    def home(self, name: str, worker: int) -> Path:
        """The home of a worker."""
        return self.root / "hosts" / name / str(worker)

    def bucket(self, address: str) -> Path:
        """What is behind an address."""
        return self.root / "buckets" / address.removeprefix("gs://")

    def states(self) -> dict[str, str]:
        """The state of every slice."""
        return {name: one["states"][0] for name, one in self._read("slices.json", {}).items()}

    # What gcloud does.

    def call(self, arguments: list[str]) -> int:
        with self._locked():
            self._append("calls.jsonl", arguments)
            fault = self._fault(arguments)
        if fault:
            if fault["says"]:
                print(fault["says"], file=sys.stderr)
            if fault["prints"] is not None:
                print(fault["prints"])
                return 0
            if fault["status"] or not self._meet(fault):
                return fault["status"] or 124
        if arguments[:2] == ["storage", "ls"]:
            return self._list(arguments[2:])
        for words, flags in OTHERS.items():
            if tuple(arguments[: len(words)]) == words:
                given = {one.split("=")[0] for one in arguments if one.startswith("--")}
                if not given <= flags | WIDE:
                    self._append("refused.jsonl", arguments)
                return 0
        try:
            group, verb, names, flags = parse(arguments)
        except RefusedError as error:
            self._append("refused.jsonl", [str(error), arguments])
            print(f"ERROR: (gcloud) {error}", file=sys.stderr)
            return 2
        if (group, verb) == ("tpu-vm", "ssh"):
            return self._ssh(names, flags)
        if (group, verb) == ("tpu-vm", "scp"):
            return self._scp(names, flags)
        with self._locked():
            return self._resource(group, verb, names[0], flags)

    def _resource(self, group: str, verb: str, name: str, flags: dict[str, str]) -> int:
        slices = self._read("slices.json", {})
        if verb == "create":
            if name in slices:
                print(f"ERROR: ALREADY_EXISTS: {name}", file=sys.stderr)
                return 1
            plan = self._read("next.json", {"states": ["ACTIVE"], "workers": 1})
            slices[name] = {"states": list(plan["states"]), "workers": plan["workers"]}
        elif name not in slices:
            print(f"ERROR: (gcloud.compute.tpus.{group}.{verb}) NOT_FOUND: {name}", file=sys.stderr)
            return 1
        elif verb == "delete":
            del slices[name]
            self._clear(name)
        else:
            self._describe(group, slices[name], flags["--format"])
        self._write("slices.json", slices)
        for known, one in slices.items():
            if one["states"][0] == "ACTIVE":
                for worker in range(one["workers"]):
                    self._make_host(known, worker)
        return 0

    def _describe(self, group: str, one: dict, wanted: str):
        state = one["states"][0]
        if len(one["states"]) > 1:
            one["states"].pop(0)
        if group == "tpu-vm":
            state = "READY" if state == "ACTIVE" else "PREEMPTED"
        values = {
            "value(state.state)": state,
            "value(state)": state if group == "tpu-vm" else f"state={state}",
            "value(networkEndpoints.len())": one["workers"],
        }
        print(values[wanted])

    def _list(self, arguments: list[str]) -> int:
        *flags, address = arguments
        if not set(flags) <= STORAGE_LS or not address.startswith("gs://"):
            self._append("refused.jsonl", arguments)
            return 2
        top = self.bucket(address)
        paths = sorted(top.rglob("*")) if top.is_dir() else [top] if top.exists() else []
        for path in filter(Path.is_file, paths):
            stat = path.stat()
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(stat.st_mtime))
            name = "" if path == top else f"/{path.relative_to(top)}"
            print(f"{stat.st_size:10}  {when}  {address}{name}")
        if not paths:
            print("ERROR: (gcloud.storage.ls) One or more URLs matched no objects", file=sys.stderr)
        print(f"TOTAL: {len(paths)} objects")
        return 0 if paths else 1

    def _ssh(self, names: list[str], flags: dict[str, str]) -> int:
        home = self._reached(names[0], flags)
        if home is None:
            return 255
        # gcloud cuts the command at blanks, and ssh puts it together again.
        command = " ".join(flags["--command"].split(" "))
        return self._shell(home, command)

    def _scp(self, names: list[str], flags: dict[str, str]) -> int:
        source, target = names
        remote = source if ":" in source else target
        home = self._reached(remote.partition(":")[0], flags)
        if home is None:
            return 1
        paths = [
            home / path.partition(":")[2] if path is remote else Path(path)
            for path in (source, target)
        ]
        if not paths[0].exists():
            print(f"scp: {paths[0]}: No such file or directory", file=sys.stderr)
            return 1
        shutil.copyfile(*paths)
        return 0

    def _reached(self, name: str, flags: dict[str, str]) -> Path | None:
        home = self.home(name, int(flags.get("--worker", "0")))
        print("SSH: Attempting to connect to worker ...", file=sys.stderr)
        return home if home.exists() else None

    def _shell(self, home: Path, command: str) -> int:
        environment = {"HOME": str(home), "PATH": f"{home}/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
        environment["ROBUSTJAX_POLL"] = "0.1"
        return subprocess.run(["bash", "-c", command], env=environment, cwd=home).returncode

    def _make_host(self, name: str, worker: int):
        home = self.home(name, worker)
        if not home.exists():
            (home / "bin").mkdir(parents=True)
            program = f'exec {sys.executable} {Path(__file__).with_name("fake_host.py")} "$0" "$@"'
            stub = home / "bin" / "python3"
            stub.write_text(f"#!/bin/bash\n{program}\n")
            stub.chmod(0o755)

    def _clear(self, name: str):
        """Kills what runs on a slice, and its disks are gone."""
        for pid in (self.root / "hosts" / name).glob("*/robustjax/jobs/*/pid"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid.read_text().split()[0]), signal.SIGKILL)
        shutil.rmtree(self.root / "hosts" / name, ignore_errors=True)

    # Files.

    def _fault(self, arguments: list[str]) -> dict | None:
        faults = self._read("faults.json", [])
        for fault in faults:
            if fault["times"] and set(fault["words"]) <= set(arguments):
                fault["times"] -= 1
                self._write("faults.json", faults)
                return fault
        return None

    def _meet(self, fault: dict) -> bool:
        """Waits until so many calls have begun; False if they do not come."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if len(self.calls(*fault["words"])) >= fault["meets"]:
                return True
            time.sleep(0.05)
        return False

    @contextlib.contextmanager
    def _locked(self):
        with open(self.root / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read(self, name: str, default):
        path = self.root / name
        return json.loads(path.read_text()) if path.exists() else default

    def _write(self, name: str, value):
        temporary = self.root / f"{name}.{os.getpid()}"
        temporary.write_text(json.dumps(value))
        temporary.rename(self.root / name)

    def _append(self, name: str, value):
        with open(self.root / name, "a") as file:
            file.write(json.dumps(value) + "\n")


def parse(arguments: list[str]) -> tuple[str, str, list[str], dict[str, str]]:
    """Group, verb, positional arguments and flags, if all of them are documented."""
    if arguments[:2] != ["compute", "tpus"]:
        raise RefusedError(f"Invalid choice: {arguments[:2]}")
    group, verb, *rest = arguments[2:]
    if (group, verb) not in DOCUMENTED:
        raise RefusedError(f"Invalid choice: {group} {verb}")
    names, flags = [], {}
    for argument in rest:
        if not argument.startswith("--"):
            names.append(argument)
            continue
        flag, has_value, value = argument.partition("=")
        if flag not in DOCUMENTED[group, verb] | WIDE:
            raise RefusedError(f"unrecognized arguments: {flag}")
        if bool(has_value) == (flag in WITHOUT_VALUE):
            raise RefusedError(f"argument {flag}: value {value!r}")
        flags[flag] = value
    for needed in ("--project", "--zone", "--quiet"):
        if needed not in flags:
            raise RefusedError(f"{needed} is missing, and nobody is there to be asked")
    if verb == "create":
        kind = {"--accelerator-type"} <= flags.keys(), {"--type", "--topology"} <= flags.keys()
        nodes = "--node-id" in flags, "--node-count" in flags
        if sum(kind) != 1 or sum(nodes) != 1 or "--runtime-version" not in flags:
            raise RefusedError("create needs one kind of slice, one kind of node, and a version")
    if len(names) != (2 if verb == "scp" else 1):
        raise RefusedError(f"positional arguments: {names}")
    return group, verb, names, flags


if __name__ == "__main__":
    sys.exit(Cloud(Path(os.environ["FAKE_GCLOUD"])).call(sys.argv[1:]))
