// SPDX-License-Identifier: Apache-2.0
//! Packets between a file descriptor and guest memory, without a copy of ours.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::access::{clip, Memory};
use super::raw::HostBytes;
use super::{Range, MAX_COPY_BYTES};
use crate::error::Result;
use crate::violation::Violation;

/// The kernel takes no more pieces in one call (UIO_MAXIOV).
pub(super) const IOV_MAX: usize = 1024;

impl Memory<'_> {
    /// Read from `fd` into the ranges, then mark every page that may have been written: those of the bytes
    /// returned, or those of all the ranges where the call failed half way.
    ///
    /// The outer error is about the ranges (nothing was read), the inner one about the read.
    pub fn readv_from(&self, fd: BorrowedFd<'_>, ranges: &[Range]) -> Result<io::Result<usize>> {
        self.readv_spilling(fd, ranges, &mut [])
    }

    /// As [`Self::readv_from`]; what the ranges have no room for goes to the beginning of `spill`. The bytes returned
    /// are those of both.
    pub fn readv_spilling(
        &self,
        fd: BorrowedFd<'_>,
        ranges: &[Range],
        spill: &mut [u8],
    ) -> Result<io::Result<usize>> {
        let last = (!spill.is_empty()).then(|| libc::iovec {
            iov_base: spill.as_mut_ptr().cast(),
            iov_len: spill.len(),
        });
        let read = self.with_iovecs(ranges, true, last, |iovecs| {
            // SAFETY: every iovec but the last is writable guest memory that stays mapped while `self` lives; the last
            // one is borrowed exclusively.
            to_result(unsafe { read_iovecs(fd.as_raw_fd(), iovecs) })
        })?;
        let Some(result) = read else {
            return self.read_by_copy(fd, ranges, spill);
        };
        if self.is_logging() {
            clip(ranges, may_be_written(&result)).for_each(|range| self.mark(range));
        }
        self.report_fault(&result, "readv");
        Ok(result)
    }

    /// Write the bytes of the ranges to `fd`.
    ///
    /// The outer error is about the ranges (nothing was written), the inner one about the write.
    pub fn writev_to(&self, fd: BorrowedFd<'_>, ranges: &[Range]) -> Result<io::Result<usize>> {
        let written = self.with_iovecs(ranges, false, None, |iovecs| {
            // SAFETY: every iovec is guest memory that stays mapped while `self` lives.
            to_result(unsafe { write_iovecs(fd.as_raw_fd(), iovecs) })
        })?;
        match written {
            Some(result) => {
                self.report_fault(&result, "writev");
                Ok(result)
            }
            None => self.write_by_copy(fd, ranges),
        }
    }

    /// Call `transfer` with the pieces of the ranges, and one more; None: there are too many for one call.
    fn with_iovecs(
        &self,
        ranges: &[Range],
        write: bool,
        last: Option<libc::iovec>,
        transfer: impl FnOnce(&[libc::iovec]) -> io::Result<usize>,
    ) -> Result<Option<io::Result<usize>>> {
        let mut iovecs = self.iovecs.take();
        iovecs.clear();
        let mut fits = true;
        for range in ranges {
            self.for_each_piece(*range, write, |bytes| {
                fits = fits && append(&mut iovecs, 0, bytes);
            })?;
        }
        if let Some(last) = last {
            fits = fits && iovecs.len() < IOV_MAX;
            iovecs.push(last);
        }
        let transferred = fits.then(|| {
            if iovecs.is_empty() {
                Ok(0)
            } else {
                transfer(&iovecs)
            }
        });
        self.iovecs.set(iovecs);
        Ok(transferred)
    }

    /// More than [`IOV_MAX`] pieces: legal for long chains of short descriptors, too rare to be fast.
    fn read_by_copy(
        &self,
        fd: BorrowedFd<'_>,
        ranges: &[Range],
        spill: &mut [u8],
    ) -> Result<io::Result<usize>> {
        let room = self.check_all(ranges, true)?.min(MAX_COPY_BYTES) as usize;
        let mut packet = vec![0u8; room + spill.len()];
        // SAFETY: `packet` is valid for its length.
        let read = unsafe { libc::read(fd.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len()) };
        match to_result(read) {
            Ok(len) => {
                let direct = len.min(room);
                self.scatter(ranges, &packet[..direct])?;
                spill[..len - direct].copy_from_slice(&packet[direct..len]);
                Ok(Ok(len))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    fn write_by_copy(&self, fd: BorrowedFd<'_>, ranges: &[Range]) -> Result<io::Result<usize>> {
        let mut packet = Vec::new();
        self.gather(ranges, &mut packet)?;
        // SAFETY: `packet` is valid for its length.
        let written = unsafe { libc::write(fd.as_raw_fd(), packet.as_ptr().cast(), packet.len()) };
        Ok(to_result(written))
    }

    /// In a system call, a hole in a shrunken file is not SIGBUS but EFAULT; both are the same violation.
    pub(super) fn report_fault(&self, result: &io::Result<usize>, call: &str) {
        let faulted = matches!(result, Err(error) if error.raw_os_error() == Some(libc::EFAULT));
        if faulted {
            self.violations().record(Violation {
                queue: -1,
                kind: "sigbus",
                value: 0,
                clause: "vfio-user, VFIO_USER_DMA_MAP",
                detail: format!("{call} found a mapped file shorter than when it was mapped"),
            });
        }
    }
}

/// The system calls themselves: the C library's wrappers are points where a thread can be cancelled, which costs as
/// much as the translation of the addresses. One piece needs no list.
///
/// # Safety
/// Every iovec must be readable memory.
pub(super) unsafe fn write_iovecs(fd: i32, iovecs: &[libc::iovec]) -> isize {
    // SAFETY: the caller guarantees the pieces; the list is live.
    unsafe {
        match iovecs {
            [piece] => libc::syscall(libc::SYS_write, fd, piece.iov_base, piece.iov_len) as isize,
            pieces => libc::syscall(libc::SYS_writev, fd, pieces.as_ptr(), pieces.len()) as isize,
        }
    }
}

/// As [`write_iovecs`].
///
/// # Safety
/// Every iovec must be writable memory.
unsafe fn read_iovecs(fd: i32, iovecs: &[libc::iovec]) -> isize {
    // SAFETY: the caller guarantees the pieces; the list is live.
    unsafe { libc::syscall(libc::SYS_readv, fd, iovecs.as_ptr(), iovecs.len()) as isize }
}

/// Add a piece to those from `first` on, joined to the last one if they are neighbours; false: there is no room.
#[inline]
pub(super) fn append(iovecs: &mut Vec<libc::iovec>, first: usize, bytes: HostBytes<'_>) -> bool {
    let next = bytes.iovec();
    if let Some(last) = iovecs[first..].last_mut() {
        if last.iov_base as usize + last.iov_len == next.iov_base as usize {
            last.iov_len += next.iov_len;
            return true;
        }
    }
    if iovecs.len() - first == IOV_MAX {
        return false;
    }
    iovecs.push(next);
    true
}

/// How many bytes of the ranges, at most, a read may have touched.
fn may_be_written(result: &io::Result<usize>) -> u64 {
    match result {
        Ok(len) => *len as u64,
        // Nothing was there to be copied, or nothing was copied yet.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(_) => u64::MAX,
    }
}

pub(super) fn to_result(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}
