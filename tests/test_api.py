"""The HTTP API: what it takes, what it refuses and how, and what it says when the broker fails it."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Response
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from fraudlib.api import gate, pages
from fraudlib.api.app import create_app
from fraudlib.api.feeds import AlertFeed
from fraudlib.api.gate import Gate
from fraudlib.api.idempotency import Answers
from fraudlib.api.problems import Problem
from fraudlib.settings import Settings
from fraudlib.telemetry import ApiMetrics
from fraudlib.wire.kafka import NotSentError, OutcomeUnknownError, Row

TRIP = {"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}
NDJSON = {"content-type": "application/x-ndjson"}
JSON = {"content-type": "application/json"}


class Broker:
    """Stands in for the publisher of a connected API: keeps what it gets, or fails as told."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes | None, bytes | None]] = []
        self.error: NotSentError | OutcomeUnknownError | None = None
        self.seconds = 0.0

    async def partitions(self, topic: str) -> int:
        """Always 4."""
        return 4

    async def send(self, topic: str, key: bytes, value: bytes) -> None:
        """Keep one message, after a while."""
        await asyncio.sleep(self.seconds)
        if self.error:
            raise self.error
        self.messages.append((topic, key, value))

    async def send_rows(self, topic: str, partition: int, rows: list[Row]) -> None:
        """Keep rows; on failure, the first one is kept."""
        taken = 1 if self.error else len(rows)
        self.messages += [(topic, key, value) for key, value, _ in rows[:taken]]
        if self.error:
            error = type(self.error)(str(self.error))
            error.acknowledged = taken
            raise error


async def ask(
    app: Any,
    receive: Any,
    path: str = "/transaction",
    headers: dict[str, str] | None = None,
    answered: dict[str, str] | None = None,
) -> Any:
    """Status and JSON of one POST, straight to an ASGI app; `answered` takes the answer's headers."""
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "root_path": "", "headers": raw}
    statuses, body = [], b""
    if answered is None:
        answered = {}

    async def send(message: Any) -> None:
        nonlocal body
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
            answered.update({name.decode(): value.decode() for name, value in message["headers"]})
        body += message.get("body", b"")

    await app(scope, receive, send)
    return statuses[0], json.loads(body or b"null")


@pytest.fixture
def broker() -> Broker:
    """A broker that takes everything."""
    return Broker()


@pytest.fixture
def client(broker: Broker) -> TestClient:
    """The app with that broker, without its background tasks."""
    app = create_app(Settings(max_body_bytes=4096, max_batch_body_bytes=200_000))
    app.state.services.link.publisher, app.state.services.link.is_up = broker, True
    return TestClient(app, raise_server_exceptions=False)


def sent(broker: Broker) -> list[dict[str, Any]]:
    """Transactions that the broker got."""
    return [json.loads(value or b"") for topic, _, value in broker.messages if topic == "transactions"]


def is_problem(response: Any, status: int, kind: str) -> bool:
    """Whether the response is an RFC 9457 problem of that status and type."""
    body = response.json()
    return (
        response.headers["content-type"] == "application/problem+json"
        and (response.status_code, body["status"]) == (status, status)
        and body["type"] == f"urn:fraudlib:problem:{kind}"
        and bool(body["title"] and body["detail"])
    )


# -- one transaction --------------------------------------------------------------------------------------------------


def test_a_transaction_is_accepted_once_the_broker_has_it(client: TestClient, broker: Broker) -> None:
    """202 with an identity; the message has canonical names, the identity as key, and a stamp."""
    trip = TRIP | {"PULocationID": 74, "lpep_pickup_datetime": "2023-03-01T17:00:00Z"}
    response = client.post("/transaction", json=trip)
    assert response.status_code == 202
    assert response.json()["status"] == "accepted"
    ((_, key, _),) = broker.messages
    (message,) = sent(broker)
    assert key == message["transaction_id"].encode() == response.json()["transaction_id"].encode()
    assert message["pickup_location_id"] == 74
    assert (message["pickup_datetime"], message["service"]) == ("2023-03-01T12:00:00", "green")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", message["accepted_at"])


