"""The live page in Chromium, on a real stack: what an analyst sees, does and is told when something is missing."""

import asyncio
import json
import re
import time
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from fraudlib.demo.stack import Stack

from .conftest import GHOST, elsewhere, playwright, post

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
expect = playwright.expect
MANY = 10_000


def open_page(page: Any, url: str) -> None:
    """Open the live page and wait until it follows the alerts."""
    page.goto(url)
    expect(page.locator("#connection")).to_have_text("live", timeout=10_000)


def alert_of(page: Any, stack: Stack, name: str, **changes: Any) -> Any:
    """The list's entry of a ghost trip that was sent just now."""
    assert post(stack.url, "/transaction", GHOST | changes | {"transaction_id": name}) == 202
    entry = page.locator("#alerts > li", has_text=name)
    expect(entry).to_be_visible(timeout=10_000)
    return entry


def labels(stack: Stack, name: str, enough: int) -> list[dict[str, Any]]:
    """Labels of one transaction on the topic, in order."""

    async def read() -> list[dict[str, Any]]:
        servers = stack.settings.kafka_bootstrap_servers
        found: list[dict[str, Any]] = []
        async with AIOKafkaConsumer(
            "labels", bootstrap_servers=servers, auto_offset_reset="earliest", enable_auto_commit=False
        ) as consumer:
            while len(found) < enough:
                message = await asyncio.wait_for(consumer.getone(), 10)
                label = json.loads(message.value)
                found += [label] if label["transaction_id"] == name else []
        return found

    return list(elsewhere(lambda: asyncio.run(read())))


def flood(stack: Stack, count: int) -> None:
    """Write alerts straight to their topic."""

    async def write() -> None:
        servers = stack.settings.kafka_bootstrap_servers
        async with AIOKafkaProducer(bootstrap_servers=servers, linger_ms=20) as producer:
            alert = {"anomaly_score": 4.0, "threshold": 2.0, "is_flagged": True, "severity": "block", "reasons": []}
            for row in range(count):
                at = {"src_partition": 99, "src_offset": row, "scored_at": "2026-01-01T00:00:00.000Z"}
                body = alert | at | {"transaction_id": f"many-{row}", "bundle_id": "x", "transaction": GHOST}
                await producer.send("alerts", json.dumps(body).encode(), partition=0)

    elsewhere(lambda: asyncio.run(write()))


def test_an_alert_appears_within_two_seconds(page: Any, stack: Stack) -> None:
    """From the POST to the page: amount, severity, zones by name, the reason in words."""
    open_page(page, stack.url)
    started = time.monotonic()
    entry = alert_of(page, stack, "within-two")
    assert time.monotonic() - started < 2
    expect(entry).to_contain_text("450.00 USD")
    expect(entry.locator(".badge")).to_have_text("block")
    expect(entry).to_contain_text("East Harlem North to JFK Airport")
    expect(entry.locator(".why li").first).to_contain_text(", expected ")


def test_what_a_client_sends_is_text(page: Any, stack: Stack) -> None:
    """Markup in a record is shown as it came and never becomes part of the page."""
    open_page(page, stack.url)
    entry = alert_of(page, stack, "markup", store_and_fwd_flag="<img src=x onerror=alert(1)>")
    entry.locator("summary").click()
    expect(entry.locator("dl")).to_contain_text("fare_amount")
    assert entry.locator("img").count() == 0


def test_a_trip_sent_from_the_form_gets_its_verdict(page: Any, stack: Stack) -> None:
    """An ordinary trip is not flagged, the strange one is, and both say their score."""
    open_page(page, stack.url)
    page.get_by_role("button", name="Send and wait").click()
    expect(page.locator("#verdict")).to_contain_text("Not flagged", timeout=10_000)
    page.get_by_role("button", name="Fill in a strange trip").click()
    page.get_by_label("Pickup").select_option(label="JFK Airport")
    page.get_by_role("button", name="Send and wait").click()
    expect(page.locator("#verdict strong")).to_have_text("Flagged", timeout=10_000)
    expect(page.locator("#verdict")).to_contain_text("threshold")


def test_a_verdict_is_kept_and_corrected_by_keyboard(page: Any, stack: Stack) -> None:
    """Confirm, then dismiss: the page shows the last one, also after a reload, and the topic keeps both in order."""
    open_page(page, stack.url)
    entry = alert_of(page, stack, "judged")
    entry.get_by_role("button", name="Confirm fraud").press("Enter")
    expect(entry.locator("[role=status]")).to_contain_text("confirmed as fraud")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(entry.locator("[role=status]")).to_contain_text("dismissed as honest")
    assert [label["verdict"] for label in labels(stack, "judged", 2)] == ["fraud", "honest"]
    open_page(page, stack.url)
    again = page.locator("#alerts > li", has_text="judged").get_by_role("button", name="Dismiss")
    expect(again).to_have_attribute("aria-pressed", "true")


