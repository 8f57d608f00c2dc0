// SPDX-License-Identifier: Apache-2.0
//! Where packets go and come from. A back end has one port per queue pair; a packet is a 12-byte virtio-net header
//! and a frame.

mod loopback;
mod tap;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::counters::Drop;
use crate::error::{Error, Result};
use crate::memory::{Memory, Range};
use loopback::LoopbackPort;
use tap::TapPort;

/// What became of a packet given to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The port has it.
    Done,
    /// Not now: try again when the port is writable.
    Blocked,
    /// Not this one.
    Refused {
        /// How to count it.
        reason: Drop,
        /// Why.
        errno: i32,
    },
}

/// What a port had for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A packet of so many bytes.
    Packet(usize),
    /// Nothing now.
    Empty,
    /// Nothing any more, with the errno.
    Failed(i32),
}

/// A back end: something with ports.
#[derive(Clone, Debug)]
pub struct Backend {
    ports: Vec<Port>,
}

impl Backend {
    /// What is transmitted on a pair is received on the same pair; each holds at most `depth_packets`.
    pub fn loopback(queue_pairs: usize, depth_packets: usize) -> Result<Self> {
        if queue_pairs == 0 || depth_packets == 0 {
            return Err(Error::Backend {
                errno: libc::EINVAL,
                message: format!(
                    "loopback with {queue_pairs} queue pairs of {depth_packets} packets: expected at least 1 of 1"
                ),
            });
        }
        let ports = (0..queue_pairs)
            .map(|_| Ok(Port::Loopback(Arc::new(LoopbackPort::new(depth_packets)?))))
            .collect::<Result<_>>()?;
        Ok(Self { ports })
    }

    /// Packets on open tap queues (or datagram sockets), one per queue pair. They become non-blocking.
    ///
    /// Errors: no fd, or a tap whose virtio-net header is not the one of 12 bytes.
    pub fn tap(fds: Vec<OwnedFd>) -> Result<Self> {
        if fds.is_empty() {
            return Err(Error::Backend {
                errno: libc::EINVAL,
                message: "tap without file descriptors: expected one per queue pair".into(),
            });
        }
        let ports = fds
            .into_iter()
            .map(|fd| Ok(Port::Tap(Arc::new(TapPort::new(fd)?))))
            .collect::<Result<_>>()?;
        Ok(Self { ports })
    }

    /// How many queue pairs it serves.
    pub fn queue_pairs(&self) -> usize {
        self.ports.len()
    }

    /// The port of a queue pair.
    pub(crate) fn port(&self, pair: usize) -> Option<Port> {
        self.ports.get(pair).cloned()
    }
}

/// One queue pair's share of a back end.
#[derive(Clone, Debug)]
pub(crate) enum Port {
    Loopback(Arc<LoopbackPort>),
    Tap(Arc<TapPort>),
}

impl Port {
    /// Readable: there is a packet. Writable: [`Sent::Blocked`] is over.
    pub(crate) fn poll_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Loopback(port) => port.poll_fd(),
            Self::Tap(port) => port.poll_fd(),
        }
    }

    /// Send the packet that lies in these buffers. `Err`: the buffers can't be read.
    pub(crate) fn send(&self, memory: &Memory<'_>, ranges: &[Range]) -> Result<Sent> {
        match self {
            Self::Loopback(port) => port.send(memory, ranges),
            Self::Tap(port) => port.send(memory, ranges),
        }
    }

    /// Send a packet of our own.
    pub(crate) fn send_bytes(&self, packet: &[u8]) -> Sent {
        match self {
            Self::Loopback(port) => port.push(packet.to_vec()),
            Self::Tap(port) => port.send_bytes(packet),
        }
    }

    /// Take the next packet into `buffer`; one that is longer comes cut to its size.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Received {
        match self {
            Self::Loopback(port) => port.receive(buffer),
            Self::Tap(port) => port.receive(buffer),
        }
    }
}
