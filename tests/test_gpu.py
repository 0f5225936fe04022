"""What the worker shows of the device that scores."""

import pytest
from prometheus_client import CollectorRegistry

from fraudlib.worker.gpu import DeviceMetrics


def test_a_cpu_shows_its_name_and_no_gpu() -> None:
    """Panels of a GPU then say that there is none."""
    registry = CollectorRegistry()
    DeviceMetrics(registry).show("cpu")
    assert registry.get_sample_value("fraudlib_worker_device_info", {"device": "cpu"}) == 1
    assert registry.get_sample_value("fraudlib_worker_gpu_memory_bytes", {"kind": "used"}) is None


def test_a_gpu_shows_its_memory_and_load() -> None:
    """Used within total, the worker's part within the used; utilization is a share."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    registry = CollectorRegistry()
    held = torch.zeros(1_000_000, device="cuda:0")
    metrics = DeviceMetrics(registry)
    metrics.show(held.device)
    values = [
        registry.get_sample_value("fraudlib_worker_gpu_memory_bytes", {"kind": kind})
        for kind in ("worker", "used", "total")
    ]
    assert None not in values
    assert 4_000_000 <= values[0] <= values[1] <= values[2]  # type: ignore[operator]
    busy = registry.get_sample_value("fraudlib_worker_gpu_utilization_ratio", {"device": "cuda:0"})
    assert busy is not None
    assert 0 <= busy <= 1
    metrics.show("cpu")
    assert registry.get_sample_value("fraudlib_worker_gpu_memory_bytes", {"kind": "used"}) is None
