// SPDX-License-Identifier: Apache-2.0
//! File descriptors that carry nothing but "something happened": kicks in, interrupts out.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::os::set_nonblocking;

/// What [`Signal::drain`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// So many signals.
    Count(u64),
    /// None.
    Empty,
    /// The other side is gone, or this is no eventfd: it must not be waited on again.
    Gone,
}

/// An eventfd that somebody else made. It is non-blocking here, whatever it was: a peer that fills its counter must
/// not stop a worker.
#[derive(Debug)]
pub(crate) struct Signal(OwnedFd);

impl Signal {
    /// Errors: the fd takes no flags (O_PATH).
    pub(crate) fn new(fd: OwnedFd) -> Result<Self> {
        set_nonblocking(fd.as_fd())
            .map_err(|error| Error::State(format!("fd can't serve as an eventfd: {error}")))?;
        Ok(Self(fd))
    }

    /// Add one. A counter at its maximum is signalled already, and a closed peer wants nothing.
    pub(crate) fn raise(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the pointer and the length are those of a live array; write only reads it.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Take all signals.
    pub(crate) fn drain(&self) -> Drained {
        let mut count = [0u8; 8];
        // SAFETY: the pointer and the length are those of a live, exclusively borrowed array.
        let read =
            unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        if read == 8 {
            return Drained::Count(u64::from_ne_bytes(count));
        }
        match io::Error::last_os_error().kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted if read < 0 => Drained::Empty,
            _ => Drained::Gone,
        }
    }
}

impl AsRawFd for Signal {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

#[derive(Debug, Default)]
struct CallState {
    fd: Option<Signal>,
    is_due: bool,
}

/// A queue's interrupt. One that is due while there is nobody to tell is kept.
#[derive(Debug, Default)]
pub(crate) struct Call(Mutex<CallState>);

impl Call {
    /// Use this fd from now on; what is due is raised at once.
    pub(crate) fn set(&self, fd: Option<Signal>) {
        let mut call = self.0.lock();
        call.fd = fd;
        if let (Some(fd), true) = (&call.fd, call.is_due) {
            fd.raise();
            call.is_due = false;
        }
    }

    /// Interrupt now, or as soon as there is an fd.
    pub(crate) fn raise(&self) {
        let mut call = self.0.lock();
        match &call.fd {
            Some(fd) => fd.raise(),
            None => call.is_due = true,
        }
    }

    /// Whether an interrupt waits for an fd.
    pub(crate) fn is_due(&self) -> bool {
        self.0.lock().is_due
    }

    /// Nothing is due any more: the ring that it was about is gone.
    pub(crate) fn forget(&self) {
        self.0.lock().is_due = false;
    }
}
