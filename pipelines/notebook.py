"""One notebook, executed by papermill in a process of its own."""

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import papermill
from traitlets.config import Config

from fraudlib import paths
from fraudlib.errors import FraudError
from pipelines.parameters import Value

# A fork has papermill loaded already, which takes one to two seconds otherwise, for each of the notebooks.
_FORK = multiprocessing.get_context("fork")
_STOP_SECONDS = 10.0

# The kernel stays on TCP (IPC sockets of parallel runs collide); encryption quiets its warning about plain TCP.
_KERNEL = Config({"KernelManager": {"transport_encryption": "auto"}})


class StageError(FraudError):
    """A notebook did not run to its end."""


def execute(source: Path, output: Path, values: Mapping[str, Value], log: Path, seconds: float) -> None:
    """Run `source` in its own folder and keep the executed notebook as `output` once every cell is complete.

    While it runs it lies beside as `*.running.ipynb`, and stays so when interrupted; failed it is `*.failed.ipynb`.

    Raises
    ------
    StageError
        If a cell fails, the kernel dies or it takes longer than `seconds`; the message has the notebook's error and
        where to look.
    """
    running, failed = output.with_suffix(".running.ipynb"), output.with_suffix(".failed.ipynb")
    process = _FORK.Process(target=_papermill, args=(source, running, dict(values), log), name=source.stem)
    process.start()
    try:
        process.join(seconds)
        is_late = process.is_alive()
    finally:
        _stop(process)
    executed = _load(running)
    if process.exitcode == 0 and is_complete(executed):
        os.replace(running, output)
        return
    if executed:
        os.replace(running, failed)
    why = f"it took longer than {seconds:g} s and was stopped" if is_late else _error(executed, log)
    raise StageError(f"{source.stem} failed: {why}; look into {failed if executed else log}")


def is_done(output: Path) -> bool:
    """Whether `output` is an executed notebook that ran to its end."""
    executed = _load(output)
    return bool(executed) and is_complete(executed)


def is_complete(executed: Mapping[str, Any]) -> bool:
    """Whether every cell ran: an end time, each cell completed, and a count at each cell that has code.

    The count matters since papermill marks the cells that it never reached as completed when it is interrupted.
    """
    if not executed.get("metadata", {}).get("papermill", {}).get("end_time"):
        return False
    cells = executed["cells"]
    if any(cell["metadata"].get("papermill", {}).get("status") != "completed" for cell in cells):
        return False
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    return all(cell["execution_count"] is not None for cell in code)


def _load(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content


def _error(executed: Mapping[str, Any], log: Path) -> str:
    """One line on what went wrong: the notebook's own error, else the last line of the log."""
    for cell in executed.get("cells", []):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return f"{output['ename']}: {' '.join(output['evalue'].split())}"[:500]
    lines = log.read_text("utf-8", "replace").split("\n") if log.exists() else []
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "it left no message")


def _stop(process: BaseProcess) -> None:
    if process.is_alive():
        process.terminate()
        process.join(_STOP_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _papermill(source: Path, output: Path, values: dict[str, Value], log: Path) -> None:
    """Body of the child process: the bar on the terminal, everything else into the log."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    terminal = os.fdopen(os.dup(2), "w")
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.basicConfig(filename=log, level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    logging.getLogger("papermill").setLevel(logging.INFO)
    os.environ |= {"FRAUDLIB_ROOT": str(paths.root()), "JUPYTER_PREFER_ENV_PATH": "1"}
    try:
        papermill.execute_notebook(
            str(source),
            str(output),
            parameters=values,
            cwd=str(source.parent),
            log_output=True,
            progress_bar={"desc": source.stem, "file": terminal, "disable": None, "leave": False},
            config=_KERNEL,
            shutdown_kernel="immediate",  # asked politely, one kernel in ten takes three seconds to go
        )
    except Exception as err:
        logging.error("%s: %s", type(err).__name__, err)
        sys.exit(1)


def _end_with_parent() -> None:
    """Stop when the pipeline is gone, however it went, so that no notebook is left running alone."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
