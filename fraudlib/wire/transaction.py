"""The transaction and the label as the API documents them, made from the schema."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from fraudlib.schema import COLUMNS, TIME_COLUMNS, Column
from fraudlib.wire.records import ID_PATTERN

EXAMPLE: Final = {"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}
FULL_EXAMPLE: Final = {
    "transaction_id": "trip-1",
    "VendorID": 2,
    "lpep_pickup_datetime": "2023-03-01T12:00:00",
    "lpep_dropoff_datetime": "2023-03-01T12:15:00",
    "PULocationID": 74,
    "DOLocationID": 75,
    "RatecodeID": 1,
    "payment_type": 1,
    "passenger_count": 1,
    "trip_distance": 2.5,
    "fare_amount": 15.6,
    "extra": 0,
    "mta_tax": 0.5,
    "tip_amount": 3,
    "tolls_amount": 0,
    "improvement_surcharge": 1,
    "total_amount": 20.1,
}
_TYPES: Final[dict[str, Any]] = {"integer": int, "float": float, "time": str, "text": str}
_REQUIRED: Final = ("trip_distance", "fare_amount")


def _field(column: Column) -> tuple[Any, Any]:
    unit = f" ({column.unit})" if column.unit else ""
    also = f"; also {', '.join(column.aliases)}" if column.aliases else ""
    text = f"{column.meaning}{unit}{also}"
    kind = _TYPES[column.kind]
    extra: dict[str, Any] = {"format": "date-time"} if column.kind == "time" else {}
    if column.name in _REQUIRED:
        return kind, Field(description=text, json_schema_extra=extra or None)
    return kind | None, Field(None, description=text, json_schema_extra=extra or None)


class _WithDuration(BaseModel):
    model_config = ConfigDict(
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={
            "anyOf": [
                {"required": list(names), "properties": {name: {"not": {"type": "null"}} for name in names}}
                for names in (("duration_minutes",), TIME_COLUMNS)
            ]
        },
    )


_FIELDS: Final[dict[str, Any]] = {
    "transaction_id": (
        str | None,
        Field(None, pattern=ID_PATTERN, description="identity of the trip; made up where missing"),
    ),
    "duration_minutes": (
        float | None,
        Field(None, description="duration (minutes); the two times may stand in for it"),
    ),
    "service": (Literal["green", "yellow"] | None, Field(None, description="kind of taxi, where known")),
    **{column.name: _field(column) for column in COLUMNS},
}

# The checks themselves are those of fraudlib.wire.records, column by column; this model is what /docs shows of them.
Transaction: Final = create_model(
    "Transaction",
    __base__=_WithDuration,
    __doc__=(
        "One taxi trip. Needed are trip_distance, fare_amount, and duration_minutes or both times; every other field "
        "is optional. Names may be written as the TLC writes them (VendorID, PULocationID, tpep_pickup_datetime); "
        "unknown ones are ignored and named in the answer. Times are New York local time; one with an offset is "
        "converted. What is merely strange, such as a negative fare, is accepted and scored."
    ),
    **_FIELDS,
)


class Label(BaseModel):
    """An analyst's verdict on a transaction."""

    model_config = ConfigDict(strict=True, extra="forbid")
    transaction_id: Annotated[str, Field(pattern=ID_PATTERN, description="identity of the trip")]
    verdict: Annotated[Literal["fraud", "honest"], Field(description="what it was")]
    kind: Annotated[str | None, Field(max_length=64, description="kind of fraud, where known")] = None
    note: Annotated[str | None, Field(max_length=500, description="anything worth keeping")] = None
    analyst: Annotated[str | None, Field(pattern=ID_PATTERN, description="who says so")] = None


class Accepted(BaseModel):
    """The broker has the transaction."""

    transaction_id: str
    status: Literal["accepted"]
    ignored: list[str] | None = None


class Reason(BaseModel):
    """A field that surprised the model."""

    field: str
    observed: float | None
    expected: float | None
    surprise: float


class Scored(BaseModel):
    """The score of a transaction, as on the topic `scores`."""

    transaction_id: str
    status: Literal["scored"]
    anomaly_score: float
    threshold: float
    is_flagged: bool
    severity: Literal["review", "block"] | None = None
    reasons: list[Reason]
    bundle_id: str
    src_partition: int
    src_offset: int
    scored_at: str
    accepted_at: str | None = None


class Percentiles(BaseModel):
    """Milliseconds."""

    p50: float
    p99: float


class Pulse(BaseModel):
    """How the whole fares at this moment."""

    is_broker_up: bool
    lag: int | None
    scores_per_second: float | None
    latency_ms: Percentiles | None
    bundle_id: str | None
    threshold: float | None
    scores: list[float]


class Item(BaseModel):
    """What became of one transaction of many."""

    index: int
    transaction_id: str | None = None
    status: Literal["accepted", "invalid", "not-sent", "outcome-unknown"]
    error: str | None = None


class Items(BaseModel):
    """What became of many transactions."""

    accepted: int
    failed: int
    results: list[Item]


class ProblemDetails(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
