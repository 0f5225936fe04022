"""Scores large batches in a process of its own, where the interpreter's lock is not the event loop's as well.

In one process the Kafka client, the decoder and the model wait for each other's lock. Here the messages go over in a
shared piece of memory, and their scores come back in it; while one batch is being scored, the next ones wait in other
pieces. The process is a help and no more than that: whatever it cannot do, or does not survive, is done by the worker
as if it were not there. So the rules about records that kill, full memories and models that fail are those of the
worker alone.
"""

import asyncio
import contextlib
import logging
import mmap
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.process import parent_process
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from fraudlib.errors import BundleError
from fraudlib.telemetry import WorkerMetrics, calm_collector, configure_logging
from fraudlib.wire.records import Decoded
from fraudlib.worker.outputs import Judged, Message, Scorer, judge

log = logging.getLogger(__name__)

FEWEST: Final = 1024  # messages from which on the way there and back is worth it
SLOTS: Final = 3  # batches that are there at once: one is scored, the others wait
SLOT_BYTES: Final = 32 << 20  # only what is written to takes memory
PAUSE_SECONDS: Final = 5.0  # after a death, doubled at each further one
LONGEST_PAUSE: Final = 600.0
KEPT: Final = 2  # bundles: around a swap two of them are asked for in turn
IDLE_SECONDS: Final = 600.0  # without a batch, after which it ends and gives its memory back
READY_SECONDS: Final = 30.0
_NONE: Final = -1  # length of a value that is None

LoadScorer = Callable[[Path], Scorer]
Begun = Future[list[Judged] | None]
"""A batch that is being judged there; comes to None where it has to be done here."""


@dataclass(frozen=True)
class _Scores:
    anomaly_score: NDArray[np.float64]
    is_flagged: NDArray[np.bool_]
    reasons: dict[int, list[dict[str, Any]]]


class ScoringProcess:
    """The parent's side; all methods may be called from any thread.

    Parameters
    ----------
    load_scorer : makes a scorer of a bundle's folder, on the CPU; must be picklable.
    artifacts : folder of the bundles.
    metrics : of the worker.
    log_level : of the process.
    """

    def __init__(self, load_scorer: LoadScorer, artifacts: Path, metrics: WorkerMetrics, log_level: str) -> None:
        self._arguments = (load_scorer, artifacts, log_level)
        self._metrics = metrics
        self._child: _Child | None = None
        self._lock = threading.Lock()
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="hand over")
        self._deaths, self._not_before = 0, 0.0
        self._is_starting = self._is_closed = False

    def begin(self, messages: Sequence[Message], scorer: Scorer) -> Begun | None:
        """Begin to score a batch there; None where it is not for it, or cannot be had now.

        The process is started by the first call, and learns a bundle by the first call with it, both aside.
        """
        if len(messages) < FEWEST or str(getattr(getattr(scorer, "inner", scorer), "device", "cpu")) != "cpu":
            return None
        with self._lock:
            child = self._ready(scorer.bundle_id)
            if child is None or not child.free:
                return None
            slot = child.free.pop()
            begun = child.begun[slot] = Future()
            self._sender.submit(self._hand_over, child, slot, messages, scorer.bundle_id)
        return begun

    async def prepare(self, bundle_id: str, stopping: asyncio.Event) -> bool:
        """Start the process and let it learn a bundle; False where that fails, takes too long, or is to stop."""
        end, deaths = time.monotonic() + READY_SECONDS, self._deaths
        while time.monotonic() < end and self._deaths == deaths and not stopping.is_set():
            with self._lock:
                if self._ready(bundle_id):
                    return True
                if self._child and bundle_id in self._child.refused:
                    break
            await asyncio.sleep(0.02)
        return False

    def _ready(self, bundle_id: str) -> "_Child | None":
        """The process where it has the bundle; else see to it that it will. Needs the lock."""
        child = self._child
        if self._is_closed:
            return None
        if child is None:
            if not self._is_starting and time.monotonic() >= self._not_before:
                self._is_starting = True
                self._sender.submit(self._start)
        elif bundle_id in child.ready:
            return child
        elif bundle_id not in child.asked:
            child.asked.add(bundle_id)
            self._sender.submit(child.ask, bundle_id)
        return None

    def close(self) -> None:
        """End the process; what is under way there comes to None."""
        with self._lock:
            self._is_closed = True
            child = self._child
        if child is not None:
            child.process.kill()
        self._sender.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        try:
            child = _Child(*self._arguments)
        except Exception as err:
            log.warning("no scoring process; batches are scored here", extra={"error": repr(err)})
            with self._lock:
                self._is_starting = False
                self._rest()
            return
        with self._lock:
            self._child, self._is_starting = child, False
            if self._is_closed:
                child.process.kill()
        threading.Thread(target=self._follow, args=(child,), name="take back", daemon=True).start()

    def _rest(self) -> None:
        """Let some time pass before the next start. Needs the lock."""
        self._not_before = time.monotonic() + min(LONGEST_PAUSE, PAUSE_SECONDS * 2 ** min(self._deaths, 10))
        self._deaths += 1

    def _hand_over(self, child: "_Child", slot: int, messages: Sequence[Message], bundle_id: str) -> None:
        try:
            _write_values(child.memory[slot], messages)
            _send(child.connection, slot, bundle_id)
        except Exception as err:
            # Too large for its piece, or the process is gone.
            log.debug("batch not handed over", extra={"error": repr(err)})
            self._settle(child, slot, None)

    def _settle(self, child: "_Child", slot: int, judged: list[Judged] | None) -> None:
        with self._lock:
            begun = child.begun.pop(slot, None)
            if begun is not None:
                child.free.append(slot)
                begun.set_result(judged)

    def _follow(self, child: "_Child") -> None:
        """Take back what the process has done, until it is gone or not needed any more."""
        is_idle = False
        try:
            is_idle = self._take_back(child)
        except (EOFError, OSError):
            pass
        except Exception as err:
            log.error("scoring process not understood", extra={"error": repr(err)})
        child.process.kill()
        child.process.join()
        with self._lock:
            # One that was told to end was so together with the worker, by a signal to all of a group.
            is_missed = not (is_idle or self._is_closed or child.process.exitcode == -signal.SIGTERM)
            if is_missed:
                self._rest()
                self._metrics.failures.labels("scoring_process").inc()
            self._metrics.scoring_process.set(0)
            if self._child is child:
                self._child = None
            for begun in child.begun.values():
                begun.set_result(None)
            child.begun = {}
        child.close()
        if is_missed:
            log.error(
                "scoring process ended; batches are scored here until another has started",
                extra={"exit_code": child.process.exitcode},
            )

    def _take_back(self, child: "_Child") -> bool:
        """Returns True where nothing has come for long."""
        while True:
            if not child.connection.poll(IDLE_SECONDS):
                with self._lock:
                    if child.ready and not child.begun:
                        self._child = None
                        return True
                continue
            what, detail = _receive(child.connection)
            if what == "ready":
                with self._lock:
                    child.ready.add(detail)
                    self._metrics.scoring_process.set(1)
                log.info("large batches are scored in a process of their own", extra={"bundle_id": detail})
            elif what == "scored":
                self._settle(child, detail, _read_judged(child.memory[detail]))
                self._deaths = 0
            elif what == "refused":
                with self._lock:
                    child.refused.add(detail)
            else:
                self._settle(child, detail, None)


