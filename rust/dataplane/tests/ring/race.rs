// SPDX-License-Identifier: Apache-2.0
//! A driver and a device that run at the same time and sleep whenever they may: no buffer gets lost, and neither
//! sleeps through the other one's notification.

use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{fence, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use crate::packed_driver::{PackedDriver, AVAIL, USED};
use crate::split_driver::SplitDriver;
use crate::support::{open, Driver, Features, Guest, BASE, WRITE};
use vdpa_net_dataplane::ring::{Chain, Line, Ring};

const BUFFERS: u64 = 30_000;
const PATIENCE: Duration = Duration::from_secs(5);
const DESC: u32 = 2 << 16;

/// The guest's own view of its memory.
struct View(NonNull<u8>);

// SAFETY: all accesses go through atomics.
unsafe impl Send for View {}

impl View {
    fn new(guest: &Guest) -> Self {
        let (bytes, fd) = (Guest::size() as usize, guest.file().as_raw_fd());
        // SAFETY: a new shared mapping of a file that is as long.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        assert_ne!(address, libc::MAP_FAILED, "mmap");
        Self(NonNull::new(address.cast()).expect("an address"))
    }

    fn at<T>(&self, iova: u64) -> &T {
        assert!(iova - BASE < Guest::size());
        // SAFETY: the address lies in the mapping and is aligned, and T is an atomic.
        unsafe { &*self.0.as_ptr().add((iova - BASE) as usize).cast::<T>() }
    }

    fn u16(&self, iova: u64) -> &AtomicU16 {
        self.at(iova)
    }

    fn u32(&self, iova: u64) -> &AtomicU32 {
        self.at(iova)
    }

    fn u64(&self, iova: u64) -> &AtomicU64 {
        self.at(iova)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one, and nothing refers to it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), Guest::size() as usize) };
    }
}

/// A driver whose buffers are one descriptor each. Numbers count from 0 on.
trait Side: Send {
    /// Make a buffer available; whether the device wants a kick.
    fn add(&mut self, number: u64) -> bool;
    /// Bytes written to the next used buffer.
    fn reap(&mut self, number: u64) -> Option<u32>;
    /// Ask for an interrupt at this used buffer.
    fn arm(&mut self, number: u64);
}

struct Packed {
    view: View,
    desc: u64,
    driver: u64,
    device: u64,
    size: u64,
}

impl Packed {
    fn wrap(&self, number: u64) -> bool {
        number / self.size % 2 == 0
    }

    fn encode(&self, number: u64) -> u32 {
        (number % self.size) as u32 | u32::from(self.wrap(number)) << 15
    }
}

impl Side for Packed {
    fn add(&mut self, number: u64) -> bool {
        let place = self.desc + 16 * (number % self.size);
        self.view.u64(place).store(BASE, Ordering::Relaxed);
        self.view.u32(place + 8).store(64, Ordering::Relaxed);
        let id = (number % self.size) as u16;
        self.view.u16(place + 12).store(id, Ordering::Relaxed);
        let flags = WRITE | if self.wrap(number) { AVAIL } else { USED };
        self.view.u16(place + 14).store(flags, Ordering::Release);
        fence(Ordering::SeqCst);
        let wish = self.view.u32(self.device).load(Ordering::Relaxed);
        wish >> 16 == 0 || (wish & !0xffff == DESC && wish & 0xffff == self.encode(number))
    }

    fn reap(&mut self, number: u64) -> Option<u32> {
        let place = self.desc + 16 * (number % self.size);
        let flags = self.view.u16(place + 14).load(Ordering::Acquire);
        let both = if self.wrap(number) { AVAIL | USED } else { 0 };
        (flags & (AVAIL | USED) == both).then(|| self.view.u32(place + 8).load(Ordering::Relaxed))
    }

