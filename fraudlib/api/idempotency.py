"""Idempotency-Key: the same request again gets the answer that the first one got (IETF draft, httpapi).

Kept in this process's memory only, bounded in number and time. Another process, or this one after a restart, takes
the request anew under the same transaction_id: in the log it then stands twice, and `delivery.FirstOfId` drops the
second for whoever reads.
"""

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Response

from fraudlib.api.problems import Problem
from fraudlib.settings import Settings

REPLAYED = "Idempotency-Replayed"


@dataclass(slots=True)
class _Entry:
    """What is known of a key: `answer` is None while it is under way, or where nobody knows what became of it."""

    fingerprint: bytes
    expires: float
    is_under_way: bool = True
    answer: tuple[int, bytes, str | None] | None = None


class Answers:
    """Answers by key, the least recently used forgotten first.

    Parameters
    ----------
    settings : how many keys are remembered, and how long.
    """

    def __init__(self, settings: Settings) -> None:
        self._most, self._seconds = settings.idempotency_keys, settings.idempotency_seconds
        # With a key, as a body that is mostly known would otherwise be found from its hash by trying.
        self._secret = secrets.token_bytes(32)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    async def once(self, key: str, body: bytes, make: Callable[[], Awaitable[Response]]) -> Response:
        """Answer of `make`, or the one that it gave to the same key and body before.

        Only what was taken is remembered. Where `make` ends without anyone knowing whether it was, the key stays bound
        to its body, and the next request with both is made again.

        Raises
        ------
        Problem
            409 while the first request is under way, 422 where the body is another one; or what `make` raises.
        """
        entry = self._begin(key, hashlib.blake2b(body, digest_size=16, key=self._secret).digest())
        if entry.answer is not None:
            status, content, media = entry.answer
            return Response(content, status, {REPLAYED: "true"}, media)
        try:
            response = await make()
        except Problem as problem:
            if problem.status == 504:
                entry.is_under_way = False
            elif self._entries.get(key) is entry:
                del self._entries[key]
            raise
        except BaseException:
            entry.is_under_way = False
            raise
        entry.answer = (response.status_code, bytes(response.body), response.media_type)
        entry.is_under_way = False
        return response

    def _begin(self, key: str, fingerprint: bytes) -> _Entry:
        now = time.monotonic()
        entry = self._entries.get(key)
        if entry is None or entry.expires <= now:
            entry = self._entries[key] = _Entry(fingerprint, now + self._seconds)
            self._entries.move_to_end(key)
            if len(self._entries) > self._most:
                self._entries.popitem(last=False)
            return entry
        self._entries.move_to_end(key)
        if entry.fingerprint != fingerprint:
            raise Problem(
                422, "this Idempotency-Key came with another body before; take a new key", "idempotency-key-reused"
            )
        if entry.is_under_way:
            raise Problem(409, "the first request with this Idempotency-Key is under way", headers={"Retry-After": "1"})
        entry.is_under_way = entry.answer is None
        return entry
