// SPDX-License-Identifier: Apache-2.0
//! Packets read ahead from datagram sockets, with a ring and without.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use super::*;

/// One that reads one by one, and one that uses a ring where the system has one.
fn both() -> [Slots; 2] {
    [0, FULL_READS].map(|full_reads| Slots {
        full_reads,
        ..Slots::default()
    })
}

fn socket_with(packets: &[Vec<u8>]) -> (UnixDatagram, UnixDatagram) {
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    packets.iter().for_each(|packet| {
        far.send(packet).unwrap();
    });
    (near, far)
}

fn take_all(slots: &mut Slots) -> Vec<Vec<u8>> {
    let next = || {
        let len = slots.first_len()?;
        let packet = slots.first()[..len].to_vec();
        slots.remove_first();
        Some(packet)
    };
    std::iter::from_fn(next).collect()
}

#[test]
fn packets_come_out_whole_and_in_their_order_until_there_are_no_more() {
    for mut slots in both() {
        for round in 1..=3u8 {
            let packets: Vec<_> = (1..=8u8).map(|n| vec![n * round; usize::from(n)]).collect();
            let (near, _far) = socket_with(&packets);
            let with_ring = slots.full_reads >= FULL_READS;
            assert_eq!(slots.read(near.as_fd(), SLOTS), Some(Received::Empty));
            let has_ring = matches!(slots.ring, Ring::Ready(_));
            assert!(!with_ring || has_ring == new_ring(SLOTS, &[opcode::ReadFixed::CODE]).is_ok());
            assert_eq!(take_all(&mut slots), packets);
            assert_eq!(slots.count(), 0);
            slots.full_reads = if with_ring { FULL_READS } else { 0 };
        }
    }
}

#[test]
fn packets_behind_a_request_that_gave_none_keep_their_order() {
    let mut slots = Slots::default();
    slots.first()[..2].copy_from_slice(b"ab");
    let again = -(libc::EAGAIN as isize);
    assert_eq!(slots.take(&[again, 2, again, 3]), Some(Received::Empty));
    let lens = take_all(&mut slots)
        .iter()
        .map(Vec::len)
        .collect::<Vec<_>>();
    assert_eq!(lens, [2, 3]);
}

#[test]
fn no_more_packets_than_the_limit_are_taken() {
    for mut slots in both() {
        let packets: Vec<_> = (0..5u8).map(|n| vec![n; 60]).collect();
        let (near, _far) = socket_with(&packets);
        assert_eq!(slots.read(near.as_fd(), 3), None);
        assert_eq!(take_all(&mut slots), packets[..3]);
        assert_eq!(slots.read(near.as_fd(), SLOTS), Some(Received::Empty));
        assert_eq!(take_all(&mut slots), packets[3..]);
    }
}

#[test]
fn a_long_packet_is_the_last_one_that_is_read_ahead() {
    let packets = [60, LONG_BYTES, 60].map(|len| vec![7; len]);
    let (near, _far) = socket_with(&packets);
    let mut slots = Slots::default();
    assert_eq!(slots.read(near.as_fd(), SLOTS), None);
    assert_eq!(take_all(&mut slots), packets[..2]);
}

#[test]
fn only_full_reads_in_a_row_are_an_occasion_for_a_ring() {
    let mut slots = Slots::default();
    for packets in [3, 3, 2, 3, 3, 3] {
        let (near, _far) = socket_with(&vec![vec![1; 60]; packets]);
        slots.read(near.as_fd(), 3);
        slots.clear();
    }
    assert_eq!(slots.full_reads, 3);
}

#[test]
fn a_descriptor_that_fails_says_so_with_a_ring_and_without() {
    for mut slots in both() {
        let directory = File::open("/").unwrap();
        let failed = Some(Received::Failed(libc::EISDIR));
        assert_eq!(slots.read(directory.as_fd(), SLOTS), failed);
        assert_eq!(slots.count(), 0);
    }
}
