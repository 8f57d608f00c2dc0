// SPDX-License-Identifier: Apache-2.0
//! Which queue pair receives a packet, for back ends that have no queues in the kernel: that one of the active
//! pairs on which the driver last sent a packet of the same flow (virtio 1.3 5.1.6.5.6, automatic receive steering).

use std::sync::atomic::{AtomicU16, Ordering};

const SLOTS: usize = 1024;
const UNKNOWN: u16 = u16::MAX;

/// Shared by the ports of one back end. A slot that two flows share steers both, which is a matter of speed only.
#[derive(Debug)]
pub(crate) struct Steering {
    active_pairs: AtomicU16,
    slots: Box<[AtomicU16]>,
}

impl Steering {
    pub(super) fn new(active_pairs: u16) -> Self {
        Self {
            active_pairs: AtomicU16::new(active_pairs.max(1)),
            slots: (0..SLOTS).map(|_| AtomicU16::new(UNKNOWN)).collect(),
        }
    }

    pub(super) fn set_active_pairs(&self, count: u16) {
        self.active_pairs.store(count.max(1), Ordering::Release);
    }

    pub(super) fn active_pairs(&self) -> u16 {
        self.active_pairs.load(Ordering::Acquire)
    }

    /// The driver has sent a packet of this flow on this pair.
    pub(super) fn sent(&self, flow: u32, pair: u16) {
        let slot = &self.slots[flow as usize % SLOTS];
        if slot.load(Ordering::Relaxed) != pair {
            slot.store(pair, Ordering::Relaxed);
        }
    }

    /// The pair that receives packets of this flow.
    pub(super) fn pair_of(&self, flow: u32) -> u16 {
        let active = self.active_pairs();
        match self.slots[flow as usize % SLOTS].load(Ordering::Relaxed) {
            pair if pair < active => pair,
            _ => (flow % u32::from(active)) as u16,
        }
    }
}

/// A number that both directions of a flow have in common: of addresses and ports where the frame is TCP or UDP in
/// an unfragmented IP packet, else of what there is.
pub(crate) fn flow_of(frame: &[u8]) -> u32 {
    let mut at = 12;
    while matches!(word(frame, at), Some(0x8100 | 0x88a8)) {
        at += 4;
    }
    let body = at + 2;
    let key = match word(frame, at) {
        Some(0x0800) => ipv4(frame, body),
        Some(0x86dd) => ipv6(frame, body),
        _ => None,
    };
    let key = key.unwrap_or_else(|| {
        let (to, from) = (fold(frame, 0, 6), fold(frame, 6, 6));
        u64::from(to ^ from) << 16 | u64::from(word(frame, at).unwrap_or(0))
    });
    // Fibonacci hashing: near keys land far from each other.
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

fn ipv4(frame: &[u8], at: usize) -> Option<u64> {
    let header = usize::from(frame.get(at)? & 0xf) * 4;
    let protocol = *frame.get(at + 9)?;
    let is_fragment = word(frame, at + 6)? & 0x3fff != 0;
    let addresses = fold(frame, at + 12, 4) ^ fold(frame, at + 16, 4);
    let ports = if is_fragment {
        0
    } else {
        ports(frame, at + header, protocol)
    };
    Some(join(addresses, protocol, ports))
}

fn ipv6(frame: &[u8], at: usize) -> Option<u64> {
    let protocol = *frame.get(at + 6)?;
    frame.get(at + 39)?;
    let addresses = fold(frame, at + 8, 16) ^ fold(frame, at + 24, 16);
    Some(join(addresses, protocol, ports(frame, at + 40, protocol)))
}

fn join(addresses: u32, protocol: u8, ports: u16) -> u64 {
    u64::from(addresses) << 32 | u64::from(protocol) << 16 | u64::from(ports)
}

/// Of TCP and UDP; 0 for others.
fn ports(frame: &[u8], at: usize, protocol: u8) -> u16 {
    match (protocol, word(frame, at), word(frame, at + 2)) {
        (6 | 17, Some(source), Some(destination)) => source ^ destination,
        _ => 0,
    }
}

fn word(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]))
}

/// Bytes folded into 32 bits; those that are missing count as 0.
fn fold(frame: &[u8], at: usize, len: usize) -> u32 {
    let end = (at + len).min(frame.len());
    let bytes = frame.get(at..end).unwrap_or(&[]);
    bytes.iter().enumerate().fold(0, |sum, (index, byte)| {
        sum ^ u32::from(*byte) << (8 * (3 - index % 4))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(source: [u8; 4], destination: [u8; 4], from: u16, to: u16, fragment: u16) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, 17, 0, 0]);
        frame.extend(source);
        frame.extend(destination);
        frame.extend(from.to_be_bytes());
        frame.extend(to.to_be_bytes());
        frame.extend([0, 8, 0, 0]);
        frame
    }

    const A: [u8; 4] = [10, 0, 0, 1];
    const B: [u8; 4] = [10, 0, 0, 2];

    #[test]
    fn both_directions_of_a_flow_are_one_flow() {
        assert_eq!(flow_of(&udp(A, B, 1, 2, 0)), flow_of(&udp(B, A, 2, 1, 0)));
        assert_ne!(flow_of(&udp(A, B, 1, 2, 0)), flow_of(&udp(A, B, 4, 2, 0)));
    }

    #[test]
    fn fragments_of_a_packet_stay_together() {
        let first = flow_of(&udp(A, B, 1, 2, 0x2000));
        assert_eq!(first, flow_of(&udp(A, B, 7, 9, 0x0100)));
    }

    #[test]
    fn any_bytes_have_a_flow() {
        let whole = udp(A, B, 1, 2, 0);
        for len in 0..whole.len() {
            flow_of(&whole[..len]);
        }
        flow_of(&[0x81; 64]);
    }

    #[test]
    fn a_flow_is_received_where_it_was_sent_as_long_as_that_pair_is_active() {
        let steering = Steering::new(4);
        for flow in [0, 1, 77, u32::MAX] {
            assert!(steering.pair_of(flow) < 4);
            steering.sent(flow, 3);
            assert_eq!(steering.pair_of(flow), 3);
        }
        steering.set_active_pairs(2);
        assert!(steering.pair_of(77) < 2);
    }
}
