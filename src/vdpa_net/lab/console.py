# SPDX-License-Identifier: Apache-2.0
"""Lines that another process prints: logged as they come, and waited for without polling."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from pathlib import Path

from vdpa_net.errors import LabError

CHUNK_BYTES = 1 << 16


class LineReader:
    """Reads a file descriptor to its end in a thread, writes all of it to a log, and knows its lines.

    It owns the descriptor.
    """

    def __init__(self, fd: int, log_path: Path, name: str) -> None:
        self.name = name
        self.log_path = log_path
        self._fd = fd
        self._copy_fd: int | None = None
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name=f"lines-{name}", daemon=True)
        self._thread.start()

    def copy_to(self, fd: int | None) -> None:
        """Write all that comes from now on to this descriptor, too; None: no more."""
        self._copy_fd = fd

    @property
    def position(self) -> int:
        """How many lines there are now; later lines have this index or more."""
        with self._changed:
            return len(self._lines)

    def lines(self, start: int = 0) -> list[str]:
        """The lines from an index on."""
        with self._changed:
            return self._lines[start:]

    def tail(self, count: int = 20) -> str:
        """The last lines, for messages."""
        return "\n".join(self.lines()[-count:])

    def wait_for(self, pattern: str, timeout_s: float, *, start: int = 0) -> re.Match[str]:
        """The first line from index `start` on in which the pattern is found, as its match.

        Raises LabError if the stream ends or the time is over before.
        """
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for index in range(start, len(self._lines)):
                    if match := expression.search(self._lines[index]):
                        return match
                start = len(self._lines)
                if self._ended:
                    raise LabError(self._missed(pattern, "ended"))
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise LabError(self._missed(pattern, f"stayed without it for {timeout_s:g} s"))

    def wait_end(self, timeout_s: float) -> bool:
        """Whether the stream ends within this time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout_s)

    def join(self) -> None:
        """Wait until the last line has been logged; the writer must be gone."""
        self._thread.join()

    def _missed(self, pattern: str, what: str) -> str:
        last = "\n".join(self._lines[-20:])
        expected = f"{self.name}: expected a line like {pattern!r}, the output {what}"
        return f"{expected}; log: {self.log_path}; end:\n{last}"

    def _read(self) -> None:
        rest = b""
        with self.log_path.open("wb", buffering=0) as log:
            while chunk := self._chunk():
                log.write(chunk)
                if (copy_fd := self._copy_fd) is not None:
                    os.write(copy_fd, chunk)
                *complete, rest = (rest + chunk).split(b"\n")
                self._append(complete)
        self._append([rest] if rest else [], ended=True)
        os.close(self._fd)

    def _chunk(self) -> bytes:
        try:
            return os.read(self._fd, CHUNK_BYTES)
        except ConnectionError:
            return b""
        except OSError as error:
            # A terminal whose other side is closed.
            if error.errno == errno.EIO:
                return b""
            raise

    def _append(self, raw: list[bytes], *, ended: bool = False) -> None:
        with self._changed:
            self._lines.extend(line.decode(errors="replace").strip("\r") for line in raw)
            self._ended = self._ended or ended
            self._changed.notify_all()
