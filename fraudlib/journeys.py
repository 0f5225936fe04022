"""Draw the journeys of a simulated month: who, when, from where to where, how far, how long, for what fare.

Shares, spreads and conventions were measured on green months 2022-01..03 and 2023-01..06 and on yellow samples of
2019-03..2020-02 (NYC TLC Trip Record Data); no record is copied. Every draw has the length of the month, so that a
difference in one row never shifts another.
"""

import calendar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.holiday import USFederalHolidayCalendar

from fraudlib.city import OUTSIDE, UNKNOWN, City, draw_pairs
from fraudlib.tariff import CONGESTION_START, EWR, JFK, LGA, TARIFFS, rate, tariff_index

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

# What a record is, behind its codes: on the meter; a meter stopped at once; the submission path that leaves six columns
# null; vendor 1's livery trips without a distance; agreed fares (rate code 5); rate codes 2, 3 and 4.
METERED, ABORTED, APP, LIVERY, AGREED, JFK_FLAT, NEWARK, SUBURB = range(8)


def _row(text: str) -> Floats:
    return np.array(text.split(), dtype=np.float64)


# Share of trips by hour of the day.
_HOURS: Final = {
    "weekday": _row("93 57 38 32 27 35 125 335 406 427 410 410 406 414 481 553 610 627 610 463 360 276 219 160"),
    "weekend": _row("76 62 47 39 28 17 19 36 53 84 112 139 149 154 169 184 183 174 173 139 122 103 88 77"),
    "yellow": _row("297 211 146 102 71 87 199 357 456 468 459 491 544 531 579 552 528 591 662 626 564 558 511 410"),
    "app": _row("21 14 11 9 10 9 22 49 74 74 63 67 64 61 62 62 55 65 58 41 31 27 28 24"),
    "livery": _row("4 2 1 4 14 26 26 38 64 95 94 94 106 80 67 61 53 55 39 34 19 12 7 7"),
    "agreed": _row("47 43 39 43 28 20 15 19 31 28 33 34 40 44 51 56 55 56 65 57 51 48 51 46"),
}
_WEEK: Final = {"green": _row("138 147 156 159 157 128 115"), "yellow": _row("131 137 143 154 155 151 130")}
# Logarithm of a trip's duration against the average hour's, in thousandths.
_SLOW: Final = {
    "weekday": _row(
        "-218 -217 -218 -201 -216 -171 -184 1 73 28 28 59 43 58 128 153 122 100 20 -71 -106 -144 -167 -200"
    ),
    "weekend": _row(
        "-160 -163 -190 -156 -141 -159 -306 -304 -260 -194 -153 -102 -70 -33 9 9 -5 -7 -38 -63 -96 -140 -150 -191"
    ),
    "yellow": _row(
        "-190 -260 -280 -320 -430 -430 -270 -40 170 170 150 200 200 210 200 210 190 200 170 110 10 -50 -80 -140"
    ),
}
# Part of the time that the meter counts as slow, by average speed (fares of the new tariff, 2023).
_MPH: Final = _row("1.5 4 5.5 6.5 7.5 8.5 9.5 10.5 11.5 12.5 13.5 15 17 19 22 27 34 45 60")
_SLOW_PART: Final = _row(".86 .73 .64 .59 .545 .505 .47 .435 .4 .37 .345 .315 .3 .295 .255 .195 .135 .055 0")
# Busy pickup zones of airport trips and of trips to the suburbs, with their shares.
_UPTOWN: Final = (_row("74 75 166 41 244 43 42 116"), _row(".29 .18 .16 .13 .07 .06 .06 .05"))
_EDGE: Final = (_row("130 92 244 95 260 134 82 93"), _row(".36 .17 .11 .10 .10 .07 .05 .04"))