def test_the_client_may_name_the_transaction(client: TestClient, broker: Broker) -> None:
    """By a field or by Idempotency-Key; two different names are refused."""
    assert client.post("/transaction", json=TRIP | {"transaction_id": "a"}).json()["transaction_id"] == "a"
    named = client.post("/transaction", json=TRIP, headers={"Idempotency-Key": '"b"'})
    assert named.json()["transaction_id"] == "b"
    both = client.post("/transaction", json=TRIP | {"transaction_id": "a"}, headers={"Idempotency-Key": "c"})
    assert is_problem(both, 422, "invalid-transaction")
    bad = client.post("/transaction", json=TRIP, headers={"Idempotency-Key": "d e"})
    assert is_problem(bad, 400, "malformed-request")
    assert len(broker.messages) == 2


def test_unknown_fields_are_left_out_and_named(client: TestClient, broker: Broker) -> None:
    """A misspelt optional field does not vanish silently, and nothing unknown reaches the log."""
    response = client.post("/transaction", json=TRIP | {"tipp": 3, "<b>": 1})
    assert response.json()["ignored"] == ["tipp"]
    assert set(sent(broker)[0]) == {*TRIP, "transaction_id", "accepted_at"}


@pytest.mark.parametrize("odd", [{"fare_amount": -9}, {"trip_distance": 0, "fare_amount": 4e5}, {"tip_amount": None}])
def test_a_strange_trip_is_accepted(client: TestClient, odd: dict[str, Any]) -> None:
    """Suspicion is for the model."""
    assert client.post("/transaction", json=TRIP | odd).status_code == 202


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b'{"trip_distance": NaN, "fare_amount": 1, "duration_minutes": 1}', 400, "malformed-request"),
        (b'{"trip_distance": 1e999, "fare_amount": 1, "duration_minutes": 1}', 400, "malformed-request"),
        (b"hello-canary", 400, "malformed-request"),
        (b"", 400, "malformed-request"),
        (b"[" * 3000, 400, "malformed-request"),
        (b'{"a": "\\ud800"}', 400, "malformed-request"),
        (b'{"a": "\xff"}', 400, "malformed-request"),
        ('{"a": 1}'.encode("utf-16"), 400, "malformed-request"),
        (b'{"fare_amount": 1, "fare_amount": 2, "trip_distance": 1, "duration_minutes": 1}', 400, "malformed-request"),
        (b"[1]", 422, "invalid-transaction"),
        (b"null", 422, "invalid-transaction"),
        (b'{"trip_distance": 1}', 422, "invalid-transaction"),
        (b'{"trip_distance": "canary", "fare_amount": 1, "duration_minutes": 1}', 422, "invalid-transaction"),
        (b'{"trip_distance": true, "fare_amount": 1, "duration_minutes": 1}', 422, "invalid-transaction"),
        (b'{"trip_distance": "12.5", "fare_amount": 1, "duration_minutes": 1}', 422, "invalid-transaction"),
        (
            b'{"fare_amount": 1, "trip_distance": 1, "duration_minutes": 1, "pickup_datetime": "canary"}',
            422,
            "invalid-transaction",
        ),
        (
            b'{"fare_amount": 1, "trip_distance": 1, "duration_minutes": 1, "transaction_id": "a\\u0000"}',
            422,
            "invalid-transaction",
        ),
        (b'{"x": "' + b"y" * 5000 + b'"}', 413, "too-large"),
    ],
)
def test_what_cannot_be_a_record_is_a_problem(
    client: TestClient, broker: Broker, body: bytes, status: int, kind: str
) -> None:
    """Bad input is a 4xx in RFC 9457's form that repeats nothing of the input."""
    response = client.post("/transaction", content=body, headers=JSON)
    assert is_problem(response, status, kind), response.text
    assert "canary" not in response.text
    assert broker.messages == []


