"""What the project is made of: packages by hash, no password that everyone knows, no code hidden in data."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from detect_secrets import SecretsCollection
from detect_secrets.settings import default_settings

from fraudlib import paths

ROOT = paths.root()
IMAGES = ("api", "worker", "pipelines", "cpu", "cuda", "pip", "wheel")
TRACKED = (".py", ".md", ".yml", ".yaml", ".toml", ".sh", ".json", ".html", ".cfg", ".ini", ".env", ".js", ".ipynb")
EXEMPT = re.compile(r"^tests/|^docker/requirements-")  # passwords that tests make up, and hashes
_release = re.compile(r"([A-Za-z0-9._-]+)==([^\s;+]+)(?:\+\w+)?(?: ; .*?)?((?: --hash=sha256:[0-9a-f]{64})+)").fullmatch


def pinned(text: str) -> dict[str, str]:
    """Releases by lower-case name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;+]+)", text, re.MULTILINE)
    return {name.lower().replace("_", "-").replace(".", "-"): version for name, version in found}


def tracked() -> list[Path]:
    """Text files that git knows."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git repository here")
    return [ROOT / name for name in listed.stdout.splitlines() if name.endswith(TRACKED) or "docker" in name]


@pytest.mark.parametrize("image", IMAGES)
def test_every_package_of_an_image_has_its_hash_and_the_release_that_was_tested(image: str) -> None:
    """`pip install --require-hashes` finds a hash for each, and none differs from constraints.txt."""
    text = (ROOT / f"docker/requirements-{image}.txt").read_text()
    lines = [line for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines() if line and line[0] != "#"]
    assert lines
    assert [line for line in lines if not _release(line)] == []
    ours = pinned((ROOT / "constraints.txt").read_text())
    theirs = pinned(text)
    assert {name: version for name, version in theirs.items() if ours.get(name, version) != version} == {}


def test_an_image_holds_no_more_than_its_room_needs() -> None:
    """The API's has no torch, pandas or Jupyter, the worker's no web framework."""
    names = {image: set(pinned((ROOT / f"docker/requirements-{image}.txt").read_text())) for image in IMAGES}
    assert names["api"].isdisjoint({"torch", "pandas", "scikit-learn", "papermill", "ipykernel"})
    assert names["worker"].isdisjoint({"fastapi", "uvicorn", "scikit-learn", "papermill", "ipykernel", "matplotlib"})
    assert names["cpu"] == {"torch"}


def test_the_images_install_nothing_without_its_hash() -> None:
    """Each pip install of the recipe checks hashes, but for the project's own wheel, which brings nothing along."""
    recipe = (ROOT / "docker/Dockerfile").read_text()
    installs = re.findall(r"pip install (.*)", recipe)
    assert len(installs) > 5
    assert [i for i in installs if not re.match(r"--require-hashes --no-deps|--no-deps /wheel/\*\.whl$", i)] == []


def test_no_secret_is_in_the_repository() -> None:
    """No key, token or private key in any file that git knows, by the rules of detect-secrets."""
    secrets = SecretsCollection()
    with default_settings() as settings:
        settings.disable_plugins("HexHighEntropyString", "Base64HighEntropyString")  # hashes and outputs of notebooks
        for path in tracked():
            if path.suffix not in {".ipynb", ".json", ".md"} and not EXEMPT.search(str(path.relative_to(ROOT))):
                secrets.scan_file(str(path))
    assert [(secret.filename, secret.line_number, secret.type) for _, secret in secrets] == []


def test_a_secret_would_be_found(tmp_path: Path) -> None:
    """The check above is no formality."""
    path = tmp_path / "settings.py"
    path.write_text('api_password = "hunter2-very-secret"\n')  # pragma: allowlist secret
    secrets = SecretsCollection()
    with default_settings():
        secrets.scan_file(str(path))
    assert len(list(secrets)) == 1


def test_no_service_has_a_password_that_everyone_knows() -> None:
    """No admin/admin, no password or key with a value in compose files and configurations."""
    known = re.compile(
        r"(?i)(passw(or)?d|secret|api_?key|token)\w*['\"]?\s*[:=]\s*['\"]?(?!\$|/|\.|\||>|<|None|file)[\w-]{3,}"
    )
    found = []
    for path in tracked():
        if path.suffix in {".yml", ".yaml", ".toml", ".env", ".ini", ".cfg"} or "docker/" in str(path):
            for number, raw in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
                line = raw.partition("#")[0]
                is_path = re.search(r"(?i)(_file|__file|_path|_dir)\W", line)
                if known.search(line) and not is_path and "requirements-" not in path.name:
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_the_checks_run_what_was_read_and_hold_no_rights() -> None:
    """Each action of the workflow is a commit, not a tag that can move; its token reads and is not left on the disk."""
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    used = re.findall(r"uses: (\S+)", text)
    assert used
    assert [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)] == []
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
