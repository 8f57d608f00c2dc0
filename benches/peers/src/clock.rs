// SPDX-License-Identifier: Apache-2.0
//! A measurement: how many frames in how long, what it cost this process, and how long the thread that measures had to
//! wait for its processor.

use std::time::{Duration, Instant};

use serde_json::{json, Value};

const SCHEDSTAT: &str = "/proc/thread-self/schedstat";

/// Frames are counted from here on.
pub struct Clock {
    started: Instant,
    cpu_ns: u64,
    waited: Waiting,
    end: Instant,
}

impl Clock {
    /// Measure for so many seconds.
    pub fn start(seconds: f64) -> Self {
        let waited = Waiting::start();
        let started = Instant::now();
        Self {
            started,
            cpu_ns: cpu_ns(),
            waited,
            end: started + Duration::from_secs_f64(seconds),
        }
    }

    /// Whether the time is over.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Nanoseconds that this thread has waited so far, which has to be the one that has started the clock.
    pub fn waited_ns(&self) -> u64 {
        self.waited.ns()
    }

    /// The sample, taken by this thread alone.
    pub fn report(&self, frames: u64) -> Value {
        self.report_waited(frames, self.waited_ns())
    }

    /// The sample, taken by threads that have waited so long.
    pub fn report_waited(&self, frames: u64, waited_ns: u64) -> Value {
        let seconds = self.started.elapsed().as_secs_f64();
        json!({
            "frames": frames,
            "seconds": seconds,
            "frames_per_s": frames as f64 / seconds,
            "cpu_ns": cpu_ns() - self.cpu_ns,
            "waited_ns": waited_ns,
        })
    }
}

/// How long this thread is ready to run and another one has its processor.
pub struct Waiting {
    before: u64,
}

impl Waiting {
    /// From now on.
    pub fn start() -> Self {
        Self {
            before: run_delay_ns(),
        }
    }

    /// Nanoseconds until now.
    pub fn ns(&self) -> u64 {
        run_delay_ns().saturating_sub(self.before)
    }
}

/// The second number of schedstat (proc(5)): nanoseconds on a run queue. 0 for a kernel that does not tell.
fn run_delay_ns() -> u64 {
    let text = std::fs::read_to_string(SCHEDSTAT).unwrap_or_default();
    let waited = text.split_whitespace().nth(1);
    waited.and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// CPU time of this process, user and system.
fn cpu_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is that of a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
