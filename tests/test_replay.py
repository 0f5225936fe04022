"""Replay: records keep their values, the rate holds, nothing is given up while the other side asks to come again."""

import asyncio
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer

from fraudlib import fraud, paths, simulate, trips
from fraudlib.demo import replay
from fraudlib.demo.senders import HttpSender, TopicSender
from fraudlib.demo.stack import Stack, free_port
from fraudlib.errors import ParameterError, ServiceError
from fraudlib.schema import TOPIC_TRANSACTIONS
from fraudlib.settings import Settings
from fraudlib.wire import records

SAMPLE = paths.root() / "data/sample/green_tripdata_2023-05.parquet"
TRIP = b'{"trip_distance":1.0,"fare_amount":5.0,"duration_minutes":5.0}'

Reply = tuple[int, dict[str, str], Any]
Respond = Callable[[str, list[dict[str, Any]]], Reply]


@contextmanager
def server(respond: Respond) -> Iterator[str]:
    """A local HTTP server that answers with what `respond(path, records)` returns; None closes the connection."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, content = respond(self.path, [json.loads(line) for line in body.splitlines()])
            if content is None:
                self.close_connection = True
                return
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


def accepted(path: str, items: list[dict[str, Any]]) -> Reply:
    """The API's answer when all is well."""
    if path == "/transaction":
        return 202, {}, {"transaction_id": "x", "status": "accepted"}
    return 202, {}, {"accepted": len(items), "failed": 0, "results": [{"status": "accepted"} for _ in items]}


def ids(n: int) -> list[str]:
    """Ids of n trips."""
    return [f"t-{i}" for i in range(n)]


def test_records_come_back_as_the_trips_that_they_were() -> None:
    """Every number, time, code, service and null of the sample survives the way into JSON and back."""
    columns = trips.to_columns(trips.read(SAMPLE).slice(0, 3000))
    encoded = replay.encode(columns, ids(3000))
    decoded = records.decode(encoded)
    assert decoded.rejected == {}
    assert decoded.transaction_ids == ids(3000)
    for name, column in decoded.columns.items():
        np.testing.assert_array_equal(column, columns[name], err_msg=name)
    lost = [name for name, column in columns.items() if name not in decoded.columns and np.any(column == column)]
    assert lost == []
    assert b"null" not in b"".join(encoded)


def test_whole_codes_are_written_as_integers() -> None:
    """A code is 1 in JSON, not 1.0; a missing one is left out."""
    record = json.loads(replay.encode({"rate_code_id": np.array([1.0, np.nan])}, ids(2))[0])
    assert record == {"transaction_id": "t-0", "rate_code_id": 1}
    assert isinstance(record["rate_code_id"], int)


def test_a_busy_api_is_asked_again_after_the_time_that_it_names() -> None:
    """503 with Retry-After: everything is sent again, after that time, under the same ids."""
    seen: list[tuple[float, list[str]]] = []

    def respond(path: str, items: list[dict[str, Any]]) -> Reply:
        seen.append((time.monotonic(), [item["transaction_id"] for item in items]))
        return (503, {"Retry-After": "1"}, {"detail": "busy"}) if len(seen) == 1 else accepted(path, items)

    with server(respond) as url, HttpSender(url) as sender:
        answer = sender.send(ids(3), replay.encode({"fare_amount": np.ones(3)}, ids(3)))
    assert sorted(answer.accepted) == [0, 1, 2]
    assert seen[0][1] == seen[1][1] == ids(3)
    assert seen[1][0] - seen[0][0] >= 1.0
    assert sender.retries == 1


def test_only_what_was_not_taken_is_sent_again_and_what_is_invalid_never() -> None:
    """Results count item by item."""
    sent: list[list[str]] = []

    def respond(path: str, items: list[dict[str, Any]]) -> Reply:
        sent.append([item["transaction_id"] for item in items])
        if len(sent) > 1:
            return accepted(path, items)
        statuses = ("accepted", "invalid", "not-sent", "outcome-unknown")
        results = [{"status": status, "error": "fare_amount: missing"} for status in statuses]
        return 207, {"Retry-After": "0"}, {"accepted": 1, "failed": 3, "results": results}

    with server(respond) as url, HttpSender(url) as sender:
        answer = sender.send(ids(4), replay.encode({"fare_amount": np.ones(4)}, ids(4)))
    assert sent == [ids(4), ["t-2", "t-3"]]
    assert sorted(answer.accepted) == [0, 2, 3]
    assert answer.refused == {1: "fare_amount: missing"}


