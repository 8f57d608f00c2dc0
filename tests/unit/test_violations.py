# SPDX-License-Identifier: Apache-2.0
"""The list of violations."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from vdpa_net.migration.violations import KEPT_ENTRIES, Violation, ViolationLog


def test_violation_that_another_thread_takes_over_is_not_missed() -> None:
    pulled, go_on = threading.Event(), threading.Event()
    waiting = [Violation("queue 0", "late", 1, "clause")]

    def pull() -> Iterator[Violation]:
        while waiting:
            yield waiting.pop()
            pulled.set()
            go_on.wait(10)

    log = ViolationLog(pull)
    other = threading.Thread(target=log.refresh)
    other.start()
    assert pulled.wait(10)
    seen: list[dict[str, int]] = []
    reader = threading.Thread(target=lambda: seen.append(log.kinds))
    reader.start()
    go_on.set()
    for thread in (other, reader):
        thread.join(10)
    assert seen == [{"late": 1}]


def test_listener_may_look_at_the_log() -> None:
    waiting = [Violation("queue 0", "one", 1, "clause"), Violation("queue 0", "two", 2, "clause")]

    def pull() -> list[Violation]:
        taken = list(waiting)
        waiting.clear()
        return taken

    log = ViolationLog(pull)
    seen: list[tuple[str, int]] = []
    log.listen(lambda violation: seen.append((violation.what, log.count)))
    log.refresh()
    assert seen == [("one", 2), ("two", 2)]


def test_all_are_counted_and_the_first_ones_kept() -> None:
    log = ViolationLog()
    for number in range(KEPT_ENTRIES + 10):
        log.record("lm", "many", number, "clause")
    assert log.count == KEPT_ENTRIES + 10
    assert len(log.entries) == KEPT_ENTRIES
    assert log.entries[-1].value == KEPT_ENTRIES - 1