class _Child:
    """One life of the process.

    Attributes
    ----------
    memory : a piece for each slot, for the messages and then their scores.
    free : slots that nothing is in. begun : slot -> what waits for it.
    asked, ready, refused : bundles that it was to load, has loaded, and could not load.
    """

    def __init__(self, load_scorer: LoadScorer, artifacts: Path, log_level: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.memory, files = [], []
        for _ in range(SLOTS):
            file = _anonymous_file()
            os.ftruncate(file, SLOT_BYTES)
            files.append(file)
            self.memory.append(mmap.mmap(file, SLOT_BYTES))
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_Serve(load_scorer, artifacts, log_level, files, theirs), name="scoring", daemon=True
        )
        try:
            self.process.start()
        except BaseException:
            self.close()
            raise
        finally:
            theirs.close()
            for file in files:
                os.close(file)
        self.free = list(range(SLOTS))
        self.begun: dict[int, Begun] = {}
        self.asked: set[str] = set()
        self.ready: set[str] = set()
        self.refused: set[str] = set()

    def ask(self, bundle_id: str) -> None:
        """Let it load a bundle."""
        with contextlib.suppress(OSError):
            _send(self.connection, None, bundle_id)

    def close(self) -> None:
        """Give back what the life took."""
        self.connection.close()
        for piece in self.memory:
            piece.close()


