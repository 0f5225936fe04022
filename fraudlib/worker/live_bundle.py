"""The bundle in use: loaded before it serves, replaced as a whole by the next one, kept where that one is refused."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from fraudlib.errors import BundleError
from fraudlib.manifest import current_bundle
from fraudlib.paths import CURRENT
from fraudlib.telemetry import WorkerMetrics
from fraudlib.worker.outputs import Scorer

log = logging.getLogger(__name__)


class LiveBundle:
    """Follows `artifacts/current`.

    Parameters
    ----------
    artifacts : folder of the bundles.
    load_scorer : makes a scorer of a bundle's folder, or raises BundleError.
    metrics : of the worker.
    """

    def __init__(self, artifacts: Path, load_scorer: Callable[[Path], Scorer], metrics: WorkerMetrics) -> None:
        self._artifacts, self._load, self._metrics = artifacts, load_scorer, metrics
        self._scorer: Scorer | None = None
        self._seen: object = None

    @property
    def scorer(self) -> Scorer:
        """Scorer in use; take it once per batch."""
        assert self._scorer is not None, "load() comes first"
        return self._scorer

    async def load(self) -> None:
        """Load the current bundle.

        Raises
        ------
        BundleError
            If none is current, or it must not serve.
        """
        self._seen = pointer_stamp(self._artifacts / CURRENT)
        folder = current_bundle(self._artifacts)
        if folder is None:
            raise BundleError(
                f"{self._artifacts}: expected {CURRENT} to name a bundle, found none; "
                "run 'python -m pipelines retrain' or set FRAUDLIB_ARTIFACTS_DIR"
            )
        self._use(await asyncio.to_thread(self._load, folder))

    async def earlier(self, bundle_id: str) -> Scorer | None:
        """Scorer of a bundle that outputs name, current or not; None, with a log line, where it cannot be had."""
        if bundle_id == self.scorer.bundle_id:
            return self.scorer
        try:
            is_name = bundle_id and "/" not in bundle_id and not bundle_id.startswith(".")
            if not is_name or not (self._artifacts / bundle_id).is_dir():
                raise BundleError(f"{self._artifacts}: no bundle {bundle_id!r}")
            return await asyncio.to_thread(self._load, self._artifacts / bundle_id)
        except Exception as err:
            log.error("bundle of earlier outputs is gone; the current one takes over", extra={"error": str(err)})
            return None

    def _use(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._metrics.bundle.show(scorer.bundle_id, scorer.threshold, self._artifacts)
        log.info("bundle serves", extra={"bundle_id": scorer.bundle_id})

    async def watch(self, seconds: float) -> None:
        """Look for another bundle for ever; one that must not serve is logged, counted and not tried again."""
        while True:
            await asyncio.sleep(seconds)
            if (pointer := pointer_stamp(self._artifacts / CURRENT)) == self._seen:
                continue
            self._seen = pointer
            await self._replace()

    async def _replace(self) -> None:
        try:
            folder = current_bundle(self._artifacts)
            if folder is None or folder.name == self.scorer.bundle_id:
                return
            scorer = await asyncio.to_thread(self._load, folder)
        except Exception as err:
            # Whatever is wrong with the new one, the old one is still good.
            kind = "" if isinstance(err, BundleError) else f"{type(err).__name__}: "
            self._metrics.reloads.labels("refused").inc()
            log.error("new bundle refused", extra={"error": f"{kind}{err}", "serving": self.scorer.bundle_id})
            return
        self._metrics.reloads.labels("loaded").inc()
        self._use(scorer)


def pointer_stamp(path: Path) -> object:
    """Something that changes whenever a pointer is written anew, even to the same name; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
