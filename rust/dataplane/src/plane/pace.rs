// SPDX-License-Identifier: Apache-2.0
//! How the workers of a plane wait for packets.

use super::DataPlane;

impl DataPlane {
    /// Poll the rings and the back end for so long after work at most, instead of sleeping at once (0). At first that is
    /// [`super::DEFAULT_POLL_US`].
    pub fn set_poll_us(&self, poll_us: u32) {
        for pair in &self.pairs {
            pair.set_poll_us(poll_us);
        }
    }

    /// Let packets of a stream wait for so long at most, so that one wake-up serves several; 0: none waits. At first
    /// that is [`super::DEFAULT_COALESCE_US`].
    pub fn set_coalesce_us(&self, coalesce_us: u32) {
        for pair in &self.pairs {
            pair.set_coalesce_us(coalesce_us);
        }
    }
}
