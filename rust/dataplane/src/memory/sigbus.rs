// SPDX-License-Identifier: Apache-2.0
//! A file that shrinks under its mmap must not kill the process.
//!
//! Touching a page beyond the new end raises SIGBUS in the thread that touches it. The handler looks the
//! address up in a fixed table of our mmaps, puts anonymous memory over the hole, counts it, and returns: the
//! access is repeated and succeeds. Whatever is not ours goes to the handler that was there before. One that is
//! installed later takes over and has to chain to ours.
//!
//! What the handler touches is atomics and the raw `mmap` and `sigaction` system calls: it takes no lock,
//! allocates nothing, and leaves errno as it was.

use std::mem::MaybeUninit;
use std::sync::atomic::{fence, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use libc::{c_int, c_void};
use parking_lot::Mutex;

/// How many files a process can have mapped at a time. Together with [`SINGLE_PAGE_HOLES`] it keeps the number
/// of kernel mappings below vm.max_map_count (65530), beyond which no hole could be filled any more.
pub(super) const MAX_FILES: usize = 4096;

/// So many holes of one file are filled page by page. After that its whole rest is replaced: every hole splits a
/// mapping in the kernel, and a hostile client must not be able to use those up.
const SINGLE_PAGE_HOLES: u32 = 4;

/// Holes filled on behalf of one DMA space.
#[derive(Debug, Default)]
pub(super) struct Tally {
    hits: AtomicU64,
    last_offset: AtomicU64,
}

impl Tally {
    /// Holes filled since creation.
    pub(super) fn hits(&self) -> u64 {
        self.hits.load(Ordering::Acquire)
    }

    /// Offset, in bytes, of the last hole in its file.
    pub(super) fn last_offset(&self) -> u64 {
        self.last_offset.load(Ordering::Relaxed)
    }
}

/// One mmap. `sequence` is odd while the slot changes; a reader that sees it change has read nothing.
struct Slot {
    sequence: AtomicU64,
    start: AtomicUsize,
    end: AtomicUsize,
    page_bytes: AtomicUsize,
    holes: AtomicU32,
    tally: AtomicPtr<Tally>,
}

impl Slot {
    const fn new() -> Self {
        Self {
            sequence: AtomicU64::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            page_bytes: AtomicUsize::new(0),
            holes: AtomicU32::new(0),
            tally: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// Only under the lock of [`FREE`].
    fn set(&self, start: usize, len: usize, page_bytes: usize, tally: *mut Tally) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence + 1, Ordering::Relaxed);
        // The odd sequence must be visible before any of the stores below.
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(start + len, Ordering::Relaxed);
        self.page_bytes.store(page_bytes, Ordering::Relaxed);
        self.holes.store(0, Ordering::Relaxed);
        self.tally.store(tally, Ordering::Relaxed);
        self.sequence.store(sequence + 2, Ordering::Release);
    }

    /// (start, end, bytes of a page) if `address` lies in this mmap.
    fn covering(&self, address: usize) -> Option<(usize, usize, usize)> {
        let sequence = self.sequence.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        let page_bytes = self.page_bytes.load(Ordering::Relaxed);
        // The loads above must be complete before the sequence is read again.
        fence(Ordering::Acquire);
        let torn = sequence % 2 == 1 || self.sequence.load(Ordering::Relaxed) != sequence;
        (!torn && (start..end).contains(&address)).then_some((start, end, page_bytes))
    }
}

#[allow(clippy::declare_interior_mutable_const)] // The constant is only the pattern to fill the table with.
const EMPTY_SLOT: Slot = Slot::new();
static SLOTS: [Slot; MAX_FILES] = [EMPTY_SLOT; MAX_FILES];
/// Slots below this index have been used.
static USED: AtomicUsize = AtomicUsize::new(0);
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Keeps one mmap in the handler's table. Drop it before the mmap goes.
#[derive(Debug)]
pub(super) struct Registration {
    slot: usize,
    tally: Arc<Tally>,
}

impl Registration {
    /// Enter an mmap of `len` bytes; None: the table is full. `page_bytes` is the size of its pages (hugepages
    /// can only be replaced whole).
    pub(super) fn new(
        start: usize,
        len: usize,
        page_bytes: usize,
        tally: &Arc<Tally>,
    ) -> Option<Self> {
        install();
        let mut free = FREE.lock();
        let slot = free.pop().or_else(take_unused_slot)?;
        let tally = Arc::clone(tally);
        SLOTS[slot].set(start, len, page_bytes, Arc::as_ptr(&tally).cast_mut());
        Some(Self { slot, tally })
    }

    /// Whether a hole in this mmap was filled: such pages have lost their file for good.
    pub(super) fn has_holes(&self) -> bool {
        SLOTS[self.slot].holes.load(Ordering::Acquire) > 0
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut free = FREE.lock();
        SLOTS[self.slot].set(0, 0, 0, std::ptr::null_mut());
        free.push(self.slot);
        // The slot points to the tally, which therefore lives at least until here.
        debug_assert!(Arc::strong_count(&self.tally) > 0);
    }
}

fn take_unused_slot() -> Option<usize> {
    let slot = USED.load(Ordering::Relaxed);
    (slot < MAX_FILES).then(|| {
        USED.store(slot + 1, Ordering::Release);
        slot
    })
}

fn install() {
    PREVIOUS.get_or_init(|| {
        let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a null action only queries; `previous` is a valid place for the answer.
        unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), previous.as_mut_ptr()) };
        // SAFETY: all-zero is a valid sigaction, and the call above can only have made it a better one.
        unsafe { previous.assume_init() }
    });
    // A second step, because the handler must find PREVIOUS set.
    static INSTALLED: std::sync::Once = std::sync::Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all-zero is a valid sigaction: no flags, empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: `action` is complete and `on_sigbus` has the signature that SA_SIGINFO asks for.
        unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) };
    });
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: errno's location is valid in every thread.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes a valid siginfo to a SA_SIGINFO handler.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code != libc::BUS_ADRERR || !fill_hole(address) {
        chain(signal, code, info, context);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Put anonymous memory under `address` if it lies in one of our mmaps; false: it doesn't, or that failed.
