# SPDX-License-Identifier: Apache-2.0
"""The common configuration structure (virtio 1.3, 4.1.4.3): features, status, queue setup.

What these registers set in motion (starting queues, resetting the device) is a `Controller`'s doing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vdpa_net.device import status
from vdpa_net.device.queues import Queue, QueueSet
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire.layout import Register
from vdpa_net.wire.virtio_net import (
    FEATURES,
    QUEUE_SIZE_MAX,
    SERVED_ELSEWHERE,
    feature_names,
    unmet_requirements,
)
from vdpa_net.wire.virtio_pci import F_RING_RESET, F_VERSION_1, MSI_NO_VECTOR, Status

_WORD = (1 << 32) - 1
_QUEUE_FIELDS = {"queue_desc": "desc", "queue_driver": "driver", "queue_device": "device"}


class Controller(Protocol):
    """What the device does when the driver turns its switches."""

    def features_ok(self, features: int) -> str | None:
        """Take over the negotiated features; the reason if that is impossible."""

    def driver_ok(self) -> None:
        """The driver is ready: serve the enabled queues."""

    def enable_queue(self, queue: Queue) -> None:
        """queue_enable has become 1."""

    def disable_queue(self, queue: Queue) -> None:
        """queue_enable becomes 0: on return the queue has stopped."""

    def reset_queue(self, queue: Queue) -> None:
        """1 was written to queue_reset: on return the queue has stopped and is as after a device reset."""

    def reset_device(self) -> None:
        """0 was written to device_status. Ends with `CommonCfg.reset`."""

    def vectors_changed(self) -> None:
        """A vector was mapped to other events."""


class CommonCfg:
    """State and behaviour of the common configuration registers. The caller holds the device's lock."""

    def __init__(
        self,
        offered: int,
        queues: QueueSet,
        vectors: int,
        violations: ViolationLog,
        controller: Controller,
        *,
        queue_stop: bool,
    ) -> None:
        self.offered = offered
        self.queues = queues
        self.status = Status(0)
        self.driver_features = 0
        self.config_msix_vector = MSI_NO_VECTOR
        self.config_generation = 0
        self._vectors = vectors
        self._violations = violations
        self._controller = controller
        self._queue_stop = queue_stop
        self._values = {"device_feature_select": 0, "driver_feature_select": 0, "queue_select": 0}
        self._loads: dict[str, Callable[[], int]] = {
            "device_feature": lambda: self._feature_word(self.offered, "device_feature_select"),
            "driver_feature": lambda: self._feature_word(self.driver_features, "driver_feature_select"),
            "config_msix_vector": lambda: self.config_msix_vector,
            "num_queues": lambda: self.queues.total,
            "device_status": lambda: int(self.status),
            "config_generation": lambda: self.config_generation,
        }
        self._stores: dict[str, Callable[[int], None]] = {
            "driver_feature": self._store_driver_feature,
            "config_msix_vector": self._store_config_vector,
            "device_status": self._store_status,
            "queue_size": self._store_queue_size,
            "queue_msix_vector": self._store_queue_vector,
            "queue_enable": self._store_queue_enable,
            "queue_reset": self._store_queue_reset,
            **{name: self._store_address(name) for name in _QUEUE_FIELDS},
        }

    @property
    def features(self) -> int:
        """The negotiated features: 0 until FEATURES_OK."""
        return self.driver_features if self.status & Status.FEATURES_OK else 0

    def load(self, register: Register) -> int:
        """Value of a register."""
        if register.name in self._values:
            return self._values[register.name]
        if register.name in self._loads:
            return self._loads[register.name]()
        return self._load_queue(register.name)

    def store(self, register: Register, value: int, written: int) -> None:  # noqa: ARG002
        """Act on a write."""
        if register.name in self._values:
            self._values[register.name] = value
        else:
            self._stores[register.name](value)

    def reset(self) -> None:
        """The registers to their reset values; `config_generation` goes on (4.1.4.3.1)."""
        self.status = Status(0)
        self.driver_features = 0
        self.config_msix_vector = MSI_NO_VECTOR
        self._values = dict.fromkeys(self._values, 0)

    def _record(self, what: str, value: int, clause: str, detail: str = "") -> None:
        self._violations.record("common_cfg", what, value, clause, detail)

    def _feature_word(self, features: int, select: str) -> int:
        return features >> 32 * self._values[select] & _WORD

    def _load_queue(self, name: str) -> int:
        queue = self._selected()
        if queue is None:
            return 0
        values = {
            "queue_size": queue.size,
            "queue_msix_vector": queue.msix_vector,
            "queue_enable": int(queue.enabled),
            "queue_notify_off": queue.index,
            "queue_desc": queue.desc,
            "queue_driver": queue.driver,
            "queue_device": queue.device,
        }
        # queue_notif_config_data exists only with a feature of its own, the admin queues (4.1.4.3.1) with
        # ADMIN_VQ; neither is offered (docs/design.md says why), and without them they read 0. queue_reset
        # reads 1 while a reset is under way, and a reset is over before anything else is answered.
        return values.get(name, 0)

    def _selected(self) -> Queue | None:
        return self.queues.get(self._values["queue_select"])

    def _writable_queue(self, name: str, value: int) -> Queue | None:
        """The selected queue, if its setup may be changed now."""
        queue = self._existing_queue(name, value)
        if queue is not None and queue.enabled:
            self._record(f"{name}_while_enabled", value, "4.1.4.3.2", f"queue {queue.index}")
            return None
        return queue

    def _existing_queue(self, name: str, value: int) -> Queue | None:
        queue = self._selected()
        if queue is None:
            detail = f"queue_select {self._values['queue_select']}, the device has {len(self.queues)}"
            self._record(f"{name}_no_such_queue", value, "4.1.4.3", detail)
        return queue

    def _store_driver_feature(self, value: int) -> None:
        selected = self._values["driver_feature_select"]
        if self.status & Status.FEATURES_OK:
            self._record("driver_feature_after_features_ok", value, "3.1.1")
        elif selected <= 1:
            mask = _WORD << 32 * selected
            self.driver_features = (self.driver_features & ~mask) | value << 32 * selected
        elif value:
            self._record("driver_feature_beyond_63", value, "2.2", f"driver_feature_select {selected}")

    def _store_config_vector(self, value: int) -> None:
        self.config_msix_vector = self._vector(value)
        self._controller.vectors_changed()

    def _store_queue_vector(self, value: int) -> None:
        queue = self._existing_queue("queue_msix_vector", value)
        if queue is not None:
            queue.msix_vector = self._vector(value)
            self._controller.vectors_changed()

    def _vector(self, value: int) -> int:
        if value < self._vectors or value == MSI_NO_VECTOR:
            return value
        self._record("no_such_vector", value, "4.1.5.1.2.2", f"the table has {self._vectors}")
        return MSI_NO_VECTOR

    def _store_queue_size(self, value: int) -> None:
        queue = self._writable_queue("queue_size", value)
        if queue is None:
            return
        odd = bool(value & (value - 1)) and not self.queues.is_packed
        if odd or not 0 < value <= min(queue.max_size, QUEUE_SIZE_MAX):
            kind = "1 to" if self.queues.is_packed else "a power of 2 up to"
            detail = f"expected {kind} {queue.max_size}"
            self._record("bad_queue_size", value, "4.1.4.3.2", detail)
            return
        queue.size = value

    def _store_address(self, name: str) -> Callable[[int], None]:
        def store(value: int) -> None:
            queue = self._writable_queue(name, value)
            if queue is not None:
                setattr(queue, _QUEUE_FIELDS[name], value)

        return store

    def _store_queue_enable(self, value: int) -> None:
        queue = self._existing_queue("queue_enable", value)
        if queue is None:
            return
        if value > 1 or (value == 0 and not self._queue_stop):
            expected = "0 or 1" if self._queue_stop else "1 (0 only with vdpa=on)"
            self._record("bad_queue_enable", value, "4.1.4.3.2", f"queue {queue.index}, expected {expected}")
        elif value and not queue.enabled:
            self._controller.enable_queue(queue)
        elif not value and queue.enabled:
            self._controller.disable_queue(queue)

    def _store_queue_reset(self, value: int) -> None:
        queue = self._existing_queue("queue_reset", value)
        if queue is None:
            return
        if not self.features >> F_RING_RESET & 1:
            self._record("queue_reset_not_negotiated", value, "4.1.4.3", f"queue {queue.index}")
        elif value != 1:
            self._record("bad_queue_reset", value, "4.1.4.3.2", f"queue {queue.index}, expected 1")
        else:
            self._controller.reset_queue(queue)

    def _store_status(self, value: int) -> None:
        if value == 0:
            self._controller.reset_device()
            return
        for fault in status.faults(self.status, value):
            self._record(fault.kind, value, fault.clause, fault.detail)
        for step in status.new_steps(self.status, value):
            self._take(step, value)

    def _take(self, step: status.Step, value: int) -> None:
        if fault := status.out_of_order(step, self.status):
            self._record(fault.kind, value, fault.clause, fault.detail)
            if step.device_decides:
                return
        if step.bit == Status.FEATURES_OK and not self._features_ok():
            return
        self.status |= step.bit
        if step.bit == Status.DRIVER_OK:
            self._controller.driver_ok()

    def _features_ok(self) -> bool:
        if not self._features_valid():
            return False
        reason = self._controller.features_ok(self.driver_features)
        if reason is not None:
            self._record("features_refused", self.driver_features, "2.2.2", reason)
        return reason is None

    def _features_valid(self) -> bool:
        features = self.driver_features
        if extra := features & ~self.offered:
            self._record("features_not_offered", extra, "2.2.1", ", ".join(feature_names(extra)))
        elif not features >> F_VERSION_1 & 1:
            self._record("no_version_1", features, "6.1", "a modern device needs VERSION_1")
        elif unmet := self._unmet(features):
            need = "; ".join(
                f"{FEATURES[bit]} requires {' or '.join(FEATURES[item] for item in items)}"
                for bit, items in unmet
            )
            self._record("features_unmet", features, "5.1.3.1", need)
        else:
            return True
        return False

    def _unmet(self, features: int) -> list[tuple[int, tuple[int, ...]]]:
        passed_on = SERVED_ELSEWHERE if self._queue_stop else 0
        return [(bit, need) for bit, need in unmet_requirements(features) if not passed_on >> bit & 1]
