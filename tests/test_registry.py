"""Promotion and rollback move the pointer only to a bundle that verifies, and the history tells the story."""

import json
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
