"""Which bundle is live: promote, roll back, shadow, retire, and the history, one writer at a time."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from fraudlib import manifest, signature
from fraudlib.errors import BundleError, FraudError
from fraudlib.paths import CURRENT, HISTORY, MANIFEST, RETIRED, SHADOW

ROLLBACK: Final = "rollback"
_LIVE_EVENTS: Final = (manifest.PROMOTED, manifest.ROLLED_BACK)


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


def promote(
    artifacts: Path,
    bundle_id: str,
    reason: str,
    run_id: str = "",
    key: Path | None = None,
    event: str = manifest.PROMOTED,
) -> None:
    """Verify a bundle, and its signature where there is a public `key`, and make it the live one.

    Raises
    ------
    BundleError
        If there is no such bundle or it does not verify; the live one stays.
    """
    _known(artifacts, bundle_id)
    with exclusive(artifacts / ".publish.lock", wait=True):
        signature.check(artifacts / bundle_id, key)
        manifest.set_current(artifacts, bundle_id, reason, run_id, event)


def shadow(artifacts: Path, bundle_id: str, reason: str, run_id: str = "", key: Path | None = None) -> None:
    """Verify a bundle as `promote` does and have it scored beside the live one."""
    _known(artifacts, bundle_id)
    with exclusive(artifacts / ".publish.lock", wait=True):
        signature.check(artifacts / bundle_id, key)
        manifest.set_shadow(artifacts, bundle_id, reason, run_id)


def sign(artifacts: Path, bundle_id: str, key: Path) -> None:
    """Verify a bundle and sign it with the private key in `key`."""
    _known(artifacts, bundle_id)
    with exclusive(artifacts / ".publish.lock", wait=True):
        signature.sign(artifacts / bundle_id, key)


def clear_shadow(artifacts: Path) -> None:
    """Have no bundle scored beside the live one."""
    with exclusive(artifacts / ".publish.lock", wait=True):
        manifest.clear_shadow(artifacts)


def reject(artifacts: Path, reason: str, run_id: str) -> None:
    """Write into the history that a run's candidate was refused, and why."""
    with exclusive(artifacts / ".publish.lock", wait=True):
        manifest.write_history(artifacts, manifest.REJECTED, None, reason, run_id)


def _known(artifacts: Path, bundle_id: str) -> None:
    if Path(bundle_id).name != bundle_id or not (artifacts / bundle_id / MANIFEST).is_file():
        names = ", ".join(sealed(artifacts))
        raise BundleError(f"{artifacts}: no bundle {bundle_id!r}; there are: {names or 'none'}")


def sealed(artifacts: Path) -> list[str]:
    """Names of the sealed bundles, oldest first."""
    return sorted(path.parent.name for path in artifacts.glob(f"[!.]*/{MANIFEST}"))


def earlier(artifacts: Path) -> list[str]:
    """Bundles that were live before the current one, latest first; those that a rollback left do not count."""
    stack: list[str] = []
    for line in manifest.read_history(artifacts):
        if line.get("event", manifest.PROMOTED) not in _LIVE_EVENTS:
            continue
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


def rollback(artifacts: Path, key: Path | None = None) -> str:
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
            promote(artifacts, bundle_id, f"{ROLLBACK} from {current}", key=key, event=manifest.ROLLED_BACK)
        except BundleError as err:
            refused.append(str(err))
        else:
            return bundle_id
    raise BundleError(f"{artifacts}: no earlier bundle to go back to; {'; '.join(refused) or 'the history has none'}")


def history(artifacts: Path) -> list[dict[str, Any]]:
    """Lines of the history, oldest first, each with its `event`, `live` and `until`.

    `live` marks the line that made the current bundle live; `until` is when the bundle of a line stopped being live:
    None for the live one and for events that change nothing live, equal to `at` where a crash came before the pointer.
    """
    lines = [
        {**line, "event": line.get("event", manifest.PROMOTED), "live": False, "until": None}
        for line in manifest.read_history(artifacts)
    ]
    current = manifest.current_bundle_name(artifacts)
    changes = [line for line in lines if line["event"] in _LIVE_EVENTS]
    for line, after in pairwise(changes):
        line["until"] = after["at"] if after.get("previous") == line["bundle_id"] else line["at"]
    for line in reversed(changes):
        if line["bundle_id"] == current:
            line["live"], line["until"] = True, None
            break
        line["until"] = line["at"]
    return lines


def retire(artifacts: Path, keep: int) -> list[str]:
    """Remove all but the newest `keep` bundles, never the live, previous or shadow one; names of the removed.

    Each one's manifest stays in `.retired`, so that an alert of it can still be traced to its run.
    """
    with exclusive(artifacts / ".publish.lock", wait=True):
        safe = {manifest.pointed_name(artifacts, CURRENT), manifest.pointed_name(artifacts, SHADOW)}
        safe |= set(earlier(artifacts)[:1])
        old = [name for name in sealed(artifacts)[:-keep] if name not in safe]
        for name in old:
            (artifacts / RETIRED).mkdir(exist_ok=True)
            manifest.write_atomic(artifacts / RETIRED / f"{name}.json", (artifacts / name / MANIFEST).read_bytes())
            aside = artifacts / f".removing-{name}"
            os.replace(artifacts / name, aside)
            shutil.rmtree(aside)
    return old


def sweep(artifacts: Path) -> None:
    """Remove what interrupted writers left behind: half-sealed and half-removed bundles, files never renamed.

    A folder that somebody is sealing at the moment is locked and stays.
    """
    with exclusive(artifacts / ".publish.lock", wait=True):
        for name in (CURRENT, SHADOW, HISTORY):
            for path in artifacts.glob(f".{name}.*"):
                path.unlink(missing_ok=True)
        for folder in [*artifacts.glob(".sealing-*"), *artifacts.glob(".removing-*")]:
            if not _is_locked(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_locked(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
