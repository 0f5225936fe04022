"""API keys: random, kept as hashes in a file that may change while the API runs, and a browser's session for one."""

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fraudlib.errors import DataError, ParameterError
from fraudlib.settings import Settings

log = logging.getLogger(__name__)

KEY_BYTES: Final = 32
KEY_PREFIX: Final = "fraudlib_"
LOOK_SECONDS: Final = 2.0
SESSION_SECONDS: Final = 12 * 3600
NAME_PATTERN: Final = r"[A-Za-z0-9_-]{1,64}"
_is_name = re.compile(NAME_PATTERN, re.ASCII).fullmatch
# What a key may open: send transactions, read alerts and how all fares, label alerts.
RIGHTS: Final = frozenset({"send", "read", "label"})
_line = re.compile(rf"({NAME_PATTERN})\s+sha256:([0-9a-f]{{64}})(?:\s+([a-z,]+))?", re.ASCII).fullmatch
_is_key = re.compile(rf"{KEY_PREFIX}[A-Za-z0-9_-]{{43}}", re.ASCII).fullmatch
_session = re.compile(r"([0-9]{1,15})\.([0-9a-f]{16})\.([0-9a-f]{64})", re.ASCII).fullmatch


@dataclass(frozen=True)
class Client:
    """Who a key belongs to, the key's SHA-256, and which of RIGHTS it has."""

    name: str
    digest: bytes
    rights: frozenset[str] = RIGHTS

    @property
    def line(self) -> str:
        """Line of the file of keys."""
        rights = "" if self.rights == RIGHTS else f" {','.join(sorted(self.rights))}"
        return f"{self.name} sha256:{self.digest.hex()}{rights}"

    @property
    def short(self) -> str:
        """Public short form of the hash, which tells keys of one name apart."""
        return self.digest.hex()[:16]


def digest_of(key: str) -> bytes:
    """SHA-256 of a key. No slow hash is needed: a key has 256 random bits, and nobody can try them all."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def new_key(name: str, rights: Collection[str] = RIGHTS) -> tuple[str, Client]:
    """A random key and what is kept of it.

    Raises
    ------
    ParameterError
        If the name is none, or a right is unknown.
    """
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    return key, client_of(name, key, rights)


def client_of(name: str, key: str, rights: Collection[str] = RIGHTS) -> Client:
    """What is kept of a key.

    Raises
    ------
    ParameterError
        If the name is none, or a right is unknown.
    """
    if not rights or not RIGHTS.issuperset(rights):
        raise ParameterError(f"expected rights out of {', '.join(sorted(RIGHTS))}, found {', '.join(sorted(rights))}")
    if not _is_name(name):
        raise ParameterError(f"expected a client's name of 1 to 64 of the characters A-Z a-z 0-9 _ -, found {name!r}")
    return Client(name, digest_of(key), frozenset(rights))


def read_clients(path: Path) -> dict[bytes, Client]:
    """Clients of a file by the hash of their key: a line `NAME sha256:HASH [RIGHT,RIGHT]` each, # begins a comment.

    Raises
    ------
    DataError
        If the file cannot be read, holds another line or no key at all; no line is repeated in the message.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{path}: the API keys cannot be read ({err}); make one with `fraudlib api-key`") from err
    clients = {}
    for number, raw in enumerate(lines, 1):
        text = raw.partition("#")[0].strip()
        if not text:
            continue
        found = _line(text)
        rights = RIGHTS if not found or found[3] is None else frozenset(found[3].split(","))
        if not found or not rights <= RIGHTS:
            raise DataError(
                f"{path}, line {number}: expected NAME sha256:HASH and perhaps some of {','.join(sorted(RIGHTS))}, "
                "found something else; `fraudlib api-key NAME` prints such a line"
            )
        client = Client(found[1], bytes.fromhex(found[2]), rights)
        clients[client.digest] = client
    if not clients:
        raise DataError(f"{path}: expected at least one API key, found none; make one with `fraudlib api-key`")
    return clients


