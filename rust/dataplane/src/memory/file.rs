// SPDX-License-Identifier: Apache-2.0
//! Files in the address space of this process: one mmap per file, shared by all the maps that lie in it.
//!
//! A guest behind an IOMMU maps the same memfd a million times, 4 KiB each. An mmap each would exceed the
//! kernel's limit, so the whole file is mapped once, lazily (no page is touched), and counted by reference.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::places::FilePlace;
use super::sigbus::{Registration, Tally, MAX_FILES};
use crate::error::{Error, Result};

/// Address space that all the files together may take, of the 2^47 bytes that a process has: a sparse file costs
/// its owner nothing, and must not leave us without room for anything else.
const ADDRESS_BUDGET_BYTES: u64 = 1 << 45;
static ADDRESS_USED_BYTES: AtomicU64 = AtomicU64::new(0);

/// Dead entries of the table are looked for only when it has grown to twice what lived last time.
const PRUNE_FLOOR: usize = 16;

/// What identifies an open file: device and inode. It can't be reused while the mmap holds the inode.
type FileKey = (u64, u64);

/// The part of a DMA map that its file has to satisfy.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) iova: u64,
    pub(super) size: u64,
    pub(super) offset: u64,
    pub(super) writable: bool,
}

/// One whole file, mapped shared.
#[derive(Debug)]
pub(super) struct FileMap {
    // Dropped in this order: the handler must forget the range before the range is given back.
    registration: Registration,
    pages: Pages,
    writable: bool,
}

impl FileMap {
    /// Where the file's byte 0 is.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.pages.start
    }

    pub(super) fn place(&self) -> FilePlace {
        FilePlace {
            address: self.pages.start.as_ptr() as usize,
            size: self.pages.len,
            writable: self.writable,
        }
    }

    fn serves(&self, wanted: &Wanted) -> bool {
        let long_enough = wanted.offset + wanted.size <= self.pages.len as u64;
        let may_write = self.writable || !wanted.writable;
        long_enough && may_write && !self.registration.has_holes()
    }
}

/// The mmap itself.
#[derive(Debug)]
struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an mmap belongs to the process, not to a thread; what is done with its bytes is the business of
// `HostBytes`, whose operations are atomic or made for memory that others change.
unsafe impl Send for Pages {}
// SAFETY: as above; this type gives out the address only.
unsafe impl Sync for Pages {}

impl Pages {
    fn new(fd: BorrowedFd<'_>, len: usize, writable: bool) -> std::result::Result<Self, i32> {
        reserve_address_space(len as u64).ok_or(libc::ENOMEM)?;
        let write = if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: the kernel picks the place; the fd is open; nothing that exists is touched.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | write,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { start, len }),
            _ => {
                let errno = last_errno();
                ADDRESS_USED_BYTES.fetch_sub(len as u64, Ordering::Relaxed);
                Err(errno)
            }
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: this is our mmap, whole; whoever could touch it held a reference to its FileMap.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        ADDRESS_USED_BYTES.fetch_sub(self.len as u64, Ordering::Relaxed);
    }
}

fn reserve_address_space(bytes: u64) -> Option<()> {
    let add = |used: u64| {
        used.checked_add(bytes)
            .filter(|used| *used <= ADDRESS_BUDGET_BYTES)
    };
    ADDRESS_USED_BYTES
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
        .ok()
        .map(|_| ())
}

/// The files of one DMA space.
#[derive(Debug, Default)]
pub(super) struct FileTable {
    files: Mutex<Files>,
    tally: Arc<Tally>,
}

#[derive(Debug, Default)]
struct Files {
    by_key: HashMap<FileKey, Weak<FileMap>>,
    living: usize,
}

