// SPDX-License-Identifier: Apache-2.0
//! Which sequence numbers of a flow have arrived.

use std::collections::BTreeMap;
use std::time::Instant;

/// A flow longer than this is none of the lab's (at 1000 packets a second it is 18 hours).
const MAX_SEQUENCE: u64 = 1 << 26;
/// Duplicates and overtaken packets that are remembered one by one; all are counted.
const MAX_REMEMBERED: usize = 1 << 16;

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Distinct sequence numbers.
    pub received: u64,
    /// Highest sequence number plus one.
    pub next_expected: u64,
    /// Datagrams whose number had arrived before.
    pub duplicates: u32,
    /// Datagrams that arrived after one with a higher number.
    pub reordered: u32,
}

/// The receive side of one flow.
#[derive(Default)]
pub struct Received {
    bits: Vec<u64>,
    repeated: BTreeMap<u64, u64>,
    overtaken: BTreeMap<u64, u64>,
    last: Option<(u64, Instant)>,
    /// The counts.
    pub counts: Counts,
}

impl Received {
    /// One datagram with this number arrived intact; false if there can't be such a number.
    pub fn accept(&mut self, sequence: u64, now: Instant) -> bool {
        if sequence >= MAX_SEQUENCE {
            return false;
        }
        self.last = Some((sequence, now));
        let (word, bit) = ((sequence / 64) as usize, 1u64 << (sequence % 64));
        if word >= self.bits.len() {
            self.bits.resize((word + 1).next_power_of_two(), 0);
        }
        if self.bits[word] & bit != 0 {
            self.repeat(sequence);
            return true;
        }
        self.bits[word] |= bit;
        self.counts.received += 1;
        if sequence < self.counts.next_expected {
            self.overtake(sequence);
        } else {
            self.counts.next_expected = sequence + 1;
        }
        true
    }

    fn repeat(&mut self, sequence: u64) {
        self.counts.duplicates += 1;
        if self.repeated.len() < MAX_REMEMBERED || self.repeated.contains_key(&sequence) {
            *self.repeated.entry(sequence).or_default() += 1;
        }
    }

    fn overtake(&mut self, sequence: u64) {
        self.counts.reordered += 1;
        if self.overtaken.len() < MAX_REMEMBERED {
            self.overtaken
                .insert(sequence, self.counts.next_expected - 1);
        }
    }

    /// The datagram that arrived last, and how many nanoseconds ago.
    pub fn echo(&self, now: Instant) -> Option<(u64, u64)> {
        self.last.map(|(sequence, at)| {
            (
                sequence,
                now.saturating_duration_since(at).as_nanos() as u64,
            )
        })
    }

    fn has(&self, sequence: u64) -> bool {
        let word = (sequence / 64) as usize;
        word < self.bits.len() && self.bits[word] & 1 << (sequence % 64) != 0
    }

    /// Intervals (first, last) of `from..to` that did not arrive, at most `limit`; and whether there are more.
    pub fn missing(&self, from: u64, to: u64, limit: usize) -> (Vec<(u64, u64)>, bool) {
        let mut out: Vec<(u64, u64)> = Vec::new();
        let known = to.min(MAX_SEQUENCE);
        for sequence in (from..known).filter(|&sequence| !self.has(sequence)) {
            let adjoins = out.last().is_some_and(|last| last.1 + 1 == sequence);
            if !adjoins && out.len() == limit {
                return (out, true);
            }
            let first = if adjoins {
                out.pop().map_or(sequence, |last| last.0)
            } else {
                sequence
            };
            out.push((first, sequence));
        }
        (out, false)
    }

    /// Numbers of `from..to` that arrived more than once and how many copies too many; whether there are more.
    pub fn repeated(&self, from: u64, to: u64, limit: usize) -> (Vec<(u64, u64)>, bool) {
        first_of(&self.repeated, from, to, limit)
    }

    /// Numbers of `from..to` that were overtaken and the highest that came before; whether there are more.
    pub fn overtaken(&self, from: u64, to: u64, limit: usize) -> (Vec<(u64, u64)>, bool) {
        first_of(&self.overtaken, from, to, limit)
    }
}

fn first_of(map: &BTreeMap<u64, u64>, from: u64, to: u64, limit: usize) -> (Vec<(u64, u64)>, bool) {
    if from >= to {
        return (Vec::new(), false);
    }
    let mut found = map.range(from..to).map(|(&key, &value)| (key, value));
    let out: Vec<_> = found.by_ref().take(limit).collect();
    (out, found.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(numbers: &[u64]) -> Received {
        let mut received = Received::default();
        for &number in numbers {
            assert!(received.accept(number, Instant::now()));
        }
        received
    }

    #[test]
    fn gaps_are_named_exactly() {
        let received = fed(&[0, 1, 4, 200]);
        assert_eq!(
            received.missing(0, 202, 9),
            (vec![(2, 3), (5, 199), (201, 201)], false)
        );
        assert_eq!(received.missing(0, 202, 2), (vec![(2, 3), (5, 199)], true));
    }

    #[test]
    fn late_is_overtaken_and_again_is_duplicate() {
        let received = fed(&[0, 2, 1, 2, 2]);
        assert_eq!(received.counts.reordered, 1);
        assert_eq!(received.counts.duplicates, 2);
        assert_eq!(received.counts.received, 3);
        assert_eq!(received.repeated(0, 10, 4), (vec![(2, 2)], false));
        assert_eq!(received.overtaken(0, 10, 4), (vec![(1, 2)], false));
    }

    #[test]
    fn echo_is_of_the_last_arrival() {
        assert_eq!(Received::default().echo(Instant::now()), None);
        let received = fed(&[0, 7, 3]);
        assert_eq!(received.echo(Instant::now()).map(|echo| echo.0), Some(3));
    }

    #[test]
    fn absurd_number_takes_no_memory() {
        let mut received = Received::default();
        assert!(!received.accept(u64::MAX, Instant::now()));
        assert!(received.bits.is_empty());
    }
}
