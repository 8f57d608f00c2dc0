// SPDX-License-Identifier: Apache-2.0
//! How fast a device empties the queue of its tap: the queue is filled while the device's process stands still, then
//! timed. Both ways: it also gets as many frames to send, and the time ends with the last one of either.

use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::clock::Waiting;
use crate::driver::Queue;
use crate::error::{Error, Result};
use crate::flood::{Flood, Frames};
use crate::frozen::Frozen;

/// How long a device may let us wait without a frame: for its link, or because the machine is busy.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so long without a frame those that a lossy device has not brought are taken for lost.
const LOST_AFTER: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_micros(20);

/// What is timed.
pub struct Burst {
    /// The interface of the device's tap.
    pub interface: String,
    /// What is sent on it.
    pub what: Frames,
    /// Frames of a filled queue; not more than the tap's queue takes.
    pub frames: u64,
    /// As many frames are sent by the device meanwhile.
    pub is_both: bool,
    /// The process of the device.
    pub pid: i32,
    /// Frames may get lost, and are not counted then. Of any other device that is an error.
    pub is_lossy: bool,
    /// Sleep where there is nothing to do: the device uses this processor, too.
    pub is_gentle: bool,
}

/// Frames of one emptying, and how long it took.
struct Emptied {
    frames: u64,
    elapsed: Duration,
}

impl Burst {
    /// Fill and empty, until that took `seconds` of emptying. Pairs of queues, receive first.
    pub fn run(&self, queues: &mut [Queue], seconds: f64) -> Result<Value> {
        let flood = Flood::new(&self.interface, self.what)?;
        self.wait_for_link(queues, &flood)?;
        let wanted = Duration::from_secs_f64(seconds);
        let (mut frames, mut emptying, mut lost) = (0, Duration::ZERO, 0);
        let mut waited_ns = 0;
        while emptying < wanted {
            let frozen = Frozen::new(self.pid)?;
            receiving(queues).for_each(|queue| {
                queue.turn();
            });
            let filled = flood.fill(self.frames);
            let waiting = Waiting::start();
            let started = Instant::now();
            frozen.thaw();
            if filled == 0 {
                self.settle(queues)?;
                continue;
            }
            let emptied = self.empty(queues, filled, started)?;
            emptying += emptied.elapsed;
            waited_ns += waiting.ns();
            frames += emptied.frames;
            lost += if self.is_both { 2 * filled } else { filled } - emptied.frames;
        }
        let seconds = emptying.as_secs_f64();
        Ok(json!({
            "frames": frames,
            "seconds": seconds,
            "frames_per_s": frames as f64 / seconds,
            "lost": lost,
            "waited_ns": waited_ns,
        }))
    }

    /// Until `filled` frames have come in, and with `is_both` as many were sent.
    fn empty(&self, queues: &mut [Queue], filled: u64, started: Instant) -> Result<Emptied> {
        let mut to_come = filled;
        let (mut to_offer, mut to_send) = if self.is_both {
            (filled, filled)
        } else {
            (0, 0)
        };
        let mut last = Instant::now();
        while to_come + to_send > 0 {
            let mut worked = 0;
            for queue in receiving(queues) {
                worked += u64::from(queue.turn());
            }
            to_come = to_come.saturating_sub(worked);
            for queue in sending(queues) {
                let sent = u64::from(queue.collect());
                to_offer -= u64::from(queue.offer(u16::try_from(to_offer).unwrap_or(u16::MAX)));
                to_send -= sent;
                worked += sent;
            }
            if worked > 0 {
                last = Instant::now();
            } else if self.is_lossy && to_send == 0 && last.elapsed() > LOST_AFTER {
                break;
            } else if last.elapsed() > PATIENCE {
                return Err(Error::Peer(format!(
                    "{to_come} frames that {} took do not come, {to_send} are not sent",
                    self.interface
                )));
            } else if self.is_gentle {
                std::thread::sleep(PAUSE);
            }
        }
        let wanted = if self.is_both { 2 * filled } else { filled };
        Ok(Emptied {
            frames: wanted - to_come,
            elapsed: last - started,
        })
    }

    /// A device that seemed to have lost frames was late, and its tap is full of them: take some.
    fn settle(&self, queues: &mut [Queue]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while receiving(queues).map(Queue::turn).sum::<u16>() == 0 {
            if Instant::now() > deadline {
                return Err(Error::Peer(format!(
                    "{} is full, and no frame comes out of it",
                    self.interface
                )));
            }
            std::thread::sleep(PAUSE);
        }
        std::thread::sleep(LOST_AFTER);
        Ok(())
    }

    /// A device plugs its cable in when its queues are on, which it does after we have asked for it, and what is sent
    /// before is lost. Return when a frame has come through and the queue is empty again.
    fn wait_for_link(&self, queues: &mut [Queue], flood: &Flood) -> Result<()> {
        receiving(queues).for_each(Queue::fill);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let sent = flood.fill(1);
            let next = Instant::now() + LOST_AFTER;
            while Instant::now() < next {
                if receiving(queues).map(Queue::turn).sum::<u16>() > 0 && sent > 0 {
                    return Ok(());
                }
                std::thread::sleep(PAUSE);
            }
        }
        Err(Error::Peer(format!(
            "no frame comes through {}: its link stays down",
            self.interface
        )))
    }
}

fn receiving(queues: &mut [Queue]) -> impl Iterator<Item = &mut Queue> {
    queues.iter_mut().step_by(2)
}

fn sending(queues: &mut [Queue]) -> impl Iterator<Item = &mut Queue> {
    queues.iter_mut().skip(1).step_by(2)
}
