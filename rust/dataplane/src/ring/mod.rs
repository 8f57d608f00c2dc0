// SPDX-License-Identifier: Apache-2.0
//! Virtqueues: one trait, the split and the packed ring behind it.
//!
//! What comes in is untrusted: a [`RingConfig`] is plain data, and only [`open`] makes a ring of it. A driver that
//! breaks the rules of the ring gets a [`RingFault`], after which the ring is not used any more.

mod area;
pub mod chain;
pub mod packed;
pub mod split;

use std::ops::{Deref, DerefMut};

use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::violation::Violation;

pub(crate) use chain::taken_of;
pub use chain::{Chain, Line, Single, Taken, LINE_CHAINS};

/// Largest queue size (virtio 1.3 2.7, 2.8).
pub const MAX_QUEUE_SIZE: u32 = 32768;

/// VIRTIO_NET_F_GUEST_CSUM.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// VIRTIO_NET_F_MRG_RXBUF.
pub const F_MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_F_INDIRECT_DESC.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_RING_PACKED.
pub const F_RING_PACKED: u64 = 1 << 34;
/// VIRTIO_F_IN_ORDER.
pub const F_IN_ORDER: u64 = 1 << 35;

/// The two indices that a device must know to go on where another one stopped. Of a packed ring they are in the vhost
/// encoding: offset in bits 14:0, wrap counter in bit 15.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingState {
    /// The next entry of the available ring (packed: the next descriptor) that the device will look at.
    pub last_avail_idx: u16,
    /// The next entry of the used ring (packed: the next used descriptor) that the device will write.
    pub used_idx: u16,
}

impl RingState {
    /// Where a ring with these features starts that was not in use before.
    pub fn initial(features: u64) -> Self {
        let index = if features & F_RING_PACKED != 0 {
            1 << 15
        } else {
            0
        };
        Self {
            last_avail_idx: index,
            used_idx: index,
        }
    }
}

/// A virtqueue as the driver or a restored state describes it: plain, public, untrusted.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingConfig {
    /// queue_size, in descriptors.
    pub size: u32,
    /// queue_desc: IOVA of the descriptor area.
    pub desc: u64,
    /// queue_driver: IOVA of the driver area.
    pub driver: u64,
    /// queue_device: IOVA of the device area.
    pub device: u64,
    /// Where to start.
    pub state: RingState,
    /// The negotiated features.
    pub features: u64,
    /// Whether `state` is that of a ring that was in use before, here or elsewhere.
    pub restored: bool,
}

/// Why a ring can't be used any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingFault {
    /// A short name, stable across versions.
    pub kind: &'static str,
    /// The offending value.
    pub value: u64,
    /// The clause that was broken.
    pub clause: &'static str,
    /// A sentence for people.
    pub detail: String,
}

/// What every call on a ring returns.
pub type RingResult<T> = std::result::Result<T, RingFault>;

impl RingFault {
    /// The violation to record for this fault of `queue`.
    pub fn into_violation(self, queue: u16) -> Violation {
        Violation {
            queue: i32::from(queue),
            kind: self.kind,
            value: self.value,
            clause: self.clause,
            detail: self.detail,
        }
    }
}

impl From<Error> for RingFault {
    fn from(error: Error) -> Self {
        let value = match &error {
            Error::Unmapped { fault_iova, .. } => *fault_iova,
            Error::Misaligned { iova, .. } => *iova,
            Error::TooLong { len, .. } => *len,
            _ => 0,
        };
        Self {
            kind: "dma",
            value,
            clause: "virtio 1.3 2.7.5: addr is a physical address",
            detail: error.to_string(),
        }
    }
}

