"""Where replayed transactions go: the API or the topic. Both keep trying while the other side is busy or away."""

import asyncio
import http.client
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Final, Protocol, Self

import orjson
from aiokafka.errors import KafkaError

from fraudlib.errors import ParameterError, ServiceError
from fraudlib.schema import TOPIC_TRANSACTIONS
from fraudlib.settings import Settings
from fraudlib.wire.credentials import no_broker
from fraudlib.wire.kafka import NotSentError, OutcomeUnknownError, Publisher, Row, partitions_of

MOST_PER_SEND: Final = 1000
TIMEOUT_SECONDS: Final = 30.0
PATIENCE_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 30.0
COME_AGAIN: Final = (408, 429, 503, 504)


@dataclass
class Answer:
    """What became of one batch.

    Attributes
    ----------
    accepted : positions. refused : position -> why.
    are_ids_kept : whether the other side goes on with the ids that it was given.
    """

    accepted: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    are_ids_kept: bool = True


class Sender(Protocol):
    """Where transactions go, as a context manager; `retries` counts the sends that had to be repeated."""

    retries: int

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def send(self, ids: Sequence[str], records: Sequence[bytes]) -> Answer:
        """Send JSON records with their ids; returns once each is acknowledged or refused."""
        ...


class _ComeAgainError(Exception):
    """Not everything was taken; worth another try after `seconds`."""

    def __init__(self, why: str, seconds: float = RETRY_SECONDS) -> None:
        super().__init__(why)
        self.seconds = seconds


class _Patient(ABC):
    """Sends again what was not taken, until the other side has been away for too long.

    Parameters
    ----------
    stop : ends a wait early, and the tries with it.
    patience_s : longest time without anything being taken, in seconds.
    on_wait : told why before each wait.
    """

    def __init__(
        self,
        stop: Event | None = None,
        patience_s: float = PATIENCE_SECONDS,
        on_wait: Callable[[str], object] = lambda why: None,
    ) -> None:
        self.retries = 0
        self._stop = stop or Event()
        self._patience_s = patience_s
        self._on_wait = on_wait

    def send(self, ids: Sequence[str], records: Sequence[bytes]) -> Answer:
        """Send JSON records with their ids; returns once each is acknowledged or refused.

        Raises
        ------
        ServiceError
            If the other side stayed away for too long, or is not what it should be.
        """
        answer = Answer()
        end = time.monotonic() + self._patience_s
        while pending := sorted({*range(len(ids))} - {*answer.accepted, *answer.refused}):
            known = len(ids) - len(pending)
            try:
                self._try(ids, records, pending, answer)
            except _ComeAgainError as err:
                if len(answer.accepted) + len(answer.refused) > known:
                    end = time.monotonic() + self._patience_s
                self._wait(err, end)
        return answer

    def _wait(self, err: _ComeAgainError, end: float) -> None:
        if time.monotonic() + err.seconds > end:
            raise ServiceError(f"{err}; gave up after {self._patience_s:.0f} s, see the log of the service") from err
        self.retries += 1
        self._on_wait(str(err))
        if self._stop.wait(err.seconds):
            raise ServiceError(f"{err}; stopped before it could be sent again") from err

    @abstractmethod
    def _try(self, ids: Sequence[str], records: Sequence[bytes], pending: list[int], answer: Answer) -> None:
        """One try with what is pending; _ComeAgainError where some of it is to be sent again."""


