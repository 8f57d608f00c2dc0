// SPDX-License-Identifier: Apache-2.0
//! Reading and writing guest memory. Every store is followed by its own mark.

use std::cell::Cell;
use std::ptr::NonNull;

use parking_lot::RwLockReadGuard;

use super::deferred::NO_PAGE;
use super::fault::Subject;
use super::intervals::Interval;
use super::log::{BatchCounts, LogState};
use super::misses::Miss;
use super::raw::HostBytes;
use super::space::{Backing, DmaSpace, Inner};
use super::{Range, MAX_COPY_BYTES};
use crate::error::{Error, Result};
use crate::violation::ViolationLog;

/// Where a map lies in this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    first: u64,
    last: u64,
    start: NonNull<u8>,
    readable: bool,
    writable: bool,
}

impl Span {
    /// Holds no address.
    const NONE: Self = Self {
        first: 1,
        last: 0,
        start: NonNull::dangling(),
        readable: false,
        writable: false,
    };

    fn of(interval: &Interval<Backing>) -> Self {
        Self {
            first: interval.first,
            last: interval.last,
            start: interval.value.start(),
            readable: interval.value.readable,
            writable: interval.value.writable,
        }
    }

    #[inline]
    fn holds(&self, iova: u64) -> bool {
        self.first <= iova && iova <= self.last
    }

    #[inline]
    fn allows(&self, write: bool) -> bool {
        if write {
            self.writable
        } else {
            self.readable
        }
    }
}

/// The maps used last. Four, because a packet touches three: ring, buffer and used ring.
const CACHED_SPANS: usize = 4;

/// Guest memory as it is during one batch: while this guard lives, no map and no log changes.
///
/// Whoever wants to change them waits, and new guards wait behind it, so keep it for one batch only. One guard per
/// thread: taking a second one, or calling any method of the [`DmaSpace`], while holding one can deadlock.
pub struct Memory<'a> {
    inner: RwLockReadGuard<'a, Inner>,
    space: &'a DmaSpace,
    cache: [Cell<Span>; CACHED_SPANS],
    next_cached: Cell<usize>,
    log_span: Cell<Span>,
    counts: BatchCounts,
    missed: Cell<Option<Miss>>,
    /// The page of used elements whose mark is due ([`super::deferred`]).
    pub(super) deferred: Cell<u64>,
    pub(super) iovecs: Cell<Vec<libc::iovec>>,
}

impl<'a> Memory<'a> {
    pub(super) fn new(space: &'a DmaSpace, inner: RwLockReadGuard<'a, Inner>) -> Self {
        Self {
            inner,
            space,
            cache: std::array::from_fn(|_| Cell::new(Span::NONE)),
            next_cached: Cell::new(0),
            log_span: Cell::new(Span::NONE),
            counts: BatchCounts::default(),
            missed: Cell::new(None),
            deferred: Cell::new(NO_PAGE),
            iovecs: Cell::default(),
        }
    }
}

