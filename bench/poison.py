"""One message in a hundred is poison of twelve kinds: every good one is scored, every bad one put aside as it was."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import orjson

from bench import topic
from bench.records import Records
from bench.site import Site
from fraudlib.schema import TOPIC_DEAD_LETTERS, TOPIC_SCORES, TOPIC_TRANSACTIONS
from fraudlib.wire import topics
from fraudlib.wire.delivery import Deduplicator

SECONDS: Final = 120.0
EVERY: Final = 100
HEADERS: Final = {"error", "reason", "src_topic", "src_partition", "src_offset", "failed_at"}

POISON: Final[dict[str, bytes | None]] = {
    "empty message": None,
    "no bytes": b"",
    "not JSON": b"\x00\x01\x02 no json",
    "cut short": b'{"trip_distance": 2.5, "fare_amount": 12.',
    "not UTF-8": b'{"transaction_id": "\xff\xfe", "trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}',
    "two objects": b'{"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}{}',
    "a list": b"[1, 2, 3]",
    "NaN": b'{"trip_distance": NaN, "fare_amount": 12.5, "duration_minutes": 15}',
    "text for a number": b'{"trip_distance": 2.5, "fare_amount": "12.5", "duration_minutes": 15}',
    "missing field": b'{"trip_distance": 2.5, "duration_minutes": 15}',
    "no such time": b'{"trip_distance": 2.5, "fare_amount": 12.5, "pickup_datetime": "2023-02-30T12:00:00"}',
    "half a megabyte": b'{"trip_distance": "' + b"9" * 500_000 + b'", "fare_amount": 12.5}',
}


def messages(count: int, seed: int = 7) -> Iterator[tuple[bytes, bytes | None, str]]:
    """Key, value and kind ("" where good) of `count` messages, poison at random places, each kind equally often."""
    rng = random.Random(seed)
    kinds = list(POISON)
    bad = 0
    for start, block in _blocks(Records()(count, "trip-")):
        place = rng.randrange(len(block))
        for offset, (key, value) in enumerate(block):
            if offset == place:
                kind = kinds[bad % len(kinds)]
                bad += 1
                yield b"poison-%d" % (start + offset), POISON[kind], kind
            else:
                yield key, value, ""


def _blocks(records: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[int, list[tuple[bytes, bytes]]]]:
    start, block = 0, []
    for record in records:
        block.append(record)
        if len(block) == EVERY:
            yield start, block
            start, block = start + EVERY, []
    if block:
        yield start, block


def measure(count: int = 100_000, **changes: Any) -> dict[str, Any]:
    """Send, wait and compare; every figure whose name says so must be zero for `passed`."""
    kinds: dict[bytes, str] = {}
    with Site(**changes) as site:
        site.start_broker()

        def remember() -> Iterator[tuple[bytes, bytes | None]]:
            for key, value, kind in messages(count):
                kinds[key] = kind
                yield key, value

        asyncio.run(topic.fill(site.settings, remember()))
        worker = site.start_worker()
        outputs = (TOPIC_SCORES, TOPIC_DEAD_LETTERS)
        curve = asyncio.run(topic.watch(site.settings, outputs, 0, count, SECONDS))
        scored, dead, sources = _read(site)
        restarts = int(not worker.is_running)
        worker.stop(signal.SIGKILL)
    return _compare(kinds, scored, dead, sources) | {"restarts": restarts, "per_second": round(curve.per_second)}


def _read(
    site: Site,
) -> tuple[Counter[bytes], dict[bytes, list[Any]], dict[tuple[int, int], tuple[bytes, bytes | None]]]:
    """Scores by key behind the filter, dead letters by key, and the input by its place."""
    scored: Counter[bytes] = Counter()
    dead: dict[bytes, list[Any]] = {}
    sources: dict[tuple[int, int], tuple[bytes, bytes | None]] = {}
    is_fresh = Deduplicator()

    def see_score(message: Any) -> None:
        score = orjson.loads(message.value)
        scored[message.key] += is_fresh(score["src_partition"], score["src_offset"])

    def see_source(message: Any) -> None:
        if message.key.startswith(b"poison"):
            sources[message.partition, message.offset] = (message.key, message.value)

    asyncio.run(topics.read_all(site.settings, TOPIC_SCORES, see_score))
    asyncio.run(topics.read_all(site.settings, TOPIC_DEAD_LETTERS, lambda m: dead.setdefault(m.key, []).append(m)))
    asyncio.run(topics.read_all(site.settings, TOPIC_TRANSACTIONS, see_source))
    return scored, dead, sources


def _compare(
    kinds: dict[bytes, str],
    scored: Counter[bytes],
    dead: dict[bytes, list[Any]],
    sources: dict[tuple[int, int], tuple[bytes, bytes | None]],
) -> dict[str, Any]:
    good = [key for key, kind in kinds.items() if not kind]
    bad = [key for key, kind in kinds.items() if kind]
    whole = [key for key in bad if len(dead.get(key, ())) == 1 and _is_whole(dead[key][0], sources)]
    figures = {
        "good": len(good),
        "poison": len(bad),
        "kinds": len({kinds[key] for key in bad}),
        "good_not_scored_once": sum(scored[key] != 1 for key in good),
        "poison_scored": sum(scored[key] > 0 for key in bad),
        "poison_not_whole_in_dlq": len(bad) - len(whole),
        "good_in_dlq": sum(key in dead for key in good),
    }
    names = ("good_not_scored_once", "poison_scored", "poison_not_whole_in_dlq", "good_in_dlq")
    return {"passed": not any(figures[name] for name in names), **figures}


def _is_whole(letter: Any, sources: dict[tuple[int, int], tuple[bytes, bytes | None]]) -> bool:
    """Whether a dead letter has its headers, and the bytes and the place of the message that it was."""
    headers = {name: value.decode() for name, value in letter.headers}
    place = (int(headers["src_partition"]), int(headers["src_offset"]))
    is_same = sources.get(place) == (letter.key, letter.value) and letter.partition == place[0]
    return headers.keys() >= HEADERS and headers["src_topic"] == TOPIC_TRANSACTIONS and is_same
