"""The reader's side of the delivery promise: at least once in the log, exactly once behind this filter."""


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
