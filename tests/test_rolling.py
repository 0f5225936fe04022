"""Periods follow the months that are there, and months that cannot be had stop nothing."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fraudlib import paths, simulate
from fraudlib.errors import DataError, ParameterError
from fraudlib.rolling import main, newer, periods
from pipelines import months

YEAR = [f"2023-{month:02}" for month in range(1, 6)]


def test_the_newest_month_tests() -> None:
    """The newest tests, the one before validates, those before train; a single one is no range."""
    expected = {"train_months": "2023-02:2023-03", "valid_month": "2023-04", "test_month": "2023-05"}
    assert periods(YEAR, 2) == expected
    assert periods(YEAR, 1)["train_months"] == "2023-03"


@pytest.mark.parametrize(("there", "message"), [(YEAR[:3], "found 2023-01, 2023-02"), ([], "found none")])
def test_too_few_months_are_refused(there: list[str], message: str) -> None:
    """Two to train on, one to validate and one to test are four."""
    with pytest.raises(DataError, match=message):
        periods(there, 2)


def test_a_gap_in_training_is_refused() -> None:
    """A hole among the months to train on is named; one between validation and test is none."""
    assert periods([*YEAR[:3], "2023-05"], 2)["test_month"] == "2023-05"
    with pytest.raises(DataError, match="found no 2023-02"):
        periods(["2023-01", "2023-03", "2023-04", "2023-05"], 2)


def test_only_months_that_are_over_are_asked_for() -> None:
    """From the one after the newest on, a dozen at most; an empty folder begins where a training would."""
    today = np.datetime64("2023-08-15")
    assert newer(YEAR, today, 3) == ["2023-06", "2023-07"]
    assert newer([*YEAR, "2023-07"], today, 3) == []
    assert newer([], today, 1)[0] == "2023-02"
    assert len(newer(["2001-01"], today, 3)) == 12


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """Months by file name at the address of FRAUDLIB_TRIPS_URL; what is not there is answered with 403."""
    bodies: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies.get(self.path.lstrip("/"))
            self.send_response(403 if body is None else 200)
            # Half a file: more is promised than comes.
            self.send_header("Content-Length", str(len(body or b"") + 9 * (body == b"half")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("FRAUDLIB_TRIPS_URL", f"http://127.0.0.1:{server.server_port}")
        yield bodies
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three small months."""
    for month in YEAR[:3]:
        simulate.write(simulate.simulate_month(month, "green", 1000, 7), tmp_path / f"green_tripdata_{month}.parquet")
    return tmp_path


def test_a_new_month_rolls_the_periods_forward(folder: Path, site: dict[str, bytes]) -> None:
    """The published month is fetched and tests from now on; the next one, which is not there yet, is no failure."""
    site["green_tripdata_2023-04.parquet"] = (folder / "green_tripdata_2023-03.parquet").read_bytes()
    values = {"data_dir": str(folder), "service": "green", "seed": 7, "test_month": "old"}
    rolled, outcomes = months.roll(values, 1, is_fetching=True)
    assert (rolled["train_months"], rolled["valid_month"], rolled["test_month"]) == ("2023-02", "2023-03", "2023-04")
    assert (rolled["seed"], outcomes) == (7, {"fetched": 1, "unpublished": 1})


@pytest.mark.parametrize("body", [b"half", b"<html>no trips</html>"])
def test_a_failed_fetch_stops_nothing(folder: Path, site: dict[str, bytes], body: bytes) -> None:
    """Half a file, or none of trips, is a failure; the months that are there are taken, and no file stays behind."""
    site["green_tripdata_2023-04.parquet"] = body
    answer = json.loads(CliRunner().invoke(main, [str(folder), "--train", "1", "--fetch"]).stdout)
    assert [(one["month"], one["outcome"]) for one in answer["fetches"]] == [("2023-04", "failed")]
    assert answer["periods"]["test_month"] == "2023-03"
    assert len(list(folder.iterdir())) == 3


def test_no_connection_stops_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the internet the fetch has failed, and the run goes on with what is there."""
    monkeypatch.setenv("FRAUDLIB_TRIPS_URL", "http://127.0.0.1:9")
    answer = json.loads(CliRunner().invoke(main, [str(folder), "--train", "1", "--fetch"]).stdout)
    assert answer["fetches"][0]["outcome"] == "failed"
    assert "by hand" in answer["fetches"][0]["problem"]
    assert answer["problem"] == ""


def test_too_few_months_end_the_run() -> None:
    """The sample's one month cannot roll; the message names the folder and what is there."""
    values = {"data_dir": str(paths.root() / "data" / "sample"), "service": "green"}
    with pytest.raises(DataError, match=r"sample: expected 3 months.*2023-05"):
        months.roll(values, 3, is_fetching=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_months": "latest"}, "latest:N"),
        ({"train_months": "latest:0"}, "latest:N"),
        ({"train_months": "latest:3", "test_month": "2023-05"}, "test_month.*leave it out"),
    ],
)
def test_a_wrong_wish_is_refused(given: dict[str, str], message: str) -> None:
    """What is no number of months, or says the test month twice, is refused before anything runs."""
    with pytest.raises(ParameterError, match=message):
        months.rolls(given)
    assert months.rolls({"train_months": "2023-01:2023-03"}) == 0
