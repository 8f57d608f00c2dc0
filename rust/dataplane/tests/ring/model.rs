// SPDX-License-Identifier: Apache-2.0
//! Both formats against a model: queues of chains and counters that never wrap.

use std::collections::VecDeque;

use proptest::prelude::*;

use crate::packed_driver::PackedDriver;
use crate::split_driver::SplitDriver;
use crate::support::{open, Driver, Features, Guest, Piece};
use vdpa_net_dataplane::memory::Range;
use vdpa_net_dataplane::ring::{self, AnyRing, Chain, Taken};

#[derive(Clone, Debug)]
enum Op {
    /// Lengths of readable and writable pieces.
    Add(Vec<u32>, Vec<u32>, bool),
    /// Six chains of one buffer.
    AddSingles(u32, bool),
    Pop(usize),
    Unpop(usize),
    Use(usize),
    /// The same for chains that lie side by side.
    PopLine,
    UseLine,
    Publish,
    Arm(Option<u64>),
    Sleep,
    /// Stop, and go on with a new ring at the state of the old one.
    Restart,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let lens = || prop::collection::vec(prop_oneof![Just(0), 1u32..5000], 0..4);
    let op = prop_oneof![
        6 => (lens(), lens(), any::<bool>()).prop_map(|(r, w, i)| Op::Add(r, w, i)),
        4 => (1usize..6).prop_map(Op::Pop),
        2 => (1usize..4).prop_map(Op::Unpop),
        4 => (1usize..6).prop_map(Op::Use),
        3 => Just(Op::PopLine),
        3 => Just(Op::UseLine),
        // Buffers as most drivers have them: enough for lines.
        4 => (1u32..5000, any::<bool>()).prop_map(|(len, writes)| Op::AddSingles(len, writes)),
        3 => Just(Op::Publish),
        2 => prop::option::of(0u64..6).prop_map(Op::Arm),
        2 => Just(Op::Sleep),
        1 => Just(Op::Restart),
    ];
    prop::collection::vec(op, 1..120)
}

fn features(packed: bool) -> impl Strategy<Value = Features> {
    (any::<bool>(), any::<bool>()).prop_map(move |(event_idx, indirect)| Features {
        packed,
        event_idx,
        indirect,
    })
}

#[derive(Clone, Debug)]
pub struct Expected {
    pub name: u16,
    pub slots: u64,
    pub is_single: bool,
    pub readable: Vec<Range>,
    pub writable: Vec<Range>,
}

/// Numbers are of entries (split) or descriptors (packed) since the ring was new.
pub struct Model {
    pub offered: VecDeque<Expected>,
    pub taken: VecDeque<(Taken, Expected)>,
    pub unpublished: Vec<(u16, u32)>,
    pub pushed: u64,
    published: u64,
    event: Option<u64>,
    has_decided: bool,
    len: u32,
}

pub struct Rig {
    pub guest: Guest,
    pub driver: Box<dyn Driver>,
    pub ring: AnyRing,
    features: Features,
    pub model: Model,
    buffer: u64,
    pub is_split: bool,
}

impl Rig {
    fn new(features: Features, size: u16, passed: u64) -> Self {
        let guest = Guest::new();
        // Rings begin on a line or between two.
        guest.allocate(16 * (passed % 2), 16);
        let driver: Box<dyn Driver> = if features.packed {
            Box::new(PackedDriver::new(&guest, size, features.event_idx, passed))
        } else {
            Box::new(SplitDriver::new(&guest, size, features.event_idx, passed))
        };
        driver.set_event(&guest, Some(passed));
        let ring = open(&guest, driver.as_ref(), features, passed, true);
        assert_eq!(ring.check_restored(&guest.space.lock()), Ok(()));
        let buffer = guest.allocate(8192, 1);
        Self {
            guest,
            driver,
            ring,
            features,
            model: Model {
                offered: VecDeque::new(),
                taken: VecDeque::new(),
                unpublished: Vec::new(),
                pushed: passed,
                published: passed,
                event: Some(passed),
                has_decided: false,
                len: 0,
            },
            buffer,
            is_split: !features.packed,
        }
    }

