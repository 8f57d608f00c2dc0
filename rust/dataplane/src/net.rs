// SPDX-License-Identifier: Apache-2.0
//! The virtio-net header and the sizes of packets (virtio 1.3 5.1.6).

use crate::counters::Drop;

/// Bytes of `struct virtio_net_hdr` with num_buffers, which every VERSION_1 device uses.
pub const HEADER_BYTES: usize = 12;
/// The longest frame: Ethernet header, two VLAN tags and the longest IP packet.
pub const MAX_FRAME_BYTES: usize = 14 + 8 + 65535;
/// Header and frame.
pub const MAX_PACKET_BYTES: usize = HEADER_BYTES + MAX_FRAME_BYTES;

/// Where the flags are in the header.
pub const FLAGS: usize = 0;
const NEEDS_CSUM: u8 = 1;
const GSO_TYPE: usize = 1;
const GSO_ECN: u8 = 0x80;
const CSUM_START: usize = 6;
/// Where num_buffers is in the header.
pub const NUM_BUFFERS: usize = 10;

const F_GUEST_CSUM: u32 = 1;
const F_GUEST_TSO4: u32 = 7;
const F_GUEST_TSO6: u32 = 8;
const F_GUEST_ECN: u32 = 9;

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

/// Whether the receiver has to cut the packet into segments: its gso_type is neither NONE nor ECN alone.
pub fn is_segmented(packet: &[u8]) -> bool {
    packet[GSO_TYPE] & !GSO_ECN != 0
}

/// Set num_buffers of a packet (5.1.6.4.1: 1 where MRG_RXBUF was not negotiated, and never left as it came).
pub fn set_num_buffers(packet: &mut [u8], count: u16) {
    packet[NUM_BUFFERS..HEADER_BYTES].copy_from_slice(&count.to_le_bytes());
}

/// Turn the header of a transmitted packet into that of a received one, for a driver that negotiated `features`: only
/// NEEDS_CSUM of its flags has a meaning in both directions, and only where GUEST_CSUM was negotiated (5.1.6.4.1).
///
/// Errors: a segmentation that the driver does not accept, or a checksum that lies outside of the packet.
pub fn loop_back(packet: &mut [u8], features: u64) -> Result<(), Drop> {
    packet[FLAGS] &= NEEDS_CSUM;
    let accepts = match packet[GSO_TYPE] & !GSO_ECN {
        0 => true,
        1 => has(features, F_GUEST_TSO4),
        4 => has(features, F_GUEST_TSO6),
        _ => false,
    };
    if !accepts || (packet[GSO_TYPE] & GSO_ECN != 0 && !has(features, F_GUEST_ECN)) {
        return Err(Drop::Backend);
    }
    if packet[FLAGS] & NEEDS_CSUM != 0 && !has(features, F_GUEST_CSUM) {
        complete_checksum(packet)?;
    }
    Ok(())
}

/// Make a packet of a back end one for a driver that did not negotiate GUEST_CSUM: its flags are 0, and its checksum is
/// there (virtio 1.3 5.1.6.4.1). A tap's kernel completes checksums by itself, but says of some that they are valid, and
/// what it had queued when the offloads changed is as it was.
///
/// Errors: a checksum that lies outside of the packet.
pub fn complete(packet: &mut [u8]) -> Result<(), Drop> {
    if packet[FLAGS] & NEEDS_CSUM != 0 {
        complete_checksum(packet)?;
    }
    packet[FLAGS] = 0;
    Ok(())
}

/// Do what NEEDS_CSUM asks for (5.1.6.2): sum from csum_start to the end, put at csum_offset behind it.
fn complete_checksum(packet: &mut [u8]) -> Result<(), Drop> {
    let (header, frame) = packet.split_at_mut(HEADER_BYTES);
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (start, offset) = (field(CSUM_START), field(CSUM_START + 2));
    if start + offset + 2 > frame.len() {
        return Err(Drop::BadHeader);
    }
    let sum = match internet_checksum(&frame[start..]) {
        // 0 means that there is none (RFC 768), and both are zeros of the ones' complement.
        0 => 0xffff,
        sum => sum,
    };
    frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
    header[FLAGS] &= !NEEDS_CSUM;
    header[CSUM_START..NUM_BUFFERS].fill(0);
    Ok(())
}

/// The checksum of RFC 1071.
pub(crate) fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u64::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn has(features: u64, bit: u32) -> bool {
    features >> bit & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = u64::MAX;

    fn packet(flags: u8, gso_type: u8, csum_start: u16, csum_offset: u16) -> Vec<u8> {
        let mut packet = vec![flags, gso_type, 0, 0, 0, 0];
        packet.extend(csum_start.to_le_bytes());
        packet.extend(csum_offset.to_le_bytes());
        packet.extend([0, 0]);
        packet.extend((0..40).map(|byte: u8| byte.wrapping_mul(7)));
        packet
    }

    #[test]
    fn a_checksum_is_left_to_who_accepts_that_and_else_completed() {
        let mut open = packet(NEEDS_CSUM | 2, 0, 10, 6);
        loop_back(&mut open, ALL).unwrap();
        assert_eq!(open, packet(NEEDS_CSUM, 0, 10, 6));
        loop_back(&mut open, 0).unwrap();
        assert_eq!(open[FLAGS], 0);
        // The checksum was summed over what the field held before, which the sum over all then shows.
        let mut frame = open[HEADER_BYTES + 10..].to_vec();
        let field = u16::from_be_bytes([frame[6], frame[7]]);
        frame[6..8].copy_from_slice(&packet(0, 0, 0, 0)[HEADER_BYTES + 16..HEADER_BYTES + 18]);
        assert_eq!(internet_checksum(&frame), field);
    }

    #[test]
    fn a_driver_without_checksum_offload_gets_whole_checksums_and_no_flags() {
        const DATA_VALID: u8 = 2;
        let mut open = packet(NEEDS_CSUM | DATA_VALID, 0, 10, 6);
        let mut same = open.clone();
        complete(&mut open).unwrap();
        loop_back(&mut same, 0).unwrap();
        assert_eq!(open, same);
        let mut valid = packet(DATA_VALID, 0, 0, 0);
        complete(&mut valid).unwrap();
        assert_eq!(valid, packet(0, 0, 0, 0));
        assert!(complete(&mut packet(NEEDS_CSUM, 0, 30, 9)).is_err());
    }

    #[test]
    fn what_the_driver_does_not_accept_is_refused() {
        for (gso_type, bit) in [(1, F_GUEST_TSO4), (4, F_GUEST_TSO6)] {
            let need = 1 << bit | 1 << F_GUEST_CSUM;
            assert!(loop_back(&mut packet(NEEDS_CSUM, gso_type, 10, 6), need).is_ok());
            assert!(loop_back(&mut packet(NEEDS_CSUM, gso_type, 10, 6), !need).is_err());
            assert!(loop_back(&mut packet(NEEDS_CSUM, gso_type | GSO_ECN, 10, 6), need).is_err());
        }
        assert!(loop_back(&mut packet(0, 5, 0, 0), ALL).is_err());
        assert!(loop_back(&mut packet(NEEDS_CSUM, 0, 30, 9), 0).is_err());
        assert!(loop_back(&mut packet(NEEDS_CSUM, 0, u16::MAX, u16::MAX), 0).is_err());
    }

    #[test]
    fn the_checksum_of_rfc_1071_s_example_is_right() {
        assert_eq!(
            internet_checksum(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
    }
}
