"""Dead letters can be looked at and sent again."""

import asyncio
import json
import os
import subprocess

from fraudlib.settings import Settings
from fraudlib.wire import topics
from fraudlib.wire.dlq import REPLAYED_FROM

from .conftest import FRAUDLIB, Site, until

POISON = b"\x00no json"


def dlq(site: Site, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `fraudlib dlq`."""
    command = [FRAUDLIB, "dlq", *arguments]
    return subprocess.run(command, env=os.environ | site.env, capture_output=True, text=True, check=False, timeout=30)


def test_dead_letters_are_listed_and_sent_again(site: Site) -> None:
    """`dlq list` names place and reason; `dlq replay` sends the original bytes, which are put aside once more."""
    broker = site.start("broker")
    until(lambda: broker.says("broker is up"))
    site.produce("transactions", (b"a", POISON), (b"b", b"[]"))
    site.start_worker()
    settings = Settings(kafka_bootstrap_servers=site.env["FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS"])

    def dead() -> int:
        return asyncio.run(topics.total(settings, ["transactions.dlq"]))

    until(lambda: dead() == 2, why="two dead letters")
    lines = [json.loads(line) for line in dlq(site, "list", "--json").stdout.splitlines()]
    (letter,) = [line for line in lines if line["key"] == "a"]
    assert letter["error"] == "SchemaError"
    assert "expected JSON" in letter["reason"]
    assert letter["src_topic"] == "transactions"
    assert letter["value"] == POISON.decode()
    assert len(dlq(site, "list", "--limit", "1").stdout.splitlines()) == 1
    assert dlq(site, "replay", "--error", "ScoreError").stdout == "0 dead letters sent again\n"
    assert dlq(site, "replay").stdout == "2 dead letters sent again\n"
    until(lambda: dead() == 4, why="the same two again")
    sent: list[tuple[bytes, bytes, str]] = []
    asyncio.run(
        topics.read_all(
            settings, "transactions", lambda m: sent.append((m.key, m.value, dict(m.headers).get(REPLAYED_FROM)))
        )
    )
    again = [(key, value) for key, value, source in sent if source]
    assert sorted(again) == [(b"a", POISON), (b"b", b"[]")]


def test_a_missing_broker_is_named(site: Site) -> None:
    """Without a broker there is one sentence and exit code 1."""
    result = dlq(site, "list")
    assert result.returncode == 1
    assert "start it with `fraudlib broker`" in result.stderr
