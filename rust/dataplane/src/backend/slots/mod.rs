// SPDX-License-Identifier: Apache-2.0
//! Packets that were read ahead of the ring, in memory of ours, the oldest first.
//!
//! Several are read at a time: one system call after the other finds the kernel's code and its own data in the caches,
//! and so does the delivery of the packets afterwards. While a file has more than that, they are read by io_uring in one
//! call, for which the memory is registered: the kernel does not look it up for each packet then.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use io_uring::{opcode, types, IoUring};

use super::Received;
use crate::net::MAX_PACKET_BYTES;
use crate::requests::{complete, new_ring};

/// Packets that are read ahead at most. What they are in has to stay in the second-level cache.
pub(crate) const SLOTS: usize = 16;
/// One byte more than a packet can have: a longer one shows.
const SLOT_BYTES: usize = MAX_PACKET_BYTES + 1;
/// From one slot to the next: the beginnings of all slots lie in different sets of a cache.
const STRIDE_BYTES: usize = (1 << 16) + 1728;
/// After one of this length no further one is read: the next had better go straight to the driver.
pub(crate) const LONG_BYTES: usize = 4096;
/// So many full reads in a row make a ring worth it. A file that is empty after them costs as many requests in vain.
const FULL_READS: u8 = 3;
/// Rings of all ports of the process at most: the memory of each, a megabyte, is pinned.
const MAX_RINGS: usize = 16;

static RINGS: AtomicUsize = AtomicUsize::new(0);

const _: () = assert!(SLOT_BYTES <= STRIDE_BYTES);

/// The packets.
#[derive(Default)]
pub(crate) struct Slots {
    // Goes before the memory that is registered with it.
    ring: Ring,
    /// Zeros that take no memory as long as nothing was read into them; none before the first packet. Its address stays
    /// the same.
    bytes: Box<[u8]>,
    /// Slot and length of each packet.
    packets: [(u8, u32); SLOTS],
    /// Place of the oldest packet.
    first: usize,
    /// Place behind that of the youngest one.
    end: usize,
    full_reads: u8,
}

#[derive(Default)]
enum Ring {
    #[default]
    NotYet,
    /// The system has none for us, or it is not to be used.
    Never,
    Ready(Box<Registered>),
}

struct Registered {
    ring: IoUring,
    _seat: Seat,
}

/// One of [`MAX_RINGS`].
struct Seat;

impl Seat {
    fn take() -> Option<Self> {
        let more = |rings: usize| (rings < MAX_RINGS).then_some(rings + 1);
        let taken = RINGS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then_some(Self)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        RINGS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots")
            .field("packets", &self.count())
            .finish_non_exhaustive()
    }
}

impl Slots {
    /// How many packets there are.
    pub(crate) fn count(&self) -> usize {
        self.end - self.first
    }

    /// Bytes of the oldest packet.
    #[inline]
    pub(crate) fn first_len(&self) -> Option<usize> {
        (self.count() > 0).then(|| self.packets[self.first].1 as usize)
    }

