"""The reader's filters: what was written twice, and what was sent twice, passes once."""

from fraudlib.wire.delivery import Deduplicator, FirstOfId


def test_a_repetition_from_the_log_is_dropped() -> None:
    """Whatever lies at or below the last source offset of its partition; gaps are no repetition."""
    is_fresh = Deduplicator()
    places = [(0, 3), (0, 4), (1, 3), (0, 3), (0, 4), (0, 9), (1, 3), (1, 4)]
    assert [is_fresh(*place) for place in places] == [True, True, True, False, False, True, False, True]


def test_a_retry_is_dropped_while_its_first_is_remembered() -> None:
    """The latest ids are remembered, in bounded memory."""
    is_first = FirstOfId(3)
    assert [is_first(name) for name in "abcacdb"] == [True, True, True, False, False, True, False]
    assert is_first("a")
    assert len(is_first._ids) == 3
