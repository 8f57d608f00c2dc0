// SPDX-License-Identifier: Apache-2.0
//! The numbered flows: per flow a thread that receives and one that sends. Each sleeps in the kernel until it
//! has work.

use std::net::UdpSocket;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::run::{Order, Shared};
use crate::wire::{self, Header, Kind, ECHO, HEADER, MAX_LENGTH};

/// Packets that are sent late in one go; what is due beyond that (the machine stood still) is left out.
const MAX_BURST: u32 = 32;
const POOL: usize = 1 << 16;

/// Counts what arrives on a flow's socket, for ever.
pub fn receive(socket: &UdpSocket, flow: usize, shared: &Shared) {
    let mut buffer = [0u8; 2048];
    loop {
        // An error is that of an earlier packet of ours (nobody listened there yet): no news.
        let Ok(length) = socket.recv(&mut buffer) else {
            continue;
        };
        let now = Instant::now();
        let header = wire::parse(&mut buffer[..length]);
        let mut run = shared.lock();
        let Some(header) = header else {
            run.corrupted += 1;
            continue;
        };
        let known = header.kind == Kind::Data as u8
            && header.run_id == run.order.run_id
            && usize::from(header.flow) == flow
            && flow < run.flows.len();
        if !known {
            run.foreign += 1;
        } else if !run.flows[flow].received.accept(header.sequence, now) {
            run.corrupted += 1;
        }
    }
}

/// Sends one run after the other on a flow's connected socket, for ever.
///
/// A connected socket keeps the transmit queue that its first packet was given, which is that of the CPU it was
/// sent from: the flow stays in order, and flows of different CPUs use different queues.
pub fn send(socket: &UdpSocket, flow: usize, shared: &Shared) {
    pin_to_cpu(flow);
    let pool = random_pool();
    let mut known = 0;
    loop {
        let order = shared.wait_for_other(known, flow);
        known = order.run_id;
        send_run(socket, flow, shared, &order, &pool);
    }
}

fn send_run(socket: &UdpSocket, flow: usize, shared: &Shared, order: &Order, pool: &[u8]) {
    let interval = Duration::from_secs(1) * order.flows as u32 / order.rate_pps.max(1);
    let mut due = Instant::now() + interval * flow as u32 / order.flows as u32;
    let mut packet = [0u8; MAX_LENGTH];
    while let Some((sequence, echo)) = shared.take_sequence(order.run_id, flow) {
        let seed = order.seed ^ sequence ^ (flow as u64) << 56;
        let packet = &mut packet[..payload_length(order, seed)];
        let (echoed, age_ns) = echo.unwrap_or((u64::MAX, 0));
        packet[HEADER..HEADER + 8].copy_from_slice(&echoed.to_le_bytes());
        packet[HEADER + 8..HEADER + ECHO].copy_from_slice(&age_ns.to_le_bytes());
        fill(&mut packet[HEADER + ECHO..], seed, pool);
        let header = Header {
            kind: Kind::Data as u8,
            operation: 0,
            flow: flow as u8,
            run_id: order.run_id,
            sequence,
        };
        wire::seal(packet, &header, shared.now_ns());
        if socket.send(packet).is_err() {
            shared.lock().send_errors += 1;
        }
        due = pause_until(due + interval, interval);
    }
}

fn pause_until(due: Instant, interval: Duration) -> Instant {
    let now = Instant::now();
    if due > now {
        sleep(due - now);
        return due;
    }
    due.max(now.checked_sub(interval * MAX_BURST).unwrap_or(due))
}

fn payload_length(order: &Order, seed: u64) -> usize {
    let low = order.min_length.clamp(HEADER + ECHO, MAX_LENGTH);
    let high = order.max_length.clamp(low, MAX_LENGTH);
    low + (wire::mix(seed) % (high - low + 1) as u64) as usize
}

fn random_pool() -> Vec<u8> {
    (0..(POOL + MAX_LENGTH) as u64 / 8 + 1)
        .flat_map(|word| wire::mix(word).to_le_bytes())
        .collect()
}

fn fill(body: &mut [u8], seed: u64, pool: &[u8]) {
    let at = wire::mix(seed) as usize % POOL;
    body.copy_from_slice(&pool[at..at + body.len()]);
}

/// Keeps this thread on one CPU, by turns. Without the right to (or with one CPU) it stays free.
fn pin_to_cpu(number: usize) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    // SAFETY: cpu_set_t is a bit mask for which zero is a value, CPU_SET checks the number against its size,
    // and the kernel only reads the mask, of the size that it is told.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(number % cpus, &mut set);
        libc::sched_setaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &set);
    }
}

/// Rewrites memory at a given pace, so that a migration has something to do.
pub fn dirty(kib_per_s: u64, pool_kib: u64) {
    const PAGE: usize = 4096;
    const TICKS: u64 = 20;
    let pages = (pool_kib / 4).max(1) as usize;
    let mut memory = vec![1u8; pages * PAGE];
    let per_tick = (kib_per_s / 4 / TICKS).max(1);
    let mut page = 0;
    let mut round = 0u64;
    loop {
        for _ in 0..per_tick {
            round += 1;
            memory[page * PAGE..page * PAGE + 8].copy_from_slice(&round.to_le_bytes());
            page = (page + 1) % pages;
        }
        std::hint::black_box(&mut memory);
        sleep(Duration::from_millis(1000 / TICKS));
    }
}
