"""Engines: who calls a function for many items, this process or the workers of a Dask cluster.

An engine is used as Python's `map`, which is the local one: items go in lazily and in order, results come out in order.
What runs is the same function either way, so results do not depend on the engine.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from fraudlib import __version__
from fraudlib.errors import ParameterError, ServiceError

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
R = TypeVar("R")

ENGINES: Final = ("local", "dask")
CONNECT_SECONDS: Final = 30
AHEAD: Final = 2  # items under way per thread of the cluster: one in work, one waiting
_SAME: Final = ("numpy", "pyarrow", "torch")  # other releases may round otherwise


class Engine(Protocol):
    """Calls `function` for each item; results in the items' order."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]: ...


@contextmanager
def start(name: str, address: str | None = None) -> Iterator[Engine]:
    """Engine of a name, stopped at the end.

    Parameters
    ----------
    name : "local", or "dask".
    address : of a Dask scheduler; where empty, a cluster with a worker for each core is started on this machine. By
        default FRAUDLIB_DASK_ADDRESS. Its workers have this fraudlib and see files under the same paths.

    Raises
    ------
    ParameterError
        If there is no such engine.
    ServiceError
        If the cluster does not answer, has no worker, or has other releases than this process.
    """
    if name == "local":
        yield map
    elif name == "dask":
        with _cluster(address) as client:
            yield lambda function, items: _in_order(client, function, items)
    else:
        raise ParameterError(f"engine: expected one of {', '.join(ENGINES)}, found {name!r}; correct it")


@contextmanager
def _cluster(address: str | None) -> Iterator["Client"]:
    from distributed import Client, LocalCluster
    from distributed.comm.addressing import get_address_host_port

    if address is None:
        from fraudlib.settings import Settings

        address = Settings().dask_address
    if not address:
        options: dict[str, Any] = {"dashboard_address": None, "threads_per_worker": 1, "silence_logs": "ERROR"}
        with LocalCluster(host="127.0.0.1", **options) as cluster, Client(cluster, set_as_default=False) as client:
            yield client
        return
    try:
        get_address_host_port(address)  # a client that fails at this is torn down with a traceback of its own
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as err:
        raise ServiceError(
            f"FRAUDLIB_DASK_ADDRESS: expected a Dask scheduler at {address}, found none ({err}); start one with "
            "`dask scheduler`, or leave the address out for a cluster on this machine"
        ) from err
    with client:
        _check_workers(client, address)
        yield client


def _check_workers(client: "Client", address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError as err:
        raise ServiceError(
            f"{address}: expected workers at this Dask scheduler, found none within {CONNECT_SECONDS} s; start some "
            f"with `dask worker {address} --nthreads 1`"
        ) from err
    try:
        found = client.run(releases)
    except ImportError as err:
        raise ServiceError(f"{address}: a Dask worker cannot import {err.name}; install fraudlib[all] there") from err
    for worker, theirs in found.items():
        for package, mine in releases().items():
            if theirs[package] != mine:
                raise ServiceError(
                    f"{worker}: expected {package} {mine} as here, found {theirs[package]}; install the same releases "
                    "on every worker (constraints.txt)"
                )


def releases() -> dict[str, str]:
    """Releases that results depend on."""
    return {"fraudlib": __version__, **{name: version(name) for name in _SAME}}


def _in_order(client: "Client", function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results of a cluster in the items' order; so few are under way that memory does not grow with their number."""
    from distributed import KilledWorker

    waiting: deque[Any] = deque()
    try:
        for item in items:
            waiting.append(client.submit(function, item, pure=False))
            if len(waiting) >= AHEAD * max(sum(client.nthreads().values()), 1):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except KilledWorker as err:
        raise ServiceError(
            f"a part of the work ended its Dask worker {err.allowed_failures + 1} times, most likely for want of "
            "memory; give each worker 1 GB or more"
        ) from err
    finally:
        client.cancel(list(waiting))
