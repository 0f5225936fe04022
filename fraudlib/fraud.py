"""Planted fraud: documented taxi frauds written into honest trips, and generic corruption to teach with.

A planted fraud keeps the identities of the record (whole cents, the vendor's own sum, fares that the meter can show)
unless the fraud itself breaks them; otherwise a detector finds the planting instead of the fraud. Cases, sizes and
sources are those of the table in docs/fraud-kinds.md; ranges that no source gives are marked there as proposals.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fraudlib import tariff
from fraudlib.errors import DataError
from fraudlib.features import AMOUNT_FIELDS, take
from fraudlib.statistics import duration_minutes

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Columns = Mapping[str, NDArray[np.generic]]
Rows = dict[str, NDArray[np.generic]]
Rng = np.random.Generator

_ADDED: Final = (
    "fare_amount",
    "extra",
    "mta_tax",
    "tip_amount",
    "tolls_amount",
    "improvement_surcharge",
    "congestion_surcharge",
)


@dataclass(frozen=True)
class Kind:
    """A kind of fraud.

    Attributes
    ----------
    family : what is left out together when families are held out of the teaching.
    easy : breaks an identity of the record; a hard one keeps every identity.
    source : the documented case.
    eligible : rows on which it can be committed, shape (n,).
    apply : writes it into a copy of such rows.
    listed : taught; the others are only ever used to test on.
    """

    name: str
    family: str
    easy: bool
    source: str
    eligible: Callable[[Columns], Bools]
    apply: Callable[[Rows, Rng], None]
    listed: bool = True


@dataclass(frozen=True)
class Planted:
    """Trips with fraud in them.

    Attributes
    ----------
    columns : the trips, shape (n,) each, in the original order.
    label : True where a fraud was planted, shape (n,).
    kind : name of the kind, "" where honest, shape (n,), str.
    changed : field -> True where the planting changed it, (n,) each; a total that follows its parts does not.
    """

    columns: Rows
    label: Bools
    kind: NDArray[np.str_]
    changed: dict[str, Bools]


def _number(rows: Columns, name: str) -> Array:
    values = rows.get(name)
    n = len(next(iter(rows.values())))
    return np.full(n, np.nan) if values is None else values.astype(np.float64, copy=False)


def _cents(x: Array) -> Array:
    return np.round(x, 2)


def _loguniform(rng: Rng, low: float, high: float, n: int) -> Array:
    return np.exp(rng.uniform(np.log(low), np.log(high), n))


def _size(rows: Columns) -> int:
    return len(next(iter(rows.values())))


def _add(rows: Rows, name: str, amount: Array) -> None:
    """Add to a part and to the total alike; a part that is blank stays blank."""
    rows[name] = _cents(_number(rows, name) + amount)
    rows["total_amount"] = _cents(_number(rows, "total_amount") + np.nan_to_num(amount))


def _set(rows: Rows, name: str, value: Array) -> None:
    _add(rows, name, value - _number(rows, name))


def _rates(rows: Columns) -> tuple[Array, Array, Array]:
    index = tariff.tariff_index(rows["pickup_datetime"].astype("datetime64[us]"))
    return tariff.rate("base", index), tariff.rate("per_mile", index), tariff.rate("per_minute", index)


def snap(rows: Columns, fare: Array) -> Array:
    """Nearest fare that the meter can show: the base and whole units."""
    base, per_mile, _ = _rates(rows)
    unit = per_mile / 5
    return _cents(base + np.maximum(np.round((fare - base) / unit), 0) * unit)


def _metered(rows: Rows, miles: Array, minutes: Array) -> None:
    """New distance and duration with the fare that the same meter would show, as far inside the envelope as before."""
    base, per_mile, per_minute = _rates(rows)
    old_minutes = np.clip(duration_minutes(rows, _size(rows)), 1.0, 600.0)
    fare = _number(rows, "fare_amount")
    position = np.clip(
        (fare - base - per_mile * _number(rows, "trip_distance")) / (per_minute * old_minutes), 0.02, 0.95
    )
    new_fare = snap(rows, base + per_mile * miles + position * per_minute * np.clip(minutes, 0.5, 600.0))
    rows["trip_distance"] = _cents(miles)
    _set_minutes(rows, minutes)
    _set(rows, "fare_amount", np.maximum(new_fare, fare))


def _set_minutes(rows: Rows, minutes: Array) -> None:
    if "pickup_datetime" in rows and "dropoff_datetime" in rows:
        gap = np.round(np.nan_to_num(minutes) * 60).astype("timedelta64[s]")
        rows["dropoff_datetime"] = np.where(
            np.isnan(minutes), rows["dropoff_datetime"], rows["pickup_datetime"] + gap
        ).astype("datetime64[us]")
    if "duration_minutes" in rows:
        rows["duration_minutes"] = minutes


def _tip_follows(rows: Rows, rng: Rng, total_before: Array) -> None:
    """On half of the card trips the tip is a share of the sum, so it grows with it."""
    tip, total = _number(rows, "tip_amount"), _number(rows, "total_amount")
    before = np.maximum(total_before - tip, 1.0)
    grown = _cents(tip * (total - tip) / before)
    follows = (tip > 0) & (rng.random(len(tip)) < 0.5)
    _set(rows, "tip_amount", np.where(follows, grown, tip))


def _ordinary(c: Columns) -> Bools:
    return np.asarray((_number(c, "fare_amount") > 2.4) & (_number(c, "total_amount") > 2.4))


def _moving(c: Columns) -> Bools:
    minutes = duration_minutes(c, _size(c))
    return np.asarray(_ordinary(c) & (_number(c, "trip_distance") > 0.5) & (minutes > 2) & (minutes < 180))


def _city(c: Columns) -> Bools:
    pickup, dropoff = _number(c, "pickup_location_id"), _number(c, "dropoff_location_id")
    return np.asarray(_moving(c) & (pickup <= 263) & (dropoff <= 263) & (_number(c, "rate_code_id") == 1))


def _metered_trip(c: Columns) -> Bools:
    code = _number(c, "rate_code_id")
    return np.asarray(_moving(c) & ((code == 1) | np.isnan(code)))


def _card(c: Columns) -> Bools:
    payment = _number(c, "payment_type")
    return np.asarray(_moving(c) & ((payment == 1) | np.isnan(payment)))


def _with_toll(c: Columns) -> Bools:
    return np.asarray(_moving(c) & (_number(c, "tolls_amount") > 1))


def _without_toll(c: Columns) -> Bools:
    return np.asarray(_moving(c) & (_number(c, "tolls_amount") == 0))


def _factor_on_fare(rows: Rows, rng: Rng, factor: Array) -> None:
    base, _, _ = _rates(rows)
    before = _number(rows, "total_amount").copy()
    fare = _number(rows, "fare_amount")
    _set(rows, "fare_amount", np.maximum(snap(rows, base + (fare - base) * factor), fare))
    _tip_follows(rows, rng, before)


def _rate_code_open(rows: Rows, rng: Rng) -> None:
    n = _size(rows)
    _factor_on_fare(rows, rng, np.where(rng.random(n) < 0.65, 2.0, rng.uniform(1.2, 2.0, n)))
    rows["rate_code_id"] = np.full(n, 4.0)


def _rate_code_hidden(rows: Rows, rng: Rng) -> None:
    n = _size(rows)
    _factor_on_fare(rows, rng, np.where(rng.random(n) < 0.6, 2.0, rng.uniform(1.4, 2.5, n)))


def _ghost(rows: Rows, rng: Rng) -> None:
    n = _size(rows)
    rows["rate_code_id"] = np.full(n, 5.0)
    rows["payment_type"] = np.full(n, 1.0)
    rows["trip_distance"] = np.where(rng.random(n) < 0.6, 0.0, _cents(rng.uniform(0.01, 0.1, n)))
    rows["dropoff_location_id"] = rows["pickup_location_id"].copy()
    _set_minutes(rows, np.round(rng.uniform(3, 59, n)) / 60)
    for part in ("extra", "tolls_amount", "tip_amount", "congestion_surcharge"):
        _set(rows, part, np.where(np.isnan(_number(rows, part)), np.nan, 0.0))
    fare = rng.uniform(100, 499, n)
    _set(rows, "fare_amount", np.where(rng.random(n) < 0.6, np.round(fare), _cents(fare)))


_TOLLS: Final = {
    True: np.array([6.55, 6.94, 13.10, 13.88, 2.45, 12.75]),
    False: np.array([6.12, 6.55, 5.76, 12.24, 13.10]),
}


def _usual_tolls(rows: Columns, rng: Rng) -> Array:
    n = _size(rows)
    recent = rows["pickup_datetime"].astype("datetime64[us]") >= np.datetime64("2022-12-19", "us")
    weights = np.array([0.45, 0.25, 0.1, 0.1, 0.05, 0.05])
    return np.where(recent, rng.choice(_TOLLS[True], n, p=weights), rng.choice(_TOLLS[False], n))


def _toll_phantom(rows: Rows, rng: Rng) -> None:
    before = _number(rows, "total_amount").copy()
    _set(rows, "tolls_amount", _usual_tolls(rows, rng))
    _tip_follows(rows, rng, before)


def _toll_inflated(rows: Rows, rng: Rng) -> None:
    n = _size(rows)
    toll = _number(rows, "tolls_amount")
    cash_rate = toll * rng.uniform(1.4, 1.9, n)
    _set(rows, "tolls_amount", _cents(np.where(rng.random(n) < 0.5, toll * rng.choice([2.0, 3.0], n), cash_rate)))


def _meter_zapper(rows: Rows, rng: Rng) -> None:
    n = _size(rows)
    before = _number(rows, "total_amount").copy()
    factor = np.where(rng.random(n) < 0.08, _loguniform(rng, 3, 8, n), _loguniform(rng, 1.25, 2.6, n))
    _metered(rows, _number(rows, "trip_distance") * factor, duration_minutes(rows, n))
    _tip_follows(rows, rng, before)


def _long_haul(rows: Rows, rng: Rng) -> None:
    n = _size(rows)
    before = _number(rows, "total_amount").copy()
    factor = rng.uniform(1.3, 2.2, n)
    minutes = duration_minutes(rows, n) * (1 + (factor - 1) * rng.uniform(0.2, 0.9, n))
    _metered(rows, _number(rows, "trip_distance") * factor, minutes)
    _tip_follows(rows, rng, before)


def _gps_spoof(rows: Rows, rng: Rng) -> None:
    n = _size(rows)
    factor = np.where(rng.random(n) < 0.1, rng.uniform(2.2, 5, n), rng.uniform(1.3, 2.2, n))
    minutes = duration_minutes(rows, n) * factor * rng.uniform(0.85, 1.15, n)
    _metered(rows, _number(rows, "trip_distance") * factor, minutes)


def _flat_fare(rows: Rows, rng: Rng) -> None:
    """Either the flat fare of JFK on a trip that never saw it, or a trip to or from JFK above the flat fare."""
    n = _size(rows)
    index = tariff.tariff_index(rows["pickup_datetime"].astype("datetime64[us]"))
    flat = tariff.rate("jfk_flat", index)
    at_jfk = (_number(rows, "pickup_location_id") == tariff.JFK) | (_number(rows, "dropoff_location_id") == tariff.JFK)
    above = _cents(flat + np.round(rng.uniform(10, 60, n)))
    fare = _number(rows, "fare_amount")
    _set(rows, "fare_amount", np.where(at_jfk, np.maximum(above, fare + 10), np.maximum(flat, fare)))
    code = np.where(at_jfk, np.where(rng.random(n) < 0.5, 5.0, 1.0), 2.0)
    rows["rate_code_id"] = code


def _flat_eligible(c: Columns) -> Bools:
    return np.asarray(_city(c) & (_number(c, "fare_amount") < 45))


def _tip_quiet(rows: Rows, rng: Rng) -> None:
    n = _size(rows)
    amount = rng.uniform(5, 20, n)
    _add(rows, "tip_amount", np.where(rng.random(n) < 0.5, np.round(amount), _cents(amount)))


def _tip_crude(rows: Rows, rng: Rng) -> None:
    n = _size(rows)
    tip, fare = _number(rows, "tip_amount"), _number(rows, "fare_amount")
    slip = np.where(tip > 0.5, tip, np.maximum(fare * 0.2, 1.0)) * rng.choice([10.0, 10.0, 100.0], n)
    padded = np.round(fare * rng.uniform(1.5, 10, n))
    _set(rows, "tip_amount", np.where(rng.random(n) < 0.6, slip, padded))


def _surcharge(rows: Rows, rng: Rng) -> None:
    """A surcharge that is not due at this hour or place, or one that is charged twice."""
    n = _size(rows)
    which = rng.integers(0, 4, n)
    peak_or_night = rng.choice([1.0, 2.5, 5.0, 7.5], n)
    _add(rows, "extra", np.where(which <= 1, peak_or_night, 0.0))
    _add(rows, "improvement_surcharge", np.where(which == 2, rng.choice([1.0, 0.3, 2.0], n), 0.0))
    congestion = _number(rows, "congestion_surcharge")
    _add(rows, "congestion_surcharge", np.where((which == 3) & ~np.isnan(congestion), 2.75, 0.0))
    _add(rows, "extra", np.where((which == 3) & np.isnan(congestion), 2.5, 0.0))


def _padded_total(rows: Rows, rng: Rng) -> None:
    n = _size(rows)
    amount = np.where(rng.random(n) < 0.5, np.round(rng.uniform(1, 15, n)), _cents(rng.uniform(1, 15, n)))
    rows["total_amount"] = _cents(_number(rows, "total_amount") + amount)


def _no_show(rows: Rows, rng: Rng) -> None:
    n = _size(rows)
    base, _, _ = _rates(rows)
    rows["rate_code_id"] = np.full(n, 1.0)
    rows["payment_type"] = np.full(n, 1.0)
    rows["trip_distance"] = np.where(rng.random(n) < 0.4, 0.0, _cents(rng.uniform(0.01, 0.2, n)))
    rows["dropoff_location_id"] = rows["pickup_location_id"].copy()
    _set_minutes(rows, np.round(rng.uniform(5, 115, n)) / 60)
    for part in ("tolls_amount", "tip_amount"):
        _set(rows, part, np.zeros(n))
    _set(rows, "fare_amount", base)


def _resubmit(rows: Rows, rng: Rng) -> None:
    """The trip once more, seconds later and up to 5 % dearer; one record alone shows next to nothing of it."""
    n = _size(rows)
    shift = rng.integers(20, 400, n).astype("timedelta64[s]")
    for name in ("pickup_datetime", "dropoff_datetime"):
        rows[name] = (rows[name] + shift).astype("datetime64[us]")
    fare = _number(rows, "fare_amount")
    _set(rows, "fare_amount", np.maximum(snap(rows, fare * rng.uniform(1.0, 1.05, n)), fare))


def _waiting_meter(rows: Rows, rng: Rng) -> None:
    _, _, per_minute = _rates(rows)
    minutes = duration_minutes(rows, _size(rows))
    waiting = minutes + rng.uniform(8, 40, _size(rows))
    _set(rows, "fare_amount", snap(rows, _number(rows, "fare_amount") + per_minute * waiting))


def _double_charge(rows: Rows, rng: Rng) -> None:
    rows["total_amount"] = _cents(_number(rows, "total_amount") * 2)


def _newark(rows: Rows, rng: Rng) -> None:
    index = tariff.tariff_index(rows["pickup_datetime"].astype("datetime64[us]"))
    rows["rate_code_id"] = np.full(_size(rows), 3.0)
    _add(rows, "fare_amount", tariff.rate("newark", index))


def _false_destination(rows: Rows, rng: Rng) -> None:
    other = rng.permutation(_size(rows))
    for name in ("trip_distance", "fare_amount"):
        if name == "fare_amount":
            _set(rows, name, np.maximum(_number(rows, name)[other], _number(rows, name) * 1.5))
        else:
            rows[name] = np.maximum(_number(rows, name)[other], _number(rows, name) * 1.5)


def _idle_minutes(rows: Rows, rng: Rng) -> None:
    n = _size(rows)
    _metered(rows, _number(rows, "trip_distance"), duration_minutes(rows, n) * rng.uniform(2.5, 5, n))
    _, _, per_minute = _rates(rows)
    _set(rows, "fare_amount", snap(rows, _number(rows, "fare_amount") + 0.5 * per_minute * duration_minutes(rows, n)))


def _tax_stacked(rows: Rows, rng: Rng) -> None:
    _add(rows, "mta_tax", rng.choice([0.5, 1.0, 2.0, 5.0], _size(rows)))


def _cash_tip(rows: Rows, rng: Rng) -> None:
    n = _size(rows)
    _set(rows, "tip_amount", _cents(_number(rows, "fare_amount") * rng.uniform(0.3, 1.0, n)))


def _digit_slip(rows: Rows, rng: Rng) -> None:
    _set(rows, "fare_amount", _number(rows, "fare_amount") * 10)


_KINDS: Final = (
    Kind("rate_code_open", "rate", True, "NYC TLC 2010: 286,000 trips on code 4 in the city", _city, _rate_code_open),
    Kind(
        "rate_code_hidden", "rate", True, "the 2010 case with a code that reads 1 (proposal)", _city, _rate_code_hidden
    ),
    Kind(
        "flat_fare",
        "rate",
        True,
        "press reports of other fares where the JFK flat fare is due",
        _flat_eligible,
        _flat_fare,
    ),
    Kind("ghost_card", "ghost", True, "NYC DOI 2016: fictitious rides on stolen cards, 100-499 USD", _ordinary, _ghost),
    Kind(
        "no_show_fee", "ghost", False, "Uber China 2016: ghost drivers ending trips before pickup", _ordinary, _no_show
    ),
    Kind(
        "toll_phantom",
        "charges",
        True,
        "NYC DOI 2021: tolls charged where there was none",
        _without_toll,
        _toll_phantom,
    ),
    Kind(
        "toll_inflated",
        "charges",
        True,
        "NYC DOI 2021: cash rate charged for E-ZPass tolls",
        _with_toll,
        _toll_inflated,
    ),
    Kind(
        "surcharge_stacking",
        "charges",
        True,
        "no public case found; not due, or charged twice (proposal)",
        _moving,
        _surcharge,
    ),
    Kind("padded_total", "charges", True, "no public case found; +1-15 USD (proposal)", _moving, _padded_total),
    Kind(
        "meter_zapper",
        "travel",
        False,
        "New York 1990s and Fuzhou: pulses added to the meter",
        _metered_trip,
        _meter_zapper,
    ),
    Kind("long_haul", "travel", False, "Las Vegas audit 2012: 22.5 % of airport trips", _metered_trip, _long_haul),
    Kind("gps_spoof", "travel", False, "Uber Lagos 2017: two trips' miles added", _metered_trip, _gps_spoof),
    Kind("tip_quiet", "tips", False, "card terminal entry, +5-20 USD (proposal)", _card, _tip_quiet),
    Kind(
        "tip_crude",
        "tips",
        True,
        "San Francisco 2021: amounts far above the fare entered on the terminal",
        _card,
        _tip_crude,
    ),
    Kind("resubmitted", "repeat", False, "no public case found; 1.00-1.05 of the original", _metered_trip, _resubmit),
    Kind("waiting_meter", "unlisted", True, "test only", _metered_trip, _waiting_meter, listed=False),
    Kind("double_charge", "unlisted", True, "test only", _moving, _double_charge, listed=False),
    Kind("newark_surcharge", "unlisted", True, "test only", _city, _newark, listed=False),
    Kind("false_destination", "unlisted", False, "test only", _metered_trip, _false_destination, listed=False),
    Kind("idle_minutes", "unlisted", False, "test only", _metered_trip, _idle_minutes, listed=False),
    Kind("tax_stacked", "unlisted", True, "test only", _moving, _tax_stacked, listed=False),
    Kind(
        "cash_tip",
        "unlisted",
        True,
        "test only",
        lambda c: _moving(c) & (_number(c, "payment_type") == 2),
        _cash_tip,
        listed=False,
    ),
    Kind("digit_slip", "unlisted", True, "test only", _moving, _digit_slip, listed=False),
)
KINDS: Final = {kind.name: kind for kind in _KINDS}
LISTED: Final = tuple(kind.name for kind in _KINDS if kind.listed)
UNLISTED: Final = tuple(kind.name for kind in _KINDS if not kind.listed)
FAMILIES: Final = tuple(dict.fromkeys(kind.family for kind in _KINDS if kind.listed))


# Rare circumstances (tolls, airports) keep most of their honest trips, or a head would learn to suspect them all.
MAX_SHARE_OF_ELIGIBLE: Final = 0.25


def plant(columns: Columns, share: float, seed: int, kinds: Sequence[str] = LISTED) -> Planted:
    """Honest trips with fraud planted into a share of them, each kind equally often as far as rows allow.

    Parameters
    ----------
    columns : trips, shape (n,) each; not changed.
    share : share of the rows to plant into, 0 < share < 1.
    seed : same columns, share, kinds and seed give the same planting.
    kinds : names from KINDS.

    Raises
    ------
    DataError
        If a kind is unknown or the share is not between 0 and 1.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown or not 0 < share < 1:
        raise DataError(
            f"plant: expected 0 < share < 1 and kinds of {', '.join(KINDS)}; found {share}, {sorted(unknown)}"
        )
    rng = np.random.default_rng(seed)
    n = _size(columns)
    kind = np.full(n, "", dtype="<U20")
    out = {name: values.copy() for name, values in columns.items()}
    quota = max(1, round(n * share / len(kinds)))
    free = np.ones(n, dtype=bool)
    for name in kinds:
        rows = np.flatnonzero(KINDS[name].eligible(columns) & free)
        chosen = np.sort(rng.choice(rows, min(quota, int(len(rows) * MAX_SHARE_OF_ELIGIBLE)), replace=False))
        free[chosen] = False
        kind[chosen] = name
        part = take(out, chosen)
        KINDS[name].apply(part, rng)
        for column, values in part.items():
            out[column][chosen] = values
    return Planted(out, kind != "", kind, changed_fields(columns, out))


