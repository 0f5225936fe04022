"""Simulate a month of honest taxi records: meter and surcharge rules on a made-up city, with the records' own habits.

Shares, spreads and conventions were measured on green months 2022-01..03 and 2023-01..06 and on yellow samples of
2019-03..2020-02 (NYC TLC Trip Record Data); no record is copied. Every draw has the length of the month, so that a
difference in one row never shifts another.
"""

import calendar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pandas.tseries.holiday import USFederalHolidayCalendar

from fraudlib.city import OUTSIDE, UNKNOWN, City, draw_pairs
from fraudlib.errors import FraudError, ParameterError
from fraudlib.schema import SERVICES
from fraudlib.tariff import CONGESTION_START, CONGESTION_USD, EWR, JFK, LGA, TARIFFS, rate, tariff_index
from fraudlib.trips import SIMULATED_KEY

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

# What a record is, behind its codes.
METERED, ABORTED, APP, LIVERY, AGREED, JFK_FLAT, NEWARK, SUBURB = range(8)

# Share of trips by hour, weekday and weekend (green 2023 metered; yellow 2019-20), app block, livery block, agreed.
_HOURS: Final = {
    "weekday": "93 57 38 32 27 35 125 335 406 427 410 410 406 414 481 553 610 627 610 463 360 276 219 160",
    "weekend": "76 62 47 39 28 17 19 36 53 84 112 139 149 154 169 184 183 174 173 139 122 103 88 77",
    "yellow": "297 211 146 102 71 87 199 357 456 468 459 491 544 531 579 552 528 591 662 626 564 558 511 410",
    "app": "21 14 11 9 10 9 22 49 74 74 63 67 64 61 62 62 55 65 58 41 31 27 28 24",
    "livery": "4 2 1 4 14 26 26 38 64 95 94 94 106 80 67 61 53 55 39 34 19 12 7 7",
    "agreed": "47 43 39 43 28 20 15 19 31 28 33 34 40 44 51 56 55 56 65 57 51 48 51 46",
}
_DAYS: Final = {
    "green": np.array([0.138, 0.147, 0.156, 0.159, 0.157, 0.128, 0.115]),
    "yellow": np.array([0.131, 0.137, 0.143, 0.154, 0.155, 0.151, 0.130]),
}
# Logarithm of a trip's duration against the average hour's, in 1/1000.
_SLOW: Final = {
    "weekday": "-218 -217 -218 -201 -216 -171 -184 1 73 28 28 59 43 58 128 153 122 100 20 -71 -106 -144 -167 -200",
    "weekend": "-160 -163 -190 -156 -141 -159 -306 -304 -260 -194 -153 -102 -70 -33 9 9 -5 -7 -38 -63 -96 -140 -150 "
    "-191",
    "yellow": "-260 -330 -350 -390 -500 -500 -340 -110 100 100 80 130 130 140 130 140 120 130 100 40 -60 -120 -150 "
    "-210",
}
# Share of the time that the meter counts as slow, by average speed in mph (2023, fares of the new tariff).
_MPH: Final = np.array([1.5, 4.0, 5.5, 6.5, 7.5, 8.5, 9.5, 10.5, 11.5, 12.5, 13.5, 15, 17, 19, 22, 27, 34, 45, 60])
_SLOW_SHARE: Final = np.array(
    [
        0.83,
        0.69,
        0.62,
        0.57,
        0.525,
        0.49,
        0.455,
        0.42,
        0.39,
        0.36,
        0.335,
        0.31,
        0.295,
        0.29,
        0.25,
        0.19,
        0.13,
        0.05,
        0.0,
    ]
)
_UPTOWN: Final = (np.array([74, 75, 166, 41, 244, 43, 42, 116]), np.array([29, 18, 16, 13, 7, 6, 6, 5]) / 100)
_EDGE: Final = (np.array([130, 92, 244, 95, 260, 134, 82, 93]), np.array([36, 17, 11, 10, 10, 7, 5, 4]) / 100)


SAMPLE_ROWS, SAMPLE_SEED = 48_000, 7  # of data/sample


def _numbers(text: str) -> Floats:
    return np.array(text.split(), dtype=np.float64)


@lru_cache(maxsize=2)
def _city(service: str) -> City:
    return City(service)


