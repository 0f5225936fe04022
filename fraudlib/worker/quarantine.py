"""Scores batches so that a record which kills the process is found, and put aside after three deaths.

A death can also come from outside, so a batch on which a worker died is first tried in pieces, at little cost. The
piece that it dies on is tried record by record. A record that was in flight at three deaths, alone at the last one, is
tried once more in a process of its own: only if that one dies too does the record go to the dead letters.
"""

import contextlib
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fraudlib.wire.records import Decoded
from fraudlib.worker.journal import Journal, Ranges, Suspect
from fraudlib.worker.outputs import Message, Outputs, Record, Scorer, dead_letter, decode_ahead, process, write
from fraudlib.worker.scoring_process import Begun, ScoringProcess

log = logging.getLogger(__name__)

PIECE: Final = 64  # records; about as costly to score as ten one by one
DEATHS: Final = 3
TRIAL_SECONDS: Final = 30.0
_SURVIVED: Final = 33  # no process ends so by accident, or because it was told to

LoadScorer = Callable[[Path], Scorer]


@dataclass(frozen=True)
class Ahead:
    """Work on a batch that was begun before its turn.

    Attributes
    ----------
    decoded : its first piece. judged : all of it, by the scoring process. bundle_id : of the bundle that judges.
    """

    decoded: "Future[Decoded] | None" = None
    judged: Begun | None = None
    bundle_id: str = ""


class Quarantine:
    """Scores batches under the eyes of a journal.

    Parameters
    ----------
    journal : of the worker's partitions.
    load_scorer : makes a scorer of a bundle's folder; must be picklable for a record to be tried in its own process.
    artifacts : folder of the bundles.
    helper : takes large batches while nothing is under suspicion; None where there is none.

    Attributes
    ----------
    is_trying : whether a record is on trial, which takes up to TRIAL_SECONDS.
    """

    def __init__(
        self, journal: Journal, load_scorer: LoadScorer, artifacts: Path, helper: ScoringProcess | None = None
    ) -> None:
        self._journal, self._load, self._artifacts = journal, load_scorer, artifacts
        self._helper = helper
        self._acquitted: tuple[int, int] | None = None
        self.is_trying = False

    @property
    def is_calm(self) -> bool:
        """Whether no record is under suspicion: then a batch takes no longer than its scoring."""
        return not self._journal.suspects and not self._journal.convicted

    def begin(self, messages: Sequence[Message], ranges: Ranges, scorer: Scorer) -> Ahead | None:
        """Begin with a batch while another is being scored; None while any record is under suspicion.

        Parameters
        ----------
        ranges : of the messages.
        scorer : likely to be theirs.
        """
        if not self.is_calm:
            return None
        if begun := self._helper and self._helper.begin(messages, scorer):
            return Ahead(judged=begun, bundle_id=scorer.bundle_id)
        return Ahead(decode_ahead(messages, self._journal.under_way(ranges)))

    def process(
        self, messages: Sequence[Message], ranges: Ranges, scorer: Scorer, ahead: Ahead | None = None
    ) -> Outputs:
        """Outputs of a batch, as `outputs.process` makes them.

        Parameters
        ----------
        ranges : of the messages.
        ahead : from `begin`, where that was asked for.

        Raises
        ------
        ModelError
            If the model cannot score anything.
        """
        journal = self._journal
        if self.is_calm:
            with journal.under_way(ranges):
                found = self._helped(messages, scorer, ahead)
                return found or _outputs(messages, scorer, ahead.decoded if ahead else None)
        journal.clear_before(ranges)
        out = Outputs()
        for piece, suspect in pieces(messages, journal.suspects, journal.convicted):
            if suspect and len(suspect) == 1:
                self._judge(piece[0], suspect, scorer.bundle_id)
            if piece[0].offset in journal.convicted.get(piece[0].partition, ()):
                dead_letter(out, piece[0], "CrashLoop", f"the process died {DEATHS} times while it was scored")
                continue
            with journal.under_way(_ranges(piece)):
                _join(out, _outputs(piece, scorer))
        return out

    def _helped(self, messages: Sequence[Message], scorer: Scorer, ahead: Ahead | None) -> Outputs | None:
        """Outputs with the scoring process's help, None where it gives none."""
        begun = ahead.judged if ahead and ahead.bundle_id == scorer.bundle_id else None
        if begun is None and self._helper and not (ahead and ahead.decoded):
            begun = self._helper.begin(messages, scorer)
        judged = begun.result() if begun else None
        try:
            return write(messages, judged, scorer) if judged else None
        except MemoryError:
            return None

    def _judge(self, message: Message, suspect: Suspect, bundle_id: str) -> None:
        """Convict a record that was in flight at enough deaths, alone at the last, and does not survive its trial."""
        place = (message.partition, message.offset)
        # One that survived its trial and was in flight at yet another death gets no second one.
        if suspect.crashes < DEATHS or (suspect.crashes == DEATHS and place == self._acquitted):
            return
        is_guilty = suspect.crashes > DEATHS
        if not is_guilty:
            self.is_trying = True
            is_guilty = kills(self._load, self._artifacts / bundle_id, message)
            self.is_trying = False
        log.error(
            "record kills the process" if is_guilty else "record survived its trial",
            extra={"partition": message.partition, "offset": message.offset, "crashes": suspect.crashes},
        )
        if is_guilty:
            self._journal.convict(message.partition, message.offset)
        else:
            self._acquitted = place


