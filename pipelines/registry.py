"""Which bundle is live: promote, roll back, and the history, one writer at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fraudlib import manifest
from fraudlib.errors import BundleError, FraudError
from fraudlib.paths import MANIFEST

ROLLBACK: Final = "rollback"


class BusyError(FraudError):
    """Another process holds the lock."""


@contextmanager
def exclusive(lock: Path, wait: bool = False) -> Iterator[None]:
    """Hold the file `lock`, which carries the holder's process id.

    Raises
    ------
    BusyError
        If another process holds it and `wait` is false.
    """
    with lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as err:
            file.seek(0)
            raise BusyError(
                f"{lock.parent}: another run (process {file.read().strip()}) is writing here; wait for it or stop it"
            ) from err
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def promote(artifacts: Path, bundle_id: str, reason: str, run_id: str = "") -> None:
    """Verify a bundle and make it the live one.

    Raises
    ------
    BundleError
        If there is no such bundle or it does not verify; the live one stays.
    """
    if Path(bundle_id).name != bundle_id or not (artifacts / bundle_id / MANIFEST).is_file():
        sealed = ", ".join(sorted(path.parent.name for path in artifacts.glob(f"[!.]*/{MANIFEST}")))
        raise BundleError(f"{artifacts}: no bundle {bundle_id!r}; there are: {sealed or 'none'}")
    with exclusive(artifacts / ".publish.lock", wait=True):
        manifest.set_current(artifacts, bundle_id, reason, run_id)


def earlier(artifacts: Path) -> list[str]:
    """Bundles that were live before the current one, latest first; those that a rollback left do not count."""
    stack: list[str] = []
    for line in manifest.read_history(artifacts):
        bundle_id = str(line.get("bundle_id"))
        if bundle_id in stack and str(line.get("reason")).startswith(ROLLBACK):
            while stack[-1] != bundle_id:
                stack.pop()
        elif stack[-1:] != [bundle_id]:
            stack.append(bundle_id)
    current = manifest.current_bundle_name(artifacts)
    while current in stack and stack.pop() != current:
        pass
    return [bundle_id for bundle_id in reversed(stack) if bundle_id != current]


def rollback(artifacts: Path) -> str:
    """Make the latest earlier bundle that verifies the live one; its name.

    Raises
    ------
    BundleError
        If there is none; the live one stays.
    """
    current = manifest.current_bundle_name(artifacts)
    refused: list[str] = []
    for bundle_id in earlier(artifacts):
        try:
            promote(artifacts, bundle_id, f"{ROLLBACK} from {current}")
        except BundleError as err:
            refused.append(str(err))
        else:
            return bundle_id
    raise BundleError(f"{artifacts}: no earlier bundle to go back to; {'; '.join(refused) or 'the history has none'}")


def history(artifacts: Path) -> list[dict[str, Any]]:
    """Lines of the history, oldest first, each with `live`: whether it is the one that made the current bundle live."""
    lines = [line | {"live": False} for line in manifest.read_history(artifacts)]
    current = manifest.current_bundle_name(artifacts)
    for line in reversed(lines):
        if line.get("bundle_id") == current:
            line["live"] = True
            break
    return lines