@dataclass(frozen=True)
class Habits:
    """Shares of a service's month.

    Attributes
    ----------
    app, agreed, livery, aborted, jfk, newark, suburb : share of all trips; the rest is metered.
    vendor1 : share of vendor 1 among metered trips.
    card, tipless : share of card payments, and of card payments without a tip.
    late : share of meters still on the old tariff after a change; `late_fee` those with the old improvement surcharge.
    toll : usual toll, USD.
    """

    app: float
    agreed: float
    livery: float
    aborted: float
    jfk: float
    newark: float
    suburb: float
    vendor1: float
    card: float
    tipless: float
    late: float
    late_fee: float
    toll: float


def _habits(service: str, month: str) -> Habits:
    first = np.datetime64(month, "D")
    toll = 5.76 if month < "2019-04" else 6.12 if month < "2021-04" else 6.55 if month < "2023-09" else 6.94
    if service == "yellow":
        app = 0.0 if month < "2019-07" else 0.008
        return Habits(app, 0.004, 0.0, 0.0205, 0.026, 0.0022, 0.0008, 0.345, 0.73, 0.036, 0.0, 0.0, toll)
    if first < np.datetime64("2022-12-19"):
        return Habits(0.103, 0.042, 0.021, 0.0175, 0.0025, 0.0005, 0.0009, 0.137, 0.63, 0.09, 0.0, 0.0, toll)
    since = float((np.datetime64(month, "M") - np.datetime64("2023-01", "M")).astype(np.int64))
    late = 0.03 * max(0.03, 1.0 - since / 3.2)
    late_fee = max(0.003, 0.069 - 0.0122 * since)
    agreed = min(0.024 + 0.0025 * since, 0.05)
    return Habits(0.070, agreed, 0.0205, 0.0180, 0.0025, 0.0005, 0.0009, 0.124, 0.655, 0.09, late, late_fee, toll)