fn fill_hole(address: usize) -> bool {
    let used = USED.load(Ordering::Acquire);
    let Some((slot, (start, end, page_bytes))) = SLOTS[..used]
        .iter()
        .find_map(|slot| slot.covering(address).map(|range| (slot, range)))
    else {
        return false;
    };
    let page = address & !(page_bytes - 1);
    let single = slot.holes.fetch_add(1, Ordering::AcqRel) < SINGLE_PAGE_HOLES;
    let len = if single { page_bytes } else { end - page };
    // SAFETY: [page, page + len) lies in an mmap of ours, whose pages no Rust object lives in.
    let filled = unsafe {
        libc::mmap(
            page as *mut c_void,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    // SAFETY: the thread that faulted uses this mmap, so its registration lives, and with it the tally.
    let tally = unsafe { &*slot.tally.load(Ordering::Relaxed) };
    tally
        .last_offset
        .store((page - start) as u64, Ordering::Relaxed);
    tally.hits.fetch_add(1, Ordering::Release);
    filled != libc::MAP_FAILED
}

/// Let the previous handler have it. The default is death, which is right for a fault that is not ours.
fn chain(signal: c_int, code: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(previous) = PREVIOUS.get() else {
        return;
    };
    match previous.sa_sigaction {
        // A real fault would come again at once, so ignoring is only possible for a signal that was sent.
        libc::SIG_IGN if code <= 0 => {}
        libc::SIG_DFL | libc::SIG_IGN => die(signal),
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: SA_SIGINFO says that the handler has this signature.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO the handler has this signature.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// Restore the default action and raise the signal, which is delivered when the handler returns.
fn die(signal: c_int) {
    // SAFETY: SIG_DFL is a valid handler; both calls are async-signal-safe.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}