def test_a_single_refused_transaction_is_not_sent_again() -> None:
    """422 for one transaction is final, with the API's reason."""
    with server(lambda path, items: (422, {}, {"detail": "not a record"})) as url, HttpSender(url) as sender:
        assert sender.send(["t-0"], [TRIP]).refused == {0: "not a record"}
        assert sender.retries == 0


def test_a_dropped_connection_is_taken_up_again() -> None:
    """A restart of the API in the middle costs a retry and no trip."""
    count = itertools.count()

    def respond(path: str, items: list[dict[str, Any]]) -> Reply:
        return (0, {}, None) if next(count) == 1 else accepted(path, items)

    with server(respond) as url, HttpSender(url) as sender:
        for _ in range(3):
            assert sender.send(["t-0"], [TRIP]).accepted == [0]
    assert sender.retries == 1


def test_patience_ends_with_a_sentence() -> None:
    """An API that stays busy is given up on, and the message says what it last said."""
    busy = (503, {"Retry-After": "1"}, {"detail": "the broker does not answer"})
    with server(lambda path, items: busy) as url, HttpSender(url, patience_s=1.5) as sender:  # noqa: SIM117
        with pytest.raises(ServiceError, match="answered 503: the broker does not answer; gave up"):
            sender.send(["t-0"], [TRIP])
    assert sender.retries == 1


@pytest.mark.parametrize(
    ("status", "content"), [(404, {"detail": "Not Found"}), (200, {"results": []}), (202, b"<html>"), (202, [1])]
)
def test_another_server_is_not_taken_for_the_api(status: int, content: object) -> None:
    """What is not this project's API is said so at once."""
    with server(lambda path, items: (status, {}, content)) as url, HttpSender(url) as sender:  # noqa: SIM117
        with pytest.raises(ServiceError, match="not this project's API"):
            sender.send(["t-0"], [TRIP])


def test_nothing_listening_is_said_at_once() -> None:
    """No API at all: no waiting, the address and what to do."""
    with HttpSender(f"http://127.0.0.1:{free_port()}") as sender, pytest.raises(ServiceError, match="fraudlib api"):
        sender.send(["t-0"], [TRIP])


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://127.0.0.1", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """--to takes http and https addresses only."""
    with pytest.raises(ParameterError, match="http://127"):
        HttpSender(url)


def test_the_rate_holds_and_the_limit_ends() -> None:
    """300 trips at 600 a second take half a second, in steps, under ids FILE-ROW."""
    seen: list[str] = []

    def respond(path: str, items: list[dict[str, Any]]) -> Reply:
        seen.extend(item["transaction_id"] for item in items)
        return accepted(path, items)

    steps: list[int] = []
    with server(respond) as url, HttpSender(url) as sender:
        summary = replay.replay(replay.Plan(SAMPLE, rate=600, limit=300), sender, steps.append)
    assert seen == [f"green_tripdata_2023-05-{i}" for i in range(300)]
    assert (summary.sent, summary.accepted, summary.simulated) == (300, 300, True)
    assert 0.44 < summary.seconds < 1.5
    assert len(steps) == 10
    assert "300 simulated trips sent" in str(summary)


def test_planted_fraud_keeps_its_share_also_in_short_inputs() -> None:
    """--fraud plants about the share asked for, the same for the same seed, and nothing where it rounds to none."""
    columns = trips.to_columns(trips.read(SAMPLE).slice(0, 5000))
    for rows, share, most in ((5000, 0.02, 100), (200, 0.01, 2), (10, 0.01, 0)):
        part = {name: column[:rows] for name, column in columns.items()}
        planted, kinds = replay.plant(part, share, 3)
        # Each kind gets a whole number of trips.
        assert sum(map(bool, kinds)) <= most + len(fraud.LISTED) / 2 * (most > 15)
        assert (sum(map(bool, kinds)) > 0) == (most > 0)
        assert set(kinds) <= {"", *fraud.LISTED}
        assert kinds == replay.plant(part, share, 3)[1]
        honest = np.array(kinds) == ""
        np.testing.assert_array_equal(planted["total_amount"][honest], part["total_amount"][honest])


