"""The reader's side of the delivery promise: at least once in the log, exactly once behind these filters."""

from typing import Final

REMEMBERED_IDS: Final = 100_000
_HASH: Final = 8  # bytes
_PLACES: Final = 64  # hashes in a bucket, the oldest replaced first
_ROOM: Final = _PLACES * _HASH
# Of the remembered ids, in a bucket on average: that 64 or more come together has a chance of 1e-11 (Poisson).
_USUAL: Final = 24


class Deduplicator:
    """Keeps one number per partition and passes each source position once.

    The worker writes the outputs of a partition in the order of its inputs, and starts again at an input whose
    predecessors are all written. So whatever lies at or below the largest source offset seen is a repetition.
    Use one filter per topic, and read each partition in order.

    Examples
    --------
    >>> fresh = Deduplicator()
    >>> [fresh(0, 7), fresh(0, 8), fresh(0, 7), fresh(1, 7)]
    [True, True, False, True]
    """

    def __init__(self) -> None:
        self._last: dict[int, int] = {}

    def __call__(self, src_partition: int, src_offset: int) -> bool:
        """Whether this source position has not been seen before."""
        if src_offset <= self._last.get(src_partition, -1):
            return False
        self._last[src_partition] = src_offset
        return True


class FirstOfId:
    """Passes each transaction_id once: what a client sent again, unsure of the first time, is in the log twice.

    A retry goes to the partition of the first, so that its score comes later in the same partition. Ask it after
    `Deduplicator`. It keeps a hash of 64 bits of each id in a table that is as large from the start as it ever gets,
    two MiB by default: a reader that runs for days neither grows nor slows down.

    Parameters
    ----------
    remembered : how many of the latest ids are remembered for certain; some older ones are too.

    Examples
    --------
    >>> is_first = FirstOfId()
    >>> [is_first("a"), is_first("b"), is_first("a")]
    [True, True, False]
    """

    def __init__(self, remembered: int = REMEMBERED_IDS) -> None:
        self._buckets = -(-remembered // _USUAL)
        # Multiplied, so that its pages are there now and not one by one.
        self._table = bytearray(b"\0") * (self._buckets * _ROOM)
        self._next = bytearray(self._buckets)

    def __call__(self, transaction_id: str) -> bool:
        """Whether this id has not been seen lately."""
        digest = hash(transaction_id)
        bucket = digest % self._buckets
        start, key = bucket * _ROOM, digest.to_bytes(_HASH, "little", signed=True)
        if self._table.find(key, start, start + _ROOM) >= 0:
            return False
        place = self._next[bucket]
        self._table[start + place * _HASH : start + (place + 1) * _HASH] = key
        self._next[bucket] = (place + 1) % _PLACES
        return True
