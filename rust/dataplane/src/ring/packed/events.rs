// SPDX-License-Identifier: Apache-2.0
//! The event suppression structures (virtio 1.3 2.8.10, 2.8.14): the driver's is read, the device's is written.

use super::super::RingResult;
use super::position::Position;
use crate::memory::Memory;

/// Size and alignment of either structure.
pub(super) const EVENT_BYTES: u64 = 4;

const FLAGS_MASK: u16 = 3;
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const DESC: u16 = 2;

/// What one side wants to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Everything.
    All,
    /// Nothing.
    Nothing,
    /// The descriptor at this place (vhost encoding, not checked). Only with EVENT_IDX.
    Descriptor(u16),
}

impl Wish {
    /// The driver's. The structure is read as one word, so that place and flags belong together. What is reserved
    /// counts as a wish for everything: one notification too many does no harm.
    pub(super) fn read(memory: &Memory<'_>, iova: u64, event_idx: bool) -> RingResult<Self> {
        let [d0, d1, f0, f1] = memory.read_array::<{ EVENT_BYTES as usize }>(iova)?;
        Ok(match u16::from_le_bytes([f0, f1]) & FLAGS_MASK {
            DISABLE => Self::Nothing,
            DESC if event_idx => Self::Descriptor(u16::from_le_bytes([d0, d1])),
            _ => Self::All,
        })
    }

    /// The device's, in one store; then marked.
    pub(super) fn write(self, memory: &Memory<'_>, iova: u64) -> RingResult<()> {
        let (place, flags) = match self {
            Self::All => (0, ENABLE),
            Self::Nothing => (0, DISABLE),
            Self::Descriptor(place) => (place, DESC),
        };
        let [d0, d1] = place.to_le_bytes();
        let [f0, f1] = flags.to_le_bytes();
        Ok(memory.write_entry(iova, &[d0, d1, f0, f1])?)
    }

    /// Whether it covers a move of `slots` descriptors that ended before `now`, in a ring of `size`. A place beyond
    /// the ring can't be passed: rather one notification too many.
    pub(super) fn covers(self, now: Position, slots: u32, size: u16) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::Descriptor(place) => match Position::from_bits(place, size) {
                None => true,
                Some(event) => (1..=slots).contains(&now.since(event, size)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(bits: u16) -> Position {
        Position::from_bits(bits, 5).unwrap()
    }

    #[test]
    fn a_descriptor_event_covers_exactly_the_slots_that_were_passed() {
        // From 4 of the first lap over 0 and 1 of the next one, up to 2.
        let covered: Vec<u16> = (0..5)
            .flat_map(|index| [index | 1 << 15, index])
            .filter(|&bits| Wish::Descriptor(bits).covers(at(2), 3, 5))
            .collect();
        assert_eq!(covered, [0, 1, 0x8004]);
    }

    #[test]
    fn nothing_passed_covers_nothing_and_a_place_beyond_the_ring_everything() {
        assert!(!Wish::Descriptor(2).covers(at(2), 0, 5));
        assert!(Wish::Descriptor(5).covers(at(2), 1, 5));
        assert!(!Wish::Nothing.covers(at(2), 3, 5));
        assert!(Wish::All.covers(at(2), 3, 5));
    }
}
