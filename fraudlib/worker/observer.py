"""Looks at a sample of what was published, off the critical path: drift of the features, and the shadow bundle.

It has a thread of its own, takes what it can in its time, and drops the rest. Nothing here can fail a batch.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from fraudlib.drift import Drift
from fraudlib.settings import Settings
from fraudlib.telemetry import WorkerMetrics
from fraudlib.wire.records import decode
from fraudlib.worker.gpu import CPU, DeviceMetrics
from fraudlib.worker.live_bundle import LiveBundle
from fraudlib.worker.outputs import Message, Outputs, Scorer
from fraudlib.worker.shadow import Shadow

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
SAMPLE: Final = 64  # records of a batch that drift is measured on
BUFFER: Final = 1024  # of them, until the next look
REFERENCE: Final = "reference.json"


class Observer:
    """Takes published batches in, looks at some of them once a second.

    Parameters
    ----------
    bundle : the live one.
    load_scorer : for the shadow bundle; on the CPU, so that a GPU is the live path's alone.
    """

    def __init__(
        self,
        settings: Settings,
        bundle: LiveBundle,
        load_scorer: Callable[[Path], Scorer],
        metrics: WorkerMetrics,
    ) -> None:
        self._settings, self._bundle, self._metrics = settings, bundle, metrics
        self._device = DeviceMetrics(metrics.registry)
        self._shadow = Shadow(settings.artifacts, load_scorer, metrics)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="observe")
        self._messages: list[Message] = []
        self._scores: list[bytes] = []
        self._credit = 0.0
        self._waiting: tuple[Sequence[Message], Outputs] | None = None
        self._drift: tuple[str, Drift | None, Drift | None] = ("", None, None)

    def offer(self, messages: Sequence[Message], outputs: Outputs) -> None:
        """Note a published batch; costs a few microseconds."""
        if len(self._messages) < BUFFER:
            self._messages += messages[:: 1 + len(messages) // SAMPLE]
            for rows in outputs.scores.values():
                self._scores += [value or b"" for _, value, _ in rows[:: 1 + len(rows) // SAMPLE]]
        # A full batch means that the live path is behind, and needs the processor itself.
        if not self._shadow.is_there or len(messages) >= self._settings.batch_max_records:
            return
        self._credit = min(1.0, self._credit + self._settings.shadow_share)
        if self._credit >= 1.0 and self._waiting is None:
            self._credit -= 1.0
            self._waiting = (messages, outputs)

    async def run(self) -> None:
        """Look for ever. The shadow rests after each batch as its share demands, so that it takes no more time."""
        loop = asyncio.get_running_loop()
        next_look = 0.0
        rest = LOOK_SECONDS
        try:
            while True:
                await asyncio.sleep(min(LOOK_SECONDS, rest))
                if loop.time() >= next_look:
                    next_look = loop.time() + LOOK_SECONDS
                    messages, self._messages = self._messages, []
                    scores, self._scores = self._scores, []
                    await loop.run_in_executor(self._executor, self._look, messages, scores)
                rest = LOOK_SECONDS
                if waiting := self._waiting:
                    started = loop.time()
                    await loop.run_in_executor(self._executor, self._compare, *waiting)
                    self._waiting = None
                    rest = max(0.01, (loop.time() - started) * (1 / self._settings.shadow_share - 1))
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _compare(self, messages: Sequence[Message], outputs: Outputs) -> None:
        try:
            self._shadow.compare(messages, outputs)
        except Exception as err:
            self._metrics.failures.labels("shadow").inc()
            log.warning("shadow bundle failed", extra={"error": repr(err)})

    def _show_device(self) -> None:
        scorer = self._bundle.scorer
        try:
            self._device.show(getattr(getattr(scorer, "inner", scorer), "device", CPU))
        except Exception as err:
            log.debug("device not read", extra={"error": repr(err)})

    def _look(self, messages: Sequence[Message], scores: Sequence[bytes]) -> None:
        self._show_device()
        try:
            if self._settings.shadow_share > 0:
                self._shadow.refresh()
            self._measure(messages, scores)
        except Exception as err:
            self._metrics.failures.labels("drift").inc()
            log.warning("drift not measured", extra={"error": repr(err)})

    def _measure(self, messages: Sequence[Message], scores: Sequence[bytes]) -> None:
        scorer = self._bundle.scorer
        statistics = getattr(getattr(scorer, "inner", scorer), "statistics", None)
        if statistics is None:
            return
        from fraudlib.features import build

        features, anomaly = self._of(scorer.bundle_id)
        if features is None or anomaly is None:
            return
        decoded = decode([message.value for message in messages])
        if decoded.rows:
            features.add(build(decoded.columns, statistics))
        if scores:
            anomaly.add(np.array([[orjson.loads(value)["anomaly_score"]] for value in scores], dtype=np.float64))
        self._metrics.drift_rows.set(features.rows)
        for name, value in {**features.index(), **anomaly.index()}.items():
            self._metrics.drift.labels(name).set(value)

    def _of(self, bundle_id: str) -> tuple[Drift | None, Drift | None]:
        """Windows against the bundle's own reference, begun anew with each bundle."""
        if self._drift[0] != bundle_id:
            from fraudlib.features import FEATURE_NAMES

            self._drift = (bundle_id, None, None)
            self._metrics.drift.clear()
            reference: dict[str, Any] = json.loads((self._settings.artifacts / bundle_id / REFERENCE).read_bytes())
            window = self._settings.drift_window_seconds
            self._drift = (
                bundle_id,
                Drift(reference, FEATURE_NAMES, window),
                Drift(reference, ["anomaly_score"], window),
            )
        return self._drift[1:]