class _Draft:
    """Trips in the making: one array of length n per quantity, filled step by step."""

    def __init__(self, month: str, service: str, n: int, rng: np.random.Generator) -> None:
        self.month, self.service, self.n, self.rng = month, service, n, rng
        self.city, self.habits = _city(service), _habits(service, month)
        self.kind = self._kinds()
        self.vendor = self._vendors()
        self.pickup, self.holiday = self._when()
        self.start, self.end = self._where()
        self.tariff = tariff_index(self.pickup)
        self.new_rules = self.pickup >= np.datetime64(TARIFFS[-1].start)
        self.miles, self.minutes, self.shown_miles = self._how_far()
        self.old_fare, self.old_fee = self._late_meters()
        self.fare = self._fares()
        self.congestion = self._congestion()
        self.extra = self._extras()
        self.tolls = self._tolls()
        self.payment = self._payments()

    def u(self) -> Floats:
        return self.rng.random(self.n)

    def chance(self, p: float | Floats) -> Bools:
        return np.asarray(self.u() < p)

    def pick(self, choices: tuple[NDArray[Any], Floats]) -> NDArray[Any]:
        values, p = choices
        return np.asarray(values[np.minimum(np.searchsorted(np.cumsum(p), self.u(), side="right"), len(values) - 1)])

    def _kinds(self) -> Ints:
        h = self.habits
        shares = np.array([h.aborted, h.app, h.livery, h.agreed, h.jfk, h.newark, h.suburb])
        return self.pick((np.arange(8), np.concatenate([[1.0 - shares.sum()], shares])))

    def _vendors(self) -> Ints:
        first = np.array([self.habits.vendor1, 0.25, 0.028, 1.0, 0.05, 0.10, 0.25, 0.12])
        if self.service == "yellow":
            first[:] = self.habits.vendor1
        return np.where(self.chance(first[self.kind]), 1, 2)

    def _when(self) -> tuple[NDArray[np.datetime64], Bools]:
        year, number = map(int, self.month.split("-"))
        days = pd.date_range(self.month, periods=calendar.monthrange(year, number)[1])
        holidays = USFederalHolidayCalendar().holidays(days[0], days[-1])
        free = np.asarray(days.isin(holidays))
        weight = _DAYS[self.service][np.asarray(days.day_of_week)] * np.where(free, 0.65, 1.0)
        weight *= np.exp(0.07 * self.rng.standard_normal(31)[: len(days)])
        day = self.pick((np.arange(len(days)), weight / weight.sum()))
        weekend = (np.asarray(days.day_of_week) >= 5) | free
        hour = self._hours(weekend[day])
        seconds = (hour * 3600 + np.floor(3600 * self.u())).astype(np.int64)
        pickup = np.datetime64(self.month, "us") + (day * 86400 + seconds).astype("timedelta64[s]")
        self.weekend = weekend[day]
        return pickup, free[day]

    def _hours(self, weekend: Bools) -> Ints:
        usual = ("weekday", "weekend") if self.service == "green" else ("yellow", "yellow")
        u = self.u()
        hour = np.zeros(self.n, dtype=np.int64)
        groups = {APP: "app", LIVERY: "livery", AGREED: "agreed"}
        names = np.where(weekend, usual[1], usual[0]).astype("<U7")
        for kind, name in groups.items():
            names[self.kind == kind] = name
        for name in np.unique(names):
            edges = np.cumsum(_numbers(_HOURS[str(name)]))
            rows = names == name
            hour[rows] = np.searchsorted(edges, u[rows] * edges[-1], side="right")
        return hour

    def _where(self) -> tuple[Ints, Ints]:
        u, kind = self.u(), self.kind
        start, end = np.zeros(self.n, dtype=np.int64), np.zeros(self.n, dtype=np.int64)
        reach = 1.6 if self.service == "green" else 2.2
        for evenness, miles, kinds in (
            (0.0, reach, (METERED, ABORTED)),
            (0.35, 5.0, (APP, AGREED)),
            (0.7, 6.0, (LIVERY,)),
        ):
            rows = np.isin(kind, kinds)
            start[rows], end[rows] = draw_pairs(self.city.pairs(evenness, miles), u[rows])
        uptown, edge = self.pick(_UPTOWN), self.pick(_EDGE)
        airport = np.isin(kind, (JFK_FLAT, NEWARK))
        start, end = np.where(airport, uptown, start), np.where(kind == JFK_FLAT, JFK, end)
        end = np.where(kind == NEWARK, EWR, end)
        start, end = np.where(kind == SUBURB, edge, start), np.where(kind == SUBURB, OUTSIDE, end)
        # A trip that never left: aborted, an agreed fare entered at the end, or the wrong button.
        share = np.array([0.0, 0.78, 0.0, 0.0, 0.41, 0.29, 0.38, 0.0])[kind]
        self.instant = self.chance(share)
        stays = np.where(kind == AGREED, np.where(self.instant, 0.77, 0.15), np.where(self.instant, 0.85, 0.0))
        nowhere = (kind == AGREED) & self.instant & self.chance(0.29)
        end = np.where(self.chance(stays), start, end)
        return np.where(nowhere, UNKNOWN, start), np.where(nowhere, UNKNOWN, end)

    def _how_far(self) -> tuple[Floats, Floats, Floats]:
        """True miles, minutes, and the miles that the record shows."""
        kind, same = self.kind, self.start == self.end
        usual = self.city.miles[self.start, self.end]
        usual = np.where(kind == SUBURB, 14.0 * np.exp(0.5 * self.rng.standard_normal(self.n)), usual)
        usual = np.where((kind == NEWARK), usual * 1.25, usual)
        spread = np.where(same, 0.385, np.minimum(0.297 * usual**-0.8, 0.38))
        ratio = np.clip(spread * self.rng.standard_t(4, self.n), -2.5, 2.2)
        round_trip = same & self.chance(0.06)
        ratio += np.where(round_trip, self.rng.exponential(0.9, self.n), 0.0)
        miles = usual * np.exp(np.clip(ratio, -2.5, 3.2))
        slope = np.interp(usual, [1.0, 1.25, 2.0, 3.2, 6.0, 12.0], [0.86, 0.86, 0.8, 0.61, 0.44, 0.33])
        week = np.where(
            self.weekend, _numbers(_SLOW["weekend"])[self._hour()], _numbers(_SLOW["weekday"])[self._hour()]
        )
        slow = week if self.service == "green" else _numbers(_SLOW["yellow"])[self._hour()] + 70.0
        noise = np.where(usual < 1.5, 0.21, 0.188) * np.clip(self.rng.standard_t(6, self.n), -4.5, 6.0)
        minutes = usual / self.city.mph[self.start, self.end] * 60.0 * np.exp(slow / 1000.0 + slope * ratio + noise)
        minutes = np.maximum(minutes, 60.0 * miles / np.where(miles > 4, 48.0, 38.0))
        brief = np.interp(self.u(), [0, 0.18, 0.30, 0.43, 0.61, 0.78, 1.0], [0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0])
        entered = np.minimum(np.exp(np.log(0.1) + self.rng.standard_normal(self.n)), 0.98)
        still = (kind == ABORTED) | self.instant
        minutes = np.where(kind == ABORTED, brief, np.where(still, entered, minutes))
        creep = np.where(self.chance(0.6), minutes / 60.0 * (1.0 + 17.0 * self.u()), 0.0)
        miles = np.where(still, creep, miles)
        minutes = np.round(minutes * 60.0) / 60.0
        lost = np.array([0.0, 0.06, 0.034, 0.985, 0.3, 0.02, 0.0, 0.0])[kind]
        lost = np.where(kind == METERED, np.where(self.vendor == 1, 0.005, 0.011), lost)
        shown = np.where(self.chance(lost), 0.0, miles)
        wild = (kind == APP) & self.chance(0.0093)
        shown = np.where(wild, np.exp(np.log(6000.0) + 1.1 * self.rng.standard_normal(self.n)), shown)
        digits = np.where(self.vendor == 1, 10.0, 100.0)
        return miles, minutes, np.round(shown * digits) / digits

    def _hour(self) -> Ints:
        return np.asarray((self.pickup - self.pickup.astype("datetime64[D]")).astype("timedelta64[h]").astype(np.int64))

    def _late_meters(self) -> tuple[Bools, Bools]:
        """Meters that still charge the last tariff's fare, and those with its improvement surcharge."""
        h, night = self.habits, (self._hour() >= 20) | (self._hour() < 6)
        first = (h.late > 0) * np.where(night, 0.19, 0.045) * min(1.3, max(0.3, h.late_fee / 0.045))
        fits = self.new_rules & np.isin(self.kind, (METERED, ABORTED, JFK_FLAT))
        old_fare = fits & self.chance(np.where(self.vendor == 1, first, h.late))
        also = self.chance(max(0.0, h.late_fee - h.late))
        return old_fare, self.new_rules & (self.vendor == 2) & (old_fare | (also & (self.kind != LIVERY)))

    def _rate(self, field: str) -> Floats:
        return rate(field, np.where(self.old_fare, self.tariff - 1, self.tariff))

    def _fares(self) -> Floats:
        kind = self.kind
        meter = self._meter()
        fare = np.where(kind == JFK_FLAT, self._rate("jfk_flat"), meter)
        fare = np.where(kind == NEWARK, meter + self._rate("newark"), fare)
        return np.round(np.select([kind == LIVERY, kind == AGREED, kind == APP], self._agreed_fares(), fare), 2)

    def _meter(self) -> Floats:
        """Base fare plus a unit for each 1/5 mile or slow minute begun."""
        lost = (self.shown_miles == 0) & (self.kind == METERED)
        miles = np.where(lost, 0.0, self.miles)
        speed = 60.0 * self.miles / np.maximum(self.minutes, 1 / 60)
        core = np.where(self.vendor == 1, 0.075, 0.05) * self.rng.standard_normal(self.n)
        fast = np.clip((speed - 6.0) / 12.0, 0.0, 1.0)
        tail = self.chance(0.10 + 0.12 * fast) * self.rng.exponential(0.07 + 0.10 * fast)
        share = np.interp(speed, _MPH, _SLOW_SHARE) + core - tail - np.where(self.vendor == 1, 0.03, 0.0)
        share = np.where(lost, 0.985, np.clip(share, -0.45, 0.97))
        per_unit = self._rate("per_minute")
        units = np.floor(np.maximum(5.0 * miles + share * self.minutes, 0.0))
        most = np.floor(np.maximum(5.0 * np.where(lost, 0.0, self.shown_miles) + self.minutes, 0.0))
        units = np.where(self.kind == METERED, np.minimum(units, most), units)
        double = 1.0 + np.where(self.kind == SUBURB, 0.75 * self.u(), 0.0)
        return np.asarray(self._rate("base") + per_unit * np.round(units * double))

    def _agreed_fares(self) -> list[Floats]:
        """Fares that no meter made: livery block, agreed (rate code 5), app block."""
        z, t = self.rng.standard_normal(self.n), np.clip(self.rng.standard_t(3, self.n), -4.0, 5.0)
        new = self.new_rules
        livery = np.maximum((11.6 + 2.0 * self.miles + 0.11 * self.minutes) * np.exp(0.07 * z), 15.2)
        livery = np.floor(livery) + self.pick((np.array([0.5, 0.2, 0.7, 0.0]), np.array([0.52, 0.35, 0.1, 0.03])))
        level = 1.0 if self.habits.agreed > 0.04 else 1.0 + 8.0 * (self.habits.agreed - 0.024)
        guess = (3.0 + 3.5 * self.city.miles[self.start, self.end] + 3.5) * np.exp(0.3 * t)
        guess = np.where(self.instant, 17.0 * np.exp(0.72 * z + 0.05 * t), guess) * level
        if self.service == "yellow":
            guess = guess * 2.2
        fives, ones = np.maximum(np.round(guess / 5.0), 1.0) * 5.0, np.maximum(np.round(guess), 3.0)
        how = self.u()
        agreed = np.where(how < 0.55, fives, np.where(how < 0.92, ones, np.round(guess, 2)))
        app = np.where(new, 6.8, 5.25) + 2.32 * self.miles + 0.22 * self.minutes
        floor = np.where(new, 10.3, 7.0) + 3.5 * self.u() ** 2
        return [livery, agreed, np.clip(app * np.exp(0.105 * t), floor, np.where(new, 110.0, 90.0))]

    def _congestion(self) -> Bools:
        """Whether the trip owes the congestion surcharge."""
        touch = np.maximum(self.city.congested[self.start], self.city.congested[self.end])
        side = self.city.borough
        west, south = side == "manhattan", side == "brooklyn"
        through = (west[self.start] & south[self.end]) | (south[self.start] & west[self.end])
        chance = np.where(through, 0.9, touch) * np.array([1.0, 0.6, 1.1, 0.01, 0.3, 0.013, 0.0, 0.03])[self.kind]
        return self.chance(chance) & (self.pickup >= CONGESTION_START)

    def _extras(self) -> Floats:
        """Peak, night and airport surcharges by the meter's own clock, which is a few minutes off."""
        clock = self.pickup + np.round(self.rng.laplace(0.0, 150.0, self.n)).astype("timedelta64[s]")
        hour = (clock - clock.astype("datetime64[D]")).astype("timedelta64[h]").astype(np.int64)
        weekday = ~self.weekend
        peak, night = weekday & (hour >= 16) & (hour < 20), (hour >= 20) | (hour < 6)
        extra = np.where(peak, self._rate("peak"), np.where(night, self._rate("night"), 0.0))
        airport = self.end == LGA
        if self.service == "yellow":
            airport |= self.start == LGA
        extra += np.where(airport & self.new_rules & ~self.old_fare, 5.0, 0.0)
        extra = np.where(np.isin(self.kind, (METERED, ABORTED, NEWARK, SUBURB)), extra, 0.0)
        rush = rate("jfk_peak", self.tariff) * (peak & (self.kind == JFK_FLAT))
        return np.where(self.chance(0.006) & (self.kind == METERED), 0.0, extra + rush)

    def _tolls(self) -> Floats:
        toll = self.habits.toll
        chance = self.city.toll[self.start, self.end]
        chance = np.where(self.kind == JFK_FLAT, np.where(self.instant, 0.07, 0.978), chance)
        chance = np.where(self.kind == NEWARK, np.where(self.instant, 0.02, 0.9), chance)
        chance = np.where(self.kind == SUBURB, 0.15, chance) * np.where(self.kind == ABORTED, 0.1, 1.0)
        chance = np.where((self.kind == AGREED), chance * np.where(self.instant, 0.05, 0.8), chance)
        bronx = self.city.borough == "bronx"
        over = (bronx[self.start] ^ bronx[self.end]) & (chance < 0.9) & ~np.isin(self.end, (LGA,))
        usual = np.where(over, 3.0, toll)
        other = self.pick(
            (np.array([3.0, 2.45, 2 * toll, 12.75, 14.75, 3.0 + toll]), np.array([5, 4, 3, 1, 2, 1]) / 16)
        )
        values = np.where(self.kind == NEWARK, np.where(self.chance(0.45), 14.75, 12.75), usual)
        values = np.where(self.chance(0.045) & (self.kind != JFK_FLAT), other, values)
        return np.where(self.chance(chance), np.round(values, 2), 0.0)

    def _payments(self) -> Ints:
        kind, first = self.kind, self.vendor == 1
        card = np.array([self.habits.card, 0.26, 1.0, 0.97, 0.67, 0.60, 0.51, 0.48])[kind]
        card = np.where((kind == AGREED), np.where(self.instant, 0.88, 0.52), card)
        card = np.where((kind == METERED) & first, card - 0.03, card)
        card = np.where((kind == JFK_FLAT) & self.instant, 0.12, card)
        card = np.where((kind == ABORTED) & first, 0.17, card)
        free = np.where(first, 0.012, 0.0004) * (kind == METERED) + np.where(first, 0.22, 0.012) * (kind == ABORTED)
        free += 0.008 * (kind == AGREED)
        odd = self.u()
        payment = np.where(self.chance(card), 1, 2)
        return np.where(odd < free, 3, np.where(odd < 1.22 * free, 4, payment))