def test_every_field_at_fault_is_named(client: TestClient) -> None:
    """One answer lists all that is to be put right."""
    errors = client.post("/transaction", json={"trip_distance": "x", "tip_amount": False}).json()["errors"]
    assert {e["field"] for e in errors} == {"trip_distance", "fare_amount", "duration_minutes", "tip_amount"}


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16"]
)
def test_another_media_type_is_refused(client: TestClient, kind: str | None) -> None:
    """Only JSON in UTF-8 is read, and a browser's form is not."""
    response = client.post(
        "/transaction", content=json.dumps(TRIP).encode(), headers={"content-type": kind} if kind else {}
    )
    assert is_problem(response, 415, "unsupported-media-type")


def test_other_addresses_and_methods_are_problems(client: TestClient) -> None:
    """404 and 405 have the same form as every other error."""
    assert is_problem(client.get("/nothing-canary"), 404, "not-found")
    assert is_problem(client.put("/transaction"), 405, "method-not-allowed")
    assert is_problem(client.get("/alerts?recent=canary"), 422, "invalid-request")


def test_a_failure_of_ones_own_is_a_problem_too(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is answered in the same form, without its message."""
    monkeypatch.setattr("fraudlib.api.submission.prepare", lambda *_: 1 / 0)
    response = client.post("/transaction", json=TRIP)
    assert is_problem(response, 500, "internal-error")
    assert "division" not in response.text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=40),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=4)),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from([*TRIP, "PULocationID", "transaction_id", "x"]), inner, max_size=5)
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_no_body_breaks_the_api(client: TestClient, body: bytes) -> None:
    """Whatever comes is accepted or refused; nothing is a failure."""
    for path, headers in (
        ("/transaction", JSON),
        ("/transactions", JSON),
        ("/transactions", NDJSON),
        ("/labels", JSON),
    ):
        assert client.post(path, content=body, headers=headers).status_code in (202, 207, 400, 422)


# -- when the broker fails --------------------------------------------------------------------------------------------


def test_without_a_broker_nothing_is_taken(client: TestClient) -> None:
    """503 at once, with Retry-After; alive all the same, and not ready."""
    client.app.state.services.link.is_up = False  # type: ignore[attr-defined]
    for path in ("/transaction", "/transactions"):
        response = client.post(path, json=TRIP)
        assert is_problem(response, 503, "not-sent")
        assert int(response.headers["retry-after"]) > 0
    assert is_problem(client.get("/readyz"), 503, "not-sent")
    assert client.get("/healthz").status_code == 200


def test_not_sent_and_unknown_are_told_apart(client: TestClient, broker: Broker) -> None:
    """503 is safe to send again; 504 may be there already, and says so."""
    broker.error = NotSentError("the broker takes no more messages")
    response = client.post("/transaction", json=TRIP)
    assert is_problem(response, 503, "not-sent")
    assert response.headers["retry-after"]
    broker.error = OutcomeUnknownError("the broker did not acknowledge in time")
    assert is_problem(client.post("/transaction", json=TRIP), 504, "outcome-unknown")


def test_prefer_wait_without_a_score_is_accepted(client: TestClient) -> None:
    """Where no score comes in time, the transaction is accepted all the same."""
    client.app.state.services.scores._follows.set()  # type: ignore[attr-defined]
    response = client.post("/transaction", json=TRIP, headers={"Prefer": "respond-async, wait=0.05"})
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=0.05"
    assert client.app.state.services.scores._waiters == {}  # type: ignore[attr-defined]


def test_nothing_is_accepted_before_the_broker_has_it(client: TestClient, broker: Broker) -> None:
    """A wait shorter than the broker's acknowledgement does not turn an unknown outcome into a 202."""
    client.app.state.services.scores._follows.set()  # type: ignore[attr-defined]
    broker.seconds = 0.2
    assert client.post("/transaction", json=TRIP, headers={"Prefer": "wait=0.05"}).status_code == 202
    assert len(broker.messages) == 1
    broker.error = OutcomeUnknownError("the broker did not acknowledge in time")
    response = client.post("/transaction", json=TRIP, headers={"Prefer": "wait=0.05"})
    assert is_problem(response, 504, "outcome-unknown")


# -- Idempotency-Key --------------------------------------------------------------------------------------------------


def post_as(client: TestClient, key: str, body: dict[str, Any] = TRIP) -> Any:
    """Response to a transaction under an Idempotency-Key."""
    return client.post("/transaction", json=body, headers={"Idempotency-Key": key})


def test_the_same_request_again_gets_the_same_answer(client: TestClient, broker: Broker) -> None:
    """The first answer is given again and says so; nothing is sent twice."""
    first, again = post_as(client, "a"), post_as(client, "a")
    assert (first.status_code, first.content) == (again.status_code, again.content)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["content-type"] == "application/json"
    assert len(broker.messages) == 1


def test_a_key_is_of_one_body(client: TestClient, broker: Broker) -> None:
    """Another body under the same key is refused, and changes nothing of what is remembered."""
    post_as(client, "a")
    assert is_problem(post_as(client, "a", TRIP | {"tip_amount": 1}), 422, "idempotency-key-reused")
    assert post_as(client, "a").status_code == 202
    assert len(broker.messages) == 1


def test_what_was_not_taken_is_not_remembered(client: TestClient, broker: Broker) -> None:
    """After a refusal, of the input or by the broker, the key is free for another body."""
    assert post_as(client, "a", {"trip_distance": "x"}).status_code == 422
    broker.error = NotSentError("the broker takes no more messages")
    assert post_as(client, "a").status_code == 503
    broker.error = None
    assert post_as(client, "a", TRIP | {"tip_amount": 1}).status_code == 202


def test_after_an_unknown_outcome_the_same_request_is_sent_again(client: TestClient, broker: Broker) -> None:
    """Under the same identity, so that a reader sees one; another body is refused all the same."""
    broker.error = OutcomeUnknownError("the broker did not acknowledge in time")
    assert is_problem(post_as(client, "a"), 504, "outcome-unknown")
    broker.error = None
    assert is_problem(post_as(client, "a", TRIP | {"tip_amount": 1}), 422, "idempotency-key-reused")
    assert post_as(client, "a").json()["transaction_id"] == "a"
    assert post_as(client, "a").headers["idempotency-replayed"] == "true"
    assert [key for _, key, _ in broker.messages] == [b"a"]


def test_a_request_that_is_under_way_is_not_made_twice(broker: Broker) -> None:
    """409 with Retry-After while the first has no answer; afterwards its answer."""
    app = create_app(Settings())
    app.state.services.link.publisher, app.state.services.link.is_up = broker, True
    broker.seconds = 0.1

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(TRIP).encode(), "more_body": False}

    async def scenario() -> list[int]:
        headers = JSON | {"idempotency-key": "a"}
        first = asyncio.create_task(ask(app, receive, headers=headers))
        await asyncio.sleep(0.05)
        second = await ask(app, receive, headers=headers)
        return [(await first)[0], second[0], (await ask(app, receive, headers=headers))[0]]

    assert asyncio.run(scenario()) == [202, 409, 202]
    assert len(broker.messages) == 1


