"""`python -m pipelines`: retrain, schedule, backtest, promote, rollback, shadow, history, and the keys of bundles."""

import json
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import click

from fraudlib import paths, signature
from fraudlib.errors import FraudError, ParameterError
from fraudlib.settings import Settings, invalid
from pipelines import registry

FOLDER = click.Path(path_type=Path, file_okay=False, resolve_path=True)
EXIT_FAILED, EXIT_PARAMETER, EXIT_BUSY, EXIT_INTERRUPTED = 1, 2, 3, 130

artifacts_option = click.option(
    "--artifacts",
    type=FOLDER,
    default=lambda: Settings().artifacts,
    show_default="FRAUDLIB_ARTIFACTS_DIR, else artifacts",
    help="Folder of the bundles.",
)

runs_option = click.option(
    "--runs",
    type=FOLDER,
    default=lambda: paths.resolve("runs"),
    show_default="runs",
    help="Folder of the runs.",
)


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that retrain and schedule share."""
    for option in (
        artifacts_option,
        runs_option,
        click.option("--fetch", "is_fetching", is_flag=True, help="First fetch newer months (FRAUDLIB_TRIPS_URL)."),
        click.option("-p", "assignments", multiple=True, metavar="NAME=VALUE", help="A parameter; wins over --params."),
        click.option(
            "--params", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="YAML file of parameters."
        ),
        click.option(
            "--stage-timeout",
            type=click.FloatRange(min=0, min_open=True),
            default=6 * 3600.0,
            show_default=True,
            metavar="SECONDS",
            help="Longest time for each notebook.",
        ),
        click.option("--notebooks", type=FOLDER, default=lambda: paths.resolve("notebooks"), hidden=True),
    ):
        command = option(command)
    return command


@click.group()
def main() -> None:
    """Run the notebooks as a production line. Results go to stdout, everything else to stderr.

    Exit codes: 0 done, 1 failed (one sentence on stderr says why), 2 wrong usage or parameter, 3 another run is at
    work, 130 interrupted.

    \b
    Examples:
      python -m pipelines retrain
      python -m pipelines history
      python -m pipelines rollback
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%F %T", stream=sys.stderr)
    logging.getLogger("apscheduler").setLevel(logging.WARNING)


@main.command()
@click.option(
    "--resume",
    "run_id",
    metavar="RUN_ID",
    help="Go on with this run from the stage that failed, with the parameters and the artifacts folder that it has.",
)
@training_options
def retrain(
    run_id: str | None,
    stage_timeout: float,
    params: Path | None,
    assignments: tuple[str, ...],
    artifacts: Path,
    runs: Path,
    notebooks: Path,
    is_fetching: bool,
) -> None:
    """Run notebooks 01 to 04 and promote, shadow or refuse what they made (docs/gate.md).

    With -p train_months=latest:3 the newest month of the data folder tests, the one before validates, the three before
    train (docs/scheduling.md).

    The last line is JSON. Exit code 0: the run went through, whether or not its bundle passed the gate; 1: a stage
    failed; 2: a parameter is wrong; 3: another run is at work.

    \b
    Examples:
      python -m pipelines retrain
      python -m pipelines retrain --params pipelines/params/real_green.yaml -p seed=11
      python -m pipelines retrain --fetch -p train_months=latest:3
      python -m pipelines retrain --resume 20260105T030000Z-1a2b
    """
    from pipelines import parameters
    from pipelines import retrain as line

    if run_id is None:
        given = parameters.given(params, assignments)
        outcome = line.retrain(given, artifacts, runs, notebooks, stage_timeout, is_fetching)
    elif params or assignments or is_fetching:
        raise ParameterError(
            "a resumed run keeps its parameters and months; leave --params, -p and --fetch away or start a new run"
        )
    else:
        outcome = line.resume(run_id, runs, notebooks, stage_timeout)
    if outcome.failed:
        click.echo(outcome.reason, err=True)
    click.echo(json.dumps(asdict(outcome)))
    sys.exit(int(outcome.failed))


@main.command()
@click.option("--cron", required=True, help='Crontab expression, such as "0 3 * * 1" for Mondays at three.')
@click.option("--timezone", default="UTC", show_default=True, help="Time zone of the expression.")
@training_options
def schedule(
    cron: str,
    timezone: str,
    stage_timeout: float,
    params: Path | None,
    assignments: tuple[str, ...],
    artifacts: Path,
    runs: Path,
    notebooks: Path,
    is_fetching: bool,
) -> None:
    """Retrain by the clock until stopped, one run at a time, and early where the workers' drift stays high.

    Its metrics are at FRAUDLIB_METRICS_HOST and FRAUDLIB_SCHEDULE_PORT; FRAUDLIB_DRIFT_URLS says where drift is read.

    \b
    Examples:
      python -m pipelines schedule --cron "0 3 * * 1" --timezone America/New_York --fetch
    """
    from pipelines import parameters
    from pipelines.retrain import check
    from pipelines.schedule import serve, trigger

    when = trigger(cron, timezone)
    check(parameters.given(params, assignments), notebooks)
    arguments = ["--artifacts", str(artifacts), "--runs", str(runs), "--notebooks", str(notebooks)]
    arguments += ["--stage-timeout", str(stage_timeout)]
    arguments += ["--params", str(params.resolve())] if params else []
    arguments += ["--fetch"] if is_fetching else []
    for assignment in assignments:
        arguments += ["-p", assignment]
    try:
        serve(when, arguments, Settings(), artifacts, runs)
    except KeyboardInterrupt:
        click.echo("schedule stopped", err=True)


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--from", "first", required=True, metavar="YYYY-MM", help="First month.")
@click.option("--to", "last", required=True, metavar="YYYY-MM", help="Last month.")
@click.option(
    "--data-dir",
    type=FOLDER,
    default=lambda: paths.resolve("data/raw"),
    show_default="data/raw",
    help="Folder of the months.",
)
@click.option(
    "--out",
    type=FOLDER,
    default=lambda: paths.resolve("runs/backtest"),
    show_default="runs/backtest",
    help="Folder for table and figure.",
)
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
def backtest(first: str, last: str, data_dir: Path, out: Path, more: tuple[str, ...]) -> None:
    """Walk forward through past months, with and without retraining: what a stale model costs.

    Further options go to `python -m fraudlib.backtest`, whose --help lists them. The table is the last output.

    \b
    Examples:
      python -m pipelines backtest --from 2022-01 --to 2023-06
    """
    from pipelines.backtest import backtest as walk

    sys.exit(walk(first, last, data_dir, out, more))


