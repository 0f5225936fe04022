"""Single messages to one broker: who finds nothing under way goes at once, the others go together with the next."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from fraudlib.wire import singles
from fraudlib.wire.singles import Lane, Single


class Way:
    """A lane that notes what is shipped together; what is under way arrives when told to."""

    def __init__(self) -> None:
        self.shipments: list[list[bytes]] = []
        self.given_up: list[bytes] = []
        self.most = 1000
        self.error: Exception | None = None
        self.arrive = asyncio.Event()
        self.lost: set[bytes] = set()
        self.lane = Lane(self._ship, self._give_up)

    async def _ship(self, some: Sequence[Single]) -> tuple[bool, list[Single]]:
        taken = some[: self.most]
        self.shipments.append([single.value for single in taken])
        await self.arrive.wait()
        if self.error is not None:
            raise self.error
        for single in taken:
            single.fail(OSError("gone"), None) if single.value in self.lost else single.succeed()
        return self.lost.isdisjoint(self.shipments[-1]), list(some[self.most :])

    def _give_up(self, single: Single) -> None:
        self.given_up.append(single.value)
        single.fail(TimeoutError("not sent"), None)

    def add(self, *values: bytes) -> list[Single]:
        """Messages with these values, on their way."""
        some = [Single("topic", 0, b"key", value) for value in values]
        for single in some:
            self.lane.add(single)
        return some


def run(scenario: Callable[[Way], Awaitable[None]]) -> None:
    """A scenario with a way of its own, which must not hang."""

    async def within() -> None:
        async with asyncio.timeout(5):
            await scenario(Way())

    asyncio.run(within())


def test_what_comes_while_others_are_under_way_goes_together() -> None:
    """The first goes without waiting for company; nothing is lost, doubled or out of order."""

    async def scenario(way: Way) -> None:
        first = way.add(b"a")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert way.shipments == [[b"a"]]
        more = way.add(b"b", b"c") + way.add(b"d")
        await asyncio.sleep(0.01)
        assert way.shipments == [[b"a"]]
        way.arrive.set()
        await asyncio.gather(*(single.outcome for single in first + more))
        assert way.shipments == [[b"a"], [b"b", b"c", b"d"]]
        await asyncio.gather(*(single.outcome for single in way.add(b"e")))
        assert way.shipments[2:] == [[b"e"]]

    run(scenario)


def test_who_comes_after_several_waits_a_moment_for_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until as many are there, or the moment is over; afterwards fewer are waited for."""
    monkeypatch.setattr(singles, "PACE_SECONDS", 0.2)

    async def scenario(way: Way) -> None:
        way.arrive.set()
        clock = asyncio.get_running_loop().time
        start = clock()
        await asyncio.gather(*(single.outcome for single in way.add(b"a", b"b", b"c")))
        some = way.add(b"d")
        await asyncio.sleep(0.02)
        some += way.add(b"e", b"f")
        await asyncio.gather(*(single.outcome for single in some))
        assert clock() - start < 0.15
        await asyncio.gather(*(single.outcome for single in way.add(b"g")))
        assert clock() - start > 0.19
        await asyncio.gather(*(single.outcome for single in way.add(b"h")))
        assert clock() - start < 0.35
        assert way.shipments == [[b"a", b"b", b"c"], [b"d", b"e", b"f"], [b"g"], [b"h"]]

    run(scenario)


def test_what_does_not_fit_goes_first_the_next_time() -> None:
    """Before what came later."""

    async def scenario(way: Way) -> None:
        way.most = 2
        some = way.add(b"a", b"b", b"c")
        await asyncio.sleep(0.01)
        some += way.add(b"d")
        way.arrive.set()
        await asyncio.gather(*(single.outcome for single in some))
        assert way.shipments == [[b"a", b"b"], [b"c", b"d"]]

    run(scenario)


def test_who_waited_long_for_a_failure_is_told_and_does_not_wait_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are sent; the failure itself is that of what was under way."""
    monkeypatch.setattr(singles, "PATIENCE_SECONDS", 0.05)

    async def scenario(way: Way) -> None:
        (first,) = way.add(b"a")
        await asyncio.sleep(0)
        (overdue,) = way.add(b"b")
        await asyncio.sleep(0.1)
        (late,) = way.add(b"c")
        way.lost = {b"a"}
        way.arrive.set()
        with pytest.raises(OSError, match="gone"):
            await first.outcome
        with pytest.raises(TimeoutError):
            await overdue.outcome
        await late.outcome
        assert way.shipments == [[b"a"], [b"c"]]
        assert way.given_up == [b"b"]

    run(scenario)


def test_a_mistake_leaves_nobody_waiting() -> None:
    """Whoever was under way hears of it, and the way stays open for others."""

    async def scenario(way: Way) -> None:
        way.error = ValueError("mistake")
        way.arrive.set()
        some = way.add(b"a", b"b")
        some[1].outcome.cancel()
        with pytest.raises(ValueError, match="mistake"):
            await some[0].outcome
        way.error = None
        await way.add(b"c")[0].outcome

    run(scenario)
