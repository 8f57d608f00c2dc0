// SPDX-License-Identifier: Apache-2.0
//! A place in a packed ring: an offset and the wrap counter with which it was reached (virtio 1.3 2.8.1).

const WRAP_BIT: u16 = 1 << 15;

/// Offset and ring wrap counter. The offset is below the size of the ring that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    index: u16,
    wrap: bool,
}

impl Position {
    /// The vhost encoding (bits 14:0 offset, bit 15 wrap counter). None: the offset lies beyond a ring of `size`.
    pub fn from_bits(bits: u16, size: u16) -> Option<Self> {
        let index = bits & !WRAP_BIT;
        (index < size).then_some(Self {
            index,
            wrap: bits & WRAP_BIT != 0,
        })
    }

    /// The vhost encoding.
    pub fn bits(self) -> u16 {
        if self.wrap {
            self.index | WRAP_BIT
        } else {
            self.index
        }
    }

    /// Offset in the ring, in descriptors.
    pub fn index(self) -> u16 {
        self.index
    }

    /// The wrap counter.
    pub fn wrap(self) -> bool {
        self.wrap
    }

    /// `slots` (at most `size`) further on in a ring of `size`.
    #[inline]
    pub fn forward(self, slots: u16, size: u16) -> Self {
        // Both are at most 32768: the sum fits.
        let sum = u32::from(self.index) + u32::from(slots);
        match sum.checked_sub(u32::from(size)) {
            None => self.at(sum),
            Some(index) => self.next_lap().at(index),
        }
    }

    /// `slots` (at most `size`) back in a ring of `size`.
    pub fn back(self, slots: u16, size: u16) -> Self {
        match self.index.checked_sub(slots) {
            Some(index) => Self { index, ..self },
            None => self
                .next_lap()
                .at(u32::from(self.index) + u32::from(size) - u32::from(slots)),
        }
    }

    /// Descriptors from `earlier` to here, modulo two laps: less than twice `size`.
    pub fn since(self, earlier: Self, size: u16) -> u32 {
        let laps = 2 * u32::from(size);
        (self.linear(size) + laps - earlier.linear(size)) % laps
    }

    fn at(self, index: u32) -> Self {
        Self {
            index: index as u16,
            ..self
        }
    }

    /// Two laps are all that a wrap counter tells apart, so the one before looks like the one after.
    fn next_lap(self) -> Self {
        Self {
            wrap: !self.wrap,
            ..self
        }
    }

    fn linear(self, size: u16) -> u32 {
        u32::from(self.index) + if self.wrap { 0 } else { u32::from(size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_beyond_the_ring_are_no_position() {
        assert_eq!(Position::from_bits(0x8007, 7), None);
        assert_eq!(
            Position::from_bits(0x8006, 7).map(Position::bits),
            Some(0x8006)
        );
        assert_eq!(
            Position::from_bits(0x7fff, 32768).map(Position::bits),
            Some(0x7fff)
        );
    }

    #[test]
    fn steps_forward_and_back_agree_with_counting_modulo_two_laps() {
        for size in [1u16, 2, 3, 7, 256, 32768] {
            let start = Position::from_bits(0x8000, size).unwrap();
            let mut position = start;
            let stride = (size / 3).max(1);
            for lap in 1..20u32 {
                let next = position.forward(stride, size);
                assert_eq!(next.back(stride, size), position);
                assert_eq!(next.since(position, size), u32::from(stride));
                let expected = lap * u32::from(stride) % (2 * u32::from(size));
                assert_eq!(next.since(start, size), expected);
                position = next;
            }
        }
    }

    #[test]
    fn a_whole_lap_flips_the_wrap_counter_only() {
        let position = Position::from_bits(0x8003, 5).unwrap();
        assert_eq!(position.forward(5, 5).bits(), 3);
        assert_eq!(position.back(5, 5).bits(), 3);
    }
}
