// SPDX-License-Identifier: Apache-2.0
//! Where packets go and come from. A back end has one port per queue pair; a packet is a 12-byte virtio-net header
//! and a frame.

mod loopback;
mod null;
mod pcapng;
mod recorder;
mod slots;
mod source;
mod steering;
mod tap;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::counters::Drop;
use crate::error::{Error, Result};
use crate::memory::{Memory, Range};
use loopback::{LaneTurn, Loopback, LoopbackPort, SendTurn};
use null::NullPort;
use recorder::RecordedPort;
use source::{Offer, SourceTurn};
use steering::Steering;
pub(crate) use tap::TapPort;

pub(crate) use slots::{Slots, LONG_BYTES, SLOTS};

pub use recorder::Recorder;
pub use source::SourceConfig;

/// As many as 1024 virtqueues allow with a control queue (the doorbells and LM registers are for 1024).
pub const MAX_QUEUE_PAIRS: u16 = 511;

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
    kind: Kind,
}

/// What the ports of a back end share.
#[derive(Clone, Debug)]
enum Kind {
    Loopback(Arc<Loopback>),
    Null(Arc<Steering>),
    Tap,
}

impl Backend {
    /// What is transmitted on a pair is received on the same pair; each holds at most `depth_packets`.
    pub fn loopback(queue_pairs: usize, depth_packets: usize) -> Result<Self> {
        if depth_packets == 0 {
            return Err(refused(
                "loopback that holds 0 packets: expected at least 1",
            ));
        }
        let count = check_pairs(queue_pairs)?;
        let shared = Arc::new(Loopback::new(count, depth_packets)?);
        let port = |pair| Port::Loopback(LoopbackPort::new(pair, Arc::clone(&shared)));
        Ok(Self {
            ports: (0..count).map(port).collect(),
            kind: Kind::Loopback(Arc::clone(&shared)),
        })
    }

    /// Everything that is transmitted is gone; with a `source`, packets come.
    pub fn null(queue_pairs: usize, source: Option<&SourceConfig>) -> Result<Self> {
        let count = check_pairs(queue_pairs)?;
        let steering = Arc::new(Steering::new(count));
        let quiet = NullPort::quiet()?;
        let port = |pair| {
            let source = source.map(|config| (config, &steering));
            let port = NullPort::new(pair, Arc::clone(&quiet), source)?;
            Ok(Port::Null(Arc::new(port)))
        };
        Ok(Self {
            ports: (0..count).map(port).collect::<Result<_>>()?,
            kind: Kind::Null(Arc::clone(&steering)),
        })
    }

    /// Packets on open tap queues (or datagram sockets), one per queue pair. They become non-blocking.
    ///
    /// Errors: no fd, or a tap whose virtio-net header is not the one of 12 bytes.
    pub fn tap(fds: Vec<OwnedFd>) -> Result<Self> {
        check_pairs(fds.len())?;
        let ports = fds
            .into_iter()
            .map(|fd| Ok(Port::Tap(Arc::new(TapPort::new(fd)?))))
            .collect::<Result<_>>()?;
        Ok(Self {
            ports,
            kind: Kind::Tap,
        })
    }

    /// The same with a recorder in front of it.
    pub fn recorded(&self, recorder: &Arc<Recorder>) -> Self {
        let ports = (0u16..).zip(&self.ports).map(|(pair, port)| {
            let recorded = RecordedPort::new(port.clone(), Arc::clone(recorder), pair);
            Port::Recorded(Arc::new(recorded))
        });
        Self {
            ports: ports.collect(),
            kind: self.kind.clone(),
        }
    }

    /// How many queue pairs it serves.
    pub fn queue_pairs(&self) -> usize {
        self.ports.len()
    }

    /// Let only the first `count` pairs receive from now on. A tap's queues are the kernel's to attach and detach.
    pub fn set_active_pairs(&self, count: u16) {
        match &self.kind {
            Kind::Loopback(shared) => shared.steering.set_active_pairs(count),
            Kind::Null(steering) => steering.set_active_pairs(count),
            Kind::Tap => {}
        }
    }

