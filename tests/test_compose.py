"""The compose files, the images' recipe and the manual: what they promise without a Docker engine."""

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from fraudlib import manifest, paths, trips
from fraudlib.api.services import DRAIN_SECONDS
from fraudlib.scoring import Scorer
from fraudlib.settings import Settings
from fraudlib.worker.main import DRAIN_SECONDS as WORKER_DRAIN_SECONDS

ROOT = paths.root()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
GPU = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
LASTING = sorted(set(SERVICES) - {"init"})
FILES = [ROOT / f"docker-compose{part}.yml" for part in ("", ".gpu", ".kafka")]
TEXT = "".join(path.read_text() for path in FILES)
RECIPE = (ROOT / "docker" / "Dockerfile").read_text()


def requirements(image: str) -> set[str]:
    """Names that an image installs from its file."""
    text = (ROOT / "docker" / f"requirements-{image}.txt").read_text()
    return set(re.findall(r"^([\w.-]+)==", text, re.MULTILINE))


def test_compose_v2_takes_the_files() -> None:
    """They are what the Compose specification allows."""
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *FILES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose 1.29 here")
def test_compose_1_29_takes_the_files() -> None:
    """The older command reads them too, together with each addition."""
    for addition in FILES[1:]:
        command = ["docker-compose", "-f", FILES[0], "-f", addition, "config", "-q"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_nothing_is_published_beyond_this_machine(name: str) -> None:
    """Every published port is bound to the loopback address."""
    assert all(re.match(r"127\.0\.0\.1:\$\{\w+:-\d+\}:\d+$", port) for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_container_has_few_rights(name: str) -> None:
    """No capabilities or new privileges, a memory limit, an init process; of the host only files to read."""
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert "mem_limit" in service
    assert not {"privileged", "network_mode", "pid", "ipc", "devices", "cap_add"} & service.keys()
    assert all(volume.endswith(":ro") for volume in service.get("volumes", []) if volume.startswith("."))


@pytest.mark.parametrize("name", OURS)
def test_this_project_s_containers_write_only_where_they_must(name: str) -> None:
    """The root filesystem is read-only; what is written goes to a volume or to memory, by a user who is not root."""
    assert SERVICES[name]["read_only"] is True
    assert SERVICES[name]["tmpfs"]
    assert "user" not in SERVICES[name]
    assert re.search(r"^USER 10001:10001$", RECIPE, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(set(LASTING) - {"traffic"}))
def test_every_service_says_whether_it_is_healthy(name: str) -> None:
    """A health check stands in the compose file or in the image's recipe, and a stop starts it again."""
    stage = RECIPE.partition(f" AS {name}\n")[2].partition("\nFROM ")[0]
    assert "healthcheck" in SERVICES[name] or "HEALTHCHECK" in stage
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ["api", "worker"])
def test_a_stop_leaves_time_to_drain(name: str) -> None:
    """Docker waits longer before it kills than the service takes to finish what it has."""
    assert int(SERVICES[name]["stop_grace_period"].rstrip("s")) > 15 >= max(DRAIN_SECONDS, WORKER_DRAIN_SECONDS)


def test_workers_can_be_many() -> None:
    """Nothing about a worker exists only once: no name, no port of the host."""
    assert not {"container_name", "ports", "hostname"} & SERVICES["worker"].keys()
    assert not any("container_name" in service for service in SERVICES.values())


def test_only_the_scheduler_and_the_start_write_bundles() -> None:
    """The worker reads the volume that a promotion is written to."""
    mounts = {n: v for n, s in SERVICES.items() for v in s.get("volumes", []) if v.startswith("artifacts:")}
    assert {name for name, volume in mounts.items() if not volume.endswith(":ro")} == {"init", "scheduler"}
    assert mounts["worker"].endswith(":ro")


def test_every_image_is_pinned() -> None:
    """Images of others and bases name a release, never whatever is newest."""
    images = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", s["image"]) for n, s in SERVICES.items() if n not in OURS]
    bases = [base for base in re.findall(r"^FROM (\S+)", RECIPE, re.MULTILINE) if ":" in base]
    assert images
    assert bases
    assert all(re.search(r":v?\d+\.\d+\.\d+", image) for image in images + bases)
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", RECIPE, re.MULTILINE))
    assert {SERVICES[name]["build"]["target"] for name in OURS} <= targets


def test_the_variables_that_are_set_exist() -> None:
    """Every FRAUDLIB_ variable of the compose files and of the images is a setting."""
    known = {f"FRAUDLIB_{name.upper()}" for name in Settings.model_fields} | {"FRAUDLIB_ROOT", "FRAUDLIB_GIT_COMMIT"}
    used = set(re.findall(r"(FRAUDLIB_\w+):", TEXT)) | set(re.findall(r"(FRAUDLIB_\w+)=", RECIPE))
    assert used
    assert used <= known


def test_variables_have_defaults_and_stand_in_the_manual() -> None:
    """`docker compose up` needs no .env file, and docs/operations.md has every variable with its default."""
    manual = (ROOT / "docs" / "operations.md").read_text()
    variables = dict(re.findall(r"\$\{(\w+)(?::-([^}]*))?\}", TEXT))
    assert all(variables.values())
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", manual, re.MULTILINE))
    assert rows == {name: default for name, default in variables.items() if name != "GIT_COMMIT"}


def test_no_secret_is_written_down() -> None:
    """No password, key or token has a value in the files; secrets come from files that the first start makes."""
    found = re.findall(r"(\w*(?:PASSWORD|SECRET|TOKEN|API_KEY)\w*)\s*[:=]\s*(\S+)", TEXT + RECIPE)
    assert found
    assert all(name.endswith("FILE") and value.startswith("/") for name, value in found)


def test_the_api_image_has_no_model() -> None:
    """What it installs is web and broker; torch comes with the worker, Jupyter's kernel with the pipelines."""
    api, worker, pipelines = (requirements(image) for image in ("api", "worker", "pipelines"))
    heavy = {"torch", "pandas", "pyarrow", "scikit-learn", "safetensors", "papermill"}
    assert not api & heavy
    assert not worker & {"fastapi", "uvicorn", "scikit-learn", "matplotlib", "papermill"}
    assert {"papermill", "apscheduler"} <= pipelines
    stages = {name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", RECIPE, re.MULTILINE)}
    assert (stages["build-api"], stages["build-worker"], stages["scoring"]) == ("build", "scoring", "torch")


def test_the_gpu_file_gives_the_worker_one_gpu() -> None:
    """Of the services it changes the worker alone: CUDA's PyTorch, an image name of its own, one NVIDIA device."""
    assert GPU["services"].keys() - SERVICES.keys() == {"dcgm-exporter"}
    worker, exporter = GPU["services"]["worker"], GPU["services"]["dcgm-exporter"]
    assert worker["build"]["args"] == {"TORCH": "cuda"}
    assert "nvidia-cublas" in requirements("cuda")
    assert worker["image"] != SERVICES["worker"]["image"]
    for service in (worker, exporter):
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert exporter["cap_drop"] == ["ALL"]
    assert not {"ports", "container_name", "cap_add"} & exporter.keys()


def test_the_context_is_what_the_recipe_copies() -> None:
    """Everything that the recipe copies is let in, and neither data/raw nor git nor local environments are."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", RECIPE, re.MULTILINE)
        for source in sources.split()
    }
    assert all(any(fnmatch(source, part) or source.startswith(f"{part}/") for part in allowed) for source in copied)
    assert all((ROOT / source).exists() for source in copied)
    assert not any(
        f"{part}/".startswith((".git/", ".venv/", "data/raw/", "runs/")) or part == "data" for part in allowed
    )


def test_the_default_bundle_keeps_its_budget_on_the_traffic() -> None:
    """Of the generator's honest trips at most twice the promised share is flagged."""
    folder = manifest.current_bundle(ROOT / "artifacts")
    assert folder is not None
    scorer = Scorer.load(folder, device="cpu", threads=1)
    honest = trips.to_columns(trips.read(ROOT / "data" / "sample").slice(0, 20_000))
    assert scorer.score(honest).is_flagged.mean() <= 2 * 0.01
