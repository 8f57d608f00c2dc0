// SPDX-License-Identifier: Apache-2.0
//! Doorbells for whoever hears them on a thread of his own, and can do what they ask for there.

use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::{duplicate, DataPlane, Target};
use crate::error::Result;
use crate::worker::{Direction, Pair};

/// One doorbell. When its plane is closed nothing comes of ringing it.
#[derive(Debug)]
pub struct QueueBell(Place);

#[derive(Debug)]
enum Place {
    Pair(Arc<Pair>, Direction),
    Control(EventFd),
}

impl QueueBell {
    /// The driver has written it. What it asks for is done by the caller where the worker rests, at most a batch.
    pub fn ring(&self) {
        match &self.0 {
            Place::Pair(pair, direction) => pair.kick(*direction),
            // Only a counter at its maximum makes this fail, and then it is signalled already.
            Place::Control(kick) => drop(kick.write(1)),
        }
    }

    /// How long its worker looks for more after work.
    pub(crate) fn poll_time(&self) -> Duration {
        match &self.0 {
            Place::Pair(pair, _) => pair.poll_time(),
            Place::Control(_) => Duration::ZERO,
        }
    }
}

impl DataPlane {
    /// The doorbell of this index, whatever was negotiated.
    ///
    /// Errors: there is none, or the system gives no file descriptor.
    pub fn bell(&self, index: u16) -> Result<QueueBell> {
        Ok(QueueBell(match self.place(index)? {
            Target::Pair(pair, direction) => Place::Pair(Arc::clone(pair), direction),
            Target::Control(control) => Place::Control(duplicate(&control.queue().kick)?),
        }))
    }
}
