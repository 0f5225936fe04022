"""A made-up city for the simulator: taxi zones on a hand-drawn map, how far apart they are and how often they pair up.

Positions are miles east and north of Times Square to the nearest tenth, drawn by hand from general knowledge of New
York; a zone without one lies in its area where a hash of its number puts it. Areas' shares of pickups and drop-offs are
rounded to what green cabs (2023) and yellow cabs (2019) show. Nothing here comes from the TLC's zone maps.
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
    Area("core", 0.5, 2.1, 0.6, 0.8, 7.0, 10.5, (24, 239, 151, 142, 143)),
    Area("core", 1.5, 0.9, 0.6, 0.2, 7.7, 18.0, (263, 262, 237, 141, 140)),
    Area("core", 0.1, -0.1, 0.8, 0.1, 6.4, 32.0, (161, 162, 230, 48, 170, 186, 163, 68, 164, 100, 229, 233, 50, 246)),
    Area(
        "core",
        0.0,
        -2.6,
        1.1,
        0.1,
        4.6,
        20.5,
        (79, 234, 107, 249, 113, 90, 114, 137, 144, 148, 231, 158, 125, 211, 224, 4, 232, 87, 261, 13, 88, 45, 209, 12),
    ),
    Area("manhattan", 2.9, 1.7, 0.7, 0.2, 0.5, 0.1, (202, 194, 103, 104, 105)),
    Area("queens", 3.1, -0.1, 1.0, 1.8, 3.4, 0.9, (223, 226, 146, 145, 193, 179, 8)),
    Area("queens", 5.3, -0.1, 0.0, 2.0, 1.9, 0.1, (129,)),
    Area("queens", 4.2, -0.9, 0.0, 2.1, 1.2, 0.1, (260,)),
    Area("queens", 5.6, -0.6, 1.0, 1.2, 3.6, 0.2, (83, 70, 173, 56, 157, 160, 207, 57)),
    Area("queens", 10.2, -4.0, 0.0, 2.0, 1.5, 0.1, (130,)),
    Area("queens", 7.9, -2.9, 1.0, 2.7, 5.0, 0.3, (134, 196, 28, 135, 198, 102, 121, 9, 131)),
    Area(
        "queens",
        9.9,
        -4.5,
        1.5,
        0.9,
        3.2,
        0.2,
        (197, 215, 205, 216, 180, 258, 10, 218, 124, 219, 139, 38, 203),
    ),
    Area("queens", 8.6, 0.2, 1.3, 1.4, 2.3, 0.2, (92, 93, 171, 253, 53, 252, 73, 192, 15, 16, 98)),
    Area("queens", 12.0, -1.0, 1.8, 0.1, 0.8, 0.05, (191, 122, 64, 101, 19, 175, 96)),
    Area("queens", 8.5, -10.5, 2.0, 0.05, 0.3, 0.03, (117, 201, 2, 27, 30, 86)),
    Area("brooklyn", 1.8, -2.9, 1.0, 1.4, 2.6, 1.1, (256, 255, 112, 80, 217, 36, 37, 34)),
    Area("brooklyn", 0.2, -5.2, 1.0, 3.5, 4.6, 1.2, (33, 66, 49, 25, 181, 40, 106, 189, 52, 54, 195, 190)),
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

_PLACES: Final = """
3:6.6,7.4 4:.4,-2.4 7:3.5,.3 8:3.3,1.5 9:10.4,-.1 10:10.5,-5.4 11:-1.2,-10.6 12:-1.6,-3.8 13:-1.6,-3.2 14:-2.2,-9.2
15:10.7,1.5 16:11.2,.5 17:1.8,-4.7 18:5.1,7.8 19:13.9,-1.7 20:5.1,6.7 21:.3,-10.1 22:-.7,-10 24:1.1,2.8 25:0,-5
26:-.4,-8.6 27:2.9,-14 28:8.6,-3.2 29:1.3,-12.4 30:8.6,-10.4 31:5.7,7.2 32:6.3,6.8 33:-.5,-4.3 34:.7,-3.9 35:3.8,-6.6
36:3.3,-3.9 37:3.1,-4.3 38:13.1,-4.4 39:4.4,-8.1 40:-.5,-5.3 41:1.9,3.3 42:2.3,4 43:1.4,2.3 45:-.6,-3.1 46:10.4,6.2
47:4.4,5.4 48:-.3,.3 49:1.1,-4.8 50:-.5,.6 51:8.2,8 52:-.5,-4.9 53:7.5,1.9 54:-.9,-4.9 55:-.2,-12.5 56:6.7,-1.1
57:6.6,-.8 58:8.5,6 59:4.7,5.7 60:5.1,5.4 61:2.4,-5.8 62:2,-6.4 63:5.7,-5.1 64:12.8,.3 65:0,-4.4 66:0,-3.9
67:-1.4,-9.7 68:-.8,-.7 69:3.4,4.8 70:6.1,.4 71:2.5,-8.1 72:3.2,-7.2 73:9.3,-.6 74:2.6,3.2 75:2,2.2 76:5.4,-6.3
77:5,-6.8 78:5,6.2 79:-.1,-2.1 80:2.5,-3 81:8.1,9 82:5.7,-1.3 83:5,-1.6 85:1.8,-7.7 86:11.9,-10.9 87:-1.2,-3.5
88:-1.4,-3.8 89:1.2,-7.9 90:-.6,-1.1 91:2.9,-9.2 92:8.2,.1 93:7.4,-.9 94:4.6,6.9 95:7.3,-2.5 96:6.7,-3.8 97:.5,-4.7
98:10.6,-1.4 100:-.2,-.3 101:14.1,-.9 102:5.8,-3.4 106:-.2,-5.9 107:0,-1.5 108:.4,-11.1 111:-.3,-7.3 112:1.9,-2
113:-.5,-1.8 114:-.7,-2.1 116:1.9,4.6 117:9.7,-11.7 119:3.1,5.5 120:2.9,6.1 121:9.4,-1.9 122:11.7,-3.1 123:1.3,-11
124:7.7,-6.9 125:-1.2,-2.2 126:5.2,3.8 127:3.4,7.5 128:3.1,7.8 129:5.3,-.1 130:10.2,-4 131:10.5,-2.7 133:.4,-8
134:8.1,-3.5 135:8.9,-2 136:4.4,7.6 137:.4,-1.3 139:12.3,-5.9 140:1.6,.5 141:1.3,.6 142:.2,.9 143:-.1,1.2 144:-.7,-2.6
145:1.9,-1 146:2.5,-.4 147:4.5,4 148:-.3,-2.8 149:1.8,-10.7 150:2.2,-12.4 151:1,2.9 152:1.6,4.2 153:3.9,8.2
154:3.4,-10.9 155:3.5,-10.2 157:4,-2.4 158:-1.2,-1.6 159:3.7,4.4 160:5.5,-2.8 161:.4,0 162:.7,-.1 163:.4,.5 164:0,-.7
165:1.6,-9.5 166:1.3,3.5 167:4.2,5 168:3.6,3.5 169:4.3,6.3 170:.4,-.8 171:9.2,.6 173:6.4,-.4 174:5.6,8.3 175:11.9,-.7
177:3.8,-5.6 178:.8,-9.9 179:3.1,.9 180:7.2,-5.6 181:.3,-6 182:6.7,5.5 183:8.1,6.3 184:9.4,7.4 185:6.8,6.8 186:-.4,-.7
188:1.9,-6.9 189:1,-5.6 190:.8,-6.6 191:12.7,-2.6 192:8.3,-1 193:2.5,.1 194:3.3,2.4 195:-1.3,-5.7 196:6.4,-2.2
197:8.3,-4.7 198:4.2,-3.6 199:5.3,2.3 200:4,9.5 201:7.3,-12.4 202:1.9,.3 203:12.9,-6.8 205:12.1,-4.6 207:4.6,.6
208:8.6,5 209:-1,-3.5 210:2.1,-11.8 211:-.9,-2.4 212:6.1,4.6 213:6.8,4.3 215:10.4,-4.8 216:9,-5.7 217:1.4,-3.9
218:11.7,-5.7 219:11.5,-6.5 220:3.9,8.5 222:5.5,-7.6 223:4.2,1.2 224:.4,-1.8 225:2.8,-5 226:3.2,-1.4 227:-1,-8.1
228:-1.4,-7.5 229:1.1,-.1 230:0,.1 231:-1.2,-2.8 232:-.2,-3.2 233:.8,-.6 234:-.3,-1.2 235:3.9,6.6 236:1.6,1.6 237:1,.7
238:.8,2.5 239:.4,1.8 240:5.1,9.6 241:4.7,8.7 242:6.4,6 243:2.7,6.8 244:2.3,5.8 246:-1,-.4 247:3.1,4.9 248:5.5,5.6
249:-1,-1.7 250:7.4,5.5 252:9,2.2 253:7.4,-.1 254:6.7,8.4 255:1.5,-2.8 256:1.3,-3.3 257:.3,-7 258:6.7,-4.7 259:6.2,9.6
260:4.2,-.9 261:-1.5,-3.3 262:2.1,1.3 263:1.8,1.4
"""
# Chance that a trip touching the zone pays the congestion surcharge: the line at 96th Street cuts these zones.
# Green cabs pick up on the free side of it, whatever the zone.
_FRINGE: Final = {43: 0.40, 238: 0.66, 236: 0.95, 263: 0.94, 24: 0.02, 151: 0.02}
_FRINGE_START: Final = {43: 0.05, 238: 0.05, 236: 0.15, 263: 0.20, 24: 0.0, 151: 0.0}
# Share of the zone pairs whose usual way is tolled, from one part of the city to another (green, 2023).
_TOLLED: Final = {
    ("manhattan", "queens"): 0.85,
    ("core", "queens"): 0.15,
    ("queens", "manhattan"): 0.60,
    ("queens", "core"): 0.03,
    ("queens", "bronx"): 0.95,
    ("bronx", "queens"): 0.97,
    ("bronx", "manhattan"): 0.005,
    ("manhattan", "brooklyn"): 0.24,
    ("brooklyn", "core"): 0.03,
    ("brooklyn", "manhattan"): 0.10,
    ("brooklyn", "bronx"): 0.80,
    ("bronx", "brooklyn"): 0.80,
    ("brooklyn", "staten"): 0.95,
    ("staten", "brooklyn"): 0.95,
}
_HEIGHTS, _RIVERDALE, _RANDALLS = (243, 244, 127, 128, 120, 153), (200, 220), 194
# Detour over the straight way and speed against the usual, where rivers are bridged far apart or streets are slow.
_DETOUR: Final = {
    ("manhattan", "queens"): 1.35,
    ("core", "queens"): 1.15,
    ("brooklyn", "core"): 1.30,
    ("manhattan", "brooklyn"): 1.25,
    ("queens", "bronx"): 1.35,
    ("brooklyn", "bronx"): 1.20,
}
# How seldom a trip crosses between parts, against its length: few hail a green cab for the other side of a river.
_SHYNESS: Final = {
    ("manhattan", "queens"): 0.22,
    ("core", "queens"): 0.22,
    ("manhattan", "brooklyn"): 0.22,
    ("core", "brooklyn"): 0.22,
    ("queens", "brooklyn"): 0.35,
    ("queens", "bronx"): 0.5,
    ("core", "bronx"): 0.5,
}
_PACE: Final = {
    ("manhattan", "manhattan"): 1.10,
    ("brooklyn", "brooklyn"): 0.86,
    ("queens", "queens"): 1.08,
    ("manhattan", "queens"): 1.40,
    ("manhattan", "bronx"): 1.08,
    ("brooklyn", "core"): 1.08,
    ("queens", "bronx"): 1.30,
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


def _blocks(east: Floats, north: Floats) -> tuple[Floats, Floats]:
    """Miles along Manhattan's avenues, which run 29 degrees east of north, and along its streets."""
    return np.abs(0.485 * east + 0.875 * north), np.abs(0.875 * east - 0.485 * north)


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
    congested_start, congested_end : (266,) chance that a trip from or to the zone pays the congestion surcharge.
    """

    def __init__(self, service: str) -> None:
        self.borough = np.full(SIZE, "none", dtype="<U9")
        self._pickups, self._dropoffs = np.zeros(SIZE), np.zeros(SIZE)
        x, y = np.full(SIZE, 6.0), np.full(SIZE, 0.0)
        for area in AREAS:  # a zone's place in its area, until it has one of its own
            zones = np.array(area.zones, dtype=np.int64)
            rank = 1.0 + np.arange(len(zones))  # busy zones come first; people hail in few places and go to many
            pickups, dropoffs = (
                (area.green_pickups, area.green_dropoffs) if service == "green" else (area.yellow, area.yellow)
            )
            self._pickups[zones] += pickups * rank**-1.8 / np.sum(rank**-1.8)
            self._dropoffs[zones] += dropoffs * rank**-0.9 / np.sum(rank**-0.9)
            self.borough[zones] = area.borough
            away, angle = area.radius * np.sqrt(hash_unit(zones, 1)), 2 * np.pi * hash_unit(zones, 2)
            x[zones], y[zones] = area.x + away * np.cos(angle), area.y + away * np.sin(angle)
        for place in _PLACES.split():
            name, where = place.split(":")
            x[int(name)], y[int(name)] = map(float, where.split(","))
        key = np.arange(SIZE)
        low, high = np.minimum.outer(key, key), np.maximum.outer(key, key)
        both, way = low * SIZE + high, key[:, None] * SIZE + key
        avenues, streets = _blocks(np.subtract.outer(x, x), np.subtract.outer(y, y))
        grid = np.isin(self.borough, ["manhattan", "core"])
        on_grid = np.logical_and.outer(grid, grid)
        blocks = np.where(on_grid, avenues + streets, 0.0)
        self.miles = self._road_miles(np.hypot(avenues, streets), blocks, both)
        spread = np.where(self.miles < 2.5, 0.09, 0.13)
        usual = np.interp(self.miles, _MPH_MILES, _MPH) * self._between(_PACE, 1.0)
        usual *= np.where(on_grid, 0.80 + 0.36 * avenues / np.maximum(avenues + streets, 0.1), 1.0)
        usual[:, LGA] *= np.where(self.borough == "queens", 1.35, 1.0)
        self.mph = usual * np.exp(spread * _bell(both, 5))
        self.toll = self._toll_chance(way)
        self.congested_end = np.where(self.borough == "core", 0.998, 0.0003)
        self.congested_start = self.congested_end.copy()
        self.congested_end[list(_FRINGE)] = list(_FRINGE.values())
        if service == "green":
            self.congested_start[list(_FRINGE_START)] = list(_FRINGE_START.values())
        shyness = self._between(_SHYNESS, 1.0)
        shyness[:, LGA] = 1.0
        if service == "yellow":
            shyness[:, JFK] = shyness[[LGA, JFK], :] = 1.0
        np.fill_diagonal(shyness, 0.55)
        self._liking = np.exp(0.9 * _bell(way, 9)) * shyness

    def _road_miles(self, crow: Floats, blocks: Floats, both: NDArray[np.int64]) -> Floats:
        miles = np.hypot(crow, 0.5) * (1.17 + 0.01 * np.minimum(crow, 16.0))
        miles = np.where(blocks > 0, 1.04 * np.hypot(blocks, 0.35), miles) * np.exp(0.05 * _bell(both, 3))
        detour = self._between(_DETOUR, 1.0)
        detour[:, JFK] = detour[JFK, :] = 1.0
        miles *= detour
        miles[:, LGA] += 1.0  # terminals lie behind their roads
        miles[LGA, :] += 1.0
        inside = 0.66 + 0.50 * hash_unit(np.diagonal(both), 4)
        np.fill_diagonal(miles, inside)
        return np.asarray(miles)

    def _between(self, values: dict[tuple[str, str], float], other: float) -> Floats:
        """Matrix (266, 266) of a value per two parts of the city, whichever way."""
        matrix = np.full((SIZE, SIZE), other)
        for (one, two), value in values.items():
            matrix[np.ix_(self.borough == one, self.borough == two)] = value
            matrix[np.ix_(self.borough == two, self.borough == one)] = value
        return matrix

    def _toll_chance(self, way: NDArray[np.int64]) -> Floats:
        share = np.zeros((SIZE, SIZE))
        for (start, end), value in _TOLLED.items():
            share[np.ix_(self.borough == start, self.borough == end)] = value
        share[np.isin(self.borough, ["manhattan", "core"]), LGA] = 1.0
        share[np.ix_(_HEIGHTS, _RIVERDALE)] = 1.0
        share[self.borough == "manhattan", _RANDALLS] = 1.0
        return np.where(hash_unit(way, 7) < share, 0.96, np.where(share > 0, 0.012, 0.0001))

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
        wish = self._liking * (np.exp(-self.miles / reach) + 0.025 * np.exp(-self.miles / (5.0 * reach)))
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
