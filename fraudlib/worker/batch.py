"""A micro-batch on its way through the worker."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from aiokafka import TopicPartition
from numpy.typing import NDArray

from fraudlib.worker.outputs import Outputs, Scorer
from fraudlib.worker.precedents import Bindings
from fraudlib.worker.quarantine import Ahead


@dataclass
class Batch:
    """Messages of some polls.

    Attributes
    ----------
    epoch : the batch is void once the worker's epoch is another.
    ranges : partition -> first offset, and the one after the last.
    next_offsets : where each partition goes on afterwards.
    scorer, outputs : what they are scored by, and what came of it.
    ahead : work on them that was begun before it is their turn, None where none was.
    times : of the messages in ms since 1970, an array for each `take`.
    taken_at : when the first of them were polled, monotonic, in s.
    """

    epoch: int
    messages: list[Any] = field(default_factory=list)
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)
    next_offsets: dict[TopicPartition, int] = field(default_factory=dict)
    scorer: Scorer | None = None
    outputs: Outputs = field(default_factory=Outputs)
    ahead: Ahead | None = None
    times: list[NDArray[np.int64]] = field(default_factory=list)
    taken_at: float = field(default_factory=time.monotonic)

    def take(self, tp: TopicPartition, messages: list[Any]) -> None:
        """Add messages of a partition, which follow those that are there."""
        self.messages += messages
        self.times.append(np.array([m.timestamp for m in messages], dtype=np.int64))
        stop = self.next_offsets[tp] = messages[-1].offset + 1
        start, _ = self.ranges.get(tp.partition, (messages[0].offset, 0))
        self.ranges[tp.partition] = (start, stop)

    def join(self, more: "Batch") -> None:
        """Add what was polled next."""
        self.messages += more.messages
        self.times += more.times
        self.next_offsets |= more.next_offsets
        for partition, (start, stop) in more.ranges.items():
            self.ranges[partition] = (self.ranges.get(partition, (start, 0))[0], stop)

    def by_scorer(self, bindings: Bindings, scorer: Scorer) -> Iterator["Batch"]:
        """The batch as it is, or cut where another scorer is bound: what is published at once is of one bundle."""
        # Mostly what is bound is bound to the scorer that serves.
        only = bindings.only(self.ranges, scorer) if bindings else scorer
        if only is not None:
            self.scorer = only
            yield self
            return
        for messages, chosen in bindings.split(self.messages, scorer):
            part = Batch(self.epoch, scorer=chosen, taken_at=self.taken_at)
            for (topic, partition), run in groupby(messages, lambda m: (m.topic, m.partition)):
                part.take(TopicPartition(topic, partition), list(run))
            yield part
