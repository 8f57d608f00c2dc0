// SPDX-License-Identifier: Apache-2.0
//! What broken and hostile drivers put into a packed ring: a fault that names it, never a crash or an endless walk.

use proptest::prelude::*;

use crate::packed_driver::{PackedDriver, AVAIL, USED};
use crate::support::{
    descriptor, open, Driver, Features, Guest, Piece, BASE, INDIRECT, NEXT, WRITE,
};
use vdpa_net_dataplane::error::Error;
use vdpa_net_dataplane::ring::{
    self, AnyRing, Chain, RingConfig, RingFault, RingState, F_RING_PACKED,
};

const FEATURES: Features = Features {
    packed: true,
    event_idx: true,
    indirect: true,
};
const SIZE: u16 = 5;

struct Rig {
    guest: Guest,
    driver: PackedDriver,
    ring: AnyRing,
    buffer: u64,
}

impl Rig {
    fn new(features: Features) -> Self {
        let guest = Guest::new();
        let driver = PackedDriver::new(&guest, SIZE, true, 0);
        let ring = open(&guest, &driver, features, 0, false);
        let buffer = guest.allocate(4096, 1);
        Self {
            guest,
            driver,
            ring,
            buffer,
        }
    }

    fn poke(&self, index: u64, addr: u64, len: u32, flags: u16) {
        let bytes = descriptor(addr, len, 7, flags);
        self.guest.write(self.driver.desc + 16 * index, &bytes);
    }

    fn pop(&mut self) -> Result<bool, RingFault> {
        let before = self.ring.state();
        let result = self
            .ring
            .pop(&self.guest.space.lock(), &mut Chain::default());
        if result.is_err() {
            assert_eq!(self.ring.state(), before, "it counts as not taken");
        }
        result
    }

    fn fault(&mut self) -> RingFault {
        self.pop().expect_err("a fault")
    }
}

#[test]
fn a_chain_through_the_whole_ring_and_on_is_a_loop() {
    let mut rig = Rig::new(FEATURES);
    for index in 0..u64::from(SIZE) {
        rig.poke(index, rig.buffer, 4, AVAIL | NEXT);
    }
    let fault = rig.fault();
    assert_eq!(fault.kind, "chain_loop");
    assert!(fault.clause.contains("2.8.17"));
}

#[test]
fn a_chain_into_descriptors_that_are_not_available_names_their_flags() {
    let mut rig = Rig::new(FEATURES);
    rig.poke(0, rig.buffer, 4, AVAIL | NEXT);
    rig.poke(1, rig.buffer, 4, AVAIL | USED);
    let fault = rig.fault();
    assert_eq!(
        (fault.kind, fault.value),
        ("chain_flags", u64::from(AVAIL | USED))
    );
}

#[test]
fn descriptors_that_are_made_available_again_before_they_were_used_are_refused() {
    let mut rig = Rig::new(FEATURES);
    let piece = Piece {
        iova: rig.buffer,
        len: 4,
        writable: true,
    };
    for _ in 0..SIZE {
        rig.driver.add(&rig.guest, &[piece], false);
        assert_eq!(rig.pop(), Ok(true));
    }
    assert_eq!(rig.pop(), Ok(false));
    // The next lap's flags over a descriptor that the device still has.
    rig.poke(0, rig.buffer, 4, USED);
    assert_eq!(rig.fault().kind, "chain_loop");
}

#[test]
fn a_readable_buffer_after_a_writable_one_is_refused() {
    let mut rig = Rig::new(FEATURES);
    rig.poke(0, rig.buffer, 4, AVAIL | NEXT | WRITE);
    rig.poke(1, rig.buffer, 4, AVAIL);
    assert_eq!(rig.fault().kind, "chain_order");
}

#[test]
fn a_chain_of_more_than_four_gibibytes_is_refused() {
    let mut rig = Rig::new(FEATURES);
    rig.poke(0, rig.buffer, u32::MAX, AVAIL | NEXT);
    rig.poke(1, rig.buffer, u32::MAX, AVAIL);
    assert_eq!(rig.fault().kind, "chain_length");
}

#[test]
fn bad_indirect_descriptors_are_refused() {
    let table = BASE + 0x8_0000;
    let limit = 1024 * 16;
    for (len, flags) in [
        (0, INDIRECT),
        (24, INDIRECT),
        (16, INDIRECT | NEXT),
        (limit + 16, INDIRECT),
        (!15, INDIRECT),
    ] {
        let mut rig = Rig::new(FEATURES);
        rig.poke(0, table, len, AVAIL | flags);
        let fault = rig.fault();
        assert_eq!(fault.kind, "indirect", "{len} {flags:#x}");
        assert_eq!(fault.value & 0xffff_ffff, u64::from(len));
    }
    let mut rig = Rig::new(FEATURES);
    rig.poke(0, table, limit, AVAIL | INDIRECT | WRITE);
    assert_eq!(rig.pop(), Ok(true), "the longest table; WRITE is ignored");
}

#[test]
fn an_indirect_descriptor_at_the_end_of_a_list_is_refused() {
    let mut rig = Rig::new(FEATURES);
    rig.poke(0, rig.buffer, 4, AVAIL | NEXT);
    rig.poke(1, rig.buffer, 16, AVAIL | INDIRECT);
    let fault = rig.fault();
    assert_eq!(fault.kind, "indirect");
    assert!(fault.clause.contains("2.8.19"));
}

