"""From a request's bytes to the message of one transaction: parse, check, name, stamp."""

import os
from collections.abc import Callable
from typing import Any

import orjson

from fraudlib.api.problems import Problem
from fraudlib.manifest import now
from fraudlib.wire.kafka import NotSentError, OutcomeUnknownError
from fraudlib.wire.plain import plain
from fraudlib.wire.records import ACCEPTED_AT, check, has_duplicate_key, reason

Name = Callable[[str], str]


def new_ids(count: int) -> list[str]:
    """Random UUIDs (version 4), made together."""
    raw = os.urandom(16 * count).hex()
    words = (raw[i : i + 32] for i in range(0, 32 * count, 32))
    return [f"{w[:8]}-{w[8:12]}-4{w[13:16]}-a{w[17:20]}-{w[20:]}" for w in words]


def made_up(count: int, name: Name | None) -> list[str]:
    """Identities for transactions that have none."""
    return new_ids(count) if name is None else list(map(name, new_ids(count)))


def parse_object(body: bytes) -> dict[str, Any]:
    """The one JSON object of a body.

    Raises
    ------
    Problem
        400 where it is no JSON or names a field twice, 422 where it is no object.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as err:
        raise Problem(400, f"expected a JSON object in UTF-8: {err.msg}") from err
    if not isinstance(value, dict):
        raise Problem(422, "expected a JSON object with the fields of a trip")
    if fault := repetition(body, value):
        raise Problem(400, fault)
    return value


def repetition(raw: bytes, value: dict[str, Any]) -> str | None:
    """What is wrong with the names of an object, None where each stands once."""
    try:
        return "expected each field once, found one twice" if has_duplicate_key(raw, value) else None
    except RecursionError:
        return "expected a flat object, found one nested too deeply"


def prepare(
    value: dict[str, Any], given_id: str | None, name: Name | None = None
) -> tuple[str, bytes, tuple[str, ...]]:
    """Identity, message and ignored fields of one transaction.

    Parameters
    ----------
    given_id : identity from the Idempotency-Key header.
    name : makes the identity that goes on of one that is given or made up.

    Raises
    ------
    Problem
        422 with one entry in `errors` for each field at fault.
    """
    trip, ignored = plain(value) or _checked(value)
    own_id = trip.get("transaction_id")
    if name is not None:
        own_id, given_id = (name(known) if known else None for known in (own_id, given_id))
    if own_id and given_id and own_id != given_id:
        raise Problem(422, "transaction_id and Idempotency-Key differ; send one of them")
    transaction_id = own_id or given_id or made_up(1, name)[0]
    return transaction_id, message_of(trip, transaction_id, now()), ignored


def _checked(value: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    checked = check([value])
    if faults := checked.faults.get(0):
        errors = [{"field": name, "problem": what} for name, what in faults.items()]
        raise Problem(422, reason(faults), errors=errors)
    return checked.objects[0], checked.ignored.get(0, ())


def message_of(trip: dict[str, Any], transaction_id: str, stamp: str) -> bytes:
    """Message of a checked trip."""
    trip["transaction_id"] = transaction_id
    trip[ACCEPTED_AT] = stamp
    return orjson.dumps(trip)


def outcome_problem(err: NotSentError | OutcomeUnknownError) -> Problem:
    """The answer for a message that the broker did not acknowledge."""
    if isinstance(err, NotSentError):
        return Problem(503, str(err), "not-sent", {"Retry-After": "1"})
    return Problem(504, f"{err}; asking again with the same transaction_id is safe", "outcome-unknown")
