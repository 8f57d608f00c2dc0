# SPDX-License-Identifier: Apache-2.0
"""Processes that a command has started, and their end."""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path

END_SECONDS = 60


def below(root: int) -> set[int]:
    """All processes below one."""
    found: set[int] = set()
    pending = [root]
    while pending:
        for task in Path(f"/proc/{pending.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                numbers = {int(word) for word in task.read_text().split()}
                pending.extend(numbers)
                found |= numbers
    return found


def wait_gone(processes: set[int]) -> None:
    """Return when none of the processes runs any more; whoever inherits them may not have looked yet."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                assert select.select([fd], [], [], END_SECONDS)[0], f"process {pid} outlives the lab"
            finally:
                os.close(fd)
