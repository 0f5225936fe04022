"""`make audit`: what it says where packages are sound, vulnerable, accepted, or could not be looked up."""

import importlib.util
import json
import sys
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fraudlib import paths

SOUND = {"name": "orjson", "version": "3.11.4", "vulns": []}
HOLE = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "fix_versions": ["2.0"]}
BAD = {"name": "starlette", "version": "1.0", "vulns": [HOLE]}
LOST = {"name": "tqdm", "skip_reason": "Dependency not found on PyPI and could not be audited: tqdm (4.70.1)"}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """docker/audit.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("audit", paths.root() / "docker/audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit"] = module
    spec.loader.exec_module(module)
    return module


def run(
    tool: ModuleType, folder: Path, said: str, accepted: set[str], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, output and errors where pip-audit, which needs a network, says `said` of every image."""
    stand_in = folder / "pip_audit.py"
    stand_in.write_text(f"import sys\nsys.stdout.write({said!r})\nsys.exit('ConnectionError: no such host')\n")
    code = tool.report(tool.audit([sys.executable, str(stand_in)], [], accepted), accepted)
    return code, *capsys.readouterr()


def of(*packages: dict[str, Any]) -> str:
    """As pip-audit writes it."""
    return json.dumps({"dependencies": packages, "fixes": []})


def test_sound_packages_pass(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0, and how many were looked up, each once."""
    code, out, err = run(tool, tmp_path, of(SOUND), set(), capsys)
    assert (code, err) == (0, "")
    assert "1 packages looked up: 0 vulnerabilities, 0 accepted" in out


def test_a_vulnerability_fails_unless_it_is_explained(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its id, the package, what mends it and where to explain it; either of its ids does for that."""
    code, out, _ = run(tool, tmp_path, of(SOUND, BAD), set(), capsys)
    assert code == 1
    assert "PYSEC-2026-1: starlette==1.0, mended by 2.0" in out
    assert "docker/audit-accepted.txt" in out
    for name in ("PYSEC-2026-1", "CVE-2026-1"):
        assert run(tool, tmp_path, of(SOUND, BAD), {name}, capsys)[0] == 0
    code, out, _ = run(tool, tmp_path, of(SOUND), {"CVE-2026-1"}, capsys)
    assert code == 0
    assert "CVE-2026-1 is found no more" in out


@pytest.mark.parametrize("said", [of(SOUND, LOST), ""], ids=["not found", "no connection"])
def test_what_was_not_looked_up_is_not_taken_for_sound(
    tool: ModuleType, tmp_path: Path, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fails with the reason and the ways out, also where pip-audit ends with a traceback."""
    code, _, err = run(tool, tmp_path, said, {"CVE-2026-1"}, capsys)
    assert code == 1
    assert ("not found on PyPI" if said else "ConnectionError: no such host") in err
    assert "--vulnerability-service osv" in err
    assert "HTTPS_PROXY" in err
    assert "make sbom" in err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("CVE-2026-1", "line 2: expected ID YYYY-MM-DD WHY"),
        ("CVE-2026-1 soon because", "line 2: expected ID YYYY-MM-DD WHY"),
        ("CVE-2026-1 2026-12-31", "line 2: expected a reason"),
        ("CVE-2026-1 2026-06-30 we read no XML", "line 2: CVE-2026-1 was accepted until 2026-06-30"),
    ],
)
def test_what_is_accepted_has_a_reason_and_an_end(tool: ModuleType, tmp_path: Path, line: str, sentence: str) -> None:
    """Nothing is passed over without a reason or for ever."""
    path = tmp_path / "accepted.txt"
    path.write_text(f"# comment\n{line}\n")
    with pytest.raises(ValueError, match=sentence):
        tool.read_accepted(path, date(2026, 11, 1))
    path.write_text("# comment\n\nCVE-2026-1 2026-12-31 we read no XML\n")
    assert tool.read_accepted(path, date(2026, 11, 1)) == {"CVE-2026-1"}


def test_the_file_of_accepted_ones_can_be_read(tool: ModuleType) -> None:
    """As it stands in the repository."""
    assert tool.read_accepted(tool.ACCEPTED, date(2026, 11, 1)) is not None