def _tips(draft: _Draft, sum_before: Floats) -> Floats:
    """Card tips: a button of the terminal (20, 25 or 30 % of the sum), whole dollars, or an amount of one's own."""
    n, rng, first = draft.n, draft.rng, draft.vendor == 1
    step = np.where(first, 0.05, 0.01)
    button = draft.pick((np.array([0.20, 0.25, 0.30, -1.0, -2.0]), np.array([0.515, 0.118, 0.057, 0.184, 0.126])))
    pressed = np.round(np.floor(sum_before * button / step + np.where(first, 1e-6, 0.5)) * step, 2)
    guess = np.maximum(sum_before, 6.0) * np.exp(np.log(0.12) + 0.55 * rng.standard_normal(n))
    whole = np.maximum(np.round(guess), 1.0)
    way = draft.u()
    own = np.round(guess, 2)
    own = np.where(
        way < 0.40, np.round(sum_before * draft.pick((np.array([0.1, 0.15, 0.18]), np.array([0.3, 0.5, 0.2]))), 2), own
    )
    own = np.where((way > 0.40) & (way < 0.60), np.ceil(sum_before * 1.12) - sum_before, own)
    own = np.where((way > 0.60) & (way < 0.72), np.maximum(np.round(guess * 2.0) / 2.0, 0.5), own)
    own = np.where((way > 0.72) & (way < 0.84), 0.01 + np.floor(9.0 * rng.random(n)) / 100.0, own)
    tip = np.where(button == -1.0, whole, np.where(button == -2.0, np.maximum(own, 0.01), pressed))
    tip = np.where(draft.chance(0.0012), np.round(10.0 + 60.0 * draft.u() ** 2), tip)
    few = draft.habits.tipless * np.interp(
        sum_before, [5.0, 8.0, 10.0, 15.0, 30.0, 60.0], [1.9, 1.6, 1.3, 1.0, 0.85, 1.1]
    )
    none = np.select(
        [draft.kind == LIVERY, draft.kind == AGREED, draft.kind == APP, draft.kind == ABORTED],
        [np.full(n, 0.988), np.where(draft.instant, 0.47, 0.31), np.full(n, 0.145), np.full(n, 0.5)],
        few + np.where(first, 0.03, 0.0),
    )
    return np.where((draft.payment == 1) & ~draft.chance(none), np.round(tip, 2), 0.0)


