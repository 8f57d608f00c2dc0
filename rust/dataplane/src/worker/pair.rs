// SPDX-License-Identifier: Apache-2.0
//! A queue pair: its two queues, its port, and the lock under which batches, starts and stops take turns.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use vmm_sys_util::eventfd::EventFd;

use super::coalesce::Done;
use super::events::{Events, Token};
use super::fault::QueueFault;
use super::hooked::Hooked;
use super::inbox::Inbox;
use super::queue::{Queue, Slot};
use super::receive::Ended;
use super::rhythm::Rhythm;
use super::signal::Signal;
use super::transmit::count_own;
use super::{DEFAULT_COALESCE_US, DEFAULT_POLL_US};
use crate::backend::{Port, Sent};
use crate::error::{Error, Result};
use crate::filter::ReceiveFilter;
use crate::memory::DmaSpace;
use crate::net::{HEADER_BYTES, MAX_FRAME_BYTES};
use crate::ring::{Chain, RingConfig, RingState};
use crate::violation::{Violation, ViolationLog};

/// Descriptor chains served under one guard of the guest's memory and one hold of the lock.
pub(super) const BATCH: u16 = 64;
/// How long a stop waits for a back end that takes no packet.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_millis(100);

/// One of the two queues of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Receive,
    Transmit,
}

/// One queue's share of what the lock guards.
#[derive(Debug, Default)]
pub(super) struct Side {
    pub(super) slot: Slot,
    pub(super) chain: Chain,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) rx: Side,
    pub(super) tx: Side,
    pub(super) inbox: Inbox,
    pub(super) tx_is_blocked: bool,
    pub(super) rx_ended: Option<Ended>,
    /// Whether it may receive (virtio 1.3 5.1.6.5.5).
    pub(super) is_active: bool,
    pub(super) port_is_gone: bool,
    pub(super) hooked: Hooked,
    pub(super) rhythm: Rhythm,
}

/// What the worker has to wait for besides kicks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PortWish {
    pub(super) readable: bool,
    pub(super) writable: bool,
}

/// A queue pair, shared by its worker and the callers.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(super) space: Arc<DmaSpace>,
    pub(crate) rx: Queue,
    pub(crate) tx: Queue,
    pub(super) port: Port,
    pub(super) events: Events,
    /// How long the rings and the port are polled after work.
    poll_us: AtomicU32,
    /// How long packets of a stream may wait for company.
    coalesce_us: AtomicU32,
    state: Mutex<State>,
    /// Notified when a packet hook has been called and its packet is done.
    pub(super) hook_returned: Condvar,
    /// Callers that want the lock: the worker lets them have it after the batch that it is in.
    waiters: AtomicU32,
    /// The queue whose kicks arrive at our receive queue while that one does not exist.
    understudy: Option<Understudy>,
}

/// Virtqueue 2 is the control queue for a driver that did not negotiate VIRTIO_NET_F_MQ (virtio 1.3 5.1.2), but its
/// doorbell stays the same.
#[derive(Debug)]
pub(crate) struct Understudy {
    /// Signalled in place of the receive queue.
    pub(crate) kick: EventFd,
    /// Whether it plays.
    pub(crate) is_on: AtomicBool,
}

impl Pair {
    pub(crate) fn new(
        number: u16,
        space: Arc<DmaSpace>,
        port: Port,
        violations: &Arc<ViolationLog>,
    ) -> Result<Self> {
        let rx = Queue::new(2 * number, Arc::clone(violations))?;
        let tx = Queue::new(2 * number + 1, Arc::clone(violations))?;
        let events = Events::new(&rx, &tx)?;
        space.wake_for_maps(events.waker()?);
        Ok(Self {
            space,
            rx,
            tx,
            port,
            events,
            poll_us: AtomicU32::new(DEFAULT_POLL_US),
            coalesce_us: AtomicU32::new(DEFAULT_COALESCE_US),
            state: Mutex::new(State {
                rx: Side::default(),
                tx: Side::default(),
                inbox: Inbox::new(),
                tx_is_blocked: false,
                rx_ended: None,
                is_active: true,
                port_is_gone: false,
                hooked: Hooked::default(),
                rhythm: Rhythm::new(Instant::now()),
            }),
            hook_returned: Condvar::new(),
            waiters: AtomicU32::new(0),
            understudy: None,
        })
    }

