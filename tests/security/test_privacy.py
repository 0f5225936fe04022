"""What a client sends stays in the topics: no value, identity or note of it in logs, metrics and errors."""

import asyncio
import http.client
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from fraudlib import paths
from fraudlib.api.keys import authorization, make_key
from fraudlib.api.pseudonyms import Pseudonyms, write_key
from fraudlib.demo.replay import Plan, replay
from fraudlib.demo.senders import HttpSender
from fraudlib.demo.session import Session
from fraudlib.demo.stack import Stack, free_port
from fraudlib.errors import ServiceError
from fraudlib.schema import TOPIC_ALERTS, TOPIC_DEAD_LETTERS, TOPIC_LABELS, TOPIC_SCORES, TOPIC_TRANSACTIONS
from fraudlib.settings import Settings

CANARY = "Canary-4242-4242-4242-4242"
SAMPLE = paths.root() / "data/sample/green_tripdata_2023-05.parquet"
TRIP = {"trip_distance": 2.5, "fare_amount": 4242.4242, "duration_minutes": 15}
NUMBER = "4242.4242"
ID = "Medallion-5X55"
TOPICS = (TOPIC_TRANSACTIONS, TOPIC_SCORES, TOPIC_ALERTS, TOPIC_LABELS, TOPIC_DEAD_LETTERS)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Broker, API and worker; the API asks for a key, which this machine's clients have."""
    folder = tmp_path_factory.mktemp("keyed")
    make_key("stack", folder / "hashes", folder / "key")
    broker = free_port()
    settings = Settings(
        broker_port=broker,
        kafka_bootstrap_servers=f"127.0.0.1:{broker}",
        api_port=free_port(),
        metrics_port=free_port(),
        api_internal_port=free_port(),
        api_keys_file=folder / "hashes",
        api_key_file=folder / "key",
        state_dir=folder / "state",
        artifacts_dir=paths.root() / "artifacts",
        log_level="DEBUG",
    )
    with Stack(settings, folder / "logs") as stack:
        for _ in stack.start("broker", "api", "worker"):
            pass
        stack.try_out()
        yield stack


