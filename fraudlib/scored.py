"""Scored trips to look back on: months beside their scores, or the topics of a live stack."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from fraudlib import spans, trips
from fraudlib.errors import DataError
from fraudlib.monitor import Part
from fraudlib.reasons import in_words
from fraudlib.schema import TOPIC_SCORES, TOPIC_TRANSACTIONS
from fraudlib.scorefile import BUNDLE_KEY, CHUNK_ROWS, chunks
from fraudlib.settings import Settings
from fraudlib.wire import topics
from fraudlib.wire.records import decode

Place = tuple[int, int]  # partition and offset of a transaction
BATCH: Final = 8192


def score_months(files: Sequence[Path], folder: Path, bundle: Path, settings: Settings, engine: str) -> list[Path]:
    """Score the months that `folder` has no scores of this bundle for; the files of scores, in the same order.

    Parameters
    ----------
    files : months of trips. folder : made when missing; a month's scores have the month's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [folder / f"{path.stem}.parquet" for path in files]
    for path, output in zip(files, outputs, strict=True):
        if not output.exists() or _bundle_of(output) != bundle.name:
            spans.score(path, output, bundle, settings, engine, lambda rows: None)
    return outputs


def _bundle_of(scores: Path) -> str:
    try:
        return str((pq.read_schema(scores).metadata or {}).get(BUNDLE_KEY, b"").decode())
    except pa.ArrowException as err:
        raise DataError(f"{scores}: expected scores that `fraudlib score` wrote, found {err}; remove it") from err


def of_files(files: Sequence[Path], scores: Sequence[Path]) -> Iterator[Part]:
    """Trips of months beside their scores, at constant memory.

    Raises
    ------
    DataError
        If a file of scores has not a row for each trip.
    """
    for month, path in zip(files, scores, strict=True):
        with pq.ParquetFile(path, pre_buffer=False) as file:
            if file.metadata.num_rows != (rows := trips.count(month)):
                raise DataError(f"{path}: expected scores of {rows} trips, found {file.metadata.num_rows}; score again")
            told = chunks(file.iter_batches(CHUNK_ROWS), CHUNK_ROWS)
            for piece, said in zip(chunks(trips.batches(month), CHUNK_ROWS), told, strict=True):
                columns = trips.to_columns(piece)
                yield Part(
                    columns,
                    said["anomaly_score"].to_numpy(),
                    said["is_flagged"].to_numpy(),
                    columns["pickup_datetime"],
                    [reason for reason in said["reason_1"].to_pylist() if reason],
                )


def of_topics(settings: Settings, bundle_id: str) -> list[Part]:
    """Transactions that a stack's topics hold, beside the scores that this bundle gave them; each once.

    Raises
    ------
    ServiceError
        If the broker does not answer.
    """
    scores: dict[Place, dict[str, Any]] = {}
    values: list[tuple[Place, bytes]] = []

    def take_score(message: Any) -> None:
        score = orjson.loads(message.value)
        if score["bundle_id"] == bundle_id:
            scores.setdefault((score["src_partition"], score["src_offset"]), score)

    def take_trip(message: Any) -> None:
        if (place := (message.partition, message.offset)) in scores:
            values.append((place, message.value))

    topics.fetch(settings, TOPIC_SCORES, take_score)
    topics.fetch(settings, TOPIC_TRANSACTIONS, take_trip)
    return [_part(values[i : i + BATCH], scores) for i in range(0, len(values), BATCH)]


def _part(values: Sequence[tuple[Place, bytes]], scores: dict[Place, dict[str, Any]]) -> Part:
    decoded = decode([value for _, value in values])
    mine = [scores[values[row][0]] for row in decoded.rows]
    return Part(
        decoded.columns,
        np.array([score["anomaly_score"] for score in mine], dtype=np.float64),
        np.array([score["is_flagged"] for score in mine], dtype=bool),
        np.array([score["scored_at"].removesuffix("Z") for score in mine], dtype="datetime64[us]"),
        [in_words(score["reasons"][0]) for score in mine if score["is_flagged"] and score["reasons"]],
        [score["transaction_id"] for score in mine],
    )
