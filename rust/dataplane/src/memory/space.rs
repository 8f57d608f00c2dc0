// SPDX-License-Identifier: Apache-2.0
//! The DMA space of one device: its maps and its dirty log (see `logging.rs`), behind one lock.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::{RwLock, RwLockWriteGuard};

use super::access::Memory;
use super::file::{FileMap, FileTable, Wanted};
use super::intervals::{Interval, IntervalMap};
use super::log::{BatchCounts, LogState, TotalCounts};
use super::mark::log_unmapped;
use super::misses::Misses;
use super::{Mapping, Range, PAGE_BYTES};
use crate::error::{Error, Result};
use crate::violation::{Violation, ViolationLog};

/// What lies behind one map. Memory that came without a file has neither permission, so nothing touches it.
#[derive(Debug)]
pub(super) struct Backing {
    file: Option<Arc<FileMap>>,
    offset: u64,
    pub(super) readable: bool,
    pub(super) writable: bool,
}

impl Backing {
    const WITHOUT_FILE: Self = Self {
        file: None,
        offset: 0,
        readable: false,
        writable: false,
    };

    /// Where the map's first byte is in this process.
    pub(super) fn start(&self) -> NonNull<u8> {
        let Some(file) = &self.file else {
            return NonNull::dangling();
        };
        // SAFETY: map() has checked that the offset lies in the file's mmap, which `file` keeps.
        unsafe { NonNull::new_unchecked(file.start().as_ptr().add(self.offset as usize)) }
    }
}

/// What a batch sees unchanged. Not in the cache line of its lock, which the workers take from each other with each batch.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Inner {
    pub(super) maps: IntervalMap<Backing>,
    pub(super) log: LogState,
}

impl Inner {
    /// The files behind the maps, in any order, some more than once.
    pub(super) fn files(&self) -> Vec<Arc<FileMap>> {
        let files = self.maps.iter().filter_map(|map| map.value.file.clone());
        let mut found: Vec<_> = files.collect();
        found.dedup_by(|left, right| Arc::ptr_eq(left, right));
        found
    }
}

/// IOVA ranges on files, and the dirty log that lies in them. One per device, shared by its threads.
///
/// Batches hold a read lock ([`DmaSpace::lock`]); whatever changes maps or log takes the write lock, and so returns
/// only when no batch is under way that saw the old state. The lock lets a waiting writer pass before new readers
/// (see `parking_lot::RwLock`), so workers that take one batch after the other can't starve it.
#[derive(Debug)]
pub struct DmaSpace {
    max_maps: usize,
    pub(super) inner: RwLock<Inner>,
    files: FileTable,
    holes_reported: AtomicU64,
    pub(super) totals: TotalCounts,
    violations: ViolationLog,
    pub(super) misses: Misses,
}

impl DmaSpace {
    /// An empty space that accepts at most `max_maps` maps at a time.
    pub fn new(max_maps: usize) -> Self {
        let inner = Inner {
            maps: IntervalMap::new(),
            log: LogState::default(),
        };
        Self {
            max_maps,
            inner: RwLock::new(inner),
            files: FileTable::default(),
            holes_reported: AtomicU64::new(0),
            totals: TotalCounts::default(),
            violations: ViolationLog::default(),
            misses: Misses::default(),
        }
    }

    /// Map [iova, iova + size) to the file from `offset` on. The descriptor is not kept.
    ///
    /// Errors (errno): address, size or offset not a multiple of 4096, size 0, wrap-around, beyond the end of the
    /// file or not a regular file (EINVAL); overlap (EEXIST); too many maps (ENOSPC); writable on a descriptor that
    /// is not (EACCES); what mmap says.
    pub fn map(
        &self,
        iova: u64,
        size: u64,
        fd: BorrowedFd<'_>,
        offset: u64,
        readable: bool,
        writable: bool,
    ) -> Result<()> {
        let last = last_address(iova, size, offset)?;
        let wanted = Wanted {
            iova,
            size,
            offset,
            writable,
        };
        // The system calls come before the lock: workers don't wait for them.
        let file = self.files.open(fd, &wanted)?;
        let value = Backing {
            file: Some(file),
            offset,
            readable,
            writable,
        };
        self.insert(iova, last, value)
    }

    /// Note that [iova, iova + size) is memory that can't be reached, because it came without a file. An access to
    /// it fails as one to an address that is not mapped does; `is_without_file` tells the difference. Errors as
    /// for [`Self::map`].
    pub fn reserve(&self, iova: u64, size: u64) -> Result<()> {
        let last = last_address(iova, size, 0)?;
        self.insert(iova, last, Backing::WITHOUT_FILE)
    }

    fn insert(&self, first: u64, last: u64, value: Backing) -> Result<()> {
        let (iova, size) = (first, last - first + 1);
        let mut inner = self.inner.write();
        if let Some(other) = inner.maps.overlapping(iova, last) {
            return Err(Error::Overlap {
                iova,
                size,
                other_iova: other.first,
                other_size: other.size(),
            });
        }
        if inner.maps.len() >= self.max_maps {
            return Err(Error::Limit {
                iova,
                limit: self.max_maps,
                what: "DMA maps",
            });
        }
        inner.maps.insert(Interval { first, last, value });
        drop(inner);
        self.misses.mapped(first, last);
        Ok(())
    }

    /// Remove exactly one earlier map; on return no batch touches it any more. ENOENT if there is none with this
    /// address and size.
    pub fn unmap(&self, iova: u64, size: u64) -> Result<()> {
        let last = last_address(iova, size, 0)?;
        let inner = self.inner.write();
        let removed = self.remove(inner, |maps| maps.remove(iova, last).into_iter().collect());
        removed
            .first()
            .map(|_| ())
            .ok_or(Error::NoSuchMap { iova, size })
    }

