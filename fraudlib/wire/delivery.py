"""The reader's side of the delivery promise: at least once in the log, exactly once behind these filters."""

from typing import Final

REMEMBERED_IDS: Final = 100_000


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

    A retry goes to the partition of the first, so that its score comes later in the same partition. Remembers the
    latest ids only, the first ones forgotten first; ask it after `Deduplicator`.

    Parameters
    ----------
    remembered : how many ids.

    Examples
    --------
    >>> is_first = FirstOfId()
    >>> [is_first("a"), is_first("b"), is_first("a")]
    [True, True, False]
    """

    def __init__(self, remembered: int = REMEMBERED_IDS) -> None:
        self._remembered = remembered
        self._ids: dict[str, None] = {}

    def __call__(self, transaction_id: str) -> bool:
        """Whether this id has not been seen lately."""
        if transaction_id in self._ids:
            return False
        self._ids[transaction_id] = None
        if len(self._ids) > self._remembered:
            del self._ids[next(iter(self._ids))]
        return True
