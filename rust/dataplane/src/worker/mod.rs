// SPDX-License-Identifier: Apache-2.0
//! Worker threads: one per queue pair. A worker sleeps while there is nothing to do, works in short batches under
//! the lock of its pair, and looks at the rings a little longer after work before it asks for kicks again.

mod burst;
mod coalesce;
mod direct;
mod drain;
mod events;
mod fault;
mod hooked;
mod inbox;
mod kick;
mod offered;
mod pace;
mod pair;
mod queue;
mod receive;
mod rest;
mod rhythm;
mod signal;
mod transmit;
mod wait;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use crate::error::Result;
use crate::os;
use coalesce::Nap;
use events::Token;
use pair::PortWish;

pub(crate) use fault::QueueFault;
pub use hooked::{PacketHook, Way};
pub(crate) use pair::{Direction, Pair};
pub(crate) use queue::{Queue, Slot};
pub(crate) use signal::{Drained, Signal};

/// How long is polled after work where nobody says otherwise. A kick costs its sender more than this.
pub const DEFAULT_POLL_US: u32 = 20;
/// How long packets of a stream may wait for company where nobody says otherwise. QEMU's tx=timer waits as long.
pub const DEFAULT_COALESCE_US: u32 = 150;

/// The thread of a pair. It ends, and is waited for, when this is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    pair: Arc<Pair>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Errors: the system gives no thread.
    pub(crate) fn spawn(number: u16, pair: Arc<Pair>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let run = Run {
            pair: Arc::clone(&pair),
            stop: Arc::clone(&stop),
            armed: PortWish::default(),
        };
        let thread = os::spawn_quiet(format!("vdpa-pair-{number}"), move || run.forever())?;
        Ok(Self {
            pair,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.pair.events.wake();
        if let Some(thread) = self.thread.take() {
            // A worker that panicked has ended as well.
            let _ = thread.join();
        }
    }
}

struct Run {
    pair: Arc<Pair>,
    stop: Arc<AtomicBool>,
    armed: PortWish,
}

impl Run {
    fn forever(mut self) {
        os::be_punctual();
        while !self.stop.load(Ordering::SeqCst) {
            if self.pair.step() {
                continue;
            }
            let mut nap = None;
            if let Some(patience) = self.pair.patience() {
                if self.linger(patience) {
                    continue;
                }
                nap = self.pair.nap();
            }
            if let Some(wish) = self.pair.prepare_sleep(nap) {
                self.sleep(wish, nap);
            }
        }
    }

    /// Whether work came while we looked.
    fn linger(&self, patience: Duration) -> bool {
        if patience.is_zero() {
            return false;
        }
        let waited = self.poll(patience);
        self.pair.polled(waited);
        waited.is_some()
    }

    /// How long it took until there was work, at most `patience`.
    fn poll(&self, patience: Duration) -> Option<Duration> {
        let start = Instant::now();
        loop {
            if self.pair.has_work() {
                return Some(start.elapsed());
            }
            for _ in 0..32 {
                std::hint::spin_loop();
            }
            if start.elapsed() >= patience {
                return None;
            }
        }
    }

    fn sleep(&mut self, wish: PortWish, nap: Option<Nap>) {
        if wish != self.armed {
            if self
                .pair
                .events
                .arm(&self.pair.port, self.armed, wish)
                .is_err()
            {
                self.pair.port_failed();
                return;
            }
            self.armed = wish;
        }
        let happened = match nap {
            Some(nap) => self.pair.events.nap(nap.length),
            None => self.pair.events.wait(),
        };
        for (token, set) in happened {
            self.handle(token, set);
        }
    }

    fn handle(&mut self, token: Token, set: EventSet) {
        match token {
            Token::Wake => self.pair.events.drain_wake(),
            Token::RxKick => self.kicked(&self.pair.rx, self.pair.rx.kick.read().unwrap_or(0)),
            Token::TxKick => self.kicked(&self.pair.tx, self.pair.tx.kick.read().unwrap_or(0)),
            Token::RxAttached => self.count_attached_kicks(&self.pair.rx),
            Token::TxAttached => self.count_attached_kicks(&self.pair.tx),
            Token::Port => {
                if !set.intersects(EventSet::IN | EventSet::OUT) {
                    self.pair.port_failed();
                }
            }
        }
    }

    fn count_attached_kicks(&self, queue: &Queue) {
        let attached = queue.attached_kick.lock();
        let Some(kick) = attached.as_ref() else {
            return;
        };
        match kick.drain() {
            Drained::Count(kicks) => self.kicked(queue, kicks),
            Drained::Empty => {}
            Drained::Gone => {
                use std::os::fd::AsRawFd;
                self.pair.events.forget(kick.as_raw_fd());
            }
        }
    }

    fn kicked(&self, queue: &Queue, kicks: u64) {
        if !self.pair.forward_kick(queue, kicks) {
            queue.kicked(kicks);
        }
    }
}
