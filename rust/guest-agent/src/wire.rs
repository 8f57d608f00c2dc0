// SPDX-License-Identifier: Apache-2.0
//! The datagrams of the lab's traffic: the tables in `vdpa_net/lab/traffic/format.py` are the reference, a test
//! runs both against each other.

use crate::crc::crc32;

/// First four bytes of every datagram.
pub const MAGIC: u32 = 0x546e_6456;
/// Version of the format.
pub const VERSION: u8 = 1;
/// Bytes of the header.
pub const HEADER: usize = 40;
/// Bytes of the summary behind the header.
pub const SUMMARY: usize = 32;
/// Bytes of the state that a reply carries behind the summary.
pub const STATE: usize = 24;
/// Largest payload, in bytes, that either side sends.
pub const MAX_LENGTH: usize = 1472;
/// Pairs of numbers that one reply carries at most.
pub const MAX_PAIRS: usize = (MAX_LENGTH - HEADER - SUMMARY - STATE) / 16;

const CHECKSUM_AT: usize = 36;

/// What a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A packet of a numbered stream.
    Data = 1,
    /// A question or order of the lab.
    Request = 2,
    /// The answer to one.
    Reply = 3,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Begin a run: forget the one before.
    Start = 1,
    /// Send no more; go on receiving.
    Stop = 2,
    /// Which sequence numbers did not arrive.
    Missing = 3,
    /// Which sequence numbers arrived more than once.
    Duplicates = 4,
}

/// The header's fields that a receiver acts on.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// What it is.
    pub kind: u8,
    /// What a request asks for, 0 in data.
    pub operation: u16,
    /// Which run it belongs to.
    pub run_id: u64,
    /// Sequence number of the stream, or number of the request.
    pub sequence: u64,
}

/// What was received in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Distinct sequence numbers.
    pub received: u64,
    /// Highest sequence number plus one.
    pub next_expected: u64,
    /// Datagrams whose number had arrived before.
    pub duplicates: u32,
    /// Datagrams that arrived after one with a higher number.
    pub reordered: u32,
    /// Datagrams with a wrong length or checksum.
    pub corrupted: u32,
    /// Datagrams of another run.
    pub foreign: u32,
}

/// Little-endian u16 at an offset that the caller has checked.
pub fn u16_at(data: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([data[at], data[at + 1]])
}

/// Little-endian u32 at an offset that the caller has checked.
pub fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
}

/// Little-endian u64 at an offset that the caller has checked.
pub fn u64_at(data: &[u8], at: usize) -> u64 {
    u64::from(u32_at(data, at)) | u64::from(u32_at(data, at + 4)) << 32
}

/// The header of a datagram, None if it is damaged or is none of ours. `data` comes back as it was.
pub fn parse(data: &mut [u8]) -> Option<Header> {
    if data.len() < HEADER + SUMMARY || u32_at(data, 0) != MAGIC || data[4] != VERSION {
        return None;
    }
    if u32_at(data, 32) as usize != data.len() {
        return None;
    }
    let claimed = u32_at(data, CHECKSUM_AT);
    data[CHECKSUM_AT..HEADER].fill(0);
    let actual = crc32(data);
    data[CHECKSUM_AT..HEADER].copy_from_slice(&claimed.to_le_bytes());
    (claimed == actual).then(|| Header {
        kind: data[5],
        operation: u16_at(data, 6),
        run_id: u64_at(data, 8),
        sequence: u64_at(data, 16),
    })
}

/// Writes header and summary into a datagram whose body is there already, and seals it.
pub fn seal(
    data: &mut [u8],
    kind: Kind,
    operation: u16,
    run_id: u64,
    sequence: u64,
    now_ns: u64,
    summary: &Summary,
) {
    data[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    data[4] = VERSION;
    data[5] = kind as u8;
    data[6..8].copy_from_slice(&operation.to_le_bytes());
    data[8..16].copy_from_slice(&run_id.to_le_bytes());
    data[16..24].copy_from_slice(&sequence.to_le_bytes());
    data[24..32].copy_from_slice(&now_ns.to_le_bytes());
    let length = data.len() as u32;
    data[32..36].copy_from_slice(&length.to_le_bytes());
    data[CHECKSUM_AT..HEADER].fill(0);
    data[40..48].copy_from_slice(&summary.received.to_le_bytes());
    data[48..56].copy_from_slice(&summary.next_expected.to_le_bytes());
    data[56..60].copy_from_slice(&summary.duplicates.to_le_bytes());
    data[60..64].copy_from_slice(&summary.reordered.to_le_bytes());
    data[64..68].copy_from_slice(&summary.corrupted.to_le_bytes());
    data[68..72].copy_from_slice(&summary.foreign.to_le_bytes());
    let checksum = crc32(data);
    data[CHECKSUM_AT..HEADER].copy_from_slice(&checksum.to_le_bytes());
}

/// SplitMix64: the body's and the lengths' source of variety.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut data = vec![7u8; 100];
        let summary = Summary {
            received: 3,
            ..Summary::default()
        };
        seal(&mut data, Kind::Data, 0, 5, 6, 7, &summary);
        data
    }

    #[test]
    fn sealed_datagram_is_accepted() {
        let header = parse(&mut sample()).unwrap();
        assert_eq!((header.kind, header.run_id, header.sequence), (1, 5, 6));
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        for at in 0..100 {
            let mut data = sample();
            data[at] ^= 0x10;
            assert!(parse(&mut data).is_none(), "byte {at}");
        }
    }

    #[test]
    fn shortened_datagram_is_refused() {
        for length in 0..100 {
            assert!(parse(&mut sample()[..length]).is_none());
        }
    }
}
