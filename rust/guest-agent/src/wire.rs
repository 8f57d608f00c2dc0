// SPDX-License-Identifier: Apache-2.0
//! The datagrams of the lab's traffic: the tables in `vdpa_net/lab/traffic/format.py` are the reference, a
//! test runs both against each other.

use crate::crc::crc32;

/// First four bytes of every datagram.
pub const MAGIC: u32 = 0x546e_6456;
/// Version of the format.
pub const VERSION: u8 = 2;
/// Bytes of the header.
pub const HEADER: usize = 40;
/// Bytes of the echo behind the header of data.
pub const ECHO: usize = 16;
/// Bytes of the state that a reply carries behind the header.
pub const STATE: usize = 88;
/// Largest payload, in bytes, that either side sends.
pub const MAX_LENGTH: usize = 1472;
/// Pairs of numbers that one reply carries at most.
pub const MAX_PAIRS: usize = (MAX_LENGTH - HEADER - STATE) / 16;
/// Flows that one run has at most.
pub const MAX_FLOWS: usize = 32;

const CHECKSUM_AT: usize = 36;

/// What a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A packet of a numbered flow.
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
    /// Which sequence numbers of a flow did not arrive.
    Missing = 3,
    /// Which sequence numbers of a flow arrived more than once.
    Duplicates = 4,
    /// Which sequence numbers of a flow were overtaken, and by which.
    Reordered = 5,
}

/// The header's fields that somebody acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: u8,
    /// What a request asks for, 0 in data.
    pub operation: u8,
    /// Which flow it belongs to or is about.
    pub flow: u8,
    /// Which run it belongs to.
    pub run_id: u64,
    /// Sequence number in the flow, or number of the request.
    pub sequence: u64,
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
    if data.len() < HEADER || u32_at(data, 0) != MAGIC || data[4] != VERSION {
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
        operation: data[6],
        flow: data[7],
        run_id: u64_at(data, 8),
        sequence: u64_at(data, 16),
    })
}

/// Writes the header into a datagram whose rest is there already, and seals it.
pub fn seal(data: &mut [u8], header: &Header, now_ns: u64) {
    data[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    data[4] = VERSION;
    data[5] = header.kind;
    data[6] = header.operation;
    data[7] = header.flow;
    data[8..16].copy_from_slice(&header.run_id.to_le_bytes());
    data[16..24].copy_from_slice(&header.sequence.to_le_bytes());
    data[24..32].copy_from_slice(&now_ns.to_le_bytes());
    let length = data.len() as u32;
    data[32..36].copy_from_slice(&length.to_le_bytes());
    data[CHECKSUM_AT..HEADER].fill(0);
    let checksum = crc32(data);
    data[CHECKSUM_AT..HEADER].copy_from_slice(&checksum.to_le_bytes());
}

/// SplitMix64: the source of variety of lengths and bodies.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Header = Header {
        kind: Kind::Data as u8,
        operation: 0,
        flow: 3,
        run_id: 5,
        sequence: 6,
    };

    fn sample() -> Vec<u8> {
        let mut data = vec![7u8; 100];
        seal(&mut data, &SAMPLE, 7);
        data
    }

    #[test]
    fn sealed_datagram_is_accepted() {
        assert_eq!(parse(&mut sample()), Some(SAMPLE));
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
