// SPDX-License-Identifier: Apache-2.0
//! Which packets need no wake-up of their own: those of a stream, which the next nap's end will find.
//!
//! A wake-up costs several times what a small packet does, for the worker, and for the driver that kicks. Where so many
//! packets come that a nap of the length allowed collects some, the worker naps instead of asking for kicks, as a NIC
//! moderates its interrupts. Traffic that waits for answers gets slower by that; it shows in the rate, and naps end.

use std::time::{Duration, Instant};

/// The least time over which rates are measured.
const WINDOW: Duration = Duration::from_millis(4);
/// A direction is a stream where a nap as long as allowed collects so many packets.
const WORTH_PACKETS: f64 = 2.0;
/// No nap is longer than until so many packets have come.
const ENOUGH_PACKETS: f64 = 16.0;
/// A nap shorter than this is no gain.
const SHORTEST: Duration = Duration::from_micros(5);
/// Naps end where the rate falls below this part of what it was.
const KEPT: f64 = 0.75;
/// What a new rate weighs against those before.
const WEIGHT: f64 = 0.125;
/// How long naps are not tried again after traffic has suffered; twice as long each time.
const RETREAT_MIN: Duration = Duration::from_millis(16);
const RETREAT_MAX: Duration = Duration::from_secs(1);

/// Packets of the two directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) sent: u32,
    pub(super) received: u32,
}

impl Done {
    pub(super) fn is_any(self) -> bool {
        self.sent > 0 || self.received > 0
    }
}

/// A sleep that ends by itself, and the directions whose packets don't end it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Nap {
    pub(super) length: Duration,
    pub(super) sends: bool,
    pub(super) receives: bool,
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Awake,
    /// With the rate (packets a second) that naps must not spoil.
    Napping {
        nap: Nap,
        rate: f64,
    },
}

/// Decides on naps, by the rates of both directions.
#[derive(Debug)]
pub(super) struct Coalescer {
    since: Instant,
    sent: u64,
    received: u64,
    mode: Mode,
    not_before: Instant,
    retreat: Duration,
}

impl Coalescer {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            sent: 0,
            received: 0,
            mode: Mode::Awake,
            not_before: now,
            retreat: RETREAT_MIN,
        }
    }

    pub(super) fn count(&mut self, done: Done) {
        self.sent += u64::from(done.sent);
        self.received += u64::from(done.received);
    }

    /// The nap to take now that there is no work, at most `limit` long. None: packets need their wake-ups.
    pub(super) fn nap(&mut self, limit: Duration, now: Instant) -> Option<Nap> {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            self.judge(limit, elapsed.as_secs_f64(), now);
            self.since = now;
            self.sent = 0;
            self.received = 0;
        }
        match self.mode {
            Mode::Napping { nap, .. } if nap.length <= limit => Some(nap),
            _ => None,
        }
    }

    fn judge(&mut self, limit: Duration, seconds: f64, now: Instant) {
        let (sent, received) = (self.sent as f64 / seconds, self.received as f64 / seconds);
        let total = sent + received;
        let wanted = nap_for(sent, received, limit);
        self.mode = match (self.mode, wanted) {
            (_, None) => Mode::Awake,
            (Mode::Awake, Some(nap)) if now >= self.not_before => {
                Mode::Napping { nap, rate: total }
            }
            (Mode::Awake, Some(_)) => Mode::Awake,
            (Mode::Napping { rate, .. }, Some(_)) if total < KEPT * rate => {
                self.not_before = now + self.retreat;
                self.retreat = RETREAT_MAX.min(2 * self.retreat);
                Mode::Awake
            }
            (Mode::Napping { rate, .. }, Some(nap)) => {
                self.retreat = RETREAT_MIN;
                let rate = rate + WEIGHT * (total - rate);
                Mode::Napping { nap, rate }
            }
        };
    }
}

/// The nap that suits these rates (packets a second).
fn nap_for(sent: f64, received: f64, limit: Duration) -> Option<Nap> {
    let is_stream = |rate: f64| rate * limit.as_secs_f64() >= WORTH_PACKETS;
    let (sends, receives) = (is_stream(sent), is_stream(received));
    if !sends && !receives {
        return None;
    }
    let enough = Duration::from_secs_f64(ENOUGH_PACKETS / sent.max(received));
    let nap = Nap {
        length: enough.min(limit),
        sends,
        receives,
    };
    (nap.length >= SHORTEST).then_some(nap)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(150);

    /// A clock, and a coalescer that lives by it.
    struct Bench {
        now: Instant,
        coalescer: Coalescer,
    }

    impl Bench {
        fn new() -> Self {
            let now = Instant::now();
            let coalescer = Coalescer::new(now);
            Self { now, coalescer }
        }

        /// Let so many packets come in a window; the nap after it.
        fn window(&mut self, sent: u32, received: u32) -> Option<Nap> {
            self.coalescer.count(Done { sent, received });
            self.now += WINDOW;
            self.coalescer.nap(LIMIT, self.now)
        }
    }

    #[test]
    fn few_packets_get_their_wake_ups() {
        let mut bench = Bench::new();
        assert!((0..100).all(|_| bench.window(50, 50).is_none()));
    }

    #[test]
    fn a_stream_is_collected_in_its_direction_only() {
        let mut bench = Bench::new();
        let nap = bench.window(100, 10).unwrap();
        assert_eq!((nap.length, nap.sends, nap.receives), (LIMIT, true, false));
        let nap = bench.window(0, 100).unwrap();
        assert_eq!((nap.sends, nap.receives), (false, true));
    }

    #[test]
    fn naps_are_short_where_packets_are_many() {
        let mut bench = Bench::new();
        let nap = bench.window(4000, 0).unwrap();
        assert_eq!(nap.length, Duration::from_micros(16));
        assert!(Bench::new().window(40_000, 0).is_none());
    }

    #[test]
    fn naps_end_with_the_stream() {
        let mut bench = Bench::new();
        assert!(bench.window(100, 0).is_some());
        assert!(bench.window(0, 0).is_none());
        assert!(bench.window(100, 0).is_some());
    }

    #[test]
    fn traffic_that_naps_slow_down_is_left_alone_longer_and_longer() {
        let mut bench = Bench::new();
        let mut naps = 0;
        // 40 s of requests that wait for answers: twice as fast without naps.
        let mut is_napping = false;
        for _ in 0..10_000 {
            let packets = if is_napping { 60 } else { 120 };
            is_napping = bench.window(packets, packets).is_some();
            naps += u32::from(is_napping);
        }
        assert!((5..=50).contains(&naps), "{naps} windows with naps");
    }

    #[test]
    fn a_stream_that_falters_once_is_collected_again_soon() {
        let mut bench = Bench::new();
        bench.window(100, 0);
        assert!(bench.window(60, 0).is_none());
        let windows = RETREAT_MIN.as_micros() / WINDOW.as_micros();
        let awake = (0..windows)
            .filter(|_| bench.window(100, 0).is_none())
            .count();
        assert_eq!(awake as u128, windows - 1);
    }

    #[test]
    fn without_time_to_nap_there_is_none() {
        let mut bench = Bench::new();
        bench.window(1000, 0);
        assert!(bench.coalescer.nap(Duration::ZERO, bench.now).is_none());
        bench.now += WINDOW;
        bench.coalescer.count(Done {
            sent: 1000,
            received: 0,
        });
        assert!(bench.coalescer.nap(Duration::ZERO, bench.now).is_none());
    }
}
