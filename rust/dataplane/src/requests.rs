// SPDX-License-Identifier: Apache-2.0
//! io_uring as packets go through it: several requests in one system call, none of which waits, and all of which are
//! over when the call returns.
//!
//! The kernel starts the requests of a call one after the other, in the order in which they were queued. Each of them
//! says that it must not wait (that the descriptor does not block is not enough): one that would have to fails with
//! EAGAIN. What that saves is more than the way into the kernel: in a process of several threads each system call counts
//! the references to the file, as an atomic.

use std::io;

use io_uring::{IoUring, Probe};

/// A ring for so many requests at a time. Errors: the system gives none, or not one for these opcodes.
pub(crate) fn new_ring(entries: usize, opcodes: &[u8]) -> io::Result<IoUring> {
    let ring = IoUring::new(entries as u32)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if opcodes.iter().all(|code| probe.is_supported(*code)) {
        Ok(ring)
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Hand in what is queued, and wait until nothing is under way. The user data of a request is the place of its result,
/// which is what a system call returns. False: the ring took only a part of it, and is not good for anything any more;
/// the results of the rest stay as they are.
pub(crate) fn complete(ring: &mut IoUring, results: &mut [isize]) -> bool {
    let mut left = results.len();
    while left > 0 {
        let entered = ring.submit_and_wait(left);
        for entry in ring.completion() {
            if let Some(result) = results.get_mut(entry.user_data() as usize) {
                *result = entry.result() as isize;
                left -= 1;
            }
        }
        match entered {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                let not_taken = ring.submission().len();
                if not_taken == left {
                    return false;
                }
            }
            _ => {}
        }
    }
    true
}