class HttpSender(_Patient):
    """Sends by POST /transactions, a single transaction by POST /transaction, on one connection.

    Parameters
    ----------
    url : address of the API, such as http://127.0.0.1:8000.
    headers : sent with every request, such as those of `fraudlib.api.keys.authorization`.

    Raises
    ------
    ParameterError
        If the address is no http or https one.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, **patience: Any) -> None:
        super().__init__(**patience)
        self.url = url.rstrip("/")
        wrong = ParameterError(f"expected an address such as http://127.0.0.1:8000, found {url!r}; correct it")
        try:
            parts = urllib.parse.urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError as err:
            raise wrong from err
        if parts.scheme not in ("http", "https") or not host:
            raise wrong
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(host, port, timeout=TIMEOUT_SECONDS)
        self._path, self._headers = parts.path, dict(headers or {})
        self._met = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def _try(self, ids: Sequence[str], records: Sequence[bytes], pending: list[int], answer: Answer) -> None:
        if len(pending) == 1:
            status, retry, content = self._post("/transaction", "application/json", records[pending[0]])
            item = "accepted" if status == 202 else "invalid" if status in (400, 413, 422) else "not-sent"
            why = content.get("detail", f"HTTP {status}")
            results = [{"status": item, "error": why, "transaction_id": content.get("transaction_id")}]
        else:
            body = b"\n".join([records[i] for i in pending])
            status, retry, content = self._post("/transactions", "application/x-ndjson", body)
            results = content.get("results", [])
        if not results and status not in COME_AGAIN:
            raise ServiceError(f"{self.url} answered {status}: {content.get('detail', 'no reason given')}")
        for place, result in zip(pending, results, strict=False):
            if result["status"] == "accepted":
                answer.accepted.append(place)
                answer.are_ids_kept &= result.get("transaction_id") == ids[place]
            elif result["status"] == "invalid":
                answer.refused[place] = result["error"]
        if len(answer.accepted) + len(answer.refused) < len(ids):
            raise _ComeAgainError(f"{self.url} answered {status}: {content.get('detail', 'not all was taken')}", retry)

    def _post(self, path: str, media: str, body: bytes) -> tuple[int, float, dict[str, Any]]:
        """Status, seconds after which to come again, and the JSON object of the answer."""
        try:
            self._connection.request("POST", self._path + path, body, {"Content-Type": media, **self._headers})
            response = self._connection.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException) as err:
            self._connection.close()
            why = f"{self.url} cannot be reached ({err or type(err).__name__})"
            if not self._met:
                raise ServiceError(f"{why}; start it with `fraudlib api` or name another with --to") from err
            raise _ComeAgainError(why) from err
        self._met = True
        try:
            content = orjson.loads(raw)
        except orjson.JSONDecodeError:
            content = None
        if response.status == 401:
            raise ServiceError(f"{self.url} asks for an API key; name the file of yours in FRAUDLIB_API_KEY_FILE")
        if response.status == 403 and isinstance(content, dict):
            raise ServiceError(f"{self.url}: {content.get('detail')}; name its file in FRAUDLIB_API_KEY_FILE")
        if not isinstance(content, dict) or response.status not in (202, 207, 400, 413, 422, *COME_AGAIN):
            raise ServiceError(f"{self.url}{path} answered {response.status}, which is not this project's API")
        retry = response.headers.get("Retry-After", "")
        seconds = float(retry) if retry.isdigit() else RETRY_SECONDS
        return response.status, min(seconds, LONGEST_RETRY_SECONDS), content


class TopicSender(_Patient):
    """Sends straight to the topic `transactions`, past the API and its checks."""

    def __init__(self, settings: Settings, **patience: Any) -> None:
        super().__init__(**patience)
        self._settings = settings
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.__enter__()
        try:
            self._publisher = self._runner.run(self._connect())
        except KafkaError as err:
            error = self._runner.run(no_broker(self._settings))
            self._runner.close()
            raise error from err
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.run(self._publisher.stop())
        self._runner.close()

    async def _connect(self) -> Publisher:
        publisher = Publisher(self._settings)
        await publisher.start()
        return publisher

    def _try(self, ids: Sequence[str], records: Sequence[bytes], pending: list[int], answer: Answer) -> None:
        self._runner.run(self._publish(ids, records, pending, answer))

    async def _publish(self, ids: Sequence[str], records: Sequence[bytes], pending: list[int], answer: Answer) -> None:
        try:
            if self._publisher.broken.is_set():
                await self._publisher.stop()
                await self._publisher.start()
            count = await self._publisher.partitions(TOPIC_TRANSACTIONS)
        except (KafkaError, NotSentError) as err:
            raise _ComeAgainError(f"the broker does not answer ({err})") from err
        groups: dict[int, list[int]] = {}
        numbers = partitions_of([ids[i].encode() for i in pending], count).tolist()
        for number, place in zip(numbers, pending, strict=True):
            groups.setdefault(number, []).append(place)
        sends = [self._send_partition(number, group, ids, records, answer) for number, group in groups.items()]
        await asyncio.gather(*sends)
        if len(answer.accepted) < len(ids):
            raise _ComeAgainError("the broker did not acknowledge everything")

    async def _send_partition(
        self, number: int, group: list[int], ids: Sequence[str], records: Sequence[bytes], answer: Answer
    ) -> None:
        rows: list[Row] = [(ids[i].encode(), records[i], []) for i in group]
        try:
            await self._publisher.send_rows(TOPIC_TRANSACTIONS, number, rows)
            answer.accepted.extend(group)
        except (NotSentError, OutcomeUnknownError) as err:
            answer.accepted.extend(group[: err.acknowledged])
