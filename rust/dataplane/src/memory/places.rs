// SPDX-License-Identifier: Apache-2.0
//! Marks and writes by where their pages lie in this process, for audits of a device whose maps come and go: behind a
//! guest's IOMMU the same page of guest memory has one IOVA now and another one later.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::access::Memory;
use super::fault::Subject;
use super::file::FileMap;
use super::space::DmaSpace;
use super::{Range, PAGE_SHIFT};

/// A file as this process sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePlace {
    /// Where its byte 0 is.
    pub address: usize,
    /// Bytes.
    pub size: usize,
    /// Whether the mmap is writable.
    pub writable: bool,
}

/// The record. Places are addresses in this process; a page of them is address >> 12.
#[derive(Debug, Default)]
pub(super) struct PlaceRecord {
    wanted: bool,
    running: bool,
    marked: Mutex<HashSet<u64>>,
    /// Kept while the record runs, so that a file is not mapped anew in another place between two maps of it.
    files: Vec<Arc<FileMap>>,
}

impl PlaceRecord {
    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted
    }

    fn set_wanted(&mut self, on: bool) {
        self.wanted = on;
        if !on {
            self.running = false;
            self.files.clear();
        }
    }

    /// A log starts; `first` if none ran. `files` are those that are mapped.
    pub(super) fn start(&mut self, first: bool, files: impl Iterator<Item = Arc<FileMap>>) {
        if !self.wanted {
            return;
        }
        if first {
            self.marked.get_mut().clear();
            self.files.clear();
        }
        self.running = true;
        for file in files {
            self.keep(file);
        }
    }

    fn keep(&mut self, file: Arc<FileMap>) {
        if !self.files.iter().any(|kept| Arc::ptr_eq(kept, &file)) {
            self.files.push(file);
        }
    }
}

impl Memory<'_> {
    /// The device wrote this range, which is mapped.
    pub(super) fn record_write(&self, subject: Subject, range: Range) {
        let log = self.log_state();
        if !log.places.is_running() {
            log.last_writes.note(subject, range);
            return;
        }
        // It was just written, so there is no piece that is not mapped.
        let _ = self.for_each_piece(range, true, |bytes| {
            let place = Range::new(bytes.address() as u64, bytes.len() as u64);
            log.last_writes.note(subject, place);
        });
    }

    /// The bits of `mask` were set in byte `byte` of the log. Those of pages that are not mapped stand for nothing.
    pub(super) fn record_marks(&self, byte: u64, mask: u8) {
        let log = self.log_state();
        log.record.set(byte, mask);
        if !log.places.is_running() {
            return;
        }
        let mut marked = log.places.marked.lock();
        for bit in (0..8).filter(|bit| mask >> bit & 1 == 1) {
            if let Some(place) = self.place((byte * 8 + bit) << PAGE_SHIFT) {
                marked.insert(place >> PAGE_SHIFT);
            }
        }
    }
}

impl DmaSpace {
    /// Record marks by place as well, from the next start of a log on. [`Self::last_write`] is asked for a page of a
    /// place then, too. It needs [`Self::record_marks`].
    pub fn record_places(&self, on: bool) {
        self.inner.write().log.places.set_wanted(on);
    }

    /// Pages of places (address >> 12) that were marked since they were last taken; `look` is called as in
    /// [`Self::take_marked_pages`].
    pub fn take_marked_places(&self, look: impl FnOnce()) -> Vec<u64> {
        let mut inner = self.inner.write();
        look();
        inner.log.record.take();
        inner.log.places.marked.get_mut().drain().collect()
    }

    /// The files that are mapped now, each once; while the record runs, they stay where they are.
    pub fn files(&self) -> Vec<FilePlace> {
        let mut inner = self.inner.write();
        let mapped = inner.files();
        let places = &mut inner.log.places;
        if places.running {
            mapped.iter().for_each(|file| places.keep(Arc::clone(file)));
        }
        let kept = places.files.iter().chain(&mapped);
        let mut found: Vec<FilePlace> = kept.map(|file| file.place()).collect();
        found.sort_by_key(|place| place.address);
        found.dedup();
        found
    }
}
