// SPDX-License-Identifier: Apache-2.0
//! The memory of the front end: one memfd, mapped here and handed to the back end.

use std::cell::Cell;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU16;

use crate::error::{Error, Result};

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Shared memory. Guest physical address and offset are the same.
pub struct Memory {
    file: OwnedFd,
    start: NonNull<u8>,
    bytes: usize,
    next: Cell<usize>,
}

impl Memory {
    /// `bytes` of zeros, rounded up to huge pages.
    pub fn new(bytes: usize, hugepages: bool) -> Result<Self> {
        let bytes = bytes.next_multiple_of(HUGE_PAGE_BYTES);
        let flags = libc::MFD_CLOEXEC | if hugepages { libc::MFD_HUGETLB } else { 0 };
        // SAFETY: the name is a live C string; the result is owned by nobody else.
        let file = unsafe {
            let fd = libc::memfd_create(c"front-end".as_ptr(), flags);
            if fd < 0 {
                return Err(Error::last("memfd"));
            }
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: a new shared mapping of a file of this length; nothing else is at the address that comes back.
        let start = unsafe {
            if libc::ftruncate(file.as_raw_fd(), bytes as libc::off_t) != 0 {
                return Err(Error::last("memfd"));
            }
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self {
                file,
                start,
                bytes,
                next: Cell::new(0),
            }),
            _ => Err(Error::last("mmap")),
        }
    }

    /// Take `bytes` of it; the offset.
    pub fn allocate(&self, bytes: usize, align: usize) -> Result<u64> {
        let offset = self.next.get().next_multiple_of(align);
        if offset + bytes > self.bytes {
            return Err(Error::Usage(format!(
                "{bytes} bytes do not fit into {} at {offset}",
                self.bytes
            )));
        }
        self.next.set(offset + bytes);
        Ok(offset as u64)
    }

    /// The file.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where an offset is in this process.
    pub fn address(&self, offset: u64) -> u64 {
        self.start.as_ptr() as u64 + offset
    }

    fn at<T>(&self, offset: u64) -> *mut T {
        let end = offset as usize + size_of::<T>();
        assert!(
            end <= self.bytes && offset as usize % align_of::<T>() == 0,
            "front end memory at {offset:#x}"
        );
        // SAFETY: the offset lies in the mapping, as checked.
        unsafe { self.start.as_ptr().add(offset as usize).cast() }
    }

    /// A word that the back end reads and writes, too.
    pub fn u16(&self, offset: u64) -> &AtomicU16 {
        // SAFETY: at() has checked range and alignment; an atomic tolerates changes by others.
        unsafe { &*self.at::<AtomicU16>(offset) }
    }

    /// Store one value of plain bytes.
    pub fn store<T: Copy>(&self, offset: u64, value: T) {
        // SAFETY: at() has checked range and alignment; T is plain.
        unsafe { self.at::<T>(offset).write_volatile(value) }
    }

    /// Load one value of plain bytes.
    pub fn load<T: Copy>(&self, offset: u64) -> T {
        // SAFETY: as above.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    /// Copy bytes in.
    pub fn write(&self, offset: u64, data: &[u8]) {
        assert!(
            offset as usize + data.len() <= self.bytes,
            "front end memory"
        );
        // SAFETY: the range lies in the mapping, as checked, and `data` does not.
        unsafe {
            std::ptr::copy_nonoverlapping(
                data.as_ptr(),
                self.start.as_ptr().add(offset as usize),
                data.len(),
            );
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every reference into it borrows from self.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
