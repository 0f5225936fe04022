"""A real stack and a real browser, shared by the tests of the page."""

import http.client
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fraudlib import paths
from fraudlib.api.keys import add_client, new_key
from fraudlib.demo.stack import Stack, answers, free_port
from fraudlib.settings import Settings

playwright = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
GHOST = {
    "trip_distance": 0.02,
    "fare_amount": 450,
    "duration_minutes": 0.3,
    "RatecodeID": 5,
    "total_amount": 450,
    "PULocationID": 74,
    "DOLocationID": 132,
}


def elsewhere(work: Callable[[], Any]) -> Any:
    """Result of work that has an event loop of its own; Playwright's runs in this thread."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def post(url: str, path: str, body: dict[str, Any]) -> int:
    """Status of a POST."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


def local_settings() -> Settings:
    """Settings of a stack on free ports."""
    broker, api, metrics = free_port(), free_port(), free_port()
    return Settings(
        broker_port=broker, kafka_bootstrap_servers=f"127.0.0.1:{broker}", api_port=api, metrics_port=metrics
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed here")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def stack(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Broker, API and worker with the default bundle."""
    settings = local_settings()
    changes = {"state_dir": tmp_path_factory.mktemp("state"), "artifacts_dir": paths.root() / "artifacts"}
    with Stack(settings.model_copy(update=changes), tmp_path_factory.mktemp("logs")) as running:
        for _ in running.start("broker", "api", "worker"):
            pass
        running.try_out()
        yield running


@pytest.fixture
def api_alone(browser: Any, tmp_path: Path) -> Iterator[str]:
    """Address of an API whose broker is not there."""
    settings = local_settings()
    with Stack(settings, tmp_path) as running:
        running._launch("api")
        while not answers("127.0.0.1", settings.api_port, "/healthz"):
            running.check()
            time.sleep(0.05)
        yield running.url


@pytest.fixture(scope="module")
def locked(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of an API that asks for a key, on a broker without a worker, and the key."""
    folder = tmp_path_factory.mktemp("locked")
    key, client = new_key("analyst")
    add_client(folder / "hashes", client)
    with Stack(local_settings().model_copy(update={"api_keys_file": folder / "hashes"}), folder) as running:
        for _ in running.start("broker", "api"):
            pass
        yield running.url, key


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A fresh page that fails its test on any error in its scripts or against its content policy."""
    context = browser.new_context()
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if "Content Security" in m.text else None)
    yield page
    context.close()
    assert errors == []