@dataclass(frozen=True)
class Habits:
    """What a service's month is made of.

    Attributes
    ----------
    aborted, app, livery, agreed, jfk, newark, suburb : share of all trips; the rest is metered.
    vendor1 : share of vendor 1 among metered trips.
    card, tipless : share of card payments, and of card payments without a tip.
    late : share of vendor 2's meters that still charge the tariff before the last; `late_fee` those with its
        improvement surcharge.
    toll : usual toll, USD.
    """

    aborted: float
    app: float
    livery: float
    agreed: float
    jfk: float
    newark: float
    suburb: float
    vendor1: float
    card: float
    tipless: float
    late: float
    late_fee: float
    toll: float


def habits_of(service: str, month: str) -> Habits:
    """Habits of a month; they change with the tariff of 2022-12-19 and drift after it."""
    toll = 5.76 if month < "2019-04" else 6.12 if month < "2021-04" else 6.55 if month < "2023-09" else 6.94
    if service == "yellow":
        app = 0.0 if month < "2019-07" else 0.008
        return Habits(0.0100, app, 0.0, 0.004, 0.026, 0.0022, 0.0008, 0.345, 0.73, 0.036, 0.0, 0.0, toll)
    if month < "2023-01":
        return Habits(0.0140, 0.103, 0.021, 0.042, 0.0025, 0.0005, 0.0009, 0.137, 0.63, 0.083, 0.0, 0.0, toll)
    since = float((np.datetime64(month, "M") - np.datetime64("2023-01", "M")).astype(np.int64))
    late, late_fee = 0.03 * max(0.03, 1.0 - since / 3.2), max(0.003, 0.069 - 0.0122 * since)
    agreed = min(0.024 + 0.0025 * since, 0.05)
    return Habits(0.0140, 0.07, 0.0205, agreed, 0.0027, 0.0007, 0.001, 0.124, 0.665, 0.08, late, late_fee, toll)


@lru_cache(maxsize=2)
def _city(service: str) -> City:
    return City(service)


