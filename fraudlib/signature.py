"""Signatures of bundles: who sealed it, beside the hashes that say that nothing changed since.

Ed25519, so that a worker holds only a public key: whoever breaks into one can read bundles and cannot make them. With a
shared secret (HMAC) every worker could sign. The manifest is what is signed; it has the hash of every other file.
"""

import base64
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fraudlib.errors import BundleError, ServiceError
from fraudlib.manifest import require_plain, verify_files, write_atomic
from fraudlib.paths import MANIFEST, SIGNATURE


def generate(path: Path) -> Path:
    """Write a new private key to `path`, readable by its owner alone, and its public key to `path`.pub, returned.

    Raises
    ------
    ServiceError
        If either file is there already; nothing is written.
    """
    public = path.with_name(f"{path.name}.pub")
    for file in (path, public):
        if file.exists():
            raise ServiceError(f"{file}: expected no file there, found one; a key is never overwritten, name another")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as private:
        private.write(secret)
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    write_atomic(public, pem)
    return public


def sign(folder: Path, key_file: Path) -> None:
    """Verify a bundle's files and sign its manifest with the private key in `key_file`; signing anew replaces.

    Raises
    ------
    BundleError
        If the bundle does not verify.
    ServiceError
        If the key cannot be read.
    """
    for torn in folder.glob(f".{SIGNATURE}.*"):  # of a signing that was killed
        torn.unlink()
    key = _key(key_file, "private")
    verify_files(folder)
    assert isinstance(key, Ed25519PrivateKey)
    write_atomic(folder / SIGNATURE, base64.b64encode(key.sign((folder / MANIFEST).read_bytes())) + b"\n")


def check(folder: Path, key_file: Path | None) -> None:
    """Hold a bundle's signature against the public key in `key_file`; without a key nothing is asked.

    Raises
    ------
    BundleError
        If the bundle is unsigned, or signed by another key or for another manifest.
    ServiceError
        If the key cannot be read.
    """
    if key_file is None:
        return
    key = _key(key_file, "public")
    assert isinstance(key, Ed25519PublicKey)
    for name in (SIGNATURE, MANIFEST):
        require_plain(folder / name)
    try:
        signature = base64.b64decode((folder / SIGNATURE).read_bytes().strip(), validate=True)
        key.verify(signature, (folder / MANIFEST).read_bytes())
    except OSError as err:
        raise BundleError(
            f"{folder}: expected a signature in {SIGNATURE}, found none ({err.strerror}); "
            "sign it with `python -m pipelines sign` if it is yours"
        ) from err
    except (InvalidSignature, ValueError) as err:
        raise BundleError(
            f"{folder / SIGNATURE}: it is not of the key in {key_file} and this manifest; the bundle is forged"
        ) from err


def _key(path: Path, kind: str) -> Ed25519PrivateKey | Ed25519PublicKey:
    try:
        raw = path.read_bytes()
        if kind == "private":
            key: object = serialization.load_pem_private_key(raw, None)
        else:
            key = serialization.load_pem_public_key(raw)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise ServiceError(f"{path}: expected a {kind} Ed25519 key (PEM), found none that can be read ({err})") from err
    if not isinstance(key, Ed25519PrivateKey | Ed25519PublicKey):
        raise ServiceError(f"{path}: expected a {kind} Ed25519 key (PEM), found one of another kind")
    return key
