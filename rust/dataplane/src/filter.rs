// SPDX-License-Identifier: Apache-2.0
//! Which received packets the driver wants (virtio 1.3 5.1.6.5.1 to 5.1.6.5.3), and which it must not get (5.1.4.1).

use crate::counters::Drop;
use crate::net::{self, HEADER_BYTES};

const ETHERNET_BYTES: usize = 14;
const TAG_BYTES: usize = 4;
const TPID_8021Q: u16 = 0x8100;
const TPID_8021AD: u16 = 0x88a8;
/// VLANs are numbered with 12 bits.
pub const VLANS: usize = 1 << 12;

/// A MAC address.
pub type Mac = [u8; 6];

/// Receive modes and tables. The default lets everything pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveFilter {
    /// Everything passes, whatever else is set; only the MTU holds.
    pub promisc: bool,
    /// All multicast passes.
    pub allmulti: bool,
    /// All unicast passes.
    pub alluni: bool,
    /// No multicast passes, which does not concern broadcast.
    pub nomulti: bool,
    /// No unicast passes.
    pub nouni: bool,
    /// No broadcast passes.
    pub nobcast: bool,
    /// The station's own address.
    pub mac: Mac,
    /// Further unicast and multicast addresses, sorted.
    pub table: Vec<Mac>,
    /// VLANs whose frames pass, one bit each; None: all.
    pub vlans: Option<Box<[u64; VLANS / 64]>>,
    /// The longest network layer packet that may come without segmentation; None: any.
    pub mtu: Option<u16>,
}

impl Default for ReceiveFilter {
    fn default() -> Self {
        Self {
            promisc: true,
            allmulti: false,
            alluni: false,
            nomulti: false,
            nouni: false,
            nobcast: false,
            mac: [0; 6],
            table: Vec::new(),
            vlans: None,
            mtu: None,
        }
    }
}

/// Bytes of a packet that the verdict depends on, besides its length.
pub const FILTERED_BYTES: usize = HEADER_BYTES + ETHERNET_BYTES + 2 * TAG_BYTES;

impl ReceiveFilter {
    /// Whether nothing is refused, whatever comes.
    pub fn passes_all(&self) -> bool {
        self.promisc && self.mtu.is_none()
    }

    /// Whether no packet of so many bytes, its virtio-net header included, is refused, whatever else is in it.
    #[inline]
    pub fn passes_all_of(&self, packet_bytes: usize) -> bool {
        let fits = |mtu| packet_bytes <= HEADER_BYTES + ETHERNET_BYTES + usize::from(mtu);
        let has_address = packet_bytes >= HEADER_BYTES + 6;
        self.mtu.map_or(true, fits) && (self.promisc || has_address && self.passes_every_address())
    }

    /// As without CTRL_RX and CTRL_VLAN.
    #[inline]
    fn passes_every_address(&self) -> bool {
        let refuses = self.nomulti | self.nouni | self.nobcast | self.vlans.is_some();
        self.allmulti & self.alluni & !refuses
    }

    /// Whether a packet, its virtio-net header included, may go to the driver; the reason if not.
    pub fn check(&self, packet: &[u8]) -> Result<(), Drop> {
        self.check_head(packet, packet.len())
    }

    /// The same for a packet of `packet_bytes`, the first [`FILTERED_BYTES`] of which are at hand.
    pub fn check_head(&self, packet: &[u8], packet_bytes: usize) -> Result<(), Drop> {
        let frame = packet.get(HEADER_BYTES..).unwrap_or(&[]);
        let frame_bytes = packet_bytes.saturating_sub(HEADER_BYTES);
        if self.exceeds_mtu(packet, frame, frame_bytes) {
            return Err(Drop::TooLong);
        }
        if self.promisc || (self.passes_vlan(frame) && self.passes_address(frame)) {
            Ok(())
        } else {
            Err(Drop::Filtered)
        }
    }

    fn exceeds_mtu(&self, packet: &[u8], frame: &[u8], frame_bytes: usize) -> bool {
        let Some(mtu) = self.mtu else {
            return false;
        };
        let most = usize::from(mtu) + ETHERNET_BYTES;
        frame_bytes > most
            && frame_bytes > most + TAG_BYTES * count_tags(frame)
            && !net::is_segmented(packet)
    }

    /// VLAN 0 is no VLAN: such a tag carries a priority only (IEEE 802.1Q).
    fn passes_vlan(&self, frame: &[u8]) -> bool {
        let Some(vlans) = &self.vlans else {
            return true;
        };
        match (word(frame, 12), word(frame, 14)) {
            (Some(TPID_8021Q), Some(tag)) => {
                let vlan = usize::from(tag) % VLANS;
                vlan == 0 || vlans[vlan / 64] >> (vlan % 64) & 1 != 0
            }
            _ => true,
        }
    }

    fn passes_address(&self, frame: &[u8]) -> bool {
        let Some(Ok(destination)) = frame.get(..6).map(Mac::try_from) else {
            return false;
        };
        if destination == [0xff; 6] {
            return !self.nobcast;
        }
        if destination[0] & 1 != 0 {
            return !self.nomulti && (self.allmulti || self.knows(&destination));
        }
        !self.nouni && (self.alluni || destination == self.mac || self.knows(&destination))
    }

