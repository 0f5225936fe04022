"""The last one out: ends a process group when the process that started it is gone, even by kill -9.

Run as `python -m fraudlib.demo.guard OWNER MEMBERS` in a process group of its own, which the other processes then join.
Standard library only, so that it is up before anything that it guards.
"""

import os
import select
import signal
import sys
from typing import Final

GRACE_SECONDS: Final = 10.0


def guard(owner: int, members: int, grace_s: float = GRACE_SECONDS) -> None:
    """Wait for the owner's end, then end the group: SIGTERM, a grace period, SIGKILL (which takes the guard along).

    Parameters
    ----------
    owner : int
        Read end of a pipe that only the owner can write to; its end of file means that the owner is gone.
    members : int
        Read end of a pipe that every member holds open; its end of file means that all of them are gone.
    grace_s : float
        Seconds between the two signals, cut short when all members are gone.
    """
    for caught in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(caught, signal.SIG_IGN)
    select.select([owner], [], [])
    os.killpg(0, signal.SIGTERM)
    select.select([members], [], [], grace_s)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    guard(int(sys.argv[1]), int(sys.argv[2]))
