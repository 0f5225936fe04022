"""The one file of results, docs/bench.json, and what is made from it: docs/bench.png and docs/benchmarks.md."""

import json
from pathlib import Path
from typing import Any, Final

from bench import figure, page
from fraudlib import manifest, paths

RESULTS: Final = paths.root() / "docs" / "bench.json"
DATA: Final = (
    "full records of simulated trips (`data/sample`) with planted fraud: 1.25 %, and 5 % where latency is measured"
)


def read(path: Path = RESULTS) -> dict[str, Any]:
    """Results so far, and what the records are."""
    return (json.loads(path.read_text()) if path.exists() else {}) | {"data": DATA}


def write(results: dict[str, Any], path: Path = RESULTS) -> None:
    """Write the results, the figure and the page side by side."""
    manifest.write_atomic(path, (json.dumps(results, indent=1) + "\n").encode())
    figure.draw(results, path.with_suffix(".png"))
    manifest.write_atomic(path.with_name("benchmarks.md"), page.render(results).encode())
