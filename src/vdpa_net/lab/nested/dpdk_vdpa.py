# SPDX-License-Identifier: Apache-2.0
"""What DPDK's examples/vdpa does, by its libraries alone: a vDPA device behind a vhost-user socket.

    python3 -m vdpa_net.lab.nested.dpdk_vdpa --address 0000:01:00.0 --socket /run/vhost [--sw-live-migration]

DPDK is the distribution's, unmodified; it finds its drivers itself. It runs until SIGTERM.
"""

from __future__ import annotations

import argparse
import ctypes
import signal
from collections.abc import Sequence

from vdpa_net.errors import LabError
from vdpa_net.wire.vhost_user import ProtocolFeature

ABI = 25
EAL_MEMORY_MIB = 64
_OPERATIONS = 16
_NEW_DEVICE, _DESTROY_DEVICE = 0, 1
"""struct rte_vhost_device_ops (rte_vhost.h): function pointers, of which the first two are used."""

_NewDevice = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
_DestroyDevice = ctypes.CFUNCTYPE(None, ctypes.c_int)


class Dpdk:
    """The libraries. Raises LabError when they refuse something."""

    def __init__(self, eal_arguments: Sequence[str]) -> None:
        self._eal = _library("eal")
        self._vhost = _library("vhost")
        self._vhost.rte_vdpa_find_device_by_name.restype = ctypes.c_void_p
        words = [word.encode() for word in ("vdpa", *eal_arguments)]
        argv = (ctypes.c_char_p * (len(words) + 1))(*words, None)
        if self._eal.rte_eal_init(len(words), argv) < 0:
            raise LabError(f"rte_eal_init({' '.join(eal_arguments)}) failed")
        self._new_device = _NewDevice(lambda vid: _tell(f"device {vid} is up"))
        self._destroy_device = _DestroyDevice(lambda vid: _tell(f"device {vid} is down"))
        self._operations = (ctypes.c_void_p * _OPERATIONS)()
        self._operations[_NEW_DEVICE] = ctypes.cast(self._new_device, ctypes.c_void_p)
        self._operations[_DESTROY_DEVICE] = ctypes.cast(self._destroy_device, ctypes.c_void_p)

    def serve(self, address: str, socket: str, *, host_notifiers: bool = True) -> None:
        """Offer the vDPA device at a PCI address on a socket.

        Without `host_notifiers` the front end does not map doorbells. While DPDK switches to logging in
        software it takes them back and waits for the answer, within a message that the front end waits for:
        QEMU (8.0 and newer) answers nothing meanwhile, and both hang.
        """
        device = self._vhost.rte_vdpa_find_device_by_name(address.encode())
        if not device:
            raise LabError(
                f"DPDK has no vDPA device {address}: is it bound to vfio-pci, and of IFC's layout?"
            )
        path = socket.encode()
        self._must("register", path, ctypes.c_uint64(0))
        self._must("attach_vdpa_device", path, ctypes.c_void_p(device))
        if not host_notifiers:
            offered = ctypes.c_uint64()
            self._must("get_protocol_features", path, ctypes.byref(offered))
            wanted = offered.value & ~(1 << ProtocolFeature.HOST_NOTIFIER)
            self._must("set_protocol_features", path, ctypes.c_uint64(wanted))
        # The library calls them without looking whether there are any.
        self._must("callback_register", path, ctypes.byref(self._operations))
        self._must("start", path)

    def stop(self, socket: str) -> None:
        """Take the socket away and give everything back."""
        self._vhost.rte_vhost_driver_unregister(socket.encode())
        self._eal.rte_eal_cleanup()

    def _must(self, what: str, *arguments: object) -> None:
        code = getattr(self._vhost, f"rte_vhost_driver_{what}")(*arguments)
        if code != 0:
            raise LabError(f"rte_vhost_driver_{what} returned {code}, expected 0")


def _library(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(f"librte_{name}.so.{ABI}", mode=ctypes.RTLD_GLOBAL)


def _tell(text: str) -> int:
    print(text, flush=True)
    return 0


def eal_arguments(address: str, *, software_live_migration: bool) -> list[str]:
    """Arguments of the EAL for one vDPA function."""
    device = f"{address},vdpa=1" + (",sw-live-migration=1" if software_live_migration else "")
    return ["--iova-mode=va", "-m", str(EAL_MEMORY_MIB), "-a", device]


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--sw-live-migration", action="store_true")
    arguments = parser.parse_args()
    # Before any thread of the libraries comes, which would take the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    dpdk = Dpdk(eal_arguments(arguments.address, software_live_migration=arguments.sw_live_migration))
    dpdk.serve(arguments.address, arguments.socket, host_notifiers=not arguments.sw_live_migration)
    _tell(f"listening on {arguments.socket}")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    dpdk.stop(arguments.socket)


if __name__ == "__main__":
    main()
