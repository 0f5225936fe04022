"""With a key set, only what that key's owner signed may serve, be promoted or be gone back to."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Seal

from fraudlib import manifest, signature
from fraudlib.errors import BundleError, ServiceError
from fraudlib.paths import MANIFEST, SIGNATURE
from fraudlib.settings import Settings
from fraudlib.worker.main import load_scorer
from pipelines import registry
from pipelines.__main__ import main

A, B = "20260101T000000Z-aaaa", "20260102T000000Z-bbbb"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key and its public key."""
    private = tmp_path / "line.pem"
    return private, signature.generate(private)


@pytest.fixture
def artifacts(tmp_path: Path, seal: Seal) -> Path:
    """Two bundles, neither signed, the second one live."""
    for bundle_id in (A, B):
        registry.promote(seal(tmp_path / "artifacts", bundle_id).parent, bundle_id, "better")
    return tmp_path / "artifacts"


def forge(folder: Path) -> None:
    """Change what a bundle promises and make the manifest say so, as somebody would who can write into the folder."""
    (folder / "statistics.json").write_text('{"mean": 9.5}')
    content = json.loads((folder / MANIFEST).read_text())
    content["files"]["statistics.json"] = {"sha256": manifest.sha256(folder / "statistics.json"), "bytes": 13}
    (folder / MANIFEST).write_text(json.dumps(content))


def test_a_signed_bundle_is_taken(artifacts: Path, keys: tuple[Path, Path]) -> None:
    """Signed by the key's owner it verifies, and the signature is no stray file of the bundle."""
    private, public = keys
    registry.sign(artifacts, A, private)
    registry.promote(artifacts, A, "signed", key=public)
    assert manifest.current_bundle_name(artifacts) == A


def test_a_forged_bundle_is_refused_though_its_hashes_are_right(artifacts: Path, keys: tuple[Path, Path]) -> None:
    """Hashes alone let a careful forger through; the signature does not."""
    private, public = keys
    registry.sign(artifacts, A, private)
    forge(artifacts / A)
    assert manifest.verify_files(artifacts / A).bundle_id == A
    with pytest.raises(BundleError, match="the bundle is forged"):
        registry.promote(artifacts, A, "forged", key=public)
    assert manifest.current_bundle_name(artifacts) == B


@pytest.mark.parametrize("content", [b"", b"not base64 at all", b"AAAA"])
def test_a_signature_that_is_none_is_refused(artifacts: Path, keys: tuple[Path, Path], content: bytes) -> None:
    """Empty, garbled or too short: refused like a forged one, never a crash."""
    (artifacts / A / SIGNATURE).write_bytes(content)
    with pytest.raises(BundleError, match="the bundle is forged"):
        signature.check(artifacts / A, keys[1])


def test_another_keys_signature_is_refused(artifacts: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """Whoever makes a key of their own cannot sign for ours."""
    other = tmp_path / "other.pem"
    signature.generate(other)
    registry.sign(artifacts, A, other)
    with pytest.raises(BundleError, match="the bundle is forged"):
        registry.promote(artifacts, A, "theirs", key=keys[1])


def test_an_unsigned_bundle_is_refused_by_worker_promote_and_rollback(
    artifacts: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With FRAUDLIB_VERIFY_KEY_FILE set every door asks; the live pointer stays."""
    monkeypatch.setenv("FRAUDLIB_VERIFY_KEY_FILE", str(keys[1]))
    with pytest.raises(BundleError, match="expected a signature"):
        load_scorer(Settings(), "cpu")(artifacts / A)
    for arguments in (["promote", A], ["shadow", A], ["rollback"]):
        result = CliRunner().invoke(main, [*arguments, "--artifacts", str(artifacts)])
        assert isinstance(result.exception, BundleError)
        assert "expected a signature" in str(result.exception)
    assert manifest.current_bundle_name(artifacts) == B


def test_a_private_key_is_its_owners_alone_and_never_overwritten(keys: tuple[Path, Path]) -> None:
    """Mode 0600, and a second keygen to the same place is refused."""
    private, _ = keys
    assert private.stat().st_mode & 0o077 == 0
    before = private.read_bytes()
    with pytest.raises(ServiceError, match="never overwritten"):
        signature.generate(private)
    assert private.read_bytes() == before


def test_a_key_that_cannot_be_read_is_named(artifacts: Path, tmp_path: Path) -> None:
    """A missing or broken key is an error about the key, and nothing passes for want of it."""
    (tmp_path / "broken.pub").write_text("no key")
    for key in (tmp_path / "broken.pub", tmp_path / "missing.pub"):
        with pytest.raises(ServiceError, match=key.name):
            signature.check(artifacts / A, key)


def test_a_signing_that_was_killed_does_not_spoil_the_bundle(artifacts: Path, keys: tuple[Path, Path]) -> None:
    """What a killed signing left beside the manifest goes when the bundle is signed anew."""
    (artifacts / A / f".{SIGNATURE}.torn").write_bytes(b"half")
    registry.sign(artifacts, A, keys[0])
    signature.check(artifacts / A, keys[1])
    assert manifest.verify_files(artifacts / A).bundle_id == A
