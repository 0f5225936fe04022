"""The model card of a bundle, written from its manifest: what it is for, how good it is, and where it ends.

`python -m fraudlib.modelcard BUNDLE > docs/model-card.md`; without BUNDLE the live one of FRAUDLIB_ARTIFACTS_DIR.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fraudlib import manifest
from fraudlib.errors import BundleError, FraudError
from fraudlib.fraud import KINDS
from fraudlib.manifest import Manifest
from fraudlib.settings import Settings

PURPOSE = """\
## What it is for

It ranks taxi trips by how seldom an honest trip looks like that, so that people with little time look at the right
ones first, and says in dollars, miles and minutes what does not fit. It is meant for payment and fare control, audits
of past months, and research.

## What it must not be used for

- Deciding about a person. A score is a question, never a finding: no fine, no refusal of pay, no loss of a licence and
  no accusation without a human review of the trip and its evidence. Of 1.8 million trips that New York first counted as
  overcharged in 2010, 286,000 were left after the review.
- Profiling drivers or passengers. The records hold no names, and joining them with such data to rank people is misuse.
- Other cities, other tariffs or other kinds of payment, without training and evaluating anew.
- Proof that a trip was honest. A low score says that the record looks ordinary, no more.
"""
LIMITS = """\
## Limits

- The frauds are planted: documented cases written into real records, some by our own proposal. How often real fraud
  looks like them is unknown, and no labels of real cases were available.
- One record at a time. A trip that is sent twice, trips that overlap, and a driver's habits over weeks leave no trace
  in one record.
- Detours, tampered meters and spoofed routes that stay inside the tariff look like honest detours; part of them stays
  unfound at any bearable rate of false alarms.
- Tariffs change. Known changes up to 2025 are in the features; after another one, retrain, and expect false alarms
  until then.
- Real fraud in the training and test months counts as honest, so false-positive rates are upper bounds.
- Prevalence is an assumption. The best-measured case found 0.08 % of trips; precision falls with it as shown above.

## Ethical notes

- A false alarm costs a driver time, and perhaps pay. Both operating points are set by that rate, in any week to come,
  and reasons are shown so that a reviewer can disagree.
- Records of the other submission path (no rate code, no payment type), dispatch trips and airport trips are rare and
  look unusual. Watch whether flags pile up on them, on a zone or on a vendor, before acting on any.
- Pickup zones follow where people live. The zones are used to tell what a route usually costs; the score must not be
  read as a statement about a neighbourhood.
