// SPDX-License-Identifier: Apache-2.0
//! Work and rest of a pair by turns: whether to look a little longer after work, to nap, or to sleep.

use std::time::{Duration, Instant};

use super::coalesce::{Coalescer, Done, Nap};
use super::pace::Pace;

/// What the worker is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    Works,
    /// It sleeps for a while, and transmit kicks end that.
    Naps,
    /// Kicks end it, or packets.
    Sleeps,
}

#[derive(Debug)]
pub(super) struct Rhythm {
    /// Since the last rest.
    has_worked: bool,
    activity: Activity,
    pace: Pace,
    coalescer: Coalescer,
}

impl Rhythm {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            has_worked: false,
            activity: Activity::Works,
            pace: Pace::default(),
            coalescer: Coalescer::new(now),
        }
    }

    /// The worker is up.
    pub(super) fn wake(&mut self) {
        self.activity = Activity::Works;
    }

    /// Whoever works has done this.
    pub(super) fn worked(&mut self, done: Done) {
        self.coalescer.count(done);
        self.has_worked |= done.is_any();
    }

    /// How long the worker should look for more now that there is none, at most `limit`. None: nothing was done since
    /// it rested, what comes after that is a sleep.
    pub(super) fn patience(&mut self, limit: Duration) -> Option<Duration> {
        std::mem::take(&mut self.has_worked).then(|| self.pace.patience(limit))
    }

    /// What came of that, as [`Pace::polled`] wants it.
    pub(super) fn polled(&mut self, limit: Duration, waited: Option<Duration>) {
        self.pace.polled(limit, waited);
    }

    /// The nap that the worker should take after work, at most `limit` long.
    pub(super) fn nap(&mut self, limit: Duration, now: Instant) -> Option<Nap> {
        self.coalescer.nap(limit, now)
    }

    /// The worker lies down. Until it is up again whoever hears a kick may do what it asks for.
    pub(super) fn rest(&mut self, nap: Option<Nap>) {
        self.activity = match nap {
            None => Activity::Sleeps,
            Some(nap) if nap.sends => Activity::Works,
            Some(_) => Activity::Naps,
        };
    }

    pub(super) fn is_resting(&self) -> bool {
        self.activity != Activity::Works
    }

    /// Whether the worker can stay where it is after somebody else has worked in its place: it would neither look for
    /// more, nor collect what is sent.
    pub(super) fn rests_on(&mut self, poll: Duration, coalesce: Duration, now: Instant) -> bool {
        let is_asleep = self.activity == Activity::Sleeps;
        let polls = is_asleep && self.pace.pays(poll);
        let collects = self
            .coalescer
            .nap(coalesce, now)
            .is_some_and(|nap| nap.sends);
        if polls || collects {
            return false;
        }
        if is_asleep {
            self.pace.skip();
        }
        self.has_worked = false;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_micros(20);
    const COALESCE: Duration = Duration::from_micros(150);
    const SENT: Done = Done {
        sent: 1,
        received: 0,
    };
    const NAP: Nap = Nap {
        length: COALESCE,
        sends: false,
        receives: true,
    };

    fn rhythm() -> (Rhythm, Instant) {
        let now = Instant::now();
        (Rhythm::new(now), now)
    }

    #[test]
    fn a_worker_that_is_up_does_its_work_itself() {
        let (mut rhythm, _) = rhythm();
        assert!(!rhythm.is_resting());
        rhythm.rest(None);
        assert!(rhythm.is_resting());
        rhythm.wake();
        assert!(!rhythm.is_resting());
        rhythm.rest(Some(Nap { sends: true, ..NAP }));
        assert!(!rhythm.is_resting());
        rhythm.rest(Some(NAP));
        assert!(rhythm.is_resting());
    }

    #[test]
    fn it_sleeps_on_where_polls_are_in_vain_and_the_kicks_are_few() {
        let (mut rhythm, now) = rhythm();
        rhythm.rest(None);
        rhythm.worked(SENT);
        assert!(!rhythm.rests_on(POLL, COALESCE, now), "a poll may pay");
        for _ in 0..8 {
            rhythm.polled(POLL, None);
        }
        let slept_on = (0..1000).filter(|_| {
            rhythm.worked(SENT);
            rhythm.rests_on(POLL, COALESCE, now)
        });
        assert_eq!(slept_on.count(), 31, "up to the next poll that is tried");
        assert_eq!(rhythm.patience(POLL), Some(POLL));
    }

    #[test]
    fn it_gets_up_to_collect_a_stream() {
        let (mut rhythm, now) = rhythm();
        rhythm.rest(None);
        for _ in 0..100 {
            rhythm.worked(SENT);
        }
        let later = now + Duration::from_millis(4);
        assert!(!rhythm.rests_on(Duration::ZERO, COALESCE, later));
        assert_eq!(rhythm.patience(Duration::ZERO), Some(Duration::ZERO));
        assert!(rhythm.nap(COALESCE, later).is_some_and(|nap| nap.sends));
    }

    #[test]
    fn nothing_ends_a_nap_but_a_stream_that_is_sent() {
        let (mut rhythm, now) = rhythm();
        rhythm.rest(Some(NAP));
        rhythm.worked(SENT);
        assert!(rhythm.rests_on(POLL, COALESCE, now));
        assert_eq!(rhythm.patience(POLL), None);
    }
}