    fn knows(&self, destination: &Mac) -> bool {
        self.table.binary_search(destination).is_ok()
    }
}

/// As many as two, an outer and an inner one.
fn count_tags(frame: &[u8]) -> usize {
    (0..2)
        .take_while(|tag| {
            matches!(
                word(frame, 12 + TAG_BYTES * tag),
                Some(TPID_8021Q | TPID_8021AD)
            )
        })
        .count()
}

fn word(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];

    fn packet(to: Mac, payload: usize, gso_type: u8, tags: &[u16]) -> Vec<u8> {
        let mut packet = vec![0; HEADER_BYTES];
        packet[1] = gso_type;
        packet.extend(to);
        packet.extend([2; 6]);
        for tag in tags {
            packet.extend([0x81, 0, (tag >> 8) as u8, *tag as u8]);
        }
        packet.extend([8, 0]);
        packet.resize(packet.len() + payload, 0);
        packet
    }

    fn quiet() -> ReceiveFilter {
        ReceiveFilter {
            promisc: false,
            mac: OWN,
            ..ReceiveFilter::default()
        }
    }

    #[test]
    fn a_station_gets_its_own_frames_broadcast_and_what_its_table_names() {
        let filter = ReceiveFilter {
            table: vec![GROUP],
            ..quiet()
        };
        for (to, passes) in [
            (OWN, true),
            ([0xff; 6], true),
            (GROUP, true),
            ([2, 0, 0, 0, 0, 2], false),
            ([1, 0, 0x5e, 0, 0, 2], false),
        ] {
            let expected = if passes { Ok(()) } else { Err(Drop::Filtered) };
            assert_eq!(filter.check(&packet(to, 46, 0, &[])), expected, "{to:?}");
        }
    }

    #[test]
    fn frames_beyond_the_mtu_come_only_as_segments_to_be() {
        let filter = ReceiveFilter {
            mtu: Some(1500),
            ..ReceiveFilter::default()
        };
        for (payload, gso_type, tags, passes) in [
            (1500, 0, &[][..], true),
            (1501, 0, &[], false),
            (1500, 0, &[5], true),
            (1500, 0, &[5, 6], true),
            (1501, 0, &[5], false),
            (1501, 0x80, &[], false),
            (1501, 1, &[], true),
            (60000, 0x84, &[], true),
        ] {
            let expected = if passes { Ok(()) } else { Err(Drop::TooLong) };
            assert_eq!(
                filter.check(&packet(OWN, payload, gso_type, tags)),
                expected,
                "{payload} {gso_type} {tags:?}"
            );
        }
    }

    #[test]
    fn any_bytes_have_a_verdict() {
        let filter = ReceiveFilter {
            vlans: Some(Box::new([0; 64])),
            mtu: Some(68),
            ..quiet()
        };
        let whole = packet(OWN, 100, 0, &[7]);
        for len in 0..whole.len() {
            let _ = filter.check(&whole[..len]);
        }
    }

    #[test]
    fn what_passes_whatever_is_in_it_passes() {
        let passing = ReceiveFilter {
            allmulti: true,
            alluni: true,
            mtu: Some(100),
            ..quiet()
        };
        for change in 0..7 {
            let mut filter = passing.clone();
            match change {
                1 => filter.allmulti = false,
                2 => filter.alluni = false,
                3 => filter.nomulti = true,
                4 => filter.nouni = true,
                5 => filter.nobcast = true,
                6 => filter.vlans = Some(Box::new([0; 64])),
                _ => {}
            }
            for len in 0..130 {
                let passes = filter.passes_all_of(len);
                let is_whole =
                    (HEADER_BYTES + 6..=HEADER_BYTES + ETHERNET_BYTES + 100).contains(&len);
                assert_eq!(
                    passes,
                    change == 0 && is_whole,
                    "{len} bytes, change {change}"
                );
                for to in [[0xff; 6], GROUP, [2, 0, 0, 0, 0, 2]] {
                    let whole = packet(to, 130, 0, &[7]);
                    assert!(!passes || filter.check(&whole[..len]).is_ok());
                }
            }
        }
    }

    #[test]
    fn head_and_length_have_the_verdict_of_the_packet() {
        let filter = ReceiveFilter {
            vlans: Some(Box::new([1 << 7; 64])),
            mtu: Some(1000),
            ..quiet()
        };
        for (to, tags) in [(OWN, &[][..]), (GROUP, &[7]), (OWN, &[7, 8]), (OWN, &[9])] {
            for payload in [46, 999, 1000, 1001, 1005] {
                let whole = packet(to, payload, 0, tags);
                let promiscuous = ReceiveFilter {
                    promisc: true,
                    ..filter.clone()
                };
                assert!(!filter.passes_all_of(whole.len()), "its address decides");
                if promiscuous.passes_all_of(whole.len()) {
                    assert_eq!(promiscuous.check(&whole), Ok(()));
                }
                let fits = payload + tags.len() * TAG_BYTES <= 1000;
                assert_eq!(promiscuous.passes_all_of(whole.len()), fits);
                let head = &whole[..whole.len().min(FILTERED_BYTES)];
                assert_eq!(filter.check_head(head, whole.len()), filter.check(&whole));
            }
        }
    }
}
