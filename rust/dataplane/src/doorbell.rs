// SPDX-License-Identifier: Apache-2.0
//! Doorbells and maps that arrive as messages on a socket: carried out and answered here, the rest is left to the
//! caller.
//!
//! What such a message looks like is the caller's business, down to the byte.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

pub use crate::batches::Batches;
use crate::error::{Error, Result};
use crate::lookout::Lookout;
use crate::map_messages::MapMessages;
pub use crate::messages::Received;
use crate::messages::{self, Ahead, Header, HEADER_BYTES};
use crate::os;
use crate::plane::QueueBell;
use crate::worker::Signal;

/// The longest payload of a message that is dealt with here.
pub const PAYLOAD_BYTES_MAX: usize = 64;

const FLAGS_COMMAND: u32 = 0;
const FLAGS_POSTED: u32 = 0x10;

/// What only the thread that reads has to do with.
#[derive(Debug, Default)]
struct Reader {
    ahead: Ahead,
    lookout: Lookout,
}

/// A connected stream socket of which one thread reads.
#[derive(Debug)]
pub struct DoorbellSocket {
    socket: OwnedFd,
    command: u16,
    repeated_bytes: usize,
    bells: RwLock<Bells>,
    maps: RwLock<Option<MapMessages>>,
    batches: RwLock<Option<Batches>>,
    is_watched: AtomicBool,
    /// Held by the one thread that reads.
    reader: Mutex<Reader>,
}

#[derive(Debug)]
enum Bell {
    Eventfd(Signal),
    Queue(Arc<QueueBell>),
}

impl Bell {
    fn ring(&self) {
        match self {
            Self::Eventfd(signal) => signal.raise(),
            Self::Queue(bell) => bell.ring(),
        }
    }

    fn poll_time(&self) -> Duration {
        match self {
            Self::Eventfd(_) => Duration::ZERO,
            Self::Queue(bell) => bell.poll_time(),
        }
    }
}

#[derive(Debug, Default)]
struct Bells {
    by_payload: HashMap<Box<[u8]>, Arc<Bell>>,
    /// Bytes of the shortest message that rings one. Shorter messages carry no descriptors.
    shortest: usize,
    /// Whoever reads polls as its worker does.
    first: Option<Arc<Bell>>,
}

impl DoorbellSocket {
    /// Doorbells come as messages of this command, and are answered with the first `repeated_bytes` of their payload.
    /// No payload is a doorbell's yet.
    pub fn new(socket: OwnedFd, command: u16, repeated_bytes: usize) -> Self {
        Self {
            socket,
            command,
            repeated_bytes,
            bells: RwLock::default(),
            maps: RwLock::default(),
            batches: RwLock::default(),
            is_watched: AtomicBool::new(false),
            reader: Mutex::default(),
        }
    }

    /// From now on a message with exactly one of these payloads signals the eventfd.
    ///
    /// Errors: a payload that is too long or shorter than what is repeated; an fd that takes no flags.
    pub fn add<P: AsRef<[u8]>>(&self, payloads: &[P], fd: OwnedFd) -> Result<()> {
        self.insert(payloads, Bell::Eventfd(Signal::new(fd)?))
    }

    /// From now on a message with exactly one of these payloads rings this doorbell, on the thread that reads.
    ///
    /// Errors: a payload that is too long or shorter than what is repeated.
    pub fn add_queue<P: AsRef<[u8]>>(&self, payloads: &[P], bell: Arc<QueueBell>) -> Result<()> {
        self.insert(payloads, Bell::Queue(bell))
    }

    fn insert<P: AsRef<[u8]>>(&self, payloads: &[P], bell: Bell) -> Result<()> {
        let bell = Arc::new(bell);
        let mut bells = self.bells.write();
        for payload in payloads {
            let payload = payload.as_ref();
            if !(self.repeated_bytes..=PAYLOAD_BYTES_MAX).contains(&payload.len()) {
                return Err(Error::State(format!(
                    "a doorbell's payload of {} bytes: expected {} to {PAYLOAD_BYTES_MAX}",
                    payload.len(),
                    self.repeated_bytes
                )));
            }
            bells.insert(payload, Arc::clone(&bell));
        }
        Ok(())
    }

    /// From now on messages of these forms change their space.
    pub fn serve_maps(&self, maps: MapMessages) {
        *self.maps.write() = Some(maps);
    }

    /// From now on messages of this form are doorbells as well, where each message in them is.
    ///
    /// Errors: a number that lies outside of an item, or a head that is none.
    pub fn serve_batches(&self, batches: Batches) -> Result<()> {
        batches.check()?;
        *self.batches.write() = Some(batches);
        Ok(())
    }

    /// While somebody watches, every message is the caller's.
    pub fn set_watched(&self, is_watched: bool) {
        self.is_watched.store(is_watched, Ordering::SeqCst);
    }

    /// Serve doorbells and maps until another message begins; wait for it. By one thread at a time.
    ///
    /// Errors: a reply can't be sent, which ends the connection.
    pub fn receive(&self) -> io::Result<Received> {
        let mut reader = self.reader.lock();
        let shortest = self.bells.read().shortest;
        let mut served = None;
        loop {
            let (mut received, header) = self.next(&mut reader, shortest, served);
            let Some(header) = header else {
                return Ok(received);
            };
            if self.is_watched.load(Ordering::SeqCst) || !self.is_candidate(&header, &received) {
                return Ok(received);
            }
            if !messages::complete(self.socket.as_fd(), &mut received, header.size as usize)
                || !self.ring(&header, &received)? && !self.change_maps(&header, &received)?
            {
                return Ok(received);
            }
            served = Some(Instant::now());
        }
    }