class Journeys:
    """The journeys of one month, an array of length n per quantity.

    Attributes
    ----------
    kind, vendor, payment : codes.
    pickup : datetime64[us]; `weekend` tells weekends and holidays.
    start, end : taxi zones; `instant` marks trips that never left.
    miles, minutes : as driven; `shown_miles` as the record has them.
    fare, extra, tolls : USD.
    congestion : whether the congestion surcharge is due.
    new_rules : the tariff of 2022-12-19 is in force; `old_fee` marks meters with the improvement surcharge before it.
    """

    def __init__(self, month: str, service: str, n: int, rng: np.random.Generator) -> None:
        self.month, self.service, self.n, self.rng = month, service, n, rng
        self.city, self.habits = _city(service), habits_of(service, month)
        self.kind = self._kinds()
        self.vendor = self._vendors()
        self.pickup, self.weekend = self._when()
        self.hour = _hour(self.pickup)
        self.tariff = tariff_index(self.pickup)
        self.new_rules = self.pickup >= np.datetime64(TARIFFS[-1].start)
        self.start, self.end, self.instant = self._where()
        self.miles, self.minutes = self._how_far()
        self.shown_miles = self._shown_miles()
        self.old_fare, self.old_fee = self._late_meters()
        self.fare = self._fares()
        self.congestion = self._congestion()
        self.extra = self._extras()
        self.tolls = self._tolls()
        self.payment = self._payments()

    def u(self) -> Floats:
        """Uniform numbers (n,)."""
        return self.rng.random(self.n)

    def normal(self) -> Floats:
        """Standard normal numbers (n,)."""
        return self.rng.standard_normal(self.n)

    def heavy(self, degrees: float, low: float, high: float) -> Floats:
        """Student t numbers (n,), clipped."""
        return np.clip(self.rng.standard_t(degrees, self.n), low, high)

    def chance(self, p: float | Floats) -> Bools:
        """True with probability `p`, (n,)."""
        return np.asarray(self.u() < p)

    def pick(self, values: NDArray[Any], shares: Floats) -> NDArray[Any]:
        """Draw from `values` by `shares`, (n,)."""
        place = np.searchsorted(np.cumsum(shares), self.u() * shares.sum(), side="right")
        return np.asarray(values[np.minimum(place, len(values) - 1)])

    def is_kind(self, *kinds: int) -> Bools:
        """Whether each journey is one of `kinds`, (n,)."""
        return np.isin(self.kind, kinds)

    def _kinds(self) -> Ints:
        h = self.habits
        shares = np.array([0.0, h.aborted, h.app, h.livery, h.agreed, h.jfk, h.newark, h.suburb])
        shares[METERED] = 1.0 - shares.sum()
        return self.pick(np.arange(8), shares)

    def _vendors(self) -> Ints:
        first = np.array([self.habits.vendor1, 0.25, 0.033, 1.0, 0.05, 0.10, 0.25, 0.12])
        if self.service == "yellow":
            first[:] = self.habits.vendor1
        return np.where(self.chance(first[self.kind]), 1, 2)

    def _when(self) -> tuple[NDArray[np.datetime64], Bools]:
        year, number = map(int, self.month.split("-"))
        days = pd.date_range(self.month, periods=calendar.monthrange(year, number)[1])
        holidays = USFederalHolidayCalendar().holidays(days[0], days[-1], return_name=True)
        # Meters charged the peak surcharge on Juneteenth 2023.
        free = np.asarray(days.isin(holidays.index[~holidays.str.startswith("Juneteenth")]))
        weekday = np.asarray(days.day_of_week)
        mood = np.exp(0.07 * self.rng.standard_normal(31))[: len(days)]
        day = self.pick(np.arange(len(days)), _WEEK[self.service][weekday] * np.where(free, 0.65, 1.0) * mood)
        weekend = ((weekday >= 5) | free)[day]
        second = self._hours(weekend) * 3600 + np.floor(3600 * self.u()).astype(np.int64)
        return np.datetime64(self.month, "us") + (day * 86400 + second).astype("timedelta64[s]"), weekend

    def _hours(self, weekend: Bools) -> Ints:
        usual = np.where(weekend, "weekend", "weekday") if self.service == "green" else np.full(self.n, "yellow")
        kinds = [self.kind == kind for kind in (APP, LIVERY, AGREED)]
        names = np.select(kinds, [np.full(self.n, name) for name in ("app", "livery", "agreed")], usual)
        u, hour = self.u(), np.zeros(self.n, dtype=np.int64)
        for name, shares in _HOURS.items():
            rows, edges = names == name, np.cumsum(shares)
            hour[rows] = np.searchsorted(edges, u[rows] * edges[-1], side="right")
        return hour

    def _where(self) -> tuple[Ints, Ints, Bools]:
        u = self.u()
        start, end = np.zeros(self.n, dtype=np.int64), np.zeros(self.n, dtype=np.int64)
        reach = 1.15 if self.service == "green" else 2.2
        for evenness, miles, kinds in (
            (0.0, reach, (0, 1, 5, 6, 7)),
            (0.35, 5.5, (APP, AGREED)),
            (0.7, 8.0, (LIVERY,)),
        ):
            rows = self.is_kind(*kinds)
            start[rows], end[rows] = draw_pairs(self.city.pairs(evenness, miles), u[rows])
        uptown, edge = self.pick(*_UPTOWN).astype(np.int64), self.pick(*_EDGE).astype(np.int64)
        start = np.select([self.is_kind(JFK_FLAT, NEWARK), self.is_kind(SUBURB)], [uptown, edge], start)
        places = [np.full(self.n, zone) for zone in (JFK, EWR, OUTSIDE)]
        end = np.select([self.is_kind(kind) for kind in (JFK_FLAT, NEWARK, SUBURB)], places, end)
        # Never left: stopped at once, an agreed fare entered at the end, or the wrong button.
        instant = self.chance(_row("0 1 0 0 .41 .26 .38 0")[self.kind])
        stays = np.where(self.is_kind(AGREED), np.where(instant, 1.0, 0.15), np.where(instant, 0.75, 0.0))
        far = self.is_kind(ABORTED) & (self.city.miles[start, end] > 1.3)
        end = np.where(self.chance(stays) | far, start, end)
        lost = np.where(self.is_kind(AGREED) & instant, self.u(), 1.0)
        return np.where(lost < 0.07, UNKNOWN, start), np.where(lost < 0.29, UNKNOWN, end), instant

    def _how_far(self) -> tuple[Floats, Floats]:
        same = self.start == self.end
        usual = self.city.miles[self.start, self.end] * np.where(self.is_kind(NEWARK), 1.3, 1.0)
        usual = np.where(self.is_kind(SUBURB), 14.0 * np.exp(0.5 * self.normal()), usual)
        spread = np.where(same, 0.28, np.minimum(0.205 * usual**-0.8, 0.25))
        ratio = spread * self.heavy(4, -6.0, 7.0)
        ratio = np.where(same & (ratio < 0), 0.75 * ratio, ratio)
        ratio += (same & self.chance(0.04)) * self.rng.exponential(0.9, self.n)  # there and back
        ratio = np.clip(ratio, -2.5, 3.0)
        slope = np.interp(usual, [1.25, 2.0, 3.2, 6.0, 12.0], [0.86, 0.80, 0.61, 0.44, 0.33])
        week = np.where(self.weekend, _SLOW["weekend"][self.hour], _SLOW["weekday"][self.hour])
        slow = week if self.service == "green" else _SLOW["yellow"][self.hour]
        noise = np.where(usual < 1.5, 0.15, 0.135) * self.heavy(7, -3.5, 6.0)
        minutes = 60.0 * usual / self.city.mph[self.start, self.end] * np.exp(slow / 1000 + slope * ratio + noise)
        minutes *= _row("1.03 1 1.1 1.35 1.03 1.15 1 1")[self.kind]
        minutes += self.chance(0.025) * self.rng.exponential(25.0, self.n)  # a stop on the way
        miles = usual * np.exp(ratio)
        minutes = np.maximum(minutes, 60.0 * miles / np.where(miles > 4, 50.0, 40.0))
        brief = np.interp(self.u(), [0, 0.18, 0.30, 0.43, 0.61, 0.78, 1.0], [0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0])
        entered = np.minimum(0.1 * np.exp(self.normal()), 0.98)
        minutes = np.select([self.is_kind(ABORTED), self.instant], [brief, entered], minutes)
        creep = self.chance(0.62 if self.service == "green" else 0.85) * minutes / 60.0 * (1.0 + 17.0 * self.u())
        return np.where(self.instant, creep, miles), np.round(minutes * 60.0) / 60.0

    def _shown_miles(self) -> Floats:
        first = self.vendor == 1
        lost = _row("0 .1 .034 .985 .05 .02 0 0")[self.kind]
        lost = np.where(
            self.is_kind(METERED), np.where(first, 0.005, 0.010 if self.service == "green" else 0.004), lost
        )
        lost = np.where(self.is_kind(AGREED) & self.instant, 0.55, lost)
        shown = np.where(self.chance(lost), 0.0, self.miles)
        wild = self.is_kind(APP) & self.chance(0.0093)
        shown = np.where(wild, 6000.0 * np.exp(1.1 * self.normal()), shown)
        digits = np.where(first & ~self.is_kind(APP), 10.0, 100.0)
        return np.round(shown * digits) / digits

    def _late_meters(self) -> tuple[Bools, Bools]:
        """Meters that still charge the fare of the tariff before the last, and those with its improvement surcharge."""
        h, night = self.habits, (self.hour >= 20) | (self.hour < 6)
        first = (h.late > 0) * np.where(night, 0.19, 0.045) * min(1.3, max(0.3, h.late_fee / 0.045))
        old_fare = self.new_rules & self.is_kind(METERED, ABORTED, JFK_FLAT)
        old_fare &= self.chance(np.where(self.vendor == 1, first, h.late))
        also = self.chance(max(0.0, h.late_fee - h.late)) & ~self.is_kind(LIVERY)
        return old_fare, self.new_rules & (self.vendor == 2) & (old_fare | also)

    def _rate(self, field: str) -> Floats:
        return rate(field, np.where(self.old_fare, self.tariff - 1, self.tariff))

    def _fares(self) -> Floats:
        meter = self._meter()
        kinds = (JFK_FLAT, NEWARK, LIVERY, AGREED, APP)
        fares = [self._rate("jfk_flat"), meter + self._rate("newark"), self._livery(), self._agreed(), self._app()]
        return np.round(np.select([self.is_kind(kind) for kind in kinds], fares, meter), 2)

    def _meter(self) -> Floats:
        """Base fare and a unit for each 1/5 mile driven fast or minute spent slow."""
        first, lost = self.vendor == 1, (self.shown_miles == 0) & self.is_kind(METERED)
        miles = np.where(lost, 0.0, self.miles)
        speed = 60.0 * self.miles / np.maximum(self.minutes, 1 / 60)
        fast = np.clip((speed - 6.0) / 10.0, 0.0, 1.0) * np.clip((45.0 - speed) / 25.0, 0.0, 1.0)
        noise = (np.where(first, 0.048, 0.026) + 0.02 * fast) * self.normal()
        noise -= self.chance(0.06 + 0.08 * fast) * self.rng.exponential(0.05 + 0.035 * fast)
        part = np.interp(speed, _MPH, _SLOW_PART) + noise - np.where(first, 0.03, 0.0)
        part = np.where(lost, 0.985, np.clip(part, -0.45, 0.97))
        units = np.floor(np.maximum(5.0 * miles + part * self.minutes, 0.0))
        most = np.floor(5.0 * np.where(lost, 0.0, self.shown_miles) + self.minutes)
        units = np.where(self.is_kind(METERED), np.minimum(units, most), units)
        units += (self.is_kind(ABORTED) & self.chance(np.where(first, 0.14, 0.01))) * np.floor(10.0 + 20.0 * self.u())
        units *= 1.0 + np.where(self.is_kind(SUBURB), 0.75 * self.u(), 0.0)  # double rate outside the city
        return self._rate("base") + self._rate("per_minute") * np.round(units)

    def _livery(self) -> Floats:
        fare = (11.6 + 2.0 * self.miles + 0.11 * self.minutes) * np.exp(0.07 * self.normal())
        return np.asarray(np.floor(np.maximum(fare, 15.2)) + self.pick(_row(".5 .2 .7 0"), _row(".52 .35 .1 .03")))

    def _agreed(self) -> Floats:
        agreed = self.habits.agreed
        level = 1.0 if agreed > 0.04 else 1.0 + 20.0 * (agreed - 0.024)
        guess = (6.5 + 3.5 * self.city.miles[self.start, self.end]) * np.exp(0.36 * self.heavy(3, -4.0, 5.0))
        guess = np.where(self.instant, 16.6 * np.exp(0.72 * self.normal() + 0.1 * self.heavy(3, -4.0, 5.0)), guess)
        guess *= level if self.service == "green" else 2.2
        fives, ones = np.maximum(np.round(guess / 5.0), 1.0) * 5.0, np.maximum(np.round(guess), 3.0)
        how = self.u()
        return np.where(how < 0.55, fives, np.where(how < 0.92, ones, np.round(guess, 2)))

    def _app(self) -> Floats:
        new, cheap = self.new_rules, self.chance(0.05)
        fare = np.where(new, 6.8, 5.25) + 2.32 * self.miles + 0.22 * self.minutes
        fare *= np.exp(0.105 * self.heavy(3, -4.0, 5.0) - 0.02) * np.where(cheap, 0.75, 1.0)
        least = np.where(cheap, 4.0, np.where(new, 10.3, 7.0) + 3.5 * self.u() ** 2)
        return np.clip(fare, least, np.where(new, 110.0, 90.0))

    def _congestion(self) -> Bools:
        touch = np.maximum(self.city.congested_start[self.start], self.city.congested_end[self.end])
        north, south = self.city.borough == "manhattan", self.city.borough == "brooklyn"
        through = (north[self.start] & south[self.end]) | (south[self.start] & north[self.end])
        chance = np.where(through, 0.9, touch) * _row("1 .8 1 .01 .35 .013 0 .03")[self.kind]
        chance *= np.where(self.is_kind(AGREED) & self.instant, 0.005, 1.0)
        return self.chance(chance) & (self.pickup >= CONGESTION_START)

    def _extras(self) -> Floats:
        """Peak, night and airport surcharges by the meter's own clock, which is minutes off."""
        hour = _hour(self.pickup + np.round(self.rng.laplace(0.0, 150.0, self.n)).astype("timedelta64[s]"))
        peak, night = ~self.weekend & (hour >= 16) & (hour < 20), (hour >= 20) | (hour < 6)
        extra = np.where(peak, self._rate("peak"), np.where(night, self._rate("night"), 0.0))
        airport = (self.end == LGA) | ((self.start == LGA) & (self.service == "yellow"))
        extra += 5.0 * (airport & self.new_rules & ~self.old_fare)
        extra = np.where(self.is_kind(METERED, ABORTED, NEWARK, SUBURB), extra, 0.0)
        extra = np.where(self.chance(0.02) & self.is_kind(METERED) & (self.vendor == 1), 0.0, extra)
        return extra + rate("jfk_peak", self.tariff) * (peak & self.is_kind(JFK_FLAT))

    def _tolls(self) -> Floats:
        toll, instant = self.habits.toll, self.instant
        usual = self.city.toll[self.start, self.end]
        kinds = [self.is_kind(kind) for kind in (JFK_FLAT, NEWARK, SUBURB, ABORTED, AGREED)]
        jfk, newark = np.where(instant, 0.07, 0.978), np.where(instant, 0.02, 0.9)
        agreed = usual * np.where(instant, 0.0, 0.8)
        chance = np.select(kinds, [jfk, newark, np.full(self.n, 0.15), 0.1 * usual, agreed], usual)
        bronx = self.city.borough == "bronx"
        henry_hudson = (bronx[self.start] ^ bronx[self.end]) & (chance < 0.9)
        amount = np.where(henry_hudson, 3.0, toll)
        others = np.array([3.0, 2.45, 2 * toll, 12.75, 14.75, 3.0 + toll])
        other = self.pick(others, _row("5 4 3 1 2 1"))
        hudson = np.where(self.chance(0.45), 14.75, 12.75)
        amount = np.where(self.is_kind(NEWARK), hudson, amount)
        amount = np.where(self.chance(0.02) & ~self.is_kind(JFK_FLAT), other, amount)
        return np.where(self.chance(chance), np.round(amount, 2), 0.0)

    def _payments(self) -> Ints:
        first, metered, aborted = self.vendor == 1, self.is_kind(METERED), self.is_kind(ABORTED)
        card = np.array([self.habits.card, 0.25, 1.0, 0.97, 0.52, 0.60, 0.51, 0.48])[self.kind]
        cases = [self.is_kind(AGREED) & self.instant, self.is_kind(JFK_FLAT) & self.instant, aborted]
        stopped = np.select([self.shown_miles == 0, self.fare <= self._rate("base")], [0.31, 0.06], 0.40)
        stopped *= np.where(first, 0.55, 1.0)
        card = np.select(cases, [np.full(self.n, 0.88), np.full(self.n, 0.12), stopped], card)
        card = np.where(metered & first, card - 0.03, card)
        free = np.where(first, 0.012, 0.0004) * metered + np.where(first, 0.22, 0.012) * aborted
        free += 0.008 * self.is_kind(AGREED)
        odd, paid = self.u(), np.where(self.chance(card), 1, 2)
        return np.where(odd < free, 3, np.where(odd < 1.22 * free, 4, paid))


def _hour(times: NDArray[np.datetime64]) -> Ints:
    return np.asarray((times - times.astype("datetime64[D]")).astype("timedelta64[h]").astype(np.int64))
