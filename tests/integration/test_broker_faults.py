"""A publisher on a broker that is slow, down or in error: the outcome is told, in time, and never claimed wrongly."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from fraudlib.schema import TOPIC_ALERTS, TOPIC_SCORES
from fraudlib.settings import Settings
from fraudlib.wire.kafka import NotSentError, OutcomeUnknownError, Publisher, RefusedError

from .mockcluster import PRODUCE, MockCluster

SECONDS = 2.0
MESSAGE_TOO_LARGE, UNKNOWN_SERVER_ERROR = 10, -1
ROWS = [(b"key", b"value", [])] * 3


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    """A broker of one's own."""
    mock = MockCluster(TOPIC_SCORES)
    yield mock
    mock.close()


def publish(cluster: MockCluster, action: Callable[[Publisher], Awaitable[None]]) -> float:
    """Run an action with a started publisher; its seconds."""

    async def run() -> float:
        settings = Settings(kafka_bootstrap_servers=cluster.bootstrap, send_timeout_seconds=SECONDS)
        publisher = Publisher(settings)
        await publisher.start()
        await publisher.partitions(TOPIC_SCORES)
        started = time.monotonic()
        try:
            await action(publisher)
            return time.monotonic() - started
        finally:
            await publisher.stop(1.0)

    return asyncio.run(run())


def test_a_slow_broker_is_waited_for(cluster: MockCluster) -> None:
    """Acknowledged late is acknowledged."""

    async def send(publisher: Publisher) -> None:
        cluster.slow(400)
        await publisher.send_rows(TOPIC_SCORES, 0, ROWS)

    assert 0.3 < publish(cluster, send) < SECONDS


def test_an_answer_that_does_not_come_leaves_the_outcome_open(cluster: MockCluster) -> None:
    """Within the time that settings allow, and without a claim either way."""

    async def send(publisher: Publisher) -> None:
        cluster.slow(20_000)
        with pytest.raises(OutcomeUnknownError) as caught:
            await publisher.send_rows(TOPIC_SCORES, 0, ROWS)
        assert caught.value.acknowledged == 0

    assert publish(cluster, send) < SECONDS + 3


def test_a_broker_that_is_down_is_told_in_time_and_used_again(cluster: MockCluster) -> None:
    """No send waits longer than the settings allow; the next publisher works once the broker is back."""

    async def send(publisher: Publisher) -> None:
        cluster.down()
        with pytest.raises((NotSentError, OutcomeUnknownError)):
            await publisher.send_rows(TOPIC_SCORES, 0, ROWS)

    assert publish(cluster, send) < SECONDS + 3
    cluster.up()
    publish(cluster, lambda publisher: publisher.send_rows(TOPIC_SCORES, 0, ROWS))


def test_a_refused_message_is_not_sent(cluster: MockCluster) -> None:
    """What the broker certainly has not appended may be sent again."""

    async def send(publisher: Publisher) -> None:
        cluster.fail_next(PRODUCE, MESSAGE_TOO_LARGE)
        with pytest.raises(NotSentError):
            await publisher.send_rows(TOPIC_SCORES, 0, ROWS)
        await publisher.send_rows(TOPIC_SCORES, 0, ROWS)

    publish(cluster, send)


def test_an_error_after_the_write_leaves_the_outcome_open(cluster: MockCluster) -> None:
    """A server error says nothing about what is in the log."""

    async def send(publisher: Publisher) -> None:
        cluster.fail_next(PRODUCE, UNKNOWN_SERVER_ERROR)
        with pytest.raises(OutcomeUnknownError):
            await publisher.send_rows(TOPIC_SCORES, 0, ROWS)

    publish(cluster, send)


def test_parts_end_before_one_of_them_fails(cluster: MockCluster) -> None:
    """Small parts in one batch each and a large one in many: all are there, or nothing is under way at the error."""
    parts = {(TOPIC_SCORES, 0): ROWS * 3000, (TOPIC_ALERTS, 0): ROWS}

    async def send(publisher: Publisher) -> None:
        await publisher.send_parts(parts)
        cluster.fail_next(PRODUCE, MESSAGE_TOO_LARGE)
        with pytest.raises(NotSentError):
            await publisher.send_parts(dict.fromkeys(parts, ROWS))
        cluster.fail_next(PRODUCE, UNKNOWN_SERVER_ERROR)
        with pytest.raises(OutcomeUnknownError):
            await publisher.send_parts(dict.fromkeys(parts, ROWS))

    publish(cluster, send)


def test_parts_without_a_broker_end_in_time(cluster: MockCluster) -> None:
    """Nothing is claimed of what was not acknowledged."""

    async def send(publisher: Publisher) -> None:
        cluster.down()
        with pytest.raises((NotSentError, OutcomeUnknownError)):
            await publisher.send_parts({(TOPIC_SCORES, 0): ROWS, (TOPIC_ALERTS, 0): ROWS})

    assert publish(cluster, send) < 2 * SECONDS + 3


def singles(publisher: Publisher, count: int) -> Awaitable[list[BaseException | None]]:
    """The outcome of each of some messages that are sent at once."""
    return asyncio.gather(
        *(publisher.send(TOPIC_SCORES, b"key", b"%d" % i) for i in range(count)), return_exceptions=True
    )


@pytest.mark.parametrize(
    ("code", "kind"),
    [(MESSAGE_TOO_LARGE, RefusedError), (UNKNOWN_SERVER_ERROR, OutcomeUnknownError)],
)
def test_single_messages_share_what_the_broker_says(cluster: MockCluster, code: int, kind: type[Exception]) -> None:
    """Each that went with the request has its own error of the right kind; the next ones are taken."""

    async def send(publisher: Publisher) -> None:
        cluster.fail_next(PRODUCE, code)
        outcomes = await singles(publisher, 5)
        assert {type(outcome) for outcome in outcomes} == {kind}
        assert len(set(map(id, outcomes))) == 5
        assert publisher.broken.is_set()
        assert await singles(publisher, 3) == [None] * 3

    publish(cluster, send)


def test_who_was_not_sent_is_told_apart_from_who_may_have_been(cluster: MockCluster) -> None:
    """While a request gets no answer its messages may be there; those that waited behind it certainly are not."""

    async def send(publisher: Publisher) -> None:
        cluster.slow(20_000)
        first = asyncio.ensure_future(singles(publisher, 2))
        await asyncio.sleep(0.2)
        behind = asyncio.ensure_future(singles(publisher, 3))
        assert [type(outcome) for outcome in await first] == [OutcomeUnknownError] * 2
        assert [type(outcome) for outcome in await behind] == [NotSentError] * 3

    assert publish(cluster, send) < SECONDS + 3
