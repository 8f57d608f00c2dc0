// SPDX-License-Identifier: Apache-2.0
//! One run of traffic: what its threads share.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::receive::Received;
use crate::wire::MAX_FLOWS;

/// What the lab ordered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Order {
    /// Which run; 0 before the first.
    pub run_id: u64,
    /// Packets a second, all flows together.
    pub rate_pps: u32,
    /// Shortest payload in bytes.
    pub min_length: usize,
    /// Longest payload in bytes.
    pub max_length: usize,
    /// Numbered flows, each with a socket of its own.
    pub flows: usize,
    /// Seed of lengths and bodies.
    pub seed: u64,
}

/// One flow of a run, both ways.
#[derive(Default)]
pub struct Flow {
    /// Sequence numbers used up.
    pub sent: u64,
    /// The receive side.
    pub received: Received,
}

/// The TCP stream of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stream {
    /// Bytes that arrived as they should.
    pub received: u64,
    /// Bytes that the kernel took.
    pub sent: u64,
    /// Where the first wrong byte was.
    pub mismatch_at: Option<u64>,
    /// How far it has come.
    pub phase: Phase,
}

/// What a TCP stream has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// There is none in this run.
    #[default]
    None = 0,
    /// It runs.
    Open = 1,
    /// Both directions have ended in order.
    Ended = 2,
    /// It was reset, or an error ended it.
    Broken = 3,
}

/// A run's state.
pub struct Run {
    /// What was ordered.
    pub order: Order,
    /// Packets go out.
    pub sending: bool,
    /// Packets that the kernel did not take.
    pub send_errors: u32,
    /// Datagrams with a wrong length, checksum or number.
    pub corrupted: u32,
    /// Datagrams of another run or flow.
    pub foreign: u32,
    /// The flows.
    pub flows: Vec<Flow>,
    /// The TCP stream.
    pub stream: Stream,
}

impl Run {
    fn new(order: Order, sending: bool) -> Self {
        Self {
            order,
            sending,
            send_errors: 0,
            corrupted: 0,
            foreign: 0,
            flows: (0..order.flows).map(|_| Flow::default()).collect(),
            stream: Stream::default(),
        }
    }
}

/// The run that the threads share, and its clock.
pub struct Shared {
    run: Mutex<Run>,
    changed: Condvar,
    epoch: Instant,
}

impl Shared {
    /// Nothing ordered yet.
    pub fn new() -> Self {
        Self {
            run: Mutex::new(Run::new(Order::default(), false)),
            changed: Condvar::new(),
            epoch: Instant::now(),
        }
    }

    /// Nanoseconds on this machine's monotonic clock.
    pub fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// The run, locked.
    pub fn lock(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a run; the same one again changes nothing (its request was repeated).
    pub fn start(&self, order: Order) {
        let mut run = self.lock();
        if run.order.run_id != order.run_id {
            let flows = order.flows.clamp(1, MAX_FLOWS);
            *run = Run::new(Order { flows, ..order }, true);
            self.changed.notify_all();
        }
    }

    /// Ends the sending of this run.
    pub fn stop(&self) {
        self.lock().sending = false;
    }

    /// Whether this run still sends.
    pub fn is_sending(&self, run_id: u64) -> bool {
        let run = self.lock();
        run.sending && run.order.run_id == run_id
    }

    /// Waits until a run other than `known` is being sent on this flow.
    pub fn wait_for_other(&self, known: u64, flow: usize) -> Order {
        let mut run = self.lock();
        while !run.sending || run.order.run_id == known || flow >= run.flows.len() {
            run = self
                .changed
                .wait(run)
                .unwrap_or_else(PoisonError::into_inner);
        }
        run.order
    }

    /// Takes the next sequence number of a flow, and the echo to send with it; None when the run is over.
    pub fn take_sequence(&self, run_id: u64, flow: usize) -> Option<(u64, Option<(u64, u64)>)> {
        let mut run = self.lock();
        if !run.sending || run.order.run_id != run_id {
            return None;
        }
        let flow = run.flows.get_mut(flow)?;
        flow.sent += 1;
        Some((flow.sent - 1, flow.received.echo(Instant::now())))
    }

    /// Changes the TCP stream of a run, if it still is the run.
    pub fn update_stream(&self, run_id: u64, change: impl FnOnce(&mut Stream)) {
        let mut run = self.lock();
        if run.order.run_id == run_id {
            change(&mut run.stream);
        }
    }
}