# Corruption says nothing about how fraud is done. Its shapes are mixed so that no field, size or direction is left out:
# a few fields each on its own, several fields from one other trip, a code together with an amount.
_CORRUPTION_SHARES: Final = (0.45, 0.35, 0.2)
_RE_ADDED: Final = 0.7  # of corrupted trips have a total that follows its parts
_EXTREME: Final = (
    0.35  # of new amounts are far out: a head sees few of them among honest trips, and must not excuse them
)
_FROM_RARE: Final = (
    0.5  # of donors are trips out of the ordinary, or nearly all would bring the usual codes and no toll
)
# How often a field is corrupted, relative to the others: amounts that carry money most.
_CORRUPTED: Final = {
    "trip_distance": 1.5,
    "duration_minutes": 1.0,
    "fare_amount": 2.0,
    "extra": 1.0,
    "mta_tax": 0.6,
    "tip_amount": 2.0,
    "tolls_amount": 1.5,
    "improvement_surcharge": 0.7,
    "congestion_surcharge": 0.7,
    "rate_code_id": 0.5,
    "payment_type": 0.5,
    "dropoff_location_id": 1.0,
    "total_amount": 1.0,
}


def corrupt(columns: Columns, share: float, seed: int) -> Planted:
    """Generic corruption: random fields scaled, padded, emptied or swapped, alone or several from one other trip.

    What nobody listed looks a little like this, so a head that is taught with it keeps an eye open for the unknown.
    Arguments as for `plant`; every corrupted row has `kind` "corrupted".

    Source: Hendrycks, Mazeika and Dietterich, Deep Anomaly Detection with Outlier Exposure, ICLR 2019.
    """
    rng = np.random.default_rng(seed)
    n = _size(columns)
    chosen = np.sort(rng.choice(n, max(1, round(n * share)), replace=False))
    part = take(columns, chosen)
    m = len(chosen)
    mode = rng.choice(3, m, p=_CORRUPTION_SHARES)
    picks, donor = _picks(mode, rng), _donors(part, rng)
    re_added = rng.random(m) < _RE_ADDED
    before = {field: _field(part, field).copy() for field in _CORRUPTED}
    total = before["total_amount"].copy()
    for j, field in enumerate(_CORRUPTED):
        old = before[field]
        new = np.where(mode == 1, old[donor], _corrupt_value(field, old, rng))
        value = np.where(picks[:, j] & ~np.isnan(old) & ~np.isnan(new), new, old)
        if field == "total_amount":
            total = np.where(picks[:, j], value, total)
        elif field == "duration_minutes":
            _set_minutes(part, value)
        else:
            part[field] = value
        if field in _ADDED:
            total = np.where(re_added, total + np.nan_to_num(value - old), total)
    part["total_amount"] = _cents(total)
    out = {name: values.copy() for name, values in columns.items()}
    for column, values in part.items():
        out[column][chosen] = values
    changed_by = changed_fields(columns, out)
    label = np.any(list(changed_by.values()), axis=0)
    return Planted(out, label, np.where(label, "corrupted", ""), changed_by)