@main.command()
@click.argument("bundle_id", metavar="ID")
@click.option("--reason", default="promoted by hand", show_default=True, help="Why, for the history.")
@artifacts_option
def promote(bundle_id: str, reason: str, artifacts: Path) -> None:
    """Verify bundle ID and make it the live one.

    \b
    Examples:
      python -m pipelines promote 20260105T031500Z-1a2b --reason "looked at by two"
    """
    registry.promote(artifacts, bundle_id, reason, key=Settings().verify_key_file)
    click.echo(f"{bundle_id} is live")


@main.command()
@artifacts_option
def rollback(artifacts: Path) -> None:
    """Go back to the bundle that was live before.

    \b
    Examples:
      python -m pipelines rollback
    """
    click.echo(f"{registry.rollback(artifacts, Settings().verify_key_file)} is live")


@main.command()
@click.argument("bundle_id", metavar="ID", required=False)
@click.option("--off", is_flag=True, help="Score no bundle beside the live one.")
@click.option("--reason", default="put there by hand", show_default=True, help="Why, for the history.")
@artifacts_option
def shadow(bundle_id: str | None, off: bool, reason: str, artifacts: Path) -> None:
    """Verify bundle ID and have workers score it beside the live one.

    \b
    Examples:
      python -m pipelines shadow 20260105T031500Z-1a2b
      python -m pipelines shadow --off
    """
    if off == bool(bundle_id):
        raise click.UsageError("give an ID, or --off")
    if bundle_id:
        registry.shadow(artifacts, bundle_id, reason, key=Settings().verify_key_file)
    else:
        registry.clear_shadow(artifacts)
    click.echo(f"{bundle_id} is in the shadow" if bundle_id else "no bundle is in the shadow")


@main.command()
@click.argument("key", metavar="KEY", type=click.Path(path_type=Path, dir_okay=False))
def keygen(key: Path) -> None:
    """Write a private key to KEY and its public key to KEY.pub.

    \b
    Examples:
      python -m pipelines keygen keys/bundles
    """
    public = signature.generate(key)
    click.echo(f"FRAUDLIB_SIGNING_KEY_FILE={key.resolve()}\nFRAUDLIB_VERIFY_KEY_FILE={public.resolve()}")


@main.command()
@click.argument("bundle_id", metavar="ID")
@artifacts_option
def sign(bundle_id: str, artifacts: Path) -> None:
    """Sign bundle ID with the key of FRAUDLIB_SIGNING_KEY_FILE.

    \b
    Examples:
      FRAUDLIB_SIGNING_KEY_FILE=keys/bundles python -m pipelines sign 20260105T031500Z-1a2b
    """
    if (key := Settings().signing_key_file) is None:
        raise ParameterError("expected a private key in FRAUDLIB_SIGNING_KEY_FILE, found none; make one with keygen")
    registry.sign(artifacts, bundle_id, key)
    click.echo(f"{bundle_id} is signed")


@main.command()
@click.argument("name", metavar="[ID]", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@artifacts_option
@runs_option
def history(name: str | None, as_json: bool, artifacts: Path, runs: Path) -> None:
    """What was live from when to when, and why; the live one carries a star.

    With the ID of a bundle, as every score and alert carries it, or of a run: its run, parameters, data, code, figures
    and report.

    \b
    Examples:
      python -m pipelines history
      python -m pipelines history 20260105T031500Z-1a2b --json
    """
    if name:
        from pipelines import lineage

        found = lineage.trace(artifacts, runs, name)
        click.echo(json.dumps(found) if as_json else "\n".join(lineage.in_words(found)))
        return
    lines = registry.history(artifacts)
    if as_json:
        for line in lines:
            click.echo(json.dumps(line))
        return
    if not lines:
        click.echo(f"{artifacts}: nothing was promoted yet", err=True)
        return
    columns = ("at", "until", "event", "bundle_id", "run_id", "reason")
    rows = [("", *columns)] + [
        ("*" if line["live"] else "", *(str(line.get(c) or "") for c in columns)) for line in lines
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run() -> None:
    """Run the command line; an error of the project is one sentence on stderr."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main(standalone_mode=False)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except ValueError as err:
        if not (sentence := invalid(err)):
            raise
        click.echo(sentence, err=True)
        sys.exit(EXIT_PARAMETER)
    except OSError as err:
        click.echo(f"{err.filename or 'input or output'}: {err.strerror or err}; name another or correct it", err=True)
        sys.exit(EXIT_FAILED)
    except FraudError as err:
        click.echo(str(err), err=True)
        known: dict[type[Exception], int] = {ParameterError: EXIT_PARAMETER, registry.BusyError: EXIT_BUSY}
        sys.exit(known.get(type(err), EXIT_FAILED))


if __name__ == "__main__":
    run()
