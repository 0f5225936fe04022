"""What schemathesis checks of every answer beyond its own checks."""

import schemathesis
from schemathesis import Case, CheckContext, Response

# Rules that a JSON schema cannot say: a field stands once, under whatever name; a time is one of the calendar.
BEYOND = ("given twice under two spellings", "expected an ISO 8601 time")
KEYS = ("Idempotency-Key differ", "Idempotency-Key came with another body")
FOLLOWS = "missing, and no "


@schemathesis.check
def errors_are_problems(ctx: CheckContext, response: Response, case: Case) -> None:
    """RFC 9457 for every error."""
    if response.status_code >= 400 and case.method.upper() != "HEAD":
        assert response.headers["content-type"] == ["application/problem+json"], "an error is no problem"
        assert {"type", "title", "status", "detail"} <= response.json().keys(), "a problem lacks a member"
        assert response.json()["status"] == response.status_code, "a problem states another status"


@schemathesis.check
def refusals_of_what_fits_have_a_reason(ctx: CheckContext, response: Response, case: Case) -> None:
    """What fits the schema is refused only by a rule that a schema cannot say."""
    if response.status_code != 422 or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    answer = response.json()
    if any(rule in answer["detail"] for rule in KEYS):
        return
    sentences = [error["problem"] for error in answer.get("errors", ())]
    sentences += [part for item in answer.get("results", ()) for part in item.get("error", "").split("; ")]
    assert sentences, "a refusal without a reason"
    unlike = [text for text in sentences if not any(rule in text for rule in (*BEYOND, FOLLOWS))]
    assert not unlike, f"refused although it fits the schema: {unlike}"
    assert any(rule in text for text in sentences for rule in BEYOND), "refused for a duration that is there"
