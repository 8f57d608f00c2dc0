// SPDX-License-Identifier: Apache-2.0
//! Packets from guest memory to a file descriptor, several in one system call.
//!
//! By io_uring ([`crate::requests`]) where there are enough of them, by a system call each where there are few.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{opcode, types, IoUring};

use super::access::Memory;
use super::io::{append, to_result, write_iovecs, IOV_MAX};
use super::Range;
use crate::error::Result;
use crate::requests::{complete, new_ring};

/// Packets of a burst, at most.
pub(crate) const BURST_PACKETS: usize = 64;
/// From so many on a ring is worth it; with four it costs as much as it saves.
const WORTHWHILE_PACKETS: usize = 8;

/// What a burst needs, kept from one to the next.
#[derive(Default)]
pub(crate) struct BurstWriter {
    ring: Ring,
    pieces: Vec<libc::iovec>,
    /// Where the pieces of each packet begin, and how many they are.
    packets: Vec<(usize, usize)>,
    /// What each packet came to, as a system call returns it.
    results: Vec<isize>,
}

// SAFETY: what makes it not Send are the addresses in `pieces`, and those are looked at during a burst only.
unsafe impl Send for BurstWriter {}

#[derive(Default)]
enum Ring {
    #[default]
    NotYet,
    /// The system has none for us, or it is not to be used.
    Never,
    Ready(Box<IoUring>),
}

impl std::fmt::Debug for BurstWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BurstWriter").finish_non_exhaustive()
    }
}

impl BurstWriter {
    /// One that makes a system call for each packet: for descriptors that may take a packet after having refused one.
    pub(crate) fn without_ring() -> Self {
        Self {
            ring: Ring::Never,
            ..Self::default()
        }
    }
}

/// Packets that are about to be written, and the memory in which they lie.
pub(crate) struct Burst<'a, 'm> {
    memory: &'a Memory<'m>,
    writer: &'a mut BurstWriter,
}

impl<'m> Memory<'m> {
    /// Begin a burst.
    pub(crate) fn burst<'a>(&'a self, writer: &'a mut BurstWriter) -> Burst<'a, 'm> {
        writer.pieces.clear();
        writer.packets.clear();
        writer.results.clear();
        Burst {
            memory: self,
            writer,
        }
    }
}

impl Burst<'_, '_> {
    /// Add the packet that lies in these ranges; false: there is no room for it. Errors: they can't be read; the packets
    /// before are not touched.
    #[inline]
    pub(crate) fn add(&mut self, ranges: &[Range]) -> Result<bool> {
        let Self { memory, writer } = self;
        let first = writer.pieces.len();
        let mut fits = writer.packets.len() < BURST_PACKETS;
        let added = ranges.iter().try_for_each(|range| {
            memory.for_each_piece(*range, false, |bytes| {
                fits = fits && append(&mut writer.pieces, first, bytes);
            })
        });
        let count = writer.pieces.len() - first;
        if added.is_ok() && fits {
            writer.packets.push((first, count));
        } else {
            writer.pieces.truncate(first);
        }
        added.map(|()| fits)
    }

    /// Write the packets in their order; what each of them came to: bytes, or a negative errno. There are fewer results
    /// than packets where the descriptor would block: the rest was not written.
    pub(crate) fn write(&mut self, fd: BorrowedFd<'_>) -> &[isize] {
        let fd = fd.as_raw_fd();
        let by_ring = self.writer.packets.len() >= WORTHWHILE_PACKETS && self.write_by_ring(fd);
        if !by_ring {
            self.write_one_by_one(fd);
        }
        for result in &self.writer.results {
            self.memory.report_fault(&to_result_of(*result), "write");
        }
        &self.writer.results
    }

    /// From the first packet on that has no result.
    fn write_one_by_one(&mut self, fd: i32) {
        for index in self.writer.results.len()..self.writer.packets.len() {
            match self.write_one(fd, index) {
                would_block if would_block == -(libc::EAGAIN as isize) => break,
                result => self.writer.results.push(result),
            }
        }
    }

    fn write_one(&self, fd: i32, index: usize) -> isize {
        let (first, count) = self.writer.packets[index];
        loop {
            // SAFETY: every piece is guest memory that stays mapped while `self.memory` lives.
            let written = unsafe { write_iovecs(fd, &self.writer.pieces[first..first + count]) };
            match to_result(written) {
                Ok(len) => return len as isize,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return -(error.raw_os_error().unwrap_or(libc::EIO) as isize),
            }
        }
    }

    /// False: there is no ring, and nothing was written.
    fn write_by_ring(&mut self, fd: i32) -> bool {
        if matches!(self.writer.ring, Ring::NotYet) {
            self.writer.ring = make_ring().map_or(Ring::Never, |ring| Ring::Ready(Box::new(ring)));
        }
        let BurstWriter {
            ring: Ring::Ready(ring),
            pieces,
            packets,
            results,
        } = &mut *self.writer
        else {
            return false;
        };
        for (index, (first, count)) in packets.iter().enumerate() {
            let entry = entry_of(fd, &pieces[*first..first + count]).user_data(index as u64);
            // SAFETY: the pieces are guest memory that stays mapped while `self.memory` lives, their list is not
            // touched, and `complete` returns when no request is under way any more.
            if unsafe { ring.submission().push(&entry) }.is_err() {
                // It has room for a burst, and is empty before each.
                debug_assert!(false, "submission queue is full");
            }
        }
        results.resize(packets.len(), -(libc::EAGAIN as isize));
        let is_sound = complete(ring, results);
        if results.first() == Some(&-(libc::EOPNOTSUPP as isize)) {
            // A descriptor that can't be told not to wait. It has taken nothing.
            results.clear();
            self.writer.ring = Ring::Never;
            return false;
        }
        let blocked = self.take_blocked(fd);
        if blocked || !is_sound {
            self.writer.ring = Ring::Never;
        }
        true
    }

    /// Packets at the end that would have blocked count as not written. One in the middle gets another try, late as it
    /// is; whether there was one.
    fn take_blocked(&mut self, fd: i32) -> bool {
        let would_block = -(libc::EAGAIN as isize);
        while self.writer.results.last() == Some(&would_block) {
            self.writer.results.pop();
        }
        let mut found = false;
        for index in 0..self.writer.results.len() {
            if self.writer.results[index] == would_block {
                found = true;
                self.writer.results[index] = self.write_one(fd, index);
            }
        }
        found
    }
}

fn make_ring() -> io::Result<IoUring> {
    new_ring(BURST_PACKETS, &[opcode::Write::CODE, opcode::Writev::CODE])
}

fn entry_of(fd: i32, pieces: &[libc::iovec]) -> io_uring::squeue::Entry {
    match pieces {
        [piece] => {
            let (start, len) = (piece.iov_base.cast_const().cast(), piece.iov_len as u32);
            let write = opcode::Write::new(types::Fd(fd), start, len);
            write.rw_flags(libc::RWF_NOWAIT).build()
        }
        pieces => {
            let (list, count) = (pieces.as_ptr(), pieces.len() as u32);
            let write = opcode::Writev::new(types::Fd(fd), list, count);
            write.rw_flags(libc::RWF_NOWAIT).build()
        }
    }
}

fn to_result_of(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.unsigned_abs() as i32))
}

const _: () = assert!(BURST_PACKETS <= IOV_MAX);
