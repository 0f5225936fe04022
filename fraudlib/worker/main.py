"""The worker: takes transactions from Kafka in micro-batches, scores them and publishes what came out.

Exit codes: 0 everything taken is published and committed; 1 it is not, or the worker could not start; 70 the consumer
was stuck; 71 the model failed or hung; 72 the event loop was blocked; 73 the broker took no outputs.
"""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from fraudlib.errors import ServiceError
from fraudlib.schema import TOPIC_TRANSACTIONS
from fraudlib.settings import Settings
from fraudlib.telemetry import WorkerMetrics, calm_collector, configure_logging, serve_health
from fraudlib.wire.credentials import NOT_CONNECTED, refusal, security_options
from fraudlib.wire.kafka import Publisher
from fraudlib.worker import precedents
from fraudlib.worker.clients import start_clients, within
from fraudlib.worker.device_fallback import FallbackLoader
from fraudlib.worker.journal import Journal
from fraudlib.worker.live_bundle import LiveBundle
from fraudlib.worker.observer import Observer
from fraudlib.worker.outputs import ModelError, Scorer
from fraudlib.worker.publish_timeout import UnpublishableError
from fraudlib.worker.quarantine import Quarantine
from fraudlib.worker.scoring_process import ScoringProcess
from fraudlib.worker.stages import Stages
from fraudlib.worker.stall_check import HungError, StallCheck, StuckError
from fraudlib.worker.watchdog import EXIT_NOT_DRAINED, Watchdog

log = logging.getLogger(__name__)

EXIT_STUCK: Final = 70
EXIT_MODEL: Final = 71
EXIT_UNPUBLISHABLE: Final = 73
DRAIN_SECONDS: Final = 7.5

LoadScorer = Callable[[Path], Scorer]


