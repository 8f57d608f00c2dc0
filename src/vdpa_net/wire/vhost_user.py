# SPDX-License-Identifier: Apache-2.0
"""vhost-user on the wire: header, payloads and the table of messages.

The table says once for each message what it carries, what it needs and how it is answered; sizes, gates,
descriptor counts and replies are all derived from it. Chapter names refer to QEMU's docs/interop/vhost-user.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum

from vdpa_net.wire.layout import Field, Layout
from vdpa_net.wire.virtio_pci import F_ACCESS_PLATFORM

VERSION = 1
VERSION_MASK = 0x3
FLAG_REPLY = 1 << 2
FLAG_NEED_REPLY = 1 << 3

F_LOG_ALL = 1 << 26  # VHOST_F_LOG_ALL
F_PROTOCOL_FEATURES = 1 << 30  # VHOST_USER_F_PROTOCOL_FEATURES

VRING_INDEX_MASK = 0xFF
VRING_NO_FD = 1 << 8
VRING_F_LOG = 1 << 0  # VHOST_VRING_F_LOG, in the flags of SET_VRING_ADDR

LOG_PAGE_BYTES = 4096  # VHOST_LOG_PAGE
MAX_FDS = 8
MAX_TABLE_REGIONS = 8
MAX_MEM_SLOTS = 512
"""What GET_MAX_MEM_SLOTS answers: as many as QEMU can use."""
MAX_CONFIG_BYTES = 256
"""VHOST_USER_MAX_CONFIG_SIZE of QEMU: what GET_CONFIG and SET_CONFIG can reach."""
MAX_QUEUES = VRING_INDEX_MASK + 1
"""SET_VRING_KICK, _CALL and _ERR name a ring with 8 bits."""
MAX_PAYLOAD_BYTES = 4096
"""Above the largest payload of any message (a crypto session's); a longer one can't be a message."""

HEADER = Layout("vhost-user header", Field("request", 4), Field("flags", 4), Field("size", 4))
EMPTY = Layout("nothing")
U64 = Layout("u64", Field("value", 8))
VRING_STATE = Layout("vring state", Field("index", 4), Field("num", 4))
VRING_ADDR = Layout(
    "vring address",
    Field("index", 4),
    Field("flags", 4),
    Field("descriptor", 8),
    Field("used", 8),
    Field("available", 8),
    Field("log", 8),
)
MEMORY_TABLE = Layout("memory regions", Field("num_regions", 4), Field("padding", 4))
MEMORY_REGION = Layout(
    "memory region",
    Field("guest_address", 8),
    Field("size", 8),
    Field("user_address", 8),
    Field("mmap_offset", 8),
)
SINGLE_REGION = Layout("single memory region", Field("padding", 8), *MEMORY_REGION.fields)
LOG = Layout("log", Field("mmap_size", 8), Field("mmap_offset", 8))
IOTLB = Layout(
    "IOTLB message",
    Field("iova", 8),
    Field("size", 8),
    Field("user_address", 8),
    Field("permissions", 1),
    Field("type", 1),
    Field("padding", 6),
)
"""struct vhost_iotlb_msg as C lays it out; front ends that pack it leave the padding out."""
CONFIG = Layout("device configuration", Field("offset", 4), Field("size", 4), Field("flags", 4))


class IotlbType(IntEnum):
    """Types of "An IOTLB message"."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


IOTLB_READ = 1
IOTLB_WRITE = 2
IOTLB_READ_WRITE = IOTLB_READ | IOTLB_WRITE


class ConfigFlag(IntEnum):
    """`flags` of GET_CONFIG and SET_CONFIG ("Virtio device config space")."""

    WRITABLE = 0
    MIGRATION = 1


class ProtocolFeature(IntEnum):
    """Bit numbers of "Protocol features"."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    XEN_MMAP = 17
    SHARED_OBJECT = 18
    DEVICE_STATE = 19

    @property
    def mask(self) -> int:
        """The bit."""
        return 1 << self.value


OFFERED_PROTOCOL_FEATURES = sum(
    feature.mask
    for feature in (
        ProtocolFeature.MQ,
        ProtocolFeature.LOG_SHMFD,
        ProtocolFeature.RARP,
        ProtocolFeature.REPLY_ACK,
        ProtocolFeature.MTU,
        ProtocolFeature.BACKEND_REQ,
        ProtocolFeature.CONFIG,
        ProtocolFeature.BACKEND_SEND_FD,
        ProtocolFeature.RESET_DEVICE,
        ProtocolFeature.CONFIGURE_MEM_SLOTS,
        ProtocolFeature.STATUS,
    )
)


class ReplyRule(Enum):
    """How a message is answered ("Communication" and "VHOST_USER_PROTOCOL_F_REPLY_ACK")."""

    ACK_IF_ASKED = "u64 0 or 1, if REPLY_ACK was negotiated and need_reply is set"
    ACK_ALWAYS = "u64 0 or 1, whatever need_reply says"
    VALUE = "a reply of its own; need_reply changes nothing"
    VALUE_OR_EMPTY = "a reply of its own, one without a payload if it is refused"


@dataclass(frozen=True, slots=True)
class Message:
    """One message that the front end may send.

    `payload` is followed by as many `item`s as its field `count_field` says, or by as many bytes as its
    field `bytes_field` says; `optional_bytes` at its end may be missing. `needs` is a protocol feature and
    `needs_feature` a virtio feature bit that has to be negotiated. `fds` is the least and the most
    descriptors that it carries; `exact_fds` narrows that down by the payload.
    """

    code: int
    name: str
    payload: Layout = EMPTY
    item: Layout | None = None
    count_field: str = ""
    max_items: int = 0
    bytes_field: str = ""
    max_bytes: int = 0
    optional_bytes: int = 0
    needs: ProtocolFeature | None = None
    needs_feature: int | None = None
    needs_protocol_features: bool = False
    fds: tuple[int, int] = (0, 0)
    exact_fds: Callable[[Mapping[str, int]], int] | None = None
    reply: ReplyRule = ReplyRule.ACK_IF_ASKED
    reply_payload: Layout = U64


def _vring_fds(fields: Mapping[str, int]) -> int:
    return 0 if fields["value"] & VRING_NO_FD else 1


def _vring_fd(code: int, name: str) -> Message:
    return Message(code, name, U64, fds=(0, 1), exact_fds=_vring_fds)


def _config(code: int, name: str, reply: ReplyRule) -> Message:
    return Message(
        code,
        name,
        CONFIG,
        bytes_field="size",
        max_bytes=MAX_CONFIG_BYTES,
        needs=ProtocolFeature.CONFIG,
        reply=reply,
        reply_payload=CONFIG,
    )


_MESSAGES = (
    Message(1, "GET_FEATURES", reply=ReplyRule.VALUE),
    Message(2, "SET_FEATURES", U64),
    Message(3, "SET_OWNER"),
    Message(4, "RESET_OWNER"),
    Message(
        5,
        "SET_MEM_TABLE",
        MEMORY_TABLE,
        item=MEMORY_REGION,
        count_field="num_regions",
        max_items=MAX_TABLE_REGIONS,
        fds=(0, MAX_TABLE_REGIONS),
        exact_fds=lambda fields: fields["num_regions"],
    ),
    Message(6, "SET_LOG_BASE", LOG, needs=ProtocolFeature.LOG_SHMFD, fds=(1, 1), reply=ReplyRule.ACK_ALWAYS),
    Message(7, "SET_LOG_FD", fds=(1, 1)),
    Message(8, "SET_VRING_NUM", VRING_STATE),
    Message(9, "SET_VRING_ADDR", VRING_ADDR),
    Message(10, "SET_VRING_BASE", VRING_STATE),
    Message(11, "GET_VRING_BASE", VRING_STATE, reply=ReplyRule.VALUE, reply_payload=VRING_STATE),
    _vring_fd(12, "SET_VRING_KICK"),
    _vring_fd(13, "SET_VRING_CALL"),
    _vring_fd(14, "SET_VRING_ERR"),
    Message(15, "GET_PROTOCOL_FEATURES", reply=ReplyRule.VALUE),
    Message(16, "SET_PROTOCOL_FEATURES", U64),
    Message(17, "GET_QUEUE_NUM", needs=ProtocolFeature.MQ, reply=ReplyRule.VALUE),
    Message(18, "SET_VRING_ENABLE", VRING_STATE, needs_protocol_features=True),
    Message(19, "SEND_RARP", U64, needs=ProtocolFeature.RARP),
    Message(20, "NET_SET_MTU", U64, needs=ProtocolFeature.MTU),
    Message(21, "SET_BACKEND_REQ_FD", needs=ProtocolFeature.BACKEND_REQ, fds=(1, 1)),
    Message(
        22,
        "IOTLB_MSG",
        IOTLB,
        optional_bytes=IOTLB.size - IOTLB.offset("padding"),
        needs_feature=F_ACCESS_PLATFORM,
        reply=ReplyRule.ACK_ALWAYS,
    ),
    _config(24, "GET_CONFIG", ReplyRule.VALUE_OR_EMPTY),
    _config(25, "SET_CONFIG", ReplyRule.ACK_IF_ASKED),
    Message(34, "RESET_DEVICE", needs=ProtocolFeature.RESET_DEVICE),
    Message(36, "GET_MAX_MEM_SLOTS", needs=ProtocolFeature.CONFIGURE_MEM_SLOTS, reply=ReplyRule.VALUE),
    Message(37, "ADD_MEM_REG", SINGLE_REGION, needs=ProtocolFeature.CONFIGURE_MEM_SLOTS, fds=(1, 1)),
    Message(38, "REM_MEM_REG", SINGLE_REGION, needs=ProtocolFeature.CONFIGURE_MEM_SLOTS, fds=(0, 1)),
    Message(39, "SET_STATUS", U64, needs=ProtocolFeature.STATUS),
    Message(40, "GET_STATUS", needs=ProtocolFeature.STATUS, reply=ReplyRule.VALUE),
)

MESSAGES: Mapping[int, Message] = {message.code: message for message in _MESSAGES}
BY_NAME: Mapping[str, Message] = {message.name: message for message in _MESSAGES}

REFUSED: Mapping[int, str] = {
    23: "SET_VRING_ENDIAN",
    26: "CREATE_CRYPTO_SESSION",
    27: "CLOSE_CRYPTO_SESSION",
    28: "POSTCOPY_ADVISE",
    29: "POSTCOPY_LISTEN",
    30: "POSTCOPY_END",
    31: "GET_INFLIGHT_FD",
    32: "SET_INFLIGHT_FD",
    33: "GPU_SET_SOCKET",
    35: "VRING_KICK",
    41: "GET_SHARED_OBJECT",
    42: "SET_DEVICE_STATE_FD",
    43: "CHECK_DEVICE_STATE",
}
"""Messages that exist but whose protocol features are not offered."""


class BackendRequest(IntEnum):
    """Codes of the messages that a back end may send ("Back-end message types")."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2


def message_name(code: int) -> str:
    """The specification's name of a message, or its number."""
    if code in MESSAGES:
        return MESSAGES[code].name
    return REFUSED.get(code, f"message {code}")


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """One region of guest memory: untrusted, as the front end sent it. Addresses and sizes in bytes."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int


@dataclass(frozen=True, slots=True)
class VringAddresses:
    """Ring addresses of SET_VRING_ADDR: user addresses of the front end, untrusted."""

    index: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int
