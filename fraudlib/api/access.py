"""Who may come in, decided from a request's head alone: before a body is read, and before any route is looked up."""

import ipaddress
from collections.abc import Iterable, MutableMapping
from typing import Any, Final

from fraudlib.api.keys import Client, Keys
from fraudlib.api.pages import DOCS, DOCS_ASSETS, STATIC
from fraudlib.api.problems import Problem
from fraudlib.api.rates import Bucket, Rates
from fraudlib.errors import ServiceError
from fraudlib.settings import Settings

Scope = MutableMapping[str, Any]

COOKIE: Final = "fraudlib_session"
CLIENT: Final = "fraudlib.client"
BUCKET: Final = "fraudlib.bucket"
OPEN: Final = frozenset({("GET", path) for path in ("/", "/healthz", "/readyz", "/session", *STATIC)})
INTERNAL: Final = frozenset({"/metrics", DOCS, *DOCS_ASSETS, "/openapi.json"})
RIGHT_OF: Final = {
    "/transaction": "send",
    "/transactions": "send",
    "/labels": "label",
    "/alerts": "read",
    "/pulse": "read",
}
_COOKIE_START: Final = f"{COOKIE}=".encode()


class Access:
    """Checks every request's key, its client's rate, and which port it came to.

    Parameters
    ----------
    settings : of the API.

    Raises
    ------
    DataError
        If the file of keys is not as it should be.
    """

    def __init__(self, settings: Settings) -> None:
        self.keys = Keys(settings.api_keys_file) if settings.api_keys_file else None
        self._rates = Rates(settings.client_rate) if settings.client_rate else None
        self._internal_port = settings.api_internal_port

    def refusal(self, scope: Scope) -> Problem | None:
        """Why a request may not come in, None where it may.

        Returns
        -------
        Problem or None
            400 without one Host, 401 without a key, 403 where the key opens other things, 404 for what only the
            internal port shows, 429 for too much.
        """
        hosts, authorization, cookie = _read(scope["headers"])
        if hosts != 1 and scope.get("http_version", "1.0") != "1.0":
            return Problem(400, "expected one Host header in an HTTP/1.1 request", headers={"Connection": "close"})
        if self._internal_port and scope["path"] in INTERNAL:
            return None if self._came_inside(scope) else Problem(404, "expected another address; /docs is not here")
        client = self._client(authorization, cookie)
        if self.keys is not None and client is None and (scope["method"], scope["path"]) not in OPEN:
            return _no_key(authorization is not None)
        if client is not None:
            scope[CLIENT] = client.name
            if (right := RIGHT_OF.get(scope["path"])) and right not in client.rights:
                return Problem(403, f"this key may not {right}; `fraudlib api-key` makes one that may")
        if self._rates is not None and scope["method"] == "POST":
            return _spend(self._rates.bucket(client.name if client else _address(scope)), scope)
        return None

    def client(self, scope: Scope) -> Client | None:
        """Who asks, None where no keys are in use or none of them came."""
        _, authorization, cookie = _read(scope["headers"])
        return self._client(authorization, cookie)

    def _client(self, authorization: bytes | None, cookie: bytes | None) -> Client | None:
        if self.keys is None:
            return None
        if authorization is not None:
            kind, _, key = authorization.decode("latin-1").partition(" ")
            return self.keys.find(key.strip()) if kind.lower() == "bearer" else None
        return self.keys.find_session(cookie.decode("latin-1")) if cookie is not None else None

    def _came_inside(self, scope: Scope) -> bool:
        _, port = scope.get("server") or ("", None)
        return bool(port == self._internal_port)


def charge(scope: Scope, transactions: int) -> None:
    """Count the transactions of a bulk, of which the first was counted as a request, against its client's rate."""
    bucket = scope.get(BUCKET)
    if bucket is not None and transactions > 1:
        bucket.charge(transactions - 1)


def require_safe_address(settings: Settings) -> None:
    """Refuse to serve without keys what other machines can reach.

    Raises
    ------
    ServiceError
        If the address is no loopback one, and neither keys are set nor strangers are allowed explicitly.
    """
    if settings.api_keys_file or settings.api_allow_anonymous or _is_loopback(settings.api_host):
        return
    raise ServiceError(
        f"FRAUDLIB_API_HOST={settings.api_host} lets other machines in, and no API keys are set: make one with "
        "`fraudlib api-key NAME --add FILE` and set FRAUDLIB_API_KEYS_FILE=FILE, listen on 127.0.0.1, or allow "
        "everyone with FRAUDLIB_API_ALLOW_ANONYMOUS=true"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _read(headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, bytes | None, bytes | None]:
    """Number of Host headers, the Authorization, and the session's cookie."""
    hosts, authorization, cookie = 0, None, None
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"authorization":
            authorization = value
        elif name == b"cookie":
            for part in value.split(b";"):
                if (part := part.strip()).startswith(_COOKIE_START):
                    cookie = part[len(_COOKIE_START) :]
    return hosts, authorization, cookie


def _spend(bucket: Bucket, scope: Scope) -> Problem | None:
    if seconds := bucket.take():
        detail = "this client sends more than it may; nothing was taken, try again"
        return Problem(429, detail, "rate-limited", {"Retry-After": str(seconds)})
    scope[BUCKET] = bucket
    return None


def _no_key(came: bool) -> Problem:
    detail = "this key opens nothing; check it" if came else "expected the header Authorization: Bearer KEY, found none"
    challenge = {"WWW-Authenticate": 'Bearer realm="fraudlib"'}
    return Problem(401, f"{detail}; `fraudlib api-key` makes one", headers=challenge)


def _address(scope: Scope) -> str:
    """Address of a client that has no name; of IPv6 the network, as one machine has many addresses."""
    host = str((scope.get("client") or ("unknown",))[0])
    return str(int(ipaddress.IPv6Address(host)) >> 64) if ":" in host else host
