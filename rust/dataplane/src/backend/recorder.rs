// SPDX-License-Identifier: Apache-2.0
//! Records the packets that pass a back end to a pcapng file.
//!
//! Workers append to a buffer of fixed size; a thread of its own writes it to the file. A packet that finds no room is
//! not recorded, and counted: a slow disk must not slow the network down.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};

use super::pcapng::{self, Packet, Way, PACKET_OVERHEAD_BYTES};
use super::{Port, Received, Sent};
use crate::error::Result;
use crate::memory::{Memory, Range};
use crate::net::HEADER_BYTES;
use crate::os::spawn_quiet;

/// A file that is being recorded to. It is complete when this is closed or dropped.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    snap_bytes: usize,
    limit_bytes: usize,
    buffer: Mutex<Buffer>,
    filled: Condvar,
    recorded: AtomicU64,
    dropped: AtomicU64,
    written_bytes: AtomicU64,
    errno: AtomicI32,
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    dropped_since: u64,
    is_closed: bool,
}

impl Recorder {
    /// Record to this file, at most `snap_bytes` of each frame; at most `buffer_bytes` wait to be written.
    ///
    /// Errors: the system gives no thread.
    pub fn new(file: OwnedFd, snap_bytes: usize, buffer_bytes: usize) -> Result<Self> {
        let mut bytes = Vec::with_capacity(buffer_bytes);
        pcapng::begin(&mut bytes, snap_bytes);
        let shared = Arc::new(Shared {
            snap_bytes,
            limit_bytes: buffer_bytes,
            buffer: Mutex::new(Buffer {
                bytes,
                ..Buffer::default()
            }),
            filled: Condvar::new(),
            recorded: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            errno: AtomicI32::new(0),
        });
        let own = Arc::clone(&shared);
        let thread = spawn_quiet("vdpa-recorder".into(), move || own.write_all(file.into()))?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Packets recorded, packets dropped, bytes written, and the errno that ended the recording (0: none).
    pub fn counters(&self) -> [(&'static str, u64); 4] {
        let shared = &self.shared;
        [
            ("recorded", shared.recorded.load(Ordering::Relaxed)),
            ("dropped", shared.dropped.load(Ordering::Relaxed)),
            (
                "written_bytes",
                shared.written_bytes.load(Ordering::Relaxed),
            ),
            (
                "errno",
                shared.errno.load(Ordering::Relaxed).unsigned_abs().into(),
            ),
        ]
    }

    /// Write what is waiting, and the totals. Nothing is recorded afterwards.
    pub fn close(&self) {
        self.shared.buffer.lock().is_closed = true;
        self.shared.filled.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            // A writer that panicked has ended as well.
            let _ = thread.join();
        }
    }

    fn record(&self, way: Way, queue: u16, packet: &[u8]) {
        self.shared
            .record(way, queue, packet.get(HEADER_BYTES..).unwrap_or(&[]));
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn record(&self, way: Way, queue: u16, frame: &[u8]) {
        let need = frame.len().min(self.snap_bytes) + PACKET_OVERHEAD_BYTES;
        let mut buffer = self.buffer.lock();
        if buffer.is_closed
            || self.errno.load(Ordering::Relaxed) != 0
            || buffer.bytes.len() + need > self.limit_bytes
        {
            buffer.dropped_since += 1;
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_empty = buffer.bytes.is_empty();
        let dropped = std::mem::take(&mut buffer.dropped_since);
        let packet = Packet {
            time_ns: now_ns(),
            way,
            queue,
            frame,
            snap_bytes: self.snap_bytes,
            dropped,
        };
        pcapng::packet(&mut buffer.bytes, &packet);
        drop(buffer);
        self.recorded.fetch_add(1, Ordering::Relaxed);
        if was_empty {
            self.filled.notify_one();
        }
    }

    /// The thread: swaps the buffer for an empty one of the same size, so that none is allocated later.
    fn write_all(&self, mut file: File) {
        let mut taken = Vec::with_capacity(self.limit_bytes);
        loop {
            let mut buffer = self.buffer.lock();
            while buffer.bytes.is_empty() && !buffer.is_closed {
                self.filled.wait(&mut buffer);
            }
            std::mem::swap(&mut buffer.bytes, &mut taken);
            let is_last = buffer.is_closed;
            drop(buffer);
            if is_last {
                let recorded = self.recorded.load(Ordering::Relaxed);
                let dropped = self.dropped.load(Ordering::Relaxed);
                pcapng::statistics(&mut taken, now_ns(), recorded + dropped, dropped);
            }
            self.write(&mut file, &taken);
            taken.clear();
            if is_last {
                return;
            }
        }
    }

    fn write(&self, file: &mut File, bytes: &[u8]) {
        if self.errno.load(Ordering::Relaxed) != 0 {
            return;
        }
        match file.write_all(bytes) {
            Ok(()) => {
                self.written_bytes
                    .fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            Err(error) => self
                .errno
                .store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Relaxed),
        }
    }
}

fn now_ns() -> u64 {
    // A clock before 1970 is not worth an error.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as u64)
}

/// A port in front of which a recorder stands.
#[derive(Debug)]
pub(crate) struct RecordedPort {
    inner: Port,
    recorder: Arc<Recorder>,
    pair: u16,
    /// The bytes that were sent are those that are recorded, whatever the guest makes of its buffers meanwhile.
    packet: Mutex<Vec<u8>>,
}

impl RecordedPort {
    pub(super) fn new(inner: Port, recorder: Arc<Recorder>, pair: u16) -> Self {
        Self {
            inner,
            recorder,
            pair,
            packet: Mutex::default(),
        }
    }

    pub(super) fn inner(&self) -> &Port {
        &self.inner
    }

    pub(super) fn send(&self, memory: &Memory<'_>, ranges: &[Range]) -> Result<Sent> {
        let mut packet = self.packet.lock();
        packet.clear();
        memory.gather(ranges, &mut packet)?;
        Ok(self.send_bytes(&packet))
    }

    pub(super) fn send_bytes(&self, packet: &[u8]) -> Sent {
        let sent = self.inner.send_bytes(packet);
        if sent == Sent::Done {
            self.recorder
                .record(Way::FromGuest, 2 * self.pair + 1, packet);
        }
        sent
    }

    pub(super) fn receive(&self, buffer: &mut [u8]) -> Received {
        let received = self.inner.receive(buffer);
        if let Received::Packet(len) = received {
            self.recorder
                .record(Way::ToGuest, 2 * self.pair, &buffer[..len]);
        }
        received
    }
}
