"""Monitoring: what was counted, what speaks for a retraining, and where scored trips come from."""

import asyncio
import dataclasses
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from fraudlib import bundle, features, labels, manifest, monitor, paths, scored, trips
from fraudlib.bundle import Bundle
from fraudlib.drift import Drift
from fraudlib.errors import DataError, ParameterError, ServiceError
from fraudlib.monitor import KEEP, RETRAIN, Part
from fraudlib.settings import Settings
from fraudlib.wire import topics
from fraudlib.wire.kafka import Publisher, Row

SAMPLE = paths.root() / "data/sample/green_tripdata_2023-05.parquet"


@pytest.fixture(scope="module")
def folder() -> Path:
    """Folder of the default bundle."""
    found = manifest.current_bundle(paths.root() / "artifacts")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def live(folder: Path) -> Bundle:
    """The default bundle, whose training data is made older or newer as a test needs."""
    return bundle.load(folder)


@pytest.fixture(scope="module")
def part(live: Bundle) -> Part:
    """4,000 trips of the sample, scored, with ids."""
    columns = trips.to_columns(trips.read(SAMPLE).slice(0, 4000))
    scores = live.scorer.score(columns)
    reasons = [f"{told[0]['field']} 1.00" for told in scores.reasons.values()]
    ids = [f"trip-{row}" for row in range(4000)]
    when = columns["pickup_datetime"]
    return Part(columns, scores.anomaly_score, scores.is_flagged, when, reasons, ids)


def outcome(found: monitor.Watch, name: str, verdicts: dict[str, str] | None = None, **limits: Any) -> str:
    checks = monitor.checks(found, verdicts or {}, **({"min_precision": 0.1, "max_age_days": 120} | limits))
    (check,) = [check for check in checks if check.name == name]
    return check.outcome


def test_slices_add_up_and_the_index_is_the_workers(live: Bundle, part: Part) -> None:
    """Every trip with a time lies in one slice, and the index is the one that the worker's metric shows."""
    found = monitor.watch(live, [part], "day")
    assert sum(each.rows for each in found.slices.values()) == found.whole.rows == 4000
    assert sum(each.flagged for each in found.slices.values()) == found.whole.flagged == part.is_flagged.sum() > 0
    assert found.volume().index.astype(str).tolist() == ["2023-05-01", "2023-05-02", "2023-05-03"]
    worker = Drift(live.reference, features.FEATURE_NAMES, 1800.0)
    worker.add(features.build(part.columns, live.scorer.statistics))
    mine = found.moved()["stability index"].drop(monitor.SCORE)
    assert mine.to_dict() == pytest.approx(worker.index(), abs=1e-9)


def test_parts_may_come_in_any_cut(live: Bundle, part: Part) -> None:
    """Counts do not depend on how the trips are cut into parts."""
    halves = [
        Part(
            {n: c[cut] for n, c in part.columns.items()},
            part.anomaly_score[cut],
            part.is_flagged[cut],
            part.when[cut],
            [],
        )
        for cut in (slice(0, 1500), slice(1500, None))
    ]
    whole, cut = monitor.watch(live, [part], "day"), monitor.watch(live, halves, "day")
    assert cut.moved().equals(whole.moved())
    assert cut.volume().equals(whole.volume())


def test_other_fares_speak_for_a_retraining(live: Bundle, part: Part) -> None:
    """Trips like those of training ask for nothing; a fare that grew by half does, and so do its scores and alerts."""
    fares = {name: part.columns[name] * 1.5 for name in ("fare_amount", "total_amount")}
    columns = {**part.columns, **fares}
    scores = live.scorer.score(columns)
    risen = dataclasses.replace(part, columns=columns, anomaly_score=scores.anomaly_score, is_flagged=scores.is_flagged)
    before, after = (monitor.watch(live, [each], "day") for each in (part, risen))
    for name in ("features", "scores", "alerts"):
        assert (outcome(before, name), outcome(after, name)) == (KEEP, RETRAIN), name


@pytest.mark.parametrize(("judged", "fraud", "expected"), [(29, 0, KEEP), (40, 0, RETRAIN), (40, 20, KEEP)])
def test_verdicts_count_once_there_are_enough(live: Bundle, part: Part, judged: int, fraud: int, expected: str) -> None:
    """Alerts that turn out honest speak for a retraining; a handful of verdicts, or verdicts on others, do not."""
    found = monitor.watch(live, [part], "day")
    alerts = sorted(found.alerts)[:judged]
    verdicts = {name: "fraud" if i < fraud else "honest" for i, name in enumerate(alerts)}
    others = {f"other-{i}": "honest" for i in range(100)}
    assert len(alerts) == judged
    assert outcome(found, "judged alerts", verdicts | others, min_precision=0.2) == expected


@pytest.mark.parametrize(
    ("day", "age", "tariff"), [("2023-05-02", KEEP, KEEP), ("2024-05-02", RETRAIN, KEEP), ("2022-05-02", KEEP, RETRAIN)]
)
def test_time_speaks_for_a_retraining(live: Bundle, part: Part, day: str, age: str, tariff: str) -> None:
    """So do trips long after the training months, and another tariff than theirs (2022-12-19)."""
    found = monitor.watch(live, [dataclasses.replace(part, when=np.full(4000, np.datetime64(day, "us")))], "day")
    assert (outcome(found, "age"), outcome(found, "tariff")) == (age, tariff)


