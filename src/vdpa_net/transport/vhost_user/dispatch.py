# SPDX-License-Identifier: Apache-2.0
"""From a checked vhost-user request to one call of the back end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from vdpa_net.errors import ProtocolError
from vdpa_net.transport.vhost_user.channel import BackendChannel
from vdpa_net.transport.vhost_user.session import Request, Session
from vdpa_net.wire.vhost_user import (
    OFFERED_PROTOCOL_FEATURES,
    VRING_INDEX_MASK,
    VRING_NO_FD,
    ConfigFlag,
    IotlbType,
    MemoryRegion,
    ProtocolFeature,
    VringAddresses,
)


class Backend(Protocol):
    """The semantic side of vhost-user: what the server calls.

    File descriptors are borrowed for the duration of the call: duplicate what is to be kept. Values are
    untrusted. A VdpaNetError refuses the message and leaves the back end as it was.
    """

    def get_features(self) -> int:
        """Feature bits on offer, VHOST_F_LOG_ALL and VHOST_USER_F_PROTOCOL_FEATURES included."""

    def set_features(self, features: int) -> None:
        """Acknowledged bits; LOG_ALL may come and go while the rings run."""

    def reset_owner(self) -> None:
        """Disable all rings."""

    def set_mem_table(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """Replace the memory table; `fds` in the order of the regions."""

    def add_mem_region(self, region: MemoryRegion, fd: int) -> None:
        """Add one region."""

    def remove_mem_region(self, region: MemoryRegion) -> None:
        """Remove the region with this guest address, user address and size."""

    def get_max_mem_slots(self) -> int:
        """How many regions there may be."""

    def set_log_base(self, size_bytes: int, offset_bytes: int, fd: int) -> None:
        """The dirty log: `size_bytes` from `offset_bytes` of the file on."""

    def set_log_fd(self, fd: int) -> None:
        """An eventfd that may be signalled when the log was written."""

    def set_vring_num(self, index: int, num: int) -> None:
        """Ring size in descriptors."""

    def set_vring_addr(self, addresses: VringAddresses) -> None:
        """Ring addresses."""

    def set_vring_base(self, index: int, num: int) -> None:
        """Where the ring starts: last_avail_idx of a split ring."""

    def get_vring_base(self, index: int) -> int:
        """Stop the ring; its last_avail_idx."""

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        """The eventfd that the guest kicks; None: there is none."""

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """The eventfd that interrupts the guest."""

    def set_vring_err(self, index: int, fd: int | None) -> None:
        """The eventfd that reports ring errors."""

    def set_vring_enable(self, index: int, enable: bool) -> None:
        """Enable or disable one ring."""

    def get_queue_num(self) -> int:
        """Queue pairs, not queues: this is what QEMU compares with its `queues=`."""

    def send_rarp(self, mac: bytes) -> None:
        """Announce the guest with this MAC."""

    def set_mtu(self, mtu: int) -> None:
        """The MTU that the guest is told. Refused if the device does not carry it."""

    def get_config(self, offset: int, size: int) -> bytes:
        """`size` bytes of the device's configuration."""

    def set_config(self, offset: int, data: bytes, *, migration: bool) -> None:
        """Write configuration: fields that a guest may write, or with `migration` all of them."""

    def reset_device(self) -> None:
        """Disable all rings and return to the initial state; the connection stays."""

    def iotlb_update(self, iova: int, size: int, user_address: int, permissions: int) -> None:
        """A translation of the guest's IOMMU."""

    def iotlb_invalidate(self, iova: int, size: int) -> None:
        """Translations that are not valid any more; on return nothing uses them."""

    def set_backend_channel(self, channel: BackendChannel, *, takes_config: bool) -> None:
        """Where to ask the front end, taken over; `takes_config`: it negotiated CONFIG."""

    def set_status(self, status: int) -> None:
        """Device status as the guest's driver has set it."""

    def get_status(self) -> int:
        """Device status."""

    @property
    def quiet_s(self) -> float | None:
        """How long the front end should have said nothing before `finish_stops`; None: nothing is due."""

    def finish_stops(self) -> None:
        """What could wait when rings were stopped. It is done before any message but GET_VRING_BASE and
        SET_STATUS, of which the latter does it itself unless it is a reset.

        An error ends the connection, since the front end can't be told of it any more.
        """

    def disconnected(self) -> None:
        """The front end is gone: stop, unmap, reset. Never raises."""


