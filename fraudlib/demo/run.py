"""The whole way on one machine: train, start the stack, send trips with planted fraud, show the alerts."""

import asyncio
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click
import orjson

from fraudlib import paths
from fraudlib.api.keys import authorization
from fraudlib.demo.screen import Screen
from fraudlib.demo.stack import Stack, check_port, free_port
from fraudlib.demo.tally import Tally
from fraudlib.demo.traffic import Traffic, sample_waves
from fraudlib.errors import ServiceError
from fraudlib.manifest import current_bundle
from fraudlib.settings import Settings
from fraudlib.wire.readers import Reader

FOLDER: Final = Path("runs/demo")
SAMPLE: Final = Path("data/sample")
OUTSTANDING_SECONDS: Final = 15.0
PORTS: Final = {
    "api_port": ("api_host", "--port"),
    "broker_port": ("broker_host", "--broker-port"),
    "metrics_port": ("metrics_host", "--metrics-port"),
}


@dataclass(frozen=True)
class Options:
    """What the command line asks of the demo.

    Attributes
    ----------
    seconds : stop by itself after this long, counted once the stack is up; None stays up until Ctrl-C.
    rate : trips a second.
    fraud : share of planted fraud.
    seed : of the planting.
    ports : setting -> port, 0 for any free one, None for the setting's own.
    """

    seconds: float | None
    rate: float
    fraud: float
    seed: int
    ports: Mapping[str, int | None]


def demo_settings(ports: Mapping[str, int | None]) -> Settings:
    """Settings of the demo's own stack: its own broker, its own bundles unless FRAUDLIB_ARTIFACTS_DIR names others.

    Raises
    ------
    ServiceError
        If a port is busy.
    """
    given = Settings()
    changes: dict[str, Any] = {}
    for name, (host, option) in PORTS.items():
        port = getattr(given, name) if ports.get(name) is None else ports[name]
        address = getattr(given, host)
        if port:
            check_port(address, port, f"FRAUDLIB_{name.upper()}", option)
        changes[name] = port or free_port(address)
    if "FRAUDLIB_ARTIFACTS_DIR" not in os.environ:
        changes["artifacts_dir"] = paths.resolve(FOLDER / "artifacts")
    changes["kafka_security_protocol"] = "PLAINTEXT"
    changes["id_hash_key_file"] = None  # the trips are followed by the ids that they were sent under
    changes["kafka_bootstrap_servers"] = f"{given.broker_host}:{changes['broker_port']}"
    return Settings(**{**given.model_dump(), **changes})


def ensure_bundle(stack: Stack, folder: Path) -> Path:
    """Bundle that the demo scores with; trained from the sample, with its progress bars, where none is current.

    Raises
    ------
    ServiceError
        If the pipeline fails or its candidate does not pass the gate.
    """
    artifacts = stack.settings.artifacts
    if (bundle := current_bundle(artifacts)) is not None:
        click.echo(f"bundle   {bundle.name}, current in {artifacts}")
        return bundle
    click.echo("bundle   none yet: training one from the simulated sample, about a minute")
    artifacts.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pipelines", "retrain", "--artifacts", str(artifacts), "--runs", str(folder)]
    by_hand = f"see {folder}, or run it by hand: {' '.join(['python', *command[1:]])}"
    started = time.monotonic()
    child = stack.spawn(command, stdout=subprocess.PIPE)
    try:
        printed, _ = child.communicate()
    except BaseException:
        child.terminate()
        raise
    if child.returncode:
        raise ServiceError(f"training ended with exit code {child.returncode}; {by_hand}")
    outcome = json.loads(printed.decode().strip().splitlines()[-1])
    if (bundle := current_bundle(artifacts)) is None:
        raise ServiceError(f"the trained bundle was not promoted ({outcome.get('reason')}); {by_hand}")
    click.echo(f"bundle   {bundle.name}, trained in {time.monotonic() - started:.0f} s")
    return bundle


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP: asks for an end once the stack is up, breaks off what runs before and after."""

    def __init__(self) -> None:
        self.gentle = self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if not self.gentle or self.asked:
            raise KeyboardInterrupt
        self.asked = True


async def stream(stack: Stack, traffic: Traffic, tally: Tally, seconds: float | None, interrupts: Interrupts) -> None:
    """Let the traffic run until the time is up or an end is asked for, then wait for the outstanding scores."""
    screen = Screen(tally)
    reader = Reader(stack.settings, tally, screen.alert)
    await reader.consumer.start()
    try:
        end = time.monotonic() + (seconds or float("inf"))
        next_check = 0.0
        traffic.start()
        while time.monotonic() < end and not interrupts.asked:
            await reader.read()
            screen.counts()
            if traffic.error:
                raise traffic.error
            if time.monotonic() > next_check:
                stack.check()
                next_check = time.monotonic() + 1.0
        traffic.stopping.set()
        end = time.monotonic() + OUTSTANDING_SECONDS
        # Alerts lie in another topic than the scores, so that one empty read follows the last score.
        while time.monotonic() < end and (await reader.read(0.3) or traffic.is_alive() or tally.lost):
            stack.check()
    finally:
        traffic.stopping.set()
        await reader.consumer.stop()


def run(options: Options) -> int:
    """Run the demo.

    Returns
    -------
    int
        0, or 1 where an accepted trip got no score.

    Raises
    ------
    ServiceError
        If a port is busy, the training fails, or a service does not start or ends by itself.
    DataError
        If the sample is missing.
    """
    interrupts = Interrupts()
    settings = demo_settings(options.ports)
    folder, sample = paths.resolve(FOLDER), paths.resolve(SAMPLE)
    prefix = f"demo-{secrets.token_hex(3)}-"
    click.echo("fraudlib demo: simulated trips with planted fraud, no real payments")
    waves = sample_waves(sample, options.fraud, options.seed, prefix)
    waves = itertools.chain([next(waves)], waves)
    with Stack(settings, folder) as stack:
        ensure_bundle(stack, folder)
        for name, took in stack.start("broker", "api", "worker"):
            click.echo(f"{name:<8} ready after {took:.1f} s, log {stack.log(name)}")
        click.echo(f"check    a first trip had its score after {1000 * stack.try_out():.0f} ms")
        url = stack.url
        click.echo(f"open     {url}/ for the live page, {url}/docs for the API")
        how = f"for {options.seconds:g} s" if options.seconds else "until Ctrl-C"
        click.echo(f"stream   {options.rate:g} trips a second, {options.fraud:.1%} of them planted fraud, {how}\n")
        tally = Tally(prefix)
        interrupts.gentle = True
        traffic = Traffic(waves, url, options.rate, tally, authorization(stack.settings))
        asyncio.run(stream(stack, traffic, tally, options.seconds, interrupts))
        click.echo(f"\n{tally}")
        click.echo("stopping broker, API and worker")
    if options.seconds:
        click.echo(orjson.dumps(tally.as_json()))
    return int(tally.lost > 0)
