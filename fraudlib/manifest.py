"""The manifest of a bundle, and which bundle is live: hashes, the current pointer and the history."""

import hashlib
import json
import os
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fraudlib.errors import BundleError
from fraudlib.paths import CURRENT, HISTORY, MANIFEST, SHADOW, SIGNATURE

FORMAT_VERSION: Final = 2
MAX_FILE_BYTES: Final = 200 * 1024 * 1024
BUNDLE_ID_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
# Events of the history; the first two change what is live.
PROMOTED, ROLLED_BACK, SHADOWED, REJECTED = "promote", "rollback", "shadow", "reject"


_is_bundle_id = re.compile(BUNDLE_ID_PATTERN, re.ASCII).fullmatch


class FileEntry(BaseModel):
    """Size and hash of one file of the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0, le=MAX_FILE_BYTES)


class Manifest(BaseModel):
    """What a bundle is: written last, read first.

    Attributes
    ----------
    format_version : version of the bundle format; a loader takes only its own.
    bundle_id, run_id : folder name, and the run that made it.
    created_at : UTC, ISO 8601.
    git_commit : commit of the code, "unknown" outside a checkout.
    data : months, files, hashes and rows; `simulated` says whether the trips are.
    parameters : parameters of the run.
    libraries : versions of the libraries that made it.
    features : names in order.
    threshold : value, how it was chosen, and the alternatives.
    metrics : on the test split, with intervals.
    files : every other file of the bundle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: int
    bundle_id: str = Field(pattern=rf"^{BUNDLE_ID_PATTERN}$")
    run_id: str
    created_at: str
    git_commit: str
    data: dict[str, Any]
    parameters: dict[str, Any]
    libraries: dict[str, str]
    features: list[str]
    threshold: dict[str, Any]
    metrics: dict[str, Any]
    files: dict[str, FileEntry]


def now() -> str:
    """Current time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a reader, or a crash, sees the old bytes or the new ones and nothing between."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_manifest(folder: Path) -> Manifest:
    """Manifest of the bundle in `folder`.

    Raises
    ------
    BundleError
        If it is missing, is no JSON, has another format version or an unexpected shape.
    """
    return parse_manifest(folder / MANIFEST)


def parse_manifest(path: Path) -> Manifest:
    """Manifest in a file, such as one that was kept of a removed bundle; raises as `read_manifest` does."""
    require_plain(path)
    try:
        raw = path.read_bytes()
    except OSError as err:
        raise BundleError(
            f"{path.parent}: no readable {path.name} ({err.strerror}); a bundle is a sealed folder"
        ) from err
    try:
        version = json.loads(raw).get("format_version")
    except (ValueError, AttributeError, RecursionError) as err:
        raise BundleError(f"{path}: expected a JSON object ({err})") from err
    if version != FORMAT_VERSION:
        raise BundleError(f"{path}: expected format_version {FORMAT_VERSION}, found {version!r}; retrain it")
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{path}: {where}: {first['msg']}") from err


def require_plain(path: Path) -> None:
    """Refuse what is no plain file of a bearable size before it is opened: a pipe would be waited for."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise BundleError(f"{path}: expected a plain file, found something else; the folder was tampered with")
    if path.exists() and (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise BundleError(f"{path}: expected at most {MAX_FILE_BYTES} bytes, found {size}; the file was replaced")


def verify_files(folder: Path) -> Manifest:
    """Check every file of a bundle against its manifest, before anything else is parsed.

    Raises
    ------
    BundleError
        If a file is missing, altered, not listed, no plain file, or named outside the folder.
    """
    if folder.is_symlink():
        raise BundleError(f"{folder}: expected a folder, found a link; move the bundle itself there")
    manifest = read_manifest(folder)
    require_plain(folder / SIGNATURE)
    if manifest.bundle_id != folder.name and not folder.name.startswith("."):
        raise BundleError(f"{folder}: the manifest is of {manifest.bundle_id}; folder renamed or mixed up")
    for name, entry in manifest.files.items():
        if "/" in name or "\\" in name or name in ("", ".", "..", MANIFEST):
            raise BundleError(f"{folder}/{MANIFEST}: file name {name!r} does not stay inside the bundle")
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path}: expected a plain file, found {'a link' if path.is_symlink() else 'none'}")
        if (size := path.stat().st_size) != entry.bytes:
            raise BundleError(f"{path}: expected {entry.bytes} bytes, found {size}; the file was cut or replaced")
        if (digest := sha256(path)) != entry.sha256:
            raise BundleError(f"{path}: expected sha256 {entry.sha256[:12]}..., found {digest[:12]}...; it was altered")
    extra = {p.name for p in folder.iterdir()} - set(manifest.files) - {MANIFEST, SIGNATURE}
    if extra:
        raise BundleError(f"{folder}: files that the manifest does not list: {', '.join(sorted(extra))}")
    return manifest


