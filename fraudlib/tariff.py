"""New York's taxi tariffs by date: what a meter may charge.

Sources: TLC rules of 2012-09-04 and 2022-12-19 (rules.cityofnewyork.us, "Taximeter Rate of Fare and Various
Surcharges"; NYC Rules 58-26 and 82-26 at codelibrary.amlegal.com), New York State congestion surcharge of 2019-02-02
(nyc.gov/site/tlc/about/congestion-surcharge.page), MTA congestion relief zone fee of 2025-01-05,
airport access fee (nyc.gov/site/tlc/passengers/taxi-fare.page).
"""

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Times = NDArray[np.datetime64]


@dataclass(frozen=True)
class Tariff:
    """One rate of fare.

    Attributes
    ----------
    start : first day in force (ISO date).
    base, per_mile, per_minute : USD; a unit of 1/5 mile or 60 s below 12 mph is charged in advance.
    peak, night : USD, weekdays 16-20 h and every day 20-6 h, by the start of the trip.
    improvement, mta_tax : USD on each trip in the city.
    jfk_flat, jfk_peak : USD between JFK and Manhattan (rate code 2).
    newark : USD on top of the meter (rate code 3).
    """

    start: str
    base: float
    per_mile: float
    per_minute: float
    peak: float
    night: float
    improvement: float
    mta_tax: float
    jfk_flat: float
    jfk_peak: float
    newark: float


TARIFFS: Final[tuple[Tariff, ...]] = (
    Tariff("2004-05-03", 2.50, 2.00, 0.40, 1.00, 0.50, 0.00, 0.50, 45.0, 0.0, 15.0),
    Tariff("2012-09-04", 2.50, 2.50, 0.50, 1.00, 0.50, 0.00, 0.50, 52.0, 0.0, 17.5),
    Tariff("2015-01-01", 2.50, 2.50, 0.50, 1.00, 0.50, 0.30, 0.50, 52.0, 4.5, 17.5),
    Tariff("2022-12-19", 3.00, 3.50, 0.70, 2.50, 1.00, 1.00, 0.50, 70.0, 5.0, 20.0),
)
_STARTS: Final = np.array([t.start for t in TARIFFS], dtype="datetime64[us]")
CONGESTION_START: Final = np.datetime64("2019-02-02", "us")  # 2.50 yellow, 2.75 green
CBD_START: Final = np.datetime64("2025-01-05", "us")  # 0.75 south of 60th Street
CBD_FEE_USD: Final = 0.75
AIRPORT_FEE_USD: Final = 1.75  # yellow pickups at JFK and LaGuardia; 1.25 before 2022-12-19
CONGESTION_USD: Final = {"yellow": 2.50, "green": 2.75}

EWR, JFK, LGA = 1, 132, 138  # taxi zones of the airports


def tariff_index(pickup: Times, default: int = len(TARIFFS) - 1) -> NDArray[np.int64]:
    """Index into TARIFFS of the rate in force at each pickup; `default` where the time is missing (NaT).

    Parameters
    ----------
    pickup : array of shape (n,), datetime64[us], naive local time.
    """
    index = np.maximum(_STARTS.searchsorted(pickup, side="right") - 1, 0)
    return np.where(np.isnat(pickup), default, index)


_FIELDS: Final = tuple(f.name for f in fields(Tariff) if f.name != "start")
_RATES: Final = np.array([[getattr(t, field) for t in TARIFFS] for field in _FIELDS], dtype=np.float64)


def rate(field: str, index: NDArray[np.int64]) -> Floats:
    """Values in USD of one Tariff field for an index array of shape (n,)."""
    return np.asarray(_RATES[_FIELDS.index(field)][index])


def rates(index: NDArray[np.int64]) -> dict[str, Floats]:
    """Values in USD of every Tariff field for an index array of shape (n,)."""
    return dict(zip(_FIELDS, _RATES[:, index], strict=True))