    /// What the driver accepts on received packets, as negotiated features. A tap has TUNSETOFFLOAD for it.
    pub fn set_offloads(&self, features: u64) {
        if let Kind::Loopback(shared) = &self.kind {
            shared.set_offloads(features);
        }
    }

    /// The port of a queue pair.
    pub(crate) fn port(&self, pair: usize) -> Option<Port> {
        self.ports.get(pair).cloned()
    }
}

fn check_pairs(count: usize) -> Result<u16> {
    match u16::try_from(count) {
        Ok(count @ 1..=MAX_QUEUE_PAIRS) => Ok(count),
        _ => Err(refused(&format!(
            "back end with {count} queue pairs: expected 1 to {MAX_QUEUE_PAIRS}"
        ))),
    }
}

/// Put a packet into `buffer`, as far as that goes.
fn copy(packet: &[u8], buffer: &mut [u8]) -> Received {
    let len = packet.len().min(buffer.len());
    buffer[..len].copy_from_slice(&packet[..len]);
    Received::Packet(len)
}

/// Put a packet into guest memory and the rest of it into `spill`, as far as that goes.
fn place(
    packet: &[u8],
    memory: &Memory<'_>,
    ranges: &[Range],
    spill: &mut [u8],
) -> Result<Received> {
    let direct = memory.scatter(ranges, packet)?;
    let rest = &packet[direct..];
    let spilt = rest.len().min(spill.len());
    spill[..spilt].copy_from_slice(&rest[..spilt]);
    Ok(Received::Packet(direct + spilt))
}

fn refused(message: &str) -> Error {
    Error::Backend {
        errno: libc::EINVAL,
        message: message.into(),
    }
}

/// A resource of the system that a port needs is not to be had.
fn cant_make(what: &str, error: &std::io::Error) -> Error {
    Error::Backend {
        errno: error.raw_os_error().unwrap_or(0),
        message: format!("no {what}: {error}"),
    }
}

/// One queue pair's share of a back end.
#[derive(Clone, Debug)]
pub(crate) enum Port {
    Loopback(LoopbackPort),
    Null(Arc<NullPort>),
    Recorded(Arc<RecordedPort>),
    Tap(Arc<TapPort>),
}

impl Port {
    /// Readable: there is a packet. Writable: [`Sent::Blocked`] is over.
    pub(crate) fn poll_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Loopback(port) => port.poll_fd(),
            Self::Null(port) => port.poll_fd(),
            Self::Recorded(port) => port.inner().poll_fd(),
            Self::Tap(port) => port.poll_fd(),
        }
    }

    /// Send the packet that lies in these buffers. `Err`: the buffers can't be read.
    pub(crate) fn send(&self, memory: &Memory<'_>, ranges: &[Range]) -> Result<Sent> {
        match self {
            Self::Loopback(port) => port.send(memory, ranges),
            Self::Null(port) => port.send(memory, ranges),
            Self::Recorded(port) => port.send(memory, ranges),
            Self::Tap(port) => port.send(memory, ranges),
        }
    }

    /// The port, if it takes several packets at a time.
    pub(crate) fn bursts(&self) -> Option<&TapPort> {
        match self {
            Self::Tap(port) => Some(port),
            _ => None,
        }
    }

    /// Send a packet of our own.
    pub(crate) fn send_bytes(&self, packet: &[u8]) -> Sent {
        match self {
            Self::Loopback(port) => port.send_bytes(packet),
            Self::Null(port) => port.send_bytes(packet),
            Self::Recorded(port) => port.send_bytes(packet),
            Self::Tap(port) => port.send_bytes(packet),
        }
    }

    /// Drop the next packet that waits; false: none does. A source has none waiting, it makes them when asked.
    pub(crate) fn discard(&self) -> bool {
        let mut rest = [0; 64];
        match self {
            Self::Null(_) => false,
            Self::Recorded(port) => port.inner().discard(),
            _ => matches!(self.receive(&mut rest), Received::Packet(_)),
        }
    }

    /// What the packets of a batch are received by.
    pub(crate) fn receiver(&self) -> Receiver<'_> {
        match self {
            Self::Loopback(port) => Receiver::Loopback(port.receive_turn()),
            Self::Null(port) => port.turn().map_or(Receiver::Port(self), Receiver::Source),
            _ => Receiver::Port(self),
        }
    }

    /// What the packets of a batch are sent by.
    pub(crate) fn sender(&self) -> Sender<'_> {
        match self {
            Self::Loopback(port) => Sender::Loopback(port.send_turn()),
            _ => Sender::Port(self),
        }
    }

    /// Take the next packet into `buffer`; one that is longer comes cut to its size.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Received {
        match self {
            Self::Loopback(port) => port.receive(buffer),
            Self::Null(port) => port.receive(buffer),
            Self::Recorded(port) => port.receive(buffer),
            Self::Tap(port) => port.receive(buffer),
        }
    }
}

