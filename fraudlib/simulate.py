"""Simulate a month of honest taxi records: journeys through a made-up city, written down with the records' own habits.

Each provider adds a record up in its own way, and records carry stamps, nulls and voids as real ones do; where a share
has no other source it was measured on the months that `fraudlib.journeys` names.
"""

from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fraudlib.errors import FraudError, ParameterError
from fraudlib.journeys import ABORTED, AGREED, APP, LIVERY, METERED, NEWARK, SUBURB, Bools, Floats, Ints, Journeys
from fraudlib.schema import SERVICES
from fraudlib.tariff import CONGESTION_USD, rate
from fraudlib.trips import SIMULATED_KEY

Columns = dict[str, NDArray[Any]]

SAMPLE_ROWS, SAMPLE_SEED = 48_000, 7  # of data/sample
_CODE: Final = np.array([1.0, 1.0, np.nan, 1.0, 5.0, 2.0, 3.0, 4.0])  # rate code by kind
_PEOPLE: Final = {  # share of passenger counts 1 to 6 and 0 by vendor; yellow's vendor 2 carries more
    1: np.array([0.815, 0.107, 0.023, 0.005, 0.001, 0.001, 0.048]),
    2: np.array([0.8545, 0.0806, 0.0132, 0.0047, 0.0296, 0.0167, 0.0003]),
    "yellow": np.array([0.683, 0.153, 0.047, 0.021, 0.059, 0.036, 0.001]),
}
_MONEY: Final = (
    "fare_amount",
    "extra",
    "mta_tax",
    "tip_amount",
    "tolls_amount",
    "improvement_surcharge",
    "congestion_surcharge",
    "total_amount",
)


def _own_tip(trips: Journeys, due: Floats) -> Floats:
    """A tip that the passenger typed: a round share, a round total, half dollars, a few cents, or anything."""
    guess = np.maximum(due, 6.0) * 0.12 * np.exp(0.55 * trips.normal())
    share = np.round(due * trips.pick(np.array([0.10, 0.15, 0.18]), np.array([0.3, 0.5, 0.2])), 2)
    total, halves = np.ceil(due * 1.12) - due, np.maximum(np.round(guess * 2.0) / 2.0, 0.5)
    cents = 0.01 + np.floor(9.0 * trips.u()) / 100.0
    way = trips.u()
    ways = [way < 0.40, way < 0.58, way < 0.70, way < 0.82]
    return np.asarray(np.maximum(np.round(np.select(ways, [share, total, halves, cents], guess), 2), 0.01))


def _terminal_tip(trips: Journeys, due: Floats) -> Floats:
    """A card tip: 20, 25 or 30 % by button (vendor 1 rounds down to 5 cents), whole dollars, or one's own."""
    first = trips.vendor == 1
    step, bias = np.where(first, 0.05, 0.01), np.where(first, 1e-6, 0.5)
    way = trips.u() + np.where(first, 0.03, 0.0)
    percent = np.select([way < 0.525, way < 0.643], [0.20, 0.25], 0.30)
    pressed = np.floor(due * percent / step + bias) * step
    modest, lavish = np.maximum(due, 6.0) * 0.12 * np.exp(0.45 * trips.normal()), 4.0 * np.exp(0.9 * trips.normal())
    whole = np.maximum(np.round(np.where(trips.chance(0.06), lavish, modest)), 1.0)
    tip = np.select([way < 0.70, way < 0.89], [pressed, whole], _own_tip(trips, due))
    tip = np.where(trips.chance(0.004), np.round(due * (0.3 + 0.3 * trips.u())), tip)
    tip = np.where(trips.is_kind(ABORTED) & trips.chance(0.15), np.round(2.0 + lavish), tip)
    tip = np.where(trips.chance(0.0012), np.round(8.0 + 60.0 * trips.u() ** 3), tip)
    none = trips.habits.tipless * np.interp(due, [5, 8, 10, 15, 30, 60], [1.9, 1.7, 1.3, 1.0, 0.8, 1.0])
    kinds = [trips.is_kind(LIVERY), trips.is_kind(AGREED), trips.is_kind(ABORTED)]
    shares = [np.full(trips.n, 0.988), np.where(trips.instant, 0.47, 0.31), np.full(trips.n, 0.16)]
    none = np.select(kinds, shares, none + np.where(first, 0.025, 0.0))
    return np.where((trips.payment == 1) & ~trips.chance(none), np.round(tip, 2), 0.0)


def _app_tip(trips: Journeys, due: Floats) -> Floats:
    percent = np.array([20, 15, 2, 10, 25, 18, 5, 8, 12, 30]) / 100
    share = trips.pick(percent, np.array([0.46, 0.12, 0.10, 0.10, 0.04, 0.03, 0.03, 0.03, 0.04, 0.05]))
    whole = np.maximum(np.round(due * 0.1), 1.0)
    tip = np.where(trips.chance(0.12), whole, np.round(due * share, 2))
    return np.where(trips.chance(0.855), tip, 0.0)