    /// The next message's beginning. `served`: since when there is nothing else to do.
    fn next(
        &self,
        reader: &mut Reader,
        shortest: usize,
        served: Option<Instant>,
    ) -> (Received, Option<Header>) {
        let Some(served) = served.filter(|_| reader.ahead.is_empty()) else {
            return reader.ahead.begin(self.socket.as_fd(), shortest);
        };
        let patience = reader.lookout.patience(self.poll_time());
        if !patience.is_zero() {
            reader.lookout.looked(self.look(served, patience));
        }
        let begun = reader.ahead.begin(self.socket.as_fd(), shortest);
        reader.lookout.came(served.elapsed());
        begun
    }

    /// Whether something comes within `patience` of `since`.
    fn look(&self, since: Instant, patience: Duration) -> bool {
        while !os::is_readable(self.socket.as_fd()) {
            if since.elapsed() >= patience {
                return false;
            }
            std::hint::spin_loop();
        }
        true
    }

    fn poll_time(&self) -> Duration {
        let bells = self.bells.read();
        let first = bells.first.as_ref();
        first.map_or(Duration::ZERO, |bell| bell.poll_time())
    }

    fn is_candidate(&self, header: &Header, received: &Received) -> bool {
        let Some(payload_bytes) = (header.size as usize).checked_sub(HEADER_BYTES) else {
            return false;
        };
        if !matches!(header.flags, FLAGS_COMMAND | FLAGS_POSTED) {
            return false;
        }
        if header.command == self.command {
            return payload_bytes <= PAYLOAD_BYTES_MAX && received.fds.is_empty();
        }
        if let Some(batches) = self.batches_of(header) {
            return payload_bytes <= batches.bytes_max() && received.fds.is_empty();
        }
        let maps = self.maps.read();
        payload_bytes <= PAYLOAD_BYTES_MAX
            && maps
                .as_ref()
                .is_some_and(|maps| maps.may_be(header.command, payload_bytes))
    }

    fn batches_of(&self, header: &Header) -> Option<Batches> {
        let batches = *self.batches.read();
        batches.filter(|batches| batches.command == header.command)
    }

    /// Whether it was a doorbell, or several. Whoever waits for the answer need not wait for what comes of it.
    fn ring(&self, header: &Header, received: &Received) -> io::Result<bool> {
        if !received.fds.is_empty() {
            return Ok(false);
        }
        let payload = received.payload();
        if header.command == self.command {
            let Some(bell) = self.bells.read().of(payload) else {
                return Ok(false);
            };
            let answered = self.answer(header, &payload[..self.repeated_bytes]);
            bell.ring();
            return answered.map(|()| true);
        }
        let Some(batches) = self.batches_of(header) else {
            return Ok(false);
        };
        let Some(bells) = self.all_of(&batches, payload) else {
            return Ok(false);
        };
        let answered = self.answer(header, &payload[..batches.head_bytes]);
        bells.iter().for_each(|bell| bell.ring());
        answered.map(|()| true)
    }

    /// The doorbells of a batch. None: not every message in it is one.
    fn all_of(&self, batches: &Batches, payload: &[u8]) -> Option<Vec<Arc<Bell>>> {
        let payloads = batches.payloads(payload)?;
        let bells = self.bells.read();
        payloads
            .into_iter()
            .map(|payload| bells.of(payload))
            .collect()
    }

    /// Whether it was a map or unmap that could be carried out.
    fn change_maps(&self, header: &Header, received: &Received) -> io::Result<bool> {
        let payload = received.payload();
        let maps = self.maps.read();
        let repeated = maps
            .as_ref()
            .and_then(|maps| maps.carry_out(header.command, payload, &received.fds));
        match repeated {
            Some(bytes) => self.answer(header, &payload[..bytes]).map(|()| true),
            None => Ok(false),
        }
    }

    fn answer(&self, header: &Header, payload: &[u8]) -> io::Result<()> {
        if header.flags == FLAGS_COMMAND {
            self.send(&header.reply(payload))
        } else {
            Ok(())
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            // SAFETY: the pointer and the length are those of a live slice, which is only read.
            let sent = unsafe {
                libc::send(
                    self.socket.as_raw_fd(),
                    rest.as_ptr().cast(),
                    rest.len(),
                    libc::MSG_NOSIGNAL,
                )
            };
            match usize::try_from(sent) {
                Ok(sent) => rest = &rest[sent..],
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Bells {
    fn of(&self, payload: &[u8]) -> Option<Arc<Bell>> {
        self.by_payload.get(payload).cloned()
    }

    fn insert(&mut self, payload: &[u8], bell: Arc<Bell>) {
        let bytes = HEADER_BYTES + payload.len();
        self.shortest = match self.shortest {
            0 => bytes,
            shortest => shortest.min(bytes),
        };
        self.first.get_or_insert_with(|| Arc::clone(&bell));
        self.by_payload.insert(payload.into(), bell);
    }
}
