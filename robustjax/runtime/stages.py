"""Stages that can be killed anywhere and started again.

A stage owns a folder. `stage.json`, written first, says which configuration the folder belongs to;
`DONE`, written last, says that the stage is finished. A folder of another configuration is never
reused, finished or not. Of several processes of a run the primary one reads and writes both, and
tells the others.
"""

import dataclasses
from typing import Any

from etils import epath

from robustjax.errors import UserError
from robustjax.runtime import distributed
from robustjax.runtime.files import StrPath, plain, read_json, write_json

_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Use::

        stage = Stage(folder, config_hash(leaves, schema_version=1), leaves)
        if not stage.is_done():
            stage.start()
            ...
            stage.finish()

    Attributes:
        folder: the stage's own folder.
        config_hash: names the configuration that defines the result.
        leaves: the hashed configuration itself, nested dicts; it makes the complaint about another
            configuration tell which field differs.
    """

    folder: StrPath
    config_hash: str
    leaves: dict[str, Any] = dataclasses.field(default_factory=dict)

    def is_done(self) -> bool:
        """Whether the stage is finished.

        Raises:
            UserError: the folder belongs to another configuration.
        """
        return distributed.from_primary(self._is_done, f"{self.folder}/DONE")

    def _is_done(self) -> bool:
        self._check_owner("stage.json")
        return self._check_owner("DONE")

    def start(self) -> None:
        """Claims the folder for this configuration; does nothing when it is already claimed.

        Raises:
            UserError: the folder belongs to another configuration.
        """
        distributed.from_primary(self._claim, f"{self.folder}/stage.json")

    def _claim(self) -> None:
        if not self._check_owner("stage.json"):
            epath.Path(self.folder).mkdir(parents=True, exist_ok=True)
            write_json(
                self._path("stage.json"), {"config_hash": self.config_hash, "config": self.leaves}
            )

    def finish(self) -> None:
        """Marks the stage as finished; the last thing a stage does."""
        write_json(self._path("DONE"), {"config_hash": self.config_hash})

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def _check_owner(self, name: str) -> bool:
        """Whether the marker is there; raises when it is another configuration's."""
        if not epath.Path(self._path(name)).exists():
            return False
        marker = read_json(self._path(name))
        theirs = marker.get("config_hash") if isinstance(marker, dict) else None
        if theirs == self.config_hash:
            return True
        claimed = self._claimed_leaves()
        known = claimed and self.leaves
        difference = first_difference(claimed, plain(self.leaves)) if known else None
        reason = difference or f"config hash {theirs} there, {self.config_hash} here"
        raise UserError(
            f"workdir of another config: {reason}; use another --workdir or delete {self.folder}"
        )

    def _claimed_leaves(self) -> Any:
        """The configuration the folder belongs to, as far as it is known."""
        path = self._path("stage.json")
        claim = read_json(path) if epath.Path(path).exists() else None
        return claim.get("config", {}) if isinstance(claim, dict) else {}


def first_difference(there: Any, here: Any, name: str = "") -> str | None:
    """Tells the first field, in the order of the names, in which two nested dicts differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            found = first_difference(
                there.get(key, _MISSING), here.get(key, _MISSING), f"{name}.{key}" if name else key
            )
            if found:
                return found
        return None
    if there == here and type(there) is type(here):
        return None
    return f"{name}: {_show(there)} there, {_show(here)} here"


def _show(value: Any) -> str:
    return "absent" if value is _MISSING else repr(value)
