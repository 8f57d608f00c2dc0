// SPDX-License-Identifier: Apache-2.0
//! Disjoint ranges of a 64-bit address space with a value each.

use std::collections::BTreeMap;

/// A range and its value. `last` is inclusive, so that a range can end at the top of the address space.
#[derive(Clone, Debug)]
pub(super) struct Interval<T> {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) value: T,
}

impl<T> Interval<T> {
    /// Length in bytes; no map is as long as the whole address space.
    pub(super) fn size(&self) -> u64 {
        self.last - self.first + 1
    }
}

/// The ranges, by their first address. Every operation on one range takes logarithmic time.
#[derive(Debug)]
pub(super) struct IntervalMap<T> {
    by_first: BTreeMap<u64, Interval<T>>,
}

impl<T> IntervalMap<T> {
    pub(super) fn new() -> Self {
        Self {
            by_first: BTreeMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_first.len()
    }

    /// The range that holds `address`.
    pub(super) fn at(&self, address: u64) -> Option<&Interval<T>> {
        let (_, interval) = self.by_first.range(..=address).next_back()?;
        (interval.last >= address).then_some(interval)
    }

    /// The highest range that shares an address with [first, last].
    pub(super) fn overlapping(&self, first: u64, last: u64) -> Option<&Interval<T>> {
        let (_, interval) = self.by_first.range(..=last).next_back()?;
        (interval.last >= first).then_some(interval)
    }

    /// Add a range that overlaps none (the caller has asked [`Self::overlapping`]).
    pub(super) fn insert(&mut self, interval: Interval<T>) {
        debug_assert!(self.overlapping(interval.first, interval.last).is_none());
        self.by_first.insert(interval.first, interval);
    }

    /// Remove the range with exactly these bounds.
    pub(super) fn remove(&mut self, first: u64, last: u64) -> Option<Interval<T>> {
        self.by_first.get(&first).filter(|i| i.last == last)?;
        self.by_first.remove(&first)
    }

    /// Remove the ranges inside of [first, last]; one that sticks out of it (its first address and size) is the
    /// error, and then nothing is removed. Logarithmic for each range that is removed.
    pub(super) fn remove_within(
        &mut self,
        first: u64,
        last: u64,
    ) -> Result<Vec<Interval<T>>, (u64, u64)> {
        let below = self.by_first.range(..first).next_back();
        let top = self.by_first.range(first..=last).next_back();
        let below = below.filter(|(_, interval)| interval.last >= first);
        let top = top.filter(|(_, interval)| interval.last > last);
        if let Some((_, interval)) = below.or(top) {
            return Err((interval.first, interval.size()));
        }
        let inside = self.by_first.range(first..=last);
        let keys: Vec<u64> = inside.map(|(key, _)| *key).collect();
        let removed = keys.iter().filter_map(|key| self.by_first.remove(key));
        Ok(removed.collect())
    }

    /// Remove everything.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Interval<T>> {
        self.by_first.values()
    }
}