def _charges(trips: Journeys, dispatched: Bools) -> Columns:
    """Money columns: the total is what was due; what the columns repeat of it depends on the provider."""
    app, livery, first = trips.is_kind(APP), trips.is_kind(LIVERY), trips.vendor == 1
    bare = (livery & trips.chance(0.108)) | (first & dispatched)
    odd = first & trips.is_kind(METERED) & trips.chance(0.006)
    fee = np.where(trips.old_fee, 0.3, rate("improvement", trips.tariff))
    fee = np.where(bare | odd, 0.0, fee)
    outside = trips.is_kind(AGREED) & (first | trips.chance(0.87))
    outside |= trips.is_kind(NEWARK) | (trips.is_kind(SUBURB) & trips.chance(0.11))
    untaxed = outside | dispatched | bare | (app & ~first)
    mta = np.where(untaxed, 0.0, rate("mta_tax", trips.tariff))
    congestion = np.where(trips.congestion, CONGESTION_USD[trips.service], 0.0)
    due = trips.fare + trips.extra + mta + trips.tolls + fee + congestion
    tip = np.where(app, _app_tip(trips, due), _terminal_tip(trips, due))
    # Vendor 1 repeats the congestion surcharge in extra, and green's improvement surcharge in the tax since 2022-12-19.
    repeats = first & ~app
    folds = repeats & trips.new_rules & (trips.service == "green")
    return {
        "fare_amount": trips.fare,
        "extra": trips.extra + np.where(repeats, congestion, 0.0),
        "mta_tax": mta + np.where(folds, fee, 0.0),
        "tip_amount": tip,
        "tolls_amount": trips.tolls,
        "improvement_surcharge": fee,
        "congestion_surcharge": np.where(app, np.nan, congestion),
        "total_amount": due + tip,
    }


def _clock(trips: Journeys) -> tuple[NDArray[np.datetime64], NDArray[np.datetime64]]:
    """Pickup and drop-off as stamped: whole minutes from the app path, drop-offs a day late from vendor 2."""
    app, second = trips.is_kind(APP), trips.vendor == 2
    pickup, length = trips.pickup, np.round(trips.minutes * 60.0).astype("timedelta64[s]")
    minute = np.timedelta64(60, "s")
    pickup = np.where(app & second, pickup.astype("datetime64[m]").astype("datetime64[us]"), pickup)
    length = np.where(app & second, np.round(trips.minutes).astype(np.int64) * minute, length)
    early = 1.0 + np.minimum(np.round(trips.rng.exponential(2700.0, trips.n)), 13000.0)
    late = second & ~app & trips.chance(0.003)
    length = np.where(late, np.timedelta64(86400, "s") - early.astype("timedelta64[s]"), length)
    return pickup, pickup + length


def _people(trips: Journeys) -> Ints:
    count = np.array([1, 2, 3, 4, 5, 6, 0])
    second = _PEOPLE["yellow"] if trips.service == "yellow" else _PEOPLE[2]
    people = np.where(trips.vendor == 1, trips.pick(count, _PEOPLE[1]), trips.pick(count, second))
    return np.where(trips.is_kind(LIVERY) & trips.chance(0.98), 1, people)


def _with_nulls(values: NDArray[np.str_], null: Bools) -> NDArray[np.object_]:
    texts = values.astype(np.object_)
    texts[null] = None
    return texts


def _records(trips: Journeys) -> Columns:
    """Record columns, NaN where null."""
    app, first, agreed = trips.is_kind(APP), trips.vendor == 1, trips.is_kind(AGREED)
    dispatched = agreed & trips.chance(np.where(first, 0.78, 0.91))
    money, nothing = _charges(trips, dispatched), trips.chance(0.001) & ~app
    unknown = first & trips.is_kind(METERED) & trips.chance(0.0007)
    pickup, dropoff = _clock(trips)
    return {
        "VendorID": trips.vendor,
        "pickup_datetime": pickup,
        "dropoff_datetime": dropoff,
        "store_and_fwd_flag": _with_nulls(np.where(first & trips.chance(0.027), "Y", "N"), app),
        "RatecodeID": np.where(unknown, 99.0, _CODE[trips.kind]),
        "PULocationID": trips.start,
        "DOLocationID": trips.end,
        "passenger_count": np.where(app, np.nan, _people(trips)),
        "trip_distance": trips.shown_miles,
        "ehail_fee": np.full(trips.n, np.nan),
        "payment_type": np.where(app, np.nan, trips.payment),
        "trip_type": np.where(app | unknown, np.nan, np.where(dispatched, 2.0, 1.0)),
        **{name: np.round(np.where(nothing, 0.0, values), 2) for name, values in money.items()},
    }