def test_only_so_many_keys_are_remembered_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used goes first, and each after its time; then the request is made anew."""
    made: list[str] = []

    def ask_once(answers: Answers, key: str) -> Response:
        async def make() -> Response:
            made.append(key)
            return Response(b"{}")

        return asyncio.run(answers.once(key, b"body", make))

    answers = Answers(Settings(idempotency_keys=2, idempotency_seconds=60))
    for key in "abacab":
        ask_once(answers, key)
    assert made == ["a", "b", "c", "b"]
    now = time.monotonic()
    monkeypatch.setattr("fraudlib.api.idempotency.time.monotonic", lambda: now + 61)
    ask_once(answers, "b")
    assert made[-2:] == ["b", "b"]
    assert len(answers._entries) == 2


def test_a_bulk_takes_no_key(client: TestClient, broker: Broker) -> None:
    """A promise that many transactions cannot keep is refused, not ignored."""
    assert is_problem(
        client.post("/transactions", json=[TRIP], headers={"Idempotency-Key": "a"}), 400, "malformed-request"
    )
    assert broker.messages == []


# -- when the workers lag ---------------------------------------------------------------------------------------------


def test_workers_that_lag_too_far_behind_close_the_door(client: TestClient, broker: Broker) -> None:
    """429 with Retry-After beyond the bound, for one and for many; a lag within it, or an unknown one, admits."""
    backlog = client.app.state.services.backlog  # type: ignore[attr-defined]
    for lag in (None, 1_000_000):
        backlog.lag = lag
        assert client.post("/transaction", json=TRIP).status_code == 202
    backlog.lag = 1_000_100
    for path in ("/transaction", "/transactions"):
        response = client.post(path, json=TRIP)
        assert is_problem(response, 429, "workers-behind")
        assert response.headers["retry-after"] == "30"
    backlog.lag = None
    assert post_as(client, "a").status_code == 202
    backlog.lag = 1_000_100
    assert post_as(client, "a").status_code == 202, "what was taken is answered as before"
    assert is_problem(post_as(client, "b"), 429, "workers-behind")
    backlog._speed = 40.0
    assert client.post("/transaction", json=TRIP).headers["retry-after"] == "3"
    assert client.post("/labels", json={"transaction_id": "a", "verdict": "fraud"}).status_code == 202
    assert len(sent(broker)) == 3


# -- many transactions ------------------------------------------------------------------------------------------------


def lines(*items: Any) -> bytes:
    """NDJSON of objects; bytes stay as they are."""
    return b"\n".join(item if isinstance(item, bytes) else json.dumps(item).encode() for item in items)


def test_many_transactions_are_accepted(client: TestClient, broker: Broker) -> None:
    """NDJSON and arrays alike; results in order, each with its identity."""
    trips = [TRIP | {"transaction_id": f"t{i}"} for i in range(2500)]
    body = client.post("/transactions", content=lines(*trips[:1200]) + b"\n\n", headers=NDJSON)
    assert body.status_code == 202
    assert [(r["index"], r["transaction_id"], r["status"]) for r in body.json()["results"]] == [
        (i, f"t{i}", "accepted") for i in range(1200)
    ]
    assert client.post("/transactions", json=trips[1200:]).json()["accepted"] == 1300
    assert {m["transaction_id"] for m in sent(broker)} == {t["transaction_id"] for t in trips}


def test_a_bad_item_sinks_no_other(client: TestClient, broker: Broker) -> None:
    """207, and the reason beside each item at fault."""
    bad = [{"trip_distance": "canary"}, b"{canary", b"[1]", b'{"fare": 1, "fare": 2}', TRIP | {"transaction_id": "a b"}]
    response = client.post("/transactions", content=lines(TRIP, *bad, TRIP), headers=NDJSON)
    assert response.status_code == 207
    results = response.json()["results"]
    assert [r["status"] for r in results] == ["accepted", *["invalid"] * 5, "accepted"]
    assert "trip_distance: expected a number, found text" in results[1]["error"]
    assert "canary" not in response.text
    assert len(sent(broker)) == 2
    array = client.post("/transactions", json=[TRIP, {"trip_distance": "x"}, 7])
    assert [r["status"] for r in array.json()["results"]] == ["accepted", "invalid", "invalid"]


def test_a_field_that_comes_twice_is_found_in_lines_and_arrays(client: TestClient, broker: Broker) -> None:
    """Parsers drop the first value silently; quotes and brackets inside texts do not hide it or look like it."""
    twice = b'{"fare_amount": 1, "fare_amount": 2, "trip_distance": 1, "duration_minutes": 1}'
    odd = TRIP | {"store_and_fwd_flag": '"{\\', "x": {"y": ["z"]}}
    for content, headers in (
        (lines(TRIP, twice, odd), NDJSON),
        (b"[" + b",".join(lines(TRIP, twice, odd).split(b"\n")) + b"]", JSON),
    ):
        results = client.post("/transactions", content=content, headers=headers).json()["results"]
        assert [r["status"] for r in results] == ["accepted", "invalid", "accepted"]
        assert results[1]["error"] == "expected each field once, found one twice"
    assert len(sent(broker)) == 4


def test_what_is_nested_too_deeply_is_refused(client: TestClient) -> None:
    """Below the parser's own limit of depth as well, where looking for repetitions gives up."""
    deep = b'{"a":' + b"[" * 1010 + b'"x"' + b"]" * 1010 + b"}"
    assert is_problem(client.post("/transaction", content=deep, headers=JSON), 400, "malformed-request")
    results = client.post("/transactions", content=lines(TRIP, deep), headers=NDJSON).json()["results"]
    assert "nested too deeply" in results[1]["error"]
    assert client.post("/transactions", content=b"[" + deep + b"]", headers=JSON).status_code == 400


