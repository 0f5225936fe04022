"""What is looked at beside the work: it is counted right, bounded, and harms nothing."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from prometheus_client import CollectorRegistry

from fraudlib import manifest, paths, trips
from fraudlib.errors import BundleError
from fraudlib.paths import SHADOW
from fraudlib.scoring import Scorer
from fraudlib.settings import Settings
from fraudlib.telemetry import WorkerMetrics
from fraudlib.worker.observer import BUFFER, SAMPLE, Observer
from fraudlib.worker.outputs import Outputs, process

TRIP: dict[str, Any] = {"trip_distance": 2.5, "duration_minutes": 15}


class Fares:
    """Scores by the fare plus a shift, flags from a threshold on."""

    def __init__(self, bundle_id: str = "live", threshold: float = 100.0, shift: float = 0.0) -> None:
        self.bundle_id, self.threshold, self.shift = bundle_id, threshold, shift

    def score(self, columns: dict[str, Any]) -> Any:
        """Scores of the columns."""
        fares = columns["fare_amount"]
        if self.bundle_id == "broken":
            raise RuntimeError("it broke")
        score = np.where(fares == 13, np.nan, fares + self.shift) if self.shift else fares
        return SimpleNamespace(anomaly_score=score, is_flagged=score >= self.threshold, reasons={})


def load(folder: Path) -> Fares:
    """`stricter` flags from 50 on and scores 0.03 more; `bad` is refused."""
    if folder.name == "bad":
        raise BundleError("altered")
    return Fares(folder.name, 50.0 if folder.name == "stricter" else 200.0, 0.03)


def message(offset: int, fare: float) -> Any:
    """A message of partition 0."""
    value = orjson.dumps(TRIP | {"fare_amount": fare})
    return SimpleNamespace(topic="transactions", partition=0, offset=offset, key=b"k", value=value)


class Bench:
    """An observer with its metrics."""

    def __init__(self, artifacts: Path, scorer: Any = None, **settings: Any) -> None:
        self.metrics = WorkerMetrics(CollectorRegistry())
        self.scorer = scorer or Fares()
        values: dict[str, Any] = {"artifacts_dir": artifacts, "shadow_share": 1.0, **settings}
        bundle = SimpleNamespace(scorer=self.scorer)
        self.observer = Observer(Settings(**values), bundle, load, self.metrics)  # type: ignore[arg-type]

    def value(self, name: str, **labels: str) -> float | None:
        """A metric."""
        return self.metrics.registry.get_sample_value(f"fraudlib_worker_{name}", labels)

    async def watch(self, *batches: list[Any]) -> None:
        """Run it, and offer batches once it has looked for its bundle."""
        running = asyncio.create_task(self.observer.run())
        await asyncio.sleep(1.2)
        for batch in batches:
            self.observer.offer(batch, process(batch, self.scorer))
            await asyncio.sleep(0.05)
        for _ in range(40):
            await asyncio.sleep(0.05 if self.observer._waiting else 0)
        running.cancel()


def shadow(artifacts: Path, name: str) -> None:
    """Point to a bundle that is only a name."""
    (artifacts / name).mkdir(exist_ok=True)
    manifest.write_atomic(artifacts / SHADOW, name.encode())


def test_a_shadow_bundle_is_compared_and_writes_nothing(tmp_path: Path) -> None:
    """Both sides' disagreements and the differences of the scores are counted; records without a score are left out."""
    shadow(tmp_path, "stricter")
    bench = Bench(tmp_path)
    fares = [12.5] * 6 + [60.0, 70.0, 150.0, 13.0]
    batch = [message(i, fare) for i, fare in enumerate(fares)] + [message(10, 12.5)]
    batch[-1].value = b"poison"
    asyncio.run(bench.watch(batch))
    assert bench.value("shadow_bundle_info", bundle_id="stricter") == 1
    assert bench.value("shadow_transactions_total") == 9
    assert bench.value("shadow_disagreements_total", flagged_by="shadow") == 2
    assert bench.value("shadow_disagreements_total", flagged_by="live") == 0
    assert bench.value("shadow_score_difference_bucket", le="0.02") == 0
    assert bench.value("shadow_score_difference_bucket", le="0.05") == 9
    assert bench.value("alerts_total") is None