/// A port during a batch that is sent.
pub(crate) enum Sender<'a> {
    Port(&'a Port),
    Loopback(SendTurn<'a>),
}

impl Sender<'_> {
    /// Send the packet that lies in these buffers. `Err`: the buffers can't be read.
    #[inline(always)]
    pub(crate) fn send(&mut self, memory: &Memory<'_>, ranges: &[Range]) -> Result<Sent> {
        match self {
            Self::Port(port) => port.send(memory, ranges),
            Self::Loopback(turn) => turn.send(memory, ranges),
        }
    }
}

/// A port during a batch that is received.
pub(crate) enum Receiver<'a> {
    Port(&'a Port),
    Source(SourceTurn<'a>),
    Loopback(LaneTurn<'a>),
}

impl Receiver<'_> {
    /// Whether packets lie in memory of ours, and [`Self::offer`] lends them.
    #[inline(always)]
    pub(crate) fn lends(&self) -> bool {
        !matches!(self, Self::Port(_))
    }

    /// The next packet, which is taken with [`Self::taken`]; None: there is nothing yet. `ahead` is what was read ahead.
    #[inline(always)]
    pub(crate) fn offer<'o>(&'o mut self, ahead: &'o Slots) -> Option<Offer<'o>> {
        match self {
            Self::Source(source) => source.offer(),
            Self::Loopback(lane) => lane.offer().map(Offer::whole),
            Self::Port(_) => ahead.oldest().map(Offer::whole),
        }
    }

    /// The packet that was offered with this ticket is the driver's, or dropped.
    #[inline(always)]
    pub(crate) fn taken(&mut self, ahead: &mut Slots, ticket: usize) {
        match self {
            Self::Source(source) => source.taken(ticket),
            Self::Loopback(lane) => lane.taken(),
            Self::Port(_) => ahead.remove_first(),
        }
    }

    /// Whether [`Self::receive_into`] works.
    pub(crate) fn is_direct(&self) -> bool {
        !matches!(self, Self::Port(Port::Recorded(_)))
    }

    /// Take the next packet straight into guest memory, which is marked; what does not fit there goes to the beginning
    /// of `spill`. `Err`: the ranges can't be written, and the packet still waits.
    pub(crate) fn receive_into(
        &mut self,
        memory: &Memory<'_>,
        ranges: &[Range],
        spill: &mut [u8],
    ) -> Result<Received> {
        match self {
            Self::Source(source) => source.receive_into(memory, ranges, spill),
            Self::Loopback(lane) => lane.receive_into(memory, ranges, spill),
            Self::Port(Port::Tap(port)) => port.receive_into(memory, ranges, spill),
            Self::Port(_) => Ok(Received::Empty),
        }
    }

    /// Take up to `limit` packets into `slots`, which are empty. What ended it before that, if something did. Only a port
    /// that makes a system call for each packet gives several.
    pub(crate) fn read_ahead(&mut self, slots: &mut Slots, limit: usize) -> Option<Received> {
        match self {
            Self::Port(Port::Tap(port)) => port.read_ahead(slots, limit),
            Self::Port(port) => slots.receive_one(|slot| port.receive(slot)),
            Self::Loopback(lane) => slots.receive_one(|slot| lane.receive(slot)),
            Self::Source(source) => slots.receive_one(|slot| source.receive(slot)),
        }
    }
}