def _picks(mode: NDArray[np.int64], rng: Rng) -> Bools:
    """Which fields of which row are corrupted, (m, fields): one to three, two to six, or a code and perhaps others."""
    m, fields = len(mode), list(_CORRUPTED)
    few, many = rng.choice([1, 2, 3], m, p=[0.6, 0.3, 0.1]), rng.integers(2, 7, m)
    count = np.select([mode == 0, mode == 1], [few, many], rng.choice([0, 1], m))
    # The earliest of exponential arrivals are a draw by weight without replacement (Efraimidis and Spirakis, 2006).
    arrival = rng.exponential(size=(m, len(fields))) / np.array(list(_CORRUPTED.values()))
    picks = arrival.argsort(axis=1).argsort(axis=1) < count[:, None]
    code = np.where(rng.random(m) < 0.75, fields.index("rate_code_id"), fields.index("payment_type"))
    coded = np.flatnonzero(mode == 2)
    picks[coded, code[coded]] = True
    picks[coded, fields.index("fare_amount")] |= rng.random(len(coded)) < 0.6
    return np.asarray(picks)


def _donors(rows: Columns, rng: Rng) -> NDArray[np.intp]:
    """Another trip for each, (m,): half of them with an unusual rate code, a toll or no miles."""
    m = _size(rows)
    donor = rng.permutation(m)
    odd = _number(rows, "rate_code_id") > 1
    odd |= (_number(rows, "tolls_amount") > 0) | (_number(rows, "trip_distance") == 0)
    rare = np.flatnonzero(odd)
    return np.where(rng.random(m) < _FROM_RARE, rng.choice(rare, m), donor) if len(rare) else donor


