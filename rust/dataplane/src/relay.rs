// SPDX-License-Identifier: Apache-2.0
//! Eventfd to eventfd or to a doorbell register, for kicks and calls that have to pass from one process' fds to
//! another's.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};
use crate::os::{new_eventfd, spawn_quiet};
use crate::worker::{Drained, Signal};

// Entries carry a number of their own: a stale event of a replaced entry must not be taken for its successor's.
const WAKE: u64 = 0;

/// A register behind a file descriptor that is written by offset, such as a doorbell of a VFIO device.
#[derive(Debug)]
pub struct Doorbell {
    file: File,
    offset: u64,
    value: u16,
}

impl Doorbell {
    /// `value` is stored, little-endian, at `offset` of the file.
    pub fn new(fd: OwnedFd, offset: u64, value: u16) -> Self {
        Self {
            file: fd.into(),
            offset,
            value,
        }
    }

    /// Write once. A device that is gone refuses, which whoever drives it learns from its own requests.
    fn ring(&self) {
        let _ = self.file.write_at(&self.value.to_le_bytes(), self.offset);
    }
}

#[derive(Debug)]
enum Target {
    Eventfd(Signal),
    Doorbell(Doorbell),
}

impl Target {
    fn reach(&self) {
        match self {
            Self::Eventfd(signal) => signal.raise(),
            Self::Doorbell(doorbell) => doorbell.ring(),
        }
    }
}

#[derive(Debug)]
struct Entry {
    key: i64,
    source: Signal,
    target: Target,
}

#[derive(Debug, Default)]
struct Entries {
    by_id: HashMap<u64, Entry>,
    last_id: u64,
}

#[derive(Debug)]
struct Shared {
    epoll: Epoll,
    wake: EventFd,
    is_closed: AtomicBool,
    entries: Mutex<Entries>,
}

/// Whatever is signalled at a source is signalled at its target, or rings its doorbell. One thread.
#[derive(Debug)]
pub struct KickRelay {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl KickRelay {
    /// Errors: the system gives no thread or no file descriptors.
    pub fn new() -> Result<Self> {
        let shared = Arc::new(Shared {
            epoll: Epoll::new().map_err(|error| cant_wait(&error))?,
            wake: new_eventfd()?,
            is_closed: AtomicBool::new(false),
            entries: Mutex::default(),
        });
        shared.watch(shared.wake.as_raw_fd(), WAKE)?;
        let own = Arc::clone(&shared);
        let thread = spawn_quiet("vdpa-relay".into(), move || own.run())?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Forward `source` to `target`; replaces an earlier pair with this key. What is signalled already is forwarded.
    ///
    /// Errors: an fd that can't be waited on or takes no flags (the earlier pair is gone then), or a closed relay.
    pub fn add(&self, key: i64, source: OwnedFd, target: OwnedFd) -> Result<()> {
        self.insert(key, source, Target::Eventfd(Signal::new(target)?))
    }

    /// Ring a doorbell for `source`; otherwise as [`KickRelay::add`].
    pub fn add_doorbell(&self, key: i64, source: OwnedFd, doorbell: Doorbell) -> Result<()> {
        self.insert(key, source, Target::Doorbell(doorbell))
    }

    fn insert(&self, key: i64, source: OwnedFd, target: Target) -> Result<()> {
        if self.shared.is_closed.load(Ordering::SeqCst) {
            return Err(Error::State("the relay is closed".into()));
        }
        let entry = Entry {
            key,
            source: Signal::new(source)?,
            target,
        };
        let mut entries = self.shared.entries.lock();
        self.shared.remove_from(&mut entries, key);
        entries.last_id += 1;
        let id = entries.last_id;
        self.shared.watch(entry.source.as_raw_fd(), id)?;
        entries.by_id.insert(id, entry);
        Ok(())
    }

    /// Stop forwarding this pair. When it returns, what was signalled before has been forwarded or stays at the
    /// source.
    pub fn remove(&self, key: i64) {
        self.shared
            .remove_from(&mut self.shared.entries.lock(), key);
    }

    /// End the thread and let go of all pairs.
    pub fn close(&self) {
        self.shared.is_closed.store(true, Ordering::SeqCst);
        let _ = self.shared.wake.write(1);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        self.shared.entries.lock().by_id.clear();
    }
}

impl Drop for KickRelay {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn watch(&self, fd: i32, id: u64) -> Result<()> {
        self.epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, id))
            .map_err(|error| cant_wait(&error))
    }

    fn forget(&self, fd: i32) {
        // It fails where the fd was forgotten before.
        let _ = self
            .epoll
            .ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    fn remove_from(&self, entries: &mut Entries, key: i64) {
        let old = entries.by_id.iter().find(|(_, entry)| entry.key == key);
        if let Some(id) = old.map(|(&id, _)| id) {
            if let Some(entry) = entries.by_id.remove(&id) {
                self.forget(entry.source.as_raw_fd());
            }
        }
    }

    fn run(&self) {
        let mut ready = [EpollEvent::default(); 16];
        while !self.is_closed.load(Ordering::SeqCst) {
            // Interrupted, as after a debugger has attached, is nothing happened.
            let count = self.epoll.wait(-1, &mut ready).unwrap_or(0);
            for event in &ready[..count] {
                self.forward(event.data());
            }
        }
    }

    fn forward(&self, id: u64) {
        let entries = self.entries.lock();
        let Some(entry) = entries.by_id.get(&id) else {
            return;
        };
        match entry.source.drain() {
            Drained::Count(_) => entry.target.reach(),
            Drained::Empty => {}
            Drained::Gone => self.forget(entry.source.as_raw_fd()),
        }
    }
}

fn cant_wait(error: &std::io::Error) -> Error {
    Error::State(format!("fd can't be waited on: {error}"))
}
