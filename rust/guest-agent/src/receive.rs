// SPDX-License-Identifier: Apache-2.0
//! Which sequence numbers have arrived.

use std::collections::BTreeMap;

use crate::wire::Summary;

/// A stream longer than this is no stream of the lab's (at 1000 packets a second it is 18 hours).
const MAX_SEQUENCE: u64 = 1 << 26;
/// Duplicates that are remembered one by one; all are counted.
const MAX_REMEMBERED: usize = 1 << 16;

/// The receive side of one run.
#[derive(Default)]
pub struct Received {
    bits: Vec<u64>,
    repeated: BTreeMap<u64, u64>,
    /// The counts.
    pub summary: Summary,
}

impl Received {
    /// One datagram with this number arrived intact.
    pub fn accept(&mut self, sequence: u64) {
        if sequence >= MAX_SEQUENCE {
            self.summary.corrupted += 1;
            return;
        }
        let (word, bit) = ((sequence / 64) as usize, 1u64 << (sequence % 64));
        if word >= self.bits.len() {
            self.bits.resize((word + 1).next_power_of_two(), 0);
        }
        if self.bits[word] & bit != 0 {
            self.repeat(sequence);
            return;
        }
        self.bits[word] |= bit;
        self.summary.received += 1;
        if sequence < self.summary.next_expected {
            self.summary.reordered += 1;
        } else {
            self.summary.next_expected = sequence + 1;
        }
    }

    fn repeat(&mut self, sequence: u64) {
        self.summary.duplicates += 1;
        if self.repeated.len() < MAX_REMEMBERED || self.repeated.contains_key(&sequence) {
            *self.repeated.entry(sequence).or_default() += 1;
        }
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
        if from >= to {
            return (Vec::new(), false);
        }
        let mut found = self
            .repeated
            .range(from..to)
            .map(|(&sequence, &copies)| (sequence, copies));
        let out: Vec<_> = found.by_ref().take(limit).collect();
        (out, found.next().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(numbers: &[u64]) -> Received {
        let mut received = Received::default();
        numbers.iter().for_each(|&number| received.accept(number));
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
    fn late_is_reordered_and_again_is_duplicate() {
        let received = fed(&[0, 2, 1, 2, 2]);
        assert_eq!(received.summary.reordered, 1);
        assert_eq!(received.summary.duplicates, 2);
        assert_eq!(received.summary.received, 3);
        assert_eq!(received.repeated(0, 10, 4), (vec![(2, 2)], false));
    }

    #[test]
    fn absurd_number_takes_no_memory() {
        let received = fed(&[u64::MAX]);
        assert_eq!(received.summary.corrupted, 1);
        assert!(received.bits.is_empty());
    }
}
