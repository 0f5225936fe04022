"""Looks the images' packages up among known vulnerabilities: `python docker/audit.py [OPTION OF pip-audit]...`.

Exit code 0 only where every package was looked up and audit-accepted.txt explains whatever was found.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PARTS = ("api", "worker", "pipelines", "cuda", "pip", "wheel")
ACCEPTED = HERE / "audit-accepted.txt"
WAYS_OUT = (
    'which says nothing about them; ask another database with make audit ARGS="--vulnerability-service osv" (a mirror '
    "of it: --osv-url URL), name your proxy in HTTPS_PROXY, or give dist/sbom-*.json of `make sbom` to another scanner"
)


@dataclass
class Outcome:
    """Of all images together.

    Attributes
    ----------
    known : name==version of what was looked up. unknown : of what was not, with the reason.
    found : id -> packages that have it, and what mends it. accepted : ids that were found and are explained.
    """

    known: set[str] = field(default_factory=set)
    unknown: dict[str, str] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)


def read_accepted(path: Path, today: date) -> set[str]:
    """Ids that need no repair for now: lines of `ID YYYY-MM-DD why`, until when and the reason; # begins a comment.

    Raises
    ------
    ValueError
        If a line has no reason or its day is over.
    """
    ids = set()
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        place, parts = f"{path.name}, line {number}", text.split(maxsplit=2)
        try:
            until = date.fromisoformat(parts[1])
        except (IndexError, ValueError):
            raise ValueError(f"{place}: expected ID YYYY-MM-DD WHY, found {text!r}; see the file's head") from None
        if len(parts) < 3:
            raise ValueError(f"{place}: expected a reason after the day, found none; say why it does not matter here")
        if until < today:
            raise ValueError(f"{place}: {parts[0]} was accepted until {until}; look whether it can be mended now")
        ids.add(parts[0])
    return ids


def note(outcome: Outcome, dependencies: Sequence[dict[str, Any]], accepted: set[str]) -> None:
    """Add what pip-audit says of one image."""
    for package in dependencies:
        if "skip_reason" in package:
            outcome.unknown[package["name"]] = package["skip_reason"]
            continue
        name = f"{package['name']}=={package['version']}"
        outcome.known.add(name)
        for found in package["vulns"]:
            if ours := {found["id"], *found.get("aliases", ())} & accepted:
                outcome.accepted |= ours
            else:
                mended = ", ".join(found.get("fix_versions", ())) or "no release yet"
                outcome.found[found["id"]] = f"{name}, mended by {mended}"


def audit(program: Sequence[str], options: Sequence[str], accepted: set[str]) -> Outcome:
    """Ask pip-audit about every image."""
    outcome = Outcome()
    for part in PARTS:
        file = HERE / f"requirements-{part}.txt"
        fixed = ["--requirement", str(file), "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
        done = subprocess.run([*program, *fixed, "--format", "json", *options], capture_output=True, text=True)
        try:
            note(outcome, json.loads(done.stdout)["dependencies"], accepted)
        except (json.JSONDecodeError, KeyError):
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            outcome.unknown[f"everything in {file.name}"] = last
    return outcome


def report(outcome: Outcome, accepted: set[str]) -> int:
    """Say what became of it; the exit code."""
    for found, where in sorted(outcome.found.items()):
        print(f"{found}: {where}; if it does not matter here, say so in docker/{ACCEPTED.name}")
    for old in sorted(accepted - outcome.accepted) if not outcome.unknown else ():
        print(f"{old} is found no more: take it out of docker/{ACCEPTED.name}")
    counts = f"{len(outcome.found)} vulnerabilities, {len(outcome.accepted)} accepted"
    print(f"{len(outcome.known)} packages looked up: {counts}")
    if outcome.unknown:
        name, why = next(iter(outcome.unknown.items()))
        print(f"audit: {len(outcome.unknown)} not looked up ({name}: {why}), {WAYS_OUT}", file=sys.stderr)
    return int(bool(outcome.found or outcome.unknown))


def main(options: Sequence[str]) -> int:
    """Audit with the pip-audit beside this Python."""
    try:
        accepted = read_accepted(ACCEPTED, datetime.now(UTC).date())
    except ValueError as err:
        print(f"audit: {err}", file=sys.stderr)
        return 2
    return report(audit([sys.executable, "-m", "pip_audit"], options, accepted), accepted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