    /// The slot of the oldest packet, or a free one where there is none.
    #[inline]
    pub(crate) fn first(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = vec![0; SLOTS * STRIDE_BYTES].into();
        }
        let slot = match self.count() {
            0 => 0,
            _ => self.packets[self.first].0,
        };
        let start = usize::from(slot) * STRIDE_BYTES;
        &mut self.bytes[start..start + SLOT_BYTES]
    }

    /// The oldest packet.
    #[inline]
    pub(crate) fn oldest(&self) -> Option<&[u8]> {
        let len = self.first_len()?;
        let start = usize::from(self.packets[self.first].0) * STRIDE_BYTES;
        Some(&self.bytes[start..start + len])
    }

    /// What [`Self::first`] gave holds a packet of `len` bytes.
    pub(crate) fn set_first_len(&mut self, len: usize) {
        if self.count() == 0 {
            self.clear();
            self.add(0, len);
        }
        self.packets[self.first].1 = len as u32;
    }

    /// The oldest packet is gone.
    #[inline]
    pub(crate) fn remove_first(&mut self) {
        self.first += usize::from(self.count() > 0);
        if self.first == self.end {
            self.clear();
        }
    }

    /// All are gone.
    pub(crate) fn clear(&mut self) {
        (self.first, self.end) = (0, 0);
    }

    #[inline]
    fn add(&mut self, slot: usize, len: usize) {
        self.packets[self.end] = (slot as u8, len as u32);
        self.end += 1;
    }

    /// Where there is no packet: receive one by `receive`. What there was instead, if there was none.
    pub(super) fn receive_one(
        &mut self,
        receive: impl FnOnce(&mut [u8]) -> Received,
    ) -> Option<Received> {
        match receive(self.first()) {
            Received::Packet(len) => self.set_first_len(len),
            ended => return Some(ended),
        }
        None
    }

    /// Where there is no packet: read up to `limit`. What ended it before that, if something did.
    pub(super) fn read(&mut self, fd: BorrowedFd<'_>, limit: usize) -> Option<Received> {
        self.clear();
        self.first();
        let limit = limit.min(SLOTS);
        let ended = if limit == SLOTS && self.full_reads >= FULL_READS && self.has_ring() {
            self.read_by_ring(fd)
        } else {
            self.read_one_by_one(fd, limit)
        };
        let is_full = self.count() == limit;
        self.full_reads = if is_full {
            self.full_reads.saturating_add(1)
        } else {
            0
        };
        ended
    }

    fn read_one_by_one(&mut self, fd: BorrowedFd<'_>, limit: usize) -> Option<Received> {
        for slot in self.end..limit {
            match read(fd, &mut self.bytes[slot * STRIDE_BYTES..][..SLOT_BYTES]) {
                Received::Packet(len) => {
                    self.add(slot, len);
                    if len >= LONG_BYTES {
                        return None;
                    }
                }
                ended => return Some(ended),
            }
        }
        None
    }

    /// False: there is none for us.
    fn has_ring(&mut self) -> bool {
        if matches!(self.ring, Ring::NotYet) {
            self.first();
            let made = make_ring(&mut self.bytes);
            self.ring = made.map_or(Ring::Never, |ring| Ring::Ready(Box::new(ring)));
        }
        matches!(self.ring, Ring::Ready(_))
    }

    fn read_by_ring(&mut self, fd: BorrowedFd<'_>) -> Option<Received> {
        let Ring::Ready(registered) = &mut self.ring else {
            return None;
        };
        let ring = &mut registered.ring;
        for (slot, bytes) in self.bytes.chunks_exact_mut(STRIDE_BYTES).enumerate() {
            let fd = types::Fd(fd.as_raw_fd());
            let read = opcode::ReadFixed::new(fd, bytes.as_mut_ptr(), SLOT_BYTES as u32, 0);
            let entry = read.rw_flags(libc::RWF_NOWAIT).build();
            // SAFETY: the slot is memory of ours that lives as long as the ring, each request has one of its own, and
            // nobody looks at it before `complete` returns, when no request is under way any more.
            if unsafe { ring.submission().push(&entry.user_data(slot as u64)) }.is_err() {
                // It has room for all slots, and is empty before.
                debug_assert!(false, "submission queue is full");
            }
        }
        let mut results = [-(libc::EAGAIN as isize); SLOTS];
        let is_sound = complete(ring, &mut results);
        let ended = self.take(&results);
        if ended == Some(Received::Failed(libc::EOPNOTSUPP)) {
            // A descriptor that can't be told not to wait. It has given nothing.
            self.ring = Ring::Never;
            return self.read_one_by_one(fd, SLOTS);
        }
        if !is_sound {
            self.ring = Ring::Never;
        }
        ended
    }

    /// The packets of these reads, in their order, those behind one that gave none as well. What the last of those that
    /// gave none came to.
    fn take(&mut self, results: &[isize]) -> Option<Received> {
        let mut ended = None;
        for (slot, result) in results.iter().enumerate() {
            match received(to_result(*result)) {
                Some(Received::Packet(len)) => self.add(slot, len),
                // A request does not come back because of a signal.
                other => ended = Some(other.unwrap_or(Received::Empty)),
            }
        }
        ended
    }
}

/// A ring with which these bytes are registered. None: the system gives none, or there are enough.
fn make_ring(bytes: &mut [u8]) -> Option<Registered> {
    let seat = Seat::take()?;
    let ring = new_ring(SLOTS, &[opcode::ReadFixed::CODE]).ok()?;
    let all = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the memory stays where it is as long as the ring, which goes first, and is written to only by requests.
    unsafe { ring.submitter().register_buffers(&[all]) }.ok()?;
    Some(Registered { ring, _seat: seat })
}

/// Read the next packet.
#[inline]
pub(super) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Received {
    loop {
        // SAFETY: the pointer and the length are those of a live, exclusively borrowed slice.
        let read = unsafe {
            libc::syscall(
                libc::SYS_read,
                fd.as_raw_fd(),
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        };
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error());
        if let Some(received) = received(read) {
            return received;
        }
    }
}

/// What the result of a read means; None: read again.
#[inline]
pub(super) fn received(read: io::Result<usize>) -> Option<Received> {
    match read {
        Ok(0) => Some(Received::Failed(libc::ENODEV)),
        Ok(len) => Some(Received::Packet(len)),
        Err(error) => match error.kind() {
            io::ErrorKind::Interrupted => None,
            io::ErrorKind::WouldBlock => Some(Received::Empty),
            _ => Some(Received::Failed(error.raw_os_error().unwrap_or(libc::EIO))),
        },
    }
}

fn to_result(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.unsigned_abs() as i32))
}
