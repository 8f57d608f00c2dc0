# SPDX-License-Identifier: Apache-2.0
"""What reads and writes of the LM registers do: logging, log range, ring state.

The layout is the profile's (wire/lm.py). Bad values are recorded and change nothing: a migration that fails
to start must not kill a healthy NIC, so nothing here ever sets DEVICE_NEEDS_RESET.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from vdpa_net.errors import DmaError
from vdpa_net.migration.register_faults import RegisterFault
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire.layout import Register
from vdpa_net.wire.lm import LOGGING_CTRL_MASK, PAIRS, Profile, ring_state_name

if TYPE_CHECKING:
    from vdpa_net._native import DmaSpace

Refusal = tuple[int, str]
"""BASE, and why a log can't be there."""

_USED_HALF = 0xFFFF_0000
_RING_STATE_PREFIX = ring_state_name(0).split("[", maxsplit=1)[0]


class RingStates(Protocol):
    """The queues, as far as the LM block is concerned."""

    def __len__(self) -> int: ...
    def ring_state(self, queue: int) -> int:
        """LM_RING_STATE: a snapshot while the queue runs, final after a stop."""

    def has_stopped(self, queue: int) -> bool:
        """Whether the queue ran, was stopped and was given no new state since."""

    def restore(self, queue: int, value: int, *, used_idx_from_ring: bool = False) -> bool:
        """Let the queue start at this LM_RING_STATE; False (and no effect) if queue_enable is 1.

        `used_idx_from_ring`: the used half was not written; unless it has been before, it is to be read from
        the ring.
        """


