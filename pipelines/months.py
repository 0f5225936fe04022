"""Periods that roll forward: `train_months=latest:3` becomes the newest months of the data folder."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

from fraudlib import paths
from fraudlib.errors import DataError, ParameterError
from pipelines.parameters import Value

_LATEST: Final = re.compile(r"latest:([1-9]\d?)")
_FOLLOW: Final = ("valid_month", "test_month")
log = logging.getLogger(__name__)


def rolls(given: Mapping[str, str]) -> int:
    """How many months `train_months=latest:N` asks for; 0 where the periods are fixed.

    Raises
    ------
    ParameterError
        If it is no such thing, or another period is given beside it.
    """
    text = given.get("train_months", "")
    if not text.startswith("latest"):
        return 0
    match = _LATEST.fullmatch(text)
    if match is None:
        raise ParameterError(f"parameter train_months: expected latest:N with N from 1 to 99, found {text!r}")
    fixed = [name for name in _FOLLOW if name in given]
    if fixed:
        raise ParameterError(f"parameter {fixed[0]}: train_months={text} sets it too; leave it out")
    return int(match[1])


def roll(values: Mapping[str, Value], train_months: int, is_fetching: bool) -> tuple[dict[str, Value], dict[str, int]]:
    """Values with the periods that are due, and how many fetches had which outcome.

    A fetch that fails is logged and counted, and the months that are there are taken.

    Parameters
    ----------
    values : of every parameter. train_months : as of `rolls`; 0 leaves the periods alone. is_fetching : first ask for
        newer months.

    Raises
    ------
    DataError
        If the folder has too few months.
    """
    command = [sys.executable, "-m", "fraudlib.rolling", str(paths.resolve(str(values["data_dir"])))]
    command += ["--service", str(values["service"]), "--train", str(train_months)]
    done = subprocess.run([*command, *["--fetch"][: int(is_fetching)]], stdout=subprocess.PIPE, text=True)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as err:
        raise DataError(f"{values['data_dir']}: looking for months ended with exit code {done.returncode}") from err
    outcomes: dict[str, int] = {}
    for one in answer["fetches"]:
        outcomes[one["outcome"]] = outcomes.get(one["outcome"], 0) + 1
        log.info("month %s %s %s", one["month"], one["outcome"], one["problem"])
    if answer["problem"]:
        raise DataError(answer["problem"])
    if answer["periods"]:
        log.info("periods: %s", ", ".join(f"{name} {period}" for name, period in answer["periods"].items()))
    return {**values, **answer["periods"]}, outcomes