    /// Remove the maps inside of [iova, iova + size), of which there may be none; returns how many there were. On
    /// return no batch touches them any more. EINVAL if a map is only partly inside; then nothing has changed.
    pub fn unmap_within(&self, iova: u64, size: u64) -> Result<usize> {
        let last = size.checked_sub(1).and_then(|more| iova.checked_add(more));
        let last = last.ok_or(Error::BadRange {
            iova,
            size,
            offset: 0,
            expected: "a size above 0 and a range that does not wrap around",
        })?;
        let mut cut = None;
        let removed = self.remove(self.inner.write(), |maps| {
            maps.remove_within(iova, last).unwrap_or_else(|other| {
                cut = Some(other);
                Vec::new()
            })
        });
        match cut {
            None => Ok(removed.len()),
            Some((other_iova, other_size)) => Err(Error::CutsMap {
                iova,
                size,
                other_iova,
                other_size,
            }),
        }
    }

    /// Take maps out under the lock, and record it if the running log lies in one of them. The caller drops what is
    /// returned outside of the lock: giving back a large mmap takes time.
    fn remove(
        &self,
        mut inner: RwLockWriteGuard<'_, Inner>,
        take: impl FnOnce(&mut IntervalMap<Backing>) -> Vec<Interval<Backing>>,
    ) -> Vec<Interval<Backing>> {
        let removed = take(&mut inner.maps);
        let active = inner.log.active.as_ref();
        let hit = active.and_then(|log| {
            let unmapped = removed.iter().find(|i| log.overlaps(i.first, i.last))?;
            Some(log_unmapped(log, unmapped.first.max(log.base)))
        });
        drop(inner);
        hit.into_iter().for_each(|v| self.violations.record(v));
        removed
    }

    /// Whether this address lies in memory that came without a file.
    pub fn is_without_file(&self, iova: u64) -> bool {
        let inner = self.inner.read();
        inner.maps.at(iova).is_some_and(|i| i.value.file.is_none())
    }

    /// How many maps there are.
    pub fn map_count(&self) -> usize {
        self.inner.read().maps.len()
    }

    /// Remove every map; returns how many there were.
    pub fn unmap_all(&self) -> usize {
        let mut inner = self.inner.write();
        let removed = inner.maps.take();
        let hit = inner.log.active.as_ref().filter(|_| removed.len() > 0);
        let violation = hit.map(|log| log_unmapped(log, log.base));
        drop(inner);
        violation
            .into_iter()
            .for_each(|v| self.violations.record(v));
        removed.len()
    }

    /// Whether every byte of [iova, iova + size) is mapped with this permission, by one map or several.
    pub fn is_mapped(&self, iova: u64, size: u64, writable: bool) -> bool {
        self.lock().check(Range::new(iova, size), writable).is_ok()
    }

    /// All maps, by address.
    pub fn mappings(&self) -> Vec<Mapping> {
        let inner = self.inner.read();
        inner.maps.iter().map(Mapping::of).collect()
    }

    /// Guest memory for one batch; see [`Memory`] for what that means for everyone else.
    pub fn lock(&self) -> Memory<'_> {
        Memory::new(self, self.inner.read())
    }

    /// What went wrong in this space: `log_overflow`, `log_unmapped`, `sigbus`.
    pub fn violations(&self) -> &ViolationLog {
        &self.violations
    }

    /// A guard is given back: add what it counted, report the holes that were found meanwhile.
    pub(super) fn end_of_batch(&self, counts: &BatchCounts) {
        self.totals.add(counts);
        let tally = self.files.tally();
        let hits = tally.hits();
        // A look first: workers share the word, and nearly no batch changes it.
        if hits <= self.holes_reported.load(Ordering::Relaxed) {
            return;
        }
        let reported = self.holes_reported.fetch_max(hits, Ordering::Relaxed);
        if hits > reported {
            self.report_holes(hits - reported, tally.last_offset());
        }
    }

    fn report_holes(&self, holes: u64, offset: u64) {
        self.violations.record(Violation {
            queue: -1,
            kind: "sigbus",
            value: offset,
            clause: "vfio-user, VFIO_USER_DMA_MAP",
            detail: format!(
                "{holes} accesses found a mapped file shorter than when it was mapped, the last one at its \
                 offset {offset:#x}; the device goes on with memory of its own there"
            ),
        });
    }
}

impl Mapping {
    fn of(interval: &Interval<Backing>) -> Self {
        let backing = &interval.value;
        Self {
            iova: interval.first,
            size: interval.size(),
            offset: backing.offset,
            readable: backing.readable,
            writable: backing.writable,
            address: backing
                .file
                .as_ref()
                .map_or(0, |_| backing.start().as_ptr() as usize),
        }
    }
}

/// The last address of a map, if its numbers obey the rules.
fn last_address(iova: u64, size: u64, offset: u64) -> Result<u64> {
    let bad = |expected| Error::BadRange {
        iova,
        size,
        offset,
        expected,
    };
    if size == 0 {
        return Err(bad("a size above 0"));
    }
    if (iova | size | offset) % PAGE_BYTES != 0 {
        return Err(bad("multiples of 4096"));
    }
    if offset.checked_add(size).is_none() {
        return Err(bad("an offset that does not wrap around"));
    }
    iova.checked_add(size - 1)
        .ok_or_else(|| bad("a range that does not wrap around"))
}