#[test]
fn an_indirect_descriptor_that_was_not_negotiated_is_refused() {
    let mut rig = Rig::new(Features {
        indirect: false,
        ..FEATURES
    });
    rig.poke(0, rig.buffer, 16, AVAIL | INDIRECT);
    assert_eq!(rig.fault().kind, "indirect");
}

#[test]
fn an_indirect_table_outside_of_every_map_or_at_the_end_of_the_address_space_is_a_dma_fault() {
    for table in [1 << 50, u64::MAX - 8] {
        let mut rig = Rig::new(FEATURES);
        rig.poke(0, table, 32, AVAIL | INDIRECT);
        assert_eq!(rig.fault().kind, "dma");
    }
}

#[test]
fn a_ring_that_is_unmapped_under_the_device_is_a_dma_fault() {
    let mut rig = Rig::new(FEATURES);
    let space = &rig.guest.space;
    for mapping in space.mappings() {
        space.unmap(mapping.iova, mapping.size).expect("unmap");
    }
    let fault = rig.fault();
    assert_eq!((fault.kind, fault.value), ("dma", rig.driver.desc + 14));
    let memory = rig.guest.space.lock();
    assert_eq!(
        rig.ring.enable_kicks(&memory).map_err(|f| f.kind),
        Err("dma")
    );
}

#[test]
fn an_event_beyond_the_ring_is_answered_with_one_interrupt_too_many() {
    let mut rig = Rig::new(FEATURES);
    let piece = Piece {
        iova: rig.buffer,
        len: 4,
        writable: true,
    };
    let (_, events, _) = rig.driver.areas();
    for _ in 0..4 {
        rig.guest.write(events, &[0xff, 0x7f, 2, 0]);
        rig.driver.add(&rig.guest, &[piece], false);
        let mut chain = Chain::default();
        let memory = rig.guest.space.lock();
        rig.ring.pop(&memory, &mut chain).unwrap();
        rig.ring.push_used(&memory, chain.taken, 4).unwrap();
        assert_eq!(rig.ring.publish(&memory), Ok(true));
        drop(memory);
        rig.driver.reap(&rig.guest);
    }
}

fn config() -> (Guest, RingConfig) {
    let guest = Guest::new();
    let driver = PackedDriver::new(&guest, SIZE, true, 0);
    let state = RingState::initial(F_RING_PACKED);
    let config = driver.config(FEATURES, state, false);
    (guest, config)
}

fn refusal(change: impl Fn(&mut RingConfig)) -> Error {
    let (guest, mut config) = config();
    change(&mut config);
    let memory = guest.space.lock();
    ring::open(&config, &memory).expect_err("a refusal")
}

#[test]
fn each_bad_field_of_a_configuration_is_named() {
    let bad = |what| {
        move |error: Error| match error {
            Error::BadRing { what: got, .. } => assert_eq!(got, what),
            other => panic!("{what}: {other}"),
        }
    };
    bad("queue_size")(refusal(|c| c.size = 0));
    bad("queue_size")(refusal(|c| c.size = 32769));
    bad("queue_desc")(refusal(|c| c.desc += 8));
    bad("queue_driver")(refusal(|c| c.driver += 2));
    bad("queue_device")(refusal(|c| c.device += 2));
    bad("last_avail_idx")(refusal(|c| c.state.last_avail_idx = 0x8000 | SIZE));
    bad("used_idx")(refusal(|c| c.state.used_idx = SIZE));
    for change in [
        |c: &mut RingConfig| c.desc = 1 << 50,
        |c: &mut RingConfig| c.driver = 1 << 50,
        |c: &mut RingConfig| c.device = 1 << 50,
        |c: &mut RingConfig| c.desc = !15,
    ] {
        assert!(matches!(refusal(change), Error::Unmapped { .. }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever lies in the ring and in the tables that it names, each call ends, and the state stays one that another
    /// device could start at.
    #[test]
    fn random_descriptors_never_confuse_the_ring(
        size in 1u16..20,
        passed in 0u64..60,
        raw in prop::collection::vec((0u64..0x11_0000, prop_oneof![0u32..200, any::<u32>()], any::<u16>(), any::<u16>()), 20),
        wishes in any::<[u8; 4]>(),
    ) {
        let guest = Guest::new();
        let driver = PackedDriver::new(&guest, size, true, passed);
        let mut ring = open(&guest, &driver, FEATURES, passed, false);
        let (desc, events, _) = driver.areas();
        for (index, &(addr, len, id, flags)) in raw.iter().enumerate().take(usize::from(size)) {
            guest.write(desc + 16 * index as u64, &descriptor(BASE + addr, len, id, flags));
        }
        guest.write(events, &wishes);
        let mut taken = Vec::new();
        for _ in 0..40 {
            let memory = guest.space.lock();
            let mut chain = Chain::default();
            match ring.pop(&memory, &mut chain) {
                Ok(true) => taken.push(chain.taken),
                Ok(false) | Err(_) => break,
            }
        }
        let slots: u32 = taken.iter().map(|taken| u32::from(taken.slots)).sum();
        prop_assert!(slots <= u32::from(size));
        let memory = guest.space.lock();
        let _ = ring.available(&memory, u16::MAX);
        let _ = ring.enable_kicks(&memory);
        for taken in taken {
            ring.push_used(&memory, taken, 1).expect("the ring is mapped");
        }
        ring.publish(&memory).expect("so are the events");
        let config = driver.config(FEATURES, ring.state(), true);
        prop_assert!(ring::open(&config, &memory).is_ok());
    }
}
