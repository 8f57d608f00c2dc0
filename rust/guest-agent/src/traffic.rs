// SPDX-License-Identifier: Apache-2.0
//! The three threads of the agent: receive, send, control. Each sleeps in the kernel until it has work.

use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::run::{Order, Shared};
use crate::wire::{self, Kind, Operation, Summary, HEADER, MAX_LENGTH, MAX_PAIRS, STATE, SUMMARY};

/// Packets that are sent late in one go; what is due beyond that (the machine stood still) is left out.
const MAX_BURST: u32 = 32;
const POOL: usize = 1 << 16;

/// Counts what arrives on the data socket, for ever.
pub fn receive(socket: &UdpSocket, shared: &Shared) {
    let mut buffer = [0u8; 2048];
    loop {
        let Ok((length, _)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let header = wire::parse(&mut buffer[..length]);
        let mut run = shared.lock();
        match header {
            None => run.received.summary.corrupted += 1,
            Some(header)
                if header.kind != Kind::Data as u8 || header.run_id != run.order.run_id =>
            {
                run.received.summary.foreign += 1;
            }
            Some(header) => run.received.accept(header.sequence),
        }
    }
}

/// Sends one run after the other to the peer, for ever.
pub fn send(socket: &UdpSocket, peer: SocketAddr, shared: &Shared) {
    let pool = random_pool();
    let mut known = 0;
    loop {
        let order = shared.wait_for_other(known);
        known = order.run_id;
        send_run(socket, peer, shared, &order, &pool);
    }
}

fn send_run(socket: &UdpSocket, peer: SocketAddr, shared: &Shared, order: &Order, pool: &[u8]) {
    let interval = Duration::from_secs(1) / order.rate_pps.max(1);
    let mut due = Instant::now();
    let mut packet = [0u8; MAX_LENGTH];
    while let Some((sequence, summary)) = shared.take_sequence(order.run_id) {
        let length = payload_length(order, sequence);
        fill(
            &mut packet[HEADER + SUMMARY..length],
            order.seed ^ sequence,
            pool,
        );
        let now_ns = shared.now_ns();
        wire::seal(
            &mut packet[..length],
            Kind::Data,
            0,
            order.run_id,
            sequence,
            now_ns,
            &summary,
        );
        if socket.send_to(&packet[..length], peer).is_err() {
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

fn payload_length(order: &Order, sequence: u64) -> usize {
    let low = order.min_length.clamp(HEADER + SUMMARY, MAX_LENGTH);
    let high = order.max_length.clamp(low, MAX_LENGTH);
    low + (wire::mix(order.seed.wrapping_add(sequence)) % (high - low + 1) as u64) as usize
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

/// Answers the lab's requests, for ever.
pub fn control(socket: &UdpSocket, shared: &Shared, default_rate_pps: u32) {
    let mut buffer = [0u8; 2048];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let data = &mut buffer[..length];
        let Some(header) = wire::parse(data) else {
            continue;
        };
        if header.kind != Kind::Request as u8 {
            continue;
        }
        let body = &data[HEADER + SUMMARY..];
        if let Some(reply) = answer(&header, body, shared, default_rate_pps) {
            // A lost reply is asked for again, so a failed send needs nothing.
            let _ = socket.send_to(&reply, from);
        }
    }
}

fn answer(
    header: &wire::Header,
    body: &[u8],
    shared: &Shared,
    default_rate_pps: u32,
) -> Option<Vec<u8>> {
    if header.operation == Operation::Start as u16 {
        shared.start(order_from(header.run_id, body, default_rate_pps)?);
    }
    let known = shared.lock().order.run_id == header.run_id;
    if !known {
        return None;
    }
    if header.operation == Operation::Stop as u16 {
        shared.stop();
    }
    let (pairs, more) = pairs_for(header.operation, body, shared)?;
    Some(reply(header, shared, &pairs, more))
}

fn order_from(run_id: u64, body: &[u8], default_rate_pps: u32) -> Option<Order> {
    if body.len() < 24 {
        return None;
    }
    let rate = wire::u32_at(body, 0);
    Some(Order {
        run_id,
        rate_pps: if rate == 0 { default_rate_pps } else { rate },
        min_length: wire::u32_at(body, 4) as usize,
        max_length: wire::u32_at(body, 8) as usize,
        seed: wire::u64_at(body, 16),
    })
}

fn pairs_for(operation: u16, body: &[u8], shared: &Shared) -> Option<(Vec<(u64, u64)>, bool)> {
    let missing = operation == Operation::Missing as u16;
    if !missing && operation != Operation::Duplicates as u16 {
        return Some((Vec::new(), false));
    }
    if body.len() < 16 {
        return None;
    }
    let (from, to) = (wire::u64_at(body, 0), wire::u64_at(body, 8));
    let run = shared.lock();
    Some(if missing {
        run.received.missing(from, to, MAX_PAIRS)
    } else {
        run.received.repeated(from, to, MAX_PAIRS)
    })
}

fn reply(header: &wire::Header, shared: &Shared, pairs: &[(u64, u64)], more: bool) -> Vec<u8> {
    let mut data = vec![0u8; HEADER + SUMMARY];
    let summary: Summary = {
        let run = shared.lock();
        data.extend(run.sent.to_le_bytes());
        data.extend(run.send_errors.to_le_bytes());
        data.extend(u32::from(run.sending).to_le_bytes());
        run.received.summary
    };
    data.extend((pairs.len() as u32).to_le_bytes());
    data.extend(u32::from(more).to_le_bytes());
    debug_assert_eq!(data.len(), HEADER + SUMMARY + STATE);
    for (first, second) in pairs {
        data.extend(first.to_le_bytes());
        data.extend(second.to_le_bytes());
    }
    let now_ns = shared.now_ns();
    wire::seal(
        &mut data,
        Kind::Reply,
        header.operation,
        header.run_id,
        header.sequence,
        now_ns,
        &summary,
    );
    data
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
