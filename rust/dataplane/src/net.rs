// SPDX-License-Identifier: Apache-2.0
//! The virtio-net header and the sizes of packets (virtio 1.3 5.1.6).

use crate::counters::Drop;

/// Bytes of `struct virtio_net_hdr` with num_buffers, which every VERSION_1 device uses.
pub const HEADER_BYTES: usize = 12;
/// The longest frame: Ethernet header, two VLAN tags and the longest IP packet.
pub const MAX_FRAME_BYTES: usize = 14 + 8 + 65535;
/// Header and frame.
pub const MAX_PACKET_BYTES: usize = HEADER_BYTES + MAX_FRAME_BYTES;

const FLAGS: usize = 0;
const NEEDS_CSUM: u8 = 1;
const NUM_BUFFERS: usize = 10;

/// Whether a packet of `len` bytes, header included, can be one.
pub fn check_length(len: u64) -> Result<(), Drop> {
    if len <= HEADER_BYTES as u64 {
        Err(Drop::BadHeader)
    } else if len > MAX_PACKET_BYTES as u64 {
        Err(Drop::TooLong)
    } else {
        Ok(())
    }
}

/// Set num_buffers of a packet (5.1.6.4.1: 1 where MRG_RXBUF was not negotiated, and never left as it came).
pub fn set_num_buffers(packet: &mut [u8], count: u16) {
    packet[NUM_BUFFERS..HEADER_BYTES].copy_from_slice(&count.to_le_bytes());
}

/// Turn the header of a transmitted packet into that of a received one: only NEEDS_CSUM of its flags has a meaning
/// in both directions.
pub fn loop_back(packet: &mut [u8]) {
    packet[FLAGS] &= NEEDS_CSUM;
}
