"""A live stack as a notebook meets it: found or started, sent to, and watched."""

import asyncio
import contextlib
import http.client
import math
import secrets
import time
import urllib.parse
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final, Self

import numpy as np
import orjson
import pandas as pd

from fraudlib import paths
from fraudlib.api.keys import authorization
from fraudlib.demo.stack import Stack, answers, free_port, reachable
from fraudlib.demo.tally import Tally
from fraudlib.demo.traffic import Traffic, first, sample_waves
from fraudlib.errors import ServiceError
from fraudlib.reasons import in_words
from fraudlib.settings import Settings
from fraudlib.wire.readers import Reader

LOGS: Final = Path("runs/live")
LATEST_ALERTS: Final = 200
OUTSTANDING_SECONDS: Final = 15.0
LAST_READS: Final = 10


class Session:
    """A stack to send trips to. One that was started here ends with `close`, and with this process at the latest.

    Attributes
    ----------
    settings : of the stack. url : address of its API. started_here : whether `close` will stop it.
    """

    def __init__(self, settings: Settings, stack: Stack | None) -> None:
        self.settings = settings
        self.started_here = stack is not None
        self.url = f"http://{reachable(settings.api_host)}:{settings.api_port}"
        self._stack = stack

    @classmethod
    def open(cls, artifacts: str | Path, *, join: bool = True) -> Self:
        """Session with the stack that the FRAUDLIB_* settings point to, or with a new one on free ports.

        Parameters
        ----------
        artifacts : folder of the bundles that a new stack scores with; relative to the project's root.
        join : look for a running stack first.

        Raises
        ------
        ServiceError
            If a service of the new stack does not start.
        """
        given = Settings()
        if join and answers(reachable(given.api_host), given.api_port, "/readyz"):
            return cls(given, None)
        ports = {name: free_port() for name in ("broker_port", "api_port", "metrics_port")}
        changes: dict[str, Any] = {**ports, "artifacts_dir": paths.resolve(artifacts), "id_hash_key_file": None}
        changes["kafka_bootstrap_servers"] = f"{given.broker_host}:{ports['broker_port']}"
        settings = Settings(**{**given.model_dump(), **changes})
        with contextlib.ExitStack() as undo:
            stack = undo.enter_context(Stack(settings, paths.resolve(LOGS)))
            for _ in stack.start("broker", "api", "worker"):
                pass
            stack.try_out()
            undo.pop_all()
        return cls(settings, stack)

    def close(self) -> None:
        """Stop the stack if it was started here; otherwise leave it running."""
        if self._stack is not None:
            self._stack.__exit__(None, None, None)
            self._stack = None

    def send(self, trip: Mapping[str, Any], wait_s: float = 5.0) -> dict[str, Any]:
        """Send one trip and wait for its score.

        Parameters
        ----------
        trip : fields in the TLC's spelling or snake_case; at least miles, fare and minutes. wait_s : seconds.

        Returns
        -------
        dict
            The API's answer (a score and its reasons, or `status` "accepted" where none came in time) and `took_ms`.

        Raises
        ------
        ServiceError
            If the API cannot be reached or refuses the trip; the message is the API's own.
        """
        address = urllib.parse.urlsplit(self.url)
        headers = {"Content-Type": "application/json", "Prefer": f"wait={wait_s:g}", **authorization(self.settings)}
        started = time.perf_counter()
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=wait_s + 5)
        with contextlib.closing(connection):
            try:
                connection.request("POST", "/transaction", orjson.dumps(dict(trip)), headers)
                response = connection.getresponse()
                answer: dict[str, Any] = orjson.loads(response.read())
            except (OSError, http.client.HTTPException, orjson.JSONDecodeError) as err:
                raise ServiceError(f"{self.url} did not answer ({err}); is the stack still running?") from err
        if response.status not in (200, 202):
            raise ServiceError(f"{self.url} refused the trip: {answer.get('detail', response.status)}")
        return {**answer, "took_ms": 1000 * (time.perf_counter() - started)}

    def stream(
        self, data_dir: str | Path, rate: float, fraud_share: float, seed: int, most: int | None = None
    ) -> "Stream":
        """Start to send the trips of a folder, with planted fraud, and to watch what comes of them; see `Stream`."""
        return Stream(self, paths.resolve(data_dir), rate, fraud_share, seed, most)


