"""What was acknowledged against what came out: the ledger that every fault is judged by."""

import asyncio
import http.client
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from bench.site import Site
from fraudlib.schema import TOPIC_ALERTS, TOPIC_DEAD_LETTERS, TOPIC_SCORES
from fraudlib.wire import topics
from fraudlib.wire.delivery import Deduplicator

PER_POST: Final = 250
RETRY_SECONDS: Final = 0.1
POST_SECONDS: Final = 15.0


class Sender(threading.Thread):
    """Posts records to the API at a steady rate and keeps what it acknowledged.

    A record whose fate is unknown, because the API died or the broker did not answer, is never sent again: it may come
    out or not, and counts neither way.

    Parameters
    ----------
    records : key and body of each record. total : how many. rate : records a second while `hurry` is not set; may
        be changed at any time.
    """

    def __init__(self, site: Site, records: Iterator[tuple[bytes, bytes]], total: int, rate: float) -> None:
        super().__init__(name="sender", daemon=True)
        self._address = ("127.0.0.1", site.settings.api_port)
        self._records, self.total, self.rate = records, total, rate
        self.hurry = threading.Event()
        self.acknowledged: set[str] = set()
        self.sent = self.unknown = self.refusals = 0
        self.error: BaseException | None = None
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        """Body of the thread; what stops it early is kept in `error`."""
        try:
            due = time.monotonic()
            while self.sent < self.total:
                batch = [next(self._records) for _ in range(min(PER_POST, self.total - self.sent))]
                self.hurry.wait(max(0.0, due - time.monotonic()))
                due += len(batch) / self.rate
                self._deliver(batch)
        except BaseException as err:
            self.error = err
        finally:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _deliver(self, batch: list[tuple[bytes, bytes]]) -> None:
        self.sent += len(batch)
        waiting = batch
        while waiting:
            results = self._post(waiting)
            if results is None:
                self.unknown += len(waiting)
                return
            by_status: dict[str, list[tuple[bytes, bytes]]] = {}
            for record, result in zip(waiting, results, strict=True):
                by_status.setdefault(result["status"], []).append(record)
            self.acknowledged.update(key.decode() for key, _ in by_status.get("accepted", ()))
            self.unknown += len(by_status.get("outcome-unknown", ()))
            waiting = by_status.get("not-sent", [])
            if waiting:
                self.refusals += 1
                time.sleep(RETRY_SECONDS)

    def _post(self, batch: list[tuple[bytes, bytes]]) -> list[dict[str, Any]] | None:
        """Result of each record; None where the answer was lost."""
        headers = {"Content-Type": "application/x-ndjson"}
        body = b"\n".join(value for _, value in batch)
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(*self._address, timeout=POST_SECONDS)
                self._connection.connect()
        except OSError:
            # Nobody listens, so nobody has the records.
            self._disconnect()
            return [{"status": "not-sent"}] * len(batch)
        try:
            self._connection.request("POST", "/transactions", body, headers)
            answer = orjson.loads(self._connection.getresponse().read())
        except (OSError, http.client.HTTPException, orjson.JSONDecodeError):
            self._disconnect()
            return None
        return list(answer.get("results") or [{"status": "not-sent"}] * len(batch))


@dataclass
class Audit:
    """What a reader of the outputs finds.

    Attributes
    ----------
    scored : transactions with a score behind the filter. raw_scores, raw_alerts : messages in the log.
    duplicates, alert_duplicates : transactions that come twice behind the filter.
    flagged, alerted : transactions with a flagged score, and with an alert. dead : dead letters.
    """

    scored: dict[str, bool] = field(default_factory=dict)
    alerted: set[str] = field(default_factory=set)
    raw_scores: int = 0
    raw_alerts: int = 0
    duplicates: int = 0
    alert_duplicates: int = 0
    dead: int = 0

    @classmethod
    def of(cls, site: Site) -> "Audit":
        """Read everything that the topics hold, behind the reader's filter."""
        audit = cls()
        passes = {TOPIC_SCORES: Deduplicator(), TOPIC_ALERTS: Deduplicator()}

        def see(message: Any) -> None:
            score = orjson.loads(message.value)
            if passes[message.topic](score["src_partition"], score["src_offset"]):
                audit._note(message.topic, score)

        audit.raw_scores = asyncio.run(topics.read_all(site.settings, TOPIC_SCORES, see))
        audit.raw_alerts = asyncio.run(topics.read_all(site.settings, TOPIC_ALERTS, see))
        audit.dead = asyncio.run(topics.total(site.settings, [TOPIC_DEAD_LETTERS]))
        return audit

    def _note(self, name: str, score: dict[str, Any]) -> None:
        key = score["transaction_id"]
        if name == TOPIC_SCORES:
            self.duplicates += key in self.scored
            self.scored[key] = score["is_flagged"]
        else:
            self.alert_duplicates += key in self.alerted
            self.alerted.add(key)

    def against(self, acknowledged: set[str]) -> dict[str, int]:
        """Figures of the ledger; all but `raw_duplicates` and `raw_alert_duplicates` are to be zero where named so."""
        flagged = {key for key, is_flagged in self.scored.items() if is_flagged}
        return {
            "scored": len(self.scored),
            "lost": len(acknowledged - self.scored.keys()),
            "duplicates": self.duplicates,
            "raw_duplicates": self.raw_scores - len(self.scored) - self.duplicates,
            "alerts": len(self.alerted),
            "alerts_lost": len(flagged - self.alerted),
            "alert_duplicates": self.alert_duplicates,
            "raw_alert_duplicates": self.raw_alerts - len(self.alerted) - self.alert_duplicates,
            "dead_letters": self.dead,
        }
