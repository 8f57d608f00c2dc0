// SPDX-License-Identifier: Apache-2.0
//! The virtqueues of one device: queue pairs with their workers, and the control queue, which has none.

mod control;

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::memory::DmaSpace;
use crate::ring::{RingConfig, RingState};
use crate::violation::{Violation, ViolationLog};
use crate::worker::{new_eventfd, Direction, Pair, Queue, Signal, Worker};
use control::Control;

/// Virtqueues 2i receive, 2i + 1 transmit, and the last one, if there is one, is the control queue.
#[derive(Debug)]
pub struct DataPlane {
    space: Arc<DmaSpace>,
    pairs: Vec<Arc<Pair>>,
    control: Option<Control>,
    violations: Arc<ViolationLog>,
    event: EventFd,
    /// None once the plane is closed.
    workers: Mutex<Option<Vec<Worker>>>,
}

enum Target<'a> {
    Pair(&'a Pair, Direction),
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
        let pairs = (0..queue_pairs)
            .map(|number| {
                let port = backend.port(usize::from(number));
                let port = port.ok_or_else(|| too_few_ports(backend, queue_pairs))?;
                Ok(Arc::new(Pair::new(
                    number,
                    Arc::clone(&space),
                    port,
                    &violations,
                )?))
            })
            .collect::<Result<Vec<_>>>()?;
        let control = has_control_queue
            .then(|| Control::new(2 * queue_pairs, Arc::clone(&space), &violations))
            .transpose()?;
        let workers = (0..queue_pairs)
            .zip(&pairs)
            .map(|(number, pair)| Worker::spawn(number, Arc::clone(pair)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            space,
            pairs,
            control,
            violations,
            event,
            workers: Mutex::new(Some(workers)),
        })
    }

    fn target(&self, index: u16) -> Result<Target<'_>> {
        let pair = usize::from(index / 2);
        match (self.pairs.get(pair), &self.control) {
            (Some(pair), _) if index % 2 == 0 => Ok(Target::Pair(pair, Direction::Receive)),
            (Some(pair), _) => Ok(Target::Pair(pair, Direction::Transmit)),
            (None, Some(control)) if control.queue().index == index => Ok(Target::Control(control)),
            _ => Err(Error::State(format!(
                "queue {index} does not exist: expected less than {}",
                self.num_queues()
            ))),
        }
    }

    fn num_queues(&self) -> u16 {
        2 * self.pairs.len() as u16 + u16::from(self.control.is_some())
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

    /// Take kicks from this eventfd besides the queue's own; None: only from its own. Nobody waits for the kicks of
    /// the control queue in here.
    ///
    /// Errors: the fd can't be waited on.
    pub fn set_kick(&self, index: u16, fd: Option<OwnedFd>) -> Result<()> {
        match self.target(index)? {
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

    /// The queue's own kick eventfd, valid while the plane lives.
    pub fn kick_fd(&self, index: u16) -> Result<RawFd> {
        Ok(self.target(index)?.queue().kick.as_raw_fd())
    }

    /// Signal this eventfd when used buffers are to be announced. What was due while there was none is raised now.
    ///
    /// Errors: the fd takes no flags.
    pub fn set_call(&self, index: u16, fd: Option<OwnedFd>) -> Result<()> {
        let call = fd.map(Signal::new).transpose()?;
        self.target(index)?.queue().call.set(call);
        Ok(())
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

    /// Send one frame, without a virtio-net header, through the first port.
    ///
    /// Errors: the back end does not take it.
    pub fn transmit(&self, frame: &[u8]) -> Result<()> {
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
    pub fn queue_counters(&self, index: u16) -> Result<[(&'static str, u64); 9]> {
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

    /// The queues that a fault in their ring has stopped.
    pub fn broken_queues(&self) -> Vec<u16> {
        let broken = self.queues().filter(|queue| queue.is_broken());
        broken.map(|queue| queue.index).collect()
    }

    /// Stop every queue and end every thread. Nothing can be started afterwards.
    pub fn close(&self) {
        let Some(workers) = self.workers.lock().take() else {
            return;
        };
        for index in 0..self.num_queues() {
            // Every index below num_queues exists.
            let _ = self.stop_queue(index);
        }
        self.space.violations().set_event(None);
        drop(workers);
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.close();
    }
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