def current_bundle(artifacts: Path) -> Path | None:
    """Folder of the live bundle, None where none is live; raises as `pointed_bundle` does."""
    return pointed_bundle(artifacts, CURRENT)


def pointed_bundle(artifacts: Path, pointer: str) -> Path | None:
    """Folder that a pointer in the artifacts folder names, None where there is no such pointer.

    Raises
    ------
    BundleError
        If the pointer names a folder that is not there, or something that is no folder name.
    """
    try:
        name = (artifacts / pointer).read_text("utf-8", "replace").strip()
    except FileNotFoundError:
        return None
    if not _is_bundle_id(name):
        raise BundleError(f"{artifacts / pointer}: expected the name of a bundle folder, found {name!r}")
    if not (artifacts / name).is_dir():
        raise BundleError(f"{artifacts / pointer} names {name}, which is not there; promote another bundle")
    return artifacts / name


def set_current(artifacts: Path, bundle_id: str, reason: str, run_id: str = "", event: str = PROMOTED) -> None:
    """Verify a bundle and make it the live one: the history line first, then the pointer, each atomic.

    A write that fails leaves both as they were.

    Raises
    ------
    BundleError
        If the bundle does not verify; the live one stays.
    """
    _point(artifacts, CURRENT, bundle_id, reason, run_id, event)
    if pointed_name(artifacts, SHADOW) == bundle_id:
        clear_shadow(artifacts)


def set_shadow(artifacts: Path, bundle_id: str, reason: str, run_id: str = "") -> None:
    """Verify a bundle and have it scored beside the live one; errors as `set_current`."""
    _point(artifacts, SHADOW, bundle_id, reason, run_id, SHADOWED)


def clear_shadow(artifacts: Path) -> None:
    """Have no bundle scored beside the live one."""
    (artifacts / SHADOW).unlink(missing_ok=True)


def _point(artifacts: Path, pointer: str, bundle_id: str, reason: str, run_id: str, event: str) -> None:
    if not bundle_id or "/" in bundle_id or "\\" in bundle_id or bundle_id.startswith("."):
        raise BundleError(f"expected the name of a bundle folder in {artifacts}, found {bundle_id!r}")
    manifest = verify_files(artifacts / bundle_id)
    size = write_history(artifacts, event, bundle_id, reason, run_id or manifest.run_id)
    try:
        write_atomic(artifacts / pointer, f"{bundle_id}\n".encode())
    except BaseException:
        os.truncate(artifacts / HISTORY, size)
        raise


def write_history(artifacts: Path, event: str, bundle_id: str | None, reason: str, run_id: str) -> int:
    """Append a line to the history; the size of the file before. A write that fails leaves the file as it was."""
    line = {
        "at": now(),
        "event": event,
        "bundle_id": bundle_id,
        "previous": current_bundle_name(artifacts),
        "run_id": run_id,
        "reason": reason,
    }
    path = artifacts / HISTORY
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        # A line that a crash cut off must not swallow the next one.
        is_torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        content = b"\n" * is_torn + json.dumps(line).encode() + b"\n"
        try:
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except BaseException:
            os.ftruncate(file.fileno(), size)
            raise
    return size


def current_bundle_name(artifacts: Path) -> str | None:
    """Name in the current pointer, whether or not its folder is there; None where there is no pointer."""
    return pointed_name(artifacts, CURRENT)


def pointed_name(artifacts: Path, pointer: str) -> str | None:
    """Name in a pointer, whether or not its folder is there; None where there is no pointer."""
    try:
        return (artifacts / pointer).read_text("utf-8").strip() or None
    except FileNotFoundError:
        return None


def read_history(artifacts: Path) -> list[dict[str, Any]]:
    """Lines of the history, oldest first; a last line cut off by a crash is left out."""
    lines: list[dict[str, Any]] = []
    try:
        text = (artifacts / HISTORY).read_text("utf-8")
    except FileNotFoundError:
        return lines
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines
