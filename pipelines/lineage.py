"""Where a score came from: from a bundle's name to the run, its parameters, data, code, figures and report."""

import json
from pathlib import Path
from typing import Any

from fraudlib import manifest
from fraudlib.errors import BundleError
from fraudlib.manifest import Manifest
from fraudlib.paths import MANIFEST, RETIRED
from pipelines import registry
from pipelines.report import REPORT


def trace(artifacts: Path, runs: Path, name: str) -> dict[str, Any]:
    """Everything that is kept about a bundle, also one that was removed since; a run's refused candidate too.

    Parameters
    ----------
    name : bundle id, as a score or an alert carries it; the beginning of one; or a run id.

    Raises
    ------
    BundleError
        If nothing of that name was ever sealed or decided here, or the beginning fits several.
    """
    lines = registry.history(artifacts)
    bundle_id, run_id = _identify(artifacts, lines, name)
    of = _manifest(artifacts, bundle_id) if bundle_id else None
    run = runs / (of.run_id if of else run_id)
    out: dict[str, Any] = {"bundle_id": bundle_id, "run_id": run.name, "sealed": bool(bundle_id)}
    out["history"] = [line for line in lines if line.get("bundle_id") == bundle_id or line.get("run_id") == run.name]
    out["run"] = str(run) if run.is_dir() else None
    out["report"] = str(run / REPORT) if (run / REPORT).is_file() else None
    if of:
        out["is_there"] = (artifacts / of.bundle_id).is_dir()
        out |= {"git_commit": of.git_commit, "created_at": of.created_at, "libraries": of.libraries}
        out |= {"parameters": of.parameters, "data": of.data, "metrics": of.metrics}
        return out
    for key, path in {"parameters": "parameters.json", "data": "data.json", "metrics": "metrics.json"}.items():
        out[key] = _object(run / path)
    return out


def _identify(artifacts: Path, lines: list[dict[str, Any]], name: str) -> tuple[str | None, str]:
    """Bundle (None where the run sealed none) and run that a name means."""
    bundles = {*registry.sealed(artifacts), *(path.stem for path in (artifacts / RETIRED).glob("*.json"))}
    if fits := sorted(b for b in bundles if name and b.startswith(name)):
        if len(fits) > 1 and name not in fits:
            raise BundleError(f"{artifacts}: {name!r} is the beginning of {', '.join(fits)}; give one in full")
        return (name if name in fits else fits[0]), ""
    for line in reversed(lines):
        if name and name == line.get("run_id"):
            bundle_id = line.get("bundle_id")
            return (bundle_id if bundle_id in bundles else None), name
    raise BundleError(f"{artifacts}: no bundle or run {name!r}; there are: {', '.join(sorted(bundles)) or 'none'}")


def _manifest(artifacts: Path, bundle_id: str) -> Manifest:
    path = artifacts / bundle_id / MANIFEST
    return manifest.parse_manifest(path if path.is_file() else artifacts / RETIRED / f"{bundle_id}.json")


def _object(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content


def in_words(found: dict[str, Any]) -> list[str]:
    """The trace as lines for a terminal."""
    lines = [f"{'bundle':12} {found['bundle_id'] or 'none, the candidate was refused'}"]
    lines += [f"{'run':12} {found['run_id']}" + ("" if found["run"] else "  (its folder is gone)")]
    lines += [f"{'report':12} {found['report'] or 'none'}"]
    if found.get("git_commit"):
        lines += [f"{'code':12} {found['git_commit']}", f"{'sealed at':12} {found['created_at']}"]
    for line in found["history"]:
        until = "" if line["event"] not in ("promote", "rollback") else f" until {line['until'] or 'now'}"
        lines += [f"{line['event']:12} {line['at']}{until}: {line['reason']}"]
    for key, value in found["parameters"].items():
        lines += [f"{'parameter':12} {key} = {value}"]
    for file in found["data"].get("files", []):
        lines += [f"{'data':12} {file['name']}  sha256 {file['sha256']}"]
    for key in ("average_precision", "recall", "precision", "false_positive_rate"):
        if part := found["metrics"].get(key):
            lines += [f"{'metric':12} {key} {part['value']} [{part['low']}, {part['high']}]"]
    return lines