@pytest.mark.parametrize(
    "trip",
    [
        TRIP,
        TRIP | {"transaction_id": "a"},
        TRIP | {"transaction_id": None},
        TRIP | {"accepted_at": "2020-01-01T00:00:00.000Z"},
        TRIP | {"pickup_datetime": "2023-03-01T17:00:00Z", "dropoff_datetime": "2023-03-01T12:15:00"},
        TRIP | {"VendorID": 2, "unknown": "x"},
        TRIP | {"store_and_fwd_flag": 'é"}'},
    ],
    ids=["plain", "named", "null-name", "stamped", "other-zone", "other-spelling", "odd-text"],
)
def test_one_and_many_send_the_same_message(client: TestClient, broker: Broker, trip: dict[str, Any]) -> None:
    """What is sent of a transaction does not depend on the way in; each has its own identity and stamp once."""
    assert client.post("/transaction", json=trip).status_code == 202
    assert client.post("/transactions", content=b" " + lines(trip) + b" \r\n", headers=NDJSON).status_code == 202
    assert client.post("/transactions", json=[trip]).status_code == 202
    messages = sent(broker)
    for message, (_, key, value) in zip(messages, broker.messages, strict=True):
        assert value is not None
        assert value.count(b'"transaction_id"') == value.count(b'"accepted_at"') == 1
        assert message.pop("transaction_id").encode() == key
        assert message.pop("accepted_at") > "2024"
    assert messages[0] == messages[1] == messages[2]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", NDJSON, 400),
        (b"\n \n", NDJSON, 400),
        (b"[]", JSON, 400),
        (b"[1, 2]", JSON, 422),
        (b"nothing\nof use", NDJSON, 422),
        (b"{}", JSON, 422),
        (b"[NaN]", JSON, 400),
        (b"x" * 5000, NDJSON, 413),
        (lines(*[TRIP] * 4000), NDJSON, 413),
    ],
)
def test_a_body_without_transactions_is_a_problem(
    client: TestClient, content: bytes, headers: dict[str, str], status: int
) -> None:
    """An empty, unreadable or oversized body, or one in which no item can be a record."""
    response = client.post("/transactions", content=content, headers=headers)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


