"""Every file name of the project, once."""

import os
from dataclasses import dataclass
from pathlib import Path


def root() -> Path:
    """Root of the project: FRAUDLIB_ROOT, else the checkout that this package lies in, else the working directory."""
    if given := os.environ.get("FRAUDLIB_ROOT"):
        return Path(given).resolve()
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def resolve(path: str | Path) -> Path:
    """Absolute path; a relative one counts from the project's root, whatever directory a kernel runs in."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else (root() / path).resolve()


@dataclass(frozen=True)
class RunPaths:
    """Files that notebooks 01 to 04 write for each other in one run's folder.

    Parameters
    ----------
    folder : Path
        `runs/<run_id>`; made when missing.
    """

    folder: Path

    @classmethod
    def at(cls, folder: str | Path) -> "RunPaths":
        """Paths of the run in `folder`, which is made when missing; a relative one counts from the project's root."""
        path = resolve(folder)
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    def trips(self, split: str) -> Path:
        """Trips of one split ("train", "valid", "test") as 01 wrote them."""
        return self.folder / f"trips_{split}.parquet"

    @property
    def data(self) -> Path:
        """What the data is: files, hashes, rows, splits, real or simulated (01)."""
        return self.folder / "data.json"

    @property
    def statistics(self) -> Path:
        """Training statistics that features need (01)."""
        return self.folder / "statistics.json"

    @property
    def model(self) -> Path:
        """Weights of the masked autoencoder and its combiner (02)."""
        return self.folder / "model.safetensors"

    @property
    def model_config(self) -> Path:
        """Architecture of the model (02)."""
        return self.folder / "model.json"

    @property
    def training(self) -> Path:
        """Learning curves and settings of the training (02)."""
        return self.folder / "training.json"

    @property
    def left_out(self) -> Path:
        """Heads that were each taught without one family of fraud (02)."""
        return self.folder / "left_out.safetensors"

    @property
    def card(self) -> Path:
        """Model card of the run (04)."""
        return self.folder / "model-card.md"

    @property
    def calibration(self) -> Path:
        """Tail calibration of the surprises on the validation split (03)."""
        return self.folder / "calibration.json"

    @property
    def threshold(self) -> Path:
        """The chosen threshold and its alternatives (03)."""
        return self.folder / "threshold.json"

    @property
    def metrics(self) -> Path:
        """Metrics on the test split with their intervals (04)."""
        return self.folder / "metrics.json"

    @property
    def gate(self) -> Path:
        """Whether the candidate passed, why, and the bundle it was sealed as (04)."""
        return self.folder / "gate.json"


CURRENT = "current"  # in the artifacts folder: the name of the live bundle's folder
SHADOW = "shadow"  # in the artifacts folder: the name of a bundle that is scored beside the live one, if any
HISTORY = "history.jsonl"  # in the artifacts folder: what was live from when, and why
MANIFEST = "manifest.json"  # in a bundle
SIGNATURE = "manifest.sig"  # in a signed bundle
RETIRED = ".retired"  # in the artifacts folder: manifests of bundles that were removed, <bundle id>.json
