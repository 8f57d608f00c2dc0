# SPDX-License-Identifier: Apache-2.0
"""Writes initramfs archives: cpio "newc" (Linux, driver-api/early-userspace/buffer-format)."""

from __future__ import annotations

import stat

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


class Archive:
    """Files in the order in which they are added; the directories above them come by themselves.

    The same calls give the same bytes: owners are root, times are 0.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def add_file(self, name: str, content: bytes, *, executable: bool = False) -> None:
        """A regular file."""
        self._add(name, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def add_directory(self, name: str) -> None:
        """A directory."""
        self._add(name, stat.S_IFDIR | 0o755)

    def add_link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def add_character_device(self, name: str, major: int, minor: int) -> None:
        """A character device."""
        self._add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def __contains__(self, name: str) -> bool:
        return name.strip("/") in self._names

    def to_bytes(self) -> bytes:
        """The whole archive."""
        end = _entry(0, _TRAILER, 0, b"", (0, 0))
        data = b"".join((*self._parts, end))
        return data + bytes(-len(data) % 512)

    def _add(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        name = name.strip("/")
        if name in self._names:
            if stat.S_ISDIR(mode):
                return
            raise ValueError(f"{name} is in the archive already")
        parent = name.rpartition("/")[0]
        if parent and parent not in self._names:
            self.add_directory(parent)
        self._names.add(name)
        self._parts.append(_entry(len(self._names), name, mode, content, device))


def _entry(inode: int, name: str, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    numbers = (inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(encoded), 0)
    header = _MAGIC + b"".join(b"%08X" % number for number in numbers)
    return _padded(header + encoded) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
