# SPDX-License-Identifier: Apache-2.0
"""The receive filter of the data plane against the specification's sentences, written once more in Python."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from vdpa_net.device.receive_filter import ReceiveFilter

BROADCAST = b"\xff" * 6
OWN = bytes.fromhex("020000000001")
UNICAST = [OWN, *(bytes.fromhex(f"0200000000{last:02x}") for last in (2, 3, 0xFE))]
MULTICAST = [bytes.fromhex(text) for text in ("01005e000001", "01005e7fffff", "333300000001", "0180c2000000")]
VLANS = [0, 1, 5, 63, 64, 4095]

MODES = st.fixed_dictionaries(
    dict.fromkeys(("promisc", "allmulti", "alluni", "nomulti", "nouni", "nobcast"), st.booleans())
)
FILTERS = st.builds(
    lambda modes, unicast, multicast, vlans: ReceiveFilter(
        **modes, unicast=tuple(unicast), multicast=tuple(multicast), vlans=vlans
    ),
    MODES,
    st.lists(st.sampled_from(UNICAST[1:]), max_size=4),
    st.lists(st.sampled_from(MULTICAST), max_size=4),
    st.none() | st.frozensets(st.sampled_from(VLANS)),
)
ADDRESSES = st.sampled_from([*UNICAST, *MULTICAST, BROADCAST]) | st.binary(min_size=6, max_size=6)
TAGS = st.lists(st.sampled_from(VLANS) | st.integers(0, 0xFFFF), max_size=2)


@dataclass(frozen=True)
class Packet:
    destination: bytes
    tags: list[int]
    payload_bytes: int
    gso_type: int

    def pack(self) -> bytes:
        tagging = b"".join(struct.pack(">HH", 0x8100, tag) for tag in self.tags)
        frame = self.destination + UNICAST[1] + tagging + b"\x08\x00" + bytes(self.payload_bytes)
        return struct.pack("<BBHHHHH", 0, self.gso_type, 0, 0, 0, 0, 1) + frame


PACKETS = st.builds(
    Packet,
    ADDRESSES,
    TAGS,
    st.sampled_from((0, 46, 68, 69, 1500, 1501, 1504, 1505)),
    st.sampled_from((0, 1, 4, 0x80, 0x81)),
)


def expected(wanted: ReceiveFilter, mtu: int | None, packet: Packet) -> str | None:
    """The counter of the drop, or None: virtio 1.3, 5.1.4.1 and 5.1.6.5.1 to 5.1.6.5.3."""
    destination, tags = packet.destination, packet.tags
    if mtu is not None and packet.payload_bytes > mtu and packet.gso_type & 0x7F == 0:
        return "drops_too_long"
    if wanted.promisc:
        return None
    vlan = tags[0] & 0xFFF if tags else 0
    if wanted.vlans is not None and vlan and vlan not in wanted.vlans:
        return "drops_filtered"
    if destination == BROADCAST:
        passes = not wanted.nobcast
    elif destination[0] & 1:
        passes = not wanted.nomulti and (wanted.allmulti or destination in wanted.multicast)
    else:
        known = destination == OWN or destination in wanted.unicast
        passes = not wanted.nouni and (wanted.alluni or known)
    return None if passes else "drops_filtered"


@given(wanted=FILTERS, mtu=st.none() | st.sampled_from((68, 1500)), packet=PACKETS)
def test_the_filter_does_what_the_specification_says(
    wanted: ReceiveFilter, mtu: int | None, packet: Packet
) -> None:
    assert wanted.native(OWN, mtu).verdict(packet.pack()) == expected(wanted, mtu, packet)


@given(wanted=FILTERS, packet=st.binary(max_size=80))
def test_any_bytes_have_a_verdict(wanted: ReceiveFilter, packet: bytes) -> None:
    assert wanted.native(OWN, 68).verdict(packet) in (None, "drops_filtered", "drops_too_long")
