"""The worker's parts: outputs of a batch, the bundle in use, and the stages' promise to the reader's filter."""

import asyncio
import gc
import itertools
import random
import time
import weakref
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError
from prometheus_client import CollectorRegistry

from fraudlib import manifest
from fraudlib.errors import BundleError
from fraudlib.paths import CURRENT
from fraudlib.settings import Settings
from fraudlib.telemetry import CALM, WorkerMetrics
from fraudlib.wire.delivery import Deduplicator
from fraudlib.wire.kafka import NotSentError, OutcomeUnknownError
from fraudlib.worker import main as worker
from fraudlib.worker.batch import Batch
from fraudlib.worker.journal import Journal
from fraudlib.worker.live_bundle import LiveBundle
from fraudlib.worker.outputs import ModelError, process
from fraudlib.worker.precedents import Bindings, Output, Ruling, rulings
from fraudlib.worker.quarantine import Quarantine
from fraudlib.worker.stages import Stages

TRIP: dict[str, Any] = {"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}
FIELDS = ["transaction_id", "anomaly_score", "threshold", "is_flagged", "severity", "reasons", "bundle_id"]
FIELDS += ["src_partition", "src_offset", "scored_at"]


class FareScorer:
    """Scores a trip by its fare and flags from 100 USD on; `-1` has no score, `-2` breaks the model."""

    threshold = 100.0
    block: float | None = None

    def __init__(self, bundle_id: str = "fares", broken: bool = False, quick_rows: int = 0) -> None:
        self.bundle_id, self.broken, self.quick_rows = bundle_id, broken, quick_rows

    def score(self, columns: dict[str, Any]) -> Any:
        """Scores of the columns."""
        fares = columns["fare_amount"]
        if self.broken or (fares == -2).any():
            raise RuntimeError("the model broke")
        flagged = fares >= self.threshold
        reasons = {
            int(row): [{"field": "fare_amount", "observed": fares[row], "expected": 14.1, "surprise": 9.0}]
            for row in np.flatnonzero(flagged)
        }
        return SimpleNamespace(anomaly_score=np.where(fares == -1, np.nan, fares), is_flagged=flagged, reasons=reasons)


def message(offset: int, value: Any, key: bytes | None = b"key", partition: int = 3) -> Any:
    """A Kafka message."""
    raw = value if isinstance(value, bytes) or value is None else orjson.dumps(value)
    return SimpleNamespace(
        topic="transactions", partition=partition, offset=offset, key=key, value=raw, timestamp=1_700_000_000_000
    )


def test_a_score_carries_the_contracts_fields() -> None:
    """Every score says whose it is, what it is, by which bundle, and from where; the stamp passes through."""
    stamp = "2026-11-24T07:00:00.123Z"
    out = process([message(7, TRIP | {"transaction_id": "a", "accepted_at": stamp})], FareScorer())
    ((key, value, _),) = out.scores[3]
    score = orjson.loads(value or b"")
    assert list(score) == [*FIELDS, "accepted_at"]
    assert (key, score["transaction_id"], score["anomaly_score"]) == (b"a", "a", 12.5)
    assert (score["src_partition"], score["src_offset"], score["accepted_at"]) == (3, 7, stamp)
    assert (score["is_flagged"], score["reasons"], score["bundle_id"]) == (False, [], "fares")
    assert out.alerts == {}


def test_an_alert_is_the_score_and_the_trip() -> None:
    """A flagged trip gives an alert with its reasons and the fields as received."""
    trip = TRIP | {"fare_amount": 450.0, "PULocationID": 74}
    out = process([message(7, trip)], FareScorer())
    score, alert = orjson.loads(out.scores[3][0][1] or b""), orjson.loads(out.alerts[3][0][1] or b"")
    assert score["is_flagged"] is True
    assert score["reasons"] == [{"field": "fare_amount", "observed": 450.0, "expected": 14.1, "surprise": 9.0}]
    assert alert == score | {"transaction": trip}
    assert out.alert_fields == ["fare_amount"]


@pytest.mark.parametrize(
    ("block", "severities"), [(400.0, [None, "review", "block"]), (None, [None, "review", "review"])]
)
def test_severity_is_block_above_the_second_threshold(block: float | None, severities: list[str | None]) -> None:
    """Null without a flag, block above the bundle's threshold for it, else review; review where it has none."""
    scorer = FareScorer()
    scorer.block = block
    out = process([message(i, TRIP | {"fare_amount": fare}) for i, fare in enumerate((12.5, 400.0, 450.0))], scorer)
    assert [orjson.loads(row[1] or b"")["severity"] for row in out.scores[3]] == severities
    assert [orjson.loads(row[1] or b"")["severity"] for row in out.alerts[3]] == severities[1:]


def test_a_record_without_identity_gets_its_key_or_its_place() -> None:
    """The message's key stands in where it can be an identity, else partition and offset."""
    out = process([message(5, TRIP, b"trip-5"), message(6, TRIP, b"\xff"), message(7, TRIP, None)], FareScorer())
    assert [row[0] for row in out.scores[3]] == [b"trip-5", b"3-6", b"3-7"]


@pytest.mark.parametrize("poison", [b"\x00not json", b"", None, b"[]", TRIP | {"fare_amount": "x"}, {}])
def test_poison_becomes_a_dead_letter(poison: Any) -> None:
    """It keeps its key and bytes, says why and from where, and its neighbours are scored."""
    out = process([message(1, TRIP), message(2, poison, b"poison"), message(3, TRIP)], FareScorer())
    ((key, value, headers),) = out.dead_letters[3]
    assert (key, value) == (b"poison", message(2, poison).value)
    assert set(dict(headers)) == {"error", "reason", "src_topic", "src_partition", "src_offset", "failed_at"}
    assert (dict(headers)["error"], dict(headers)["src_offset"]) == (b"SchemaError", b"2")
    assert [orjson.loads(row[1] or b"")["src_offset"] for row in out.scores[3]] == [1, 3]


@pytest.mark.parametrize("fare", [-1.0, -2.0])
def test_a_record_that_the_model_fails_on_becomes_a_dead_letter(fare: float) -> None:
    """No score, or an exception, is never an alert decision; only the one record is put aside."""
    trips = [TRIP | {"fare_amount": f} for f in (10.0, 20.0, fare, 150.0, 30.0)]
    out = process([message(i, trip) for i, trip in enumerate(trips)], FareScorer())
    assert [dict(row[2])["src_offset"] for row in out.dead_letters[3]] == [b"2"]
    assert out.causes == ["ScoreError"]
    assert [orjson.loads(row[1] or b"")["anomaly_score"] for row in out.scores[3]] == [10, 20, 150, 30]
    assert len(out.alerts[3]) == 1


def test_a_model_that_fails_on_everything_stops_the_batch() -> None:
    """The records are not to blame, so none is put aside."""
    with pytest.raises(ModelError, match="fares fails on a plain trip too"):
        process([message(1, TRIP), message(2, TRIP)], FareScorer(broken=True))


# -- the bundle in use ------------------------------------------------------------------------------------------------


def live(artifacts: Path, load: Any) -> tuple[LiveBundle, WorkerMetrics]:
    """A LiveBundle with fresh metrics."""
    metrics = WorkerMetrics(CollectorRegistry())
    return LiveBundle(artifacts, load, metrics), metrics


def load_by_name(folder: Path) -> FareScorer:
    """A scorer named like the folder; one named bad must not serve."""
    if folder.name == "bad":
        raise BundleError(f"{folder}: it was altered")
    if folder.name == "odd":
        raise RuntimeError("size mismatch")
    return FareScorer(folder.name)


def point(artifacts: Path, name: str) -> None:
    """Make a bundle current, whatever is in it."""
    (artifacts / name).mkdir(exist_ok=True)
    manifest.write_atomic(artifacts / CURRENT, name.encode())


def test_no_bundle_at_start_names_the_folder_and_what_to_do(tmp_path: Path) -> None:
    """A worker without a bundle does not start, before it talks to any broker."""
    with pytest.raises(BundleError, match=rf"{tmp_path}.*pipelines retrain"):
        worker.run(Settings(artifacts_dir=tmp_path, metrics_port=0, log_level="ERROR"), load_by_name)


def test_a_new_bundle_is_picked_up_and_a_bad_one_refused(tmp_path: Path) -> None:
    """Another current bundle serves soon; one that must not is counted, and the old one stays."""

    async def scenario() -> list[str]:
        bundle, metrics = live(tmp_path, load_by_name)
        await bundle.load()
        watching = asyncio.create_task(bundle.watch(0.01))
        served = [bundle.scorer.bundle_id]
        for name in ("second", "bad", "odd", "missing", "third"):
            point(tmp_path, name)
            if name == "missing":
                (tmp_path / name).rmdir()
            await asyncio.sleep(0.1)
            served.append(bundle.scorer.bundle_id)
        watching.cancel()
        count = metrics.registry.get_sample_value
        assert count("fraudlib_worker_reloads_total", {"outcome": "refused"}) == 3
        assert count("fraudlib_worker_bundle_info", {"bundle_id": "third"}) == 1
        assert count("fraudlib_worker_bundle_info", {"bundle_id": "first"}) is None
        return served

    point(tmp_path, "first")
    assert asyncio.run(scenario()) == ["first", "second", "second", "second", "second", "third"]


# -- the stages, on a log in memory that fails on purpose -------------------------------------------------------------


class Log:
    """Topics, committed offsets and owners of the partitions of a group, in memory."""

    def __init__(self, partitions: int, messages: int, rng: random.Random) -> None:
        self.rng = rng
        self.topics: dict[tuple[str, int], list[Any]] = {}
        self.committed: dict[TopicPartition, int] = {}
        self.owner: dict[TopicPartition, object] = {}
        self.input = {TopicPartition("transactions", p): self._messages(p, messages) for p in range(partitions)}

    def _messages(self, partition: int, count: int) -> list[Any]:
        kinds: list[Any] = [TRIP] * 8 + [TRIP | {"fare_amount": 200.0}] * 3 + [b"poison"]
        return [message(i, self.rng.choice(kinds), b"%d-%d" % (partition, i), partition) for i in range(count)]

    @property
    def is_done(self) -> bool:
        """Everything is committed."""
        return all(self.committed.get(tp, 0) == len(messages) for tp, messages in self.input.items())

    def _outputs(self, topic: str, partition: int) -> list[Output]:
        rows = self.topics.get((topic, partition), [])
        return [Output(v["src_offset"], v["bundle_id"]) for v in (orjson.loads(row[1]) for row in rows)]

    async def precedents(self, starts: Mapping[int, int]) -> dict[int, list[Ruling]]:
        """Rulings of what is in the log."""
        await asyncio.sleep(0.001)
        return {p: rulings(at, self._outputs("scores", p), self._outputs("alerts", p)) for p, at in starts.items()}


class Fixed:
    """A live bundle that stays; an earlier one is made on demand."""

    def __init__(self, scorer: FareScorer, *others: FareScorer) -> None:
        self.scorer = scorer
        self.by_id = {s.bundle_id: s for s in (scorer, *others)}

    async def earlier(self, bundle_id: str) -> FareScorer | None:
        """Scorer of any of the bundles."""
        await asyncio.sleep(0)
        return self.by_id.get(bundle_id)


class LogConsumer:
    """What the stages use of a consumer."""

    def __init__(self, log: Log) -> None:
        self.log, self.positions = log, dict[TopicPartition, int]()

    def assignment(self) -> set[TopicPartition]:
        """Partitions that this member believes to own."""
        return set(self.positions)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Move."""
        if tp not in self.positions:
            raise IllegalStateError(tp)
        self.positions[tp] = offset

    async def getmany(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        """Some next messages of some partitions."""
        await asyncio.sleep(0.0005)
        polled = {}
        for tp, at in self.positions.items():
            if found := self.log.input[tp][at : at + self.log.rng.randint(0, max_records)]:
                polled[tp], self.positions[tp] = found, at + len(found)
        return polled

    async def commit(self, offsets: dict[TopicPartition, int]) -> None:
        """Refused for a member that the group dropped."""
        await asyncio.sleep(0.0005)
        if any(self.log.owner.get(tp) is not self for tp in offsets):
            raise CommitFailedError("not a member")
        self.log.committed |= offsets

    async def committed(self, tp: TopicPartition) -> int | None:
        """Committed offset."""
        await asyncio.sleep(0)
        return self.log.committed.get(tp)

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Always 0."""
        await asyncio.sleep(0)
        return dict.fromkeys(partitions, 0)

    def highwater(self, tp: TopicPartition) -> int:
        """End of the partition."""
        return len(self.log.input[tp])


class LogPublisher:
    """A publisher that loses requests, loses answers and stops half-way."""

    def __init__(self, log: Log) -> None:
        self.log = log

    async def send_rows(self, topic: str, partition: int, rows: list[Any]) -> None:
        """Append, or fail in one of the ways that a broker does."""
        fate, written = self.log.rng.random(), len(rows)
        await asyncio.sleep(self.log.rng.choice([0, 0.0005, 0.002]))
        if fate < 0.1:
            written = self.log.rng.randint(0, len(rows))
        self.log.topics.setdefault((topic, partition), []).extend(rows[:written])
        if fate < 0.05:
            raise NotSentError("lost on the way there")
        if fate < 0.15:
            raise OutcomeUnknownError("lost on the way back")

    async def send_parts(self, parts: dict[tuple[str, int], list[Any]]) -> None:
        """Each of them, and the first failure when all have ended."""
        sends = (self.send_rows(*place, rows) for place, rows in parts.items())
        for result in await asyncio.gather(*sends, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result


async def one_worker(
    log: Log, stopping: asyncio.Event, bundle: Any = None, quarantine: Any = None
) -> tuple[Stages, LogConsumer, list["asyncio.Task[Any]"]]:
    """Stages on the log, running."""
    consumer, metrics = LogConsumer(log), WorkerMetrics(CollectorRegistry())
    # Of up to nine rows: some batches are scored on the loop, some beside it.
    bundle = bundle or Fixed(FareScorer(quick_rows=4))

    async def reconnect() -> bool:
        await asyncio.sleep(0.001)
        return True

    journal = Journal(None)
    stages = Stages(
        Settings(batch_max_records=9, batch_wait_ms=0),
        consumer,
        LogPublisher(log),  # type: ignore[arg-type]
        bundle,
        quarantine or Quarantine(journal, load_by_name, Path()),
        journal,
        SimpleNamespace(offer=lambda messages, outputs: None),  # type: ignore[arg-type]
        log.precedents,
        ThreadPoolExecutor(1),
        metrics,
        reconnect,
        stopping,
    )
    parts: list[Coroutine[Any, Any, None]] = [stages.fetch(), stages.score(), stages.publish()]
    return stages, consumer, [asyncio.create_task(part) for part in (*parts, stages.commit_when_due())]


async def move(log: Log, old: tuple[Stages, LogConsumer] | None, new: tuple[Stages, LogConsumer], warn: bool) -> None:
    """Give all partitions to another member; without a warning, the old one goes on like a zombie."""
    if old and warn:
        await old[0].on_partitions_revoked(old[1].assignment())
        old[1].positions.clear()
    stages, consumer = new
    if consumer.positions:
        await stages.on_partitions_revoked(consumer.assignment())
    log.owner = dict.fromkeys(log.input, consumer)
    consumer.positions = {tp: log.committed.get(tp, 0) for tp in log.input}
    await stages.on_partitions_assigned(set(log.input))


async def chaos(seed: int) -> Log:
    """Two workers, failing sends, partitions that change hands with and without a warning, until all is committed."""
    rng = random.Random(seed)
    log, stopping = Log(2, 150, rng), asyncio.Event()
    members = [await one_worker(log, stopping) for _ in range(2)]
    owner = 0
    await move(log, None, members[0][:2], warn=True)
    async with asyncio.timeout(20):
        while not log.is_done:
            await asyncio.sleep(rng.uniform(0.005, 0.05))
            old, owner = members[owner][:2], rng.choice([owner, 1 - owner])
            if rng.random() < 0.6:
                await move(log, old, members[owner][:2], warn=rng.random() < 0.5)
        stopping.set()
        for _, _, tasks in members:
            await asyncio.gather(*tasks[:3])
            tasks[3].cancel()
    return log


@pytest.mark.parametrize("seed", range(8))
def test_behind_the_filter_everything_is_there_once(seed: int) -> None:
    """Through lost requests, lost answers, rebalances and zombies, a reader with the filter sees each output once."""
    log = asyncio.run(chaos(seed))
    for tp, messages in log.input.items():
        poison = {m.offset for m in messages if m.value == b"poison"}
        flagged = [m.offset for m in messages if b"200.0" in m.value]
        for topic, expected in (
            ("scores", [m.offset for m in messages if m.offset not in poison]),
            ("alerts", flagged),
        ):
            is_fresh = Deduplicator()
            places = [orjson.loads(row[1])["src_offset"] for row in log.topics[topic, tp.partition]]
            assert [at for at in places if is_fresh(tp.partition, at)] == expected
        dead = log.topics.get(("transactions.dlq", tp.partition), [])
        assert {int(dict(row[2])["src_offset"]) for row in dead} == poison


def test_what_a_rebalance_leaves_in_cycles_is_freed_with_it() -> None:
    """The collector is calm and comes round too seldom: the memory of a worker in a lively group would creep up."""

    async def scenario() -> None:
        log, stopping = Log(1, 0, random.Random(1)), asyncio.Event()
        stages, consumer, tasks = await one_worker(log, stopping)
        left = FareScorer()
        left.itself = left  # type: ignore[attr-defined]
        alive = weakref.ref(left)
        del left
        assert alive() is not None
        await move(log, None, (stages, consumer), warn=True)
        async with asyncio.timeout(5):
            await stages._taking_on
        assert alive() is None
        stopping.set()
        await asyncio.gather(*tasks[:3])
        tasks[3].cancel()

    before = gc.get_threshold()
    gc.set_threshold(*CALM)
    try:
        asyncio.run(scenario())
    finally:
        gc.set_threshold(*before)


# -- alerts and scores of transactions that are taken again by a worker with another bundle ---------------------------


class Picky(FareScorer):
    """Flags the fares that it was told to."""

    def __init__(self, bundle_id: str, *fares: float) -> None:
        super().__init__(bundle_id)
        self.fares = fares

    def score(self, columns: dict[str, Any]) -> Any:
        """Scores of the columns."""
        fares = columns["fare_amount"]
        return SimpleNamespace(anomaly_score=fares, is_flagged=np.isin(fares, self.fares), reasons={})


def read_once(log: Log, topic: str, partition: int) -> list[dict[str, Any]]:
    """What a reader with the filter sees."""
    is_fresh = Deduplicator()
    values = [orjson.loads(row[1]) for row in log.topics.get((topic, partition), [])]
    return [value for value in values if is_fresh(partition, value["src_offset"])]


async def changing_bundles(seed: int) -> Log:
    """Workers that are killed in the middle of what they do, sends that fail, and bundles that change all the while."""
    rng = random.Random(seed)
    log, bundles = Log(2, 0, rng), [Picky("a", 110, 130), Picky("b", 120, 130)]
    for tp, messages in log.input.items():
        fares = [rng.choice([12.5, 12.5, 110, 120, 130]) for _ in range(150)]
        messages += [message(i, TRIP | {"fare_amount": fare}, b"k", tp.partition) for i, fare in enumerate(fares)]
    async with asyncio.timeout(30):
        while not log.is_done:
            rng.shuffle(bundles)
            bundle = Fixed(*bundles)
            stages, consumer, tasks = await one_worker(log, asyncio.Event(), bundle)
            await move(log, None, (stages, consumer), warn=True)
            for _ in range(rng.randint(1, 4)):
                await asyncio.sleep(rng.uniform(0.002, 0.02))
                bundle.scorer = rng.choice(bundles)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    return log


@pytest.mark.parametrize("seed", range(8))
def test_alerts_are_those_of_the_scores_through_deaths_and_new_bundles(seed: int) -> None:
    """Readers with the filter see an alert for each flagged score, of the same bundle, and none besides."""
    log = asyncio.run(changing_bundles(seed))
    for tp, messages in log.input.items():
        scores = read_once(log, "scores", tp.partition)
        assert [score["src_offset"] for score in scores] == list(range(len(messages)))
        flagged = [(s["src_offset"], s["bundle_id"]) for s in scores if s["is_flagged"]]
        alerts = [(a["src_offset"], a["bundle_id"]) for a in read_once(log, "alerts", tp.partition)]
        assert alerts == flagged


@pytest.mark.parametrize("is_owner", [True, False])
def test_a_worker_that_was_paused_asks_before_it_publishes(is_owner: bool) -> None:
    """What it had in hand is void where the group went on without it, and published where it did not."""

    async def scenario() -> Log:
        log = Log(1, 0, random.Random(1))
        log.rng.random = lambda: 1.0  # type: ignore[method-assign]
        stages, consumer, tasks = await one_worker(log, asyncio.Event())
        await move(log, None, (stages, consumer), warn=True)
        await asyncio.sleep(0.05)
        (tp,) = log.input
        log.owner[tp] = consumer if is_owner else None
        batch = Batch(stages._epoch, scorer=FareScorer(), taken_at=0.0)
        batch.take(tp, [message(0, TRIP, partition=0)])
        batch.outputs = process(batch.messages, FareScorer())
        await stages._scored.put(batch)
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        return log

    assert bool(asyncio.run(scenario()).topics) is is_owner


def test_rulings_bind_what_has_outputs_and_nothing_else() -> None:
    """Scores say whose an offset is, alerts beyond them too; what is committed or repeated has no say."""
    scores = [Output(3, "old"), Output(5, "a"), Output(6, "a"), Output(5, "b"), Output(8, "b")]
    alerts = [Output(5, "a"), Output(8, "b"), Output(11, "c")]
    assert rulings(5, scores, alerts) == [Ruling(5, 7, "a"), Ruling(7, 9, "b"), Ruling(9, 12, "c")]
    assert rulings(12, scores, alerts) == []


def test_a_bundle_that_is_gone_gives_way_to_the_current_one(tmp_path: Path) -> None:
    """Outputs are data: a name in them is no path, and a bundle that was removed stops nothing."""

    async def scenario() -> list[str | None]:
        bundle, _ = live(tmp_path / "artifacts", load_by_name)
        await bundle.load()
        found = [await bundle.earlier(name) for name in ("first", "second", "gone", "bad", "../outside", "", ".")]
        return [scorer and scorer.bundle_id for scorer in found]

    for name in ("second", "bad", "first"):
        (tmp_path / "artifacts").mkdir(exist_ok=True)
        point(tmp_path / "artifacts", name)
    (tmp_path / "outside").mkdir()
    assert asyncio.run(scenario()) == ["first", "second", None, None, None, None, None]


class Witness(Quarantine):
    """Notes which bundles scored each batch."""

    def __init__(self) -> None:
        super().__init__(Journal(None), load_by_name, Path())
        self.batches: list[set[str]] = []

    def process(self, messages: Any, ranges: Any, scorer: Any, ahead: Any = None) -> Any:
        """Outputs of a batch."""
        out = super().process(messages, ranges, scorer, ahead)
        rows = [row for part in out.scores.values() for row in part]
        self.batches.append({orjson.loads(value or b"")["bundle_id"] for _, value, _ in rows})
        return out


async def swap_under_load(artifacts: Path, swaps: int) -> tuple[Log, Witness, WorkerMetrics]:
    """Make two bundles current in turns, and now and then a bad one, each once the one before has scored."""
    log, stopping, witness = Log(2, 0, random.Random(1)), asyncio.Event(), Witness()
    log.rng.random = lambda: 1.0  # type: ignore[method-assign]
    bundle, metrics = live(artifacts, load_by_name)
    point(artifacts, "b")
    await bundle.load()
    watching = asyncio.create_task(bundle.watch(0.001))
    stages, consumer, tasks = await one_worker(log, stopping, bundle, witness)
    await move(log, None, (stages, consumer), warn=True)
    async with asyncio.timeout(60):
        for swap in range(swaps):
            if swap % 20 == 0:
                point(artifacts, "bad")
                await asyncio.sleep(0.02)
            point(artifacts, "ab"[swap % 2])
            while not witness.batches or "ab"[swap % 2] not in witness.batches[-1]:
                for tp, messages in log.input.items():
                    at = len(messages)
                    messages += [message(at + i, TRIP, b"%d-%d" % (tp.partition, at + i), tp.partition) for i in (0, 1)]
                await asyncio.sleep(0.002)
        for _ in range(1000):
            await asyncio.sleep(0 if log.is_done else 0.01)
        stopping.set()
        await asyncio.gather(*tasks[:3])
    for task in (tasks[3], watching):
        task.cancel()
    return log, witness, metrics


def test_200_swaps_under_load_lose_nothing_and_mix_nothing(tmp_path: Path) -> None:
    """Every message is scored once, every batch by one bundle; a bad bundle is refused while the old one serves."""
    log, witness, metrics = asyncio.run(swap_under_load(tmp_path, 200))
    for tp, messages in log.input.items():
        places = [orjson.loads(row[1])["src_offset"] for row in log.topics["scores", tp.partition]]
        assert places == list(range(len(messages)))
    assert all(len(bundles) == 1 for bundles in witness.batches)
    served = ["".join(bundles) for bundles in witness.batches]
    assert sum(a != b for a, b in itertools.pairwise(served)) >= 199
    assert set(served) == {"a", "b"}
    assert metrics.registry.get_sample_value("fraudlib_worker_reloads_total", {"outcome": "refused"}) == 10


class Slow(Witness):
    """Takes its time over a batch, and notes which were decoded before it was their turn."""

    def __init__(self) -> None:
        super().__init__()
        self.were_ahead: list[bool] = []

    def process(self, messages: Any, ranges: Any, scorer: Any, ahead: Any = None) -> Any:
        """Outputs of a batch."""
        self.were_ahead.append(ahead is not None)
        time.sleep(0.05)
        return super().process(messages, ranges, scorer, ahead)


def test_under_a_backlog_every_next_batch_is_decoded_ahead() -> None:
    """Also where a batch lay ready when the scorer asked for one; only the first has none before it."""

    async def scenario() -> list[bool]:
        log, stopping, slow = Log(1, 150, random.Random(1)), asyncio.Event(), Slow()
        log.rng.random = lambda: 1.0  # type: ignore[method-assign]
        stages, consumer, tasks = await one_worker(log, stopping, Fixed(FareScorer()), slow)
        await move(log, None, (stages, consumer), warn=True)
        for _ in range(2000):
            await asyncio.sleep(0 if log.is_done else 0.01)
        assert log.is_done
        stopping.set()
        await asyncio.gather(*tasks[:3])
        tasks[3].cancel()
        return slow.were_ahead

    were_ahead = asyncio.run(scenario())
    # The last ones need not be full when the scorer asks.
    assert len(were_ahead) >= 150 / 9
    assert all(were_ahead[1:-2]), were_ahead


def test_a_batch_is_cut_only_where_its_scorer_changes() -> None:
    """Whole where all of it is bound to one scorer, or to the live one as far as it is bound; else in its order."""
    live, old = FareScorer("live"), FareScorer("old")
    rng = random.Random(0)
    cuts = 0
    for _ in range(300):
        bindings, batch = Bindings(), Batch(0)
        for partition in range(3):
            for start in range(0, 20, 5):
                if rng.random() < 0.4:
                    bindings.bind(partition, start, start + rng.randint(1, 8), rng.choice([live, live, old]))
            first = rng.randrange(15)
            tp = TopicPartition("transactions", partition)
            batch.take(tp, [message(n, TRIP, partition=partition) for n in range(first, first + rng.randint(1, 8))])
        parts = list(batch.by_scorer(bindings, live))
        found = [(m.partition, m.offset, part.scorer) for part in parts for m in part.messages]
        assert found == [
            (m.partition, m.offset, scorer) for some, scorer in bindings.split(batch.messages, live) for m in some
        ]
        assert all(one.scorer is not two.scorer for one, two in itertools.pairwise(parts))
        cuts += len(parts) > 1
    assert 30 < cuts < 270