    /// Let another queue's kicks come in by our receive queue, once [`Self::set_understudy`] says so.
    pub(crate) fn with_understudy(self, kick: EventFd) -> Self {
        let is_on = AtomicBool::new(false);
        let understudy = Some(Understudy { kick, is_on });
        Self { understudy, ..self }
    }

    pub(crate) fn set_understudy(&self, is_on: bool) {
        if let Some(understudy) = &self.understudy {
            understudy.is_on.store(is_on, Ordering::Release);
        }
    }

    /// The understudy while kicks of our receive queue are those of another queue.
    pub(super) fn playing_understudy(&self) -> Option<&Understudy> {
        let plays = |it: &&Understudy| it.is_on.load(Ordering::Acquire);
        self.understudy.as_ref().filter(plays)
    }

    /// Whether the kicks were those of another queue.
    pub(super) fn forward_kick(&self, queue: &Queue, kicks: u64) -> bool {
        let playing = self.playing_understudy();
        let Some(understudy) = playing.filter(|_| std::ptr::eq(queue, &self.rx)) else {
            return false;
        };
        if kicks > 0 {
            // Only a counter at its maximum makes this fail, and then it is signalled already.
            let _ = understudy.kick.write(1);
        }
        true
    }

    pub(crate) fn poll_time(&self) -> Duration {
        Duration::from_micros(self.poll_us.load(Ordering::Relaxed).into())
    }

    /// Poll for so long after work from now on; 0: not at all.
    pub(crate) fn set_poll_us(&self, poll_us: u32) {
        self.poll_us.store(poll_us, Ordering::Relaxed);
    }

    pub(super) fn coalesce_time(&self) -> Duration {
        Duration::from_micros(self.coalesce_us.load(Ordering::Relaxed).into())
    }

    /// Let packets of a stream wait for so long at most from now on; 0: not at all.
    pub(crate) fn set_coalesce_us(&self, coalesce_us: u32) {
        self.coalesce_us.store(coalesce_us, Ordering::Relaxed);
    }

    pub(crate) fn queue(&self, direction: Direction) -> &Queue {
        match direction {
            Direction::Receive => &self.rx,
            Direction::Transmit => &self.tx,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let state = self.state.lock();
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        state
    }

    fn someone_waits(&self) -> bool {
        self.waiters.load(Ordering::SeqCst) > 0
    }

    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        self.state.try_lock()
    }