Values = Mapping[str, int | bytes]
_Handler = Callable[[Backend, Session, Request], Values | None]


def handle(backend: Backend, session: Session, request: Request) -> Values | None:
    """Carry a request out. Returns the fields of the reply (`data`: the bytes behind them), for messages that
    have one of their own.

    Raises what the back end raises.
    """
    return _HANDLERS[request.message.name](backend, session, request)


def _u64(call: Callable[[Backend], int]) -> _Handler:
    return lambda backend, _session, _request: {"value": call(backend)}


def _set_features(backend: Backend, session: Session, request: Request) -> None:
    backend.set_features(request.fields["value"])
    session.accept_features(request.fields["value"])


def _set_protocol_features(_backend: Backend, session: Session, request: Request) -> None:
    session.accept_protocol_features(request.fields["value"])


def _set_mem_table(backend: Backend, _session: Session, request: Request) -> None:
    backend.set_mem_table([_region(item) for item in request.items], request.fds)


def _region(fields: Mapping[str, int]) -> MemoryRegion:
    return MemoryRegion(
        fields["guest_address"], fields["size"], fields["user_address"], fields["mmap_offset"]
    )


def _set_log_base(backend: Backend, _session: Session, request: Request) -> None:
    backend.set_log_base(request.fields["mmap_size"], request.fields["mmap_offset"], request.fds[0])


def _set_vring_addr(backend: Backend, _session: Session, request: Request) -> None:
    backend.set_vring_addr(VringAddresses(**request.fields))


def _get_vring_base(backend: Backend, _session: Session, request: Request) -> Values:
    index = request.fields["index"]
    return {"index": index, "num": backend.get_vring_base(index)}


def _vring_fd(call: Callable[[Backend, int, int | None], None]) -> _Handler:
    def handler(backend: Backend, _session: Session, request: Request) -> None:
        value = request.fields["value"]
        if value & ~(VRING_INDEX_MASK | VRING_NO_FD):
            raise ProtocolError(f"{request.message.name}: {value:#x} sets bits above bit 8")
        call(backend, value & VRING_INDEX_MASK, request.fds[0] if request.fds else None)

    return handler


def _vring_state(call: Callable[[Backend, int, int], None]) -> _Handler:
    def handler(backend: Backend, _session: Session, request: Request) -> None:
        call(backend, request.fields["index"], request.fields["num"])

    return handler


def _enable(backend: Backend, index: int, num: int) -> None:
    if num not in (0, 1):
        raise ProtocolError(f"SET_VRING_ENABLE: {num} is neither 0 nor 1")
    backend.set_vring_enable(index, num == 1)


def _send_rarp(backend: Backend, _session: Session, request: Request) -> None:
    # The MAC is the payload's first six bytes as they lie in memory ("VHOST_USER_SEND_RARP").
    backend.send_rarp(request.fields["value"].to_bytes(8, "little")[:6])


def _iotlb(backend: Backend, _session: Session, request: Request) -> None:
    fields, kind = request.fields, request.fields["type"]
    if kind == IotlbType.UPDATE:
        backend.iotlb_update(fields["iova"], fields["size"], fields["user_address"], fields["permissions"])
    elif kind == IotlbType.INVALIDATE:
        backend.iotlb_invalidate(fields["iova"], fields["size"])
    else:
        raise ProtocolError(f"IOTLB_MSG: type {kind} from a front end, expected 2 (update) or 3 (invalidate)")