def test_items_say_what_the_broker_has(client: TestClient, broker: Broker) -> None:
    """What was acknowledged before a failure is accepted; of the rest it is said what is known."""
    trips = [TRIP | {"transaction_id": f"t{i}"} for i in range(40)]
    broker.error = OutcomeUnknownError("no answer")
    results = client.post("/transactions", json=trips).json()["results"]
    accepted = {r["transaction_id"] for r in results if r["status"] == "accepted"}
    assert accepted == {m["transaction_id"] for m in sent(broker)}
    assert {r["status"] for r in results} == {"accepted", "outcome-unknown"}


def test_a_long_body_is_stopped_before_it_is_buffered(client: TestClient, broker: Broker) -> None:
    """Without a declared length too; what was taken before is told."""
    chunk, received = lines(*[TRIP] * 100) + b"\n", 0

    async def endless() -> Any:
        nonlocal received
        received += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": True}

    status, body = asyncio.run(ask(client.app, endless, "/transactions", NDJSON))
    assert (status, body["type"]) == (413, "urn:fraudlib:problem:too-large")
    assert received < 300_000
    assert 0 < body["accepted"] == len(sent(broker))


# -- labels, page, state ----------------------------------------------------------------------------------------------


def test_a_verdict_goes_to_the_labels(client: TestClient, broker: Broker) -> None:
    """Keyed by the transaction, with the time of the verdict."""
    label = {"transaction_id": "a", "verdict": "fraud", "note": "meter"}
    assert client.post("/labels", json=label).status_code == 202
    ((topic, key, value),) = broker.messages
    assert (topic, key) == ("labels", b"a")
    assert json.loads(value or b"").items() >= label.items()