    fn slots(&self, needed: u64) -> u64 {
        if self.is_split {
            1
        } else {
            needed
        }
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Add(readable, writable, indirect) => self.add(readable, writable, *indirect),
            Op::Pop(count) => (0..*count).for_each(|_| self.pop()),
            Op::Unpop(count) => (0..*count).for_each(|_| self.unpop()),
            Op::Use(count) => (0..*count).for_each(|_| self.use_one()),
            Op::AddSingles(len, true) => (0..6).for_each(|_| self.add(&[], &[*len], false)),
            Op::AddSingles(len, false) => (0..6).for_each(|_| self.add(&[*len], &[], false)),
            Op::PopLine => self.pop_line(),
            Op::UseLine => self.use_line(),
            Op::Publish => self.publish(),
            Op::Arm(ahead) => self.arm(*ahead),
            Op::Sleep => self.sleep(),
            Op::Restart => self.restart(),
        }
        self.check();
    }

    fn add(&mut self, readable: &[u32], writable: &[u32], indirect: bool) {
        let pieces: Vec<Piece> = readable
            .iter()
            .map(|&len| (len, false))
            .chain(writable.iter().map(|&len| (len, true)))
            .map(|(len, writable)| Piece {
                iova: self.buffer + u64::from(len % 97),
                len,
                writable,
            })
            .collect();
        let indirect = indirect && self.features.indirect;
        let needed = self.driver.slots_needed(pieces.len(), indirect);
        if pieces.is_empty() || needed > self.driver.free_slots() {
            return;
        }
        let name = self.driver.add(&self.guest, &pieces, indirect);
        let ranges = |writable| {
            let of = pieces
                .iter()
                .filter(move |piece| piece.writable == writable);
            of.map(Piece::range).collect()
        };
        self.model.offered.push_back(Expected {
            name,
            slots: self.slots(needed),
            is_single: pieces.len() == 1 && !indirect,
            readable: ranges(false),
            writable: ranges(true),
        });
    }

    fn pop(&mut self) {
        let mut chain = Chain::default();
        let popped = self.ring.pop(&self.guest.space.lock(), &mut chain);
        let Some(expected) = self.model.offered.pop_front() else {
            assert_eq!(popped, Ok(false));
            return;
        };
        assert_eq!(popped, Ok(true));
        assert_eq!(chain.readable, expected.readable);
        assert_eq!(chain.writable, expected.writable);
        assert_eq!(u64::from(chain.taken.slots), expected.slots);
        assert_eq!(chain.taken.head, expected.name);
        self.model.taken.push_back((chain.taken, expected));
    }

    fn unpop(&mut self) {
        if let Some((taken, expected)) = self.model.taken.pop_back() {
            self.ring.unpop(taken);
            self.model.offered.push_front(expected);
        }
    }

    fn use_one(&mut self) {
        let Some((taken, expected)) = self.model.taken.pop_front() else {
            return;
        };
        self.model.len = (self.model.len + 1) % 3;
        let len = self.model.len;
        self.ring
            .push_used(&self.guest.space.lock(), taken, len)
            .expect("push_used");
        self.model.unpublished.push((expected.name, len));
        self.model.pushed += expected.slots;
        assert_eq!(self.driver.reap(&self.guest), [], "not published yet");
    }

    fn publish(&mut self) {
        let wanted = self
            .ring
            .publish(&self.guest.space.lock())
            .expect("publish");
        let model = &mut self.model;
        let moved = model.published..model.pushed;
        if moved.is_empty() {
            assert!(!wanted);
            return;
        }
        let expected = match model.event {
            // EVENT_IDX can't say "never" in a split ring: the first decision is for an interrupt anyway.
            None => self.is_split && self.features.event_idx && !model.has_decided,
            Some(event) => {
                // An old event comes round again: after 2^16 entries, or after two laps.
                let period = if self.is_split {
                    1 << 16
                } else {
                    2 * u64::from(self.driver.size())
                };
                let passed = moved
                    .clone()
                    .any(|number| number % period == event % period);
                !self.features.event_idx || !model.has_decided || passed
            }
        };
        assert_eq!(wanted, expected, "{moved:?}, event {:?}", model.event);
        model.published = model.pushed;
        model.has_decided = true;
        assert_eq!(
            self.driver.reap(&self.guest),
            std::mem::take(&mut model.unpublished)
        );
    }

    fn arm(&mut self, ahead: Option<u64>) {
        // In a ring of few entries an event further ahead than a lap would be one of this lap.
        let ahead = ahead.map(|ahead| ahead.min(u64::from(self.driver.size()) - 1));
        let event = ahead.map(|ahead| self.model.published + ahead);
        self.driver.set_event(&self.guest, event);
        self.model.event = event;
    }

    /// Look until there is nothing, ask for a kick, and get one for the next chain.
    fn sleep(&mut self) {
        let before = self.model.taken.len();
        while !self.model.offered.is_empty() {
            self.pop();
        }
        self.pop();
        // Chains that don't suffice are handed back; the driver has announced them already.
        let back = (self.model.taken.len() - before).min(2);
        (0..back).for_each(|_| self.unpop());
        let more = self.ring.enable_kicks(&self.guest.space.lock());
        assert_eq!(more, Ok(false));
        let made = self.driver.made_available();
        if self.driver.free_slots() > 0 {
            self.add(&[], &[64], false);
            assert!(self.driver.needs_kick(&self.guest, made), "it sleeps");
        }
        let disabled = self.ring.disable_kicks(&self.guest.space.lock());
        assert_eq!(disabled, Ok(()));
        if !self.features.event_idx {
            assert!(!self.driver.needs_kick(&self.guest, made), "it is awake");
        }
    }

    fn restart(&mut self) {
        self.publish();
        let state = self.ring.state();
        while !self.model.taken.is_empty() {
            let (_, expected) = self.model.taken.pop_back().expect("not empty");
            self.model.offered.push_front(expected);
        }
        let config = self.driver.config(self.features, state, true);
        let memory = self.guest.space.lock();
        self.ring = ring::open(&config, &memory).expect("open");
        assert_eq!(self.ring.check_restored(&memory), Ok(()));
        self.model.has_decided = false;
    }

    fn check(&mut self) {
        let memory = self.guest.space.lock();
        let model = &self.model;
        let state = self.driver.state(model.pushed, model.published);
        assert_eq!(self.ring.state(), state);
        let offered = model.offered.len();
        assert_eq!(self.ring.has_available(&memory), Ok(offered > 0));
        assert_eq!(self.ring.available(&memory, u16::MAX), Ok(offered as u16));
    }
}

