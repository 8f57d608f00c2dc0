// SPDX-License-Identifier: Apache-2.0
//! Files to map, and a view of them that goes through system calls instead of the code under test.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::FileExt;

use vdpa_net_dataplane::memory::DmaSpace;

pub const PAGE: u64 = 4096;

/// A memfd of this many pages.
pub fn memfd(pages: u64) -> File {
    // SAFETY: the name is a valid C string.
    let fd = unsafe { libc::memfd_create(b"guest\0".as_ptr().cast(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd_create");
    // SAFETY: the fd is new and ours.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(pages * PAGE).expect("set_len");
    file
}

/// Map whole pages of a file, readable and writable.
pub fn map_pages(space: &DmaSpace, iova: u64, file: &File, first_page: u64, pages: u64) {
    let (size, offset) = (pages * PAGE, first_page * PAGE);
    space
        .map(iova, size, file.as_fd(), offset, true, true)
        .expect("map");
}

/// The file's bytes.
pub fn contents(file: &File) -> Vec<u8> {
    let len = file.metadata().expect("metadata").len();
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

/// The numbers of the bits that are set, as a dirty log numbers them.
pub fn set_bits(log: &[u8]) -> Vec<u64> {
    (0..log.len() as u64 * 8)
        .filter(|page| log[(page / 8) as usize] >> (page % 8) & 1 == 1)
        .collect()
}

/// (reading end, writing end) of a pipe.
pub fn pipe() -> (File, File) {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two descriptors.
    let failed = unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) };
    assert_eq!(failed, 0, "pipe2");
    // SAFETY: both are new and ours.
    unsafe { (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])) }
}

/// Shorthand for tests that map by hand.
pub fn fd(file: &File) -> BorrowedFd<'_> {
    file.as_fd()
}

/// The kinds of the violations recorded since the last call.
pub fn violation_kinds(space: &DmaSpace) -> Vec<&'static str> {
    space.violations().take().iter().map(|v| v.kind).collect()
}
