// SPDX-License-Identifier: Apache-2.0
//! The virtqueues of one device: queue pairs with their workers, and the control queue, which has none.

mod bell;
mod control;
mod fault;
mod pace;

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use crate::backend::Backend;
use crate::counters::Snapshot;
use crate::error::{Error, Result};
use crate::filter::ReceiveFilter;
use crate::memory::DmaSpace;
use crate::os::new_eventfd;
use crate::ring::{RingConfig, RingState};
use crate::violation::{Violation, ViolationLog};
use crate::worker::{Direction, PacketHook, Pair, Queue, Signal, Worker};
pub use crate::worker::{DEFAULT_COALESCE_US, DEFAULT_POLL_US};
pub use bell::QueueBell;
use control::Control;
use fault::Installed;

/// Virtqueues 2i receive, 2i + 1 transmit, and the last one, if there is one, is the control queue.
#[derive(Debug)]
pub struct DataPlane {
    space: Arc<DmaSpace>,
    pairs: Vec<Arc<Pair>>,
    control: Option<Control>,
    backend: Backend,
    /// Whether VIRTIO_NET_F_MQ holds: it decides what virtqueue 2 is.
    is_multiqueue: AtomicBool,
    violations: Arc<ViolationLog>,
    event: EventFd,
    faults: Mutex<Vec<Installed>>,
    /// None once the plane is closed.
    workers: Mutex<Option<Vec<Worker>>>,
}

/// Index of the control queue of a device with one queue pair (virtio 1.3 5.1.2).
const CONTROL_QUEUE_OF_ONE_PAIR: u16 = 2;

enum Target<'a> {
    Pair(&'a Arc<Pair>, Direction),
    Control(&'a Control),
}

impl Target<'_> {
    fn queue(&self) -> &Queue {
        match self {
            Self::Pair(pair, direction) => pair.queue(*direction),
            Self::Control(control) => control.queue(),
        }
    }
}

impl DataPlane {
    /// All queues stopped, all workers asleep.
    ///
    /// Errors: fewer ports than queue pairs, or the system gives no more threads or file descriptors.
    pub fn new(
        space: Arc<DmaSpace>,
        backend: &Backend,
        queue_pairs: u16,
        has_control_queue: bool,
    ) -> Result<Self> {
        let violations = Arc::new(ViolationLog::default());
        let event = new_eventfd()?;
        violations.set_event(event.try_clone().ok());
        space.violations().set_event(event.try_clone().ok());
        let control = has_control_queue
            .then(|| Control::new(2 * queue_pairs, Arc::clone(&space), &violations))
            .transpose()?;
        let make_pair = |number: u16| {
            let port = backend.port(usize::from(number));
            let port = port.ok_or_else(|| too_few_ports(backend, queue_pairs))?;
            let pair = Pair::new(number, Arc::clone(&space), port, &violations)?;
            Ok(Arc::new(match &control {
                Some(control) if pair.rx.index() == CONTROL_QUEUE_OF_ONE_PAIR => {
                    pair.with_understudy(duplicate(&control.queue().kick)?)
                }
                _ => pair,
            }))
        };
        let pairs = (0..queue_pairs)
            .map(make_pair)
            .collect::<Result<Vec<_>>>()?;
        let workers = (0..queue_pairs)
            .zip(&pairs)
            .map(|(number, pair)| Worker::spawn(number, Arc::clone(pair)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            space,
            pairs,
            control,
            backend: backend.clone(),
            is_multiqueue: AtomicBool::new(true),
            violations,
            event,
            faults: Mutex::default(),
            workers: Mutex::new(Some(workers)),
        })
    }

