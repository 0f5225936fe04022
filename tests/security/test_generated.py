"""Requests made from the API's own description, right and wrong ones, against the real API.

`make fuzz` makes ten thousand of them, also in sequences that feed answers into the next request.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fraudlib import paths
from fraudlib.demo.stack import Stack

HERE = Path(__file__).parent
SHORT = ("--max-examples", "3", "--phases", "examples,coverage,fuzzing")
LONG = ("--max-examples", "1000")


def run(stack: Stack, *options: str) -> tuple[int, int, str]:
    """Exit code, number of generated requests, and what schemathesis says."""
    tool = Path(sys.executable).with_name("schemathesis")
    command = [tool, "--config-file", HERE / "schemathesis.toml", "run", f"{stack.url}/openapi.json"]
    # An endless stream is no answer that could be checked.
    command += ["--exclude-path", "/alerts", "--no-color", "--request-timeout", "20", *options]
    env = os.environ | {"SCHEMATHESIS_HOOKS": "tests.security.hooks", "PYTHONPATH": str(paths.root())}
    result = subprocess.run(command, cwd=stack.logs, env=env, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) generated", result.stdout)
    return result.returncode, int(found[1]) if found else 0, result.stdout + result.stderr


def test_generated_requests_are_answered_as_described(stack: Stack) -> None:
    """No failure of the API's own, every status and body as its description says, every error a problem."""
    code, count, said = run(stack, "--seed", "7", *SHORT)
    assert code == 0, said
    assert count > 200
    assert "Traceback" not in stack.log("api").read_text()


@pytest.mark.fuzz
def test_ten_thousand_generated_requests_are_answered_as_described(stack: Stack) -> None:
    """The same, for as long as it takes."""
    code, count, said = run(stack, *LONG)
    print(said)
    assert code == 0, said
    assert count >= 10_000
    assert "Traceback" not in stack.log("api").read_text()
