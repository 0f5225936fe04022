"""The reader's filters: what was written twice, and what was sent twice, passes once."""

import tracemalloc

from fraudlib.wire.delivery import Deduplicator, FirstOfId


def test_a_repetition_from_the_log_is_dropped() -> None:
    """Whatever lies at or below the last source offset of its partition; gaps are no repetition."""
    is_fresh = Deduplicator()
    places = [(0, 3), (0, 4), (1, 3), (0, 3), (0, 4), (0, 9), (1, 3), (1, 4)]
    assert [is_fresh(*place) for place in places] == [True, True, True, False, False, True, False, True]


def test_a_retry_is_dropped_while_its_first_is_remembered() -> None:
    """The latest ids are remembered for certain, those long ago are not."""
    is_first = FirstOfId(1000)
    assert all(is_first(f"trip-{number}") for number in range(20_000))
    assert not any(is_first(f"trip-{number}") for number in range(19_000, 20_000))
    assert all(is_first(f"trip-{number}") for number in range(10))


def test_a_filter_of_ids_takes_the_same_memory_all_its_life() -> None:
    """What it keeps is there from the start: four times as many ids as it remembers later it has grown by nothing."""
    ids = [f"trip-{number}" for number in range(40_000)]
    is_first = FirstOfId(10_000)
    tracemalloc.start()
    try:
        assert sum(map(is_first, ids)) == len(ids)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 5_000
