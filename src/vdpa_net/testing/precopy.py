# SPDX-License-Identifier: Apache-2.0
"""The pre-copy of a live migration: memory copied in passes while the guest and its device go on writing.

Each pass harvests the log, then takes an image of all memory, then copies from the image the pages that the
log and the CPU named. Two images in a row also show which pages were written in between, whatever the log
says: the intervals of the dirty audit.
"""

from __future__ import annotations

from vdpa_net.migration.checks import AuditInterval, differing_pages
from vdpa_net.testing.dirty_log import DirtyLog
from vdpa_net.testing.guest_memory import GuestMemory


class PreCopy:
    """Copies `source` to `destination`, which is laid out alike. Device and CPU must write different pages.

    Use: `prepare`, start logging, `first_pass`, any number of `next_pass`, stop the device, `next_pass` once
    more. Then the memories are equal, or a page was written and not marked.
    """

    def __init__(self, source: GuestMemory, destination: GuestMemory, log: DirtyLog) -> None:
        self.source, self.destination, self.log = source, destination, log
        self.pages_copied: list[int] = []
        self.marks_outside_memory: set[int] = set()
        self._page_numbers = source.page_numbers()
        self._image = b""
        self._written: list[set[int]] = []
        self._marked: list[set[int]] = []
        self._replaced: DirtyLog | None = None
        self._left_over: set[int] = set()

    def prepare(self) -> None:
        """Track what the CPU writes; to be called before logging starts."""
        self.source.track_cpu_writes()

    def first_pass(self) -> None:
        """Copy all memory; to be called when logging has started."""
        _, self._image = self.source.take_cpu_writes()
        self.destination.load_pages(self._image)
        self.pages_copied.append(len(self._page_numbers))

    def switch_log(self, log: DirtyLog) -> None:
        """The back end marks in this log instead: what was left in the other counts for the next pass."""
        self._left_over |= self.log.harvest()
        self._replaced, self.log = self.log, log

    def marks_after_switch(self) -> set[int]:
        """Pages that were marked in the log that was replaced, after it was."""
        return set() if self._replaced is None else self._replaced.peek()

    def next_pass(self) -> int:
        """Copy what was written since the last pass; returns the number of pages."""
        marked = self.log.harvest() | self._left_over
        self._left_over = set()
        by_cpu, image = self.source.take_cpu_writes()
        changed = {self._page_numbers[place] for place in differing_pages(self._image, image)}
        self._image = image
        self._written.append(changed - by_cpu)
        self._marked.append(marked)
        self.marks_outside_memory |= marked.difference(self._page_numbers)
        self.destination.load_pages(image, marked | by_cpu)
        self.pages_copied.append(len(marked | by_cpu))
        return self.pages_copied[-1]

    def differing(self) -> list[int]:
        """Guest pages in which source and destination differ now."""
        places = differing_pages(self.source.snapshot(), self.destination.snapshot())
        return [self._page_numbers[place] for place in places]

    def written_by_device(self) -> set[int]:
        """Pages that the device was seen to write after the first pass."""
        return set().union(*self._written)

    def marked_by_device(self) -> set[int]:
        """Pages harvested from the log, all passes together."""
        return set().union(*self._marked)

    def audit_intervals(self) -> list[AuditInterval]:
        """What was written between two images, and the harvests in which its mark may lie.

        The mark follows its store: a store seen in this image was marked before this pass's harvest or, if
        the mark came later than the harvest, is in the next one.
        """
        following = [*self._marked[1:], set()]
        return [
            AuditInterval(written, marked | later)
            for written, marked, later in zip(self._written, self._marked, following, strict=True)
        ]