@pytest.mark.parametrize("name", ["bad", "broken", "gone"])
def test_a_shadow_that_fails_fails_alone(tmp_path: Path, name: str) -> None:
    """One that is refused, raises or is not there is counted, and the observer goes on."""
    shadow(tmp_path, name)
    if name == "gone":
        (tmp_path / name).rmdir()
    bench = Bench(tmp_path)
    asyncio.run(bench.watch([message(0, 12.5)], [message(1, 12.5)]))
    assert (bench.value("failures_total", stage="shadow") or 0) >= 1
    assert bench.value("shadow_transactions_total") == 0


def test_the_shadow_scores_a_share_and_holds_at_most_one_batch(tmp_path: Path) -> None:
    """One batch in ten is kept, and none while one waits: the live path never does."""
    shadow(tmp_path, "stricter")
    bench = Bench(tmp_path, shadow_share=0.1)
    bench.observer._shadow.refresh()
    kept = 0
    for _ in range(100):
        bench.observer.offer([message(0, 1.0)], Outputs())
        kept += bench.observer._waiting is not None
        bench.observer._waiting = None
    assert kept in (9, 10)
    for _ in range(100):
        bench.observer.offer([message(0, 1.0)], Outputs())
    assert bench.observer._waiting is not None


def test_the_shadow_rests_while_the_worker_is_behind(tmp_path: Path) -> None:
    """Full batches are left to the live path; of others, records from all over the batch are compared."""
    shadow(tmp_path, "stricter")
    bench = Bench(tmp_path, batch_max_records=2500)
    bench.observer._shadow.refresh()
    batch = [message(i, 60.0 if i >= 1800 else 12.5) for i in range(2400)]
    bench.observer.offer([*batch, *batch[:100]], Outputs())
    assert bench.observer._waiting is None
    bench.observer.offer(batch, process(batch, bench.scorer))
    assert bench.observer._waiting is not None
    bench.observer._shadow.compare(*bench.observer._waiting)
    assert bench.value("shadow_transactions_total") == 800
    assert bench.value("shadow_disagreements_total", flagged_by="shadow") == 200


def test_without_a_shadow_nothing_is_kept(tmp_path: Path) -> None:
    """The pointer is optional, and a share of 0 turns it off."""
    bench = Bench(tmp_path)
    asyncio.run(bench.watch([message(0, 12.5)]))
    assert bench.observer._waiting is None
    shadow(tmp_path, "stricter")
    bench = Bench(tmp_path, shadow_share=0.0)
    asyncio.run(bench.watch([message(0, 12.5)]))
    assert bench.value("shadow_transactions_total") == 0


def test_samples_are_bounded(tmp_path: Path) -> None:
    """However many batches are published between two looks, a bounded number of records waits."""
    bench = Bench(tmp_path)
    batch = [message(i, 1.0) for i in range(5000)]
    outputs = process(batch, bench.scorer)
    for _ in range(1000):
        bench.observer.offer(batch, outputs)
    assert len(bench.observer._messages) <= BUFFER + SAMPLE
    assert len(bench.observer._scores) <= BUFFER + SAMPLE


def test_drift_of_the_default_bundle_on_its_sample() -> None:
    """Doubled fares show in the features made of them, and more than unchanged ones do; labels are feature names."""
    artifacts = paths.root() / "artifacts"
    folder = manifest.current_bundle(artifacts)
    assert folder is not None
    scorer = Scorer.load(folder)
    table = trips.read(paths.root() / "data" / "sample" / "green_tripdata_2023-05.parquet").slice(0, 1500)
    index = {}
    for factor in (1.0, 2.0):
        bench = Bench(artifacts, scorer)
        batch = []
        for offset, trip in enumerate(table.to_pylist()):
            fields = {k: v.isoformat() if hasattr(v, "isoformat") else v for k, v in trip.items() if v is not None}
            fields["fare_amount"] *= factor
            batch.append(SimpleNamespace(partition=0, offset=offset, key=b"k", value=json.dumps(fields).encode()))
        scores = [row[1] or b"" for row in process(batch, scorer).scores[0]]
        bench.observer._look(batch, scores)
        index[factor] = {s.labels["feature"]: s.value for m in bench.metrics.drift.collect() for s in m.samples}
        assert bench.value("drift_window_transactions") == len(scores)
    features = set(json.loads((folder / "reference.json").read_bytes()))
    assert set(index[1.0]) == features
    assert np.median(list(index[1.0].values())) < 0.1
    worst = max(index[2.0], key=lambda name: index[2.0][name] - index[1.0][name])
    assert index[2.0][worst] > index[1.0][worst] + 1.0
    assert index[2.0]["anomaly_score"] > index[1.0]["anomaly_score"]
