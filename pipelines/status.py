"""How far a run came: `status.json` in its folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fraudlib import manifest
from fraudlib.errors import ParameterError

STATUS: Final = "status.json"


class Status:
    """State of a run and of each of its stages, rewritten whole at every change.

    Parameters
    ----------
    folder : of the run.
    stages : name -> `state` (pending, running, done or failed), `at`, and what else was recorded.
    state : of the run: running, done, failed or interrupted.
    """

    def __init__(self, folder: Path, stages: dict[str, dict[str, Any]], state: str) -> None:
        self._path, self._stages, self.state = folder / STATUS, stages, state

    @classmethod
    def new(cls, folder: Path, names: Sequence[str]) -> "Status":
        """Status of a run that begins."""
        status = cls(folder, {name: {"state": "pending"} for name in names}, "running")
        status.run("running")
        return status

    @classmethod
    def read(cls, folder: Path, names: Sequence[str]) -> "Status":
        """Status of a run that was cut short, perhaps before it wrote any.

        Raises
        ------
        ParameterError
            If the file is no status.
        """
        try:
            content = json.loads((folder / STATUS).read_bytes())
            return cls(folder, {name: dict(content["stages"][name]) for name in names}, str(content["state"]))
        except FileNotFoundError:
            return cls.new(folder, names)
        except (ValueError, KeyError, TypeError) as err:
            raise ParameterError(f"{folder / STATUS}: expected the state of a run ({err!r}); start a new run") from err

    def source(self, name: str) -> str | None:
        """SHA-256 of the notebook that a stage was last run from."""
        return self._stages[name].get("source")

    def stage(self, name: str, state: str, **more: Any) -> None:
        """Record the state of one stage; what was known of it from an earlier try goes when it runs anew."""
        before = {} if state == "running" else self._stages[name]
        self._stages[name] = {**before, "state": state, "at": manifest.now(), **more}
        self.run("running")

    def run(self, state: str, **more: Any) -> None:
        """Record the state of the run."""
        self.state = state
        content = {"run_id": self._path.parent.name, "state": state, "at": manifest.now(), **more}
        manifest.write_atomic(self._path, json.dumps(content | {"stages": self._stages}, indent=1).encode())
