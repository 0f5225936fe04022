"""A scorer that lets neither a full memory nor a lost GPU stop the work."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fraudlib.telemetry import WorkerMetrics
from fraudlib.worker.outputs import ModelError, Scorer, Scores

log = logging.getLogger(__name__)

Columns = dict[str, NDArray[Any]]
LoadScorer = Callable[[Path], Scorer]

# What PyTorch's messages say where the device, and not the input, is at fault. The context of such a process is lost.
_DEVICE_WORDS = ("cuda error", "cudnn", "cublas", "cuda driver", "device-side assert", "no kernel image")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host's or the device's memory was too small."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "out of memory" in str(error).lower())


def is_device_error(error: BaseException) -> bool:
    """Whether the device failed; a full memory is none of it."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and any(w in text for w in _DEVICE_WORDS)


@dataclass(frozen=True)
class _Joined:
    anomaly_score: NDArray[np.float64]
    is_flagged: NDArray[np.bool_]
    reasons: dict[int, list[dict[str, Any]]]


def _join(first: Scores, second: Scores) -> _Joined:
    n = len(first.anomaly_score)
    return _Joined(
        np.concatenate([first.anomaly_score, second.anomaly_score]),
        np.concatenate([first.is_flagged, second.is_flagged]),
        {**first.reasons, **{n + row: reasons for row, reasons in second.reasons.items()}},
    )


class FallbackLoader:
    """Loads bundles for a device, and for the CPU once that device was lost.

    Parameters
    ----------
    load : makes a scorer of a bundle's folder on the device of the settings.
    load_on_cpu : the same on the CPU; None where there is nothing to fall back to.
    metrics : of the worker.
    """

    def __init__(self, load: LoadScorer, load_on_cpu: LoadScorer | None, metrics: WorkerMetrics) -> None:
        self._load, self._load_on_cpu, self._metrics = load, load_on_cpu, metrics
        self._is_device_lost = False

    def __call__(self, folder: Path) -> "FallbackScorer":
        """Scorer of a bundle.

        Raises
        ------
        BundleError
            If the bundle must not serve.
        """
        if self._is_device_lost and self._load_on_cpu:
            return FallbackScorer(self._load_on_cpu(folder), None, self._metrics)
        return FallbackScorer(self._load(folder), lambda: self._fall_back(folder), self._metrics)

    def _fall_back(self, folder: Path) -> Scorer | None:
        self._is_device_lost = True
        return self._load_on_cpu(folder) if self._load_on_cpu else None


class FallbackScorer:
    """Halves a batch that memory is too small for, and goes on on the CPU, once, when the device fails.

    Parameters
    ----------
    scorer : does the work.
    fall_back : makes the scorer for the CPU, or None where that is not possible.
    metrics : of the worker.
    """

    def __init__(self, scorer: Scorer, fall_back: Callable[[], Scorer | None] | None, metrics: WorkerMetrics) -> None:
        self.inner = scorer
        self.bundle_id, self.threshold = scorer.bundle_id, scorer.threshold
        self.block: float | None = getattr(scorer, "block", None)
        self._fall_back, self._metrics = fall_back, metrics
        self._limit: int | None = None  # rows that memory was last enough for

    @property
    def quick_rows(self) -> int:
        """See `Scorer.quick_rows`."""
        return getattr(self.inner, "quick_rows", 0)

    def score(self, columns: Columns, /) -> Scores:
        """Scores of the columns.

        Raises
        ------
        ModelError
            If the device fails and there is no other.
        """
        n = len(next(iter(columns.values()))) if columns else 0
        scores, start = None, 0
        while scores is None or start < n:
            stop = n if self._limit is None else min(n, start + self._limit)
            part = columns if stop - start == n else {name: values[start:stop] for name, values in columns.items()}
            if (more := self._attempt(part, stop - start)) is None:
                continue
            scores = more if scores is None else _join(scores, more)
            start = stop
            if self._limit is not None:
                # Memory may be free again: the next part is allowed more, and the limit ends where it limits nothing.
                self._limit = self._limit * 2 if self._limit < n else None
        return scores

    def _attempt(self, columns: Columns, n: int) -> Scores | None:
        """Scores, or None where another attempt, smaller or on another device, is due."""
        try:
            return self.inner.score(columns)
        except (RuntimeError, MemoryError) as err:
            if is_out_of_memory(err):
                self._metrics.failures.labels("memory").inc()
                if n > 1:
                    self._limit = n // 2
                    log.warning("out of memory; the batch is halved", extra={"rows": n, "error": str(err)[:200]})
                    return None
                if not self._can_fall_back():
                    raise
            elif not is_device_error(err):
                raise
            self._leave_device(err)
            return None

    def _can_fall_back(self) -> bool:
        device = getattr(self.inner, "device", "cpu")
        return self._fall_back is not None and str(device) != "cpu"

    def _leave_device(self, cause: Exception) -> None:
        self._metrics.failures.labels("device").inc()
        fall_back, self._fall_back = self._fall_back, None
        scorer = fall_back() if fall_back else None
        if scorer is None:
            text = (
                f"bundle {self.bundle_id}: the device failed ({type(cause).__name__}) and there is no other to go on on"
            )
            raise ModelError(text) from cause
        self._metrics.fallbacks.inc()
        log.error("device failed; scoring goes on on the CPU", extra={"error": str(cause)[:200]})
        self.inner = scorer
