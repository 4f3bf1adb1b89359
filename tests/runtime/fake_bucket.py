"""`gs://` as a folder, through the same library (fsspec) by which the real one is reached.

    python -m tests.runtime.fake_bucket DIE_AT study --config=... --workdir=gs://bucket/...

runs the command line with it, and dies at the DIE_AT-th change of the bucket (0: never). The folder
is `$FAKE_BUCKET`. As in the real one an object is there as a whole or not at all.
"""

import os
import signal
import sys
import uuid
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem


class FakeBucket(LocalFileSystem):
    """Objects are files below `FakeBucket.root`; `on_change` is called before each change."""

    protocol = ("gs", "gcs")
    cachable = False
    root = ""

    def __init__(self, **options):
        options.pop("finalize_on_close", None)
        super().__init__(auto_mkdir=True, **options)

    @staticmethod
    def on_change(name):
        """What tests put here."""

    @classmethod
    def _strip_protocol(cls, path):
        path = os.fspath(path)
        for scheme in ("gs://", "gcs://"):
            if path.startswith(scheme):
                return f"{cls.root}/{path.removeprefix(scheme)}".rstrip("/")
        return path.rstrip("/")

    def open(self, path, mode="rb", **options):
        if "w" not in mode:
            return open(self._strip_protocol(path), mode)
        return _Object(Path(self._strip_protocol(path)), mode)

    def rm(self, path, recursive=False, maxdepth=None):
        self.on_change(path)
        super().rm(self._strip_protocol(path), recursive=recursive, maxdepth=maxdepth)


class _Object:
    """An object that is being written."""

    def __init__(self, path, mode):
        self._path = path
        self._temporary = Path(f"{FakeBucket.root}/.uploads/{uuid.uuid4().hex}")
        self._temporary.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._temporary, mode)

    def write(self, data):
        return self._file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._file.close()
        if kind is None:
            FakeBucket.on_change(self._path)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._temporary, self._path)


def install(root):
    """Puts the fake behind `gs://`, for this process."""
    FakeBucket.root = str(root)
    for scheme in FakeBucket.protocol:
        fsspec.register_implementation(scheme, FakeBucket, clobber=True)


def die_at(number):
    """The `number`-th change does not happen; nor does anything after it."""
    changes = 0

    def count(name):
        nonlocal changes
        changes += 1
        if changes == number:
            os.kill(os.getpid(), signal.SIGKILL)

    FakeBucket.on_change = staticmethod(count)


if __name__ == "__main__":
    from robustjax.cli import main

    install(os.environ["FAKE_BUCKET"])
    die_at(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
