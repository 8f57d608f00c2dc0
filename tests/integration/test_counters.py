# SPDX-License-Identifier: Apache-2.0
"""What the counters of a queue say after known traffic."""

from __future__ import annotations

from integration.vhost_steps import await_true
from vdpa_net.testing.frames import FrameMint
from vdpa_net.testing.loopback_guest import LoopbackGuest
from vdpa_net.wire import virtio_net as net

FRAMES = [FrameMint(1).frame(number, 60 + 100 * number) for number in range(10)]


def counters(guest: LoopbackGuest, queue: int) -> dict[str, int]:
    queues = guest.device.snapshot()["queues"]
    return queues[queue]["counters"]  # type: ignore[index, no-any-return]


def test_packets_and_bytes_are_those_of_the_frames() -> None:
    with LoopbackGuest() as guest:
        guest.start()
        guest.driver.send(FRAMES)
        assert guest.driver.receive(len(FRAMES)) == FRAMES
        guest.driver.finish_transmit()
        for queue in (0, 1):
            found = counters(guest, queue)
            assert (found["packets"], found["bytes"]) == (len(FRAMES), sum(map(len, FRAMES)))
            assert found["chains"] >= len(FRAMES)
            # These the worker counts behind what the driver can see: it may see that first.
            for late in ("kicks", "interrupts"):
                assert await_true(lambda queue=queue, late=late: counters(guest, queue)[late] >= 1), late
            assert not any(count for name, count in found.items() if name.startswith("drops"))


def test_dirty_pages_are_counted_by_the_queue_that_marked_them() -> None:
    with LoopbackGuest() as guest:
        guest.start()
        guest.driver.send(FRAMES)
        guest.driver.receive(len(FRAMES))
        assert [counters(guest, queue)["dirty_pages"] for queue in range(3)] == [0, 0, 0]
        assert guest.start_logging()
        guest.driver.send(FRAMES)
        guest.driver.receive(len(FRAMES))
        guest.driver.finish_transmit()
        guest.driver.control(net.CTRL_RX, net.CTRL_RX_PROMISC, b"\1")
        guest.stop()
        found = [counters(guest, queue)["dirty_pages"] for queue in range(3)]
        assert all(found), found
        log = guest.device.snapshot()["log"]
        assert sum(found) == log["pages_marked"]  # type: ignore[index]
