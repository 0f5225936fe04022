"""The crash journal and what a batch that killed a worker goes through: no record is accused lightly, none for ever."""

import functools
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from fraudlib.settings import Settings
from fraudlib.worker import quarantine
from fraudlib.worker.journal import Journal, Suspect
from fraudlib.worker.outputs import process
from fraudlib.worker.quarantine import PIECE, Quarantine, kills, pieces

TRIP: dict[str, Any] = {"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}


class DeathError(BaseException):
    """Stands for the end of the process: nothing catches it."""


class Deadly:
    """A model on which the worker dies where a fare is `deadly`."""

    bundle_id, threshold = "deadly", 100.0

    def __init__(self, deadly: float = 666.0, act: Any = None) -> None:
        self.deadly, self.act = deadly, act
        self.sizes: list[int] = []

    def score(self, columns: dict[str, Any]) -> Any:
        """Scores of the columns."""
        fares = columns["fare_amount"]
        self.sizes.append(len(fares))
        if (fares == self.deadly).any():
            self.act()
        return SimpleNamespace(anomaly_score=fares, is_flagged=fares > 1e6, reasons={})


def load_deadly(folder: Path, act: Any) -> Deadly:
    """A loader that another process can import."""
    return Deadly(act=act)


def messages(count: int, *deadly: int, partition: int = 0, start: int = 0) -> list[Any]:
    """Messages of a partition, some of them deadly."""
    fares = dict.fromkeys(deadly, 666.0)
    return [
        SimpleNamespace(
            topic="transactions",
            partition=partition,
            offset=n,
            key=b"k",
            value=orjson.dumps(TRIP | {"fare_amount": fares.get(n, 12.5)}),
        )
        for n in range(start, start + count)
    ]


class Life:
    """One life of a worker on partition 0; `dies` leaves the journal as a dead process does."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder)
        self.died_on = self.journal.open(0)
        self.scorer = Deadly(act=self._die)
        self.quarantine = Quarantine(self.journal, functools.partial(load_deadly, act=os.abort), folder)

    def _die(self) -> None:
        # The maps go away without being cleared, as they do when the process ends.
        self.journal._maps.clear()
        raise DeathError

    def process(self, batch: list[Any]) -> Any:
        """Outputs of a batch, or death."""
        return self.quarantine.process(batch, {0: (batch[0].offset, batch[-1].offset + 1)}, self.scorer)


@pytest.fixture
def guilty(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Offsets that were on trial; every one of them is found guilty."""
    tried: list[int] = []

    def judge(load: Any, folder: Path, message: Any) -> bool:
        tried.append(message.offset)
        return True

    monkeypatch.setattr(quarantine, "kills", judge)
    return tried


def test_nothing_is_suspected_where_nobody_died(tmp_path: Path) -> None:
    """A worker that ends well, between batches or in order, leaves nothing behind."""
    life = Life(tmp_path)
    life.process(messages(10))
    life.journal.close_all()
    assert (Life(tmp_path).died_on, Journal(tmp_path).open(1)) == (None, None)


@pytest.mark.parametrize("size", [1, 5, PIECE, PIECE + 1, 1000])
def test_three_deaths_put_a_record_aside_whatever_the_batch(tmp_path: Path, guilty: list[int], size: int) -> None:
    """After the third, only that record is a dead letter; it is tried once, and all others have their scores."""
    batch = messages(size, size // 2)
    for _ in range(3):
        with pytest.raises(DeathError):
            Life(tmp_path).process(batch)
    last = Life(tmp_path)
    assert last.died_on == Suspect(size // 2, size // 2 + 1, 3)
    for _ in range(2):
        out = last.process(batch)
        ((_, _, headers),) = out.dead_letters[0]
        assert dict(headers)["error"] == b"CrashLoop"
        assert dict(headers)["src_offset"] == b"%d" % (size // 2)
        assert out.causes == ["CrashLoop"]
        offsets = [orjson.loads(row[1])["src_offset"] for row in out.scores.get(0, [])]
        assert offsets == [n for n in range(size) if n != size // 2]
    assert guilty == [size // 2]


def test_several_records_of_a_batch_are_put_aside(tmp_path: Path, guilty: list[int]) -> None:
    """Each costs three lives; what was found out about the first is not forgotten over the second."""
    batch, lives = messages(200, 20, 150, 151), 0
    while True:
        life = Life(tmp_path)
        try:
            out = life.process(batch)
            break
        except DeathError:
            lives += 1
            assert lives < 10
    assert lives == 9
    assert [dict(row[2])["src_offset"] for row in out.dead_letters[0]] == [b"20", b"150", b"151"]
    assert guilty == [20, 150, 151]
    assert out.scored == 197
    life.process(messages(5, start=200))
    assert (life.journal.suspects, life.journal.convicted) == ({}, {})
    life.journal.close_all()
    again = Life(tmp_path)
    assert (again.died_on, again.journal.convicted) == (None, {})


def test_one_death_costs_a_batch_little(tmp_path: Path) -> None:
    """Most deaths come from outside: the batch is taken in pieces, not record by record, and cleared by the next."""
    batch = messages(1000, 500)
    with pytest.raises(DeathError):
        Life(tmp_path).process(batch)
    second = Life(tmp_path)
    second.scorer.deadly = -1
    assert second.process(batch).scored == 1000
    assert max(second.scorer.sizes) == PIECE
    assert second.process(messages(10, start=1000)).scored == 10
    assert second.journal.suspects == {}
    second.journal.close_all()
    assert Journal(tmp_path).open(0) is None


def test_a_record_that_survives_its_trial_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three kills from outside are no proof; but with a fourth death it is put aside without a second trial."""
    monkeypatch.setattr(quarantine, "kills", lambda *_: False)
    batch = messages(3, 1)
    for _ in range(3):
        with pytest.raises(DeathError):
            Life(tmp_path).process(batch)
    innocent = Life(tmp_path)
    innocent.scorer.deadly = -1
    assert innocent.process(batch).scored == 3
    with pytest.raises(DeathError):
        Life(tmp_path).process(batch)
    assert Life(tmp_path).process(batch).causes == ["CrashLoop"]


@pytest.mark.parametrize(("act", "expected"), [(os.abort, True), (time.monotonic, False), (orjson.loads, False)])
def test_a_trial_is_held_in_a_process_of_its_own(tmp_path: Path, act: Any, expected: bool) -> None:
    """A record is guilty if that process dies; not if it is scored, nor if the model raises on it."""
    (message,) = messages(1, 0)
    assert kills(functools.partial(load_deadly, act=act), tmp_path, message) is expected


def test_order_is_kept_and_other_partitions_are_left_alone() -> None:
    """The pieces of a batch are the batch; only what is suspected is taken apart."""
    batch = [*messages(5, partition=1), *messages(100), *messages(3, partition=2)]
    cut = list(pieces(batch, {0: Suspect(10, 80, 1), 1: Suspect(2, 4, 2)}, {0: [90]}))
    assert [m for piece, _ in cut for m in piece] == batch
    assert [len(piece) for piece, _ in cut] == [2, 1, 1, 1 + 10, PIECE, 70 - PIECE, 10, 1, 9 + 3]


def test_a_batch_too_large_to_decode_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory can be short outside the model too; the outputs are those of the whole batch, in order."""

    def scarce(batch: Any, scorer: Any, ahead: Any) -> Any:
        if len(batch) > 30:
            raise MemoryError
        return process(batch, scorer, ahead)

    monkeypatch.setattr(quarantine, "process", scarce)
    out = Life(tmp_path).process(messages(100))
    assert [orjson.loads(row[1])["src_offset"] for row in out.scores[0]] == list(range(100))
    assert out.scored == 100


def test_a_batch_that_is_decoded_ahead_is_in_flight_too(tmp_path: Path) -> None:
    """A death while one batch is scored and the next decoded accuses both; afterwards nothing is in flight."""
    life, seen = Life(tmp_path), []
    ahead = life.quarantine.begin(messages(5, start=10), {0: (10, 15)}, life.scorer)
    assert ahead is not None
    assert ahead.decoded is not None
    assert len(ahead.decoded.result(10).rows) == 5
    with life.journal.under_way({0: (10, 15)}), life.journal.under_way({0: (4, 10)}):
        seen.append(Journal(tmp_path).open(0))
    assert seen == [Suspect(4, 15, 1)]
    assert Journal(tmp_path).open(0) is None
    out = life.quarantine.process(messages(5, start=10), {0: (10, 15)}, life.scorer, ahead)
    assert [orjson.loads(row[1])["src_offset"] for row in out.scores[0]] == [10, 11, 12, 13, 14]


def test_nothing_is_decoded_ahead_under_suspicion(tmp_path: Path) -> None:
    """While a record may kill the process, only what is being judged is touched."""
    with pytest.raises(DeathError):
        Life(tmp_path).process(messages(5, 3))
    assert (life := Life(tmp_path)).quarantine.begin(messages(5, start=10), {0: (10, 15)}, life.scorer) is None


def test_partitions_that_moved_on_leave_no_suspicion(tmp_path: Path) -> None:
    """A worker that loses a partition in the middle of a batch is alive, and says so."""
    journal = Journal(tmp_path)
    journal.open(0)
    with journal.under_way({0: (5, 9)}):
        journal.close(0)
        assert Journal(tmp_path).open(0) is None


def test_a_journal_of_another_make_is_begun_anew(tmp_path: Path) -> None:
    """A cut file, or one with nonsense in it, accuses nobody."""
    for content in (b"", b"x" * 7, b"y" * 48, b"fraudjr1" + bytes(range(40))):
        (tmp_path / "0.journal").write_bytes(content)
        assert Journal(tmp_path).open(0) is None


def test_without_a_writable_folder_the_worker_goes_on(tmp_path: Path) -> None:
    """The journal is a help and no condition."""
    (tmp_path / "file").write_text("")
    journal = Journal.of(Settings(state_dir=tmp_path / "file" / "state"))
    assert journal.open(0) is None
    with journal.under_way({0: (1, 2)}):
        pass


def test_the_journal_costs_next_to_nothing(tmp_path: Path) -> None:
    """Under 50 microseconds for a batch of four partitions, of the milliseconds that it takes to score one."""
    journal = Journal(tmp_path)
    ranges = dict.fromkeys(range(4), (0, 1000))
    for partition in ranges:
        journal.open(partition)
    fastest = np.inf
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(50):
            with journal.under_way(ranges):
                pass
        fastest = min(fastest, (time.perf_counter() - started) / 50)
    assert fastest < 50e-6