    /// The virtqueue of this index, with the negotiated features.
    fn target(&self, index: u16) -> Result<Target<'_>> {
        let pairs = self.usable_pairs();
        self.find(index, pairs).ok_or_else(|| {
            let count = 2 * pairs.len() + usize::from(self.control.is_some());
            Error::State(format!(
                "queue {index} does not exist: expected less than {count}"
            ))
        })
    }

    /// What is behind the doorbell of this index, whatever was negotiated.
    fn place(&self, index: u16) -> Result<Target<'_>> {
        self.find(index, &self.pairs)
            .ok_or_else(|| Error::State(format!("there is no doorbell {index}")))
    }

    fn find<'a>(&'a self, index: u16, pairs: &'a [Arc<Pair>]) -> Option<Target<'a>> {
        let number = usize::from(index / 2);
        match (pairs.get(number), &self.control) {
            (Some(pair), _) if index % 2 == 0 => Some(Target::Pair(pair, Direction::Receive)),
            (Some(pair), _) => Some(Target::Pair(pair, Direction::Transmit)),
            (None, Some(control)) if usize::from(index) == 2 * pairs.len() => {
                Some(Target::Control(control))
            }
            _ => None,
        }
    }

    fn usable_pairs(&self) -> &[Arc<Pair>] {
        let count = if self.is_multiqueue.load(Ordering::Acquire) {
            self.pairs.len()
        } else {
            1.min(self.pairs.len())
        };
        &self.pairs[..count]
    }

    /// Whether VIRTIO_NET_F_MQ was negotiated (it is so at first). Without it there is one queue pair, and the control
    /// queue is virtqueue 2, whose doorbell stays the one that was handed out (virtio 1.3 5.1.2).
    ///
    /// Errors: a queue runs.
    pub fn set_multiqueue(&self, is_multiqueue: bool) -> Result<()> {
        let workers = self.workers.lock();
        if let Some(queue) = self.queues().find(|queue| queue.is_running()) {
            return Err(Error::State(format!(
                "queue {} runs: what the queues are can't change now",
                queue.index()
            )));
        }
        self.is_multiqueue.store(is_multiqueue, Ordering::Release);
        let pairs = self.usable_pairs().len();
        if let Some(control) = &self.control {
            control.queue().set_index(2 * pairs as u16);
        }
        if let Some(second) = self.pairs.get(1) {
            second.set_understudy(!is_multiqueue);
        }
        drop(workers);
        Ok(())
    }

    /// Pass only these packets to the driver. On return it holds for every packet that comes.
    pub fn set_receive_filter(&self, filter: ReceiveFilter) {
        let filter = Arc::new(filter);
        for pair in &self.pairs {
            pair.set_receive_filter(Arc::clone(&filter));
        }
    }

    /// Show each packet to this hook from now on; None: to none. On return an earlier one is not being called any
    /// more, unless it is the caller.
    pub fn set_packet_hook(&self, hook: Option<&Arc<dyn PacketHook>>) {
        for pair in &self.pairs {
            pair.set_packet_hook(hook.cloned());
        }
    }

    /// Let only the first `count` pairs receive from now on (virtio 1.3 5.1.6.5.5). On return nothing is received on
    /// the others any more; what had come for them was delivered while buffers lasted.
    ///
    /// Errors: 0, or more pairs than there are.
    pub fn set_active_pairs(&self, count: u16) -> Result<()> {
        if count == 0 || usize::from(count) > self.pairs.len() {
            return Err(Error::State(format!(
                "{count} active queue pairs: expected 1 to {}",
                self.pairs.len()
            )));
        }
        self.backend.set_active_pairs(count);
        for (number, pair) in self.pairs.iter().enumerate() {
            pair.set_active(number < usize::from(count));
        }
        Ok(())
    }

    fn queues(&self) -> impl Iterator<Item = &Queue> {
        let pairs = self.pairs.iter().flat_map(|pair| [&pair.rx, &pair.tx]);
        pairs.chain(self.control.iter().map(Control::queue))
    }

    /// Start a stopped queue. It is scanned at once, without waiting for a kick; one whose state
    /// is restored raises an interrupt.
    ///
    /// Errors: it runs, the plane is closed, or `config` does not make a ring.
    pub fn start_queue(&self, index: u16, config: &RingConfig) -> Result<()> {
        let workers = self.workers.lock();
        if workers.is_none() {
            return Err(Error::State(format!(
                "queue {index} can't be started: the data plane is closed"
            )));
        }
        match self.target(index)? {
            Target::Pair(pair, direction) => pair.start(direction, config),
            Target::Control(control) => control.start(config),
        }
    }

    /// Drain and stop a queue. Afterwards none of its DMA is in flight, none follows and its marks are made. A queue
    /// that is stopped answers its last state; one that was broken is mended by it.
    pub fn stop_queue(&self, index: u16) -> Result<RingState> {
        Ok(match self.target(index)? {
            Target::Pair(pair, direction) => pair.stop(direction),
            Target::Control(control) => control.stop(),
        })
    }

    /// Stop a queue where it stands: what is available and not taken stays as it is. Otherwise as [`Self::stop_queue`].
    pub fn halt_queue(&self, index: u16) -> Result<RingState> {
        Ok(match self.target(index)? {
            Target::Pair(pair, direction) => pair.halt(direction),
            Target::Control(control) => control.stop(),
        })
    }

    /// Where a running queue stands, or a stopped one stopped.
    pub fn ring_state(&self, index: u16) -> Result<RingState> {
        Ok(match self.target(index)? {
            Target::Pair(pair, direction) => pair.ring_state(direction),
            Target::Control(control) => control.ring_state(),
        })
    }

    /// Whether a queue was started and is neither stopped nor broken.
    pub fn is_running(&self, index: u16) -> Result<bool> {
        Ok(self.target(index)?.queue().is_running())
    }

    /// Take kicks from this eventfd besides the doorbell's own; None: only from its own. Nobody waits for the kicks of
    /// the control queue in here.
    ///
    /// Errors: the fd can't be waited on.
    pub fn set_kick(&self, index: u16, fd: Option<OwnedFd>) -> Result<()> {
        match self.place(index)? {
            Target::Pair(pair, direction) => pair.set_kick(direction, fd),
            Target::Control(control) => {
                *control.queue().attached_kick.lock() = fd.map(Signal::new).transpose()?;
                Ok(())
            }
        }
    }

    /// Kick a queue.
    pub fn kick(&self, index: u16) -> Result<()> {
        // Only a counter at its maximum makes the write fail, and then it is signalled already.
        let _ = self.target(index)?.queue().kick.write(1);
        Ok(())
    }

    /// The eventfd that does what this doorbell does, valid while the plane lives.
    pub fn kick_fd(&self, index: u16) -> Result<RawFd> {
        Ok(self.place(index)?.queue().kick.as_raw_fd())
    }

    /// Signal this eventfd when used buffers are to be announced. What was due while there was none is raised now.
    ///
    /// Errors: the fd takes no flags.
    pub fn set_call(&self, index: u16, fd: Option<OwnedFd>) -> Result<()> {
        let call = fd.map(Signal::new).transpose()?;
        self.target(index)?.queue().call.set(call);
        Ok(())
    }

    /// Whether a queue has something to announce and no eventfd to do it by.
    pub fn is_interrupt_due(&self, index: u16) -> Result<bool> {
        Ok(self.target(index)?.queue().call.is_due())
    }

    /// Raise a queue's interrupt, whatever suppression says.
    pub fn interrupt(&self, index: u16) -> Result<()> {
        self.target(index)?.queue().interrupt();
        Ok(())
    }

    /// Serve every available chain of the control queue: its readable bytes go to `handler`, what that returns goes
    /// into its writable part. How many were served.
    ///
    /// No lock of the plane and no guard of the memory is held while the handler runs. When it fails, its chain is
    /// completed with nothing written. A call from within the handler, and one without a running control queue,
    /// serves nothing.
    pub fn process_control<E: From<Error>>(
        &self,
        handler: impl FnMut(&[u8]) -> std::result::Result<Vec<u8>, E>,
    ) -> std::result::Result<u32, E> {
        match &self.control {
            Some(control) => control.process(handler),
            None => Err(Error::State("the device has no control queue".into()).into()),
        }
    }

    /// Send one frame, without a virtio-net header, through the first port, without waiting; false if it has no
    /// room now.
    ///
    /// Errors: the back end does not take it.
    pub fn transmit(&self, frame: &[u8]) -> Result<bool> {
        match self.pairs.first() {
            Some(pair) => pair.send_frame(frame),
            None => Err(Error::State("the device has no queue pair".into())),
        }
    }

    /// Drop what the back end has queued for reception; how many packets.
    pub fn flush_backend(&self) -> u64 {
        self.pairs.iter().map(|pair| pair.flush()).sum()
    }

    /// Names and values of a queue's counters.
    pub fn queue_counters(&self, index: u16) -> Result<Snapshot> {
        Ok(self.target(index)?.queue().counters.snapshot())
    }

    /// An eventfd that is signalled when a violation is recorded, here or in the DMA space; valid while the plane
    /// lives.
    pub fn event_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Remove and return the recorded violations of the queues.
    pub fn take_violations(&self) -> Vec<Violation> {
        self.violations.take()
    }

    /// The queues that a fault in their ring has stopped since the last call, restarted or not.
    pub fn take_broken_queues(&self) -> Vec<u16> {
        let broken = self.queues().filter(|queue| queue.take_broken());
        broken.map(Queue::index).collect()
    }

    /// Stop every queue and end every thread. Nothing can be started afterwards.
    pub fn close(&self) {
        let Some(workers) = self.workers.lock().take() else {
            return;
        };
        for pair in &self.pairs {
            pair.stop(Direction::Receive);
            pair.stop(Direction::Transmit);
        }
        if let Some(control) = &self.control {
            control.stop();
        }
        self.space.forget_plane();
        drop(workers);
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.close();
    }
}

fn duplicate(eventfd: &EventFd) -> Result<EventFd> {
    eventfd
        .try_clone()
        .map_err(|error| Error::State(format!("no eventfd can be made: {error}")))
}

fn too_few_ports(backend: &Backend, queue_pairs: u16) -> Error {
    Error::Backend {
        errno: libc::EINVAL,
        message: format!(
            "back end with {} queue pairs: expected at least {queue_pairs}",
            backend.queue_pairs()
        ),
    }
}
