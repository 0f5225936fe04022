"""docs/benchmarks.md, made from the results and from nothing else."""

from typing import Any, Final

HEAD: Final = """# Benchmarks

Made by `make bench` (and `make chaos` for the last section) from `docs/bench.json`; do not edit by hand.
What is sent are {data}.
Nothing here says how well fraud is found, only how fast and how safely records get through.

## Machine

Each part was measured with every process on one machine: sender, API, broker, worker and reader share its cores.

| part | processor | cores | load before | commit | measured |
|---|---|---|---|---|---|
"""

THROUGHPUT: Final = """
## Throughput

![Throughput and latency](bench.png)

A backlog of {transactions:,} full records waits in the broker; each contender drains it under a consumer group of its
own and publishes one message for each, acknowledged. Rounds alternate ({rounds} of each), so that a change of the
machine's load meets all; the median round is shown, ratios are medians of the ratios within a round.

| contender | transactions/s | processor time, us each | rounds |
|---|---|---|---|
"""

EXPLAIN: Final = """
The ceiling is the worker's client, option by option, that publishes what it consumes, unread. The worker has its
process for large batches ready, as one that has been busy for some seconds; `one process` is the same without
(`FRAUDLIB_SCORE_PROCESS=off`), and `two workers` are two of those, with half of the partitions each. The trivial scorer
is the worker as it is but for the model: it decodes, checks and encodes. One record at a time is json, pandas times, a
scaler, an isolation forest of 100 trees and a batch of one. The broker took {broker} us of processor time for each of
the worker's transactions, on the same cores.

| ratio | |
|---|---|
| worker to ceiling | {worker_to_ceiling:.2f} |
| one process to ceiling | {one_process_to_ceiling:.2f} |
| trivial scorer to ceiling | {trivial_scorer_to_ceiling:.2f} |
| worker to one record at a time | {worker_to_naive:,.0f} |
| two workers to ceiling | {two_workers_to_ceiling:.2f} |
| two workers to one process | {two_workers_to_one:.2f} |

In the worker's own metrics a batch had {batch_mean:,} transactions on average; `decode, score, encode` took
{score_wall_us} us and `publish` {publish_wall_us} us a transaction. They overlap: while one batch is scored, the one
before is published and the one after is fetched. The threads of one process share the interpreter's lock and do not
fill two cores; a scoring process, or a second worker, does.
"""

LATENCY: Final = """
## Latency

`POST /transaction`, one record each, over 128 kept connections. Open loop: a transaction counts from the moment that it
was due to be sent, whether or not the sender or the server was free then, so that a slow moment is not left out. Scores
and alerts are seen by a reader of the topics in a process of its own. Of {rounds} rounds the one with the median p50 of
the score is shown.

| offered a second | | p50 ms | p95 ms | p99 ms | max ms |
|---|---|---|---|---|---|
"""

SPREAD: Final = """
To the score in each round:

| offered a second | p50 ms | p99 ms |
|---|---|---|
"""

HOPS: Final = """
Mean milliseconds of each hop: from the moment due until the API has the record, from there until its score is written,
from there until the reader has it.

| offered a second | due to taken | taken to scored | scored to read |
|---|---|---|---|
"""

STAGES: Final = """
The worker's own metrics: mean wait of a transaction from the broker's stamp to the worker's taking it, mean size of a
batch, and mean time to score and to publish one. A batch grows while the one before is being scored.

| offered a second | queue ms | transactions in a batch | score ms a batch | publish ms a batch |
|---|---|---|---|---|
"""

CHAOS: Final = """
## Faults

`make chaos`: real broker, API and workers under a steady load. Workers are killed by SIGKILL at random moments, paused
by SIGSTOP until the group has gone on without them and then woken, and scaled 1 to 3 to 1; the API is killed right
after answers; the broker's process is paused for 2 s (slow) and for 12 s (down), longer than any client waits. Its log
is in memory, so it is not killed. Lost and duplicates are counted against what the API acknowledged, behind the
reader's filter (`fraudlib.wire.delivery.Deduplicator`); raw ones are what the log holds before it.

| | |
|---|---|
"""


def render(results: dict[str, Any]) -> str:
    """The page of a file of results; parts that were not measured are left out."""
    text = HEAD.format(data=results["data"]) + "".join(_machine(*item) for item in results["machines"].items())
    if results.get("quick"):
        text += "\nThese are figures of a quick run, for trying the tooling out: do not quote them.\n"
    for name, part in _PARTS.items():
        if name in results:
            text += part(results[name])
    return text


def _machine(part: str, m: dict[str, Any]) -> str:
    load = "/".join(f"{value:g}" for value in m["load_before"])
    return f"| {part} | {m['processor']} | {m['cores']} | {load} | {m['commit'][:12]} | {m['measured_at'][:16]} |\n"


