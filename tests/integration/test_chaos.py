"""The delivery promise under faults, in short; `make chaos` is the long version, with the real bundle."""

import pytest

from bench import chaos, poison


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_through_faults() -> None:
    """Twenty kills of workers, a zombie, a slow broker and a killed API: the ledger is even behind the filter."""
    plan = chaos.Plan(
        transactions=30_000,
        seconds=25.0,
        workers=4,
        kills=20,
        zombies=1,
        scalings=0,
        api_kills=2,
        slow=1,
        down=0,
        command=("-m", "bench.trivial"),
    )
    ledger = chaos.inflict(plan)
    assert ledger["passed"], ledger
    assert ledger["kills"] == 20
    assert ledger["acknowledged"] > 0.9 * ledger["sent"] == 0.9 * plan.transactions
    assert ledger["alerts"] > 0


def test_poison_of_twelve_kinds_harms_nobody_else() -> None:
    """One message in a hundred is poison: every good one is scored, every bad one is put aside whole."""
    found = poison.measure(6_000)
    assert found["passed"], found
    assert (found["poison"], found["kinds"], found["restarts"]) == (60, 12, 0)
