"""The trips that are sent: the simulated sample with planted fraud, as JSON records under ids of our choice."""

from collections.abc import Iterator
from typing import Final

from fraudlib import paths, trips
from fraudlib.demo import replay

SAMPLE: Final = "green_tripdata_2023-05.parquet"
FRAUD_SHARE: Final = 0.0125  # share of planted frauds, as in the design's figures
SEED: Final = 7


class Records:
    """Full TLC records of the sample, encoded once; each use differs in the id only.

    Parameters
    ----------
    fraud : share of planted frauds. accepted_at : whether they carry the API's stamp, as what comes from it does.
    """

    def __init__(self, fraud: float = FRAUD_SHARE, accepted_at: bool = True) -> None:
        table = trips.read(paths.root() / "data" / "sample" / SAMPLE)
        columns, _ = replay.plant(trips.to_columns(table), fraud, SEED)
        start = len(b'{"transaction_id":""')
        stamp = b',"accepted_at":"2023-06-01T00:00:00.000Z"}' if accepted_at else b"}"
        encoded = replay.encode(columns, [""] * table.num_rows)
        self._rest = [record[start:-1] + stamp for record in encoded]

    def __call__(self, count: int, prefix: str) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of `count` records, ids PREFIX0, PREFIX1, and so on."""
        rest, size = self._rest, len(self._rest)
        for number in range(count):
            key = f"{prefix}{number}".encode()
            yield key, b'{"transaction_id":"%b"%b' % (key, rest[number % size])