def test_repeating_sends_other_transactions_and_other_frauds(tmp_path: Path) -> None:
    """A second round, and a second start, has new ids; the frauds are planted anew, and the limit counts all rounds."""
    month = tmp_path / "month.parquet"
    simulate.write(simulate.simulate_month("2023-05", "green", 1000, 3), month)
    plan = replay.Plan(month, limit=2500, fraud=0.02, repeat=True)
    first, again = ([*replay.waves(plan)] for _ in range(2))
    assert [len(wave) for wave in first] == [1000, 1000, 500]
    assert len({i for wave in (*first, *again) for i in wave.ids}) == 5000
    assert first[0].kinds != first[1].kinds


def test_ctrl_c_ends_a_replay_with_its_summary() -> None:
    """What was sent so far is counted."""

    def progress(count: int) -> None:
        raise KeyboardInterrupt

    with server(accepted) as url, HttpSender(url) as sender:
        summary = replay.replay(replay.Plan(SAMPLE, rate=0, limit=5000), sender, progress)
    assert summary.interrupted
    assert summary.sent == 1000
    assert str(summary).startswith("interrupted: 1,000")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The real broker and the real API."""
    broker, api = free_port(), free_port()
    with Stack(
        Settings(broker_port=broker, api_port=api, kafka_bootstrap_servers=f"127.0.0.1:{broker}"),
        tmp_path_factory.mktemp("logs"),
    ) as running:
        assert [name for name, _ in running.start("broker", "api")] == ["broker", "api"]
        yield running


def messages(settings: Settings) -> dict[str, dict[str, Any]]:
    """Everything on the topic `transactions`, by key."""

    async def read() -> dict[str, dict[str, Any]]:
        consumer = AIOKafkaConsumer(
            TOPIC_TRANSACTIONS,
            bootstrap_servers=settings.kafka_bootstrap_servers,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=20,
        )
        await consumer.start()
        found: dict[str, dict[str, Any]] = {}
        try:
            while polled := await consumer.getmany(timeout_ms=500):
                for batch in polled.values():
                    found |= {m.key.decode(): json.loads(m.value) for m in batch}
        finally:
            await consumer.stop()
        return found

    return asyncio.run(read())


def test_a_month_goes_through_the_api_or_straight_to_the_topic(stack: Stack) -> None:
    """Both ways end on the topic under the same keys with the same values."""
    plan = replay.Plan(SAMPLE, rate=0, limit=2500)
    with HttpSender(stack.url) as over_http:
        first = replay.replay(plan, over_http, lambda count: None)
    via_api = messages(stack.settings)
    assert (first.sent, first.accepted, len(via_api)) == (2500, 2500, 2500)
    other = replay.Plan(SAMPLE, rate=0, limit=10, fraud=0.2)
    with TopicSender(stack.settings) as straight:
        second = replay.replay(other, straight, lambda count: None)
    assert (second.accepted, second.planted) == (10, 2)
    both = messages(stack.settings)
    assert set(both) == set(via_api)
    changed = [key for key in both if both[key].get("accepted_at") != via_api[key].get("accepted_at")]
    assert sorted(changed) == sorted(f"green_tripdata_2023-05-{i}" for i in range(10))


def test_a_broker_that_is_away_is_a_sentence() -> None:
    """--topic without a broker says what to start or set."""
    settings = Settings(kafka_bootstrap_servers=f"127.0.0.1:{free_port()}")
    with pytest.raises(ServiceError, match="FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS"), TopicSender(settings):
        pass


def test_a_service_that_does_not_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    """A port that is taken after the check: the error carries the service's own sentence."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        # The probe would find the stranger's socket, so the API is what fails here: its port is taken.
        settings = Settings(broker_port=free_port(), api_port=taken.getsockname()[1])
        with Stack(settings, tmp_path) as stack, pytest.raises(ServiceError, match="FRAUDLIB_API_PORT"):
            list(stack.start("api"))
