"""The command line: one command for each use, one sentence for each mistake."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fraudlib import __version__
from fraudlib.errors import BundleError, FraudError

if TYPE_CHECKING:
    from tqdm import tqdm

    from fraudlib.settings import Settings

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

HELP = """Real-time payment-fraud detection on taxi trips.

\b
Examples:
  fraudlib demo                            train, start everything, watch alerts
  fraudlib score month.parquet out.parquet score every trip of a file
  fraudlib replay month.parquet --rate 500 send a month through the live API
  fraudlib broker | api | worker           one service each (FRAUDLIB_* settings)
  fraudlib api-key NAME                    a key for a client of the API
  fraudlib id-key FILE | hash-id ID        a key to hide clients' ids, and what it makes of one
  fraudlib topics                          create the topics on a broker of yours
  fraudlib dlq list | replay               what could not be scored, and again
  fraudlib labels export labels.jsonl      analysts' verdicts, for retraining

\b
Exit codes: 0 done, 1 failed (one sentence on stderr says why), 2 wrong usage
or setting, 130 interrupted.
"""


def _settings(**changes: Any) -> "Settings":
    from fraudlib.settings import Settings

    return Settings(**{name: value for name, value in changes.items() if value is not None})


@contextmanager
def _bar(total: int | None, unit: str, description: str) -> Iterator["tqdm[NoReturn]"]:
    """Progress on stderr: at once on a terminal, elsewhere only where the work takes more than two seconds."""
    from tqdm import tqdm

    seen = sys.stderr.isatty()
    calm: dict[str, Any] = {} if seen else {"delay": 2, "mininterval": 2, "ascii": True}
    with tqdm(total=total, unit=unit, unit_scale=True, desc=description, file=sys.stderr, **calm) as bar:
        yield bar


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, so that half-written files are cleared away."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.group(help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fraudlib", message="%(prog)s %(version)s")
def cli() -> None:
    """Group of all commands."""


@cli.command()
def api() -> None:
    """Serve the HTTP API and the live page.

    Takes transactions at POST /transaction and POST /transactions and answers only after the broker acknowledged.
    Configured by FRAUDLIB_API_HOST, FRAUDLIB_API_PORT, FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS and the rest of FRAUDLIB_*;
    SIGTERM drains and exits 0.

    \b
    Example:
      FRAUDLIB_API_PORT=8080 fraudlib api
    """
    from fraudlib.api.app import serve

    serve(_settings())


@cli.command("api-key")
@click.argument("name", default="default")
@click.option("--add", type=click.Path(dir_okay=False, path_type=Path), help="Append the hash to this file.")
@click.option("--write", type=click.Path(dir_okay=False, path_type=Path), help="Put the key here, and do not show it.")
@click.option(
    "--may",
    type=click.Choice(["send", "read", "label"]),
    multiple=True,
    help="All that the key may do: send transactions, read alerts, label them. By default everything.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def api_key(name: str, add: Path | None, write: Path | None, may: tuple[str, ...], as_json: bool) -> None:
    """Make an API key for the client NAME.

    The key is shown once, or written to a file that only its owner reads; the API keeps its hash alone, as a line of
    the file that FRAUDLIB_API_KEYS_FILE names. A line that is taken out closes the API to that key within seconds.
    Clients send `Authorization: Bearer KEY`; replay, demo and notebooks take it from FRAUDLIB_API_KEY_FILE. Where the
    file of --write is there already, its key is taken, so that the same command can run at every start.

    \b
    Examples:
      fraudlib api-key alice --add keys/hashes
      fraudlib api-key meters --add keys/hashes --may send
      fraudlib api-key stack --add keys/hashes --write keys/stack
    """
    from fraudlib.api import keys

    shown, client = keys.make_key(name, add, write, may or keys.RIGHTS)
    value = {"name": client.name, "key": shown, "line": client.line}
    if as_json:
        return click.echo(_json({item: text for item, text in value.items() if text}))
    if shown:
        click.echo(f"key    {shown}\n       keep it safe, it is not shown again")
    click.echo(f"line   {client.line}\n       {f'is in {add}' if add else 'for the file of FRAUDLIB_API_KEYS_FILE'}")


@cli.command("id-key")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def id_key(file: Path) -> None:
    """Make the secret key that clients' ids are hashed with, in a new FILE that only its owner reads.

    With FRAUDLIB_ID_HASH_KEY_FILE=FILE the API replaces every transaction_id and Idempotency-Key by a keyed hash before
    it goes anywhere. Keep the file: without it nobody finds a transaction by its client's id again.

    \b
    Example:
      fraudlib id-key keys/ids
    """
    from fraudlib.api.pseudonyms import write_key

    write_key(file)
    click.echo(f"{file} holds the key; set FRAUDLIB_ID_HASH_KEY_FILE={file} for the API")


@cli.command("hash-id")
@click.argument("ids", nargs=-1, metavar="[ID]...")
def hash_id(ids: tuple[str, ...]) -> None:
    """Print the name under which the topics hold the transaction that its client calls ID, a line each.

    Without any ID they are read from stdin, one a line, which keeps them out of the shell's history. Takes the key in
    FRAUDLIB_ID_HASH_KEY_FILE, as the API does.

    \b
    Examples:
      FRAUDLIB_ID_HASH_KEY_FILE=keys/ids fraudlib hash-id trip-1
      FRAUDLIB_ID_HASH_KEY_FILE=keys/ids fraudlib hash-id < ids.txt
    """
    from fraudlib.api.pseudonyms import pseudonyms
    from fraudlib.errors import ParameterError, ServiceError
    from fraudlib.wire.records import is_id

    hidden = pseudonyms(_settings())
    if hidden is None:
        raise ServiceError("expected a key to hash ids with, found none; set FRAUDLIB_ID_HASH_KEY_FILE to the API's")
    for number, given in enumerate(ids or map(str.strip, sys.stdin), 1):
        if not is_id(given):
            raise ParameterError(f"id {number}: expected 1 to 64 of the characters A-Z a-z 0-9 . _ : -, found others")
        click.echo(hidden.of(given))


@cli.command()
def worker() -> int:
    """Score transactions from the broker and publish scores and alerts.

    Several workers share the partitions. Configured by FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS, FRAUDLIB_ARTIFACTS_DIR,
    FRAUDLIB_METRICS_PORT and the rest of FRAUDLIB_*; SIGTERM drains and exits 0.

    \b
    Example:
      FRAUDLIB_DEVICE=cpu FRAUDLIB_METRICS_PORT=0 fraudlib worker
    """
    from fraudlib.worker.main import run

    return run(_settings())


@cli.command()
def broker() -> int:
    """Run the embedded Kafka broker, in memory, for one machine.

    For development and the demo: what it holds is gone when it stops. Configured by FRAUDLIB_BROKER_HOST and
    FRAUDLIB_BROKER_PORT; SIGTERM ends it with exit code 0.

    \b
    Example:
      FRAUDLIB_BROKER_PORT=19092 fraudlib broker
    """
    from fraudlib.broker.main import run
    from fraudlib.telemetry import configure_logging

    settings = _settings()
    configure_logging("broker", settings.log_level)
    return run(settings)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def topics(as_json: bool) -> None:
    """Create the topics that are missing, and show the partitions of each.

    Waits for the broker for up to a minute. A topic that is there stays as it is. Configured by
    FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS, FRAUDLIB_TOPIC_PARTITIONS, FRAUDLIB_TOPIC_REPLICATION and
    FRAUDLIB_TOPIC_RETENTION_HOURS.

    \b
    Example:
      FRAUDLIB_TOPIC_PARTITIONS=12 fraudlib topics --json
    """
    from fraudlib.wire.topics import prepare

    created, partitions = prepare(_settings(), on_wait=lambda why: click.echo(why, err=True))
    if as_json:
        return click.echo(_json({"partitions": partitions, "created": created}))
    for name, count in partitions.items():
        click.echo(f"{name}: {count} partitions{', created' if name in created else ''}")


@cli.command()
@click.argument("source", metavar="INPUT", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Bundle to use.")
@click.option("--engine", type=click.Choice(["local", "dask"]), default="local", show_default=True, help="Who scores.")
@click.option("--address", help="Dask scheduler; one on this machine where left out.  [FRAUDLIB_DASK_ADDRESS]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON line.")
def score(source: Path, output: Path, bundle: Path | None, engine: str, address: str | None, as_json: bool) -> None:
    """Score every trip of INPUT into the parquet file OUTPUT.

    INPUT is a TLC parquet or CSV file, or a folder of them, of any size. OUTPUT gets one row for each input row, in
    order: row, anomaly_score (higher is more abnormal), threshold, is_flagged and reason_1 to reason_3. It appears
    whole or not at all. Without --bundle, the current bundle of FRAUDLIB_ARTIFACTS_DIR scores. On a Dask cluster, whose
    workers see INPUT and the bundle under the same paths, the output is the same.

    \b
    Examples:
      fraudlib score data/sample/green_tripdata_2023-05.parquet scores.parquet
      fraudlib score yellow_tripdata_2024-01.csv scores.parquet --json
      fraudlib score data/raw scores.parquet --bundle artifacts/20260101T000000Z-a
      fraudlib score data/raw scores.parquet --engine dask --address tcp://10.0.0.5:8786
    """
    from fraudlib import scorefile, spans

    if address and engine == "local":
        raise click.UsageError("--address names a Dask scheduler: give --engine dask with it.")
    scorefile.check_paths(source, output)
    settings = _settings(dask_address=address)
    folder = _bundle_folder(settings, bundle)
    total = scorefile.total_rows(source)
    with _sigterm_interrupts(), _bar(total, "trip", "scoring") as bar:
        summary = spans.score(source, output, folder, settings, engine, bar.update)
    click.echo(_json(summary.as_json()) if as_json else f"{summary}: {output}")


def _bundle_folder(settings: "Settings", bundle: Path | None) -> Path:
    from fraudlib.manifest import current_bundle

    folder = bundle or current_bundle(settings.artifacts)
    if folder is None:
        raise BundleError(
            f"{settings.artifacts}: no bundle is current there; name one with --bundle, set FRAUDLIB_ARTIFACTS_DIR, "
            "or train one with `python -m pipelines retrain`"
        )
    return folder


@cli.command()
@click.argument("source", metavar="INPUT", type=click.Path(exists=True, path_type=Path))
@click.option("--rate", type=click.FloatRange(min=0), default=1000, show_default=True, help="Trips/s; 0: no limit.")
@click.option("--limit", type=click.IntRange(min=1), help="Send this many trips at most.")
@click.option("--to", "url", metavar="URL", help="API to send to.  [default: FRAUDLIB_API_HOST and _PORT]")
@click.option("--topic", is_flag=True, help="Send straight to the topic, past the API.")
@click.option(
    "--fraud", metavar="SHARE", type=click.FloatRange(0, 1), default=0, help="Share of planted fraud, 0 to 1."
)
@click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True, help="Seed of the planted fraud.")
@click.option("--repeat", is_flag=True, help="Begin again at the end with new ids and frauds, until stopped.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON line.")
def replay(
    source: Path,
    rate: float,
    limit: int | None,
    url: str | None,
    topic: bool,
    fraud: float,
    seed: int,
    repeat: bool,
    as_json: bool,
) -> None:
    """Send the trips of INPUT through the live API, or straight to the topic.

    Keeps going while the API or the broker is busy or away, as long as the other side asks to come again; a trip has
    the id FILE-ROW, so that sending it again is the same transaction.

    \b
    Examples:
      fraudlib replay data/sample/green_tripdata_2023-05.parquet --rate 200
      fraudlib replay month.parquet --fraud 0.0125 --seed 3 --limit 10000
      fraudlib replay month.parquet --topic --rate 0
    """
    from fraudlib.api.keys import authorization
    from fraudlib.demo import replay as sending
    from fraudlib.demo.senders import HttpSender, Sender, TopicSender

    if topic and url:
        raise click.UsageError("--to names an API and --topic goes past it: give one of them.")
    settings = _settings()
    with _sigterm_interrupts(), _bar(limit, "trip", "sending") as bar:
        wait: dict[str, Any] = {"on_wait": bar.set_postfix_str}
        if topic:
            sender: Sender = TopicSender(settings, **wait)
        else:
            sender = HttpSender(url or _api_url(settings), authorization(settings), **wait)
        plan = sending.Plan(source, rate=rate, limit=limit, fraud=fraud, seed=seed, repeat=repeat)
        with sender:
            summary = sending.replay(plan, sender, bar.update)
    click.echo(_json(summary.as_json()) if as_json else str(summary))
    if summary.interrupted:
        raise click.exceptions.Exit(EXIT_INTERRUPTED)


def _api_url(settings: "Settings") -> str:
    from fraudlib.demo.stack import reachable

    return f"http://{reachable(settings.api_host)}:{settings.api_port}"


@cli.command()
@click.option("--seconds", type=click.FloatRange(min=1), help="Stop by itself after this long, counted once all is up.")
@click.option("--rate", type=click.FloatRange(1, 20_000), default=200, show_default=True, help="Trips a second.")
@click.option(
    "--fraud", type=click.FloatRange(0, 0.5), default=0.015, show_default=True, help="Share of planted fraud."
)
@click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True, help="Seed of the planted fraud.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the API and the live page; 0: any free one.")
@click.option("--broker-port", type=click.IntRange(0, 65535), help="Port of the broker; 0: any free one.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Port of the worker's metrics; 0: any free one.")
def demo(
    seconds: float | None,
    rate: float,
    fraud: float,
    seed: int,
    port: int | None,
    broker_port: int | None,
    metrics_port: int | None,
) -> int:
    """Run the whole way on this machine: train, broker, API, worker, trips in, alerts out.

    The trips are simulated, with planted fraud among them. Trains a bundle from the sample where none is current in
    runs/demo/artifacts (or FRAUDLIB_ARTIFACTS_DIR). Stays up until Ctrl-C; with --seconds it stops by itself, and the
    last line is one JSON object: sent, accepted, scored, alerts, lost, duplicates, p50_ms, p99_ms (POST to score).
    Exits with 1 where a score was lost.

    \b
    Examples:
      fraudlib demo
      fraudlib demo --seconds 20
      fraudlib demo --port 0 --broker-port 0 --metrics-port 0
    """
    from fraudlib.demo import run as show

    ports = {"api_port": port, "broker_port": broker_port, "metrics_port": metrics_port}
    return show.run(show.Options(seconds=seconds, rate=rate, fraud=fraud, seed=seed, ports=ports))


@cli.group()
def dlq() -> None:
    """Look at dead letters, and send them again once the cause is gone.

    \b
    Examples:
      fraudlib dlq list --limit 20
      fraudlib dlq replay --error ScoreError --since 2026-01-31
    """


def _moment(context: click.Context, option: click.Parameter, text: str) -> str:
    """The text as dead letters write their time, as far as it was given; wrong usage where it is no time."""
    try:
        datetime.fromisoformat(text or "2026-01-31")
    except ValueError:
        raise click.BadParameter(f"expected a UTC time such as 2026-01-31T03:00:00, found {text!r}") from None
    return text.replace(" ", "T")


_FILTERS = (
    click.option("--error", metavar="CLASS", help="Only those of this error, such as SchemaError or ScoreError."),
    click.option(
        "--since",
        metavar="TIME",
        default="",
        callback=_moment,
        help="Only those that failed at this UTC time or later.",
    ),
    click.option("--limit", type=click.IntRange(min=1), help="Only the latest so many."),
)


def _filtered(command: Any) -> Any:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@dlq.command("list")
@_filtered
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, with key and value.")
def dlq_list(error: str | None, since: str, limit: int | None, as_json: bool) -> None:
    """Show dead letters in the order in which they failed: when, from where, why.

    \b
    Examples:
      fraudlib dlq list --limit 20
      fraudlib dlq list --error SchemaError --since 2026-01-05T03:00:00 --json
    """
    from fraudlib.wire.dlq import letters

    for letter in letters(_settings(), error, since, limit):
        click.echo(_json(letter.as_json()) if as_json else str(letter))


@dlq.command("replay")
@_filtered
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def dlq_replay(error: str | None, since: str, limit: int | None, as_json: bool) -> None:
    """Send dead letters to the topic transactions again, as they came; they stay where they are as well.

    \b
    Example:
      fraudlib dlq replay --error ScoreError
    """
    from fraudlib.wire.dlq import letters, replay

    settings = _settings()
    sent = replay(settings, letters(settings, error, since, limit))
    click.echo(_json({"sent": sent}) if as_json else f"{sent:,} dead letters sent again")


@cli.group()
def labels() -> None:
    """Analysts' verdicts, for the notebooks' parameter `labels_file`.

    \b
    Example:
      fraudlib labels export data/labels.jsonl
    """


@labels.command("export")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def labels_export(path: Path, as_json: bool) -> None:
    """Write every label of the topic to PATH as JSON lines, corrections among them, with the score of its alert.

    \b
    Example:
      fraudlib labels export data/labels.jsonl
    """
    from fraudlib.labels import export

    count = export(_settings(), path)
    click.echo(_json({"labels": count, "path": str(path)}) if as_json else f"{count:,} labels in {path}")


def _json(value: dict[str, Any]) -> str:
    import orjson

    return orjson.dumps(value).decode()


def _fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    click.echo(f"fraudlib: {message}", err=True)
    sys.exit(code)


def main() -> NoReturn:
    """Entry of the console script: run a command, turn what went wrong into one sentence and an exit code."""
    # Without a handler the client's own line on a broker that is down would stand before the sentence.
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    try:
        code = cli.main(prog_name="fraudlib", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", EXIT_INTERRUPTED)
    except FraudError as err:
        _fail(str(err))
    except ModuleNotFoundError as err:
        if (err.name or "").startswith("fraudlib"):
            raise
        _fail(f"the Python package {err.name} is missing; install it with pip install 'fraudlib[all]'")
    except BrokenPipeError:
        # The reader of our output is gone; flushing at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    except OSError as err:
        _fail(f"{err.filename or 'input or output'}: {err.strerror or err}; name another or correct it")
    except ValueError as err:
        from fraudlib.settings import invalid

        if sentence := invalid(err):
            _fail(sentence, EXIT_USAGE)
        raise


if __name__ == "__main__":
    main()
