// SPDX-License-Identifier: Apache-2.0
//! What both back ends and workers ask of the operating system.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EventFd, EFD_CLOEXEC, EFD_NONBLOCK};

use crate::error::{Error, Result};

/// Set O_NONBLOCK. The flag belongs to the open file, so that whoever shares it sees it too.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take no pointer; the fd is open as long as it is borrowed.
    let result = unsafe {
        match libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) {
            flags if flags < 0 => flags,
            flags => libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK),
        }
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether a read would not wait now.
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the pointer is that of one live pollfd, and the count is 1.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 }
}

/// A new non-blocking eventfd.
pub(crate) fn new_eventfd() -> Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
        .map_err(|error| Error::State(format!("no eventfd can be made: {error}")))
}

/// A named thread that handles no signals: they are for the threads of the program that embeds us. Those that a
/// memory access raises are not blocked.
pub(crate) fn spawn_quiet(
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            block_signals();
            body();
        })
        .map_err(|error| Error::State(format!("no thread can be started: {error}")))
}

fn block_signals() {
    // SAFETY: the set is a live local that sigfillset initialises; the calls touch this thread's mask only.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut set);
        for signal in [libc::SIGBUS, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL] {
            libc::sigdelset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// Let this thread's naps end when they should: the kernel may be 50 us late otherwise.
pub(crate) fn be_punctual() {
    const SLACK_NS: libc::c_ulong = 1000;
    // SAFETY: PR_SET_TIMERSLACK takes a number, and touches this thread only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, SLACK_NS) };
}
