"""A made-up city for the simulator: taxi zones on a hand-drawn map, how far apart they are and how often they pair up.

Positions are rough miles east and north of Times Square, drawn from general knowledge of New York; inside an area each
zone's place comes from a hash of its number. Shares of pickups and drop-offs are rounded to what green cabs (2023) and
yellow cabs (2019) show. No coordinates and no trips of the TLC are stored here.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fraudlib.tariff import EWR, JFK, LGA

Floats = NDArray[np.float64]
Zones = NDArray[np.int64]

UNKNOWN, OUTSIDE = 264, 265  # taxi zones of places without a position
SIZE: Final = OUTSIDE + 1  # arrays by zone; index 0 is unused


@dataclass(frozen=True)
class Area:
    """Neighbouring zones: centre and radius in miles, share of pickups and drop-offs in % by service."""

    borough: str
    x: float
    y: float
    radius: float
    green_pickups: float
    green_dropoffs: float
    yellow: float
    zones: tuple[int, ...]


AREAS: Final = (
    Area("manhattan", 2.5, 3.05, 0.0, 20.7, 5.4, 0.5, (74,)),
    Area("manhattan", 2.1, 2.35, 0.0, 14.3, 5.4, 1.2, (75,)),
    Area("manhattan", 1.2, 3.5, 0.0, 6.1, 3.6, 0.7, (166,)),
    Area("manhattan", 1.8, 3.25, 0.0, 6.1, 4.1, 0.6, (41,)),
    Area("manhattan", 2.3, 4.1, 0.0, 2.6, 3.7, 0.3, (42,)),
    Area("manhattan", 2.3, 5.7, 0.0, 2.7, 1.4, 0.2, (244,)),
    Area("core", 1.0, 1.65, 0.0, 4.4, 1.8, 1.4, (43,)),
    Area("core", 1.5, 1.5, 0.0, 0.7, 4.2, 4.2, (236,)),
    Area("core", 0.6, 2.35, 0.0, 0.3, 3.6, 2.0, (238,)),
    Area("queens", 7.3, -2.55, 0.0, 5.9, 2.4, 0.1, (95,)),
    Area("queens", 5.6, -1.4, 0.0, 4.3, 1.4, 0.1, (82,)),
    Area("queens", 3.45, 0.2, 0.0, 2.4, 1.5, 0.4, (7,)),
    Area("brooklyn", 0.5, -4.7, 0.0, 3.2, 1.2, 0.2, (97,)),
    Area("brooklyn", -0.1, -4.5, 0.0, 2.5, 1.2, 0.3, (65,)),
    Area("manhattan", 1.7, 4.3, 0.6, 1.6, 3.2, 0.5, (116, 152)),
    Area("manhattan", 2.8, 7.0, 0.8, 0.7, 1.9, 0.3, (243, 120, 127, 128, 153)),
    Area("core", 0.5, 2.1, 0.6, 0.6, 6.5, 10.5, (151, 239, 24, 142, 143)),
    Area("core", 1.5, 0.9, 0.6, 0.6, 7.7, 18.0, (263, 262, 237, 141, 140)),
    Area("core", 0.1, -0.1, 0.8, 0.3, 6.4, 32.0, (161, 162, 230, 48, 170, 186, 163, 68, 164, 100, 229, 233, 50, 246)),
    Area(
        "core",
        0.0,
        -2.6,
        1.1,
        0.3,
        4.6,
        20.5,
        (79, 234, 107, 249, 113, 90, 114, 137, 144, 148, 231, 158, 125, 211, 224, 4, 232, 87, 261, 13, 88, 45, 209, 12),
    ),
    Area("manhattan", 2.9, 1.7, 0.7, 0.2, 0.5, 0.1, (202, 194, 103, 104, 105)),
    Area("queens", 3.1, -0.1, 1.0, 2.6, 4.2, 0.9, (223, 226, 179, 146, 145, 193, 8)),
    Area("queens", 5.6, -0.6, 1.0, 5.2, 6.8, 0.4, (129, 260, 173, 70, 56, 83, 157, 57, 160, 207)),
    Area("queens", 7.9, -2.9, 1.0, 3.5, 6.0, 0.3, (134, 196, 28, 135, 198, 102, 121, 9, 131)),
    Area(
        "queens",
        9.9,
        -4.5,
        1.5,
        3.0,
        4.2,
        0.3,
        (130, 215, 216, 205, 197, 10, 219, 218, 203, 124, 38, 139, 180, 258),
    ),
    Area("queens", 8.6, 0.2, 1.3, 1.4, 2.3, 0.2, (92, 93, 171, 253, 53, 252, 73, 192, 15, 16, 98)),
    Area("queens", 12.0, -1.0, 1.8, 0.1, 0.8, 0.05, (191, 122, 64, 101, 19, 175, 96)),
    Area("queens", 8.5, -10.5, 2.0, 0.05, 0.3, 0.03, (117, 201, 2, 27, 30, 86)),
    Area("brooklyn", 1.8, -2.9, 1.0, 1.9, 3.4, 1.1, (255, 256, 112, 80, 217, 36, 37, 34)),
    Area("brooklyn", 0.2, -5.2, 1.0, 4.3, 5.2, 1.2, (181, 33, 66, 25, 49, 40, 106, 52, 54, 189, 190, 195)),
    Area("brooklyn", 2.6, -6.0, 1.4, 1.5, 3.6, 0.4, (61, 17, 225, 188, 62, 177, 35, 76, 63, 77, 72, 85)),
    Area("brooklyn", 1.5, -8.5, 1.6, 0.7, 1.5, 0.2, (89, 133, 91, 39, 71, 26, 155, 165, 178, 222, 149, 150, 154)),
    Area("brooklyn", -0.6, -10.5, 2.0, 0.5, 0.9, 0.2, (14, 227, 228, 11, 22, 55, 67, 123, 210, 108, 111, 257, 21, 29)),
    Area("bronx", 3.7, 4.8, 1.0, 0.8, 2.4, 0.2, (168, 69, 159, 247, 119, 147, 167, 235, 47, 78)),
    Area("bronx", 4.1, 7.8, 1.7, 0.35, 1.3, 0.1, (220, 200, 136, 182, 174, 169, 18, 94, 240, 241, 242, 254, 259, 20)),
    Area("bronx", 6.3, 7.0, 2.0, 0.15, 0.7, 0.1, (213, 212, 185, 248, 250, 208, 3, 31, 32, 46, 51, 58, 59, 60, 81)),
    Area("bronx", 5.5, 6.5, 1.5, 0.05, 0.2, 0.05, (126, 183, 184, 199)),
    Area(
        "staten",
        -7.0,
        -13.0,
        3.5,
        0.01,
        0.05,
        0.02,
        (221, 206, 23, 5, 6, 44, 84, 99, 109, 110, 115, 118, 156, 172, 176, 187, 204, 214, 245, 251),
    ),
    Area("queens", 10.7, -7.8, 0.0, 0.02, 0.45, 2.3, (JFK,)),
    Area("queens", 5.8, 1.1, 0.0, 0.02, 3.0, 2.6, (LGA,)),
    Area("jersey", -9.9, -4.7, 0.0, 0.001, 0.02, 0.2, (EWR,)),
    Area("far", 12.5, 1.5, 0.0, 0.005, 0.35, 0.2, (OUTSIDE,)),
)

# Chance that a trip touching the zone pays the congestion surcharge: the line at 96th Street cuts these zones.
_FRINGE: Final = {43: 0.55, 238: 0.64, 236: 0.94, 263: 0.93, 74: 0.01, 75: 0.03, 166: 0.02, 151: 0.97}
# Share of the zone pairs whose usual way is tolled, from one part of the city to another (green, 2023).
_TOLLED: Final = {
    ("manhattan", "queens"): 0.90,
    ("core", "queens"): 0.70,
    ("queens", "manhattan"): 0.35,
    ("queens", "core"): 0.25,
    ("queens", "bronx"): 0.93,
    ("bronx", "queens"): 0.98,
    ("bronx", "manhattan"): 0.08,
    ("manhattan", "bronx"): 0.05,
    ("brooklyn", "bronx"): 0.60,
    ("bronx", "brooklyn"): 0.60,
    ("manhattan", "brooklyn"): 0.24,
    ("brooklyn", "core"): 0.06,
    ("brooklyn", "manhattan"): 0.10,
    ("brooklyn", "staten"): 0.95,
    ("staten", "brooklyn"): 0.95,
}

# Average speed of a pair by its usual distance, on an average hour (green, 2023-01..04, zone pairs with 30 trips).
_MPH_MILES: Final = np.array([0.4, 0.8, 1.25, 2.0, 3.2, 5.0, 7.5, 10.0, 14.0, 25.0])
_MPH: Final = np.array([8.3, 9.1, 9.3, 10.2, 11.4, 14.0, 17.5, 19.5, 22.0, 27.0])


def hash_unit(key: NDArray[np.int64], salt: int) -> Floats:
    """Uniform numbers in [0, 1) that depend on nothing but `key` and `salt` (splitmix64)."""
    with np.errstate(over="ignore"):
        z = key.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt) * np.uint64(0xD1B54A32D192ED03)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _bell(key: NDArray[np.int64], salt: int) -> Floats:
    """Roughly normal numbers from a hash: sum of four uniforms, mean 0, standard deviation 1."""
    total = np.sum([hash_unit(key, salt + 100 * part) for part in range(4)], axis=0)
    return np.asarray((total - 2.0) * np.sqrt(3.0))


class City:
    """Distances, speeds, tolls and popularity of zone pairs.

    Parameters
    ----------
    service : "green" or "yellow"; decides which zones are busy.

    Attributes
    ----------
    borough : array (266,) of the part of the city by zone.
    miles, mph : (266, 266) usual road distance and average speed from zone to zone.
    toll : (266, 266) chance of a toll.
    congested : (266,) chance that a trip touching the zone pays the congestion surcharge.
    """

    def __init__(self, service: str) -> None:
        self.borough = np.full(SIZE, "none", dtype="<U9")
        self._pickups, self._dropoffs = np.zeros(SIZE), np.zeros(SIZE)
        x, y = np.full(SIZE, 6.0), np.full(SIZE, 0.0)
        for area in AREAS:
            zones = np.array(area.zones, dtype=np.int64)
            rank = (1.0 + np.arange(len(zones))) ** -1.3
            share = rank / rank.sum()
            pickups, dropoffs = (
                (area.green_pickups, area.green_dropoffs) if service == "green" else (area.yellow, area.yellow)
            )
            self._pickups[zones] += pickups * share
            self._dropoffs[zones] += dropoffs * (0.5 * share + 0.5 / len(zones))
            self.borough[zones] = area.borough
            away, angle = area.radius * np.sqrt(hash_unit(zones, 1)), 2 * np.pi * hash_unit(zones, 2)
            x[zones], y[zones] = area.x + away * np.cos(angle), area.y + away * np.sin(angle)
        key = np.arange(SIZE)
        low, high = np.minimum.outer(key, key), np.maximum.outer(key, key)
        both, way = low * SIZE + high, key[:, None] * SIZE + key
        self.miles = self._road_miles(x, y, both)
        spread = np.where(self.miles < 2.5, 0.13, 0.21)
        usual = np.interp(self.miles, _MPH_MILES, _MPH)
        self.mph = usual * np.exp(spread * _bell(both, 5))
        self.toll = self._toll_chance(way)
        self.congested = np.where(self.borough == "core", 0.985, 0.002)
        for zone, chance in _FRINGE.items():
            self.congested[zone] = chance
        # Few hail a green cab for the other side of the East River.
        west, east = np.isin(self.borough, ["manhattan", "core"]), np.isin(self.borough, ["queens", "brooklyn"])
        east &= np.arange(SIZE) != LGA
        river = np.logical_or(np.outer(west, east), np.outer(east, west))
        self._liking = np.exp(1.35 * _bell(way, 9)) * np.where(river, 0.22, 1.0)

    def _road_miles(self, x: Floats, y: Floats, both: NDArray[np.int64]) -> Floats:
        crow = np.hypot(np.subtract.outer(x, x), np.subtract.outer(y, y))
        miles = np.hypot(crow, 0.55) * (1.17 + 0.01 * np.minimum(crow, 16.0)) * np.exp(0.10 * _bell(both, 3))
        inside = 0.66 + 0.50 * hash_unit(np.diagonal(both), 4)
        np.fill_diagonal(miles, inside)
        return np.asarray(miles)

    def _toll_chance(self, way: NDArray[np.int64]) -> Floats:
        share = np.zeros((SIZE, SIZE))
        for (start, end), value in _TOLLED.items():
            share[np.ix_(self.borough == start, self.borough == end)] = value
        north = np.isin(self.borough, ["manhattan", "core"])
        share[north & (np.arange(SIZE) != 166), LGA] = 0.97
        return np.where(hash_unit(way, 7) < share, 0.95, np.where(share > 0, 0.012, 0.0001))

    def pairs(self, evenness: float, reach: float) -> Floats:
        """Probabilities (266, 266) of pickup and drop-off zone.

        Parameters
        ----------
        evenness : 0 keeps the service's busy zones, 1 makes every zone as likely as any other.
        reach : miles over which the wish to go somewhere falls off.
        """
        known = (self.borough != "none").astype(np.float64)
        start = known * self._pickups ** (1.0 - evenness)
        target = known * self._dropoffs ** (1.0 - evenness)
        start, target = start / start.sum(), target / target.sum()
        wish = self._liking * (np.exp(-self.miles / reach) + 0.03 * np.exp(-self.miles / (5.0 * reach)))
        pull = target.copy()
        for _ in range(6):  # so that drop-offs come out as the areas say, not only where the pickups are
            flow = wish * pull
            flow *= (start / np.maximum(flow.sum(axis=1), 1e-300))[:, None]
            pull *= (np.maximum(target, 1e-12) / np.maximum(flow.sum(axis=0), 1e-300)) ** 0.7
        return np.asarray(flow / flow.sum())


def draw_pairs(chances: Floats, u: Floats) -> tuple[Zones, Zones]:
    """Pickup and drop-off zones (n,) for uniform numbers `u` (n,) under `chances` (266, 266)."""
    edges = np.cumsum(chances.ravel())
    cell = np.searchsorted(edges, u * edges[-1], side="right")
    return cell // SIZE, cell % SIZE