@pytest.mark.parametrize("change", [{"verdict": "maybe"}, {"verdict": None}, {"transaction_id": "a b"}, {"canary": 1}])
def test_a_label_of_another_kind_is_refused(client: TestClient, change: dict[str, Any]) -> None:
    """Only fraud or honest, only for something that can be a transaction."""
    response = client.post("/labels", json={"transaction_id": "a", "verdict": "fraud"} | change)
    assert is_problem(response, 422, "invalid-label")
    assert "canary" not in response.text


def test_the_page_needs_no_other_host(client: TestClient) -> None:
    """What the live page and the documentation load is served here, under a policy that allows nothing else."""
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert "://" not in page.text
        for link in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert client.get(f"/{link}").status_code == 200, link


def test_the_pages_scripts_load_what_is_served(client: TestClient) -> None:
    """Each module and file that a script of the page names is there, with a type that a browser takes."""
    for path in pages.STATIC:
        file = client.get(path)
        assert file.status_code == 200, path
        assert file.headers["x-content-type-options"] == "nosniff"
        for name in re.findall(r'(?:from "\./|fetch\("static/)([^"]+)"', file.text):
            assert f"/static/{name}" in pages.STATIC, name


def test_the_pulse_says_what_is_known(client: TestClient) -> None:
    """Nothing is known before a score was seen, and the link's state is told as it is."""
    assert client.get("/pulse").json() == {
        "is_broker_up": True,
        "lag": None,
        "scores_per_second": None,
        "latency_ms": None,
        "bundle_id": None,
        "threshold": None,
        "scores": [],
    }
    client.app.state.services.link.is_up = False  # type: ignore[attr-defined]
    assert client.get("/pulse").json()["is_broker_up"] is False


def test_the_documentation_describes_the_fields(client: TestClient) -> None:
    """/docs is there, and the schema has every field with its unit and an example."""
    assert client.get("/docs").status_code == 200
    openapi = client.get("/openapi.json").json()
    content = openapi["paths"]["/transaction"]["post"]["requestBody"]["content"]["application/json"]
    assert "miles" in content["schema"]["properties"]["trip_distance"]["description"]
    assert content["examples"]["three fields"]["value"] == TRIP
    assert set(content["schema"]["required"]) == {"trip_distance", "fare_amount"}


def test_no_client_can_make_new_series(client: TestClient) -> None:
    """Paths, methods and fields of a client's choice end under one label; the metrics are Prometheus text."""

    def series() -> set[str]:
        text = client.get("/metrics").text
        assert "# TYPE fraudlib_api_request_seconds histogram" in text
        return {line.rsplit(" ", 1)[0] for line in text.splitlines() if "_bucket" not in line}

    client.request("BREW", "/nothing")
    client.post("/transaction", json=TRIP)
    series()
    before = series()
    for i in range(5):
        client.request("BREW", f"/nothing-{i}")
        client.post("/transaction", json=TRIP | {f"field{i}": i, "transaction_id": f"t{i}"})
    assert series() == before


# -- the gate ---------------------------------------------------------------------------------------------------------


