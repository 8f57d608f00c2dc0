// SPDX-License-Identifier: Apache-2.0
//! Processes that stand still while their work is prepared, so that it is all there when they go on.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

const PATIENCE: Duration = Duration::from_secs(1);

/// Stopped until it is dropped or thawed.
pub struct Frozen {
    pid: libc::pid_t,
}

impl Frozen {
    /// Stop every thread of a process; return when they stand.
    pub fn new(pid: libc::pid_t) -> Result<Self> {
        signal(pid, libc::SIGSTOP)?;
        let frozen = Self { pid };
        let deadline = Instant::now() + PATIENCE;
        while !stands(pid)? {
            if Instant::now() > deadline {
                return Err(Error::Peer(format!("process {pid} does not stop")));
            }
            std::thread::yield_now();
        }
        Ok(frozen)
    }

    /// It goes on.
    pub fn thaw(self) {}
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // One that has gone does not have to go on.
        let _ = signal(self.pid, libc::SIGCONT);
    }
}

fn signal(pid: libc::pid_t, number: libc::c_int) -> Result<()> {
    // SAFETY: kill takes no pointer.
    if unsafe { libc::kill(pid, number) } != 0 {
        return Err(Error::last(format!("signal {number} to process {pid}")));
    }
    Ok(())
}

/// Whether every thread is in the state T (proc(5), /proc/pid/stat).
fn stands(pid: libc::pid_t) -> Result<bool> {
    let directory = format!("/proc/{pid}/task");
    for task in std::fs::read_dir(&directory).map_err(Error::system(directory))? {
        let path = task.map_err(Error::system("task"))?.path().join("stat");
        // A thread may end between the listing and this.
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        let state = text
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        if state != Some('T') {
            return Ok(false);
        }
    }
    Ok(true)
}
