"""The three stages of a worker: fetch, score, publish, one batch in each, and the offsets that follow them.

What makes the reader's filter right is that no output is written before all outputs of earlier inputs of its
partition are acknowledged. So a batch is void as soon as one before it failed or its partition went away: the epoch
moves on, and the partition is read again from the last acknowledged place.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Final

import numpy as np
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from numpy.typing import NDArray

from fraudlib.schema import TOPIC_ALERTS, TOPIC_DEAD_LETTERS, TOPIC_SCORES
from fraudlib.settings import Settings
from fraudlib.telemetry import WorkerMetrics, collect_leftovers
from fraudlib.wire.kafka import NotSentError, OutcomeUnknownError, Publisher
from fraudlib.worker.batch import Batch
from fraudlib.worker.journal import Journal
from fraudlib.worker.live_bundle import LiveBundle
from fraudlib.worker.observer import Observer
from fraudlib.worker.outputs import Outputs
from fraudlib.worker.precedents import Bindings, Ruling
from fraudlib.worker.publish_timeout import PublishTimeout
from fraudlib.worker.quarantine import Quarantine

log = logging.getLogger(__name__)

POLL_MS: Final = 200
COMMIT_SECONDS: Final = 5.0
COMMIT_PAUSE: Final = 0.1  # seconds; a commit for every small batch would cost as much as its scores
REVOKE_SECONDS: Final = 8.0
POLL_FAILURES: Final = 10
MANY: Final = 512  # messages of one poll, as they come only where more wait


ReadPrecedents = Callable[[Mapping[int, int]], Awaitable[dict[int, list[Ruling]]]]


class Stages(ConsumerRebalanceListener):  # type: ignore[misc]
    """Moves messages from the consumer through the scorer to the publisher; also listens to the group's rebalances.

    Parameters
    ----------
    consumer : started, without automatic commits.
    publisher : started.
    quarantine : scores the batches.
    journal : of the assigned partitions.
    observer : sees every published batch.
    precedents : tells which bundles have outputs from given offsets on.
    reconnect : makes the publisher anew, with patience; False where the worker is to stop instead.
    stopping : set when no more messages are to be taken.

    Attributes
    ----------
    last_progress : when messages were last taken. waits_for_messages : whether a poll is under way.
    scoring_since : since when the batch in hand is being scored, None between batches.
    """

    def __init__(
        self,
        settings: Settings,
        consumer: AIOKafkaConsumer,
        publisher: Publisher,
        bundle: LiveBundle,
        quarantine: Quarantine,
        journal: Journal,
        observer: Observer,
        precedents: ReadPrecedents,
        executor: Executor,
        metrics: WorkerMetrics,
        reconnect: Callable[[], Any],
        stopping: asyncio.Event,
    ) -> None:
        self._settings, self._consumer, self._publisher = settings, consumer, publisher
        self._bundle, self._executor, self._metrics = bundle, executor, metrics
        self._quarantine, self._journal, self._observer = quarantine, journal, observer
        self._precedents, self._bindings = precedents, Bindings()
        self._reconnect, self._stopping = reconnect, stopping
        self._fetched: asyncio.Queue[Batch | None] = asyncio.Queue(1)
        self._scored: asyncio.Queue[Batch | None] = asyncio.Queue(1)
        self._hungry = asyncio.Event()  # the scorer waits for a batch
        self._look_again = asyncio.Event()  # it does, or the pause between two polls is over
        self._idle = asyncio.Event()  # nothing is being published
        self._idle.set()
        self._dirty = asyncio.Event()  # something is acknowledged and not committed
        self._commit_lock = asyncio.Lock()
        self._epoch = 0
        self._assignment = 0
        self._next: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        self.is_assigned = False
        self.last_progress = time.monotonic()
        self.waits_for_messages = False
        self.scoring_since: float | None = None
        self._taking_on: asyncio.Task[None] | None = None
        self._publish_timeout = PublishTimeout(settings.watchdog_seconds)

    async def fetch(self) -> None:
        """First stage: poll; while the scorer is busy, let the batch grow."""
        failures = 0
        while not self._stopping.is_set():
            self.waits_for_messages = True
            try:
                batch = await self._poll(POLL_MS, self._settings.batch_max_records)
                failures = 0
            except KafkaError as err:
                failures += 1
                self._metrics.failures.labels("fetch").inc()
                log.warning("poll failed", extra={"error": repr(err)})
                if failures >= POLL_FAILURES:
                    raise
                await asyncio.sleep(1)
                continue
            self.waits_for_messages = False
            if batch is None:
                continue
            pause = self._settings.batch_wait_ms / 1000
            while not self._hungry.is_set() and (room := self._settings.batch_max_records - len(batch.messages)) > 0:
                # A poll lets the client fetch, which the broker answers for a single message: asked at once, it would
                # keep both of them busy with one message at a time, while the scorer needs the processor.
                await self._hungry_within(pause)
                more = await self._poll(0, room)
                # After a large answer the next one is likely to be there already.
                pause = self._settings.batch_wait_ms / 1000 if more and len(more.messages) >= MANY else 2 * pause
                if batch.epoch != self._epoch:
                    batch = more or Batch(self._epoch)
                elif more:
                    batch.join(more)
            if not self._hungry.is_set():
                # Full, and not yet its turn: by then its beginning is decoded, or all of it scored.
                batch.ahead = self._quarantine.begin(batch.messages, batch.ranges, self._bundle.scorer)
            self._hungry.clear()
            await self._fetched.put(batch)
        await self._fetched.put(None)

    async def _hungry_within(self, seconds: float) -> None:
        """Return when the scorer waits for a batch, at the latest after so many seconds."""
        timer = asyncio.get_running_loop().call_later(seconds, self._look_again.set)
        try:
            await self._look_again.wait()
        finally:
            timer.cancel()
            self._look_again.clear()

    async def _poll(self, timeout_ms: int, records: int) -> Batch | None:
        polled = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=records)
        # No await between the poll's end and here: the epoch is that of the moment the messages were handed out.
        if not polled or not self.is_assigned:
            return None
        batch, now = Batch(self._epoch), time.time()
        for tp, messages in polled.items():
            batch.take(tp, messages)
        self._metrics.queue.observe_many(_ages(batch.times, now))
        self.last_progress = time.monotonic()
        return batch

    async def score(self) -> None:
        """Second stage; off the event loop, so that heartbeats go on, but for the few rows that take a millisecond."""
        loop = asyncio.get_running_loop()
        while (fetched := await self._next_fetched()) is not None:
            for batch in fetched.by_scorer(self._bindings, self._bundle.scorer):
                if batch.epoch != self._epoch or not batch.messages:
                    continue
                self._metrics.batch.observe(len(batch.messages))
                with self._metrics.score.time():
                    if self._is_quick(batch):
                        batch.outputs = self._process(batch)
                    else:
                        batch.outputs = await loop.run_in_executor(self._executor, self._process, batch)
                await self._scored.put(batch)
                # While the publisher has not even taken this one, the next may as well grow: it would wait scored.
                await self._scored.join()
        await self._scored.put(None)

    def _is_quick(self, batch: Batch) -> bool:
        """Whether a batch is scored sooner than it is handed to another thread and back."""
        return len(batch.messages) <= getattr(batch.scorer, "quick_rows", 0) and self._quarantine.is_calm

    def _process(self, batch: Batch) -> Outputs:
        assert batch.scorer is not None, "score() chose one"
        # Kept by the thread itself: a cancelled wait for it says nothing about whether it is done.
        self.scoring_since = time.monotonic()
        try:
            return self._quarantine.process(batch.messages, batch.ranges, batch.scorer, batch.ahead)
        finally:
            self.scoring_since = None

    async def _next_fetched(self) -> Batch | None:
        self._hungry.set()
        self._look_again.set()
        batch = await self._fetched.get()
        # Fed at once where one lay ready: the one after it is to grow, and to be decoded ahead.
        self._hungry.clear()
        return batch

    async def publish(self) -> None:
        """Third stage: alerts and dead letters acknowledged, then scores, then the offsets are due."""
        while (batch := await self._scored.get()) is not None:
            self._scored.task_done()
            if time.monotonic() - batch.taken_at > self._settings.session_timeout_ms / 1000:
                # The process may have been paused, and the group gone on without it: a commit tells.
                await self.commit(always=True)
            if batch.epoch != self._epoch:
                continue
            self._idle.clear()
            try:
                with self._metrics.publish.time():
                    await self._emit(batch.outputs)
            except (NotSentError, OutcomeUnknownError) as err:
                self._metrics.failures.labels("publish").inc()
                log.warning("batch not published; it is taken again", extra={"error": str(err)})
                self._bind(batch)
                self._rewind()
                self._idle.set()
                if not await self._reconnect():
                    raise
                self._publish_timeout.failed(err)
            else:
                self._publish_timeout.succeeded()
                self._acknowledge(batch)
                self._idle.set()

    def _bind(self, batch: Batch) -> None:
        """See to it that a batch, of which alerts may be out, is not scored by another bundle when it comes again."""
        assert batch.scorer is not None, "score() chose one"
        for partition, (start, stop) in batch.ranges.items():
            self._bindings.bind(partition, start, stop, batch.scorer)

    async def _emit(self, outputs: Outputs) -> None:
        # All end before the first error counts: nothing of this batch may still be under way when it starts again.
        first = {(TOPIC_ALERTS, partition): rows for partition, rows in outputs.alerts.items()}
        first |= {(TOPIC_DEAD_LETTERS, partition): rows for partition, rows in outputs.dead_letters.items()}
        if first:
            await self._publisher.send_parts(first)
        scores = {(TOPIC_SCORES, partition): rows for partition, rows in outputs.scores.items()}
        await self._publisher.send_parts(scores)

    def _acknowledge(self, batch: Batch) -> None:
        outputs, metrics = batch.outputs, self._metrics
        metrics.transactions.inc(outputs.scored)
        metrics.post_to_score.observe_many(_ages(batch.times, time.time()))
        for scores in outputs.anomaly_scores:
            metrics.anomaly_score.observe_many(scores)
        for name in outputs.alert_fields:
            metrics.alerts.labels(name).inc()
        for cause in outputs.causes:
            metrics.dead_letters.labels(cause).inc()
        self._observer.offer(batch.messages, outputs)
        if batch.epoch == self._epoch:
            self._next |= batch.next_offsets
            self._dirty.set()
            if self._bindings:
                self._bindings.release({tp.partition: offset for tp, offset in self._next.items()})

    def _rewind(self) -> None:
        """Void what is under way and read every partition again from its last acknowledged place."""
        self._epoch += 1
        for tp in self._consumer.assignment():
            if tp in self._next:
                self._consumer.seek(tp, self._next[tp])

    async def commit_when_due(self) -> None:
        """Commit in the background; one commit covers all batches that were acknowledged meanwhile."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if await self.commit():
                await asyncio.sleep(COMMIT_PAUSE)
            else:
                await asyncio.sleep(1)
                self._dirty.set()

    async def commit(self, always: bool = False) -> bool:
        """Commit what is acknowledged, if it is not yet or `always`; False where the broker did not take it."""
        async with self._commit_lock:
            epoch = self._epoch
            due = {tp: n for tp, n in self._next.items() if always or n > self._committed.get(tp, -1)}
            if not due:
                return True
            try:
                async with asyncio.timeout(COMMIT_SECONDS):
                    await self._consumer.commit(due)
            except (CommitFailedError, IllegalStateError) as err:
                log.warning("the group went on without this worker; its batches are void", extra={"error": repr(err)})
                self._metrics.failures.labels("commit").inc()
                if epoch == self._epoch:
                    self._lose()
                return True
            except (KafkaError, TimeoutError) as err:
                self._metrics.failures.labels("commit").inc()
                log.warning("offsets not committed", extra={"error": repr(err)})
                return False
            self._committed |= due
            return True

    def _lose(self) -> None:
        self._epoch += 1
        self._assignment += 1
        self.is_assigned = False
        self._next, self._committed = {}, {}
        self._bindings.clear()
        self._journal.close_all()

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Finish what is being published, commit it, and void the rest."""
        self._epoch += 1
        self.is_assigned = False
        try:
            async with asyncio.timeout(REVOKE_SECONDS):
                await self._idle.wait()
                await self.commit()
        except TimeoutError:
            log.warning("partitions leave with a batch under way; readers filter what comes twice")
        self._lose()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        """Start each partition at its committed place, whatever was polled in between.

        The client sends no heartbeats until this returns, so the outputs of a predecessor are read afterwards.
        """
        if not assigned:
            return
        partitions = list(assigned)
        committed = {tp: await self._consumer.committed(tp) for tp in partitions}
        fresh = [tp for tp in partitions if committed[tp] is None]
        starts = await self._consumer.beginning_offsets(fresh) if fresh else {}
        self._next = {tp: starts[tp] if committed[tp] is None else committed[tp] for tp in partitions}
        self._committed = dict(self._next)
        for tp in partitions:
            if died_on := self._journal.open(tp.partition):
                self._metrics.failures.labels("crash").inc()
                log.warning(
                    "a worker died while it scored this range; it is taken in small pieces",
                    extra={"partition": tp.partition, "start": died_on.start, "stop": died_on.stop},
                )
        self._rewind()
        self._assignment += 1
        self._taking_on = asyncio.create_task(self._take_on(self._assignment, partitions))

    async def _take_on(self, assignment: int, partitions: list[TopicPartition]) -> None:
        """Learn which bundles began what is to come, then let the messages in."""
        starts = {tp.partition: self._next[tp] for tp in partitions}
        pause = 0.2
        while assignment == self._assignment:
            try:
                found = await self._precedents(starts)
                names = {ruling.bundle_id for rulings in found.values() for ruling in rulings}
                scorers = {name: await self._bundle.earlier(name) for name in sorted(names)}
                break
            except Exception as err:
                self._metrics.failures.labels("assign").inc()
                log.warning("outputs of the predecessor not read; trying again", extra={"error": repr(err)})
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5.0)
        if assignment != self._assignment:
            return
        self._bindings.clear()
        for partition, rulings in found.items():
            for ruling in rulings:
                if scorer := scorers[ruling.bundle_id]:
                    self._bindings.bind(partition, ruling.start, ruling.stop, scorer)
        if names:
            log.info("transactions with outputs are taken again by their bundles", extra={"bundles": sorted(names)})
        self._rewind()
        self.is_assigned = True
        self._metrics.rebalances.inc()
        collect_leftovers()
        log.info("partitions assigned", extra={"partitions": sorted(starts)})

    async def settled(self) -> None:
        """Return when nothing is being published: without partitions all else that is under way is void."""
        await self._idle.wait()

    def lags(self) -> dict[TopicPartition, int]:
        """Messages that wait, per assigned partition, as of the last answer of the broker."""
        lags = {}
        for tp in self._consumer.assignment():
            high = self._consumer.highwater(tp)
            if high is not None and tp in self._next:
                lags[tp] = max(0, high - self._next[tp])
        return lags


def _ages(times: Sequence[NDArray[np.int64]], now: float) -> NDArray[np.float64]:
    """Seconds since the times in ms, (n,); the clocks of two machines may differ, an age is not negative."""
    return np.maximum(now - np.concatenate(times) / 1000, 0.0)
