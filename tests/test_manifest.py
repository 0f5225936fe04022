"""A bundle is used only as it was sealed, and the pointer moves only to a bundle that verifies."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Seal

from fraudlib import manifest
from fraudlib.errors import BundleError
from fraudlib.paths import CURRENT, HISTORY, MANIFEST

ONE, TWO = "20260101T000000Z-aaaa", "20260102T000000Z-bbbb"


def flip_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 63)


def remove(folder: Path) -> None:
    (folder / "statistics.json").unlink()


def add(folder: Path) -> None:
    (folder / "extra.bin").write_bytes(b"x")


def link(folder: Path) -> None:
    target = folder.parent / "statistics.json"
    (folder / "statistics.json").rename(target)
    (folder / "statistics.json").symlink_to(target)


def rewrite(change: Callable[[dict], dict]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(change(content)))

    return apply


def traverse(content: dict) -> dict:
    return content | {"files": content["files"] | {"../outside.json": content["files"]["statistics.json"]}}


def no_json(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")


def cut_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


DAMAGES = {
    "a flipped byte": (flip_byte, r"model\.safetensors: expected sha256 .* it was altered"),
    "a truncated file": (truncate, r"model\.safetensors: expected 64 bytes, found 63"),
    "a missing file": (remove, r"statistics\.json: expected a plain file, found none"),
    "an extra file": (add, r"files that the manifest does not list: extra\.bin"),
    "a link in place of a file": (link, r"statistics\.json: expected a plain file, found a link"),
    "a name that leaves the folder": (rewrite(traverse), r"'\.\./outside\.json' does not stay inside the bundle"),
    "another format version": (rewrite(lambda c: c | {"format_version": 99}), r"expected format_version 2, found 99"),
    "no format version": (rewrite(lambda c: {}), r"expected format_version 2, found None"),
    "an unknown field": (rewrite(lambda c: c | {"colour": "red"}), r"colour: Extra inputs"),
    "a hash that is none": (
        rewrite(lambda c: c | {"files": {"statistics.json": {"sha256": "abc", "bytes": 3}}}),
        r"files\.statistics\.json\.sha256",
    ),
    "a manifest that is no JSON": (no_json, r"manifest\.json: expected a JSON object"),
    "a manifest that is no object": (rewrite(lambda c: [1]), r"manifest\.json: expected a JSON object"),
    "no manifest": (cut_manifest, r"no readable manifest\.json"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_changed_bundle_is_refused(tmp_path: Path, seal: Seal, damage: Callable, message: str) -> None:
    """Whatever was changed after sealing, the bundle is refused with a sentence that says what."""
    folder = seal(tmp_path, ONE)
    damage(folder)
    with pytest.raises(BundleError, match=message):
        manifest.verify_files(folder)


def test_an_intact_bundle_verifies(tmp_path: Path, seal: Seal) -> None:
    """A bundle as it was sealed is accepted, and its manifest comes back."""
    assert manifest.verify_files(seal(tmp_path, ONE)).bundle_id == ONE


def test_a_renamed_folder_is_refused(tmp_path: Path, seal: Seal) -> None:
    """A bundle under another bundle's name is not taken for that one."""
    seal(tmp_path, ONE).rename(tmp_path / TWO)
    with pytest.raises(BundleError, match=f"the manifest is of {ONE}"):
        manifest.verify_files(tmp_path / TWO)


def test_promotion_moves_the_pointer_and_keeps_the_history(tmp_path: Path, seal: Seal) -> None:
    """Each promotion is one line of the history, with what was live before and why it changed."""
    for bundle_id in (ONE, TWO):
        seal(tmp_path, bundle_id)
        manifest.set_current(tmp_path, bundle_id, f"{bundle_id} is better")
    assert manifest.current_bundle(tmp_path) == tmp_path / TWO
    lines = manifest.read_history(tmp_path)
    assert [(line["previous"], line["bundle_id"]) for line in lines] == [(None, ONE), (ONE, TWO)]
    assert lines[1]["reason"] == f"{TWO} is better"
    assert lines[1]["run_id"] == f"run-of-{TWO}"


def test_a_bad_bundle_never_becomes_current(tmp_path: Path, seal: Seal) -> None:
    """Promoting a damaged bundle raises; pointer and history stay byte for byte."""
    seal(tmp_path, ONE)
    manifest.set_current(tmp_path, ONE, "first")
    before = [(tmp_path / name).read_bytes() for name in (CURRENT, HISTORY)]
    flip_byte(seal(tmp_path, TWO))
    with pytest.raises(BundleError):
        manifest.set_current(tmp_path, TWO, "second")
    assert before == [(tmp_path / name).read_bytes() for name in (CURRENT, HISTORY)]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fails before the rename, the old bytes stay and no temporary file is left."""
    path = tmp_path / CURRENT
    manifest.write_atomic(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        manifest.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["", "../elsewhere", ".hidden"])
def test_a_pointer_that_is_no_bundle_name_is_refused(tmp_path: Path, name: str) -> None:
    """The pointer cannot lead outside the artifacts folder."""
    (tmp_path / CURRENT).write_text(name)
    with pytest.raises(BundleError, match="expected the name of a bundle folder"):
        manifest.current_bundle(tmp_path)


def test_a_pointer_to_a_missing_bundle_says_so(tmp_path: Path) -> None:
    """A live bundle that was deleted is an error with a way out, not "nothing is live"."""
    (tmp_path / CURRENT).write_text(f"{ONE}\n")
    with pytest.raises(BundleError, match="promote another bundle"):
        manifest.current_bundle(tmp_path)


def test_nothing_is_live_in_a_new_folder(tmp_path: Path) -> None:
    """Without a pointer there is no current bundle and an empty history."""
    assert manifest.current_bundle(tmp_path) is None
    assert manifest.read_history(tmp_path) == []


def test_a_history_line_cut_by_a_crash_is_left_out(tmp_path: Path, seal: Seal) -> None:
    """The lines before a torn one are still read."""
    seal(tmp_path, ONE)
    manifest.set_current(tmp_path, ONE, "first")
    with (tmp_path / HISTORY).open("a") as file:
        file.write('{"at": "2026')
    assert [line["bundle_id"] for line in manifest.read_history(tmp_path)] == [ONE]


@pytest.mark.parametrize("name", ["", "../elsewhere/bundle", "sub/bundle", ".sealing-1", ".."])
def test_only_a_folder_of_the_artifacts_can_be_made_current(tmp_path: Path, name: str) -> None:
    """A name that leaves the artifacts folder is refused, and nothing is written."""
    with pytest.raises(BundleError, match="name of a bundle folder"):
        manifest.set_current(tmp_path, name, "by hand")
    assert list(tmp_path.iterdir()) == []
