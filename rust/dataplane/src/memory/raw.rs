// SPDX-License-Identifier: Apache-2.0
//! Bytes that another process reads and writes at the same time.
//!
//! There is never a Rust reference to guest memory. Single words are read and written whole, volatile or atomic.
//! Long copies are plain memory copies, as every VMM makes them: the other side's changes are made outside of this
//! program, the copy may mix old and new bytes, and nothing may be concluded from guest memory before it is copied.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU8, Ordering};

/// Copies up to this length are made word by word, so that no field of a ring entry is read or written in halves.
const WORDWISE_BYTES: usize = 64;
const MAX_WORD_BYTES: usize = 8;

/// A piece of guest memory, in this process, that stays mapped for `'g`.
#[derive(Clone, Copy)]
pub(super) struct HostBytes<'g> {
    start: NonNull<u8>,
    len: usize,
    guard: PhantomData<&'g ()>,
}

impl<'g> HostBytes<'g> {
    /// # Safety
    /// [start, start + len) must be mapped for `'g`, and writable if it is written.
    #[inline]
    pub(super) unsafe fn new(start: NonNull<u8>, len: usize) -> Self {
        Self {
            start,
            len,
            guard: PhantomData,
        }
    }

    #[inline]
    pub(super) fn len(self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn address(self) -> usize {
        self.start.as_ptr() as usize
    }

    /// `len` bytes of these, from `offset` on.
    #[inline]
    pub(super) fn part(self, offset: usize, len: usize) -> Self {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "part of guest memory"
        );
        // SAFETY: the part lies inside, as checked, and is mapped as the whole is.
        unsafe {
            let start = NonNull::new_unchecked(self.start.as_ptr().add(offset));
            Self::new(start, len)
        }
    }

    #[inline]
    pub(super) fn iovec(self) -> libc::iovec {
        libc::iovec {
            iov_base: self.start.as_ptr().cast(),
            iov_len: self.len,
        }
    }

    /// Copy all bytes out; `out` has the same length.
    #[inline]
    pub(super) fn copy_to(self, out: &mut [u8]) {
        assert_eq!(out.len(), self.len, "guest memory copy");
        let (from, to) = (self.start.as_ptr(), out.as_mut_ptr());
        if self.len > WORDWISE_BYTES {
            // SAFETY: both are valid for `len` bytes; `out` is ours alone, so they don't overlap.
            unsafe { std::ptr::copy_nonoverlapping(from, to, self.len) };
            return;
        }
        if self.is_of_long_words() {
            for offset in (0..self.len).step_by(MAX_WORD_BYTES) {
                // SAFETY: as below; the length is a multiple of the word's.
                unsafe { load_word(from.add(offset), to.add(offset), MAX_WORD_BYTES) };
            }
            return;
        }
        for (offset, bytes) in words(self.address(), self.len) {
            // SAFETY: offset + bytes <= len, and the guest address is aligned to `bytes`.
            unsafe { load_word(from.add(offset), to.add(offset), bytes) };
        }
    }

    /// Copy all bytes in; `data` has the same length.
    #[inline]
    pub(super) fn copy_from(self, data: &[u8]) {
        assert_eq!(data.len(), self.len, "guest memory copy");
        let (from, to) = (data.as_ptr(), self.start.as_ptr());
        if self.len > WORDWISE_BYTES {
            // SAFETY: both are valid for `len` bytes; `data` is borrowed, so they don't overlap.
            unsafe { std::ptr::copy_nonoverlapping(from, to, self.len) };
            return;
        }
        if self.is_of_long_words() {
            for offset in (0..self.len).step_by(MAX_WORD_BYTES) {
                // SAFETY: as below; the length is a multiple of the word's.
                unsafe { store_word(from.add(offset), to.add(offset), MAX_WORD_BYTES) };
            }
            return;
        }
        for (offset, bytes) in words(self.address(), self.len) {
            // SAFETY: offset + bytes <= len, and the guest address is aligned to `bytes`.
            unsafe { store_word(from.add(offset), to.add(offset), bytes) };
        }
    }

