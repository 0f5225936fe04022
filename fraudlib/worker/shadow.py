"""A second bundle that is scored beside the live one, so that it can be known before it serves.

`artifacts/shadow` names its folder, as `artifacts/current` names the live one. It writes no scores and no alerts: what
comes of it is how often, and by how much, it disagrees.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from fraudlib.manifest import pointed_bundle
from fraudlib.paths import SHADOW
from fraudlib.telemetry import WorkerMetrics
from fraudlib.wire.records import decode
from fraudlib.worker.live_bundle import pointer_stamp
from fraudlib.worker.outputs import Message, Outputs, Scorer

log = logging.getLogger(__name__)

ROWS: Final = 1024  # of a batch that are scored at most


class Shadow:
    """Follows `artifacts/shadow` and compares. Every method may be slow: call it off the event loop, from one thread.

    Parameters
    ----------
    artifacts : folder of the bundles.
    load_scorer : makes a scorer of a bundle's folder.
    metrics : of the worker.
    """

    def __init__(self, artifacts: Path, load_scorer: Callable[[Path], Scorer], metrics: WorkerMetrics) -> None:
        self._artifacts, self._load, self._metrics = artifacts, load_scorer, metrics
        self._stamp: object = None
        self._scorer: Scorer | None = None

    @property
    def is_there(self) -> bool:
        """Whether there is a bundle to compare with."""
        return self._scorer is not None

    def refresh(self) -> None:
        """Load what the pointer names, if it was written since; one that cannot be loaded is logged and counted."""
        if (stamp := pointer_stamp(self._artifacts / SHADOW)) == self._stamp:
            return
        self._stamp, self._scorer = stamp, None
        self._metrics.shadow_bundle.clear()
        try:
            folder = pointed_bundle(self._artifacts, SHADOW)
            self._scorer = None if folder is None else self._load(folder)
        except Exception as err:
            self._metrics.failures.labels("shadow").inc()
            log.error("shadow bundle refused", extra={"error": str(err)})
        if self._scorer:
            self._metrics.shadow_bundle.labels(self._scorer.bundle_id).set(1)
            log.info("bundle is scored in the shadow", extra={"bundle_id": self._scorer.bundle_id})

    def compare(self, messages: Sequence[Message], outputs: Outputs) -> None:
        """Score some of a batch's messages and count where the live outputs differ.

        Raises
        ------
        Exception
            Whatever the shadow's model raises.
        """
        if self._scorer is None:
            return
        messages = messages[:: 1 + (len(messages) - 1) // ROWS]
        live = _verdicts(outputs, {(m.partition, m.offset) for m in messages})
        decoded = decode([m.value for m in messages])
        places = [(messages[row].partition, messages[row].offset) for row in decoded.rows]
        shared = [row for row, place in enumerate(places) if place in live]
        if not shared:
            return
        scores = self._scorer.score(decoded.columns)
        theirs = np.array([live[places[row]] for row in shared], dtype=np.float64)
        score, flagged = scores.anomaly_score[shared], scores.is_flagged[shared]
        usable = np.isfinite(score)
        self._count(score[usable], flagged[usable], theirs[usable, 0], theirs[usable, 1] > 0)
        if not usable.all():
            self._metrics.failures.labels("shadow").inc()

    def _count(self, score: Any, flagged: Any, live_score: Any, live_flagged: Any) -> None:
        metrics = self._metrics
        metrics.shadow_transactions.inc(len(score))
        metrics.shadow_difference.observe_many(np.abs(score - live_score))
        metrics.shadow_disagreements.labels("shadow").inc(int((flagged & ~live_flagged).sum()))
        metrics.shadow_disagreements.labels("live").inc(int((live_flagged & ~flagged).sum()))


def _verdicts(outputs: Outputs, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], tuple[float, bool]]:
    """Live score and flag by source position, of the wanted ones."""
    found: dict[tuple[int, int], tuple[float, bool]] = {}
    for partition, rows in outputs.scores.items():
        for _, value, _ in rows:
            score = orjson.loads(value or b"{}")
            place = (partition, score["src_offset"])
            if place in wanted:
                found[place] = (score["anomaly_score"], score["is_flagged"])
    return found