def make_key(
    name: str, add: Path | None = None, write: Path | None = None, rights: Collection[str] = RIGHTS
) -> tuple[str | None, Client]:
    """Make a client's key, or take the one that `write` holds already.

    Parameters
    ----------
    name : of the client.
    add : file that the hash is appended to, unless it stands there.
    write : file that the key goes to; only its owner may read it.
    rights : what the key may open.

    Returns
    -------
    key : None where it went to a file. client : what is kept of it.

    Raises
    ------
    ParameterError
        If the name is none, or a right is unknown.
    DataError
        If a file cannot be read, or `add` holds what are no keys.
    """
    key, client = new_key(name, rights)
    if write is not None:
        write.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(write, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            client = client_of(name, _read_key(write), rights)
        else:
            with open(handle, "w", encoding="ascii") as file:
                file.write(f"{key}\n")
    is_there = add is not None and add.exists() and add.stat().st_size > 0
    if add is not None and not (is_there and client.digest in read_clients(add)):
        add_client(add, client)
    return (None if write else key), client


def _read_key(path: Path) -> str:
    try:
        key = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{path}: the API key cannot be read ({type(err).__name__}); name another file") from err
    if not _is_key(key):
        raise DataError(f"{path}: expected an API key made by `fraudlib api-key`, found something else")
    return key


def add_client(path: Path, client: Client) -> None:
    """Append a client to a file of keys, which is made where it is missing, for its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with open(handle, "r+", encoding="utf-8") as file:
        before = file.read()
        gap = "" if not before or before.endswith("\n") else "\n"
        file.write(f"{gap}{client.line}\n")


def authorization(settings: Settings) -> dict[str, str]:
    """Headers with the key that this machine's clients send, none where FRAUDLIB_API_KEY_FILE is not set.

    Raises
    ------
    DataError
        If the file cannot be read, or holds no key.
    """
    if settings.api_key_file is None:
        return {}
    return {"Authorization": f"Bearer {_read_key(settings.api_key_file)}"}


class Keys:
    """The keys that open the API, from a file; a change of it counts within two seconds.

    Parameters
    ----------
    path : file of the hashes, see `read_clients`.

    Raises
    ------
    DataError
        If the file is not as it should be. Later on, such a file is logged and the keys before it stay.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._secret = secrets.token_bytes(32)
        self._seen = self._state()
        self._take(read_clients(path))

    def find(self, key: str) -> Client | None:
        """Whose key it is.

        What is looked up is the key's hash, which nobody can steer towards a stored one: the time that it takes
        says nothing about any key.
        """
        self._look()
        digest = digest_of(key)
        client = self._clients.get(digest)
        return client if client is not None and hmac.compare_digest(client.digest, digest) else None

    def open_session(self, client: Client) -> str:
        """Token that stands for a client's key for twelve hours, until the process ends or the key is taken away."""
        expires = str(int(time.monotonic()) + SESSION_SECONDS)
        return f"{expires}.{client.short}.{self._sign(expires, client)}"

    def find_session(self, token: str) -> Client | None:
        """Whose session it is."""
        self._look()
        found = _session(token)
        if not found or (client := self._by_short.get(found[2])) is None:
            return None
        is_genuine = hmac.compare_digest(self._sign(found[1], client), found[3])
        return client if is_genuine and time.monotonic() < int(found[1]) else None

    def _sign(self, expires: str, client: Client) -> str:
        return hmac.new(self._secret, expires.encode() + b"." + client.digest, hashlib.sha256).hexdigest()

    def _take(self, clients: dict[bytes, Client]) -> None:
        self._clients = clients
        self._by_short = {client.short: client for client in clients.values()}

    def _state(self) -> tuple[int, int, int] | None:
        self._next_look = time.monotonic() + LOOK_SECONDS
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _look(self) -> None:
        if time.monotonic() < self._next_look or (state := self._state()) == self._seen:
            return
        self._seen = state
        try:
            self._take(read_clients(self._path))
        except DataError as err:
            log.error("the keys stay as they were", extra={"error": str(err)})
        else:
            log.info("keys read anew", extra={"count": len(self._clients)})
