"""The dashboard's figure asks what the dashboard asks, and draws it."""

from pathlib import Path

import pytest

from bench import dashboard
from fraudlib import paths

PANELS = dashboard.panels(paths.resolve(dashboard.DASHBOARD))


def test_every_panel_drawn_is_one_of_the_dashboards() -> None:
    """Each title that the figure shows is in the dashboard's file, with a query that Prometheus can take as it is."""
    drawn = [panel for panel in PANELS if panel.title in dashboard.SHOWN and panel.kind != "stat"]
    assert sorted(panel.title for panel in drawn) == sorted(dashboard.SHOWN)
    assert not [query for panel in PANELS for query, _ in panel.targets if "$" in query]


def test_prometheus_reads_the_stacks_rules_and_this_machines_ports() -> None:
    """Rules and intervals are the stack's own; only the addresses are of this machine, and each job has one."""
    given = dashboard.configuration({"api": 8000, "worker": 9108})
    assert given["global"]["scrape_interval"] == "5s"
    assert list(Path(given["rule_files"][0]).parent.glob("recording.yml"))
    assert [job["static_configs"][0]["targets"] for job in given["scrape_configs"]] == [
        ["127.0.0.1:8000"],
        ["127.0.0.1:9108"],
    ]


def test_answers_become_a_figure_and_none_are_said(tmp_path: Path) -> None:
    """Lines, bins, bars and tiles are drawn in one figure; no answer leaves a panel empty, a tile says no data."""
    times = [1_700_000_000 + 5 * i for i in range(40)]
    labels = {"field": "fare_amount", "feature": "speed", "partition": "0", "bundle_id": "2026-a", "device": "cpu"}
    line = {"metric": labels, "values": [[t, "1.5"] for t in times], "value": [times[0], "1.5"]}
    bins = [{"metric": {"le": le}, "values": [[t, str(n)] for t in times]} for n, le in enumerate(("1", "2", "+Inf"))]
    found = {
        f"{panel.title}/{panel.kind}": [bins if panel.kind == "heatmap" else [line] for _ in panel.targets]
        for panel in PANELS
    }
    found["Dead letters/stat"] = [[]]
    found["Lag by partition/timeseries"] = [[]]
    dashboard.draw(found, "made up", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    tile = next(panel for panel in PANELS if panel.title == "Dead letters" and panel.kind == "stat")
    assert dashboard._stat(tile, [[]]) == "no data"


def test_without_prometheus_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is started, one sentence tells what is missing, and the exit code is 1."""
    monkeypatch.setenv("PATH", "")
    assert dashboard.main(["--minutes", "0.1"]) == 1
    assert "prometheus" in capsys.readouterr().err
