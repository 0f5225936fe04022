"""Settings come from the environment, are checked, and stand in the README."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from fraudlib import paths
from fraudlib.settings import Settings

README = paths.root() / "README.md"


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """FRAUDLIB_NAME sets `name`, typed."""
    monkeypatch.setenv("FRAUDLIB_API_PORT", "8123")
    monkeypatch.setenv("FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS", "broker-1:9092,broker-2:9092")
    settings = Settings()
    assert settings.api_port == 8123
    assert settings.kafka_bootstrap_servers == "broker-1:9092,broker-2:9092"


@pytest.mark.parametrize(
    ("name", "value"),
    [("API_PORT", "0"), ("API_PORT", "http"), ("DEVICE", "tpu"), ("LOG_LEVEL", "LOUD"), ("BATCH_MAX_RECORDS", "0")],
)
def test_a_setting_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A wrong value is an error that names the setting, not a default."""
    monkeypatch.setenv(f"FRAUDLIB_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_a_relative_artifacts_folder_counts_from_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Services find the same bundles from whatever folder they are started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRAUDLIB_ARTIFACTS_DIR", "models")
    assert Settings().artifacts == paths.root() / "models"


def test_every_setting_is_described() -> None:
    """Each field says what it is for."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.skipif(not README.exists(), reason="the README is not written yet")
def test_every_setting_stands_in_the_readme() -> None:
    """The README's table has each variable with its default, and none that does not exist but FRAUDLIB_ROOT."""
    rows = dict(re.findall(r"^\| `(FRAUDLIB_\w+)` \| `?([^`|]*?)`? \|", README.read_text(), re.MULTILINE))
    expected = {f"FRAUDLIB_{name.upper()}": str(field.default) for name, field in Settings.model_fields.items()}
    rows.pop("FRAUDLIB_ROOT", None)
    assert rows == expected
