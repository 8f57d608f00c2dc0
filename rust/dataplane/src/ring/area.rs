// SPDX-License-Identifier: Apache-2.0
//! One of the three areas of a virtqueue, checked before the queue is used.

use crate::error::{Error, Result};
use crate::memory::{Memory, Range};

/// A part of a virtqueue as the driver described it.
pub(super) struct Area {
    /// The field, in the specification's spelling.
    pub(super) what: &'static str,
    pub(super) iova: u64,
    pub(super) align: u64,
    /// The rule about `align`.
    pub(super) expected: &'static str,
}

impl Area {
    /// Errors: misaligned, or not mapped with this permission.
    pub(super) fn check(&self, memory: &Memory<'_>, len: u64, writable: bool) -> Result<()> {
        if self.iova % self.align != 0 {
            return Err(Error::BadRing {
                what: self.what,
                value: self.iova,
                expected: self.expected,
            });
        }
        memory.check(Range::new(self.iova, len), writable)
    }
}
