"""Promotion and rollback move the pointer only to a bundle that verifies, and the history tells the story."""

import fcntl
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Seal

from fraudlib import manifest
from fraudlib.errors import BundleError
from pipelines import registry
from pipelines.__main__ import main

A, B, C = "20260101T000000Z-aaaa", "20260102T000000Z-bbbb", "20260103T000000Z-cccc"


@pytest.fixture
def artifacts(tmp_path: Path, seal: Seal) -> Path:
    """Three bundles, promoted one after the other."""
    for bundle_id in (A, B, C):
        seal(tmp_path, bundle_id)
        registry.promote(tmp_path, bundle_id, f"{bundle_id} is better")
    return tmp_path


def test_rollback_goes_back_step_by_step(artifacts: Path) -> None:
    """Two rollbacks go back two bundles, not back and forth; a third has nowhere to go."""
    assert [registry.rollback(artifacts), registry.rollback(artifacts)] == [B, A]
    with pytest.raises(BundleError, match="the history has none"):
        registry.rollback(artifacts)
    assert manifest.current_bundle_name(artifacts) == A
    assert manifest.read_history(artifacts)[-1]["reason"] == f"rollback from {B}"


def test_rollback_undoes_a_promotion_by_hand(artifacts: Path) -> None:
    """After an old bundle was promoted again, back means the one that it replaced."""
    registry.promote(artifacts, A, "by hand")
    assert registry.rollback(artifacts) == C


def test_rollback_after_rollback_and_promotion(artifacts: Path, seal: Seal) -> None:
    """The bundle that a rollback left is not gone back to."""
    registry.rollback(artifacts)
    seal(artifacts, "20260104T000000Z-dddd")
    registry.promote(artifacts, "20260104T000000Z-dddd", "better")
    assert registry.rollback(artifacts) == B


def test_rollback_skips_a_bundle_that_does_not_verify(artifacts: Path) -> None:
    """A damaged or deleted predecessor is passed over for the one before it."""
    (artifacts / B / "statistics.json").unlink()
    assert registry.rollback(artifacts) == A


def test_rollback_works_when_a_crash_came_between_history_and_pointer(artifacts: Path) -> None:
    """The pointer says what is live; a history line ahead of it is not taken for live."""
    (artifacts / "current").write_text(f"{B}\n")
    assert registry.rollback(artifacts) == A


@pytest.mark.parametrize("bundle_id", ["nope", "../other", "", "."])
def test_only_a_bundle_of_the_folder_can_be_promoted(artifacts: Path, bundle_id: str) -> None:
    """A name that is not there, or leads elsewhere, is refused with the list of what is there."""
    with pytest.raises(BundleError, match=f"no bundle {bundle_id!r}; there are: {A}, {B}, {C}"):
        registry.promote(artifacts, bundle_id, "by hand")
    assert manifest.current_bundle_name(artifacts) == C


def test_history_reads_as_a_table_and_as_json(artifacts: Path) -> None:
    """The table marks what is live; --json prints one object a line."""
    registry.rollback(artifacts)
    table = CliRunner().invoke(main, ["history", "--artifacts", str(artifacts)]).stdout.splitlines()
    assert [line.split()[0] == "*" for line in table] == [False, False, False, False, True]
    lines = CliRunner().invoke(main, ["history", "--json", "--artifacts", str(artifacts)]).stdout.splitlines()
    assert [json.loads(line)["bundle_id"] for line in lines] == [A, B, C, B]
    assert [json.loads(line)["live"] for line in lines] == [False, False, False, True]


def test_the_history_says_from_when_to_when(artifacts: Path) -> None:
    """Each bundle was live until the next change; what is live has no end, and a refusal changes nothing."""
    registry.reject(artifacts, "average precision 0.1", "run-9")
    lines = registry.history(artifacts)
    assert [line["event"] for line in lines] == ["promote", "promote", "promote", "reject"]
    assert [line["until"] for line in lines] == [lines[1]["at"], lines[2]["at"], None, None]
    assert [line["live"] for line in lines] == [False, False, True, False]
    assert (lines[3]["bundle_id"], lines[3]["run_id"]) == (None, "run-9")


