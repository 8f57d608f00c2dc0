// SPDX-License-Identifier: Apache-2.0
//! The work of a pair whose packets somebody wants to see, one packet at a time.
//!
//! The hook is called without the lock of the pair and without a guard of the guest's memory, so that it may take its
//! time and call whatever it likes. A chain whose packet the hook is looking at counts as not taken: a stop in the
//! meantime leaves it in the ring, and what the hook says then is forgotten.

use std::fmt::Debug;
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Instant;

use parking_lot::MutexGuard;

use super::coalesce::Done;
use super::inbox::Replaced;
use super::pair::{Pair, State, DRAIN_TIMEOUT};
use super::receive::{Batch, Ended, Fetched};
use crate::backend::Sent;
use crate::counters::{BatchCounters, Drop as DropReason};
use crate::net::{self, HEADER_BYTES};

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Transmitted.
    FromGuest,
    /// To be received.
    ToGuest,
}

/// Sees each packet, its virtio-net header included, and may change or drop it.
pub trait PacketHook: Send + Sync + Debug {
    /// False: drop the packet. Called by the worker of the pair, which waits.
    fn packet(&self, way: Way, pair: u16, packet: &mut Vec<u8>) -> bool;
}

/// What the lock of the pair guards of a hook.
#[derive(Debug, Default)]
pub(super) struct Hooked {
    pub(super) hook: Option<Arc<dyn PacketHook>>,
    /// The thread that a hook is being called on.
    caller: Option<ThreadId>,
    /// What the hook made of the packet of the next chain to transmit; None: it dropped it.
    ready: Option<(u64, Option<Vec<u8>>)>,
    buffer: Vec<u8>,
}

impl Hooked {
    fn is_called_elsewhere(&self) -> bool {
        self.caller
            .is_some_and(|caller| caller != thread::current().id())
    }
}

enum Taken {
    Nothing,
    /// A chain that holds no packet: it is done.
    Refused,
    Packet(u64, Vec<u8>),
}

enum Finished {
    Done {
        interrupt: bool,
    },
    /// The back end is full.
    Blocked,
}

impl Pair {
    /// On return an earlier hook is not being called any more, unless it is the caller.
    pub(crate) fn set_packet_hook(&self, hook: Option<Arc<dyn PacketHook>>) {
        let mut state = self.lock();
        state.hooked.hook = hook;
        state.hooked.ready = None;
        while state.hooked.is_called_elsewhere() {
            self.hook_returned.wait(&mut state);
        }
        drop(state);
        self.events.wake();
    }

    /// Let the worker send what is available now, for some time; a hook that asks for it can't have that.
    pub(super) fn wait_for_hook(&self, state: &mut MutexGuard<'_, State>) {
        if state.hooked.caller == Some(thread::current().id()) {
            return;
        }
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        self.events.wake();
        while self.has_chain(state) {
            if self.hook_returned.wait_until(state, deadline).timed_out() {
                return;
            }
        }
    }

    fn has_chain(&self, state: &mut State) -> bool {
        self.look(&mut state.tx, &self.tx, |ring, memory| {
            ring.has_available(memory)
        })
        .unwrap_or(false)
    }

    /// A packet in each direction; what was done.
    pub(super) fn step_hooked(&self, hook: &Arc<dyn PacketHook>) -> Done {
        let sent = self.hooked_transmit(hook);
        let received = self.hooked_receive(hook);
        self.hook_returned.notify_all();
        Done {
            sent: sent.into(),
            received: received.into(),
        }
    }

    fn hooked_transmit(&self, hook: &Arc<dyn PacketHook>) -> bool {
        let mut state = self.lock_as_worker();
        state.tx_is_blocked = false;
        if state.hooked.ready.is_none() {
            let (generation, packet) = match self.take_packet(&mut state) {
                Taken::Nothing => return false,
                Taken::Refused => return true,
                Taken::Packet(generation, packet) => (generation, packet),
            };
            let verdict = self.call(&mut state, hook, Way::FromGuest, packet);
            state.hooked.ready = Some((generation, verdict));
        }
        self.finish_chain(&mut state)
    }

    /// Copy the packet of the next chain, and leave that in the ring. One that is not mapped yet is asked for.
    fn take_packet(&self, state: &mut State) -> Taken {
        let State { tx, hooked, .. } = state;
        let generation = tx.slot.generation;
        let mut packet = std::mem::take(&mut hooked.buffer);
        packet.clear();
        let taken = self.attempt(tx, &self.tx, |ring, chain, memory| {
            if !ring.pop(memory, chain)? {
                return Ok(Taken::Nothing);
            }
            ring.unpop(chain.taken);
            Ok(match net::check_length(chain.readable_len) {
                Ok(()) => {
                    memory.gather(&chain.readable, &mut packet)?;
                    Taken::Packet(generation, packet)
                }
                Err(_) => Taken::Refused,
            })
        });
        if matches!(taken, Some(Taken::Refused)) {
            // The usual way counts what is wrong with it.
            self.transmit(&mut state.tx, 1);
        }
        taken.unwrap_or(Taken::Nothing)
    }