def _app_tips(draft: _Draft, sum_before: Floats) -> Floats:
    percent = np.array([20, 15, 2, 10, 25, 18, 5, 8, 12, 30]) / 100
    share = draft.pick((percent, np.array([0.46, 0.12, 0.10, 0.10, 0.04, 0.03, 0.03, 0.03, 0.04, 0.05])))
    whole = np.maximum(np.round(sum_before * 0.1), 1.0)
    return np.where(draft.chance(0.12), whole, np.round(sum_before * share, 2))


def _columns(draft: _Draft) -> dict[str, NDArray[Any]]:
    """Record columns by TLC name, NaN where null; each provider adds up in its own way."""
    kind, first, n = draft.kind, draft.vendor == 1, draft.n
    app, livery, agreed = kind == APP, kind == LIVERY, kind == AGREED
    dispatched = agreed & draft.chance(np.where(first, 0.78, 0.91))
    fee = np.where(draft.old_fee, 0.3, rate("improvement", draft.tariff))
    bare = (livery & draft.chance(0.108)) | (first & dispatched)
    odd = first & (kind == METERED) & draft.chance(0.005)
    fee = np.where(bare | odd, 0.0, fee)
    mta = np.where(np.isin(kind, (NEWARK, APP)) | dispatched | bare, 0.0, 0.5)
    mta = np.where(agreed & ~dispatched & ~first & draft.chance(0.5), 0.0, mta)
    mta = np.where(app & first, 0.5, mta)
    surcharge = np.where(draft.congestion, CONGESTION_USD[draft.service], 0.0)
    known = np.where(app, 0.0, surcharge)
    due = draft.fare + draft.extra + mta + draft.tolls + fee + surcharge
    tip = np.where(app, _app_tips(draft, due), _tips(draft, due))
    tip = np.where(app & ~draft.chance(0.855), 0.0, tip)
    repeats = first & ~app
    folded = repeats & draft.new_rules & (fee > 0) & (draft.service == "green")
    nothing = draft.chance(0.001) & ~app
    payment = np.where(app, np.nan, draft.payment)
    code = np.array([1, 1, 0, 1, 5, 2, 3, 4], dtype=np.float64)[kind]
    unknown = first & ~app & ~livery & (kind == METERED) & draft.chance(0.0007)
    code = np.where(unknown, 99.0, code)
    people = _passengers(draft)
    minutes = draft.minutes.copy()
    pickup = draft.pickup.astype("datetime64[s]")
    length = np.round(minutes * 60.0).astype("timedelta64[s]")
    rounded = app & ~first
    pickup = np.where(rounded, pickup.astype("datetime64[m]").astype("datetime64[s]"), pickup)
    length = np.where(rounded, np.round(minutes).astype("timedelta64[m]").astype("timedelta64[s]"), length)
    stamp = (draft.vendor == 2) & ~app & draft.chance(0.003)
    early = np.minimum(1.0 + np.round(draft.rng.exponential(45.0 * 60.0, n)), 13000.0).astype("timedelta64[s]")
    length = np.where(stamp, np.timedelta64(86400, "s") - early, length)
    money = {
        "fare_amount": draft.fare,
        "extra": draft.extra + np.where(repeats, known, 0.0),
        "mta_tax": mta + np.where(folded, fee, 0.0),
        "tip_amount": tip,
        "tolls_amount": draft.tolls,
        "improvement_surcharge": fee,
        "congestion_surcharge": np.where(app, np.nan, known),
        "total_amount": due + tip,
    }
    money = {name: np.round(np.where(nothing & ~np.isnan(values), 0.0, values), 2) for name, values in money.items()}
    hail = np.where(dispatched, 2.0, 1.0)
    return {
        "VendorID": draft.vendor,
        "pickup_datetime": pickup,
        "dropoff_datetime": pickup + length,
        "store_and_fwd_flag": np.where(first & draft.chance(0.027), "Y", "N"),
        "RatecodeID": np.where(app, np.nan, code),
        "PULocationID": draft.start,
        "DOLocationID": draft.end,
        "passenger_count": np.where(app, np.nan, people),
        "trip_distance": draft.shown_miles,
        **money,
        "payment_type": payment,
        "trip_type": np.where(app | unknown, np.nan, hail),
        "ehail_fee": np.full(n, np.nan),
    }


