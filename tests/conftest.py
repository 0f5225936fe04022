"""What several test files share: a clean environment and sealed folders to publish."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fraudlib import manifest
from fraudlib.paths import MANIFEST

Seal = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not depend on FRAUDLIB_* variables of whoever runs them."""
    for name in [name for name in os.environ if name.startswith("FRAUDLIB_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def seal() -> Seal:
    """Seal two small files as a bundle that verifies: `seal(artifacts, "20260101T000000Z-aaaa")` returns its folder."""

    def make(artifacts: Path, bundle_id: str, **changes: object) -> Path:
        folder = artifacts / bundle_id
        folder.mkdir(parents=True)
        for name, content in (("statistics.json", b'{"mean": 2.5}'), ("model.safetensors", bytes(range(64)))):
            (folder / name).write_bytes(content)
        files = {p.name: {"sha256": manifest.sha256(p), "bytes": p.stat().st_size} for p in folder.iterdir()}
        content = {
            "format_version": manifest.FORMAT_VERSION,
            "bundle_id": bundle_id,
            "run_id": f"run-of-{bundle_id}",
            "created_at": manifest.now(),
            "git_commit": "unknown",
            "data": {"simulated": True},
            "parameters": {},
            "libraries": {},
            "features": ["trip_distance"],
            "threshold": {"value": 1.0},
            "metrics": {},
            "files": files,
        }
        (folder / MANIFEST).write_text(json.dumps(content | changes))
        return folder

    return make
