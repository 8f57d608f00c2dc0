// SPDX-License-Identifier: Apache-2.0
//! How fast a device empties the queue of its tap: the queue is filled while no buffer is offered, then timed.

use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::driver::Queue;
use crate::error::{Error, Result};
use crate::flood::Flood;

/// Less than the queue of the tap takes (`QUEUE_FRAMES` of the bench).
const FRAMES: u64 = 8192;
/// How long a device may let us wait without a frame: for its link, or because the machine is busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// Fill and empty, until that took `seconds` of emptying.
pub fn run(receive: &mut Queue, interface: &str, bytes: usize, seconds: f64) -> Result<Value> {
    let flood = Flood::new(interface, bytes)?;
    wait_for_link(receive, &flood, interface)?;
    let wanted = Duration::from_secs_f64(seconds);
    let (mut frames, mut emptying) = (0, Duration::ZERO);
    while emptying < wanted {
        let end = receive.frames + flood.fill(FRAMES);
        // What went into the buffers that were on offer already is not measured.
        receive.collect();
        let before = receive.frames;
        let started = Instant::now();
        receive.fill();
        empty(receive, end, interface)?;
        emptying += started.elapsed();
        frames += receive.frames - before;
    }
    let seconds = emptying.as_secs_f64();
    Ok(json!({
        "frames": frames,
        "seconds": seconds,
        "frames_per_s": frames as f64 / seconds,
    }))
}

/// A device plugs its cable in when its queues are on, which it does after we have asked for it, and what is sent
/// before is lost. Return when frames come through and the queue is empty again.
fn wait_for_link(receive: &mut Queue, flood: &Flood, interface: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while flood.fill(1) == 0 {
        if Instant::now() > deadline {
            return Err(Error::Peer(format!(
                "{interface} takes no frame: its link stays down"
            )));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    receive.fill();
    let end = receive.frames + 1;
    empty(receive, end, interface)
}

/// Take frames until `end` have come in all.
fn empty(receive: &mut Queue, end: u64, interface: &str) -> Result<()> {
    let mut last = Instant::now();
    while receive.frames < end {
        if receive.turn() > 0 {
            last = Instant::now();
        } else if last.elapsed() > PATIENCE {
            return Err(Error::Peer(format!(
                "{} frames that {interface} took do not come",
                end - receive.frames
            )));
        }
    }
    Ok(())
}
