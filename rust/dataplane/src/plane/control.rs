// SPDX-License-Identifier: Apache-2.0
//! The control queue: its chains are served on the caller's thread, by a handler that knows the commands.

use std::cell::Cell;
use std::sync::Arc;

use parking_lot::{Mutex, ReentrantMutex};

use crate::counters::Drop as DropReason;
use crate::error::{Error, Result};
use crate::memory::{DmaSpace, Memory};
use crate::ring::{Chain, Ring, RingConfig, RingResult, RingState};
use crate::violation::{Violation, ViolationLog};
use crate::worker::{Queue, QueueFault, Slot};

/// The longest command: the MAC tables of every real driver fit many times.
const MAX_COMMAND_BYTES: u64 = 64 * 1024;
/// Chains served in one call, so that a driver that adds without end does not hold the caller for ever.
const MAX_CHAINS: u32 = 1 << 16;

#[derive(Debug)]
pub(super) struct Control {
    space: Arc<DmaSpace>,
    queue: Queue,
    slot: Mutex<Slot>,
    /// Whether the thread that holds it is in a handler.
    serving: ReentrantMutex<Cell<bool>>,
}

/// A chain that was taken, of the ring of this generation.
struct Command {
    chain: Chain,
    bytes: Vec<u8>,
    generation: u64,
}

enum Next {
    Command(Command),
    /// One was refused, and completed.
    Refused,
    Nothing,
}

impl Control {
    pub(super) fn new(
        index: u16,
        space: Arc<DmaSpace>,
        violations: &Arc<ViolationLog>,
    ) -> Result<Self> {
        Ok(Self {
            space,
            queue: Queue::new(index, Arc::clone(violations))?,
            slot: Mutex::default(),
            serving: ReentrantMutex::new(Cell::new(false)),
        })
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The scan that a start needs is the caller's [`Self::process`], which the signalled kick asks for.
    pub(super) fn start(&self, config: &RingConfig) -> Result<()> {
        self.slot.lock().start(&self.queue, &self.space, config)?;
        let _ = self.queue.kick.write(1);
        Ok(())
    }

    /// A command that is being handled counts as not taken: it is not completed here, and served again elsewhere.
    pub(super) fn stop(&self) -> RingState {
        self.slot.lock().stop(&self.queue)
    }

    pub(super) fn install_fault(&self, fault: QueueFault) {
        self.slot.lock().install_fault(&self.queue, fault);
    }

    pub(super) fn ring_state(&self) -> RingState {
        self.slot.lock().state()
    }

    pub(super) fn process<E: From<Error>>(
        &self,
        mut handler: impl FnMut(&[u8]) -> std::result::Result<Vec<u8>, E>,
    ) -> std::result::Result<u32, E> {
        let serving = self.serving.lock();
        if serving.replace(true) {
            return Ok(0);
        }
        let mut served = 0;
        let result = loop {
            if served == MAX_CHAINS {
                break Ok(served);
            }
            match self.next() {
                Next::Nothing => break Ok(served),
                Next::Refused => {}
                Next::Command(command) => {
                    let reply = handler(&command.bytes);
                    self.complete(&command, reply.as_deref().unwrap_or(&[]));
                    if let Err(error) = reply {
                        break Err(error);
                    }
                }
            }
            served += 1;
        };
        serving.set(false);
        result
    }

    /// Run `work` on the ring under the lock and one memory guard; a fault breaks the queue.
    fn with_ring<T>(
        &self,
        slot: &mut Slot,
        work: impl FnOnce(&mut dyn Ring, &Memory<'_>) -> RingResult<T>,
    ) -> Option<T> {
        let ring = slot.ring.as_deref_mut()?;
        let memory = self.space.lock();
        let result = work(ring, &memory);
        self.queue.counters.dirtied(&memory);
        drop(memory);
        result
            .map_err(|fault| slot.break_down(&self.queue, &self.space, fault))
            .ok()
    }

    fn next(&self) -> Next {
        let mut slot = self.slot.lock();
        let mut chain = Chain::default();
        let popped = self.with_ring(&mut slot, |ring, memory| {
            Ok(ring.pop(memory, &mut chain)?
                || (ring.enable_kicks(memory)? && ring.pop(memory, &mut chain)?))
        });
        if popped != Some(true) {
            return Next::Nothing;
        }
        if chain.readable_len > MAX_COMMAND_BYTES {
            self.refuse(&mut slot, &chain);
            return Next::Refused;
        }
        let mut bytes = Vec::new();
        let gathered = self.with_ring(&mut slot, |_, memory| {
            Ok(memory.gather(&chain.readable, &mut bytes)?)
        });
        if gathered.is_none() {
            return Next::Nothing;
        }
        Next::Command(Command {
            chain,
            bytes,
            generation: slot.generation,
        })
    }

    fn refuse(&self, slot: &mut Slot, chain: &Chain) {
        self.queue.counters.dropped(DropReason::TooLong, 1);
        self.queue.record(Violation {
            queue: i32::from(self.queue.index()),
            kind: "control_length",
            value: chain.readable_len,
            clause: "virtio 1.3 5.1.6.5: struct virtio_net_ctrl",
            detail: format!(
                "control command of {} bytes: expected at most {MAX_COMMAND_BYTES}",
                chain.readable_len
            ),
        });
        self.finish(slot, chain, &[]);
    }

    fn complete(&self, command: &Command, reply: &[u8]) {
        let mut slot = self.slot.lock();
        if slot.generation != command.generation {
            return;
        }
        if reply.len() as u64 > command.chain.writable_len {
            self.queue.record(Violation {
                queue: i32::from(self.queue.index()),
                kind: "control_reply",
                value: command.chain.writable_len,
                clause: "virtio 1.3 5.1.6.5: command-specific-result and ack are device-writable",
                detail: format!(
                    "control command with {} writable bytes for a reply of {}",
                    command.chain.writable_len,
                    reply.len()
                ),
            });
        }
        self.finish(&mut slot, &command.chain, reply);
    }

    /// Write what fits, use the chain, tell the driver.
    fn finish(&self, slot: &mut Slot, chain: &Chain, reply: &[u8]) {
        let len = (reply.len() as u64).min(chain.writable_len) as usize;
        let interrupt = self.with_ring(slot, |ring, memory| {
            memory.scatter(&chain.writable, &reply[..len])?;
            ring.push_used(memory, chain.taken, len as u32)?;
            ring.publish(memory)
        });
        if let Some(interrupt) = interrupt {
            self.queue.counters.chain();
            if interrupt {
                self.queue.interrupt();
            }
        }
    }
}
