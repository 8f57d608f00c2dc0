// SPDX-License-Identifier: Apache-2.0
//! Which processor a thread runs on.

use crate::error::{Error, Result};

/// Run this thread on `cpu` alone from now on.
pub fn pin(cpu: usize) -> Result<()> {
    // SAFETY: an empty set is all zeros; CPU_SET checks the bounds; the set is live for the call.
    let failed = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) != 0
    };
    if failed {
        return Err(Error::last(format!("processor {cpu}")));
    }
    Ok(())
}
