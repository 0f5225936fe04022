"""The live path with every process for real: what is acknowledged is scored, and once behind the reader's filter."""

import http.client
import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fraudlib import manifest, paths, trips
from fraudlib.scoring import Scorer
from fraudlib.wire.delivery import Deduplicator, FirstOfId

from .conftest import Service, Site, until

TRIP = {"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}
GHOST = {"trip_distance": 0.02, "fare_amount": 450, "duration_minutes": 0.3, "RatecodeID": 5, "total_amount": 450}
SCORE_FIELDS = {"transaction_id", "anomaly_score", "threshold", "is_flagged", "severity", "reasons", "bundle_id"}
SCORE_FIELDS |= {"src_partition", "src_offset", "scored_at", "accepted_at"}


def scored_once(messages: list[Any]) -> list[dict[str, Any]]:
    """What a reader with the filter sees."""
    is_fresh = Deduplicator()
    scores = [json.loads(message.value) for message in messages]
    return [score for score in scores if is_fresh(score["src_partition"], score["src_offset"])]


@pytest.fixture(scope="module")
def live(shared_site: Site) -> Iterator[Site]:
    """API and worker started before their broker: they wait for it, and say so."""
    api, worker = shared_site.start("api"), shared_site.start("worker")
    until(lambda: api.says("api listens"))
    status, headers, problem = until(lambda: _try(shared_site, "/transaction", TRIP))
    assert (status, problem["type"]) == (503, "urn:fraudlib:problem:not-sent")
    assert headers["retry-after"]
    assert shared_site.call("/readyz")[0] == 503
    assert shared_site.call("/healthz")[0] == 200
    until(lambda: worker.says("broker does not answer"))
    shared_site.start("broker")
    until(shared_site.is_ready, 15, "the API is ready once the broker is up")
    until(lambda: worker.says("partitions assigned"), 30, "the worker gets partitions once the broker is up")
    yield shared_site
    # The whole place leaves in good order: what stands nearest to the clients first.
    codes = {s.name: s.stop() for name in ("api", "worker", "broker") for s in running(shared_site, name)}
    assert codes == {"api": 0, "worker": 0, "broker": 0}


def _try(site: Site, *request: Any) -> Any:
    try:
        return site.call(*request)
    except OSError:
        return None


def running(site: Site, name: str) -> list[Service]:
    """Services of that name that still run."""
    return [s for s in site.services if s.name == name and s.process.poll() is None]


def test_a_client_can_wait_for_the_score(live: Site) -> None:
    """`Prefer: wait=N` answers 200 with the score of that very transaction."""
    status, headers, score = live.call("/transaction", TRIP | {"transaction_id": "wait-1"}, Prefer="wait=10")
    assert status == 200
    assert headers["preference-applied"] == "wait=10"
    assert score["transaction_id"] == "wait-1"
    assert set(score) >= SCORE_FIELDS
    assert isinstance(score["anomaly_score"], float)


def test_live_and_batch_give_the_same_score(live: Site) -> None:
    """Trips sent through API, broker and worker score as the same rows do in the batch path."""
    table = trips.read(paths.root() / "data" / "sample" / "green_tripdata_2023-05.parquet").slice(5000, 40)
    columns = trips.to_columns(table)
    folder = manifest.current_bundle(paths.root() / "artifacts")
    assert folder is not None
    batch = Scorer.load(folder).score(columns)
    for row, trip in enumerate(table.to_pylist()):
        fields = {k: v.isoformat() if hasattr(v, "isoformat") else v for k, v in trip.items() if v is not None}
        score = live.call("/transaction", fields | {"transaction_id": f"same-{row}"}, Prefer="wait=10")[2]
        assert score["anomaly_score"] == pytest.approx(batch.anomaly_score[row], abs=1e-4)
        assert score["is_flagged"] == batch.is_flagged[row]
        assert [r["field"] for r in score["reasons"]] == [r["field"] for r in batch.reasons.get(row, [])]


def test_a_ghost_trip_reaches_the_alert_stream(live: Site) -> None:
    """An alert comes by server-sent events, with the trip and its reasons, and on the topic under its identity."""
    connection = http.client.HTTPConnection("127.0.0.1", int(live.env["FRAUDLIB_API_PORT"]), timeout=15)
    connection.request("GET", "/alerts")
    stream = connection.getresponse()
    assert stream.getheader("content-type", "").startswith("text/event-stream")
    live.call("/transaction", GHOST | {"transaction_id": "ghost-1"})
    event: dict[str, str] = {}
    while "ghost-1" not in event.get("data", ""):
        name, _, value = stream.readline().decode().strip().partition(": ")
        event[name] = value
    connection.close()
    alert = json.loads(event["data"])
    assert (alert["is_flagged"], alert["severity"]) == (True, "block")
    assert alert["transaction"]["fare_amount"] == 450
    assert {"field", "observed", "expected", "surprise"} <= set(alert["reasons"][0])
    keys = [m.key for m in live.read("alerts", lambda found: any(m.key == b"ghost-1" for m in found))]
    assert keys.count(b"ghost-1") == 1


def test_poison_ends_in_the_dead_letters(live: Site) -> None:
    """Bytes that are no transaction are put aside as they were; what others write by their own names is scored."""
    tlc = {"tpep_pickup_datetime": "2023-03-01 12:00:00", "tpep_dropoff_datetime": "2023-03-01 12:15:00"}
    own = TRIP | tlc | {"PULocationID": 74}
    live.produce("transactions", (b"poison", b"\x00not json"), (b"by-hand", json.dumps(own).encode()), (None, b"{}"))
    dead = live.read("transactions.dlq", lambda found: len(found) >= 2)
    by_key = {message.key: message for message in dead}
    assert by_key[b"poison"].value == b"\x00not json"
    headers = {name: value.decode() for name, value in by_key[b"poison"].headers}
    assert headers["error"] == "SchemaError"
    assert "expected JSON" in headers["reason"]
    assert headers["src_topic"] == "transactions"
    assert "trip_distance: missing" in dict(by_key[None].headers)["reason"].decode()
    assert any(m.key == b"by-hand" for m in live.read("scores", lambda f: any(m.key == b"by-hand" for m in f)))


def test_nothing_is_lost_when_workers_are_killed_and_stopped(live: Site) -> None:
    """All that was acknowledged is scored once behind the filter, through a kill -9 and a SIGTERM under load."""
    acknowledged: set[str] = set()

    def send(name: str, count: int = 3000) -> None:
        lines = (json.dumps(TRIP | {"transaction_id": f"{name}-{i}", "tip_amount": i % 7}) for i in range(count))
        status, _, answer = live.call("/transactions", "\n".join(lines).encode(), Content_Type="application/x-ndjson")
        assert status == 202, answer["results"][:3]
        acknowledged.update(item["transaction_id"] for item in answer["results"])

    (first,) = running(live, "worker")
    send("before")
    second = live.start("worker")
    send("kill")
    first.process.kill()
    send("killed")
    until(lambda: second.says("partitions assigned"), 30, "the second worker takes over")
    send("stop")
    time.sleep(0.1)
    assert second.stop(signal.SIGTERM) == 0
    send("stopped")
    live.start_worker()

    def are_all_there(messages: list[Any]) -> bool:
        return len({m.key for m in messages if b"-" in m.key} & {i.encode() for i in acknowledged}) == len(acknowledged)

    scores = scored_once(live.read("scores", are_all_there, 30))
    mine = [score["transaction_id"] for score in scores if score["transaction_id"] in acknowledged]
    assert len(mine) == len(set(mine)) == len(acknowledged) == 15_000


def test_the_same_request_twice_is_one_transaction(live: Site) -> None:
    """A retry under the same Idempotency-Key gets the same score, and the log has the transaction once."""
    first, again = (live.call("/transaction", TRIP, Idempotency_Key='"retry-1"', Prefer="wait=10") for _ in range(2))
    assert first[0] == again[0] == 200
    assert first[2] == again[2]
    assert again[1]["idempotency-replayed"] == "true"
    live.call("/transaction", TRIP | {"transaction_id": "after-retry-1"}, Prefer="wait=10")
    sent = live.read("transactions", lambda found: any(m.key == b"after-retry-1" for m in found))
    assert sum(message.key == b"retry-1" for message in sent) == 1


def test_what_is_sent_again_by_its_identity_is_shown_once(live: Site) -> None:
    """Without a key it stands twice in the log, in one partition, and the reader's filters let the first pass."""
    scores = [live.call("/transaction", TRIP | {"transaction_id": "again-1"}, Prefer="wait=10")[2] for _ in range(2)]
    assert scores[0]["src_partition"] == scores[1]["src_partition"]
    assert scores[0]["src_offset"] < scores[1]["src_offset"]
    is_first = FirstOfId()
    found = live.read("scores", lambda messages: sum(m.key == b"again-1" for m in messages) == 2)
    seen = [score for score in scored_once(found) if is_first(score["transaction_id"])]
    assert [s["src_offset"] for s in seen if s["transaction_id"] == "again-1"] == [scores[0]["src_offset"]]


def test_a_broker_that_comes_back_empty_is_used_again(live: Site) -> None:
    """While it is away the API says so at once; afterwards API and worker go on by themselves."""
    (broker,) = running(live, "broker")
    broker.process.kill()
    until(lambda: live.call("/readyz")[0] == 503, 10)
    started = time.monotonic()
    assert live.call("/transaction", TRIP)[0] == 503
    assert time.monotonic() - started < 1
    live.start("broker")
    until(live.is_ready, 10)
    until(lambda: live.call("/transaction", TRIP, Prefer="wait=2")[0] == 200, 30, "a score after the broker's return")
    assert live.call("/transaction", TRIP, Prefer="wait=10")[0] == 200


def test_a_taken_port_is_named(live: Site) -> None:
    """Each service says which port, and which setting moves it, in one sentence, and exits with 1."""
    for name, setting in (("broker", "FRAUDLIB_BROKER_PORT"), ("api", "FRAUDLIB_API_PORT")):
        service = live.start(name)
        assert service.process.wait(20) == 1
        assert setting in service.log.read_text()
        assert "Traceback" not in service.log.read_text()
    worker = live.start("worker", FRAUDLIB_METRICS_PORT=live.env["FRAUDLIB_API_PORT"])
    assert worker.process.wait(30) == 1
    assert worker.says("FRAUDLIB_METRICS_PORT")


def test_the_door_closes_while_the_workers_lag_behind(site: Site) -> None:
    """Without a worker the API takes so many and then answers 429; once they are scored it takes more."""
    site.start("broker")
    site.start("api", FRAUDLIB_MAX_LAG="20")
    until(site.is_ready, 20, "a ready API")

    def is_refused() -> bool:
        status, headers, problem = site.call("/transaction", TRIP)
        if status == 429:
            assert problem["type"] == "urn:fraudlib:problem:workers-behind"
            assert 1 <= int(headers["retry-after"]) <= 30
        return bool(status == 429)

    until(is_refused, 20, "429 from an API whose workers are missing")
    site.start_worker()
    until(lambda: site.call("/transaction", TRIP)[0] == 202, 20, "202 once the worker has caught up")


def test_a_worker_without_partitions_stops_at_once_and_well(site: Site) -> None:
    """It has nothing to finish, however long the group would still wait for another that left without a word."""
    site.start("broker")
    patient = {"FRAUDLIB_SESSION_TIMEOUT_MS": "30000"}
    site.start_worker(**patient).process.kill()
    waiting = site.start("worker", **patient)
    until(lambda: waiting.says("health is served"), why="a worker that waits")
    time.sleep(5)  # by now its poll is held up by the rebalance
    assert not waiting.says("partitions assigned")
    started = time.monotonic()
    assert waiting.stop() == 0
    assert time.monotonic() - started < 6


def test_a_stopped_worker_admits_that_the_broker_is_gone(site: Site) -> None:
    """SIGTERM ends a worker within 15 s although no broker answers, with a code that is not 0."""
    broker = site.start("broker")
    worker = site.start_worker()
    broker.process.kill()
    time.sleep(0.5)
    assert worker.stop() == 1