def _with_voids(trips: Journeys, records: Columns, count: int) -> Columns:
    """Append `count` voids: negative twins of vendor 2's trips, most of them aborted, a few without their positive."""
    kinds = [trips.is_kind(ABORTED), trips.is_kind(AGREED) & trips.instant, trips.is_kind(METERED)]
    weight = np.select(kinds, [1.0, 0.06, 0.0004], 0.0) * (trips.vendor == 2) * np.where(trips.payment == 1, 0.1, 1.0)
    voided = np.argsort(np.log(1.0 - trips.u()) / np.maximum(weight, 1e-12), kind="stable")[::-1][:count]
    records["payment_type"][voided] = trips.pick(np.array([3.0, 4.0, 2.0]), np.array([0.745, 0.235, 0.02]))[voided]
    twins = {name: values[voided] for name, values in records.items()}
    for name in _MONEY:
        twins[name] = 0.0 - twins[name]
    alone = trips.chance(0.012)[voided]
    for name in ("pickup_datetime", "dropoff_datetime"):
        twins[name] = twins[name] + alone * np.timedelta64(3600, "s")
    return {name: np.concatenate([values, twins[name]]) for name, values in records.items()}


def _reset_clocks(records: Columns, rng: np.random.Generator) -> None:
    """Put one trip in 30,000 on 2009-01-01, where a meter's clock starts again."""
    n = len(records["pickup_datetime"])
    rows = rng.choice(n, max(1, round(n / 30_000)), replace=False)
    shift = records["pickup_datetime"][rows].astype("datetime64[D]") - np.datetime64("2009-01-01", "D")
    for name in ("pickup_datetime", "dropoff_datetime"):
        records[name][rows] -= shift.astype("timedelta64[us]")


def _schema(service: str) -> pa.Schema:
    green, prefix = service == "green", "lpep" if service == "green" else "tpep"
    time, whole, small, real = pa.timestamp("us"), pa.int64(), pa.int32(), pa.float64()
    fields = [
        ("VendorID", small),
        (f"{prefix}_pickup_datetime", time),
        (f"{prefix}_dropoff_datetime", time),
        ("store_and_fwd_flag", pa.large_string()),
        ("RatecodeID", whole),
        ("PULocationID", small),
        ("DOLocationID", small),
        ("passenger_count", whole),
        ("trip_distance", real),
        *((name, real) for name in ("fare_amount", "extra", "mta_tax", "tip_amount", "tolls_amount")),
        *([("ehail_fee", real)] if green else []),
        ("improvement_surcharge", real),
        ("total_amount", real),
        ("payment_type", whole),
        *([("trip_type", whole)] if green else []),
        ("congestion_surcharge", real),
    ]
    return pa.schema(fields, metadata={SIMULATED_KEY: b"true"})


def simulate_month(month: str, service: str, rows: int, seed: int) -> pa.Table:
    """A month of simulated honest trips under the TLC's column names and types, by pickup time.

    Parameters
    ----------
    month : "YYYY-MM" from 2013-01 on; decides tariff, holidays and habits.
    service : "green" or "yellow".
    rows : number of records, voids among them; at least 1000.
    seed : the same seed gives the same table.

    Returns
    -------
    Table whose metadata says `fraudlib.simulated`: `true`.

    Raises
    ------
    ParameterError : one of the arguments is out of range.
    """
    try:
        start = pd.Timestamp(f"{month}-01")
    except ValueError as error:
        raise ParameterError(f"Expected a month like 2023-05, found {month!r}; correct it.") from error
    if service not in SERVICES or rows < 1000 or start < pd.Timestamp("2013-01-01") or len(month) != 7:
        raise ParameterError(
            f"Expected green or yellow, 1000 rows or more and a month like 2023-05 from 2013-01 on, found {service!r}, "
            f"{rows} and {month!r}; correct them."
        )
    rng = np.random.default_rng([seed, start.year, start.month, SERVICES.index(service)])
    voids = round(0.0027 * rows)
    trips = Journeys(month, service, rows - voids, rng)
    records = _with_voids(trips, _records(trips), voids)
    _reset_clocks(records, rng)
    order = np.argsort(records["pickup_datetime"], kind="stable")
    schema = _schema(service)
    names = [field.name.removeprefix("lpep_").removeprefix("tpep_") for field in schema]
    arrays = [pa.array(records[name][order], from_pandas=True) for name in names]
    return pa.table([array.cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema=schema)


def write(table: pa.Table, path: str | Path) -> None:
    """Write a table as small as parquet allows; the same table gives the same bytes under one version of pyarrow."""
    pq.write_table(table, path, compression="zstd", compression_level=19, row_group_size=1 << 20)


@click.command()
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--month", default="2023-05", show_default=True)
@click.option("--service", type=click.Choice(SERVICES), default="green", show_default=True)
@click.option("--rows", type=int, default=SAMPLE_ROWS, show_default=True)
@click.option("--seed", type=int, default=SAMPLE_SEED, show_default=True)
def main(out: Path, month: str, service: str, rows: int, seed: int) -> None:
    """Write a simulated month of trips to OUT (parquet)."""
    try:
        write(simulate_month(month, service, rows, seed), out)
    except FraudError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
