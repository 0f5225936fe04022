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
from fraudlib.demo.replay import Plan, replay
from fraudlib.demo.senders import HttpSender
from fraudlib.demo.stack import Stack, free_port
from fraudlib.schema import TOPIC_DEAD_LETTERS, TOPIC_TRANSACTIONS
from fraudlib.settings import Settings

CANARY = "Canary-4242-4242-4242-4242"
SAMPLE = paths.root() / "data/sample/green_tripdata_2023-05.parquet"
TRIP = {"trip_distance": 2.5, "fare_amount": 4242.4242, "duration_minutes": 15}
NUMBER = "4242.4242"


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