    /// Have the first byte's cache line brought here, for stores to come. Nothing is read or written.
    #[inline]
    pub(super) fn prefetch_for_write(self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch does not fault, whatever the address.
        unsafe {
            use std::arch::x86_64::{_mm_prefetch, _MM_HINT_ET0};
            _mm_prefetch::<_MM_HINT_ET0>(self.start.as_ptr().cast());
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a prefetch does not fault, whatever the address.
        unsafe {
            std::arch::asm!("prfm pstl1keep, [{0}]", in(reg) self.start.as_ptr(), options(nostack, preserves_flags));
        }
    }

    /// Store two words, of which neither is seen in halves.
    #[inline]
    pub(super) fn store_pair(self, pair: [u32; 2]) {
        assert!(
            self.len >= 8 && self.address() % 4 == 0,
            "guest memory words"
        );
        let to = self.start.as_ptr().cast::<u32>();
        // SAFETY: eight bytes are valid; the address is aligned to 4 and, for the one store, to 8.
        unsafe {
            if self.address() % 8 == 0 {
                let [first, second] = pair.map(u32::to_ne_bytes);
                let [a, b, c, d] = first;
                let [e, f, g, h] = second;
                to.cast::<u64>()
                    .write_volatile(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
            } else {
                to.write_volatile(pair[0]);
                to.add(1).write_volatile(pair[1]);
            }
        }
    }

    /// Copy all bytes in, in any order and pieces: not for fields of a ring.
    #[inline]
    pub(super) fn copy_data_from(self, data: &[u8]) {
        assert_eq!(data.len(), self.len, "guest memory copy");
        // SAFETY: both are valid for `len` bytes; `data` is borrowed, so they don't overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), self.start.as_ptr(), self.len);
        }
    }

    /// Descriptors and used elements are: the common case needs no look at each word's alignment.
    #[inline]
    fn is_of_long_words(self) -> bool {
        (self.address() | self.len) % MAX_WORD_BYTES == 0
    }

    /// Acquire: what the guest wrote before this value is visible afterwards.
    #[inline]
    pub(super) fn load_u16(self) -> u16 {
        self.as_u16().load(Ordering::Acquire)
    }

    /// The same without acquire order: a fence has to follow before anything is concluded from it.
    #[inline]
    pub(super) fn load_relaxed_u16(self) -> u16 {
        self.as_u16().load(Ordering::Relaxed)
    }

    /// A word of which no field is seen in halves. Its address must be a multiple of 8.
    #[inline]
    pub(super) fn load_u64(self) -> u64 {
        assert!(
            self.len >= 8 && self.address() % 8 == 0,
            "guest memory word"
        );
        // SAFETY: eight bytes are valid and aligned.
        unsafe { self.start.as_ptr().cast::<u64>().read_volatile() }
    }

    /// Release: what was written before is visible to whoever sees this value.
    #[inline]
    pub(super) fn store_u16(self, value: u16) {
        self.as_u16().store(value, Ordering::Release);
    }

    /// Set bits of the first byte; returns what it was. Release: whoever sees the bit sees the stores before.
    #[inline]
    pub(super) fn or_u8(self, mask: u8) -> u8 {
        assert!(self.len >= 1, "guest memory byte");
        // SAFETY: one byte is valid, and an atomic tolerates changes by others.
        let byte = unsafe { &*self.start.as_ptr().cast::<AtomicU8>() };
        byte.fetch_or(mask, Ordering::Release)
    }

    /// Clear bits of the first byte; returns what it was. What stood before a bit that is found set is seen by this
    /// thread, and by whoever learns of the bit from it.
    pub(super) fn take_bits_u8(self, mask: u8) -> u8 {
        assert!(self.len >= 1, "guest memory byte");
        // SAFETY: one byte is valid, and an atomic tolerates changes by others.
        let byte = unsafe { &*self.start.as_ptr().cast::<AtomicU8>() };
        // Most bytes of a log are empty, and a look does not take the cache line away from the one who marks.
        if byte.load(Ordering::Relaxed) & mask == 0 {
            return 0;
        }
        byte.fetch_and(!mask, Ordering::AcqRel)
    }

    #[inline]
    fn as_u16(&self) -> &'g AtomicU16 {
        assert!(
            self.len >= 2 && self.address() % 2 == 0,
            "guest memory word"
        );
        // SAFETY: two bytes are valid for 'g, aligned, and an atomic tolerates changes by others.
        unsafe { &*self.start.as_ptr().cast::<AtomicU16>() }
    }
}

/// The naturally aligned words that make up `len` bytes at `address`: (offset, bytes).
fn words(address: usize, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let left = len - offset;
        if left == 0 {
            return None;
        }
        let aligned = 1 << (address + offset).trailing_zeros().min(3);
        let fitting = 1 << left.ilog2().min(3);
        let bytes = MAX_WORD_BYTES.min(aligned).min(fitting);
        let word = (offset, bytes);
        offset += bytes;
        Some(word)
    })
}

/// # Safety
/// `from` is aligned to `bytes` (1, 2, 4 or 8); both are valid for as many bytes.
#[inline]
unsafe fn load_word(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: the caller guarantees alignment of `from` and validity of both.
    unsafe {
        match bytes {
            8 => to
                .cast::<u64>()
                .write_unaligned(from.cast::<u64>().read_volatile()),
            4 => to
                .cast::<u32>()
                .write_unaligned(from.cast::<u32>().read_volatile()),
            2 => to
                .cast::<u16>()
                .write_unaligned(from.cast::<u16>().read_volatile()),
            _ => to.write(from.read_volatile()),
        }
    }
}

/// # Safety
/// `to` is aligned to `bytes` (1, 2, 4 or 8); both are valid for as many bytes.
#[inline]
unsafe fn store_word(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: the caller guarantees alignment of `to` and validity of both.
    unsafe {
        match bytes {
            8 => to
                .cast::<u64>()
                .write_volatile(from.cast::<u64>().read_unaligned()),
            4 => to
                .cast::<u32>()
                .write_volatile(from.cast::<u32>().read_unaligned()),
            2 => to
                .cast::<u16>()
                .write_volatile(from.cast::<u16>().read_unaligned()),
            _ => to.write_volatile(from.read()),
        }
    }
}