/// What a worker does with a virtqueue, whatever its format.
///
/// Chains are used in the order in which they were popped (which is all that VIRTIO_F_IN_ORDER asks of a device).
/// Popped chains that were not used yet can be handed back, the last one first, as long as nothing was written to them.
/// Used elements are invisible to the driver until [`Ring::publish`].
pub trait Ring: Send + std::fmt::Debug {
    /// Whether the driver offers a chain beyond those that were popped.
    fn has_available(&mut self, memory: &Memory<'_>) -> RingResult<bool>;
    /// How many chains it offers, counted up to `limit`. In a packed ring each has to be looked at.
    fn available(&mut self, memory: &Memory<'_>, limit: u16) -> RingResult<u16>;
    /// Take the next chain into `chain`; false: there is none. After a fault the chain counts as not taken.
    fn pop(&mut self, memory: &Memory<'_>, chain: &mut Chain) -> RingResult<bool>;
    /// Take the next [`LINE_CHAINS`] chains, as [`Ring::pop`] would one by one, if each of them is one buffer and the format
    /// has them side by side. False, and nothing is taken: they have to be popped.
    fn pop_line(&mut self, _memory: &Memory<'_>, _line: &mut Line) -> bool {
        false
    }
    /// Hand the last popped chain back.
    fn unpop(&mut self, taken: Taken);
    /// Write a used element, `len` bytes written to the chain; whether that chain is done is no matter here.
    fn write_used(&mut self, memory: &Memory<'_>, taken: Taken, len: u32) -> RingResult<()>;
    /// Write the used element of the oldest popped chain, which is done with it.
    fn push_used(&mut self, memory: &Memory<'_>, taken: Taken, len: u32) -> RingResult<()>;
    /// Write the used elements of the oldest popped chains, which are done with these, however they were popped; `lens`
    /// bytes written to each.
    fn push_line(
        &mut self,
        memory: &Memory<'_>,
        line: &[Taken; LINE_CHAINS],
        lens: [u32; LINE_CHAINS],
    ) -> RingResult<()> {
        push_each(self, memory, line, lens)
    }
    /// Show all pushed elements to the driver; true: it wants an interrupt for them.
    fn publish(&mut self, memory: &Memory<'_>) -> RingResult<bool>;
    /// Ask the driver for a kick at its next chain; true: more chains came before the driver could know.
    fn enable_kicks(&mut self, memory: &Memory<'_>) -> RingResult<bool>;
    /// Tell the driver that kicks are not needed.
    fn disable_kicks(&mut self, memory: &Memory<'_>) -> RingResult<()>;
    /// What in memory contradicts the state that this ring was opened with.
    fn check_restored(&self, memory: &Memory<'_>) -> RingResult<()>;
    /// Where another device would have to go on: chains that were popped and not used count as not taken.
    fn state(&self) -> RingState;
    /// Number of descriptors.
    fn size(&self) -> u16;
}

/// What [`Ring::push_line`] does where the elements do not lie side by side.
fn push_each(
    ring: &mut (impl Ring + ?Sized),
    memory: &Memory<'_>,
    line: &[Taken; LINE_CHAINS],
    lens: [u32; LINE_CHAINS],
) -> RingResult<()> {
    let mut chains = line.iter().zip(lens);
    chains.try_for_each(|(taken, len)| ring.push_used(memory, *taken, len))
}

/// Check that the areas of a ring are where they were: behind an IOMMU their maps come and go.
///
/// Errors: an alignment, an area that is not mapped.
pub fn check_areas(config: &RingConfig, memory: &Memory<'_>) -> Result<()> {
    if config.features & F_RING_PACKED != 0 {
        packed::check_areas(config, memory)
    } else {
        split::check_areas(config, memory)
    }
}

/// Check `config` and make a ring of it.
///
/// Errors: the size, an alignment, an area that is not mapped, a state that the format can't have.
pub fn open(config: &RingConfig, memory: &Memory<'_>) -> Result<AnyRing> {
    Ok(if config.features & F_RING_PACKED != 0 {
        AnyRing::Packed(packed::PackedQueue::new(config, memory)?)
    } else {
        AnyRing::Split(split::SplitQueue::new(config, memory)?)
    })
}

/// A ring whose format can be asked for: whoever moves packets does so once a batch, not at each call.
#[derive(Debug)]
pub enum AnyRing {
    /// A split virtqueue.
    Split(split::SplitQueue),
    /// A packed virtqueue.
    Packed(packed::PackedQueue),
    /// Something in front of one of them.
    Other(Box<dyn Ring>),
}

impl Deref for AnyRing {
    type Target = dyn Ring;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Split(ring) => ring,
            Self::Packed(ring) => ring,
            Self::Other(ring) => ring.as_ref(),
        }
    }
}

impl DerefMut for AnyRing {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Split(ring) => ring,
            Self::Packed(ring) => ring,
            Self::Other(ring) => ring.as_mut(),
        }
    }
}

/// Evaluate an expression for the ring in an [`AnyRing`], compiled for each format.
macro_rules! with_ring {
    ($any:expr, $ring:ident => $body:expr) => {
        match $any {
            $crate::ring::AnyRing::Split($ring) => $body,
            $crate::ring::AnyRing::Packed($ring) => $body,
            $crate::ring::AnyRing::Other(boxed) => {
                let $ring = boxed.as_mut();
                $body
            }
        }
    };
}
pub(crate) use with_ring;