def test_more_requests_than_admitted_are_turned_away() -> None:
    """503 at once for the one too many, and room again when another has left; bulk has room of its own."""

    async def scenario() -> list[int]:
        leave = asyncio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            await leave.wait()
            await send({"type": "http.response.start", "status": 202, "headers": []})

        app = Gate(slow, Settings(max_in_flight=2), ApiMetrics(CollectorRegistry()), frozenset())
        inside = [asyncio.create_task(ask(app, None)) for _ in range(2)]
        bulk = asyncio.create_task(ask(app, None, "/transactions"))
        await asyncio.sleep(0)
        headers: dict[str, str] = {}
        turned_away = await ask(app, None, answered=headers)
        assert turned_away[1]["type"] == "urn:fraudlib:problem:too-many-in-flight"
        assert int(headers["retry-after"]) > 0
        leave.set()
        answers = [turned_away, *await asyncio.gather(*inside, bulk), await ask(app, None)]
        return [status for status, _ in answers]

    assert asyncio.run(scenario()) == [503, 202, 202, 202, 202]


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow client is answered 408 and does not hold its place."""
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.05)

    async def never() -> Any:
        await asyncio.sleep(60)

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
        except Problem as problem:
            await problem.response()(scope, receive, send)

    app = Gate(slow, Settings(), ApiMetrics(CollectorRegistry()), frozenset())
    assert asyncio.run(ask(app, never))[0] == 408


# -- the alert feed ---------------------------------------------------------------------------------------------------


def alert(offset: int, src_offset: int, transaction_id: str = "") -> Any:
    """A message of the topic of alerts."""
    value = {"src_partition": 0, "src_offset": src_offset, "transaction_id": transaction_id or f"t{src_offset}"}
    return SimpleNamespace(partition=0, offset=offset, value=json.dumps(value).encode())


async def taken(stream: AsyncIterator[Any], count: int) -> list[str]:
    """Identities of the next events."""
    return [(await asyncio.wait_for(anext(stream), 1)).id for _ in range(count)]


def test_an_alert_passes_once_and_can_be_resumed() -> None:
    """What a worker wrote twice is shown once; Last-Event-ID goes on where the client left."""

    async def scenario() -> None:
        feed = AlertFeed(Settings())
        for offset, src_offset in ((0, 5), (1, 9), (2, 5), (3, 9), (4, 12)):
            feed._pass_on(alert(offset, src_offset))
        feed._pass_on(SimpleNamespace(partition=0, offset=9, value=b"no alert"))
        assert await taken(feed.follow(None, 2), 2) == ["0-1", "0-4"]
        assert await taken(feed.follow("0-1", 0), 1) == ["0-4"]
        assert await taken(feed.follow("long-gone", 0), 3) == ["0-0", "0-1", "0-4"]

    asyncio.run(scenario())


def test_alerts_read_again_are_silent_until_the_log_began_anew() -> None:
    """After a reconnection nothing is shown twice, and a broker that came back empty does not mute the feed."""

    async def scenario() -> None:
        feed = AlertFeed(Settings())
        log = [alert(0, 5), alert(1, 5), alert(2, 9)]
        for message in (*log, *log):
            feed._pass_on(message)
        assert await taken(feed.follow(None, 9), 2) == ["0-0", "0-2"]
        for message in (alert(0, 1), alert(1, 4)):
            feed._pass_on(message)
        assert await taken(feed.follow(None, 2), 2) == ["0-0", "0-1"]

    asyncio.run(scenario())


def test_an_alert_of_a_transaction_that_was_sent_twice_passes_once() -> None:
    """A client's retry stands in the log under the same identity."""

    async def scenario() -> None:
        feed = AlertFeed(Settings())
        for message in (alert(0, 5, "same"), alert(1, 6, "same"), alert(2, 7)):
            feed._pass_on(message)
        assert await taken(feed.follow(None, 9), 2) == ["0-0", "0-2"]

    asyncio.run(scenario())


def test_a_slow_follower_loses_the_oldest_and_holds_nobody_up() -> None:
    """The queue of a follower is bounded, and closing ends its stream."""

    async def scenario() -> None:
        feed = AlertFeed(Settings())
        stream = feed.follow(None, 0)
        first = asyncio.ensure_future(taken(stream, 1))
        while not feed.followers:  # noqa: ASYNC110  (the feed sets no event)
            await asyncio.sleep(0)
        for i in range(1000):
            feed._pass_on(alert(i, i))
        assert await first == ["0-744"]
        feed.close()
        rest = [event.id async for event in stream]
        assert len(rest) <= 255
        assert feed.followers == 0

    asyncio.run(scenario())