impl Memory<'_> {
    /// Ok if every byte of `range` is mapped, with write permission if `writable`, else with read permission.
    /// An empty range is always fine.
    #[inline]
    pub fn check(&self, range: Range, writable: bool) -> Result<()> {
        self.for_each_piece(range, writable, |_| ())
    }

    /// Copy guest memory to `buf`, all of it or nothing.
    pub fn read_into(&self, iova: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        let range = Range::new(iova, buf.len() as u64);
        self.for_each_piece(range, false, |bytes| {
            let end = done + bytes.len();
            bytes.copy_to(&mut buf[done..end]);
            done = end;
        })
    }

    /// Copy `buf` to guest memory, all of it or nothing; then mark.
    pub fn write_from(&self, iova: u64, buf: &[u8]) -> Result<()> {
        self.write_as(Subject::Data, iova, buf)
    }

    #[inline(always)]
    pub(super) fn write_as(&self, subject: Subject, iova: u64, buf: &[u8]) -> Result<()> {
        let range = Range::new(iova, buf.len() as u64);
        match self.piece(range, true) {
            Some(bytes) if bytes.len() == buf.len() => bytes.copy_from(buf),
            _ => {
                self.check(range, true)?;
                self.store(range, buf)?;
            }
        }
        self.mark_as(subject, range);
        Ok(())
    }

    /// Write `data` over the ranges, in their order, then mark; returns the bytes written, which are fewer than
    /// all if the ranges are too short. Nothing is written if a range that is needed is not writable.
    pub fn scatter(&self, ranges: &[Range], data: &[u8]) -> Result<usize> {
        let limit = data.len() as u64;
        if let Some(first) = ranges.first().filter(|first| first.len >= limit) {
            self.write_from(first.iova, data)?;
            return Ok(data.len());
        }
        clip(ranges, limit).try_for_each(|range| self.check(range, true))?;
        let mut done = 0;
        for range in clip(ranges, limit) {
            let end = done + range.len as usize;
            self.store(range, &data[done..end])?;
            done = end;
        }
        clip(ranges, limit).for_each(|range| self.mark(range));
        Ok(done)
    }

    /// Write `data` over the ranges from their byte `offset` on, then mark. Errors as for [`Self::scatter`].
    pub fn scatter_at(&self, ranges: &[Range], offset: u64, data: &[u8]) -> Result<()> {
        let len = data.len() as u64;
        if let Some(first) = ranges.first().filter(|first| first.len >= offset + len) {
            return self.write_from(first.iova.wrapping_add(offset), data);
        }
        let mut skip = offset;
        let rest: Vec<Range> = ranges
            .iter()
            .map(|range| {
                let skipped = skip.min(range.len);
                skip -= skipped;
                Range::new(range.iova.wrapping_add(skipped), range.len - skipped)
            })
            .collect();
        self.scatter(&rest, data).map(|_| ())
    }

    /// Copy the first bytes of the ranges to `out`, as many as fit; how many.
    pub fn read_ranges(&self, ranges: &[Range], out: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        for range in clip(ranges, out.len() as u64) {
            let end = done + range.len as usize;
            self.read_into(range.iova, &mut out[done..end])?;
            done = end;
        }
        Ok(done)
    }

    /// Append the bytes of the ranges to `out`; returns how many. Nothing is appended on an error:
    /// [`Error::TooLong`] beyond [`MAX_COPY_BYTES`], because a chain of a few descriptors can name terabytes.
    pub fn gather(&self, ranges: &[Range], out: &mut Vec<u8>) -> Result<usize> {
        let total = self.check_all(ranges, false)?;
        if total > MAX_COPY_BYTES {
            return Err(Error::TooLong {
                len: total,
                limit: MAX_COPY_BYTES,
            });
        }
        let mut done = out.len();
        out.resize(done + total as usize, 0);
        for range in ranges {
            let end = done + range.len as usize;
            self.read_into(range.iova, &mut out[done..end])?;
            done = end;
        }
        Ok(total as usize)
    }

    /// Copy the bytes of the ranges to the beginning of `out`, which grows where it is too short; returns how many. Errors as
    /// for [`Self::gather`]; `out` may have grown.
    #[inline(always)]
    pub fn gather_over(&self, ranges: &[Range], out: &mut Vec<u8>) -> Result<usize> {
        if let [range] = ranges {
            match self.piece(*range, false) {
                Some(bytes) if range.len <= out.len() as u64 && bytes.len() as u64 == range.len => {
                    bytes.copy_to(&mut out[..range.len as usize]);
                    return Ok(range.len as usize);
                }
                _ => {}
            }
        }
        out.clear();
        self.gather(ranges, out)
    }

    /// Check all the ranges; returns the sum of their lengths.
    pub(super) fn check_all(&self, ranges: &[Range], writable: bool) -> Result<u64> {
        ranges.iter().try_fold(0u64, |total, range| {
            self.check(*range, writable)?;
            Ok(total.saturating_add(range.len))
        })
    }

    /// Call `visit` with each piece of `range` that lies in one map, in order.
    #[inline]
    pub(super) fn for_each_piece(
        &self,
        range: Range,
        write: bool,
        mut visit: impl FnMut(HostBytes<'_>),
    ) -> Result<()> {
        let mut left = range;
        while left.len > 0 {
            let piece = self
                .piece(left, write)
                .ok_or_else(|| self.unmapped(range, left.iova, write))?;
            visit(piece);
            let len = piece.len() as u64;
            // It can only wrap after the last piece: `piece` refuses ranges that wrap.
            left = Range::new(left.iova.wrapping_add(len), left.len - len);
        }
        Ok(())
    }

    /// One byte of a log's memory, and its IOVA as seen from the byte's address.
    pub(super) fn log_byte(&self, iova: u64) -> Option<(u64, HostBytes<'_>)> {
        if !self.log_span.get().holds(iova) {
            self.log_span.set(Span::of(self.inner.maps.at(iova)?));
        }
        let span = self.log_span.get();
        let byte = span.writable.then(|| self.bytes(&span, iova, 1))?;
        let offset = byte.address() - span.start.as_ptr() as usize;
        Some((span.first + offset as u64, byte))
    }

    /// Where an address lies in this process, if it may be written.
    pub(super) fn place(&self, iova: u64) -> Option<u64> {
        let span = self.span(iova)?.get();
        let span = Some(span).filter(|span| span.writable)?;
        Some(span.start.as_ptr() as u64 + (iova - span.first))
    }

    /// Whether a log runs.
    pub fn is_logging(&self) -> bool {
        self.inner.log.active.is_some()
    }

    pub(super) fn log_state(&self) -> &LogState {
        &self.inner.log
    }

    /// How many pages this guard has marked that were not marked before.
    pub fn pages_marked(&self) -> u64 {
        self.counts.pages_marked.get()
    }

    pub(super) fn counts(&self) -> &BatchCounts {
        &self.counts
    }

    pub(super) fn violations(&self) -> &ViolationLog {
        self.space.violations()
    }

    /// Store without a mark: the callers mark when all their stores are made.
    fn store(&self, range: Range, data: &[u8]) -> Result<()> {
        let mut done = 0;
        self.for_each_piece(range, true, |bytes| {
            let end = done + bytes.len();
            bytes.copy_from(&data[done..end]);
            done = end;
        })
    }

    /// The access that failed was an attempt: nobody waits for its map.
    pub(crate) fn forget_miss(&self) {
        self.missed.set(None);
    }

    /// The access that failed for want of a map, if one did.
    pub(crate) fn missed(&self) -> Option<Miss> {
        self.missed.get()
    }

    #[cold]
    pub(super) fn unmapped(&self, range: Range, fault_iova: u64, write: bool) -> Error {
        self.missed.set(Some(Miss::at(fault_iova, write)));
        Error::Unmapped {
            iova: range.iova,
            len: range.len,
            fault_iova,
            write,
        }
    }

    /// The beginning of `range`, as far as it lies in one map.
    #[inline(always)]
    pub(super) fn piece(&self, range: Range, write: bool) -> Option<HostBytes<'_>> {
        range.iova.checked_add(range.len.checked_sub(1)?)?;
        let span = self.span(range.iova)?.get();
        if !span.allows(write) {
            return None;
        }
        let len = range.len.min(span.last - range.iova + 1);
        Some(self.bytes(&span, range.iova, len))
    }

    /// Whether the byte at `iova` can be read.
    #[inline(always)]
    pub(super) fn may_read(&self, iova: u64) -> bool {
        self.span(iova).is_some_and(|span| span.get().readable)
    }

    /// By reference: a copy of it would be read in other pieces than it is written in, for which a processor waits.
    #[inline(always)]
    fn span(&self, iova: u64) -> Option<&Cell<Span>> {
        let hit = self.cache.iter().find(|span| span.get().holds(iova));
        hit.or_else(|| self.look_up(iova))
    }

    #[cold]
    #[inline(never)]
    fn look_up(&self, iova: u64) -> Option<&Cell<Span>> {
        let span = Span::of(self.inner.maps.at(iova)?);
        let slot = self.next_cached.get();
        self.cache[slot].set(span);
        self.next_cached.set((slot + 1) % CACHED_SPANS);
        Some(&self.cache[slot])
    }

    /// `len` bytes at `iova`, all of which lie in `span`.
    #[inline(always)]
    fn bytes(&self, span: &Span, iova: u64, len: u64) -> HostBytes<'_> {
        debug_assert!(span.holds(iova) && len <= span.last - iova + 1);
        // SAFETY: the span is an entry of the maps, which the guard in `self` keeps as they are, with a reference to
        // the mmap; map() has checked that the entry lies in the mmap; iova lies in the entry.
        unsafe {
            let start = span.start.as_ptr().add((iova - span.first) as usize);
            HostBytes::new(NonNull::new_unchecked(start), len as usize)
        }
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        self.make_deferred_mark();
        self.space.end_of_batch(&self.counts);
    }
}

/// The ranges, shortened to `limit` bytes in all.
pub(super) fn clip(ranges: &[Range], limit: u64) -> impl Iterator<Item = Range> + '_ {
    let mut left = limit;
    ranges.iter().map_while(move |range| {
        let len = range.len.min(left);
        let more = left > 0;
        left -= len;
        more.then_some(Range::new(range.iova, len))
    })
}
