# SPDX-License-Identifier: Apache-2.0
"""Packets on a tap device of this host, with the virtio-net header that the kernel and the guest share.

The device is opened in the network namespace of the calling thread, created if there is none of that name and
taken over if there is. Only ioctls are used, so no /sys has to be mounted and nothing slow is imported.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING, ClassVar

from vdpa_net.backend import MAX_TAP_QUEUES, Limits
from vdpa_net.errors import BackendError
from vdpa_net.wire import virtio_net

if TYPE_CHECKING:
    from vdpa_net import _native

TUN_PATH = "/dev/net/tun"
VNET_HEADER_BYTES = 12
"""The header with num_buffers, as VIRTIO_F_VERSION_1 has it (virtio 1.3 §5.1.6)."""

# linux/if_tun.h; the request numbers are those of x86-64 and arm64.
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
TUNSETQUEUE = 0x400454D9
TUNSETVNETLE = 0x400454DC
TUNSETCARRIER = 0x400454E2
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_ATTACH_QUEUE = 0x0200
IFF_DETACH_QUEUE = 0x0400
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08

# linux/sockios.h, linux/ethtool.h, linux/if.h
SIOCETHTOOL = 0x8946
ETHTOOL_GLINK = 0x0A
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
IFF_RUNNING = 0x40
IFNAMSIZ = 16
_IFREQ = struct.Struct("16sH22x")
_IFREQ_DATA = struct.Struct("16sQ16x")

LINK_UP_SECONDS = 1.0

# What the kernel may hand over, by the feature that says that the guest can take it (virtio 1.3 §5.1.3).
_OFFLOADS = {
    virtio_net.F_GUEST_CSUM: TUN_F_CSUM,
    virtio_net.F_GUEST_TSO4: TUN_F_TSO4,
    virtio_net.F_GUEST_TSO6: TUN_F_TSO6,
    virtio_net.F_GUEST_ECN: TUN_F_TSO_ECN,
}


class Tap:
    """The back end `tap`: `queues` queue pairs, without carrier at first. Raises BackendError.

    `ifname` may hold `%d` for the first free number. `script` is run with the interface's name when it is up,
    `downscript` before it is closed. The kernel gives a frame to the queue on which one of its flow was sent
    last; queues of pairs that are not active are detached.
    """

    limits: ClassVar[Limits] = Limits(MAX_TAP_QUEUES, steers_itself=True, has_network=True)

    def __init__(
        self,
        ifname: str = "tap%d",
        *,
        queues: int = 1,
        script: str | None = None,
        downscript: str | None = None,
    ) -> None:
        _check_name(ifname)
        if not 1 <= queues <= MAX_TAP_QUEUES:
            raise BackendError(f"tap {ifname}: a tap has 1 to {MAX_TAP_QUEUES} queues, got {queues}")
        self.queue_pairs = queues
        self._downscript: str | None = None
        self._native: _native.Tap | None = None
        # Belongs to the namespace that the tap is made in, whichever thread asks about the link later.
        self._control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._fds: list[int] = []
        try:
            self.name = self._open_queues(ifname, queues)
            self._set(TUNSETVNETHDRSZ, VNET_HEADER_BYTES, "TUNSETVNETHDRSZ")
            self._set(TUNSETVNETLE, 1, "TUNSETVNETLE")
            self.set_offloads(0)
            # Before the interface is up: later, a lost carrier takes effect up to a second late.
            self._set(TUNSETCARRIER, 0, "TUNSETCARRIER")
            self._active = queues
            self.set_active_pairs(1)
            _bring_up(self._control, self.name)
            if script:
                _run(script, self.name)
        except BaseException:
            self.close()
            raise
        self._downscript = downscript

    def native(self) -> _native.Tap:
        """What the data plane reads and writes; it holds duplicates of the file descriptor."""
        if self._native is None:
            from vdpa_net import _native  # noqa: PLC0415 - the extension loads when a device is made

            self._native = _native.Tap(self._fds)
        return self._native

    def _open_queues(self, ifname: str, queues: int) -> str:
        self._fds.append(_open())
        name = _attach(self._fds[0], ifname, multi_queue=queues > 1)
        for _ in range(1, queues):
            self._fds.append(_open())
            _attach(self._fds[-1], name, multi_queue=True)
        return name

    def fileno(self) -> int:
        """The file descriptor of the first queue, for those who poll it."""
        return self._fds[0]

    def set_active_pairs(self, count: int) -> None:
        """Attach the first `count` queues and detach the others; frames that wait in those are lost."""
        for queue in range(self._active, count):
            self._set_queue(queue, IFF_ATTACH_QUEUE)
        for queue in reversed(range(count, self._active)):
            self._set_queue(queue, IFF_DETACH_QUEUE)

    def _set_queue(self, queue: int, flag: int) -> None:
        try:
            fcntl.ioctl(self._fds[queue], TUNSETQUEUE, _IFREQ.pack(b"", flag))
        except OSError as error:
            raise _failed(self.name, f"TUNSETQUEUE {flag:#x} of queue {queue}", error) from error
        self._active = queue + (flag == IFF_ATTACH_QUEUE)

    def set_carrier(self, on: bool) -> None:
        """Plug or pull the cable.

        Plugged: frames sent after the return are forwarded by a bridge that the tap belongs to. Pulled: the
        kernel stops queueing frames for the device, at once on a new tap and within a second on a used one.
        """
        self._set(TUNSETCARRIER, int(on), "TUNSETCARRIER")
        # A work queue tells the interface's users; Linux >= 6.8 catches up when asked for the link.
        ethtool(self._control, self.name, ETHTOOL_GLINK)
        if on:
            self._wait_running()

    def set_offloads(self, features: int) -> None:
        """Let the kernel hand over what the negotiated feature bits say that the guest can take."""
        flags = 0
        if features >> virtio_net.F_GUEST_CSUM & 1:
            flags = sum(flag for bit, flag in _OFFLOADS.items() if features >> bit & 1)
        try:
            # The argument is the value itself, not a pointer to it.
            fcntl.ioctl(self._fds[0], TUNSETOFFLOAD, flags)
        except OSError as error:
            raise _failed(self.name, f"TUNSETOFFLOAD {flags:#x}", error) from error

    def close(self) -> None:
        """Run `downscript` and let go of the tap; the kernel removes it when the data plane has too."""
        fds, self._fds = self._fds, []
        self._native = None
        self._control.close()
        try:
            if self._downscript and fds:
                _run(self._downscript, self.name)
        finally:
            for fd in fds:
                os.close(fd)

    def _set(self, request: int, value: int, what: str) -> None:
        try:
            fcntl.ioctl(self._fds[0], request, struct.pack("i", value))
        except OSError as error:
            raise _failed(self.name, what, error) from error

    def _wait_running(self) -> None:
        # Older kernels: short of netlink there is no event to wait for. A tap that is down never runs.
        deadline = time.monotonic() + LINK_UP_SECONDS
        while (flags := interface_flags(self._control, self.name)) & IFF_UP and not flags & IFF_RUNNING:
            if time.monotonic() > deadline:
                return
            time.sleep(0.0005)


def interface_flags(control: socket.socket, ifname: str) -> int:
    """IFF_ flags of an interface in the namespace of this (any) socket. Raises BackendError."""
    request = bytearray(_IFREQ.pack(ifname.encode(), 0))
    try:
        fcntl.ioctl(control, SIOCGIFFLAGS, request)
    except OSError as error:
        raise _failed(ifname, "SIOCGIFFLAGS", error) from error
    return int(_IFREQ.unpack(bytes(request))[1])


def ethtool(control: socket.socket, ifname: str, command: int) -> int:
    """The answer to an ethtool command that takes nothing and gives one value. Raises BackendError."""
    value = array.array("I", [command, 0])
    try:
        fcntl.ioctl(control, SIOCETHTOOL, _IFREQ_DATA.pack(ifname.encode(), value.buffer_info()[0]))
    except OSError as error:
        raise _failed(ifname, f"SIOCETHTOOL {command:#x}", error) from error
    return value[1]


def _check_name(ifname: str) -> None:
    # dev_valid_name() of the kernel; it would answer EINVAL, which says nothing.
    length = len(ifname.encode())
    if not 0 < length < IFNAMSIZ:
        raise BackendError(
            f"interface name {ifname!r} has {length} bytes; expected 1 to {IFNAMSIZ - 1} (IFNAMSIZ)",
            errno=errno.EINVAL,
        )
    if ifname in (".", "..") or any(char in "/:" or char.isspace() or char == "\0" for char in ifname):
        raise BackendError(
            f"interface name {ifname!r}: expected no '/', no ':', no white space", errno=errno.EINVAL
        )


def _open() -> int:
    try:
        return os.open(TUN_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        advice = {
            errno.ENOENT: "load the kernel module (modprobe tun), or give the container the device",
            errno.ENODEV: "load the kernel module (modprobe tun)",
            errno.EACCES: f"run as root, or give yourself the right to {TUN_PATH}",
            errno.EPERM: f"run as root, or allow the container the device {TUN_PATH}",
        }.get(error.errno or 0, "")
        raise BackendError(
            f"{TUN_PATH}: {error.strerror}{f'; {advice}' if advice else ''}", errno=error.errno
        ) from error


def _attach(fd: int, ifname: str, *, multi_queue: bool) -> str:
    try:
        request = _set_interface(fd, ifname, multi_queue)
    except OSError as error:
        advice = {
            errno.EPERM: "making a tap needs root (CAP_NET_ADMIN in this network namespace), "
            f"or one made for you: ip tuntap add {ifname} mode tap user $USER vnet_hdr",
            errno.EBUSY: "another process uses it",
            errno.EINVAL: "an interface of this name is no tap"
            + (", or one of a single queue (make it with multi_queue)" if multi_queue else ""),
            errno.E2BIG: f"it has {MAX_TAP_QUEUES} queues already",
        }.get(error.errno or 0, "")
        raise _failed(ifname, "TUNSETIFF", error, advice) from error
    return str(_IFREQ.unpack(bytes(request))[0].rstrip(b"\0").decode())


def _set_interface(fd: int, ifname: str, multi_queue: bool) -> bytearray:
    """TUNSETIFF. One queue can be had of a tap of either shape that exists."""
    shapes = [IFF_MULTI_QUEUE] if multi_queue else [0, IFF_MULTI_QUEUE]
    for shape in shapes:
        request = bytearray(_IFREQ.pack(ifname.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | shape))
        try:
            fcntl.ioctl(fd, TUNSETIFF, request)
        except OSError as error:
            if error.errno != errno.EINVAL or shape == shapes[-1]:
                raise
        else:
            break
    return request


def _bring_up(control: socket.socket, ifname: str) -> None:
    flags = interface_flags(control, ifname)
    if flags & IFF_UP:
        return
    try:
        fcntl.ioctl(control, SIOCSIFFLAGS, _IFREQ.pack(ifname.encode(), flags | IFF_UP))
    except OSError as error:
        advice = f"bring it up beforehand: ip link set {ifname} up" if error.errno == errno.EPERM else ""
        raise _failed(ifname, "setting it up", error, advice) from error


def _run(script: str, ifname: str) -> None:
    try:
        code = subprocess.run([script, ifname], check=False).returncode
    except OSError as error:
        raise BackendError(f"tap {ifname}: script {script}: {error.strerror}", errno=error.errno) from error
    if code:
        raise BackendError(f"tap {ifname}: script {script} ended with exit code {code}; expected 0")


def _failed(ifname: str, what: str, error: OSError, advice: str = "") -> BackendError:
    return BackendError(
        f"tap {ifname}: {what}: {error.strerror}{f'; {advice}' if advice else ''}", errno=error.errno
    )
