// SPDX-License-Identifier: Apache-2.0
//! How fast a device and a front end that is not ours empty the queue of the device's tap: it is filled while both
//! stand still, then the kernel's counters of the tap are watched until nothing moves any more.

use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::arguments::Arguments;
use crate::error::{Error, Result};
use crate::flood::{Flood, Frames};
use crate::frozen::Frozen;

const LOOK_EVERY: Duration = Duration::from_micros(200);
/// How long the first frame may take: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so long without another there comes none any more.
const STILL_AFTER: Duration = Duration::from_millis(50);
const COUNTERS: &str = "/proc/thread-self/net/dev";
const SENT_BY_DEVICE: usize = 1;
const READ_BY_DEVICE: usize = 9;

/// Frames that a device has written to its tap and read from it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Moved {
    written: u64,
    read: u64,
}

/// `tap-drain`: fill the queue and watch it become empty, until that took `seconds`.
pub fn run(arguments: &mut Arguments) -> Result<Value> {
    let interface = arguments.text("tap")?;
    let what = Frames {
        bytes: arguments.number("bytes")?,
        is_gso: arguments.switch("gso"),
        flows: arguments.number_or("flows", 0)?,
    };
    let frames = arguments.number("frames")?;
    let wanted = Duration::from_secs_f64(arguments.number("seconds")?);
    let is_both = arguments.switch("both");
    let (device, front_end) = (arguments.number("pid")?, arguments.number("front-end")?);
    arguments.end()?;
    let flood = Flood::new(&interface, what)?;
    let (mut read, mut written, mut emptying) = (0, 0, Duration::ZERO);
    while emptying < wanted {
        let standing = [Frozen::new(device)?, Frozen::new(front_end)?];
        let before = moved(&interface)?;
        let filled = flood.fill(frames);
        let started = Instant::now();
        drop(standing);
        let end = Moved {
            read: before.read + filled,
            written: before.written + if is_both { filled } else { 0 },
        };
        let (after, last) = until_still(&interface, before, end)?;
        if after.read == before.read {
            return Err(Error::Peer(format!(
                "no frame is read from {interface}, though its queue is full"
            )));
        }
        if filled == 0 {
            // It was full of frames that came late.
            continue;
        }
        emptying += last - started;
        read += after.read - before.read;
        written += after.written - before.written;
    }
    Ok(json!({ "read": read, "written": written, "seconds": emptying.as_secs_f64() }))
}

/// The counters when they have come to the end or to rest, and when they last changed.
fn until_still(interface: &str, before: Moved, end: Moved) -> Result<(Moved, Instant)> {
    let (mut seen, mut last) = (before, Instant::now());
    let is_over =
        |seen: Moved| seen != before && seen.read >= end.read && seen.written >= end.written;
    while !is_over(seen)
        && last.elapsed()
            < if seen == before {
                PATIENCE
            } else {
                STILL_AFTER
            }
    {
        std::thread::sleep(LOOK_EVERY);
        let now = moved(interface)?;
        if now != seen {
            (seen, last) = (now, Instant::now());
        }
    }
    Ok((seen, last))
}

fn moved(interface: &str) -> Result<Moved> {
    let text = std::fs::read_to_string(COUNTERS).map_err(Error::system(COUNTERS))?;
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
    let fields: Vec<u64> = line
        .map(|line| line.split_whitespace().flat_map(str::parse).collect())
        .unwrap_or_default();
    match (fields.get(SENT_BY_DEVICE), fields.get(READ_BY_DEVICE)) {
        (Some(&written), Some(&read)) => Ok(Moved { written, read }),
        _ => Err(Error::Peer(format!("{COUNTERS} has no {interface}"))),
    }
}