def pieces(
    messages: Sequence[Message], suspects: dict[int, Suspect], convicted: dict[int, list[int]]
) -> Iterator[tuple[list[Message], Suspect | None]]:
    """Cut a batch, in its order: what is under suspicion in small pieces or alone, the rest as it comes."""
    piece: list[Message] = []
    under: Suspect | None = None
    for message in messages:
        suspect = suspects.get(message.partition)
        if suspect and not suspect.start <= message.offset < suspect.stop:
            suspect = None
        if message.offset in convicted.get(message.partition, ()):
            suspect = Suspect(message.offset, message.offset + 1, 0)
        is_full = suspect is not None and len(piece) >= (1 if len(suspect) <= PIECE else PIECE)
        if piece and (suspect is not under or is_full):
            yield piece, under
            piece = []
        piece.append(message)
        under = suspect
    if piece:
        yield piece, under


def _ranges(messages: Sequence[Message]) -> dict[int, tuple[int, int]]:
    ranges: dict[int, tuple[int, int]] = {}
    for message in messages:
        start, _ = ranges.get(message.partition, (message.offset, 0))
        ranges[message.partition] = (start, message.offset + 1)
    return ranges


def _outputs(messages: Sequence[Message], scorer: Scorer, ahead: "Future[Decoded] | None" = None) -> Outputs:
    """Outputs of the messages, in halves where memory is too small to decode or encode them at once."""
    try:
        return process(messages, scorer, ahead)
    except MemoryError:
        if len(messages) == 1:
            raise
        log.warning("out of memory; the batch is halved", extra={"rows": len(messages)})
    middle = len(messages) // 2
    out = _outputs(messages[:middle], scorer)
    _join(out, _outputs(messages[middle:], scorer))
    return out


def _join(out: Outputs, more: Outputs) -> None:
    for rows, added in ((out.scores, more.scores), (out.alerts, more.alerts), (out.dead_letters, more.dead_letters)):
        for partition, new in added.items():
            rows.setdefault(partition, []).extend(new)
    out.scored += more.scored
    out.anomaly_scores += more.anomaly_scores
    out.alert_fields += more.alert_fields
    out.causes += more.causes


def kills(load_scorer: LoadScorer, folder: Path, message: Message) -> bool:
    """Whether scoring the message ends a process of its own, or hangs it."""
    record = Record(message.topic, message.partition, message.offset, message.key, message.value)
    trial = multiprocessing.get_context("spawn").Process(
        target=_try, args=(load_scorer, folder, record), name="trial", daemon=True
    )
    try:
        trial.start()
    except Exception as err:
        log.warning("no trial is possible; the deaths decide", extra={"error": repr(err)})
        return True
    trial.join(TRIAL_SECONDS)
    if trial.is_alive():
        trial.kill()
        trial.join()
    return trial.exitcode != _SURVIVED


def _try(load_scorer: LoadScorer, folder: Path, record: Record) -> None:
    # An exception is no death: whatever it is, the worker would have caught it.
    with contextlib.suppress(Exception):
        process([record], load_scorer(folder))
    raise SystemExit(_SURVIVED)