class Stream(Tally):
    """Trips on their way, as a context manager; leaving it stops the sending and waits for what is outstanding.

    Parameters
    ----------
    session : the stack. folder : trips. rate : trips a second. fraud_share : share planted. seed : of the planting.
    most : trips sent; None: round and round until the end.
    """

    def __init__(
        self, session: Session, folder: Path, rate: float, fraud_share: float, seed: int, most: int | None = None
    ) -> None:
        super().__init__(f"live-{secrets.token_hex(3)}-")
        self._settings = session.settings
        waves = sample_waves(folder, fraud_share, seed, self.prefix)
        waves = waves if most is None else first(waves, most)
        self._traffic = Traffic(waves, session.url, rate, self, authorization(session.settings))
        self._alerts: deque[Mapping[str, Any]] = deque(maxlen=LATEST_ALERTS)
        self._points: list[tuple[int, float, float, float, bool, bool]] = []
        self._ready, self._done = Event(), Event()
        self._watcher = Thread(target=self._watch, name="watcher", daemon=True)
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        self._watcher.start()
        self._ready.wait(OUTSTANDING_SECONDS)
        self._started = time.perf_counter()
        self._traffic.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._traffic.stopping.set()
        self._traffic.join(OUTSTANDING_SECONDS)
        end = time.monotonic() + OUTSTANDING_SECONDS
        while time.monotonic() < end and self.lost and self._watcher.is_alive():
            time.sleep(0.05)
        self._done.set()
        self._watcher.join(OUTSTANDING_SECONDS)

    def every(self, step_s: float, seconds: float = math.inf) -> Iterator[pd.DataFrame]:
        """What was scored so far, again after each step; ends once all that is sent is scored, or after `seconds`.

        Raises
        ------
        Exception
            What broke off the sending or the reading.
        """
        end = self._started + seconds
        is_over = False
        while not is_over:
            time.sleep(min(step_s, max(0.0, end - time.perf_counter())))
            is_over = time.perf_counter() >= end or not (self._traffic.is_alive() or self.lost)
            if failure := self._traffic.error or self._error:
                raise failure
            yield self.scores()

    def scores(self) -> pd.DataFrame:
        """A row for each score, in the order sent: trip (0, 1, ...), second (since the start), latency_ms,
        anomaly_score, is_flagged, is_planted.
        """
        kinds = {"trip": int, "second": float, "latency_ms": float, "anomaly_score": float}
        kinds |= {"is_flagged": bool, "is_planted": bool}
        return pd.DataFrame(sorted(self._points[:]), columns=pd.Index(list(kinds))).astype(kinds)

    def latest_alerts(self, n: int) -> pd.DataFrame:
        """Alerts on the trips sent last, the newest first: amounts, score, reasons in words, and what was planted."""
        lines = []
        # Partitions hand their alerts over in turns: by the trips' order the table is the same for the same stream.
        newest = sorted(self._alerts, key=lambda alert: self._number(alert["transaction_id"]), reverse=True)
        for alert in newest[:n]:
            trip = alert.get("transaction", {})
            lines.append(
                {
                    "total, USD": trip.get("total_amount", np.nan),
                    "miles": trip.get("trip_distance", np.nan),
                    "score": alert["anomaly_score"],
                    "reasons": "; ".join(map(in_words, alert["reasons"])),
                    "planted": self.kinds.get(alert["transaction_id"], "nothing"),
                }
            )
        return pd.DataFrame(lines)

    def score(self, message: Mapping[str, Any], now: float) -> None:
        """Note a score, and when it came."""
        trip_id = message["transaction_id"]
        trip = self._waiting.get(trip_id)
        if trip is not None:
            since, took = now - self._started, 1000 * (now - trip.sent_at)
            flags = (bool(message["is_flagged"]), trip.kind is not None)
            self._points.append((self._number(trip_id), since, took, float(message["anomaly_score"]), *flags))
        # Counted last: where nothing is outstanding any more, every point is there.
        super().score(message, now)

    def _number(self, trip_id: str) -> int:
        return int(trip_id.removeprefix(self.prefix))

    def _mine(self, alert: Mapping[str, Any]) -> None:
        if alert["transaction_id"].startswith(self.prefix):
            self._alerts.append(alert)

    def _watch(self) -> None:
        try:
            asyncio.run(self._read())
        except Exception as err:
            self._error = err

    async def _read(self) -> None:
        reader = Reader(self._settings, self, self._mine)
        await reader.consumer.start()
        try:
            self._ready.set()
            while not self._done.is_set():
                await reader.read()
            # Alerts lie in another topic than the scores: an empty read follows the last of them, unless others send.
            for _ in range(LAST_READS):
                if not await reader.read(0.3):
                    break
        finally:
            await reader.consumer.stop()