def _field(rows: Columns, field: str) -> Array:
    return duration_minutes(rows, _size(rows)) if field == "duration_minutes" else _number(rows, field)


def _corrupt_value(field: str, value: Array, rng: Rng) -> Array:
    n = len(value)
    there = np.flatnonzero(value > 0)
    swapped = value[rng.permutation(n)]
    if len(there):
        swapped = np.where(rng.random(n) < _FROM_RARE, value[rng.choice(there, n)], swapped)
    if field in ("rate_code_id", "payment_type", "dropoff_location_id"):
        codes = {"rate_code_id": [1.0, 2, 3, 4, 5], "payment_type": [1.0, 2, 3, 4]}.get(field)
        return swapped if codes is None else np.where(rng.random(n) < 0.5, rng.choice(codes, n), swapped)
    factor, pad = _sizes(rng, n, (1.25, 5), (3, 100)), _added_usd(rng, n)
    scaled = np.where(rng.random(n) < 0.8, value * factor, value / factor)
    way = rng.choice(4, n, p=[0.35, 0.25, 0.35, 0.05])
    new = np.select(
        [(way == 0) & (np.abs(value) > 0.01), way == 1, way == 3], [scaled, swapped, 0 * value], value + pad
    )
    # Too small a change is no corruption that anybody could see.
    small = np.abs(new - value) < np.maximum(0.15 * np.abs(value), 0.25)
    return _cents(np.where(small, value * 1.5 + 2.0, new))