fn split_sizes() -> impl Strategy<Value = u16> {
    prop_oneof![Just(1u16), Just(2), Just(8), Just(64), Just(256)]
}

fn packed_sizes() -> impl Strategy<Value = u16> {
    prop_oneof![
        Just(1u16),
        Just(2),
        Just(3),
        Just(7),
        Just(8),
        Just(64),
        Just(100),
        Just(255)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn split_ring_agrees_with_the_model(
        features in features(false),
        size in split_sizes(),
        passed in prop_oneof![Just(0u64), 0xffc0u64..0x1_0000, 0u64..0x1_0000],
        ops in ops(),
    ) {
        let mut rig = Rig::new(features, size, passed);
        ops.iter().for_each(|op| rig.run(op));
    }

    #[test]
    fn packed_ring_agrees_with_the_model(
        features in features(true),
        size in packed_sizes(),
        passed in 0u64..1000,
        ops in ops(),
    ) {
        let mut rig = Rig::new(features, size, passed);
        ops.iter().for_each(|op| rig.run(op));
    }
}

#[test]
fn the_largest_packed_ring_goes_round() {
    let features = Features {
        packed: true,
        event_idx: true,
        indirect: false,
    };
    let mut rig = Rig::new(features, 32768 - 1, 32768 - 3);
    for _ in 0..8 {
        rig.run(&Op::Add(vec![1], vec![2, 3], false));
        rig.run(&Op::Pop(1));
        rig.run(&Op::Use(1));
        rig.run(&Op::Publish);
    }
    assert_eq!(rig.ring.state().used_idx, 22);
}
