"""A steady flow of the sample's trips with planted fraud, for the demo."""

import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Final

from fraudlib import trips
from fraudlib.demo import replay
from fraudlib.demo.senders import HttpSender
from fraudlib.demo.tally import Tally
from fraudlib.errors import ServiceError

WAVE_TRIPS: Final = 1000


def sample_waves(folder: Path, share: float, seed: int, prefix: str) -> Iterator[replay.Wave]:
    """The sample's trips again and again, each time with other frauds planted and new ids."""
    honest = trips.to_columns(trips.read(folder))
    number = itertools.count()
    for round_ in itertools.count():
        columns, kinds = replay.plant(honest, share, seed + round_)
        # In small pieces, or encoding would hold up the reading of the scores.
        for start in range(0, len(kinds), WAVE_TRIPS):
            piece = {name: column[start : start + WAVE_TRIPS] for name, column in columns.items()}
            part = kinds[start : start + WAVE_TRIPS]
            ids = [f"{prefix}{next(number)}" for _ in part]
            yield replay.Wave(ids, replay.encode(piece, ids), part)


def first(waves: Iterator[replay.Wave], most: int) -> Iterator[replay.Wave]:
    """The waves up to so many trips, the last one cut short."""
    for wave in waves:
        yield wave.part(0, most)
        most -= len(wave)
        if most <= 0:
            return


class Traffic(Thread):
    """Sends waves at a steady rate to their end or until told to stop: a trip of each step alone, the rest in a batch.

    Parameters
    ----------
    waves : what is sent. url : of the API. rate : trips a second. tally : is told of each. headers : of each request.
    """

    def __init__(
        self,
        waves: Iterator[replay.Wave],
        url: str,
        rate: float,
        tally: Tally,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name="traffic", daemon=True)
        self.stopping = Event()
        self.error: Exception | None = None
        self._waves, self._url, self._rate, self._tally = waves, url, rate, tally
        self._headers = headers

    def run(self) -> None:
        """Body of the thread; what stops it early is kept in `error`."""
        try:
            with HttpSender(self._url, self._headers, stop=self.stopping) as sender:
                pace = replay.Pace(self._rate)
                for wave in self._waves:
                    for start in range(0, len(wave), pace.step):
                        part = wave.part(start, start + pace.step)
                        if pace.wait(len(part), self.stopping):
                            return
                        self._send(sender, part.part(0, 1))
                        if len(part) > 1:
                            self._send(sender, part.part(1, len(part)))
        except Exception as err:
            if not self.stopping.is_set():
                self.error = err

    def _send(self, sender: HttpSender, part: replay.Wave) -> None:
        self._tally.sending(zip(part.ids, (kind or None for kind in part.kinds), strict=True), time.perf_counter())
        answer = sender.send(part.ids, part.records)
        if not answer.are_ids_kept:
            raise ServiceError(
                f"{self._url} replaces ids by keyed hashes (FRAUDLIB_ID_HASH_KEY_FILE), so that these trips cannot be "
                "told from others' by their ids; stream to a stack that was started without it"
            )
        self._tally.answered((part.ids[i] for i in answer.accepted), (part.ids[i] for i in answer.refused))