def _passengers(draft: _Draft) -> Ints:
    count = np.array([1, 2, 3, 4, 5, 6, 0])
    first = draft.pick((count, np.array([0.815, 0.107, 0.023, 0.005, 0.001, 0.001, 0.048])))
    second = draft.pick((count, np.array([0.8545, 0.0806, 0.0132, 0.0047, 0.0296, 0.0167, 0.0003])))
    if draft.service == "yellow":
        second = draft.pick((count, np.array([0.683, 0.153, 0.047, 0.021, 0.059, 0.036, 0.001])))
    people = np.where(draft.vendor == 1, first, second)
    return np.where((draft.kind == LIVERY) & draft.chance(0.98), 1, people)


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


def _void(draft: _Draft, columns: dict[str, NDArray[Any]], count: int) -> dict[str, NDArray[Any]]:
    """Append `count` voids: negative twins of vendor 2's trips, nearly all of them aborted ones."""
    eager = np.select(
        [draft.kind == ABORTED, (draft.kind == AGREED) & draft.instant, draft.kind == METERED], [1.0, 0.06, 0.0004], 0.0
    )
    taken = np.argsort(draft.u() ** (1.0 / np.maximum(eager * (draft.vendor == 2), 1e-9)), kind="stable")[::-1][:count]
    kinds = np.where(draft.u() < 0.75, 3.0, np.where(draft.u() < 0.92, 4.0, 2.0))[taken]
    columns["payment_type"][taken] = kinds
    lonely = draft.chance(0.012)[taken]
    twins = {}
    for name, values in columns.items():
        twin = values[taken].copy()
        if name in _MONEY:
            twin = -twin + 0.0
        if name in ("pickup_datetime", "dropoff_datetime"):
            twin[lonely] += np.timedelta64(3600, "s")
        twins[name] = np.concatenate([values, twin])
    return twins


