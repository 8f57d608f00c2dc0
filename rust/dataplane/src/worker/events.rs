// SPDX-License-Identifier: Apache-2.0
//! What a worker sleeps on.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::pair::PortWish;
use super::queue::Queue;
use crate::backend::Port;
use crate::error::{Error, Result};
use crate::os::new_eventfd;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Wake,
    RxKick,
    RxAttached,
    TxKick,
    TxAttached,
    Port,
}

const TOKENS: [Token; 6] = [
    Token::Wake,
    Token::RxKick,
    Token::RxAttached,
    Token::TxKick,
    Token::TxAttached,
    Token::Port,
];

/// The epoll set of a pair, and the eventfd that ends a sleep.
#[derive(Debug)]
pub(crate) struct Events {
    epoll: Epoll,
    wake: EventFd,
}

impl Events {
    pub(super) fn new(rx: &Queue, tx: &Queue) -> Result<Self> {
        let epoll = Epoll::new()
            .map_err(|error| Error::State(format!("no epoll set can be made: {error}")))?;
        let events = Self {
            epoll,
            wake: new_eventfd()?,
        };
        events.watch(events.wake.as_raw_fd(), Token::Wake)?;
        events.watch(rx.kick.as_raw_fd(), Token::RxKick)?;
        events.watch(tx.kick.as_raw_fd(), Token::TxKick)?;
        Ok(events)
    }

    /// An eventfd that does what [`Self::wake`] does. Errors: the system gives no file descriptor.
    pub(super) fn waker(&self) -> Result<EventFd> {
        self.wake
            .try_clone()
            .map_err(|error| Error::State(format!("no eventfd can be duplicated: {error}")))
    }

    /// End the worker's sleep, now or the next one.
    pub(crate) fn wake(&self) {
        // Only a counter at its maximum makes this fail, and then it is signalled already.
        let _ = self.wake.write(1);
    }

    pub(super) fn drain_wake(&self) {
        let _ = self.wake.read();
    }

    /// Errors: the fd is of a kind that can't be waited on.
    pub(super) fn watch(&self, fd: RawFd, token: Token) -> Result<()> {
        self.control(ControlOperation::Add, fd, EventSet::IN, token)
    }

    pub(super) fn forget(&self, fd: RawFd) {
        // It fails where the fd was forgotten before.
        let _ = self
            .epoll
            .ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    fn control(
        &self,
        operation: ControlOperation,
        fd: RawFd,
        set: EventSet,
        token: Token,
    ) -> Result<()> {
        self.epoll
            .ctl(operation, fd, EpollEvent::new(set, token as u64))
            .map_err(|error| Error::State(format!("fd {fd} can't be waited on: {error}")))
    }

    /// Change what is waited for at the port. One that nothing is wanted from is taken out: its errors would end
    /// every sleep.
    pub(super) fn arm(&self, port: &Port, old: PortWish, new: PortWish) -> Result<()> {
        let fd = port.poll_fd().as_raw_fd();
        let nothing = PortWish::default();
        let operation = match (old == nothing, new == nothing) {
            (_, true) => {
                self.forget(fd);
                return Ok(());
            }
            (true, false) => ControlOperation::Add,
            (false, false) => ControlOperation::Modify,
        };
        let mut set = EventSet::empty();
        set.set(EventSet::IN, new.readable);
        set.set(EventSet::OUT, new.writable);
        self.control(operation, fd, set, Token::Port)
    }

    /// Sleep until something happens; what did.
    pub(super) fn wait(&self) -> Vec<(Token, EventSet)> {
        self.take(-1)
    }

    /// Sleep for so long, or until something happens; what did. (epoll_wait counts in milliseconds.)
    pub(super) fn nap(&self, length: Duration) -> Vec<(Token, EventSet)> {
        let mut poll = poll_for(self.epoll.as_raw_fd(), libc::POLLIN);
        let length = libc::timespec {
            tv_sec: length.as_secs() as _,
            tv_nsec: length.subsec_nanos().into(),
        };
        // SAFETY: the pointers are those of one live pollfd, as the count says, and of a live timespec; no signal mask
        // is given.
        let ready = unsafe { libc::ppoll(&mut poll, 1, &length, std::ptr::null()) };
        if ready > 0 {
            return self.take(0);
        }
        Vec::new()
    }

    fn take(&self, timeout_ms: i32) -> Vec<(Token, EventSet)> {
        let mut ready = [EpollEvent::default(); TOKENS.len()];
        // Interrupted, as after a debugger has attached, is nothing happened.
        let count = self.epoll.wait(timeout_ms, &mut ready).unwrap_or(0);
        ready[..count]
            .iter()
            .filter_map(|event| Some((*TOKENS.get(event.data() as usize)?, event.event_set())))
            .collect()
    }

    /// Whether the port has a packet now.
    pub(super) fn is_readable(&self, port: &Port) -> bool {
        poll(port, libc::POLLIN, Duration::ZERO)
    }

    /// Whether the port takes packets again within `patience`.
    pub(super) fn wait_writable(&self, port: &Port, patience: Duration) -> bool {
        poll(port, libc::POLLOUT, patience)
    }
}

fn poll(port: &Port, events: libc::c_short, patience: Duration) -> bool {
    let mut poll = poll_for(port.poll_fd().as_raw_fd(), events);
    // SAFETY: the pointer is that of one live pollfd, and the count is 1.
    let ready = unsafe { libc::poll(&mut poll, 1, patience.as_millis() as libc::c_int) };
    ready > 0
}

fn poll_for(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}
