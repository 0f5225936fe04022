"""Which bundle already spoke on transactions that are taken again.

A worker that dies between the alerts of a batch and its commit leaves alerts that readers have seen. If another bundle
then scored the batch anew, it might flag an earlier transaction, whose alert the readers' filter would drop, or not
flag one that was alerted. So what has outputs beyond the committed place is scored by the bundle that wrote them.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from fraudlib.schema import TOPIC_ALERTS, TOPIC_SCORES
from fraudlib.settings import Settings
from fraudlib.wire.delivery import Deduplicator
from fraudlib.wire.kafka import client_options
from fraudlib.worker.outputs import Message, Scorer

READ_SECONDS: Final = 10.0
STEP: Final = 64  # records read back at first; most of the time they show that there is nothing
MOST: Final = 65536  # records read back at most, more than a worker has under way


@dataclass(frozen=True)
class Output:
    """A score or alert: the input's offset, and the bundle that it is of."""

    src_offset: int
    bundle_id: str


@dataclass(frozen=True)
class Ruling:
    """Offsets [start, stop) of a partition belong to a bundle."""

    start: int
    stop: int
    bundle_id: str


class Bindings:
    """Ranges of offsets that a scorer is bound to, whichever bundle is live by now."""

    def __init__(self) -> None:
        self._bound: dict[int, list[tuple[int, int, Scorer]]] = {}

    def __bool__(self) -> bool:
        return bool(self._bound)

    def bind(self, partition: int, start: int, stop: int, scorer: Scorer) -> None:
        """Bind offsets [start, stop); what is bound already stays so."""
        self._bound.setdefault(partition, []).append((start, stop, scorer))

    def clear(self) -> None:
        """Release everything."""
        self._bound = {}

    def release(self, next_offsets: Mapping[int, int]) -> None:
        """Release what lies before the next offsets of the partitions."""
        for partition, offset in next_offsets.items():
            if partition in self._bound:
                self._bound[partition] = [bound for bound in self._bound[partition] if bound[1] > offset]
        self._bound = {partition: bound for partition, bound in self._bound.items() if bound}

    def only(self, ranges: Mapping[int, tuple[int, int]], scorer: Scorer) -> Scorer | None:
        """The scorer of all offsets in the ranges, None where there are or may be several; see `split`."""
        chosen: list[Scorer] = []
        for partition, (start, stop) in ranges.items():
            over = [bound for bound in self._bound.get(partition, ()) if bound[0] < stop and start < bound[1]]
            chosen += [bound for _, _, bound in over]
            if not any(first <= start and stop <= last for first, last, _ in over):
                chosen.append(scorer)
        return chosen[0] if chosen and all(one is chosen[0] for one in chosen) else None

    def split(self, messages: Iterable[Message], scorer: Scorer) -> list[tuple[list[Message], Scorer]]:
        """Messages in their order, cut where the scorer changes; `scorer` is that of what is not bound."""
        pieces: list[tuple[list[Message], Scorer]] = []
        for message in messages:
            chosen = scorer
            for start, stop, bound in self._bound.get(message.partition, ()):
                if start <= message.offset < stop:
                    chosen = bound
                    break
            if not pieces or pieces[-1][1] is not chosen:
                pieces.append(([], chosen))
            pieces[-1][0].append(message)
        return pieces


def rulings(start: int, scores: Sequence[Output], alerts: Sequence[Output]) -> list[Ruling]:
    """Which bundle the offsets from `start` on belong to, as far as there are outputs.

    Parameters
    ----------
    scores, alerts : of the partition, in the order of the log; of repetitions the first counts, as for the readers.
    """
    found: list[Ruling] = []
    is_fresh = Deduplicator()
    # Alerts beyond the last score are of the one batch whose scores were not written.
    for output in (*scores, *alerts):
        if output.src_offset < start or not is_fresh(0, output.src_offset):
            continue
        if found and found[-1].bundle_id == output.bundle_id:
            found[-1] = Ruling(found[-1].start, output.src_offset + 1, output.bundle_id)
        else:
            found.append(Ruling(found[-1].stop if found else start, output.src_offset + 1, output.bundle_id))
    return found


async def read(settings: Settings, starts: Mapping[int, int]) -> dict[int, list[Ruling]]:
    """Rulings on the inputs of each partition from its committed place on.

    Raises
    ------
    aiokafka.errors.KafkaError, TimeoutError
        If the broker does not answer.
    """
    consumer = AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False, fetch_max_wait_ms=10)
    try:
        async with asyncio.timeout(READ_SECONDS):
            await consumer.start()
            tails = await _tails(consumer, starts)
    finally:
        await asyncio.wait([asyncio.ensure_future(consumer.stop())], timeout=2)
    return {p: rulings(start, tails[TOPIC_SCORES, p], tails[TOPIC_ALERTS, p]) for p, start in starts.items()}


async def _tails(consumer: AIOKafkaConsumer, starts: Mapping[int, int]) -> dict[tuple[str, int], list[Output]]:
    """Outputs at the end of each partition, by topic, as far back as they may be of inputs from `starts` on."""
    waiting = [TopicPartition(topic, partition) for topic in (TOPIC_SCORES, TOPIC_ALERTS) for partition in starts]
    begins, ends = await consumer.beginning_offsets(waiting), await consumer.end_offsets(waiting)
    tails: dict[tuple[str, int], list[Output]] = {}
    back = STEP
    while waiting:
        consumer.assign(waiting)
        for tp in waiting:
            consumer.seek(tp, max(begins[tp], ends[tp] - back))
        for tp, messages in (await _to_the_end(consumer, waiting)).items():
            outputs = [output for message in messages if (output := _output(message.value))]
            start = starts[tp.partition]
            # Nothing new in the whole tail, or its beginning is old: further back there is nothing of interest.
            is_whole = not outputs or outputs[0].src_offset < start or all(o.src_offset < start for o in outputs)
            if is_whole or ends[tp] - back <= begins[tp] or back >= MOST:
                tails[tp.topic, tp.partition] = outputs
        waiting = [tp for tp in waiting if (tp.topic, tp.partition) not in tails]
        back *= 32
    return tails


async def _to_the_end(
    consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, list[Any]]:
    """Messages from where the consumer stands to the end, as the fetches tell it.

    Asked for the end itself, the embedded broker answers with the beginning of the last batch.
    """
    found: dict[TopicPartition, list[Any]] = {tp: [] for tp in partitions}
    waiting = set(partitions)
    while waiting:
        for tp, messages in (await consumer.getmany(timeout_ms=50)).items():
            found[tp] += messages
        ends = {tp: consumer.highwater(tp) for tp in waiting}
        waiting = {tp for tp, end in ends.items() if end is None or await consumer.position(tp) < end}
    return found


def _output(value: bytes | None) -> Output | None:
    try:
        content = orjson.loads(value or b"")
        return Output(int(content["src_offset"]), str(content["bundle_id"]))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