def _reset_clocks(columns: dict[str, NDArray[Any]], rng: np.random.Generator) -> None:
    """Put a trip in 30,000 on 2009-01-01, where a meter's clock starts after a reset."""
    n = len(columns["pickup_datetime"])
    rows = rng.integers(0, n, max(1, round(n / 30_000)))
    shift = columns["pickup_datetime"][rows].astype("datetime64[D]") - np.datetime64("2009-01-01", "D")
    for name in ("pickup_datetime", "dropoff_datetime"):
        columns[name][rows] -= shift.astype("timedelta64[s]")


def _schema(service: str) -> pa.Schema:
    prefix = "lpep" if service == "green" else "tpep"
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
        *([("ehail_fee", real)] if service == "green" else []),
        ("improvement_surcharge", real),
        ("total_amount", real),
        ("payment_type", whole),
        *([("trip_type", whole)] if service == "green" else []),
        ("congestion_surcharge", real),
    ]
    return pa.schema(fields, metadata={SIMULATED_KEY: b"true"})


def simulate_month(month: str, service: str, rows: int, seed: int) -> pa.Table:
    """A month of simulated honest trips with the TLC's own column names and types, by pickup time.

    Parameters
    ----------
    month : "YYYY-MM", 2013-01 or later; decides tariff, holidays and habits.
    service : "green" or "yellow".
    rows : number of records, voids among them; at least 1000.
    seed : the same seed gives the same table.

    Returns
    -------
    Table whose metadata says `fraudlib.simulated`: `true`.
    """
    try:
        start = pd.Timestamp(f"{month}-01")
    except ValueError as error:
        raise ParameterError(f"Expected a month like 2023-05, found {month!r}; correct it.") from error
    if service not in SERVICES or rows < 1000 or start < pd.Timestamp("2013-01-01") or len(month) != 7:
        raise ParameterError(
            f"Expected green or yellow, 1000 rows or more and a month from 2013-01 on, found {service!r}, {rows} and "
            f"{month!r}; correct them."
        )
    rng = np.random.default_rng([seed, start.year, start.month, SERVICES.index(service)])
    voids = round(0.0027 * rows)
    draft = _Draft(month, service, rows - voids, rng)
    columns = _void(draft, _columns(draft), voids)
    _reset_clocks(columns, rng)
    order = np.argsort(columns["pickup_datetime"], kind="stable")
    arrays = [_array(columns, field, order) for field in _schema(service)]
    return pa.Table.from_arrays(arrays, schema=_schema(service))


def _array(columns: dict[str, NDArray[Any]], field: pa.Field, order: Ints) -> pa.Array:
    values = columns[field.name.removeprefix("lpep_").removeprefix("tpep_")][order]
    block = np.isnan(columns["RatecodeID"][order].astype(np.float64)) if field.name == "store_and_fwd_flag" else None
    return pa.array(values, from_pandas=True, mask=block).cast(field.type)


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