def _set_backend_req_fd(backend: Backend, session: Session, request: Request) -> None:
    channel = BackendChannel(request.fds[0], reply_ack=session.negotiated(ProtocolFeature.REPLY_ACK))
    backend.set_backend_channel(channel, takes_config=session.negotiated(ProtocolFeature.CONFIG))


def _get_config(backend: Backend, _session: Session, request: Request) -> Values:
    offset, size = request.fields["offset"], request.fields["size"]
    data = backend.get_config(offset, size)
    return {"offset": offset, "size": size, "flags": request.fields["flags"], "data": data}


def _set_config(backend: Backend, _session: Session, request: Request) -> None:
    flags = request.fields["flags"]
    if flags not in set(ConfigFlag):
        raise ProtocolError(f"SET_CONFIG: flags {flags:#x}, expected 0 (writable) or 1 (migration)")
    backend.set_config(request.fields["offset"], request.data, migration=flags == ConfigFlag.MIGRATION)


def _set_status(backend: Backend, _session: Session, request: Request) -> None:
    status = request.fields["value"]
    if status > 0xFF:
        raise ProtocolError(f"SET_STATUS: {status:#x} is more than the 8 bits of a device status")
    backend.set_status(status)


_HANDLERS: Mapping[str, _Handler] = {
    "GET_FEATURES": _u64(lambda backend: backend.get_features()),
    "SET_FEATURES": _set_features,
    "SET_OWNER": lambda _backend, _session, _request: None,
    "RESET_OWNER": lambda backend, _session, _request: backend.reset_owner(),
    "SET_MEM_TABLE": _set_mem_table,
    "SET_LOG_BASE": _set_log_base,
    "SET_LOG_FD": lambda backend, _session, request: backend.set_log_fd(request.fds[0]),
    "SET_VRING_NUM": _vring_state(lambda backend, index, num: backend.set_vring_num(index, num)),
    "SET_VRING_ADDR": _set_vring_addr,
    "SET_VRING_BASE": _vring_state(lambda backend, index, num: backend.set_vring_base(index, num)),
    "GET_VRING_BASE": _get_vring_base,
    "SET_VRING_KICK": _vring_fd(lambda backend, index, fd: backend.set_vring_kick(index, fd)),
    "SET_VRING_CALL": _vring_fd(lambda backend, index, fd: backend.set_vring_call(index, fd)),
    "SET_VRING_ERR": _vring_fd(lambda backend, index, fd: backend.set_vring_err(index, fd)),
    "GET_PROTOCOL_FEATURES": lambda _backend, _session, _request: {"value": OFFERED_PROTOCOL_FEATURES},
    "SET_PROTOCOL_FEATURES": _set_protocol_features,
    "GET_QUEUE_NUM": _u64(lambda backend: backend.get_queue_num()),
    "SET_VRING_ENABLE": _vring_state(_enable),
    "SEND_RARP": _send_rarp,
    "NET_SET_MTU": lambda backend, _session, request: backend.set_mtu(request.fields["value"]),
    "IOTLB_MSG": _iotlb,
    "GET_CONFIG": _get_config,
    "SET_CONFIG": _set_config,
    "RESET_DEVICE": lambda backend, _session, _request: backend.reset_device(),
    "SET_BACKEND_REQ_FD": _set_backend_req_fd,
    "GET_MAX_MEM_SLOTS": _u64(lambda backend: backend.get_max_mem_slots()),
    "ADD_MEM_REG": lambda backend, _session, request: backend.add_mem_region(
        _region(request.fields), request.fds[0]
    ),
    "REM_MEM_REG": lambda backend, _session, request: backend.remove_mem_region(_region(request.fields)),
    "SET_STATUS": _set_status,
    "GET_STATUS": _u64(lambda backend: backend.get_status()),
}
