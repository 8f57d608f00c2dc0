# SPDX-License-Identifier: Apache-2.0
"""The lab's network: a namespace of its own with one bridge. All of it goes when the processes in it end."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vdpa_net.closing import Closing
from vdpa_net.errors import LabError, StateError

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
PREFIX_LENGTH = 24
LAB_ADDRESS = "10.87.0.1"
GUEST_ADDRESS = "10.87.0.2"
LAB_MAC = "02:87:00:00:00:01"
QUEUE_FRAMES = 20_000
"""Frames that wait for a guest: some seconds of the lab's traffic."""


def enter_private_network() -> None:
    """Move this process into a new network namespace with nothing but a loopback that is up.

    Without root a user namespace comes with it, in which the user is root. Has to be called while there is
    one thread: namespaces belong to threads, and threads inherit them from their makers. /sys keeps showing
    the network from before. Raises StateError if there are more threads, LabError if the kernel refuses.
    """
    if threading.active_count() != 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        raise StateError(f"a private network is entered with one thread, now there are: {names}")
    user, group = os.geteuid(), os.getegid()
    _unshare(CLONE_NEWNET if user == 0 else CLONE_NEWNET | CLONE_NEWUSER)
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    with IPRoute() as netlink:
        netlink.link("set", index=1, state="up")


def _unshare(flags: int) -> None:
    # os.unshare is there from Python 3.12 on.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise LabError(
            f"the kernel refuses a private network: {os.strerror(number)}; expected root, or the right to "
            "make user namespaces (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces)",
            errno=number,
        )


class LabNetwork(Closing):
    """A bridge with an address, to which taps are attached. Made in the namespace of the calling thread."""

    def __init__(self, address: str = LAB_ADDRESS, bridge: str = "lab0", mac: str = LAB_MAC) -> None:
        self.address = address
        self.bridge = bridge
        self.mac = mac
        self._netlink = IPRoute()
        try:
            self._index = self._make_bridge()
        except NetlinkError as error:
            self._netlink.close()
            raise LabError(f"the bridge {bridge} can't be made: {error}") from error

    def _make_bridge(self) -> int:
        _without_ipv6()
        link = self._netlink.link
        link("add", ifname=self.bridge, kind="bridge", br_stp_state=0, br_mcast_snooping=0)
        index = self._find(self.bridge)
        # With a fixed address the bridge does not take that of its lowest port.
        link("set", index=index, address=self.mac)
        self._netlink.addr("add", index=index, address=self.address, prefixlen=PREFIX_LENGTH)
        link("set", index=index, state="up")
        return index

    def attach(self, interface: str) -> None:
        """Put an interface on the bridge and up. Raises LabError if it is not there.

        Its queue gets long: what the guest can't take at once waits there. With the kernel's 1000 frames a
        machine that stands still for a second would lose packets that no device is to blame for.
        """
        self._set(interface, master=self._index, txqlen=QUEUE_FRAMES)
        self._set(interface, state="up")

    def detach(self, interface: str) -> None:
        """Take an interface off the bridge."""
        self._set(interface, master=0)

    def set_up(self, interface: str, up: bool) -> None:
        """Set an interface up or down."""
        self._set(interface, state="up" if up else "down")

    def make_tap(self, interface: str, *, multi_queue: bool = False) -> None:
        """Make a tap that stays without a process, with room for a virtio-net header."""
        shape = {"no_pi": True, "one_queue": False, "vnet_hdr": True, "multi_queue": multi_queue}
        try:
            self._netlink.link("add", ifname=interface, kind="tuntap", mode="tap", ifr=shape)
        except NetlinkError as error:
            raise LabError(f"the tap {interface} can't be made: {error}") from error

    def set_queue_length(self, interface: str, frames: int) -> None:
        """How many frames wait for the reader of a tap."""
        self._set(interface, txqlen=frames)

    def add_neighbour(self, address: str, mac: str) -> None:
        """Fix a link address, so that no question about it gets lost while a guest stands still."""
        try:
            self._netlink.neigh("replace", dst=address, lladdr=mac, ifindex=self._index, state=128)
        except NetlinkError as error:
            raise LabError(f"the neighbour {address} at {mac} can't be set: {error}") from error

    def counters(self, interface: str) -> dict[str, int]:
        """The kernel's statistics of an interface (rx_dropped, tx_dropped, ...)."""
        link = self._netlink.get_links(self._find(interface))[0]
        return {
            name: int(value)
            for name, value in dict(link.get_attr("IFLA_STATS64")).items()
            if name != "header"
        }

    def close(self) -> None:
        """Give the netlink socket back; the interfaces stay until the namespace goes."""
        self._netlink.close()

    def _find(self, interface: str) -> int:
        found = self._netlink.link_lookup(ifname=interface)
        if not found:
            raise LabError(f"there is no interface {interface} in the lab's network", errno=errno.ENODEV)
        return int(found[0])

    def _set(self, interface: str, **values: object) -> None:
        try:
            self._netlink.link("set", index=self._find(interface), **values)
        except NetlinkError as error:
            raise LabError(f"{interface} can't be set to {values}: {error}") from error


def _without_ipv6() -> None:
    # Its announcements would be packets that nobody counts. Kernels without it have no such file.
    for name in ("all", "default"):
        path = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
        if path.exists():
            path.write_text("1")
