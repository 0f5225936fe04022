"""Reasons of a score in words."""

from collections.abc import Mapping
from typing import Any

from fraudlib.schema import BY_NAME


def _number(field: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return str(value)
    is_code = field in BY_NAME and BY_NAME[field].kind == "integer"
    return f"{value:.0f}" if is_code else f"{value:,.2f}"


def in_words(reason: Mapping[str, Any]) -> str:
    """One reason as people read it.

    Parameters
    ----------
    reason : mapping
        `field`, and `observed` and `expected` in USD, miles, minutes or codes; either may be None.

    Examples
    --------
    >>> in_words({"field": "fare_amount", "observed": 48.2, "expected": 14.1, "surprise": 6.3})
    'fare_amount 48.20, expected 14.10'
    >>> in_words({"field": "rate_code_id", "observed": 5.0, "expected": 1.0, "surprise": 2.0})
    'rate_code_id 5, expected 1'
    >>> in_words({"field": "pickup_datetime", "observed": 1.4, "expected": 10.0, "surprise": 3.3})
    'repeats a trip of 1.4 minutes before'
    """
    if reason["field"] == "pickup_datetime":
        return f"repeats a trip of {reason['observed']:.1f} minutes before"
    field, observed, expected = reason["field"], reason.get("observed"), reason.get("expected")
    seen = f"{field} missing" if observed is None else f"{field} {_number(field, observed)}"
    return seen if expected is None else f"{seen}, expected {_number(field, expected)}"
