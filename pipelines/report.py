"""What a run came to, for people: a page of each notebook with the code hidden, and one on top that links them."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2

from fraudlib import manifest
from fraudlib.errors import BundleError
from fraudlib.paths import RunPaths

REPORT: Final = "report.html"
PAGES: Final = "reports"  # in a run's folder: the pages of the notebooks
PICTURE_TAG: Final = "report"  # cells whose picture belongs on the page on top
_NBCONVERT_SECONDS: Final = 300
_FIGURES: Final = {
    "average precision": ("average_precision",),
    "recall at 1 % false positives": ("recall_at_fpr", "0.01"),
    "recall at the threshold": ("recall",),
    "precision at the threshold": ("precision",),
    "dollars caught at the threshold": ("dollars_caught",),
    "false positives, realised": ("false_positive_rate",),
    "false positives, promised": ("drift", "expected"),
    "recall, kinds that break an identity of the record": ("recall_easy",),
    "recall, kinds that keep every identity": ("recall_hard",),
    "average precision, kinds on no list": ("unlisted", "average_precision"),
}
_BESIDE: Final = {
    "average_precision": "average precision",
    "recall_at_budget": "recall at the budget",
    "recall": "recall at its own threshold",
    "false_positive_rate": "false positives at its own threshold",
}
log = logging.getLogger(__name__)


def write(run: RunPaths, artifacts: Path, outcome: Mapping[str, Any], stages: Sequence[str]) -> Path:
    """Write the pages of a run's executed notebooks and `report.html` on top; the path of the latter.

    Parameters
    ----------
    outcome : the run's JSON line. stages : names of the notebooks, in order.
    """
    pages = _pages(run, stages)
    status, data, metrics = (_read(path) for path in (run.folder / "status.json", run.data, run.metrics))
    content = {
        "run_id": run.folder.name,
        "outcome": outcome,
        "failed": status.get("state") == "failed",
        "status": status,
        "stages": [(name, status.get("stages", {}).get(name, {}), pages.get(name)) for name in stages],
        "data": data if data.get("splits") else {},
        "gate": _read(run.gate),
        "figures": list(_figures(metrics)),
        "live": metrics.get("live", {}),
        "beside": list(_beside(metrics.get("live", {}))),
        "rivals": [(name, _interval(m.get("average_precision"))) for name, m in _rivals(metrics)],
        "pictures": [picture for name in stages for picture in _pictures(run.folder / f"{name}.ipynb")],
        "parameters": _read(run.folder / "parameters.json"),
        "commit": _commit(artifacts, outcome.get("bundle_id")),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    target = run.folder / REPORT
    manifest.write_atomic(target, environment.get_template("report.html.j2").render(content).encode())
    return target


def _pages(run: RunPaths, stages: Sequence[str]) -> dict[str, str]:
    """Convert each executed notebook, whole or failed; stage -> page, relative to the run's folder."""
    found = {}
    for name in stages:
        for suffix in (".ipynb", ".failed.ipynb"):
            if (path := run.folder / f"{name}{suffix}").is_file():
                found[name] = path
    if not found:
        return {}
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--no-input", "--log-level", "WARN"]
    command += ["--output-dir", str(run.folder / PAGES), *map(str, found.values())]
    with (run.folder / "logs" / "report.log").open("ab") as file:
        try:
            subprocess.run(command, stdout=file, stderr=file, timeout=_NBCONVERT_SECONDS, check=True)
        except (subprocess.SubprocessError, OSError) as err:
            log.warning("the notebooks' pages were not all written: %s; see %s", err, file.name)
    pages = {name: f"{PAGES}/{path.with_suffix('.html').name}" for name, path in found.items()}
    return {name: page for name, page in pages.items() if (run.folder / page).is_file()}


def _read(path: Path) -> dict[str, Any]:
    """JSON object of a file, empty where a run did not come that far."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _interval(part: Any, label: str = "") -> str:
    if not isinstance(part, Mapping) or part.get("value") is None:
        return "unknown"
    if label.startswith("false positives"):  # a rate this small needs its percent
        return f"{part['value']:.2%} [{part['low']:.2%}, {part['high']:.2%}]"
    return f"{part['value']:.3f} [{part['low']:.3f}, {part['high']:.3f}]"


def _figures(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for label, keys in _FIGURES.items():
        part: Any = metrics
        for key in keys:
            part = part.get(key) if isinstance(part, Mapping) else None
        if part is not None:
            yield label, _interval(part, label)


def _beside(live: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    if "difference" in live:
        for key, label in _BESIDE.items():
            parts = [live[name].get(key) for name in ("champion", "challenger", "difference")]
            yield label, ["" if part is None else _interval(part, label) for part in parts]


def _rivals(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found = {**metrics.get("baselines", {}), **metrics.get("taught_baselines", {})}
    return list(found.items())


def _pictures(notebook: Path) -> Iterator[tuple[str, str]]:
    """Heading and PNG, in base64, of each cell of an executed notebook that is tagged for the report."""
    heading = notebook.stem
    for cell in _read(notebook).get("cells", []):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = next((line.lstrip("# ") for line in source.splitlines() if line.startswith("## ")), heading)
        elif PICTURE_TAG in cell["metadata"].get("tags", []):
            for output in cell.get("outputs", []):
                if png := output.get("data", {}).get("image/png"):
                    yield heading, "".join(png).replace("\n", "")


def _commit(artifacts: Path, bundle_id: str | None) -> str:
    try:
        return manifest.read_manifest(artifacts / bundle_id).git_commit if bundle_id else ""
    except BundleError:
        return ""
