"""First looks at trips: receipts, rules on one number, what-ifs."""

import numpy as np
import pytest

from fraudlib import explore, fraud, trial, trips
from fraudlib.paths import root

Columns = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def sample() -> Columns:
    return trips.to_columns(trips.read(root() / "data/sample").slice(0, 6000))


def test_a_receipt_adds_up(sample: Columns) -> None:
    """The charges of an ordinary trip add up to its total, and blank ones are left out."""
    charges, total = explore.receipt(sample, explore.median_trip(sample))
    assert "fare_amount" in charges
    assert sum(charges.values()) == pytest.approx(total)
    assert not any(np.isnan(usd) for usd in charges.values())


def test_a_record_names_unit_and_meaning(sample: Columns) -> None:
    """Every field that a record has is listed, a blank one without a value."""
    shown = explore.record(sample, 0)
    assert shown.loc["trip_distance", "unit"] == "miles"
    assert shown.loc["trip_distance", "value"] == f"{sample['trip_distance'][0]:g}"
    assert shown.loc["cbd_congestion_fee", "value"] == ""


def test_a_rule_on_one_number_keeps_its_price(sample: Columns) -> None:
    """Crude tips fall to a rule on the tip; on the honest trips themselves no rule flags more than its budget."""
    planted = trial.plant(sample, 0.05, 1, 3, ["tip_crude", "long_haul"])
    rules = explore.single_rules(sample, planted.columns, planted.kind, 0.01)
    assert rules.loc["tip_crude", "number"] in ("tip, USD", "tip over fare")
    assert rules.loc["tip_crude", "recall"] > 0.9 > rules.loc["long_haul", "recall"]
    names = np.full(len(sample["fare_amount"]), "honest")
    assert explore.single_rules(sample, sample, names, 0.01).recall.max() <= 0.0101


def test_a_scaled_fare_stays_one_that_a_meter_shows(sample: Columns) -> None:
    """The fare keeps to the meter's steps, the total moves with it, and a factor of one changes nothing."""
    row = explore.median_trip(sample)
    factors = np.array([0.5, 1.0, 1.7])
    scaled = explore.scaled(sample, row, "fare_amount", factors)
    assert scaled["fare_amount"][1] == sample["fare_amount"][row]
    assert scaled["fare_amount"] == pytest.approx(fraud.snap(scaled, scaled["fare_amount"]))
    moved = scaled["fare_amount"] - sample["fare_amount"][row]
    assert scaled["total_amount"] == pytest.approx(sample["total_amount"][row] + moved)


def test_a_threshold_splits_what_was_scored(sample: Columns) -> None:
    """Shares flagged count honest trips and frauds apart, and the nearest above the line come in order."""
    score = np.array([0.5, 1.5, 2.5, 3.5])
    four = {name: values[:4] for name, values in sample.items()}
    seen = explore.Scored(four, score, np.array(["", "", "", "tip_crude"]))
    assert seen.flagged(2.0) == (pytest.approx(1 / 3), 1.0)
    assert list(seen.nearest(1.0, 2).score) == [1.5, 2.5]
    assert list(seen.nearest(1.0, 9).planted) == ["nothing", "nothing", "tip_crude"]
