# SPDX-License-Identifier: Apache-2.0
"""The state of a device for Prometheus, over HTTP on 127.0.0.1; needs the extra `metrics`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from vdpa_net.closing import Closing
from vdpa_net.errors import MissingTool, OptionError

if TYPE_CHECKING:
    from vdpa_net.device.net_device import NetDevice

ADDRESS = "127.0.0.1"

_Samples = Sequence[tuple[dict[str, str], float]]
_DROPS = "drops_"
_COUNTERS = {
    "packets": "Packets that the queue has moved.",
    "bytes": "Bytes of packets that the queue has moved, virtio-net headers not included.",
    "kicks": "Kicks that woke the queue's worker.",
    "interrupts": "Interrupts that were raised.",
    "chains": "Descriptor chains that were used.",
}
_LOG_COUNTERS = {
    "marks": "Marks of the dirty log that were made, of pages marked before, too.",
    "pages_marked": "Pages whose bit in the dirty log went from 0 to 1.",
    "log_overflow": "Marks of pages beyond the end of the log, which are lost.",
    "log_unmapped": "Marks that were lost because the log was not mapped.",
    "marks_dropped_by_fault": "Marks that an installed fault dropped.",
}


class MetricsServer(Closing):
    """Answers GET /metrics on 127.0.0.1 until it is closed. Port 0 takes a free one; `url` says which.

    A scrape takes a snapshot of the device, which disturbs no worker. Raises MissingTool without
    prometheus-client, OptionError when the port can't be had.
    """

    def __init__(self, device: NetDevice, port: int) -> None:
        try:
            import prometheus_client  # noqa: PLC0415
        except ImportError:
            raise MissingTool(
                "metrics need the Python package prometheus-client: pip install 'vdpa-net[metrics]'"
            ) from None
        registry = prometheus_client.CollectorRegistry()
        registry.register(cast(Any, _Collector(device)))
        try:
            self._server, self._thread = prometheus_client.start_http_server(port, ADDRESS, registry)
        except OSError as error:
            raise OptionError(
                f"can't offer metrics on {ADDRESS}:{port}: {error.strerror}; port 0 takes a free one"
            ) from error
        self.url = f"http://{ADDRESS}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """End the server. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Collector:
    """Turns a snapshot into metric families at each scrape."""

    def __init__(self, device: NetDevice) -> None:
        self._device = device

    def collect(self) -> Iterator[Any]:
        snapshot: dict[str, Any] = self._device.snapshot()
        yield from _device_families(snapshot)
        yield from _queue_families(snapshot["queues"])
        for name, text in _LOG_COUNTERS.items():
            yield _family(
                "counter", f"log_{name.removeprefix('log_')}", text, [({}, snapshot["log"].get(name, 0))]
            )
        yield _family(
            "counter",
            "violations",
            "Accesses and messages that a specification does not allow, by kind.",
            [({"kind": kind}, count) for kind, count in snapshot["violation_kinds"].items()],
        )


def _device_families(snapshot: dict[str, Any]) -> Iterator[Any]:
    labels = {"mac": snapshot["mac"], "profile": snapshot["profile"]}
    yield _family("gauge", "info", "What the device is; always 1.", [(labels, 1)])
    yield _family("gauge", "status", "device_status (virtio 1.3, 2.1).", [({}, snapshot["status"])])
    yield _family("gauge", "dma_maps", "DMA maps that the client holds.", [({}, snapshot["dma_maps"])])
    yield _family("gauge", "logging", "1 while the dirty log is on.", [({}, int(snapshot["logging"]))])


def _queue_families(queues: list[dict[str, Any]]) -> Iterator[Any]:
    def each(key: str) -> _Samples:
        return [({"queue": str(queue["index"])}, queue["counters"].get(key, 0)) for queue in queues]

    running = [({"queue": str(queue["index"])}, int(queue["running"])) for queue in queues]
    yield _family("gauge", "queue_running", "1 while the queue is served.", running)
    for name, text in _COUNTERS.items():
        yield _family("counter", f"queue_{name}", text, each(name))
    drops = [
        ({"queue": str(queue["index"]), "reason": key.removeprefix(_DROPS)}, count)
        for queue in queues
        for key, count in queue["counters"].items()
        if key.startswith(_DROPS)
    ]
    yield _family("counter", "queue_drops", "Packets that the queue has dropped, by reason.", drops)


def _family(kind: str, name: str, text: str, samples: _Samples) -> Any:
    from prometheus_client import core  # noqa: PLC0415

    make = core.CounterMetricFamily if kind == "counter" else core.GaugeMetricFamily
    family = make(f"vdpa_net_{name}", text, labels=list(samples[0][0]) if samples else [])
    for labels, value in samples:
        family.add_metric(list(labels.values()), value)
    return family
