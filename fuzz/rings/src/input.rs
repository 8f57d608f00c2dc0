// SPDX-License-Identifier: Apache-2.0
//! From bytes to operations and back. A list that ends early is a shorter list: every input is a valid one.

use vdpa_net_dataplane::ring::{
    RingConfig, RingState, F_EVENT_IDX, F_INDIRECT_DESC, F_IN_ORDER, F_RING_PACKED,
};

/// Where guest memory begins, and its pages: two maps, the second half of the file first.
pub const MEMORY_IOVA: u64 = 0x1_0000;
/// Pages of guest memory.
pub const MEMORY_PAGES: u64 = 8;
/// Bytes of guest memory.
pub const MEMORY_BYTES: u64 = MEMORY_PAGES * 4096;

/// The bytes that are left.
#[derive(Debug)]
pub struct Input<'a> {
    left: &'a [u8],
}

impl<'a> Input<'a> {
    /// Read from here.
    pub fn new(left: &'a [u8]) -> Self {
        Self { left }
    }

    fn u8(&mut self) -> Option<u8> {
        let (first, left) = self.left.split_first()?;
        self.left = left;
        Some(*first)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.u8()?, self.u8()?]))
    }
}

/// The ring as the driver describes it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup {
    /// Bits: packed, EVENT_IDX, INDIRECT_DESC, IN_ORDER, restored.
    pub flags: u8,
    /// queue_size.
    pub size: u16,
    /// Offsets of the three areas in guest memory, in units of 4 bytes.
    pub areas: [u16; 3],
    /// last_avail_idx and used_idx.
    pub state: [u16; 2],
}

impl Setup {
    /// `flags` bit: a packed ring.
    pub const PACKED: u8 = 1;
    /// `flags` bit: EVENT_IDX.
    pub const EVENT_IDX: u8 = 2;
    /// `flags` bit: INDIRECT_DESC.
    pub const INDIRECT: u8 = 4;
    /// `flags` bit: IN_ORDER.
    pub const IN_ORDER: u8 = 8;
    /// `flags` bit: the state is that of a ring in use.
    pub const RESTORED: u8 = 16;

    /// Take it from the front of an input; what is missing is 0.
    pub fn read(input: &mut Input<'_>) -> Self {
        let flags = input.u8().unwrap_or(0);
        let mut word = || input.u16().unwrap_or(0);
        Self {
            flags,
            size: word(),
            areas: [word(), word(), word()],
            state: [word(), word()],
        }
    }

    /// The bytes that `read` takes.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(self.flags);
        let words = [[self.size].as_slice(), &self.areas, &self.state].concat();
        out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }

    /// Whether the ring is a packed one.
    pub fn is_packed(&self) -> bool {
        self.flags & Self::PACKED != 0
    }

    /// IOVA of an area.
    pub fn area(&self, which: usize) -> u64 {
        MEMORY_IOVA + 4 * u64::from(self.areas[which])
    }

    /// What the device gets.
    pub fn config(&self) -> RingConfig {
        let features = [
            (Self::PACKED, F_RING_PACKED),
            (Self::EVENT_IDX, F_EVENT_IDX),
            (Self::INDIRECT, F_INDIRECT_DESC),
            (Self::IN_ORDER, F_IN_ORDER),
        ];
        let features = features
            .iter()
            .filter(|(flag, _)| self.flags & flag != 0)
            .fold(0, |word, (_, feature)| word | feature);
        let restored = self.flags & Self::RESTORED != 0;
        RingConfig {
            size: u32::from(self.size),
            desc: self.area(0),
            driver: self.area(1),
            device: self.area(2),
            state: if restored {
                RingState {
                    last_avail_idx: self.state[0],
                    used_idx: self.state[1],
                }
            } else {
                RingState::initial(features)
            },
            features,
            restored,
        }
    }
}