def _sizes(rng: Rng, n: int, usual: tuple[float, float], extreme: tuple[float, float]) -> Array:
    return np.where(rng.random(n) < _EXTREME, _loguniform(rng, *extreme, n), _loguniform(rng, *usual, n))


def _added_usd(rng: Rng, n: int) -> Array:
    """Amounts to add, (n,), USD: half of them whole dollars."""
    amount = _sizes(rng, n, (0.5, 30), (10, 500))
    return np.where(rng.random(n) < 0.5, np.ceil(amount), _cents(amount))


def worsen(columns: Columns, seed: int) -> Rows:
    """Every trip with one amount made worse for who pays: fare, tip, tolls, extra (the total follows) or total alone.

    Parameters
    ----------
    columns : trips, shape (n,) each; not changed.
    """
    rng = np.random.default_rng(seed)
    n = _size(columns)
    out = {name: values.copy() for name, values in columns.items()}
    amount, which = np.maximum(_added_usd(rng, n), 1.0), rng.integers(0, 5, n)
    for i, name in enumerate(("fare_amount", "tip_amount", "tolls_amount", "extra")):
        _add(out, name, np.where(which == i, amount, 0.0))
    out["total_amount"] = _cents(_number(out, "total_amount") + np.where(which == 4, amount, 0.0))
    return out


def changed_fields(before: Columns, after: Columns) -> dict[str, Bools]:
    """Which rows differ in which field, shape (n,) each."""
    n = _size(before)
    fields: dict[str, tuple[str, ...]] = {f: (f,) for f in (*AMOUNT_FIELDS, "rate_code_id", "payment_type")}
    fields["duration_minutes"] = ()
    fields["zones"] = ("pickup_location_id", "dropoff_location_id")
    out: dict[str, Bools] = {}
    for field, names in fields.items():
        different = np.zeros(n, dtype=bool)
        for name in names:
            if name in before:
                a, b = _number(before, name), _number(after, name)
                different |= ~((a == b) | (np.isnan(a) & np.isnan(b)))
        out[field] = different
    # A total that only follows its parts was not what the fraud changed.
    total = _number(after, "total_amount") - _number(before, "total_amount")
    parts = np.sum([np.nan_to_num(_number(after, p) - _number(before, p)) for p in _ADDED], axis=0)
    out["total_amount"] &= ~(np.abs(total - parts) < 0.02)
    a, b = duration_minutes(before, n), duration_minutes(after, n)
    out["duration_minutes"] = ~((np.abs(a - b) < 0.02) | (np.isnan(a) & np.isnan(b)))
    return out
