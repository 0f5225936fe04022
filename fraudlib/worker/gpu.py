"""The device that scores, and how busy it is where it is a GPU."""

from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge

CPU: Final = "cpu"


class DeviceMetrics:
    """Gauges of the scoring device. On a CPU only its name is shown."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._info = Gauge("fraudlib_worker_device_info", "1 for the device that scores", ["device"], registry=registry)
        self._memory = Gauge(
            "fraudlib_worker_gpu_memory_bytes",
            "memory of the GPU: of this worker, of every process, and in all",
            ["kind"],
            registry=registry,
        )  # worker, used, total
        self._busy = Gauge(
            "fraudlib_worker_gpu_utilization_ratio",
            "share of the last second in which the GPU computed",
            ["device"],
            registry=registry,
        )
        self._shown = ""

    def show(self, device: Any) -> None:
        """Read the device; a torch.device or its name.

        Raises
        ------
        RuntimeError
            If the driver fails.
        """
        name = str(device)
        if name != self._shown:
            for gauge in (self._info, self._memory, self._busy):
                gauge.clear()
            self._info.labels(name).set(1)
            self._shown = name
        if name.startswith("cuda"):
            self._read(name)

    def _read(self, name: str) -> None:
        import torch

        free, total = torch.cuda.mem_get_info(name)
        values = {"worker": torch.cuda.memory_reserved(name), "used": total - free, "total": total}
        for kind, value in values.items():
            self._memory.labels(kind).set(value)
        self._busy.labels(name).set(torch.cuda.utilization(name) / 100)
