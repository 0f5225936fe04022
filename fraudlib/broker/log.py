"""The embedded broker's topics: record batches as they came, in memory, and readers that wait for more."""

import asyncio
import struct
from bisect import bisect_right
from typing import Final

NO_ERROR: Final = 0
OFFSET_OUT_OF_RANGE: Final = 1
CORRUPT_MESSAGE: Final = 2
UNKNOWN_TOPIC: Final = 3
TOO_LARGE: Final = 10
TOPIC_EXISTS: Final = 36
BAD_PARTITIONS: Final = 37
BESIDE_BYTES: Final = 96  # that Python takes for a batch beside its bytes: object, allocator, offset, places in lists
DROPPED_SHARE: Final = 64  # a part of the memory that is freed at once, so that it is seldom
MOST_BATCH_BYTES: Final = 1_048_588  # Kafka's own default
# Record batch, version 2: base offset, length of what follows it, leader epoch, magic, CRC, attributes, last offset's
# delta. The CRC covers what comes after it, so that giving a batch its offset needs no new one.
_HEAD: Final = struct.Struct(">qiibIhi")
_OFFSET: Final = struct.Struct(">q")
_LEAST_BATCH_BYTES: Final = 61


class Partition:
    """One log.

    Attributes
    ----------
    start : offset of the oldest record that is kept. end : of the next one. size : bytes of memory, with those that a
        batch takes beside its own; else memory grew as small batches take the place of large ones.
    """

    def __init__(self) -> None:
        self.start = self.end = self.size = 0
        self._bases: list[int] = []
        self._batches: list[bytes] = []
        self._waiting: set[asyncio.Future[None]] = set()

    def append(self, batch: bytes) -> tuple[int, int]:
        """Error code, and offset of the batch's first record."""
        if len(batch) > MOST_BATCH_BYTES:
            return TOO_LARGE, -1
        if len(batch) < _LEAST_BATCH_BYTES:
            return CORRUPT_MESSAGE, -1
        _, length, _, magic, _, _, last = _HEAD.unpack_from(batch)
        if magic != 2 or length != len(batch) - 12 or last < 0:
            return CORRUPT_MESSAGE, -1
        base = self.end
        self._bases.append(base)
        self._batches.append(_OFFSET.pack(base) + batch[8:])
        self.end += last + 1
        self.size += len(batch) + BESIDE_BYTES
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        return NO_ERROR, base

    def read(self, offset: int, most: int) -> tuple[int, bytes]:
        """Error code, and whole batches from the one that holds `offset`: at most `most` bytes, or a single batch."""
        if not self.start <= offset <= self.end:
            return OFFSET_OUT_OF_RANGE, b""
        if offset == self.end or most <= 0:
            return NO_ERROR, b""
        first = last = bisect_right(self._bases, offset) - 1
        size = 0
        while last < len(self._batches) and (last == first or size + len(self._batches[last]) <= most):
            size += len(self._batches[last])
            last += 1
        return NO_ERROR, b"".join(self._batches[first:last])

    def drop(self, size: int) -> int:
        """Forget the oldest batches, at least `size` bytes of them but never the last batch; bytes that were freed."""
        count = freed = 0
        while freed < size and count < len(self._batches) - 1:
            freed += len(self._batches[count]) + BESIDE_BYTES
            count += 1
        if count:
            self.start = self._bases[count]
            self.size -= freed
            del self._bases[:count], self._batches[:count]
        return freed

    def wake(self, future: "asyncio.Future[None]") -> None:
        """Resolve the future with the next append; `forget` it in the end."""
        self._waiting.add(future)

    def forget(self, future: "asyncio.Future[None]") -> None:
        """Wake it no more."""
        self._waiting.discard(future)


class Topics:
    """Logs by topic and number.

    Parameters
    ----------
    most : bytes that all of them may keep together.
    """

    def __init__(self, most: int) -> None:
        self.partitions: dict[str, list[Partition]] = {}
        self._most, self._size = most, 0

    def create(self, name: str, count: int) -> int:
        """Error code of making a topic."""
        if name in self.partitions:
            return TOPIC_EXISTS
        if count < 1:
            return BAD_PARTITIONS
        self.partitions[name] = [Partition() for _ in range(count)]
        return NO_ERROR

    def append(self, name: str, number: int, batch: bytes) -> tuple[int, int]:
        """Error code, and offset of the first record; where memory is full, the fullest log loses its oldest."""
        log = self.get(name, number)
        if log is None:
            return UNKNOWN_TOPIC, -1
        error, base = log.append(batch)
        if not error:
            self._size += len(batch) + BESIDE_BYTES
            if self._size > self._most:
                fullest = max((one for logs in self.partitions.values() for one in logs), key=lambda one: one.size)
                self._size -= fullest.drop(self._most // DROPPED_SHARE)
        return error, base

    def get(self, name: str, number: int) -> Partition | None:
        """Log of a topic, None where there is none."""
        logs = self.partitions.get(name, [])
        return logs[number] if 0 <= number < len(logs) else None