class LmBlock:
    """Behaviour of the LM registers: `load` and `store` of one register of `profile.registers`.

    `emit` is told "log_started" and "log_stopped". `set_pairs` is told how many queue pairs the driver uses,
    where the layout has a register for that; it returns False if there are not so many. Not thread-safe: the
    device's lock is held by the caller.
    """

    def __init__(
        self,
        profile: Profile,
        space: DmaSpace,
        queues: RingStates,
        violations: ViolationLog,
        emit: Callable[[str, dict[str, object]], None],
        *,
        set_pairs: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self.profile = profile
        self._space = space
        self._queues = queues
        self._violations = violations
        self._emit = emit
        self._set_pairs = set_pairs
        self.faults: list[RegisterFault] = []
        self._queue_of = {ring_state_name(queue): queue for queue in range(profile.max_queues)}
        self._asked_on = 0
        self._range_is_new = False
        self._stale_refusal: Refusal | None = None
        self._values = {
            register.name: register.reset for register in profile.registers if self._is_plain(register)
        }

    def _is_plain(self, register: Register) -> bool:
        return not register.name.startswith(_RING_STATE_PREFIX)

    @property
    def logging(self) -> bool:
        """Whether LM_LOGGING_CTRL says on."""
        return self._values["LM_LOGGING_CTRL"] in self.profile.logging_on

    @property
    def base(self) -> int:
        """LM_BASE_ADDR as one IOVA."""
        return self._values["LM_BASE_ADDR_HIGH"] << 32 | self._values["LM_BASE_ADDR_LOW"]

    @property
    def end(self) -> int:
        """LM_END_ADDR as one IOVA."""
        return self._values["LM_END_ADDR_HIGH"] << 32 | self._values["LM_END_ADDR_LOW"]

    def load(self, register: Register) -> int:
        """Value of a register."""
        queue = self._queue_of.get(register.name)
        if queue is None:
            return self._values[register.name]
        if queue >= len(self._queues):
            return 0
        return self._ring_state(queue, is_driver=True)

    def store(self, register: Register, value: int, written: int) -> None:
        """Act on a write; `value` is the whole register, `written` masks the bits that the access covered."""
        queue = self._queue_of.get(register.name)
        if queue is not None:
            self._store_ring_state(queue, register, value, written)
        elif register.name == "LM_LOGGING_CTRL":
            self._store_logging_ctrl(value)
        elif register.name == PAIRS:
            self._store_pairs(value)
        else:
            self._values[register.name] = value
            self._range_is_new = True
            if register.name == "LM_END_ADDR_HIGH" and self._asked_on:
                self._stale_refusal = None
                self._start_log(self._asked_on)

    def reset(self) -> None:
        """Back to the initial values; logging stops after every mark of earlier writes has been made."""
        self._record_stale_refusal()
        was_logging = self.logging
        if was_logging:
            self._emit("log_stopping", {})
        self._space.barrier()
        self._space.stop_log()
        self._values = dict.fromkeys(self._values, 0)
        self._asked_on = 0
        self._range_is_new = False
        if was_logging:
            self._emit("log_stopped", {"reason": "reset"})

    def registers(self) -> dict[str, int]:
        """The registers for a report: control, range, and the ring state of every queue that exists."""
        states = {ring_state_name(queue): self._ring_state(queue) for queue in range(len(self._queues))}
        return {**self._values, **states}

    def _ring_state(self, queue: int, *, is_driver: bool = False) -> int:
        value = self._queues.ring_state(queue)
        if not self.faults or not self._queues.has_stopped(queue):
            return value
        for fault in self.faults:
            shown = fault.show(queue, value)
            fault.fired += is_driver and shown != value
            value = shown
        return value

    def _store_ring_state(self, queue: int, register: Register, value: int, written: int) -> None:
        avail_alone = self.profile.used_idx_from_ring and not written & _USED_HALF
        if queue >= len(self._queues):
            self._violations.record(
                "lm",
                "no_such_queue",
                value,
                register.clause,
                f"{register.name}: the device has {len(self._queues)}",
            )
        elif not self._queues.restore(queue, value, used_idx_from_ring=avail_alone):
            self._violations.record(
                "lm",
                "ring_state_while_running",
                value,
                register.clause,
                f"{register.name} with queue_enable 1",
            )

    def _store_pairs(self, value: int) -> None:
        if self._set_pairs(value):
            self._values[PAIRS] = value
        else:
            detail = f"the device has {len(self._queues) // 2} pairs"
            self._violations.record("lm", "bad_queue_pairs", value, PAIRS, detail)

    def _store_logging_ctrl(self, value: int) -> None:
        if value & ~LOGGING_CTRL_MASK or (value and value not in self.profile.logging_on):
            on = " or ".join(str(item) for item in self.profile.logging_on)
            self._violations.record("lm", "bad_logging_ctrl", value, "LM_LOGGING_CTRL", f"expected 0 or {on}")
            return
        self._record_stale_refusal()
        # DPDK's stores are no volatile ones: as Debian compiles them, BASE and END come behind CTRL.
        self._asked_on = value if self.profile.range_after_ctrl else 0
        if value:
            self._start_log(value, range_may_come=bool(self._asked_on) and not self._range_is_new)
        elif self.logging:
            self._stop_log()

    def _start_log(self, value: int, *, range_may_come: bool = False) -> None:
        switched = self.logging
        try:
            self._space.start_log(self.base, self.end)
        except DmaError as error:
            refusal = (self.base, f"BASE {self.base:#x}, END {self.end:#x}: {error}")
            if range_may_come:
                self._stale_refusal = refusal
            else:
                self._record_refusal(refusal)
            return
        self._range_is_new = False
        # Marks under way may still go to the log before: the next access has to find it at rest.
        self._space.barrier()
        self._values["LM_LOGGING_CTRL"] = value
        self._emit("log_started", {"base": self.base, "end": self.end, "switched": switched})

    def _record_refusal(self, refusal: Refusal) -> None:
        base, detail = refusal
        self._violations.record("lm", "log_start_refused", base, "LM_LOGGING_CTRL", detail)

    def _record_stale_refusal(self) -> None:
        """No new range has come to a start that could not be had with the old one."""
        refusal, self._stale_refusal = self._stale_refusal, None
        if refusal is not None:
            self._record_refusal(refusal)

    def _stop_log(self) -> None:
        # Whoever compares writes with marks has to do it now: writes behind the stop are not marked.
        self._emit("log_stopping", {})
        self._space.stop_log()
        self._space.barrier()
        self._values["LM_LOGGING_CTRL"] = 0
        self._emit("log_stopped", {"reason": "LM_LOGGING_CTRL"})
