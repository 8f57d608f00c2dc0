// SPDX-License-Identifier: Apache-2.0
//! The driver's side of a virtqueue: one descriptor a packet, buffers that stay where they are.

use std::rc::Rc;
use std::sync::atomic::{fence, Ordering};

use vhost::VringConfigData;
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::packed::PackedRing;
use crate::ring::{Areas, Buffers, Ring};
use crate::split::SplitRing;

/// Which way the packets of a queue go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The device fills the buffers.
    Receive,
    /// The device reads the buffers.
    Transmit,
}

/// A queue with its eventfds.
pub struct Queue {
    ring: Box<dyn Ring>,
    kick: EventFd,
    call: EventFd,
    /// Buffers that went to the device and came back.
    pub frames: u64,
}

/// What a queue is made of.
pub struct QueueShape {
    /// Descriptors.
    pub size: u16,
    /// Whether the ring is packed.
    pub is_packed: bool,
    /// Bytes of each buffer.
    pub buffer_bytes: usize,
}

impl Queue {
    /// A queue in `memory`; every transmit buffer holds `packet`.
    pub fn new(
        memory: &Rc<Memory>,
        shape: &QueueShape,
        direction: Direction,
        packet: &[u8],
    ) -> Result<Self> {
        let stride = shape.buffer_bytes.next_multiple_of(64);
        let start = memory.allocate(stride * usize::from(shape.size), 4096)?;
        let (bytes, flags) = match direction {
            Direction::Receive => (shape.buffer_bytes, 2),
            Direction::Transmit => (packet.len(), 0),
        };
        if direction == Direction::Transmit {
            for index in 0..u64::from(shape.size) {
                memory.write(start + index * stride as u64, packet);
            }
        }
        let buffers = Buffers {
            start,
            stride: stride as u64,
            bytes: bytes as u32,
            flags,
        };
        let areas = Areas::new(memory, shape.size, shape.is_packed)?;
        let memory = Rc::clone(memory);
        let ring: Box<dyn Ring> = if shape.is_packed {
            Box::new(PackedRing::new(memory, areas, shape.size, buffers))
        } else {
            Box::new(SplitRing::new(memory, areas, shape.size, buffers))
        };
        let eventfd = || EventFd::new(libc::EFD_NONBLOCK).map_err(Error::system("eventfd"));
        Ok(Self {
            ring,
            kick: eventfd()?,
            call: eventfd()?,
            frames: 0,
        })
    }

    /// For the one who describes it to the back end.
    pub fn parts(&self) -> (VringConfigData, u16, &EventFd, &EventFd) {
        (self.ring.config(), self.ring.base(), &self.kick, &self.call)
    }

    /// Offer every buffer that is ours.
    pub fn fill(&mut self) {
        self.offer(u16::MAX);
    }

    /// Offer up to `limit` buffers that are ours; how many.
    pub fn offer(&mut self, limit: u16) -> u16 {
        let count = self.ring.post(limit);
        if count > 0 {
            // The device looks for work, then for kicks to ask for; we post, then look what it asked for (2.7.10).
            fence(Ordering::SeqCst);
            if self.ring.wants_kick() {
                let _ = self.kick.write(1);
            }
        }
        count
    }

    /// Take what came back and keep it; how many.
    pub fn collect(&mut self) -> u16 {
        let count = self.ring.reap();
        self.frames += u64::from(count);
        count
    }

    /// Take what came back and offer it again; how many.
    pub fn turn(&mut self) -> u16 {
        let count = self.collect();
        if count > 0 {
            self.fill();
        }
        count
    }
}