def ask(stack: Stack, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and text of a request with the key."""
    names = {name.replace("_", "-"): value for name, value in headers.items()} | authorization(stack.settings)
    with closing(http.client.HTTPConnection("127.0.0.1", stack.settings.api_port, timeout=20)) as connection:
        connection.request(method, path, body, {"Content-Type": "application/json"} | names)
        response = connection.getresponse()
        return response.status, response.read().decode()


def page(port: int, path: str = "/metrics") -> str:
    """A service's own page."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode()


def send_canaries(stack: Stack) -> list[str]:
    """Put the canary wherever a client can put something; texts of the answers that are refusals."""
    trip, bad = (
        json.dumps(TRIP | {"transaction_id": CANARY}),
        json.dumps(TRIP | {"fare_amount": CANARY, CANARY: CANARY}),
    )
    label = {"transaction_id": CANARY, "verdict": "fraud", "note": CANARY, "analyst": CANARY, "kind": CANARY}
    answers = [
        ask(stack, "POST", "/transaction", trip.encode(), Prefer="wait=10"),
        ask(stack, "POST", "/transaction", json.dumps(TRIP | {CANARY: CANARY}).encode(), Idempotency_Key=f"{CANARY}-k"),
        ask(
            stack, "POST", "/transaction", json.dumps(TRIP | {"tip_amount": 1}).encode(), Idempotency_Key=f"{CANARY}-k"
        ),
        ask(stack, "POST", "/transaction", bad.encode(), Idempotency_Key=f"{CANARY} {CANARY}"),
        ask(stack, "POST", "/transaction", bad.encode()),
        ask(stack, "POST", "/transaction", f"{CANARY}".encode(), X_Canary=CANARY, User_Agent=CANARY),
        ask(stack, "POST", "/transactions", f"{bad}\n{CANARY}\n".encode(), Content_Type="application/x-ndjson"),
        ask(stack, "POST", "/labels", json.dumps(label).encode()),
        ask(stack, "POST", "/labels", json.dumps(label | {"verdict": CANARY, CANARY: 1}).encode()),
        ask(stack, "GET", f"/{CANARY}?{CANARY}={CANARY}"),
        ask(stack, "GET", f"/alerts?recent={CANARY}"),
        ask(stack, "POST", "/session", None, Authorization=f"Bearer {CANARY}", Cookie=f"fraudlib_session={CANARY}"),
    ]
    assert answers[0][0] == 200
    return [text for status, text in answers if status >= 400]


async def send_poison(stack: Stack) -> list[Any]:
    """Put what cannot be scored straight into the topic; its dead letters."""
    servers = stack.settings.kafka_bootstrap_servers
    poison = [CANARY.encode(), json.dumps(TRIP | {"fare_amount": CANARY, "transaction_id": CANARY}).encode(), b"\xff"]
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
        for value in poison:
            await producer.send_and_wait(TOPIC_TRANSACTIONS, value, CANARY.encode())
    letters: list[Any] = []
    async with AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest") as consumer:
        partitions = [
            TopicPartition(TOPIC_DEAD_LETTERS, number)
            for number in consumer.partitions_for_topic(TOPIC_DEAD_LETTERS) or ()
        ]
        consumer.assign(partitions)
        end = time.monotonic() + 20
        while len(letters) < len(poison) and time.monotonic() < end:
            for found in (await consumer.getmany(timeout_ms=300)).values():
                letters += found
    return letters


def test_nothing_that_was_sent_is_in_logs_metrics_or_errors(keyed: Stack) -> None:
    """Through the whole stack at its most talkative level; the key is nowhere either, nor a series for every value."""
    refusals = send_canaries(keyed)
    assert len(refusals) >= 7
    assert [text for text in refusals if CANARY in text or NUMBER in text] == []
    letters = asyncio.run(send_poison(keyed))
    assert len(letters) == 3
    headers = b"".join(value for letter in letters for _, value in letter.headers)
    assert CANARY.encode() not in headers
    ports = (keyed.settings.api_internal_port, keyed.settings.metrics_port)
    before = [[page(port) for port in ports] for _ in range(2)][1]  # the first look is counted in the second
    send_canaries(keyed)
    after = [page(port) for port in ports]
    assert [len(text.splitlines()) for text in before] == [len(text.splitlines()) for text in after]
    assert keyed.settings.api_key_file is not None
    key = Path(keyed.settings.api_key_file).read_text().strip()
    for name, text in {
        **{n: keyed.log(n).read_text() for n in ("api", "worker", "broker")},
        **dict(enumerate(after)),
    }.items():
        assert text, name
        for secret in (CANARY, NUMBER, key):
            assert secret.lower() not in text.lower(), (name, text[max(0, text.find(secret) - 300) :][:600])


def test_replay_sends_the_key_and_says_what_is_missing_without_it(keyed: Stack) -> None:
    """The key of FRAUDLIB_API_KEY_FILE opens the API; without it the answer is one sentence."""
    with HttpSender(keyed.url, authorization(keyed.settings)) as sender:
        assert replay(Plan(SAMPLE, rate=0, limit=50), sender, lambda count: None).accepted == 50
    with HttpSender(keyed.url) as sender, pytest.raises(Exception, match="FRAUDLIB_API_KEY_FILE"):
        replay(Plan(SAMPLE, rate=0, limit=5), sender, lambda count: None)


@pytest.fixture(scope="module")
def hiding(keyed: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A second API before the same broker and worker, which hides ids."""
    folder = tmp_path_factory.mktemp("hiding")
    write_key(folder / "ids")
    changes = {"api_port": free_port(), "api_internal_port": free_port(), "id_hash_key_file": folder / "ids"}
    with Stack(keyed.settings.model_copy(update=changes), folder / "logs") as stack:
        for _ in stack.start("api"):
            pass
        yield stack


async def everything(stack: Stack) -> dict[str, list[Any]]:
    """All that lies in the topics, by topic."""
    found: dict[str, list[Any]] = {topic: [] for topic in TOPICS}
    options = {"bootstrap_servers": stack.settings.kafka_bootstrap_servers, "auto_offset_reset": "earliest"}
    async with AIOKafkaConsumer(*TOPICS, **options) as consumer:
        while polled := await consumer.getmany(timeout_ms=1000):
            for place, messages in polled.items():
                found[place.topic] += messages
    return found


def test_an_id_is_nowhere_where_ids_are_hidden(hiding: Stack, keyed: Stack) -> None:
    """By field, by Idempotency-Key, in lines, arrays and labels: scored, retried, labelled, and in no topic or log."""
    assert hiding.settings.id_hash_key_file is not None
    name_of = Pseudonyms.read(hiding.settings.id_hash_key_file).of
    names = [name_of(f"{ID}-{number}") for number in range(5)]
    # A fare that no ride has, so that there is an alert to look at.
    given = [TRIP | {"fare_amount": 900 + n, "transaction_id": f"{ID}-{n}"} for n in range(5)]
    status, text = ask(hiding, "POST", "/transaction", json.dumps(given[0]).encode(), Prefer="wait=10")
    assert (status, json.loads(text)["transaction_id"], json.loads(text)["status"]) == (200, names[0], "scored")
    headers = {"Prefer": "wait=10", "Idempotency_Key": f"{ID}-1"}
    first, second = (ask(hiding, "POST", "/transaction", json.dumps(TRIP).encode(), **headers) for _ in range(2))
    assert first == second
    assert json.loads(first[1])["transaction_id"] == names[1]
    lines = b"\n".join(json.dumps(trip).encode() for trip in given[2:4])
    answers = [
        ask(hiding, "POST", "/transactions", lines, Content_Type="application/x-ndjson"),
        ask(hiding, "POST", "/transactions", json.dumps(given[4:]).encode()),
    ]
    found = [item["transaction_id"] for _, text in answers for item in json.loads(text)["results"]]
    assert found == names[2:]
    for label in (f"{ID}-2", names[2]):
        assert (
            ask(hiding, "POST", "/labels", json.dumps({"transaction_id": label, "verdict": "fraud"}).encode())[0] == 202
        )
    wrong = {**given[0], "fare_amount": f"{ID}", "trip_distance": None}
    answers += [
        ask(hiding, "POST", "/transaction", json.dumps(wrong).encode(), Idempotency_Key=f"{ID}-0"),
        ask(hiding, "POST", "/transaction", json.dumps(given[0]).encode(), Idempotency_Key=f"{ID}-1"),
        ask(hiding, "POST", "/transactions", json.dumps([wrong, given[0]]).encode()),
        ask(hiding, "POST", "/labels", json.dumps({"transaction_id": f"{ID} {ID}", "verdict": "fraud"}).encode()),
    ]
    assert ID not in str([first, answers])
    end = time.monotonic() + 20
    topics = asyncio.run(everything(hiding))
    while time.monotonic() < end and len({m.key.decode() for m in topics[TOPIC_SCORES]} & {*names}) < len(names):
        topics = asyncio.run(everything(hiding))
    for topic in (TOPIC_TRANSACTIONS, TOPIC_SCORES):
        assert {message.key.decode() for message in topics[topic]} >= {*names}, topic
    assert {message.key.decode() for message in topics[TOPIC_ALERTS]} & {*names}
    assert [message.key.decode() for message in topics[TOPIC_LABELS]].count(names[2]) == 2
    kept = b" ".join(
        part or b""
        for messages in topics.values()
        for message in messages
        for part in (message.key, message.value, *(value for _, value in message.headers))
    )
    assert ID.lower().encode() not in kept.lower()
    secret = hiding.settings.id_hash_key_file.read_text().strip()
    texts = [hiding.log("api").read_text(), *(keyed.log(name).read_text() for name in ("worker", "broker"))]
    texts += [page(hiding.settings.api_internal_port), page(hiding.settings.metrics_port)]
    for text in texts:
        assert text
        assert ID.lower() not in text.lower()
        assert secret not in text


def test_a_stream_that_cannot_be_followed_says_why(hiding: Stack) -> None:
    """05_live knows its trips by id: where ids are hidden it names the setting, rather than showing nothing."""
    began = time.monotonic()
    with (
        pytest.raises(ServiceError, match="FRAUDLIB_ID_HASH_KEY_FILE"),
        Session(hiding.settings, None).stream(SAMPLE.parent, rate=100, fraud_share=0.01, seed=1) as stream,
    ):
        for _ in stream.every(0.1, 20):
            pass
    assert time.monotonic() - began < 15
