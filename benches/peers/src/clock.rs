// SPDX-License-Identifier: Apache-2.0
//! A measurement: how many frames in how long, and what it cost this process.

use std::time::{Duration, Instant};

use serde_json::{json, Value};

/// Frames are counted from here on.
pub struct Clock {
    started: Instant,
    cpu_ns: u64,
    end: Instant,
}

impl Clock {
    /// Measure for so many seconds.
    pub fn start(seconds: f64) -> Self {
        let started = Instant::now();
        Self {
            started,
            cpu_ns: cpu_ns(),
            end: started + Duration::from_secs_f64(seconds),
        }
    }

    /// Whether the time is over.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// The sample.
    pub fn report(&self, frames: u64) -> Value {
        let seconds = self.started.elapsed().as_secs_f64();
        json!({
            "frames": frames,
            "seconds": seconds,
            "frames_per_s": frames as f64 / seconds,
            "cpu_ns": cpu_ns() - self.cpu_ns,
        })
    }
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
