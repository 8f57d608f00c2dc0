# SPDX-License-Identifier: Apache-2.0
"""LM registers: LM_RING_STATE of split rings (test_lm_contract_packed.py has packed ones).

A test per sentence of that section of the registers' contract; each docstring says which. Everything goes
through region reads and writes of a device with its real data plane.
"""

from __future__ import annotations

import pytest

from spec.direct import (
    CTRL_QUEUE,
    RING_STATE,
    RX,
    TX,
    Rig,
    rig,
)


def state(avail: int, used: int | None = None) -> int:
    return (avail if used is None else used) << 16 | avail


def test_split_state_is_last_avail_idx_below_and_used_idx_above(running: Rig) -> None:
    """Split: bits 15:0 last_avail_idx, bits 31:16 used_idx."""
    running.exchange(count=5)
    assert running.stop(TX) == 5 << 16 | 5


def test_queue_starts_at_the_state_written_before_queue_enable() -> None:
    """Written before queue_enable: the queue starts there."""
    with rig(first_index=0xFFFE) as device:
        device.driver.start({RX: state(0xFFFE), TX: state(0xFFFE)})
        device.driver.queues.post_receive()
        assert device.driver.queues.transmit(b"z" * 60)
        device.driver.publish()
        device.driver.finish_transmit()
        assert device.stop(TX) == state(0xFFFF)
        assert device.driver.rings[TX].used_idx == 0xFFFF
        assert device.kinds() == []


def test_index_wraps_from_the_state_written() -> None:
    """... and its indices wrap at 2**16 from there."""
    with rig(first_index=0xFFFE) as device:
        device.driver.start({RX: state(0xFFFE), TX: state(0xFFFE)})
        for index in range(4):
            assert device.driver.queues.transmit(bytes([index]) * 60)
        device.driver.publish()
        device.driver.finish_transmit()
        assert device.stop(TX) == state(2)


def test_queue_without_a_written_state_starts_at_zero(device: Rig) -> None:
    """Not written: the queue starts at the specification's initial state."""
    assert [device.read(RING_STATE + 4 * queue) for queue in range(3)] == [0, 0, 0]
    device.driver.start()
    device.exchange(count=1)
    assert device.stop(TX) == state(1)


def test_state_written_before_queue_enable_reads_back(device: Rig) -> None:
    """What was written reads back."""
    device.write(RING_STATE + 4, 0x0007_0009)
    assert device.read(RING_STATE + 4) == 0x0007_0009
    assert device.kinds() == []


def test_state_written_while_the_queue_runs_is_recorded_without_effect(running: Rig) -> None:
    """Written while the queue runs (DPDK does): recorded, without effect."""
    running.exchange(count=2)
    running.write(RING_STATE + 4 * TX, 0x0100_0100)
    assert running.kinds() == ["ring_state_while_running"]
    running.exchange(count=2)
    assert running.stop(TX) == state(4)


@pytest.mark.parametrize("written", [state(0x7, 0x6), 0])
def test_restored_used_idx_that_disagrees_with_memory_is_recorded(written: int) -> None:
    """A restored used_idx that does not agree with used->idx in memory is a recorded violation."""
    with rig(first_index=7) as device:
        device.driver.start({RX: state(7), TX: written})
        assert device.kinds() == ["used_idx"]
        assert device.violations.entries[0].where == "queue 1"
        assert device.violations.entries[0].value == written >> 16


def test_read_while_it_runs_is_a_snapshot(running: Rig) -> None:
    """Read while it runs: a snapshot."""
    assert running.read(RING_STATE + 4 * TX) == 0
    running.exchange(count=3)
    assert running.read(RING_STATE + 4 * TX) == state(3)
    running.exchange(count=3)
    assert running.read(RING_STATE + 4 * TX) == state(6)


def test_read_after_a_stop_is_final_and_agrees_with_memory(running: Rig) -> None:
    """Read after a stop: the final state."""
    running.exchange(count=3)
    final = {queue: running.stop(queue) for queue in (RX, TX, CTRL_QUEUE)}
    for queue, value in final.items():
        assert value >> 16 == running.driver.rings[queue].used_idx
        assert running.read(RING_STATE + 4 * queue) == value