def _anonymous_file() -> int:
    """Descriptor of a file without a name, in memory where the system has that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fraudlib-batch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Serve:
    """What runs in the process."""

    def __init__(
        self, load_scorer: LoadScorer, artifacts: Path, log_level: str, files: Sequence[int], connection: Connection
    ) -> None:
        self._load, self._artifacts, self._log_level = load_scorer, artifacts, log_level
        self._files, self._connection = files, connection
        self._scorers: dict[str, Scorer] = {}  # the one that was asked for last stands last

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": [DupFd(file) for file in self._files]}

    def __call__(self) -> None:
        configure_logging("worker", self._log_level)
        # Ctrl-C reaches the whole group; the parent drains, and then ends this process.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        memory = [mmap.mmap(file.detach(), SLOT_BYTES) for file in self._files]  # type: ignore[attr-defined]
        with contextlib.suppress(EOFError, OSError):
            while True:
                slot, bundle_id = _receive(self._connection)
                scorer = self._scorer(bundle_id)
                if slot is not None:
                    _send(self._connection, _judge(memory[slot], scorer) if scorer else "failed", slot)
                else:
                    _send(self._connection, "ready" if scorer else "refused", bundle_id)

    def _scorer(self, bundle_id: str) -> Scorer | None:
        if (scorer := self._scorers.pop(bundle_id, None)) is None:
            try:
                scorer = self._load(self._artifacts / bundle_id)
                if scorer.bundle_id != bundle_id:
                    raise BundleError(f"expected bundle {bundle_id}, found {scorer.bundle_id}")
            except Exception as err:
                log.warning("bundle not loaded; its batches are scored without help", extra={"error": repr(err)})
                return None
            if not self._scorers:
                calm_collector()
        self._scorers[bundle_id] = scorer
        if len(self._scorers) > KEPT:
            del self._scorers[next(iter(self._scorers))]
        return scorer


def _end_with_parent() -> None:
    """End at once when the parent does, also in the middle of a batch, or where the model hangs."""
    parent = parent_process()
    assert parent is not None, "this runs in a child"
    wait([parent.sentinel])
    os._exit(0)


def _judge(piece: mmap.mmap, scorer: Scorer) -> str:
    """Put what comes of a slot's messages in their place; "failed" where the parent has to see to them."""
    try:
        _write_judged(piece, judge(_read_values(piece), scorer))
    except Exception as err:
        log.debug("batch is given back", extra={"error": repr(err)})
        return "failed"
    return "scored"


# What goes over is numbers and texts in a layout of their own, not pickles: nothing on the serving side can unpickle.


def _send(connection: Connection, *words: Any) -> None:
    connection.send_bytes(orjson.dumps(words))


def _receive(connection: Connection) -> Any:
    return orjson.loads(connection.recv_bytes())


def _write(piece: mmap.mmap, parts: Sequence[bytes]) -> None:
    """Put parts into a slot, their number and lengths first; ValueError where it is too small."""
    piece.seek(0)
    piece.write(np.array([len(parts), *map(len, parts)], np.int64).tobytes())
    for part in parts:
        piece.write(part)


def _read(piece: mmap.mmap) -> Iterator[bytes]:
    """The parts of a slot in turn."""
    piece.seek(0)
    (count,) = np.frombuffer(piece.read(8), np.int64).tolist()
    for length in np.frombuffer(piece.read(8 * count), np.int64).tolist():
        yield piece.read(length)


def _write_values(piece: mmap.mmap, messages: Sequence[Message]) -> None:
    values = [m.value for m in messages]
    try:
        joined = b"".join(values)  # type: ignore[arg-type]
        lengths = list(map(len, values))  # type: ignore[arg-type]
    except TypeError:
        joined = b"".join([value or b"" for value in values])
        lengths = [_NONE if value is None else len(value) for value in values]
    _write(piece, [np.array(lengths, np.int64).tobytes(), joined])


def _read_values(piece: mmap.mmap) -> list[bytes | None]:
    raw, joined = _read(piece)
    lengths = np.frombuffer(raw, np.int64)
    ends = np.maximum(lengths, 0).cumsum().tolist()
    values: list[bytes | None] = [joined[start:stop] for start, stop in pairwise([0, *ends])]
    for row in np.flatnonzero(lengths == _NONE).tolist():
        values[row] = None
    return values


_JSON: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


def _write_judged(piece: mmap.mmap, judged: Sequence[Judged]) -> None:
    parts: list[bytes] = []
    for part in judged:
        decoded, scores = part.decoded, part.scores
        # No id or stamp holds a line's end, and no stamp is empty.
        parts.append("\n".join(decoded.transaction_ids).encode())
        parts.append("\n".join([stamp or "" for stamp in decoded.accepted_at]).encode())
        # Mostly all records are good, and a range says so.
        parts.append(b"" if isinstance(decoded.rows, range) else np.array(decoded.rows, np.int64).tobytes())
        parts.append(orjson.dumps([decoded.rejected, None if scores is None else scores.reasons], option=_JSON))
        parts.append(b"" if scores is None else np.asarray(scores.anomaly_score, np.float64).tobytes())
        parts.append(b"" if scores is None else np.asarray(scores.is_flagged, np.bool_).tobytes())
    _write(piece, parts)


def _read_judged(piece: mmap.mmap) -> list[Judged]:
    judged = []
    for ids, stamps, raw_rows, raw_rest, values, flags in zip(*[_read(piece)] * 6, strict=True):
        accepted_at = [stamp or None for stamp in stamps.decode().split("\n")]
        rejected, reasons = ({int(row): x for row, x in (each or {}).items()} for each in orjson.loads(raw_rest))
        scores = _Scores(np.frombuffer(values), np.frombuffer(flags, np.bool_), reasons) if values else None
        rows = np.frombuffer(raw_rows, np.int64).tolist() if raw_rows else range(len(flags))
        decoded = Decoded({}, ids.decode().split("\n"), accepted_at, rows, rejected)
        judged.append(Judged(decoded, scores))
    return judged
