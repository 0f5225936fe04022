"""Bundles that somebody or something tampered with: each is refused with the reason, and the old model serves on."""

import asyncio
import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fraudlib import bundle, manifest, paths, signature
from fraudlib.errors import BundleError
from fraudlib.paths import CURRENT, MANIFEST, SIGNATURE
from fraudlib.settings import Settings
from fraudlib.telemetry import WorkerMetrics
from fraudlib.worker.live_bundle import LiveBundle
from fraudlib.worker.main import load_scorer
from tests.conftest import BUNDLE

Tamper = Callable[["Place", Path, random.Random], object]
WEIGHTS = "model.safetensors"


class Place:
    """An artifacts folder with a signed live bundle, another good one, and the keys.

    Attributes
    ----------
    good, other : folders of two signed bundles that load; the first is live.
    key, wrong_key : private keys; only the first one's public key is trusted.
    touched : file that a pickle would make if anyone loaded it.
    """

    def __init__(self, folder: Path) -> None:
        self.artifacts = folder / "artifacts"
        self.touched = folder / "touched"
        self.key, self.wrong_key = folder / "key", folder / "wrong"
        self.public = signature.generate(self.key)
        signature.generate(self.wrong_key)
        default = manifest.current_bundle(paths.root() / "artifacts")
        assert default is not None
        self.good = self.artifacts / default.name
        shutil.copytree(default, self.good)
        self.other = self._another()
        for made in (self.good, self.other):
            signature.sign(made, self.key)
        manifest.set_current(self.artifacts, self.good.name, "the one that serves")

    def _another(self) -> Path:
        """The same model, a little off: a bundle of its own that loads."""
        first = bundle.load(self.good)
        scorer = first.scorer
        with bundle.torch.no_grad():
            for value in scorer.model.parameters():
                value.mul_(1.02)
        m = first.manifest
        return bundle.seal(
            self.artifacts, "run-other", scorer.model, scorer.statistics, scorer.calibration, m.threshold, m.metrics,
            m.data, m.parameters, first.reference,
        )  # fmt: skip

    def rehash(self, folder: Path) -> None:
        """Make the manifest fit the files again, as a forger would who has no key."""
        path = folder / MANIFEST
        content = json.loads(path.read_bytes())
        for name in content["files"]:
            file = folder / name
            content["files"][name] = {"sha256": manifest.sha256(file), "bytes": file.stat().st_size}
        path.write_text(json.dumps(content))


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (os.mkdir, (str(self.path),))


def some_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(file for file in folder.iterdir() if file.is_file()))


def some_part(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(file for file in folder.iterdir() if file.name not in (MANIFEST, SIGNATURE)))


