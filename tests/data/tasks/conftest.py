"""What tests of tasks made of owners' files share."""

import dataclasses
from types import SimpleNamespace

import pytest

from robustjax.data.tasks import TaskConfig, load_task
from tests.data.tasks import owners


@pytest.fixture
def owner(tmp_path, monkeypatch):
    """owner(task, way="manual") -> the owner's files, and the settings that find them.

    `way` is "manual", a folder of downloads, or "served", by a server on this machine. The
    checksum that is published for a real file is not that of a small one, so it is left out.
    """

    class Owner(SimpleNamespace):
        def path(self, key):
            return self.folder / self.builder.SOURCES[key].file_name

        def load(self, **changes):
            return load_task(TaskConfig(self.name, **(self.settings | changes)))

        def left(self):
            """Files in the folder of data sets, without the record of checksums."""
            data_dir = tmp_path / "data"
            paths = (path for path in data_dir.rglob("*") if path.is_file())
            return sorted(str(path.relative_to(data_dir)) for path in paths)

    servers = []

    def make(name, way="manual"):
        folder = owners.write_files(name, tmp_path / f"files of {name}")
        builder = owners.builder_class(name)
        settings = {"data_dir": str(tmp_path / "data")}
        asked, breaks_off, url = [], [], "http://nowhere.invalid"
        if way == "served":
            running = owners.server(folder)
            url, asked, breaks_off = running.__enter__()
            servers.append(running)
        else:
            settings["manual_dir"] = str(folder)
        sources = {
            key: dataclasses.replace(one, url=f"{url}/{one.file_name}", sha256="")
            for key, one in builder.SOURCES.items()
        }
        monkeypatch.setattr(builder, "SOURCES", sources)
        found = {"asked": asked, "breaks_off": breaks_off}
        return Owner(name=name, folder=folder, builder=builder, settings=settings, **found)

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield make
    for running in servers:
        running.__exit__(None, None, None)