def test_a_label_that_is_refused_is_said(page: Any, stack: Stack) -> None:
    """The button is not shown as pressed, and the API's own sentence stands beside it."""
    open_page(page, stack.url)
    entry = alert_of(page, stack, "refused")
    problem = json.dumps({"detail": "the broker does not answer"})
    page.route("**/labels", lambda route: route.fulfill(status=503, content_type="application/json", body=problem))
    entry.get_by_role("button", name="Dismiss").click()
    expect(entry.locator("[role=status]")).to_have_text("not kept: the broker does not answer")
    expect(entry.get_by_role("button", name="Dismiss")).to_have_attribute("aria-pressed", "false")


def test_pause_holds_and_shows_what_came(page: Any, stack: Stack) -> None:
    """Nothing moves while paused; the count of what waits is a button that shows it."""
    open_page(page, stack.url)
    page.get_by_role("button", name="Pause").click()
    assert post(stack.url, "/transaction", GHOST | {"transaction_id": "held-back"}) == 202
    expect(page.locator("#held")).to_be_visible(timeout=10_000)
    assert page.locator("#alerts > li", has_text="held-back").count() == 0
    page.locator("#held").click()
    expect(page.locator("#alerts > li", has_text="held-back")).to_be_visible()


def test_rate_latency_model_and_scores_are_shown(page: Any, stack: Stack) -> None:
    """What the pulse measures stands on the page, as text also for those who do not see the picture."""
    open_page(page, stack.url)
    alert_of(page, stack, "pulse")
    expect(page.locator("#scores")).to_have_attribute("aria-label", re.compile("scores looked at"), timeout=10_000)
    expect(page.locator("#latency")).to_contain_text("ms")
    expect(page.locator("#model")).to_contain_text("T")
    assert page.locator("#scores line.over").count() >= 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_for_axe_nor_too_wide_for_a_phone(page: Any, stack: Stack, scheme: str) -> None:
    """No serious or critical finding with alerts on the page, in both schemes, and no sideways scrolling at 360 px."""
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": 360, "height": 740})
    open_page(page, stack.url)
    alert_of(page, stack, f"axe-{scheme}")
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_signing_in_works_on_a_phone_and_says_what_is_wrong(page: Any, locked: tuple[str, str], scheme: str) -> None:
    """The dialog asks for the key, refuses a wrong one in words, and takes the right one; axe finds nothing serious."""
    url, key = locked
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(url)
    dialog = page.locator("#signin")
    expect(dialog).to_be_visible(timeout=10_000)
    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#signin-problem")).not_to_be_empty(timeout=10_000)
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")] == []
    box = dialog.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    page.locator("#key").fill(key)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden(timeout=10_000)
    expect(page.locator("#connection")).to_have_text("live", timeout=10_000)


def test_ten_thousand_alerts_do_not_slow_it_down(page: Any, stack: Stack) -> None:
    """The newest is shown, at most a hundred stand in the list, and a click is answered at once meanwhile."""
    open_page(page, stack.url)
    page.evaluate(
        """() => { window.tasks = [0];
        new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map((task) => task.duration)))
            .observe({ type: "longtask" }); }"""
    )
    flood(stack, MANY)
    expect(page.locator("#alerts > li", has_text=f"many-{MANY - 1}")).to_be_visible(timeout=15_000)
    assert page.locator("#alerts > li").count() <= 100
    assert page.evaluate("Math.max(...window.tasks)") < 1000
    started = time.monotonic()
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#pause")).to_have_attribute("aria-pressed", "true")
    assert time.monotonic() - started < 2


def test_the_documentation_works_without_another_host(page: Any, stack: Stack) -> None:
    """Swagger UI renders the routes, and every request goes to the API itself."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{stack.url}/docs")
    expect(page.locator(".opblock").first).to_be_visible(timeout=20_000)
    assert {url for url in asked if not url.startswith((stack.url, "data:"))} == set()


def test_no_broker_is_said(page: Any, api_alone: str) -> None:
    """The page is up, says that no alert has come, and that the broker is away; a trip is refused in words."""
    open_page(page, api_alone)
    expect(page.locator("#notice")).to_contain_text("The broker does not answer", timeout=10_000)
    expect(page.locator("#empty")).to_be_visible()
    page.get_by_role("button", name="Send and wait").click()
    expect(page.locator("#verdict")).to_contain_text("the broker does not answer")


@pytest.mark.slow
def test_no_worker_and_a_lost_api_are_said_and_it_goes_on_by_itself(page: Any, stack: Stack) -> None:
    """Trips that wait, a stream that is lost, and alerts again once both are back, without a reload."""
    open_page(page, stack.url)
    stack.stop("worker")
    assert post(stack.url, "/transaction", GHOST | {"transaction_id": "waits"}) == 202
    expect(page.locator("#notice")).to_contain_text("Is a worker running?", timeout=20_000)
    stack.stop("api")
    expect(page.locator("#connection")).to_have_text("lost, trying again", timeout=10_000)
    for _ in stack.start("api", "worker"):
        pass
    expect(page.locator("#connection")).to_have_text("live", timeout=15_000)
    expect(page.locator("#alerts > li", has_text="waits")).to_be_visible(timeout=20_000)
    expect(page.locator("#notice")).to_be_hidden(timeout=10_000)
