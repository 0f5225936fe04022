"""What a worker is scoring at this moment, written where the death of the process cannot take it along.

One small memory-mapped file per partition: a store into it costs about a microsecond and is kept by the operating
system through kill -9 and segmentation faults. It is not synced to the disk, since a power cut accuses no record.
Workers that share the folder share what is known, so that a partition's next owner need not die to learn it.
"""

import logging
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2s
from pathlib import Path
from threading import Lock
from typing import Final

from fraudlib.settings import Settings

log = logging.getLogger(__name__)

Ranges = Mapping[int, tuple[int, int]]
"""Partition -> first offset, and the one after the last."""

_MAGIC: Final = b"fraudjr1"
_RANGE: Final = struct.Struct("<qq")
_SUSPECT: Final = struct.Struct("<qqq")
_AT_RANGE: Final = len(_MAGIC)
_AT_SUSPECT: Final = _AT_RANGE + _RANGE.size
_AT_CONVICTED: Final = _AT_SUSPECT + _SUSPECT.size
_SLOTS: Final = 64  # convicted records of one batch; each of them cost three lives
_CONVICTED: Final = struct.Struct(f"<{_SLOTS}q")
_SIZE: Final = _AT_CONVICTED + _CONVICTED.size
_MOST: Final = 3 * 65536  # records of a batch, of one decoded ahead and of one between; a wider range is no range
_NONE: Final = _RANGE.pack(0, 0)


@dataclass(frozen=True)
class Suspect:
    """Offsets [start, stop) of a partition; each of `crashes` deaths of a worker happened on a range around them."""

    start: int
    stop: int
    crashes: int

    def __len__(self) -> int:
        return self.stop - self.start


_NOBODY: Final = Suspect(0, 0, 0)


class Journal:
    """Ranges in flight and ranges under suspicion.

    Parameters
    ----------
    folder : made when missing. None keeps no journal.

    Attributes
    ----------
    suspects : partition -> range, of the open partitions.
    convicted : partition -> offsets that are not to be scored, of the open partitions.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._maps: dict[int, mmap.mmap] = {}
        self._lock = Lock()
        self._in_flight: list[Ranges] = []
        self.suspects: dict[int, Suspect] = {}
        self.convicted: dict[int, list[int]] = {}

    @classmethod
    def of(cls, settings: Settings) -> "Journal":
        """Journal of a consumer group at a broker, below `state_dir`; none, and a loud line, if that is read-only."""
        place = f"{settings.kafka_bootstrap_servers}\n{settings.consumer_group}".encode()
        folder = settings.state / blake2s(place, digest_size=8).hexdigest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(f"{folder} is not writable")
        except OSError as err:
            log.error(
                "no crash journal: a record that kills the worker will not be isolated; set FRAUDLIB_STATE_DIR",
                extra={"error": str(err)},
            )
            return cls(None)
        return cls(folder)

    def open(self, partition: int) -> Suspect | None:
        """Take a partition on; the range that a worker died on, if one did since it was last taken on."""
        if self._folder is None:
            return None
        with self._lock:
            self._close(partition)
            try:
                file = self._maps[partition] = _map(self._folder / f"{partition}.journal")
            except OSError as err:
                log.error("no crash journal for a partition", extra={"partition": partition, "error": str(err)})
                return None
            start, stop = _RANGE.unpack_from(file, _AT_RANGE)
            known = Suspect(*_SUSPECT.unpack_from(file, _AT_SUSPECT))
            died_on = None
            if 0 < stop - start <= _MOST:
                is_closer = known.crashes and known.start <= start and stop <= known.stop
                known = died_on = Suspect(start, stop, known.crashes + 1 if is_closer else 1)
                self._write(partition, known)
            if known.crashes:
                self.suspects[partition] = known
            if convicted := [at - 1 for at in _CONVICTED.unpack_from(file, _AT_CONVICTED) if at > 0]:
                self.convicted[partition] = convicted
            file[_AT_RANGE:_AT_SUSPECT] = _NONE
            return died_on

    def close(self, partition: int) -> None:
        """Give a partition up: whoever takes it on next finds nothing in flight."""
        with self._lock:
            self._close(partition)

    def _close(self, partition: int) -> None:
        self.suspects.pop(partition, None)
        self.convicted.pop(partition, None)
        if file := self._maps.pop(partition, None):
            file[_AT_RANGE:_AT_SUSPECT] = _NONE
            file.close()

    def close_all(self) -> None:
        """Give every partition up."""
        for partition in list(self._maps):
            self.close(partition)

    @contextmanager
    def under_way(self, ranges: Ranges) -> Iterator[None]:
        """Around the decoding and scoring of these ranges, and of nothing else.

        What is in flight at once, as the next batch is decoded while one is scored, is one range to whoever comes next.
        """
        with self._lock:
            self._in_flight.append(ranges)
            self._write_ranges(ranges)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight.remove(ranges)
                self._write_ranges(ranges)

    def convict(self, partition: int, offset: int) -> None:
        """Remember a record that is not to be scored again, until what comes after it is published too."""
        with self._lock:
            self.suspects.pop(partition, None)
            self.convicted.setdefault(partition, []).append(offset)
            self._write(partition, _NOBODY)
            self._write_convicted(partition)

    def clear_before(self, ranges: Ranges) -> None:
        """Drop what lies before these ranges: it was published."""
        with self._lock:
            for partition, (start, _) in ranges.items():
                known = self.suspects.get(partition)
                if known and known.stop <= start:
                    del self.suspects[partition]
                    self._write(partition, _NOBODY)
                convicted = self.convicted.get(partition, [])
                if convicted and min(convicted) < start:
                    self.convicted[partition] = [offset for offset in convicted if offset >= start]
                    self._write_convicted(partition)
                    if not self.convicted[partition]:
                        del self.convicted[partition]

    def _write_ranges(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            if file := self._maps.get(partition):
                flights = [ranges[partition] for ranges in self._in_flight if partition in ranges]
                start, stop = min((f[0] for f in flights), default=0), max((f[1] for f in flights), default=0)
                file[_AT_RANGE:_AT_SUSPECT] = _RANGE.pack(start, stop)

    def _write(self, partition: int, suspect: Suspect) -> None:
        if file := self._maps.get(partition):
            file[_AT_SUSPECT:_AT_CONVICTED] = _SUSPECT.pack(suspect.start, suspect.stop, suspect.crashes)

    def _write_convicted(self, partition: int) -> None:
        # One more than the offset, so that an empty slot is 0.
        slots = [offset + 1 for offset in self.convicted[partition]][-_SLOTS:]
        if file := self._maps.get(partition):
            file[_AT_CONVICTED:_SIZE] = _CONVICTED.pack(*slots, *[0] * (_SLOTS - len(slots)))


def _map(path: Path) -> mmap.mmap:
    """The file in memory, made anew where it is missing or not of this format."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(handle).st_size != _SIZE:
            # Written, not only stretched: a store into a hole of a full disk would kill the process.
            os.ftruncate(handle, 0)
            os.pwrite(handle, bytes(_SIZE), 0)
        file = mmap.mmap(handle, _SIZE)
    finally:
        os.close(handle)
    if file[:_AT_RANGE] != _MAGIC:
        file[:] = _MAGIC + bytes(_SIZE - len(_MAGIC))
    return file