def test_the_command_takes_the_newest_months() -> None:
    """The last month tests, the one before validates, up to three before those train; of too few, the sample."""
    months = [f"2023-0{n}" for n in range(1, 8)]
    command = monitor.retraining(Path("data/raw"), "green", months)
    for given in ("train_months=2023-03:2023-05", "valid_month=2023-06", "test_month=2023-07", "data_dir=data/raw"):
        assert f"-p {given}" in command
    assert "train_months=2023-01 " in monitor.retraining(Path("x"), "green", months[:3])
    assert monitor.retraining(Path("x"), "green", months[:2]) == "python -m pipelines retrain"


def test_what_cannot_be_watched_is_said(live: Bundle, part: Part) -> None:
    """An unknown unit, no trips at all, and too few to tell drift from chance."""
    with pytest.raises(ParameterError, match="day, hour, minute"):
        monitor.watch(live, [part], "week")
    with pytest.raises(DataError, match="found none"):
        monitor.watch(live, [], "day")
    few = Part(
        {n: c[:9] for n, c in part.columns.items()}, part.anomaly_score[:9], part.is_flagged[:9], part.when[:9], []
    )
    with pytest.raises(DataError, match="found 9"):
        monitor.watch(live, [few], "day").moved()


def test_months_are_scored_once_for_each_bundle(tmp_path: Path, folder: Path) -> None:
    """Scores of this bundle are kept, those of another made again; parts are what was read and scored."""
    month = tmp_path / SAMPLE.name
    pq.write_table(pq.read_table(SAMPLE).slice(0, 800), month)
    (scores,) = scored.score_months([month], tmp_path / "scores", folder, Settings(), "local")
    first = scores.stat().st_mtime_ns
    assert scored.score_months([month], tmp_path / "scores", folder, Settings(), "local")[0].stat().st_mtime_ns == first
    (part,) = scored.of_files([month], [scores])
    assert part.anomaly_score.tolist() == pq.read_table(scores)["anomaly_score"].to_pylist()
    assert len(part.reasons) == part.is_flagged.sum()
    pq.write_table(pq.read_table(scores).replace_schema_metadata({"fraudlib.bundle": "another"}), scores)
    (again,) = scored.score_months([month], tmp_path / "scores", folder, Settings(), "local")
    assert pq.read_schema(again).metadata[b"fraudlib.bundle"].decode() == folder.name
    pq.write_table(pq.read_table(SAMPLE).slice(0, 700), month)
    with pytest.raises(DataError, match="700 trips, found 800"):
        list(scored.of_files([month], [again]))


@pytest.fixture(scope="module")
def broker() -> Iterator[Settings]:
    """Settings of a running embedded broker."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host, port = probe.getsockname()
    process = subprocess.Popen([sys.executable, "-m", "fraudlib.broker.server", host, str(port), "64"])
    yield Settings(kafka_bootstrap_servers=f"{host}:{port}")
    process.terminate()
    assert process.wait(10) == 0


async def publish(settings: Settings, messages: dict[str, list[dict[str, Any]]]) -> None:
    """Send messages to partition 0 of each topic, in order."""
    publisher = Publisher(settings)
    await publisher.start()
    try:
        for topic, values in messages.items():
            rows: list[Row] = [(value["transaction_id"].encode(), orjson.dumps(value), None) for value in values]
            await publisher.send_rows(topic, 0, rows)
    finally:
        await publisher.stop()


def test_a_live_stack_is_read_from_its_topics(broker: Settings) -> None:
    """Transactions are joined with the scores of this bundle, each once; the latest verdict of an analyst counts."""
    topics.prepare(broker, 20.0)
    trip = {"trip_distance": 2.5, "duration_minutes": 15.0}
    sent = [{**trip, "transaction_id": f"t{i}", "fare_amount": 10.0 + i} for i in range(4)]
    reason = {"field": "fare_amount", "observed": 12.0, "expected": 9.0, "surprise": 3.0}
    given = {"anomaly_score": 2.5, "threshold": 2.2, "is_flagged": True, "reasons": [reason], "src_partition": 0}
    given["scored_at"] = "2026-01-01T10:00:00.000Z"
    ours = [{**given, "transaction_id": f"t{i}", "src_offset": i, "bundle_id": "ours"} for i in (0, 2, 2)]
    theirs = {**given, "transaction_id": "t3", "src_offset": 3, "bundle_id": "theirs"}
    said = [
        {"transaction_id": "t2", "verdict": verdict, "labeled_at": f"2026-01-0{day}T00:00:00.000Z"}
        for day, verdict in ((2, "honest"), (1, "fraud"))
    ]
    asyncio.run(publish(broker, {"transactions": sent, "scores": [*ours, theirs], "labels": said}))
    (part,) = scored.of_topics(broker, "ours")
    assert (list(part.ids), part.columns["fare_amount"].tolist()) == (["t0", "t2"], [10.0, 12.0])
    assert part.when.astype(str).tolist() == ["2026-01-01T10:00:00.000000"] * 2
    assert list(part.reasons) == ["fare_amount 12.00, expected 9.00"] * 2
    assert labels.of_topic(broker).last() == {"t2": "honest"}


def test_a_stack_that_is_away_is_said() -> None:
    """Nobody at the address: one sentence with the address."""
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:9"):
        labels.of_topic(Settings(kafka_bootstrap_servers="127.0.0.1:9"))
