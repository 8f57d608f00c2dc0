// SPDX-License-Identifier: Apache-2.0
//! Whether whoever reads messages looks for the next one, or sleeps until it comes.
//!
//! A reader that sleeps has to be woken, which costs its peer and itself several times what a doorbell does where they
//! run on different processors. So it looks, while messages come soon after one another. Nothing is looked for to find
//! that out: how soon they come shows with those that were slept for as well. Where a look is in vain, because both run
//! on one processor, for example, the next ones are left out: twice as many each time.

use std::time::Duration;

/// Longer gaps count as this.
const GAP_MAX: Duration = Duration::from_micros(100);
/// What a gap weighs against the mean of those before: 1 / 8.
const WEIGHT: u32 = 8;
/// So many looks are left out at most.
const RETREAT_MAX: u32 = 1024;

#[derive(Debug)]
pub(crate) struct Lookout {
    /// From a message that was dealt with to the next one, in the mean.
    gap: Duration,
    /// So many looks are left out from now on.
    left_out: u32,
    retreat: u32,
}

impl Default for Lookout {
    fn default() -> Self {
        Self {
            gap: GAP_MAX,
            left_out: 0,
            retreat: 1,
        }
    }
}

impl Lookout {
    /// How long to look for the next message, at most `limit`; zero: not at all.
    pub(crate) fn patience(&mut self, limit: Duration) -> Duration {
        if self.gap > limit {
            return Duration::ZERO;
        }
        if self.left_out > 0 {
            self.left_out -= 1;
            return Duration::ZERO;
        }
        limit
    }

    /// What came of a look.
    pub(crate) fn looked(&mut self, has_found: bool) {
        if has_found {
            self.retreat = 1;
        } else {
            self.left_out = self.retreat;
            self.retreat = RETREAT_MAX.min(2 * self.retreat);
        }
    }

    /// The next message has come, so long after the one before it was dealt with.
    pub(crate) fn came(&mut self, gap: Duration) {
        self.gap = (self.gap * (WEIGHT - 1) + gap.min(GAP_MAX)) / WEIGHT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(20);
    const SOON: Duration = Duration::from_micros(5);

    /// Let so many messages come with this gap; how often was looked for one.
    fn looks(lookout: &mut Lookout, messages: u32, gap: Duration, has_found: bool) -> u32 {
        let mut looks = 0;
        for _ in 0..messages {
            if !lookout.patience(LIMIT).is_zero() {
                lookout.looked(has_found);
                looks += 1;
            }
            lookout.came(gap);
        }
        looks
    }

    #[test]
    fn messages_that_come_soon_are_looked_for() {
        let mut lookout = Lookout::default();
        assert_eq!(lookout.patience(LIMIT), Duration::ZERO, "nothing is known");
        looks(&mut lookout, 30, SOON, true);
        assert_eq!(looks(&mut lookout, 1000, SOON, true), 1000);
        assert_eq!(lookout.patience(LIMIT), LIMIT);
    }

    #[test]
    fn messages_that_come_late_are_never_looked_for() {
        let mut lookout = Lookout::default();
        assert_eq!(looks(&mut lookout, 1000, 2 * LIMIT, false), 0);
        looks(&mut lookout, 30, SOON, true);
        looks(&mut lookout, 30, 2 * LIMIT, false);
        assert_eq!(looks(&mut lookout, 1000, 2 * LIMIT, false), 0);
    }

    #[test]
    fn looks_in_vain_are_left_out_longer_and_longer() {
        let mut lookout = Lookout::default();
        looks(&mut lookout, 30, SOON, true);
        assert_eq!(looks(&mut lookout, 2047 + 11, SOON, false), 11);
        assert_eq!(looks(&mut lookout, 10 * 1025, SOON, false), 10);
        looks(&mut lookout, 1025, SOON, true);
        assert_eq!(looks(&mut lookout, 1000, SOON, true), 1000);
    }

    #[test]
    fn without_time_to_look_there_is_none() {
        let mut lookout = Lookout::default();
        looks(&mut lookout, 100, SOON, true);
        assert_eq!(lookout.patience(Duration::ZERO), Duration::ZERO);
    }
}
