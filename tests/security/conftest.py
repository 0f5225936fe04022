"""A real broker and a real API in processes of their own, for what comes over the wire."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from fraudlib.demo.stack import Stack, free_port
from fraudlib.settings import Settings

# `make fuzz` takes this profile: many more tries, new ones each time.
settings.register_profile(
    "fuzz", max_examples=3_000, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Broker and API, which takes bodies of 64 KiB and bulks of 256 KiB."""
    broker = free_port()
    settings = Settings(
        broker_port=broker,
        kafka_bootstrap_servers=f"127.0.0.1:{broker}",
        api_port=free_port(),
        max_body_bytes=65_536,
        max_batch_body_bytes=262_144,
    )
    with Stack(settings, tmp_path_factory.mktemp("stack")) as stack:
        for _ in stack.start("broker", "api"):
            pass
        yield stack