class Worker:
    """One worker of the group.

    Parameters
    ----------
    settings : Settings
    load_scorer : makes a scorer of a bundle's folder; raises BundleError for one that must not serve.
    registry : for the metrics; a fresh one by default.
    load_on_cpu : the same without a GPU, for the shadow bundle and in case the GPU fails; `load_scorer` by default.
    watchdog : running, of this process; none by default.
    """

    def __init__(
        self,
        settings: Settings,
        load_scorer: LoadScorer,
        registry: CollectorRegistry | None = None,
        load_on_cpu: LoadScorer | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = WorkerMetrics(registry or CollectorRegistry())
        self._bundle = LiveBundle(
            settings.artifacts, FallbackLoader(load_scorer, load_on_cpu, self._metrics), self._metrics
        )
        self._journal = Journal.of(settings)
        self._helper: ScoringProcess | None = None
        if settings.score_process != "off" and (os.cpu_count() or 1) > 1:
            load = load_on_cpu or load_scorer
            self._helper = ScoringProcess(load, settings.artifacts, self._metrics, settings.log_level)
        self._quarantine = Quarantine(self._journal, load_scorer, settings.artifacts, self._helper)
        self._observer = Observer(settings, self._bundle, load_on_cpu or load_scorer, self._metrics)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="score")
        self._stopping = asyncio.Event()
        self._publisher = Publisher(settings)
        self._stages: Stages | None = None
        self._watchdog = watchdog or Watchdog(settings.watchdog_seconds)

    @property
    def is_scoring(self) -> bool:
        """Whether the model is at work on a batch; no such thread ends with the loop."""
        return self._stages is not None and self._stages.scoring_since is not None

    async def run(self) -> int:
        """Work until SIGTERM or SIGINT.

        Returns
        -------
        int
            One of the exit codes above; 72 ends the process without coming back.

        Raises
        ------
        FraudError
            If there is no bundle to start with, a port is taken, or the topics do not fit.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        self._metrics.tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
        beat = asyncio.create_task(self._watchdog.beat(lambda late: self._metrics.loop_lag.observe_many([late])))
        try:
            await self._bundle.load()
            if self._helper and self._settings.score_process == "start":
                await self._helper.prepare(self._bundle.scorer.bundle_id, self._stopping)
            calm_collector()
            health = await self._serve_health()
            try:
                consumer = await self._connect()
                return EXIT_NOT_DRAINED if consumer is None else await self._work(consumer)
            finally:
                health.close()
        except (StuckError, ModelError, HungError, UnpublishableError) as err:
            code = _CODES[type(err)]
            log.error("worker gives up", extra={"error": str(err), "exit_code": code})
            return code
        finally:
            beat.cancel()
            if self._helper:
                self._helper.close()
            if not self.is_scoring:
                self._journal.close_all()
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _stop(self) -> None:
        self._watchdog.stop_asked()
        self._stopping.set()

    async def _serve_health(self) -> asyncio.Server:
        host, port = self._settings.metrics_host, self._settings.metrics_port
        try:
            server = await serve_health(host, port, self._metrics.registry, self._missing)
        except (OSError, OverflowError) as err:
            raise ServiceError(
                f"cannot listen on {host}:{port} ({err}); free the port or set FRAUDLIB_METRICS_PORT"
            ) from err
        log.info("health is served", extra={"host": host, "port": server.sockets[0].getsockname()[1]})
        return server

    def _missing(self) -> str | None:
        return None if self._stages and self._stages.is_assigned else "partitions from the broker"

    async def _patiently(self, attempt: Callable[[], Any]) -> Any:
        """Result of an attempt, repeated with growing pauses; None where the worker was told to stop."""
        pause = 0.2
        while not self._stopping.is_set():
            try:
                return await attempt()
            except NOT_CONNECTED as err:
                self._metrics.failures.labels("connect").inc()
                why = await refusal(self._settings) or repr(err)
                log.warning("broker does not answer", extra={"error": why, "retry_seconds": round(pause, 1)})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(pause * 1.7, 5.0)
        return None

    async def _connect(self) -> AIOKafkaConsumer | None:
        consumer: AIOKafkaConsumer | None = await self._patiently(
            lambda: start_clients(self._settings, self._publisher)
        )
        return consumer

    async def _restart_publisher(self) -> bool:
        await self._publisher.stop(2.0)

        async def start() -> bool:
            await self._publisher.start()
            return True

        return bool(await self._patiently(start))

    async def _work(self, consumer: AIOKafkaConsumer) -> int:
        stages = self._stages = Stages(
            self._settings,
            consumer,
            self._publisher,
            self._bundle,
            self._quarantine,
            self._journal,
            self._observer,
            functools.partial(precedents.read, self._settings),
            self._executor,
            self._metrics,
            self._restart_publisher,
            self._stopping,
        )
        code = EXIT_NOT_DRAINED
        try:
            consumer.subscribe([TOPIC_TRANSACTIONS], listener=stages)
            code = await self._run_stages(stages, consumer)
        finally:
            has_partitions = stages.is_assigned
            clean = await within(consumer.stop(), 3.0)
            clean = await self._publisher.stop(2.0) and clean
        # Who has none may wait long for the group to let it go, and leaves nothing undone.
        return code if clean or not has_partitions else EXIT_NOT_DRAINED

    async def _run_stages(self, stages: Stages, consumer: AIOKafkaConsumer) -> int:
        """Run until a stop is asked for or a part fails; 0 when everything taken is committed."""
        seconds = self._settings.watchdog_seconds
        line = [asyncio.create_task(stage) for stage in (stages.fetch(), stages.score(), stages.publish())]
        aside = [
            asyncio.create_task(part)
            for part in (
                stages.commit_when_due(),
                StallCheck(seconds, stages, consumer, self._publisher, self._quarantine, self._metrics).run(),
                self._bundle.watch(self._settings.reload_seconds),
            )
        ]
        observe = asyncio.create_task(self._observer.run())
        stop = asyncio.create_task(self._stopping.wait())
        every = [*line, *aside, stop]
        try:
            await asyncio.wait(every, return_when=asyncio.FIRST_COMPLETED)
            _raise_first(every)
            log.info("worker drains")
            if not stages.is_assigned:
                return 0 if await within(stages.settled(), DRAIN_SECONDS) else EXIT_NOT_DRAINED
            _, pending = await asyncio.wait(line, timeout=DRAIN_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            _raise_first(every)
            return 0 if not pending and await stages.commit() else EXIT_NOT_DRAINED
        except (KafkaError, ServiceError) as err:
            if not self._stopping.is_set() or isinstance(err, ModelError):
                raise
            log.error("not drained", extra={"error": str(err)})
            return EXIT_NOT_DRAINED
        finally:
            for task in (*every, observe):
                task.cancel()
            await asyncio.wait([*every, observe], timeout=1)


_CODES: Final[dict[type[Exception], int]] = {
    StuckError: EXIT_STUCK,
    ModelError: EXIT_MODEL,
    HungError: EXIT_MODEL,
    UnpublishableError: EXIT_UNPUBLISHABLE,
}


def _raise_first(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()):
            raise error


def load_scorer(settings: Settings, device: str | None = None) -> LoadScorer:
    """Loader of bundles for the device of the settings, or another."""
    return functools.partial(
        _load,
        device=device or settings.device,
        threads=settings.score_threads,
        verify_key=settings.verify_key_file,
    )


def _load(folder: Path, device: str, threads: int, verify_key: Path | None) -> Scorer:
    from fraudlib.scoring import Scorer as BundleScorer

    return BundleScorer.load(folder, device=device, threads=threads, verify_key=verify_key)


def run(settings: Settings, loader: LoadScorer | None = None, load_on_cpu: LoadScorer | None = None) -> int:
    """Run a worker until SIGTERM or SIGINT; blocking. See `Worker.run` for the exit codes and errors.

    A process whose model hangs, or that was told to stop and cannot, is ended from here and does not come back.
    """
    configure_logging("worker", settings.log_level)
    security_options(settings)
    # Two threads share the interpreter: a shorter turn lets the event loop in between two steps of the scoring.
    sys.setswitchinterval(0.0001)
    load, on_cpu = (loader, load_on_cpu) if loader else (load_scorer(settings), load_scorer(settings, "cpu"))
    watchdog = Watchdog(settings.watchdog_seconds)

    async def main() -> int:
        worker = Worker(settings, load, load_on_cpu=on_cpu, watchdog=watchdog)
        code = await worker.run()
        if worker.is_scoring:
            # The interpreter would wait for the thread that hangs.
            logging.shutdown()
            os._exit(code or EXIT_NOT_DRAINED)
        return code

    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    watchdog.start()
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())
    finally:
        watchdog.close()
