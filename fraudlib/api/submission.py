"""The routes that take transactions: one, which may wait for its score, or many, each with its own result."""

import asyncio
import re
import time
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response

from fraudlib.api.access import CLIENT, charge
from fraudlib.api.bulk import Bulk, lines_of
from fraudlib.api.conventions import FAILURES, PROBLEM, body_of, json_response, require_media
from fraudlib.api.exchange import header
from fraudlib.api.gate import Endpoint
from fraudlib.api.intake import parse_object, prepare
from fraudlib.api.problems import Problem
from fraudlib.api.services import Services
from fraudlib.schema import TOPIC_TRANSACTIONS
from fraudlib.wire.records import ID_PATTERN, is_id
from fraudlib.wire.transaction import EXAMPLE, FULL_EXAMPLE, Accepted, Items, Scored, Transaction

ARRAY_BYTES: Final = 8_388_608

_wait = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,6}(?:\.\d{1,3})?)"?\s*(?:$|[,;])').search
_is_plain_name = re.compile(r"[A-Za-z0-9_ -]{1,64}", re.ASCII).fullmatch


def _wait_seconds(request: Request, most: float) -> float | None:
    """Seconds of `Prefer: wait=N`, at most `most`; None where nothing is preferred."""
    preference = header(request, b"prefer")
    found = preference and _wait(preference)
    return min(float(found[1]), most) if found else None


def _given_id(request: Request) -> str | None:
    key = header(request, b"idempotency-key")
    if key is None:
        return None
    key = key.strip().removeprefix('"').removesuffix('"')
    if not is_id(key):
        raise Problem(400, "expected an Idempotency-Key of 1 to 64 of the characters A-Z a-z 0-9 . _ : -")
    return key


def add_transaction(app: FastAPI, services: Services) -> Endpoint:
    """Add `POST /transaction`; its endpoint."""
    examples = {"three fields": {"value": EXAMPLE}, "as the TLC writes it": {"value": FULL_EXAMPLE}}

    @app.post(
        "/transaction",
        status_code=202,
        response_model=Accepted,
        responses={
            200: {"model": Scored, "description": "`Prefer: wait=N` was met: the score"},
            409: PROBLEM | {"description": "the first request with this Idempotency-Key is under way"},
            **FAILURES,
        },
        openapi_extra=body_of(Transaction.model_json_schema(), "application/json", examples=examples)
        | {
            "parameters": [
                {"in": "header", "name": "Prefer", "schema": {"type": "string"}, "description": "wait=N seconds"},
                {"in": "header", "name": "Idempotency-Key", "schema": {"type": "string", "pattern": ID_PATTERN}},
            ]
        },
    )
    async def post_transaction(request: Request) -> Response:
        """Take one transaction; 202 once the broker has it, with `Prefer: wait=N` 200 with its score.

        The same Idempotency-Key, which is also the transaction's identity, with the same body gets the same answer
        and sends nothing twice, as long as this process remembers it.
        """
        require_media(request, "application/json")
        wait, key = _wait_seconds(request, services.settings.max_wait_seconds), _given_id(request)
        body = await request.body()
        if key is None:
            return await _take(services, body, None, wait)
        if services.name is not None:
            key = services.name(key)
        owned = f"{request.scope.get(CLIENT, '')} {key}"
        return await services.answers.once(owned, body, lambda: _take(services, body, key, wait))

    return post_transaction


async def _take(services: Services, body: bytes, given_id: str | None, wait: float | None) -> Response:
    """Check and send one transaction, and wait for its score at most `wait` seconds; None does not wait."""
    services.backlog.require_room()
    try:
        transaction_id, message, ignored = prepare(parse_object(body), given_id, services.name)
    except Problem:
        services.metrics.items.labels("invalid").inc()
        raise
    services.require_broker()
    answer: dict[str, Any] = {"transaction_id": transaction_id, "status": "accepted"}
    if names := [name for name in ignored if _is_plain_name(name)][:10]:
        answer["ignored"] = names
    if wait is None:
        await _accept(services, transaction_id, message)
        return json_response(answer, 202)
    headers = {"Preference-Applied": f"wait={wait:g}"}
    end = time.monotonic() + wait
    future = await services.scores.expect(transaction_id)
    try:
        # However short the wait is, nothing is called accepted before the broker has it.
        await _accept(services, transaction_id, message)
        async with asyncio.timeout(max(0.0, end - time.monotonic())):
            score = orjson.loads(await future)
    except TimeoutError:
        return json_response(answer, 202, headers)
    finally:
        services.scores.forget(transaction_id, future)
    return json_response(score | answer | {"status": "scored"}, 200, headers)


async def _accept(services: Services, transaction_id: str, message: bytes) -> None:
    try:
        await services.send(TOPIC_TRANSACTIONS, transaction_id, message)
    except Problem as problem:
        services.metrics.items.labels("not_sent" if problem.status == 503 else "unknown").inc()
        raise
    services.metrics.items.labels("accepted").inc()


def add_transactions(app: FastAPI, services: Services) -> Endpoint:
    """Add `POST /transactions`; its endpoint."""
    one = Transaction.model_json_schema()
    body = body_of(one, "application/x-ndjson")
    body["requestBody"]["content"] |= {"application/json": {"schema": {"type": "array", "items": one, "minItems": 1}}}

    @app.post(
        "/transactions",
        status_code=202,
        response_model=Items,
        responses={207: {"model": Items, "description": "some were taken; see each result"}, **FAILURES},
        openapi_extra=body,
    )
    async def post_transactions(request: Request) -> Response:
        """Take many transactions, NDJSON or a JSON array; each gets its own result, a bad one sinks no other."""
        services.backlog.require_room()
        kind = require_media(request, "application/x-ndjson", "application/json")
        if "idempotency-key" in request.headers:
            raise Problem(400, "expected no Idempotency-Key here; give every transaction its own transaction_id")
        services.require_broker()
        bulk = Bulk(services.link.publisher, services.metrics, services.name)
        try:
            if kind == "application/json":
                await _take_array(request, bulk, services.settings.max_body_bytes)
            else:
                async for lines in lines_of(request.stream(), services.settings.max_body_bytes):
                    await bulk.take_lines(lines)
        except Problem as problem:
            await bulk.finish()
            charge(request.scope, bulk.accepted + bulk.failed)
            if bulk.accepted or bulk.failed:
                problem.members |= bulk.summary()
            raise
        await bulk.finish()
        charge(request.scope, bulk.accepted + bulk.failed)
        return _bulk_answer(bulk)

    return post_transactions


async def _take_array(request: Request, bulk: Bulk, longest: int) -> None:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > ARRAY_BYTES:
            raise Problem(413, f"expected an array of at most {ARRAY_BYTES} bytes; send more as NDJSON")
    await bulk.take_array(bytes(body), longest)


def _bulk_answer(bulk: Bulk) -> Response:
    if not (bulk.accepted or bulk.failed):
        raise Problem(400, "expected at least one transaction")
    summary = bulk.summary()
    if bulk.accepted:
        return json_response(summary, 207 if bulk.failed else 202)
    if "outcome-unknown" in bulk.statuses:
        raise Problem(504, "no transaction was acknowledged; see each result", **summary)
    if "not-sent" in bulk.statuses:
        raise Problem(503, "no transaction was sent; try again", "not-sent", {"Retry-After": "1"}, **summary)
    raise Problem(422, "no item can be a transaction; see each result", **summary)