    /// Send what the hook has left of the packet, and use the chain that it came from. False: not yet.
    fn finish_chain(&self, state: &mut State) -> bool {
        let State { tx, hooked, .. } = state;
        let Some((generation, verdict)) = hooked.ready.take() else {
            return false;
        };
        if generation != tx.slot.generation {
            return true;
        }
        let finished = self.attempt(tx, &self.tx, |ring, chain, memory| {
            if !ring.pop(memory, chain)? {
                return Ok(Finished::Done { interrupt: false });
            }
            if !self.send_hooked(verdict.as_deref()) {
                ring.unpop(chain.taken);
                return Ok(Finished::Blocked);
            }
            ring.push_used(memory, chain.taken, 0)?;
            self.tx.counters.chain();
            let interrupt = ring.publish(memory)?;
            Ok(Finished::Done { interrupt })
        });
        if let Some(Finished::Done { interrupt }) = finished {
            if interrupt {
                self.tx.interrupt();
            }
            state.hooked.buffer = verdict.unwrap_or_default();
            return true;
        }
        // Blocked, or waiting for a map. If the ring broke, its generation is another one now.
        state.tx_is_blocked = finished.is_some();
        state.hooked.ready = Some((generation, verdict));
        false
    }

    /// False: the back end is full.
    fn send_hooked(&self, packet: Option<&[u8]>) -> bool {
        let counters = &self.tx.counters;
        let Some(packet) = packet else {
            counters.dropped(DropReason::Hook, 1);
            return true;
        };
        match self.port.send_bytes(packet) {
            Sent::Done => counters.packet((packet.len() - HEADER_BYTES) as u64),
            Sent::Blocked => return false,
            Sent::Refused { reason, .. } => counters.dropped(reason, 1),
        }
        true
    }

    fn hooked_receive(&self, hook: &Arc<dyn PacketHook>) -> bool {
        let mut state = self.lock_as_worker();
        if !state.is_active {
            state.rx_ended = None;
            return false;
        }
        if !state.inbox.is_hooked {
            match self.fetch(&mut state) {
                Some(Fetched::Ready) => {}
                Some(Fetched::Dropped) => return true,
                Some(Fetched::Nothing(ended)) => {
                    state.rx_ended = Some(ended);
                    if let Ended::BackendGone { errno } = ended {
                        self.lose_port(&mut state, errno);
                    }
                    return false;
                }
                None => {
                    state.rx_ended = None;
                    return false;
                }
            }
            let (epoch, packet) = state.inbox.copy();
            let verdict = self.call(&mut state, hook, Way::ToGuest, packet);
            match state.inbox.replace(epoch, verdict.as_deref()) {
                Replaced::Kept => {}
                Replaced::Dropped => {
                    self.rx.counters.dropped(DropReason::Hook, 1);
                    return true;
                }
                Replaced::Gone => return true,
            }
        }
        let State { rx, inbox, .. } = &mut *state;
        let received = self.receive(rx, inbox, 1);
        state.rx_ended = received.map(|received| received.ended);
        received.is_some_and(|received| received.packets > 0)
    }

    /// Read a packet ahead, for a hook. None: the queue is not running (any more), or waits for a map.
    fn fetch(&self, state: &mut State) -> Option<Fetched> {
        let State { rx, inbox, .. } = state;
        self.attempt(rx, &self.rx, |ring, chain, memory| {
            let mut batch = Batch {
                pair: self,
                memory,
                ring,
                chain,
                inbox,
                is_mergeable: false,
                port: self.port.receiver(),
                counters: BatchCounters::default(),
                port_ended: None,
                waits_for_maps: self.space.waits_for_maps(),
            };
            batch.fetch(1)
        })
    }

    /// Call the hook without the lock; None: it dropped the packet, or made something else of it.
    fn call(
        &self,
        state: &mut MutexGuard<'_, State>,
        hook: &Arc<dyn PacketHook>,
        way: Way,
        mut packet: Vec<u8>,
    ) -> Option<Vec<u8>> {
        state.hooked.caller = Some(thread::current().id());
        let pair = self.rx.index() / 2;
        let passes = MutexGuard::unlocked_fair(state, || hook.packet(way, pair, &mut packet));
        state.hooked.caller = None;
        self.hook_returned.notify_all();
        (passes && net::check_length(packet.len() as u64).is_ok()).then_some(packet)
    }
}
