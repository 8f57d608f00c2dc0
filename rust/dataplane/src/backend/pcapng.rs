// SPDX-License-Identifier: Apache-2.0
//! The blocks of a pcapng file (draft-ietf-opsawg-pcapng): one section, one Ethernet interface, packets with their
//! direction and virtqueue.

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;

const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const EPB_DROPCOUNT: u16 = 4;
const EPB_QUEUE: u16 = 6;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;

/// Which way a packet went, seen from the guest's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ToGuest = 1,
    FromGuest = 2,
}

/// One packet of the file.
pub(super) struct Packet<'a> {
    pub(super) time_ns: u64,
    pub(super) way: Way,
    /// The virtqueue.
    pub(super) queue: u16,
    pub(super) frame: &'a [u8],
    /// Bytes of the frame to keep.
    pub(super) snap_bytes: usize,
    /// Packets that were lost since the one before.
    pub(super) dropped: u64,
}

/// What a packet's block has besides the frame, at most.
pub(super) const PACKET_OVERHEAD_BYTES: usize = 32 + 3 + 8 + 12 + 8 + 4;

/// Section header and interface description.
pub(super) fn begin(out: &mut Vec<u8>, snap_bytes: usize) {
    block(out, SECTION_HEADER, |out| {
        out.extend(BYTE_ORDER_MAGIC.to_le_bytes());
        out.extend([1, 0, 0, 0]);
        out.extend(u64::MAX.to_le_bytes());
        option(out, SHB_USERAPPL, b"vdpa-net");
        end_of_options(out);
    });
    block(out, INTERFACE_DESCRIPTION, |out| {
        out.extend(LINKTYPE_ETHERNET.to_le_bytes());
        out.extend([0, 0]);
        out.extend((snap_bytes as u32).to_le_bytes());
        option(out, IF_NAME, b"virtio-net");
        option(out, IF_TSRESOL, &[9]);
        end_of_options(out);
    });
}

pub(super) fn packet(out: &mut Vec<u8>, packet: &Packet<'_>) {
    block(out, ENHANCED_PACKET, |out| {
        let kept = &packet.frame[..packet.frame.len().min(packet.snap_bytes)];
        out.extend(0u32.to_le_bytes());
        time(out, packet.time_ns);
        out.extend((kept.len() as u32).to_le_bytes());
        out.extend((packet.frame.len() as u32).to_le_bytes());
        out.extend(kept);
        pad(out);
        option(out, EPB_FLAGS, &(packet.way as u32).to_le_bytes());
        if packet.dropped > 0 {
            option(out, EPB_DROPCOUNT, &packet.dropped.to_le_bytes());
        }
        option(out, EPB_QUEUE, &u32::from(packet.queue).to_le_bytes());
        end_of_options(out);
    });
}

/// The interface's totals, for the end of the file.
pub(super) fn statistics(out: &mut Vec<u8>, time_ns: u64, received: u64, dropped: u64) {
    block(out, INTERFACE_STATISTICS, |out| {
        out.extend(0u32.to_le_bytes());
        time(out, time_ns);
        option(out, ISB_IFRECV, &received.to_le_bytes());
        option(out, ISB_IFDROP, &dropped.to_le_bytes());
        end_of_options(out);
    });
}

/// A block has its length before and after its body.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let length = ((out.len() - start + 4) as u32).to_le_bytes();
    out.extend(length);
    out[start + 4..start + 8].copy_from_slice(&length);
}

fn time(out: &mut Vec<u8>, time_ns: u64) {
    out.extend(((time_ns >> 32) as u32).to_le_bytes());
    out.extend((time_ns as u32).to_le_bytes());
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(value);
    pad(out);
}

fn end_of_options(out: &mut Vec<u8>) {
    out.extend([0; 4]);
}

/// To a multiple of 4: blocks begin at one, and everything in them has such a length.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_packet_takes_more_than_its_overhead() {
        for len in 0..9 {
            let mut out = Vec::new();
            let frame = vec![0; len];
            packet(
                &mut out,
                &Packet {
                    time_ns: u64::MAX,
                    way: Way::ToGuest,
                    queue: 1,
                    frame: &frame,
                    snap_bytes: 9,
                    dropped: 1,
                },
            );
            assert!(
                out.len() <= len + PACKET_OVERHEAD_BYTES,
                "{len} {}",
                out.len()
            );
            assert_eq!(out.len() % 4, 0);
        }
    }
}