def _throughput(found: dict[str, Any]) -> str:
    worker, rounds = found["worker"], found["worker"]["per_second_of_each_round"]
    text = THROUGHPUT.format(transactions=worker["transactions"], rounds=len(rounds))
    for name, run in found.items():
        if name != "ratios":
            each = ", ".join(f"{rate:,}" for rate in run.get("per_second_of_each_round", [run["per_second"]]))
            text += f"| {name.replace('_', ' ')} | {run['per_second']:,} | {run['worker_cpu_us']:g} | {each} |\n"
    return text + EXPLAIN.format(**found["ratios"], **worker, broker=worker["broker_cpu_us"])


def _latency(found: dict[str, Any]) -> str:
    rounds = len(found["steps"][0]["score_rounds"]["p50_ms"])
    text, hops, stages, spread = LATENCY.format(rounds=rounds), HOPS, STAGES, SPREAD
    for step in found["steps"]:
        for kind in ("answer", "score", "alert"):
            cells = " | ".join(f"{step[kind][name]:g}" for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms"))
            text += f"| {step['rate']:,.0f} | {kind} | {cells} |\n"
        every = (", ".join(f"{value:g}" for value in values) for values in step["score_rounds"].values())
        spread += f"| {step['rate']:,.0f} | {' | '.join(every)} |\n"
        hops += _row(step["rate"], step["hops"])
        stages += _row(step["rate"], step["stages"])
    return text + spread + hops + stages


def _row(rate: float, values: dict[str, float]) -> str:
    return f"| {rate:,.0f} | {' | '.join(f'{value:g}' for value in values.values())} |\n"


OVERLOAD: Final = """
## Overload

Five times the API's capacity, due open loop over five times as many connections as requests are admitted at once;
{apart}. Capacity is measured before and after each
round with as many connections as are admitted. Who is not admitted gets 503 with Retry-After at once; a client that
does not wait is not read again for 10 ms, longer where there are many, so that only a part of what is due can be sent.
The share that is served is that of {rounds} rounds together, with its 95 % interval; percentiles (p99) are medians of
the rounds, and times count from the moment that a request was sent.

| | admitted | capacity, tx/s | sent, of it | served, of it | interval | refused, ms | served, ms | recovery, s | else |
|---|---|---|---|---|---|---|---|---|---|
"""


def _overload(found: dict[str, Any]) -> str:
    own = found["api_has_its_own_core"]
    text = OVERLOAD.format(
        apart="the API has a core to itself, broker and load share the other" if own else "all share the same cores",
        rounds=found["doors"]["single"]["rounds"],
    )
    names = {"single": "`POST /transaction`", "bulk": f"`POST /transactions`, {found['items_of_a_body']} records each"}
    for name, door in found["doors"].items():
        low, high = door["served_interval"]
        cells = (
            f"{door['admitted']} | {door['capacity_a_second']:,} | {door['sent_times']:.2f} | "
            f"{door['served_of_capacity']:.2f} | {low:.2f} to {high:.2f} | {door['refused_p99_ms']:g} | "
            f"{door['served_p99_ms']:g} | {door['recovery_s']:g} | {door['other_answers']}"
        )
        text += f"| {names[name]} | {cells} |\n"
    return text


POISON: Final = """
## Dead letters

{poison:,} poisoned messages of {kinds} kinds among {good:,} good ones: {good_not_scored_once} good ones were not scored
exactly once, {poison_not_whole_in_dlq} bad ones are not in `transactions.dlq` with their bytes, place and headers, the
worker restarted {restarts} times; {per_second:,} messages a second.
"""


def _poison(found: dict[str, Any]) -> str:
    return POISON.format(**found)


def _scoring(found: dict[str, Any]) -> str:
    text = "\n## Scoring alone\n\n`python -m fraudlib.bench`, rows a second without Kafka, 2 % of the rows flagged.\n\n"
    text += "| device | rows in a batch | features | model | features to score |\n|---|---|---|---|---|\n"
    for device in found["devices"]:
        for row in device["table"]:
            cells = " | ".join(f"{row[name]:,.0f}" for name in ("features", "model", "score"))
            text += f"| {device['device']}, {device['threads']} thread | {row['rows']:,} | {cells} |\n"
    return text


def _api(found: dict[str, Any]) -> str:
    text = (
        "\n## API\n\n`POST /transactions` in one process, items a second; the no-op endpoint only reads the body.\n\n"
    )
    text += "| body | items/s | of the no-op endpoint | ratio | items/s of processor time |\n|---|---|---|---|---|\n"
    for body, run in found["loads"].items():
        rates = f"{run['per_second']:,} | {run['no_op']['per_second']:,} | {run['ratio']:.2f}"
        text += f"| {body} | {rates} | {run['per_cpu_second']:,} |\n"
    return text


def _chaos(found: dict[str, Any]) -> str:
    shown = {name: value for name, value in found.items() if not isinstance(value, dict)}
    return CHAOS + "".join(f"| {name.replace('_', ' ')} | {_cell(value)} |\n" for name, value in shown.items())


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


_PARTS: Final = {
    "throughput": _throughput,
    "latency": _latency,
    "api": _api,
    "overload": _overload,
    "poison": _poison,
    "scoring": _scoring,
    "chaos": _chaos,
}