- Trip records are public, but movements can identify people. Keep scores and alerts no longer than a review needs.
"""


def card(bundle: Manifest) -> str:
    """The model card of a bundle as Markdown."""
    parts = (_head(bundle), [PURPOSE], _data(bundle), _model(bundle), _headline(bundle.metrics), _points(bundle))
    more = (_kinds(bundle.metrics), _left_out(bundle.metrics), _baselines(bundle.metrics), [LIMITS])
    blocks = [block.strip("\n") for part in (*parts, *more) for block in part]
    return "\n\n".join(blocks) + "\n"


def write(folder: Path, target: Path) -> None:
    """Write the card of the bundle in `folder`; BundleError where it has no readable manifest."""
    manifest.write_atomic(target, card(manifest.read_manifest(folder)).encode())


def _head(bundle: Manifest) -> Iterator[str]:
    yield f"# Model card: bundle {bundle.bundle_id}"
    yield (
        f"Written from the bundle's manifest by `python -m fraudlib.modelcard`: run {bundle.run_id}, "
        f"{bundle.created_at[:10]}, code {bundle.git_commit[:12]}. Intervals are 95 %."
    )
    if bundle.data.get("simulated"):
        yield "**Trained on simulated trips.** The numbers show that the machinery works; they say nothing about taxis."


def _data(bundle: Manifest) -> Iterator[str]:
    splits = bundle.data.get("splits", {})
    yield "## Data"
    yield (
        "Trip records of the New York City Taxi and Limousine Commission, public, without any identifier of driver, "
        "vehicle, card or passenger; as they come, errors and look-alikes included. The commission does not vouch for "
        "their accuracy."
        if not bundle.data.get("simulated")
        else "Trips of the project's own simulator, in the shape of the TLC's records."
    )
    rows = [(s, part["period"], f"{part['rows']:,}") for s, part in splits.items()]
    yield _table(("split", f"{bundle.data.get('service', '')} trips picked up in", "trips"), rows)
    files = [(f["name"], f"{f['rows']:,}", f["sha256"][:12]) for f in bundle.data.get("files", [])]
    yield _table(("file", "rows", "sha256 begins"), files)


def _model(bundle: Manifest) -> Iterator[str]:
    p = bundle.parameters
    sizes = f" (width {p['width']}, bottleneck {p['latent_dim']})" if {"width", "latent_dim"} <= set(p) else ""
    yield "## Model"
    yield (
        f"A masked autoencoder{sizes} learns from trips as they come to predict hidden fields from the others, with a "
        f"spread of their own, in views that hide what fraud changes together; {len(bundle.features)} features. "
        "A small head, taught with planted fraud and with corruption of random fields, weighs the surprises: how like "
        "known fraud a trip is, and whether it looks changed at all. The score is a rarity: 2 is what one honest trip "
        "in a hundred reaches."
    )


def _headline(metrics: Mapping[str, Any]) -> Iterator[str]:
    if "average_precision" not in metrics:
        return
    without, unlisted = metrics.get("without_resubmitted", {}), metrics.get("unlisted", {})
    columns = {"all kinds": metrics, "without the trip sent twice": without, "kinds on no list": unlisted}
    columns = {name: part for name, part in columns.items() if part}
    rows = [
        ("average precision", "average_precision"),
        *[
            (f"average precision at {float(p):.2%} fraud", f"average_precision_at_prevalence/{p}")
            for p in metrics.get("average_precision_at_prevalence", {})
        ],
        ("ROC AUC", "roc_auc"),
        *[(f"recall at {float(r):.1%} false positives", f"recall_at_fpr/{r}") for r in metrics["recall_at_fpr"]],
        *[
            (f"dollars caught at {float(r):.1%}", f"dollars_caught_at_fpr/{r}")
            for r in metrics.get("dollars_caught_at_fpr", {})
        ],
        *[(f"precision among the top {k}", f"precision_at_k/{k}") for k in metrics.get("precision_at_k", {})],
    ]
    yield "## How good it is"
    yield (
        f"{metrics['frauds']:,} frauds planted into copies of {metrics['honest']:,} honest test trips that nothing was "
        f"chosen on, weighted to {metrics['prevalence']:.2%} of all trips where a figure depends on it. A trip that is "
        "sent twice shows nothing of it in one record, so every figure stands with and without it. Kinds on no list "
        "were never taught."
    )
    yield _table(("", *columns), [(name, *(_at(part, path) for part in columns.values())) for name, path in rows])
    easy = [
        f"{group} kinds {_interval(metrics[f'recall_{group}'])}"
        for group in ("easy", "hard")
        if f"recall_{group}" in metrics
    ]
    if easy:
        yield f"Found at the threshold: {', '.join(easy)}. Easy kinds break an identity of the record, hard ones none."


def _points(bundle: Manifest) -> Iterator[str]:
    threshold, drift = bundle.threshold, bundle.metrics.get("drift")
    if "review" not in threshold:
        return
    yield "## Operating points"
    yield (
        f"Review above {threshold['review']:.3f}, block until somebody has looked above {threshold['block']:.3f}; "
        f"chosen by {threshold['chosen_by']} on the validation trips alone, with "
        f"{threshold['false_positive_budget']:.2%} of honest trips as the budget for reviews."
    )
    names = ("threshold", "false_positive_rate", "recall", "alerts_per_day", "cost_usd_per_day")
    formats = ("{:.3f}", "{:.3%}", "{:.3f}", "{:.1f}", "{:.2f}")
    rows = [
        (way, *(f.format(alternative[n]) for n, f in zip(names, formats, strict=True)))
        for way, alternative in threshold.get("alternatives", {}).items()
    ]
    yield _table(("way to choose", "threshold", "honest flagged", "recall", "alerts a day", "USD a day"), rows)
    if drift:
        outcome = "outside of what was promised: the months drift" if drift["drifted"] else "as promised"
        promise = f" against {_percent(drift['expected'])} expected of a week" if "expected" in drift else ""
        yield (
            f"On the test period {_percent(drift['realised'])} of honest trips are flagged{promise}, "
            f"{drift['factor']:.2f} times the budget; {outcome}."
        )


def _kinds(metrics: Mapping[str, Any]) -> Iterator[str]:
    kinds = {**metrics.get("by_kind", {}), **metrics.get("unlisted", {}).get("by_kind", {})}
    if not kinds:
        return
    hits, one = metrics.get("reasons_hit", {}), metrics.get("by_kind_at_fpr", {}).get("0.01", {})
    yield "## Kind by kind"
    rows = [
        (
            name.replace("_", " "),
            part["family"],
            "easy" if part["easy"] else "hard",
            f"{part['planted']:,}",
            _interval(part["recall"]),
            _interval(one[name]["recall"]) if name in one else "",
            _interval(hits[name]) if name in hits else "",
        )
        for name, part in sorted(kinds.items(), key=lambda item: list(KINDS).index(item[0]))
    ]
    columns = ("kind", "family", "", "planted", "found at the threshold", "at 1 % false positives", "reason names it")
    yield _table(columns, rows)
    yield "Sources of the kinds: `docs/fraud-kinds.md`. The family `unlisted` was never taught."


def _left_out(metrics: Mapping[str, Any]) -> Iterator[str]:
    left_out = metrics.get("left_out", {})
    if not left_out.get("families"):
        return
    yield "## Families left out of the teaching"
    yield (
        f"Recall at {left_out['false_positive_rate']:.0%} false positives by a head that never saw the family, on the "
        "same autoencoder and with less teaching than the real head."
    )
    rows = [
        (f, _interval(part["recall"]), _interval(part["recall_taught"])) for f, part in left_out["families"].items()
    ]
    rows.append(("mean", _interval(left_out["mean_recall"]), _interval(left_out["mean_recall_taught"])))
    yield _table(("family", "left out", "taught"), rows)


def _baselines(metrics: Mapping[str, Any]) -> Iterator[str]:
    rivals = {**metrics.get("baselines", {}), **metrics.get("taught_baselines", {})}
    if not rivals:
        return
    unlisted = metrics.get("unlisted", {})
    yield "## Against other detectors"
    named = {"this bundle": metrics, **rivals}
    own = {"this bundle": unlisted.get("recall_at_fpr", {}).get("0.01"), **unlisted.get("baselines", {})}
    rows = [
        (
            name,
            _interval(part["average_precision"]),
            _interval(part["recall_at_fpr"]["0.01"]),
            _interval(own[name]) if own.get(name) else "",
        )
        for name, part in named.items()
    ]
    yield _table(("detector", "average precision", "recall at 1 %", "the same, kinds on no list"), rows)
    yield "Fitted and judged on a sample of the same trips. Boosting is taught, the others are not."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _at(part: Mapping[str, Any], path: str) -> str:
    value: Any = part
    for key in path.split("/"):
        value = value.get(key, {})
    return _interval(value) if value else ""


def _interval(part: Mapping[str, float | None]) -> str:
    value, low, high = (part.get(key) for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "unknown"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _percent(part: Mapping[str, float]) -> str:
    return f"{part['value']:.2%} [{part['low']:.2%}, {part['high']:.2%}]"


def main(arguments: Sequence[str]) -> int:
    """Print the card of the bundle that the argument names, else of the live one."""
    folder = Path(arguments[0]) if arguments else manifest.current_bundle(Settings().artifacts)
    if folder is None:
        raise BundleError(f"{Settings().artifacts}: expected a live bundle, found none; name one or promote one")
    print(card(manifest.read_manifest(folder)), end="")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except FraudError as err:
        sys.exit(str(err))