impl FileTable {
    /// The counter of holes found in these files.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The mmap that serves `wanted`: the one there is, or a new one if the file is new here, has grown, was
    /// mapped read-only before, or had holes. Older ones stay while they are referenced.
    pub(super) fn open(&self, fd: BorrowedFd<'_>, wanted: &Wanted) -> Result<Arc<FileMap>> {
        let status = file_status(fd)?;
        let file_bytes = mappable_bytes(&status);
        // DmaSpace::map has refused numbers that wrap around; saturating keeps this true on its own.
        if wanted.offset.saturating_add(wanted.size) > file_bytes {
            return Err(Error::BeyondFile {
                offset: wanted.offset,
                size: wanted.size,
                file_bytes,
            });
        }
        let mut files = self.files.lock();
        let key = (status.st_dev, status.st_ino);
        if let Some(file) = files.by_key.get(&key).and_then(Weak::upgrade) {
            if file.serves(wanted) {
                return Ok(file);
            }
        }
        let file = Arc::new(self.map_file(fd, file_bytes, wanted)?);
        files.insert(key, &file);
        Ok(file)
    }

    fn map_file(&self, fd: BorrowedFd<'_>, file_bytes: u64, wanted: &Wanted) -> Result<FileMap> {
        let (pages, writable) = map_pages(fd, file_bytes, wanted)?;
        let page_bytes = hugepage_bytes(fd).unwrap_or_else(page_bytes);
        let start = pages.start.as_ptr() as usize;
        let registration =
            Registration::new(start, pages.len, page_bytes, &self.tally).ok_or(Error::Limit {
                iova: wanted.iova,
                limit: MAX_FILES,
                what: "different files",
            })?;
        Ok(FileMap {
            registration,
            pages,
            writable,
        })
    }
}

impl Files {
    fn insert(&mut self, key: FileKey, file: &Arc<FileMap>) {
        if self.by_key.len() >= PRUNE_FLOOR.max(2 * self.living) {
            self.by_key.retain(|_, file| file.strong_count() > 0);
            self.living = self.by_key.len();
        }
        self.by_key.insert(key, Arc::downgrade(file));
    }
}

/// Map the whole file, writable if its descriptor (and its seals) allow it.
fn map_pages(fd: BorrowedFd<'_>, file_bytes: u64, wanted: &Wanted) -> Result<(Pages, bool)> {
    let file_error = |errno| Error::File {
        call: "mmap",
        errno,
    };
    let len = usize::try_from(file_bytes).map_err(|_| file_error(libc::ENOMEM))?;
    match Pages::new(fd, len, true) {
        Ok(pages) => Ok((pages, true)),
        Err(libc::EACCES | libc::EPERM) if wanted.writable => Err(Error::ReadOnlyFile {
            iova: wanted.iova,
            size: wanted.size,
        }),
        Err(libc::EACCES | libc::EPERM) => {
            let pages = Pages::new(fd, len, false).map_err(file_error)?;
            Ok((pages, false))
        }
        Err(errno) => Err(file_error(errno)),
    }
}

fn file_status(fd: BorrowedFd<'_>) -> Result<libc::stat> {
    // SAFETY: all-zero is a valid stat.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the fd is open and `status` is a valid place for the answer.
    match unsafe { libc::fstat(fd.as_raw_fd(), &mut status) } {
        0 => Ok(status),
        _ => Err(Error::File {
            call: "fstat",
            errno: last_errno(),
        }),
    }
}

/// Length up to the end of the last page: a front end's log has any length, and is mapped in whole pages. What
/// is stored beyond the file's end in its last page is lost, but harms nobody. 0 for what is not a file.
fn mappable_bytes(status: &libc::stat) -> u64 {
    let is_file = status.st_mode & libc::S_IFMT == libc::S_IFREG;
    let bytes = u64::try_from(status.st_size).unwrap_or(0);
    if is_file {
        bytes.next_multiple_of(page_bytes() as u64)
    } else {
        0
    }
}

/// The size of a hugetlbfs file's pages; None for every other file.
fn hugepage_bytes(fd: BorrowedFd<'_>) -> Option<usize> {
    // SAFETY: all-zero is a valid statfs.
    let mut status: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the fd is open and `status` is a valid place for the answer.
    let failed = unsafe { libc::fstatfs(fd.as_raw_fd(), &mut status) } != 0;
    // Both fields have different types on different architectures.
    #[allow(clippy::unnecessary_cast)]
    let is_huge = status.f_type as i64 == libc::HUGETLBFS_MAGIC as i64;
    if failed || !is_huge {
        return None;
    }
    usize::try_from(status.f_bsize).ok()
}

fn page_bytes() -> usize {
    // SAFETY: a query without arguments that are pointers.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
