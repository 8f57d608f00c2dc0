// SPDX-License-Identifier: Apache-2.0
//! What a worker does when it has run out of work: whether looking a little longer pays.

use std::time::Duration;

/// A poll in so many is tried although it has not been paying off: the traffic may have changed.
const PROBE_EVERY: u32 = 32;
/// What a new observation weighs against the mean of those before: 1 / 8.
const WEIGHT: u32 = 8;

/// Polling is worth it where work comes within half of the time that may be polled, in the mean: else the processor
/// time that it takes is more than that of a sleep and a wake-up.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// How long polls took until there was work, in the mean; one that found none counts twice its length.
    wait: Duration,
    skipped: u32,
}

impl Pace {
    /// How long to poll now, where it may be so long.
    pub(super) fn patience(&mut self, limit: Duration) -> Duration {
        if self.pays(limit) {
            self.skipped = 0;
            return limit;
        }
        self.skip();
        Duration::ZERO
    }

    /// Whether to poll now, where it may be so long.
    pub(super) fn pays(&self, limit: Duration) -> bool {
        !limit.is_zero() && (self.wait <= limit / 2 || self.skipped >= PROBE_EVERY - 1)
    }

    /// There was a rest without a poll.
    pub(super) fn skip(&mut self) {
        self.skipped = self.skipped.saturating_add(1);
    }

    /// A poll of at most `limit` has found work after so long; None: it has found none.
    pub(super) fn polled(&mut self, limit: Duration, waited: Option<Duration>) {
        let waited = waited.unwrap_or(2 * limit).min(2 * limit);
        self.wait = (self.wait * (WEIGHT - 1) + waited) / WEIGHT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(20);

    fn polls(pace: &mut Pace, rests: u32, waited: Option<Duration>) -> u32 {
        let mut polls = 0;
        for _ in 0..rests {
            if pace.patience(LIMIT) > Duration::ZERO {
                pace.polled(LIMIT, waited);
                polls += 1;
            }
        }
        polls
    }

    #[test]
    fn polling_goes_on_while_work_comes_soon() {
        let mut pace = Pace::default();
        assert_eq!(polls(&mut pace, 1000, Some(LIMIT / 4)), 1000);
    }

    #[test]
    fn polls_in_vain_end_polling_but_for_probes() {
        let mut pace = Pace::default();
        polls(&mut pace, 8, None);
        assert_eq!(polls(&mut pace, 10 * PROBE_EVERY, None), 10);
    }

    #[test]
    fn work_that_comes_late_does_not_pay() {
        let mut pace = Pace::default();
        polls(&mut pace, 100, Some(LIMIT * 9 / 10));
        assert_eq!(polls(&mut pace, PROBE_EVERY, Some(LIMIT * 9 / 10)), 1);
    }

    #[test]
    fn probes_bring_polling_back() {
        let mut pace = Pace::default();
        polls(&mut pace, 100, None);
        polls(&mut pace, 32 * PROBE_EVERY, Some(LIMIT / 20));
        assert_eq!(polls(&mut pace, 100, Some(LIMIT / 20)), 100);
    }

    #[test]
    fn without_time_to_poll_there_is_none() {
        let mut pace = Pace::default();
        assert_eq!(pace.patience(Duration::ZERO), Duration::ZERO);
    }
}
