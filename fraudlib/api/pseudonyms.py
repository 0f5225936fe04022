"""Ids of clients, replaced by a keyed hash before anything outlives the request.

A plain hash of a medallion or card number is undone by trying all of them, as happened to New York's own trip files
in 2014; without the secret key nobody can try. A pseudonym is `hid-KEY-HASH-CHECK` in hexadecimal: 32 bits that tell
keys apart, 128 of the keyed hash of the id, and 32 that show that it was made with a key that is known here. So what
comes back is taken as it stands, and hardly anything else passes for it.
"""

import hmac
import os
import re
import secrets
from hashlib import blake2b
from pathlib import Path
from typing import Final, Self

from fraudlib.errors import DataError, ServiceError
from fraudlib.settings import Settings

LEAST_CHARACTERS: Final = 32
KEY_BYTES: Final = 32
_pseudonym = re.compile(r"(hid-([0-9a-f]{8})-[0-9a-f]{32})-([0-9a-f]{8})", re.ASCII).fullmatch


def _hash(key: bytes, data: str, size: int, use: bytes) -> str:
    return blake2b(data.encode(), key=key, digest_size=size, person=use).hexdigest()


def _short(key: bytes) -> str:
    return _hash(key, "", 4, b"fraudlib key")


class Pseudonyms:
    """Pseudonyms of ids.

    Parameters
    ----------
    secrets_ : texts that nobody else knows; the first one is in use, the others were and are still recognised.
    """

    def __init__(self, *secrets_: str) -> None:
        keys = [blake2b(text.encode(), digest_size=KEY_BYTES).digest() for text in secrets_]
        self._keys = {_short(key): key for key in keys}
        self._key = keys[0]
        self._start = f"hid-{_short(self._key)}-"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Pseudonyms by the keys of a file: one a line, the one in use first; # begins a comment.

        Raises
        ------
        DataError
            If the file cannot be read, holds no key or one that could be guessed; none is repeated in the message.
        """
        try:
            lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as err:
            why = getattr(err, "strerror", None) or "no text"
            raise DataError(
                f"{path}: expected a key for ids, found: {why}; make one with `fraudlib id-key FILE`"
            ) from err
        found = [line for line in lines if line and not line.startswith("#")]
        if not found or min(map(len, found)) < LEAST_CHARACTERS:
            what = "a shorter line" if found else "none"
            raise DataError(
                f"{path}: expected keys for ids of at least {LEAST_CHARACTERS} characters, one a line, found {what}; "
                "make one with `fraudlib id-key FILE`"
            )
        return cls(*found)

    def of(self, given: str) -> str:
        """Pseudonym of an id, which is a pseudonym's own."""
        if given.startswith("hid-") and self._is_ours(given):
            return given
        whole = self._start + _hash(self._key, given, 16, b"fraudlib id")
        return f"{whole}-{_hash(self._key, whole, 4, b'fraudlib check')}"

    def _is_ours(self, given: str) -> bool:
        found = _pseudonym(given)
        if not found or (key := self._keys.get(found[2])) is None:
            return False
        return hmac.compare_digest(_hash(key, found[1], 4, b"fraudlib check"), found[3])


def pseudonyms(settings: Settings) -> Pseudonyms | None:
    """Those that the settings ask for, None where ids stay as clients give them.

    Raises
    ------
    DataError
        If the file of keys is not as it should be.
    """
    return Pseudonyms.read(settings.id_hash_key_file) if settings.id_hash_key_file else None


def write_key(path: Path) -> None:
    """Write a random key to a new file, readable by its owner alone.

    Raises
    ------
    ServiceError
        If the file is there already, or cannot be written; a key that is lost cannot be made again.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ServiceError(
            f"{path}: expected no file there, found one; a key is never overwritten, name another"
        ) from None
    except OSError as err:
        raise ServiceError(f"{path}: the key cannot be written ({err.strerror}); name another file") from err
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(f"{secrets.token_urlsafe(KEY_BYTES)}\n")
