"""Names, types and units of a transaction, under every spelling that the TLC and its mirrors use."""

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["integer", "float", "time", "text"]


@dataclass(frozen=True)
class Column:
    """One column of a trip record.

    Attributes
    ----------
    name : canonical snake_case name.
    kind : "integer", "float", "time" (naive New York local time) or "text".
    unit : unit of the values, "" where they are codes.
    meaning : what the TLC's data dictionary says, in a few words.
    aliases : other spellings, compared without case and underscores.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    aliases: tuple[str, ...] = ()


COLUMNS: Final[tuple[Column, ...]] = (
    Column("vendor_id", "integer", "", "technology provider: 1 Creative Mobile, 2 VeriFone/Curb, 6 Myle"),
    Column(
        "pickup_datetime",
        "time",
        "local time",
        "meter engaged",
        ("lpep_pickup_datetime", "tpep_pickup_datetime", "pickup"),
    ),
    Column(
        "dropoff_datetime",
        "time",
        "local time",
        "meter disengaged",
        ("lpep_dropoff_datetime", "tpep_dropoff_datetime", "dropoff"),
    ),
    Column("store_and_fwd_flag", "text", "", "Y where the record was held in the vehicle first"),
    Column(
        "rate_code_id",
        "integer",
        "",
        "1 city, 2 JFK, 3 Newark, 4 Nassau/Westchester, 5 agreed, 6 group, 99 unknown",
        ("ratecode_id",),
    ),
    Column("pickup_location_id", "integer", "taxi zone", "zone of the pickup, 1..265", ("pu_location_id",)),
    Column("dropoff_location_id", "integer", "taxi zone", "zone of the drop-off, 1..265", ("do_location_id",)),
    Column("passenger_count", "integer", "persons", "entered by the driver", ("passengers",)),
    Column("trip_distance", "float", "miles", "distance on the taximeter", ("distance",)),
    Column("fare_amount", "float", "USD", "time-and-distance fare of the meter", ("fare",)),
    Column("extra", "float", "USD", "rush-hour and night surcharges"),
    Column("mta_tax", "float", "USD", "MTA tax"),
    Column("tip_amount", "float", "USD", "card tips; cash tips are not recorded", ("tip",)),
    Column("tolls_amount", "float", "USD", "tolls paid on the trip", ("tolls",)),
    Column("ehail_fee", "float", "USD", "e-hail fee, no longer in use"),
    Column("improvement_surcharge", "float", "USD", "improvement surcharge"),
    Column("total_amount", "float", "USD", "charged to the passenger, without cash tips", ("total",)),
    Column("payment_type", "integer", "", "1 card, 2 cash, 3 no charge, 4 dispute, 5 unknown, 6 voided"),
    Column("trip_type", "integer", "", "green only: 1 street hail, 2 dispatch"),
    Column("congestion_surcharge", "float", "USD", "New York State congestion surcharge"),
    Column("airport_fee", "float", "USD", "airport access fee"),
    Column("cbd_congestion_fee", "float", "USD", "MTA congestion relief zone fee, from 2025"),
)

BY_NAME: Final = {column.name: column for column in COLUMNS}
TIME_COLUMNS: Final = tuple(c.name for c in COLUMNS if c.kind == "time")
NUMBER_COLUMNS: Final = tuple(c.name for c in COLUMNS if c.kind in ("integer", "float"))

# A file without these is not a file of trips.
REQUIRED_COLUMNS: Final = ("pickup_datetime", "dropoff_datetime", "trip_distance", "fare_amount")

# Numbers that a transaction must bring; pickup and drop-off times may stand in for the duration.
REQUIRED_FIELDS: Final = ("trip_distance", "fare_amount", "duration_minutes")

SERVICES: Final = ("green", "yellow")

TOPIC_TRANSACTIONS: Final = "transactions"
TOPIC_SCORES: Final = "scores"
TOPIC_ALERTS: Final = "alerts"
TOPIC_DEAD_LETTERS: Final = "transactions.dlq"
TOPIC_LABELS: Final = "labels"
TOPICS: Final = (TOPIC_TRANSACTIONS, TOPIC_SCORES, TOPIC_ALERTS, TOPIC_DEAD_LETTERS, TOPIC_LABELS)


def _squeeze(name: str) -> str:
    return name.replace("_", "").replace(" ", "").lower()


_CANONICAL: Final = {_squeeze(alias): column.name for column in COLUMNS for alias in (column.name, *column.aliases)} | {
    "durationminutes": "duration_minutes",
    "transactionid": "transaction_id",
    "service": "service",
}


def canonical_name(name: str) -> str | None:
    """Canonical name of a column or field in any known spelling, None where it is unknown.

    Examples
    --------
    >>> canonical_name("PULocationID"), canonical_name("tpepPickupDateTime"), canonical_name("colour")
    ('pickup_location_id', 'pickup_datetime', None)
    """
    return _CANONICAL.get(_squeeze(name))


def service_of(name: str) -> str | None:
    """Service that a column's spelling gives away: "green" for lpep_*, "yellow" for tpep_*.

    Examples
    --------
    >>> service_of("lpep_pickup_datetime"), service_of("tpepPickupDateTime"), service_of("pickup")
    ('green', 'yellow', None)
    """
    return {"lpep": "green", "tpep": "yellow"}.get(_squeeze(name)[:4])
