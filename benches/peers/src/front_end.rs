// SPDX-License-Identifier: Apache-2.0
//! A vhost-user front end that does nothing but drive the rings of a net device as fast as it can.

use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::Value;
use vhost::vhost_user::message::VhostUserVirtioFeatures;

use crate::arguments::Arguments;
use crate::burst::Burst;
use crate::clock::Clock;
use crate::driver::{Direction, Queue, QueueShape};
use crate::error::{Error, Result};
use crate::flood::Frames;
use crate::memory::Memory;
use crate::packet;
use crate::session::Session;

const F_VERSION_1: u64 = 1 << 32;
const F_RING_PACKED: u64 = 1 << 34;
const F_MRG_RXBUF: u64 = 1 << 15;
/// CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4.
const GSO_FEATURES: u64 = 1 | 1 << 1 | 1 << 7 | 1 << 11;
const DIRECTIONS: [&str; 4] = ["tx", "rx", "both", "loop"];
const RECEIVE_BUFFER_BYTES: usize = 2048 - 64;
/// A full look at the rings between two looks at the clock.
const TURNS: u32 = 64;
const PAUSE: Duration = Duration::from_micros(20);
const WARM_UP_SECONDS: f64 = 0.1;
/// How long the first frame may take: a device may start its rings later than it was asked to.
const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_LOOK_SECONDS: f64 = 0.001;

struct Options {
    socket: String,
    direction: String,
    bytes: usize,
    seconds: f64,
    is_packed: bool,
    is_gso: bool,
    is_logging: bool,
    is_gentle: bool,
    hugepages: bool,
    pairs: usize,
    size: u16,
    burst: Option<Burst>,
}

impl Options {
    fn parse(arguments: &mut Arguments) -> Result<Self> {
        let direction = arguments.text("direction")?;
        let bytes = arguments.number("bytes")?;
        let is_gso = arguments.switch("gso");
        let is_gentle = arguments.switch("gentle");
        let interface = arguments.text_or("burst", "");
        let burst = Burst {
            what: Frames {
                bytes,
                is_gso,
                flows: arguments.number_or("flows", 0)?,
            },
            frames: arguments.number_or("frames", 0)?,
            is_both: direction == "both",
            pid: arguments.number_or("pid", 0)?,
            is_lossy: arguments.switch("lossy"),
            is_gentle,
            interface,
        };
        let options = Self {
            socket: arguments.text("socket")?,
            direction,
            bytes,
            seconds: arguments.number("seconds")?,
            is_packed: arguments.text_or("ring", "split") == "packed",
            is_gso,
            is_logging: arguments.switch("log"),
            is_gentle,
            hugepages: arguments.switch("hugepages"),
            pairs: arguments.number_or("pairs", 1)?,
            size: arguments.number_or("size", 256)?,
            burst: Some(burst).filter(|burst| !burst.interface.is_empty()),
        };
        arguments.end()?;
        if !DIRECTIONS.contains(&options.direction.as_str()) {
            return Err(Error::Usage(format!(
                "--direction {}: expected one of {DIRECTIONS:?}",
                options.direction
            )));
        }
        if matches!(&options.burst, Some(burst) if burst.pid <= 1 || burst.frames == 0) {
            return Err(Error::Usage(
                "--burst needs --pid, the device's process, and --frames".into(),
            ));
        }
        Ok(options)
    }

    fn features(&self) -> u64 {
        let mut features = F_VERSION_1 | F_MRG_RXBUF;
        features |= VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        features |= if self.is_packed { F_RING_PACKED } else { 0 };
        features |= if self.is_gso { GSO_FEATURES } else { 0 };
        features
    }

    fn is_driven(&self, index: usize) -> bool {
        match self.direction.as_str() {
            "rx" => index % 2 == 0,
            "tx" => index % 2 == 1,
            _ => true,
        }
    }

    /// Whether what comes out of a queue is counted: of frames that come back they are counted once, on receipt.
    fn is_counted(&self, index: usize) -> bool {
        self.direction != "loop" || index % 2 == 0
    }
}

/// `front-end`.
pub fn run(arguments: &mut Arguments) -> Result<Value> {
    let options = Options::parse(arguments)?;
    let packet = packet::make(options.bytes, options.is_gso);
    let buffer_bytes = packet.len().max(RECEIVE_BUFFER_BYTES);
    let ring_bytes = usize::from(options.size) * 40 + 16384;
    let per_queue = buffer_bytes.next_multiple_of(64) * usize::from(options.size) + ring_bytes;
    let memory = Rc::new(Memory::new(
        2 * options.pairs * per_queue,
        options.hugepages,
    )?);
    let shape = QueueShape {
        size: options.size,
        is_packed: options.is_packed,
        buffer_bytes,
    };
    let mut session = Session::connect(&options.socket, 2 * options.pairs)?;
    let mut queues = make_queues(&memory, &shape, &packet, options.pairs)?;
    session.start(options.features(), &memory, &queues, options.is_logging)?;
    let sample = match &options.burst {
        Some(burst) => burst.run(&mut queues, options.seconds)?,
        None => drive(&options, &mut queues)?,
    };
    session.stop()?;
    Ok(sample)
}

fn make_queues(
    memory: &Rc<Memory>,
    shape: &QueueShape,
    packet: &[u8],
    pairs: usize,
) -> Result<Vec<Queue>> {
    (0..2 * pairs)
        .map(|index| match index % 2 {
            0 => Queue::new(memory, shape, Direction::Receive, packet),
            _ => Queue::new(memory, shape, Direction::Transmit, packet),
        })
        .collect()
}

/// Turn the rings until the time is over.
fn drive(options: &Options, queues: &mut [Queue]) -> Result<Value> {
    let mut driven: Vec<(usize, &mut Queue)> = queues
        .iter_mut()
        .enumerate()
        .filter(|(index, _)| options.is_driven(*index))
        .collect();
    driven.iter_mut().for_each(|(_, queue)| queue.fill());
    let deadline = Instant::now() + PATIENCE;
    while counted(options, &driven) == 0 {
        if Instant::now() > deadline {
            return Err(Error::Peer(format!(
                "{} moves no frame of {}",
                options.socket, options.direction
            )));
        }
        turn_for(FIRST_LOOK_SECONDS, options, &mut driven);
    }
    turn_for(WARM_UP_SECONDS, options, &mut driven);
    let before = counted(options, &driven);
    let clock = turn_for(options.seconds, options, &mut driven);
    Ok(clock.report(counted(options, &driven) - before))
}

fn counted(options: &Options, queues: &[(usize, &mut Queue)]) -> u64 {
    queues
        .iter()
        .filter(|(index, _)| options.is_counted(*index))
        .map(|(_, queue)| queue.frames)
        .sum()
}

fn turn_for(seconds: f64, options: &Options, queues: &mut [(usize, &mut Queue)]) -> Clock {
    let clock = Clock::start(seconds);
    while !clock.is_over() {
        for _ in 0..TURNS {
            let mut worked = 0;
            for (_, queue) in &mut *queues {
                worked += queue.turn();
            }
            match worked {
                // The device may want this processor, too.
                0 if options.is_gentle => std::thread::sleep(PAUSE),
                0 => std::hint::spin_loop(),
                _ => {}
            }
        }
    }
    clock
}