    pub(super) fn lock_as_worker(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The worker's unlock: a waiting caller gets the lock now, not when the scheduler feels like it.
    pub(super) fn hand_over(&self, state: MutexGuard<'_, State>) {
        if self.someone_waits() {
            MutexGuard::unlock_fair(state);
            std::thread::yield_now();
        }
    }

    pub(crate) fn start(&self, direction: Direction, config: &RingConfig) -> Result<()> {
        let mut state = self.lock();
        let (side, queue) = state.side(self, direction);
        side.slot.start(queue, &self.space, config)?;
        if direction == Direction::Receive {
            state.inbox.set_features(config.features);
        }
        drop(state);
        self.events.wake();
        Ok(())
    }

    pub(crate) fn install_fault(&self, direction: Direction, fault: QueueFault) {
        let mut state = self.lock();
        let (side, queue) = state.side(self, direction);
        side.slot.install_fault(queue, fault);
    }

    pub(crate) fn set_receive_filter(&self, filter: Arc<ReceiveFilter>) {
        self.lock().inbox.set_filter(filter);
    }

    pub(crate) fn ring_state(&self, direction: Direction) -> RingState {
        self.lock().side(self, direction).0.slot.state()
    }

    pub(crate) fn set_kick(&self, direction: Direction, fd: Option<OwnedFd>) -> Result<()> {
        let kick = fd.map(Signal::new).transpose()?;
        let queue = self.queue(direction);
        let mut attached = queue.attached_kick.lock();
        if let Some(old) = attached.take() {
            self.events.forget(old.as_raw_fd());
        }
        if let Some(new) = &kick {
            let token = match direction {
                Direction::Receive => Token::RxAttached,
                Direction::Transmit => Token::TxAttached,
            };
            self.events.watch(new.as_raw_fd(), token)?;
        }
        *attached = kick;
        drop(attached);
        if queue.is_running() {
            // What was signalled on the old fd and not read yet.
            self.events.wake();
        }
        Ok(())
    }

    /// Send a frame that no driver sent; false if the port has no room now.
    pub(crate) fn send_frame(&self, frame: &[u8]) -> Result<bool> {
        if frame.is_empty() || frame.len() > MAX_FRAME_BYTES {
            return Err(Error::Backend {
                errno: libc::EMSGSIZE,
                message: format!(
                    "frame of {} bytes: expected 1 to {MAX_FRAME_BYTES}",
                    frame.len()
                ),
            });
        }
        let mut packet = vec![0; HEADER_BYTES];
        packet.extend_from_slice(frame);
        let sent = self.port.send_bytes(&packet);
        if sent == Sent::Blocked {
            return Ok(false);
        }
        count_own(&self.tx, sent, frame.len());
        let errno = match sent {
            Sent::Refused { errno, .. } => errno,
            Sent::Done | Sent::Blocked => return Ok(true),
        };
        Err(Error::Backend {
            errno,
            message: format!("the back end took no frame of {} bytes", frame.len()),
        })
    }

    /// The worker's: one batch in each direction; whether anything was done.
    pub(super) fn step(&self) -> bool {
        let mut guard = self.state.lock();
        guard.rhythm.wake();
        if let Some(hook) = guard.hooked.hook.clone() {
            self.hand_over(guard);
            let done = self.step_hooked(&hook);
            self.lock_as_worker().rhythm.worked(done);
            return done.is_any();
        }
        let state = &mut *guard;
        let sent = self.transmit(&mut state.tx, BATCH);
        let received = if state.is_active {
            self.receive(&mut state.rx, &mut state.inbox, BATCH)
        } else {
            None
        };
        state.tx_is_blocked = sent.is_some_and(|sent| sent.is_blocked);
        state.rx_ended = received.map(|received| received.ended);
        if let Some(Ended::BackendGone { errno }) = state.rx_ended {
            self.lose_port(state, errno);
        }
        let done = Done {
            sent: sent.map_or(0, |sent| sent.chains.into()),
            received: received.map_or(0, |received| received.packets.into()),
        };
        state.rhythm.worked(done);
        self.hand_over(guard);
        done.is_any()
    }

    /// The port is in error for good: waiting for it again would be a busy loop.
    pub(super) fn port_failed(&self) {
        let mut state = self.state.lock();
        // A detached queue of a tap is always in error; nobody waits for it once its pair is not active.
        if state.is_active {
            self.lose_port(&mut state, libc::ENODEV);
        }
    }

    pub(super) fn lose_port(&self, state: &mut State, errno: i32) {
        if std::mem::replace(&mut state.port_is_gone, true) {
            return;
        }
        self.rx.record(Violation {
            queue: i32::from(self.rx.index()),
            kind: "backend_gone",
            value: errno.unsigned_abs().into(),
            clause: "",
            detail: format!("the back end of this queue pair is gone (errno {errno})"),
        });
    }
}

impl State {
    pub(super) fn side<'a>(
        &mut self,
        pair: &'a Pair,
        direction: Direction,
    ) -> (&mut Side, &'a Queue) {
        match direction {
            Direction::Receive => (&mut self.rx, &pair.rx),
            Direction::Transmit => (&mut self.tx, &pair.tx),
        }
    }
}