def flip(place: Place, folder: Path, rng: random.Random) -> None:
    file = some_file(folder, rng)
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data.strip()))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def cut(place: Place, folder: Path, rng: random.Random) -> None:
    file = some_file(folder, rng)
    data = file.read_bytes().strip() if file.name == SIGNATURE else file.read_bytes()
    file.write_bytes(data[: rng.choice((0, 1, len(data) // 2, len(data) - 1, rng.randrange(len(data))))])


def grow(place: Place, folder: Path, rng: random.Random) -> None:
    with some_part(folder, rng).open("ab") as file:
        file.write(rng.randbytes(rng.randint(1, 2000)))


def swap(place: Place, folder: Path, rng: random.Random) -> None:
    one, two = rng.sample(sorted(file for file in folder.iterdir() if file.name != SIGNATURE), 2)
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)


def remove(place: Place, folder: Path, rng: random.Random) -> None:
    some_file(folder, rng).unlink()


def add(place: Place, folder: Path, rng: random.Random) -> None:
    (folder / rng.choice(("model.pkl", "conftest.py", ".hidden", "model.pt", "x" * 200))).write_bytes(rng.randbytes(50))


def mix(place: Place, folder: Path, rng: random.Random) -> None:
    differing = [f.name for f in place.other.iterdir() if f.read_bytes() != (place.good / f.name).read_bytes()]
    shutil.copy(place.other / rng.choice(sorted(differing)), folder)


def mix_and_rehash(place: Place, folder: Path, rng: random.Random) -> None:
    shutil.copy(place.other / rng.choice((WEIGHTS, "golden.json")), folder)
    place.rehash(folder)


def pickled(place: Place, folder: Path, rng: random.Random) -> None:
    some_part(folder, rng).write_bytes(pickle.dumps(Touch(place.touched)))
    if rng.random() < 0.5:
        place.rehash(folder)


def traverse(place: Place, folder: Path, rng: random.Random) -> None:
    name = rng.choice(
        ("../key", "../../etc/passwd", "/etc/passwd", "..", ".", "", "a/../../key", "..\\key", "\0", MANIFEST)
    )
    content = json.loads((folder / MANIFEST).read_bytes())
    content["files"][name] = {"sha256": "0" * 64, "bytes": 5}
    (folder / MANIFEST).write_text(json.dumps(content))


def link(place: Place, folder: Path, rng: random.Random) -> None:
    file = some_file(folder, rng)
    file.unlink()
    file.symlink_to(place.good / file.name)


def link_folder(place: Place, folder: Path, rng: random.Random) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(place.good)


def pipe(place: Place, folder: Path, rng: random.Random) -> None:
    file = some_file(folder, rng)
    file.unlink()
    os.mkfifo(file)


def directory(place: Place, folder: Path, rng: random.Random) -> None:
    file = some_file(folder, rng)
    file.unlink()
    file.mkdir()


def forge(place: Place, folder: Path, rng: random.Random) -> None:
    """What a forger would want: nothing is ever flagged, with hashes that fit."""
    (folder / "threshold.json").write_text(json.dumps({"threshold": 1e9}))
    place.rehash(folder)


def forge_and_sign(place: Place, folder: Path, rng: random.Random) -> None:
    forge(place, folder, rng)
    signature.sign(folder, place.wrong_key)


def unsign(place: Place, folder: Path, rng: random.Random) -> None:
    (folder / SIGNATURE).unlink()


def borrow(place: Place, folder: Path, rng: random.Random) -> None:
    shutil.copy(place.other / SIGNATURE, folder)


def nest(place: Place, folder: Path, rng: random.Random) -> None:
    (folder / MANIFEST).write_bytes(rng.choice((b"[", b'{"a":')) * 100_000)


def rename(place: Place, folder: Path, rng: random.Random) -> None:
    """Whole and signed, under another's name: an old bundle in the place of the new one."""
    shutil.rmtree(folder)
    shutil.copytree(place.other, folder)


TAMPER: tuple[Tamper, ...] = (
    flip, flip, flip, cut, cut, grow, swap, remove, add, mix, mix_and_rehash, pickled, traverse, link, link_folder,
    pipe, directory, forge, forge_and_sign, unsign, borrow, nest, rename,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Made once; every test leaves the good bundles as they are."""
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def candidate(place: Place) -> Iterator[Path]:
    """Where a tampered copy goes; the name of the bundle that it claims to be."""
    yield place.artifacts / "20990101T000000Z-new"
    clear(place.artifacts / "20990101T000000Z-new")


def clear(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def tampered(place: Place, folder: Path, tamper: Tamper, rng: random.Random) -> None:
    """A copy of the good bundle that is honestly the new one, and then tampered with."""
    clear(folder)
    shutil.copytree(place.good, folder)
    content = json.loads((folder / MANIFEST).read_bytes()) | {"bundle_id": folder.name}
    (folder / MANIFEST).write_text(json.dumps(content))
    signature.sign(folder, place.key)
    tamper(place, folder, rng)


def nothing(place: Place, folder: Path, rng: random.Random) -> None:
    """No tampering at all."""


async def tried(place: Place, folder: Path, seed: int, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """Let a worker's bundle meet so many tampered ones, and at last one that is good."""
    settings = Settings(verify_key_file=place.public, device="cpu")
    metrics = WorkerMetrics(CollectorRegistry())
    live = LiveBundle(place.artifacts, load_scorer(settings), metrics)
    await live.load()
    serving, rng = live.scorer, random.Random(seed)
    for number in range(count):
        tamper = TAMPER[number % len(TAMPER)]
        tampered(place, folder, tamper, rng)
        (place.artifacts / CURRENT).write_text(folder.name)
        caplog.clear()
        await live._replace()
        (record,) = caplog.records
        said = record.__dict__["error"]
        assert live.scorer is serving, tamper.__name__
        # A reason in the loader's own words names the place; an error of another kind would begin with its name.
        assert str(place.artifacts) in said, (tamper.__name__, said)
        assert not re.match(r"\w+(Error|Exception): ", said), (tamper.__name__, said)
    assert not place.touched.exists()
    tampered(place, folder, nothing, rng)
    await live._replace()
    assert live.scorer.bundle_id == folder.name


def test_tampered_bundles_are_refused_and_the_old_one_serves(
    place: Place, candidate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A hundred and fifteen of them, five of each kind; the next good one is taken."""
    asyncio.run(tried(place, candidate, 7, 5 * len(TAMPER), caplog))


@pytest.mark.fuzz
def test_a_thousand_tampered_bundles(place: Place, candidate: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same with more of each kind, others each time."""
    asyncio.run(tried(place, candidate, random.randrange(1 << 30), 46 * len(TAMPER), caplog))


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc", "a\0b", "a b", "x" * 300, "\ufffd", "a\nb"])
def test_a_pointer_names_a_folder_and_nothing_else(tmp_path: Path, name: str) -> None:
    """Whatever stands in `current`, the answer is a sentence about it."""
    (tmp_path / CURRENT).write_text(name)
    with pytest.raises(BundleError, match="expected the name of a bundle folder"):
        manifest.current_bundle(tmp_path)


def test_a_pointer_of_other_bytes_is_refused(tmp_path: Path) -> None:
    """Also where they are no text."""
    (tmp_path / CURRENT).write_bytes(b"\xff\xfe" + BUNDLE.encode("utf-16-le"))
    with pytest.raises(BundleError, match="expected the name of a bundle folder"):
        manifest.current_bundle(tmp_path)


def test_nothing_on_the_serving_side_can_unpickle() -> None:
    """No pickle, joblib, torch.load, torch.export.load, eval or exec in the library, and none with pickles allowed."""
    wrong = re.compile(
        r"\bimport (pickle|joblib|dill|cloudpickle|shelve|marshal)\b|\bfrom (pickle|joblib|dill|shelve|marshal) import"
        r"|torch\.load\(|export\.load\(|allow_pickle=True|\byaml\.load\(|(?<![.\w])(eval|exec)\("
    )
    library = sorted((paths.root() / "fraudlib").rglob("*.py"))
    assert {"bundle.py", "live_bundle.py", "records.py"} <= {path.name for path in library}
    found = [
        f"{path}:{number}"
        for path in library
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if wrong.search(line)
    ]
    assert found == []