/// One step of guest or device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Guest: a 16-bit word, by its index in guest memory.
    Word {
        /// Which word.
        index: u16,
        /// Its value.
        value: u16,
    },
    /// Guest: a descriptor of the table (or of any place in memory, counted from there). `addr` is in guest memory,
    /// unless its highest bit is set; then it is far outside.
    Descriptor {
        /// Which one.
        index: u8,
        /// Offset of the buffer.
        addr: u16,
        /// Its bytes.
        len: u16,
        /// NEXT, WRITE, INDIRECT, AVAIL, USED.
        flags: u16,
        /// next (split) or id (packed).
        link: u16,
    },
    /// Guest: the next place of the available ring is this chain, and avail->idx moves. Packed: the descriptor at
    /// this place becomes available.
    Offer {
        /// Head of the chain.
        head: u8,
    },
    /// Device: take the next chain.
    Pop,
    /// Device: use the oldest chain.
    Use {
        /// Bytes written to it.
        len: u16,
    },
    /// Device: show what was used.
    Publish,
    /// Device: hand the newest chain back.
    Unpop,
    /// Device: ask for kicks, or not.
    Kicks {
        /// Ask.
        on: bool,
    },
    /// Device: write this many bytes to the oldest chain.
    Fill {
        /// How many.
        len: u16,
    },
    /// Device: log or don't.
    Log {
        /// Log.
        on: bool,
    },
    /// VMM: take one of the two maps away, or give it back.
    Remap {
        /// The second one.
        second: bool,
    },
    /// Device: stop here, and go on in another ring.
    Move,
    /// Device: count.
    Available,
    /// Device: take several chains at once.
    PopLine,
    /// Device: use the oldest chains at once.
    UseLine {
        /// Bytes written to each.
        len: u16,
    },
}

impl Operation {
    /// The next one, if there is one.
    pub fn read(input: &mut Input<'_>) -> Option<Self> {
        Some(match input.u8()? % 15 {
            0 => Self::Word {
                index: input.u16()?,
                value: input.u16()?,
            },
            1 => Self::Descriptor {
                index: input.u8()?,
                addr: input.u16()?,
                len: input.u16()?,
                flags: input.u16()?,
                link: input.u16()?,
            },
            2 => Self::Offer { head: input.u8()? },
            3 => Self::Pop,
            4 => Self::Use { len: input.u16()? },
            5 => Self::Publish,
            6 => Self::Unpop,
            7 => Self::Kicks {
                on: input.u8()? & 1 != 0,
            },
            8 => Self::Fill { len: input.u16()? },
            9 => Self::Log {
                on: input.u8()? & 1 != 0,
            },
            10 => Self::Remap {
                second: input.u8()? & 1 != 0,
            },
            11 => Self::Move,
            12 => Self::Available,
            13 => Self::PopLine,
            _ => Self::UseLine { len: input.u16()? },
        })
    }

    /// The bytes that `read` takes.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut put = |code: u8, bytes: &[u8], words: &[u16]| {
            out.push(code);
            out.extend(bytes);
            out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        };
        match *self {
            Self::Word { index, value } => put(0, &[], &[index, value]),
            Self::Descriptor {
                index,
                addr,
                len,
                flags,
                link,
            } => put(1, &[index], &[addr, len, flags, link]),
            Self::Offer { head } => put(2, &[head], &[]),
            Self::Pop => put(3, &[], &[]),
            Self::Use { len } => put(4, &[], &[len]),
            Self::Publish => put(5, &[], &[]),
            Self::Unpop => put(6, &[], &[]),
            Self::Kicks { on } => put(7, &[u8::from(on)], &[]),
            Self::Fill { len } => put(8, &[], &[len]),
            Self::Log { on } => put(9, &[u8::from(on)], &[]),
            Self::Remap { second } => put(10, &[u8::from(second)], &[]),
            Self::Move => put(11, &[], &[]),
            Self::Available => put(12, &[], &[]),
            Self::PopLine => put(13, &[], &[]),
            Self::UseLine { len } => put(14, &[], &[len]),
        }
    }
}