def test_a_promotion_that_never_took_effect_lasted_no_time(artifacts: Path) -> None:
    """A line that a crash left without its pointer is shown as live for no time, and the pointer's bundle as live."""
    (artifacts / "current").write_text(f"{B}\n")
    lines = registry.history(artifacts)
    assert [line["live"] for line in lines] == [False, True, False]
    assert lines[2]["until"] == lines[2]["at"]
    registry.promote(artifacts, A, "by hand")
    lines = registry.history(artifacts)
    assert lines[2]["until"] == lines[2]["at"]
    assert [line["live"] for line in lines] == [False, False, False, True]


def test_a_line_cut_by_a_crash_does_not_swallow_the_next(artifacts: Path) -> None:
    """After a torn line the next promotion starts a line of its own and is read."""
    with (artifacts / "history.jsonl").open("a") as file:
        file.write('{"at": "2026')
    registry.promote(artifacts, A, "after the crash")
    assert manifest.read_history(artifacts)[-1]["reason"] == "after the crash"


def test_a_pointer_that_cannot_be_written_takes_its_line_back(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the pointer's write fails, history and pointer stay byte for byte."""
    before = [(artifacts / name).read_bytes() for name in ("current", "history.jsonl")]

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        registry.promote(artifacts, A, "by hand")
    assert [(artifacts / name).read_bytes() for name in ("current", "history.jsonl")] == before


def test_the_shadow_is_named_until_it_goes_live(artifacts: Path) -> None:
    """A bundle in the shadow leaves the live one live; promoted it leaves the shadow; --off empties it."""

    def shadow(*arguments: str) -> int:
        return CliRunner().invoke(main, ["shadow", *arguments, "--artifacts", str(artifacts)]).exit_code

    assert shadow(A) == 0
    assert (manifest.pointed_name(artifacts, "shadow"), manifest.current_bundle_name(artifacts)) == (A, C)
    registry.promote(artifacts, A, "it did well")
    assert manifest.pointed_name(artifacts, "shadow") is None
    assert shadow(B) == 0
    assert shadow("--off") == 0
    assert manifest.pointed_name(artifacts, "shadow") is None
    assert shadow() == 2
    assert registry.rollback(artifacts) == C


def test_the_newest_are_kept_and_never_the_live_previous_or_shadow_one_removed(artifacts: Path, seal: Seal) -> None:
    """Live, previous and shadow stay however old they are; of the rest, the newest; manifests of the removed stay."""
    names = [f"2026020{i}T000000Z-eeee" for i in range(1, 6)]
    for name in names:
        seal(artifacts, name)
    registry.promote(artifacts, B, "by hand")
    registry.shadow(artifacts, A, "to compare")
    assert registry.retire(artifacts, 2) == names[:3]
    assert registry.sealed(artifacts) == [A, B, C, *names[3:]]
    assert sorted(path.stem for path in (artifacts / ".retired").iterdir()) == names[:3]
    assert registry.retire(artifacts, 2) == []
    assert registry.rollback(artifacts) == C


def test_a_sweep_removes_what_a_killed_writer_left_and_nothing_in_use(artifacts: Path) -> None:
    """Folders and files never renamed go; a folder that somebody is sealing is locked and stays."""
    for name in (".sealing-dead", ".sealing-held", ".removing-old"):
        (artifacts / name).mkdir()
    (artifacts / ".current.abc").write_text("half")
    held = os.open(artifacts / ".sealing-held", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        registry.sweep(artifacts)
    finally:
        os.close(held)
    left = {path.name for path in artifacts.glob(".*")}
    assert left == {".sealing-held", ".publish.lock"}
    assert registry.sealed(artifacts) == [A, B, C]
