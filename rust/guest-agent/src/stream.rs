// SPDX-License-Identifier: Apache-2.0
//! The TCP stream: known bytes in both directions, each checked where they arrive.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use crate::run::{Phase, Shared};
use crate::wire::{mix, u32_at, u64_at};

/// Length of the pattern. A prime, so that no buffer's length divides it.
const PERIOD: usize = 65_521;
/// What the lab says first: run id, seed, bytes per second towards the lab, reserved.
const HELLO: usize = 24;
const CHUNK: usize = 16 << 10;

/// The bytes of a direction: position p holds byte p % PERIOD.
pub struct Pattern(Vec<u8>);

impl Pattern {
    /// The pattern of a seed.
    pub fn new(seed: u64) -> Self {
        let words = PERIOD as u64 / 8 + 1;
        let mut bytes: Vec<u8> = (0..words)
            .flat_map(|word| mix(seed.wrapping_add(word)).to_le_bytes())
            .take(PERIOD)
            .collect();
        // What begins before the end of a period goes on in one piece.
        bytes.extend_from_within(..CHUNK);
        Self(bytes)
    }

    /// `length` (at most CHUNK) bytes from this position of the stream on.
    fn at(&self, position: u64, length: usize) -> &[u8] {
        let start = (position % PERIOD as u64) as usize;
        &self.0[start..start + length]
    }
}

/// Takes one connection after the other, for ever.
pub fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    for connection in listener.incoming().flatten() {
        let shared = Arc::clone(shared);
        spawn(move || exchange(connection, &shared));
    }
}

fn exchange(mut connection: TcpStream, shared: &Arc<Shared>) {
    let mut hello = [0u8; HELLO];
    if connection.read_exact(&mut hello).is_err() {
        return;
    }
    let (run_id, seed, rate) = (u64_at(&hello, 0), u64_at(&hello, 8), u32_at(&hello, 16));
    shared.update_stream(run_id, |stream| stream.phase = Phase::Open);
    let writer = connection.try_clone().map(|connection| {
        let shared = Arc::clone(shared);
        spawn(move || send(connection, &shared, run_id, &Pattern::new(!seed), rate))
    });
    let received = receive(&mut connection, shared, run_id, &Pattern::new(seed));
    let sent = writer.is_ok_and(|thread| thread.join().is_ok_and(|outcome| outcome.is_ok()));
    let ended = received.is_ok() && sent;
    shared.update_stream(run_id, |stream| {
        stream.phase = if ended { Phase::Ended } else { Phase::Broken };
    });
}

fn receive(
    connection: &mut TcpStream,
    shared: &Shared,
    run_id: u64,
    pattern: &Pattern,
) -> std::io::Result<()> {
    let mut buffer = [0u8; CHUNK];
    let mut position = 0u64;
    loop {
        let length = match connection.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let expected = pattern.at(position, length);
        let wrong = (0..length).find(|&index| buffer[index] != expected[index]);
        position += length as u64;
        shared.update_stream(run_id, |stream| {
            stream.received = position;
            let start = position - length as u64;
            stream.mismatch_at = stream
                .mismatch_at
                .or(wrong.map(|index| start + index as u64));
        });
    }
}

/// Sends while the run does, at its pace, then says that this was all.
fn send(
    mut connection: TcpStream,
    shared: &Shared,
    run_id: u64,
    pattern: &Pattern,
    bytes_per_s: u32,
) -> std::io::Result<()> {
    const TICK: Duration = Duration::from_millis(20);
    let mut position = 0u64;
    let mut last = Instant::now();
    while shared.is_sending(run_id) {
        let due = (last.elapsed().as_secs_f64() * f64::from(bytes_per_s)) as usize;
        last = Instant::now();
        // What would have been due while the machine stood still is left out.
        for length in chunks(due.min(4 * CHUNK)) {
            connection.write_all(pattern.at(position, length))?;
            position += length as u64;
        }
        shared.update_stream(run_id, |stream| stream.sent = position);
        sleep(TICK);
    }
    connection.shutdown(Shutdown::Write)
}

fn chunks(mut bytes: usize) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let length = bytes.min(CHUNK);
        bytes -= length;
        (length > 0).then_some(length)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_goes_on_over_its_period() {
        let pattern = Pattern::new(7);
        let end = PERIOD as u64;
        assert_eq!(pattern.at(end - 3, 6)[3..], pattern.at(end, 6)[..3]);
        assert_ne!(pattern.at(0, 64), pattern.at(1, 64));
    }

    #[test]
    fn chunks_are_what_was_asked_for() {
        assert_eq!(chunks(0).count(), 0);
        assert_eq!(chunks(2 * CHUNK + 1).sum::<usize>(), 2 * CHUNK + 1);
    }
}
