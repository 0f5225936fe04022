"""All that the README quotes, in one run: `python -m bench`; see bench.results for what it writes."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import api, latency, overload, poison, results, throughput
from bench.machine import describe
from fraudlib import bench as scoring
from fraudlib import manifest, paths


def _scoring() -> dict[str, Any]:
    folder = manifest.current_bundle(paths.root() / "artifacts")
    if folder is None:
        raise SystemExit("artifacts: no bundle is current; train one with `python -m pipelines retrain`")
    return scoring.report(folder, threads=1, sizes=(64, 1024, 4096))


def parts(quick: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Measurements by name; `quick` ones are for trying the tooling out, not for quoting."""
    if quick:
        return {
            "throughput": lambda: throughput.measure(throughput.Plan(200_000, 300, 1)),
            "latency": lambda: latency.measure((100, 1000), 2.0),
            "api": lambda: api.measure(100_000),
            "overload": lambda: overload.measure(1.0, rounds=1),
            "poison": lambda: poison.measure(10_000),
            "scoring": _scoring,
        }
    return {
        "throughput": lambda: throughput.measure(throughput.Plan()),
        "latency": lambda: latency.measure((100, 1000, 5000), 8.0, rounds=5),
        "api": api.measure,
        "overload": overload.measure,
        "poison": poison.measure,
        "scoring": _scoring,
    }


def main() -> int:
    """Parse the command line, measure, write and print."""
    # The services that were started end with this process, also where it is told to stop.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts(False), []], help="what to measure; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it out")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="file of the results; others lie beside it")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)  # rather than find out after the first measurement
    found = results.read(options.out) | {"quick": options.quick}
    for name, part in parts(options.quick).items():
        if options.parts and name not in options.parts:
            continue
        started = time.monotonic()
        found.setdefault("machines", {})[name] = describe()
        found[name] = part()
        results.write(found, options.out)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