    fn arm(&mut self, number: u64) {
        let wish = DESC | self.encode(number);
        self.view.u32(self.driver).store(wish, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

struct Split {
    view: View,
    desc: u64,
    driver: u64,
    device: u64,
    size: u64,
}

impl Side for Split {
    fn add(&mut self, number: u64) -> bool {
        let head = number % self.size;
        let place = self.desc + 16 * head;
        self.view.u64(place).store(BASE, Ordering::Relaxed);
        self.view.u32(place + 8).store(64, Ordering::Relaxed);
        self.view.u16(place + 12).store(WRITE, Ordering::Relaxed);
        let entry = self.view.u16(self.driver + 4 + 2 * head);
        entry.store(head as u16, Ordering::Relaxed);
        let idx = self.view.u16(self.driver + 2);
        idx.store((number + 1) as u16, Ordering::Release);
        fence(Ordering::SeqCst);
        let event = self.view.u16(self.device + 4 + 8 * self.size);
        event.load(Ordering::Relaxed) == number as u16
    }

    fn reap(&mut self, number: u64) -> Option<u32> {
        let idx = self.view.u16(self.device + 2).load(Ordering::Acquire);
        let len = self.device + 4 + 8 * (number % self.size) + 4;
        (idx != number as u16).then(|| self.view.u32(len).load(Ordering::Relaxed))
    }

    fn arm(&mut self, number: u64) {
        let event = self.view.u16(self.driver + 4 + 2 * self.size);
        event.store(number as u16, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

/// A channel that holds one signal, as an eventfd does.
fn signal(to: &SyncSender<()>) {
    let _ = to.try_send(());
}

fn wait(on: &Receiver<()>, what: &str) -> bool {
    match on.recv_timeout(PATIENCE) {
        Ok(()) => true,
        Err(RecvTimeoutError::Disconnected) => false,
        Err(RecvTimeoutError::Timeout) => panic!("a lost {what}"),
    }
}

fn drive(mut side: impl Side, size: u64, kick: SyncSender<()>, call: Receiver<()>) {
    let (mut made, mut taken) = (0, 0);
    while taken < BUFFERS {
        while made < BUFFERS && made - taken < size {
            if side.add(made) {
                signal(&kick);
            }
            made += 1;
        }
        let before = taken;
        while taken < made {
            let Some(len) = side.reap(taken) else { break };
            assert_eq!(u64::from(len), taken % 61 + 1, "buffer {taken}");
            taken += 1;
        }
        if taken == before {
            std::thread::yield_now();
            side.arm(taken);
            if side.reap(taken).is_none() {
                assert!(wait(&call, "interrupt"), "the device has gone");
            }
        }
    }
}

fn serve(ring: &mut dyn Ring, guest: &Guest, call: &SyncSender<()>, kick: &Receiver<()>) {
    let mut chain = Chain::default();
    let mut used = 0;
    loop {
        let memory = guest.space.lock();
        let before = used;
        let mut line = Line::default();
        let has_some = ring.has_available(&memory).expect("has_available");
        if has_some && ring.pop_line(&memory, &mut line) {
            let line = line.map(|single| single.taken());
            let lens = std::array::from_fn(|index| ((used + index as u64) % 61 + 1) as u32);
            ring.push_line(&memory, &line, lens).expect("push_line");
            used += lens.len() as u64;
        }
        while used - before < 5 && ring.pop(&memory, &mut chain).expect("pop") {
            let len = (used % 61 + 1) as u32;
            ring.push_used(&memory, chain.taken, len)
                .expect("push_used");
            used += 1;
        }
        if ring.publish(&memory).expect("publish") {
            signal(call);
        }
        if used == before {
            // Now is when the other one comes between.
            std::thread::yield_now();
        }
        let sleeps = used == before && !ring.enable_kicks(&memory).expect("enable_kicks");
        drop(memory);
        if sleeps && !wait(kick, "kick") {
            assert_eq!(used, BUFFERS);
            return;
        }
    }
}

fn race(packed: bool, size: u16) {
    let guest = Guest::new();
    let features = Features {
        packed,
        event_idx: true,
        indirect: false,
    };
    let driver: Box<dyn Driver> = if packed {
        Box::new(PackedDriver::new(&guest, size, true, 0))
    } else {
        Box::new(SplitDriver::new(&guest, size, true, 0))
    };
    let mut ring = open(&guest, driver.as_ref(), features, 0, false);
    let (desc, driver, device) = driver.areas();
    let (view, entries) = (View::new(&guest), u64::from(size));
    let (kick, kicked) = sync_channel(1);
    let (call, called) = sync_channel(1);
    std::thread::scope(|scope| {
        let driving = scope.spawn(move || {
            let size = entries;
            if packed {
                let side = Packed {
                    view,
                    desc,
                    driver,
                    device,
                    size,
                };
                drive(side, size, kick, called);
            } else {
                let side = Split {
                    view,
                    desc,
                    driver,
                    device,
                    size,
                };
                drive(side, size, kick, called);
            }
        });
        serve(&mut *ring, &guest, &call, &kicked);
        driving.join().expect("the driver");
    });
}

#[test]
fn split_ring_and_its_driver_never_sleep_through_each_other() {
    for size in [1, 2, 16] {
        race(false, size);
    }
}

#[test]
fn packed_ring_and_its_driver_never_sleep_through_each_other() {
    for size in [1, 2, 3, 16] {
        race(true, size);
    }
}
