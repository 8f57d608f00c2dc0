// SPDX-License-Identifier: Apache-2.0
//! Bursts over datagram sockets, with a ring and without.

use std::fs::File;
use std::os::fd::{AsFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;

use super::super::{DmaSpace, PAGE_BYTES};
use super::*;

const PACKETS: u64 = 40;

/// Page n holds bytes of value n; pages 3 and 4 lie apart in the file.
fn guest() -> DmaSpace {
    // SAFETY: the name is a live C string, and the fd that comes back is nobody else's.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), 0)) };
    file.set_len(64 * PAGE_BYTES).unwrap();
    let space = DmaSpace::new(4);
    for (first, pages, place) in [(0, 4, 8), (4, 50, 12 + 1)] {
        let (iova, size) = (first * PAGE_BYTES, pages * PAGE_BYTES);
        let offset = place * PAGE_BYTES;
        space
            .map(iova, size, file.as_fd(), offset, true, false)
            .unwrap();
        for page in 0..pages {
            let bytes = vec![(first + page) as u8; PAGE_BYTES as usize];
            file.write_all_at(&bytes, offset + page * PAGE_BYTES)
                .unwrap();
        }
    }
    space
}

fn socket_pair() -> (UnixDatagram, UnixDatagram) {
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (near, far)
}

/// Packet n is the last bytes of page n and the first ones of the next.
fn packet(number: u64) -> [Range; 2] {
    let end = (number + 1) * PAGE_BYTES;
    [Range::new(end - 5, 5u64), Range::new(end, 2u64)]
}

fn received(far: &UnixDatagram) -> Vec<Vec<u8>> {
    let mut buffer = [0; 64];
    std::iter::from_fn(|| far.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec())).collect()
}

fn expected(numbers: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    let bytes = |n: u64| [[n as u8; 5].as_slice(), &[n as u8 + 1; 2]].concat();
    numbers.map(bytes).collect()
}

fn writers() -> [BurstWriter; 2] {
    [BurstWriter::default(), BurstWriter::without_ring()]
}

#[test]
fn the_packets_of_a_burst_arrive_whole_and_in_their_order() {
    for mut writer in writers() {
        let (space, (near, far)) = (guest(), socket_pair());
        set_send_buffer(&near, 1 << 20);
        for count in [1, 3, WORTHWHILE_PACKETS as u64, PACKETS] {
            let memory = space.lock();
            let mut burst = memory.burst(&mut writer);
            for number in 0..count {
                assert_eq!(burst.add(&packet(number)), Ok(true));
            }
            let mut results = Vec::new();
            let mut arrived = Vec::new();
            while results.len() < count as usize {
                // A datagram socket holds fewer than a burst: the rest comes in a burst of its own.
                results.extend_from_slice(burst.write(near.as_fd()));
                arrived.extend(received(&far));
                let done = results.len() as u64;
                burst = memory.burst(&mut writer);
                for number in done..count {
                    assert_eq!(burst.add(&packet(number)), Ok(true));
                }
            }
            assert_eq!(results, vec![7; count as usize]);
            assert_eq!(arrived, expected(0..count));
        }
    }
}

fn set_send_buffer(socket: &UnixDatagram, bytes: libc::c_int) {
    let (fd, start) = (socket.as_raw_fd(), std::ptr::from_ref(&bytes).cast());
    // SAFETY: the option is a live int of 4 bytes.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, start, 4) };
    assert_eq!(result, 0);
}

#[test]
fn what_a_full_descriptor_does_not_take_is_not_written_and_has_no_result() {
    for mut writer in writers() {
        let (space, (near, far)) = (guest(), socket_pair());
        while near.send(b"x").is_ok() {}
        let memory = space.lock();
        let mut burst = memory.burst(&mut writer);
        for number in 0..PACKETS {
            assert_eq!(burst.add(&packet(number)), Ok(true));
        }
        assert_eq!(burst.write(near.as_fd()), [0isize; 0]);
        assert!(received(&far).iter().all(|datagram| datagram == b"x"));
    }
}

#[test]
fn a_packet_that_can_t_be_read_leaves_those_before_it_as_they_were() {
    for mut writer in writers() {
        let (space, (near, far)) = (guest(), socket_pair());
        let memory = space.lock();
        let mut burst = memory.burst(&mut writer);
        assert_eq!(burst.add(&packet(1)), Ok(true));
        let beyond = [
            Range::new(PAGE_BYTES, 9u64),
            Range::new(54 * PAGE_BYTES, 1u64),
        ];
        assert!(burst.add(&beyond).is_err());
        assert_eq!(burst.add(&packet(2)), Ok(true));
        assert_eq!(burst.write(near.as_fd()), [7, 7]);
        assert_eq!(received(&far), expected(1..3));
    }
}

#[test]
fn a_burst_takes_no_more_than_it_can_write() {
    let space = guest();
    let memory = space.lock();
    let mut writer = BurstWriter::default();
    let mut burst = memory.burst(&mut writer);
    // Every other byte is a piece of its own.
    let pieces: Vec<Range> = (0..=IOV_MAX as u64)
        .map(|n| Range::new(2 * n, 1u64))
        .collect();
    assert_eq!(burst.add(&pieces), Ok(false));
    for _ in 0..BURST_PACKETS {
        assert_eq!(burst.add(&packet(0)), Ok(true));
    }
    assert_eq!(burst.add(&packet(0)), Ok(false));
}

#[test]
fn each_packet_of_a_burst_has_its_own_errno() {
    for mut writer in writers() {
        let (space, (near, far)) = (guest(), socket_pair());
        set_send_buffer(&near, 1 << 14);
        let memory = space.lock();
        let mut burst = memory.burst(&mut writer);
        for number in 0..9 {
            let long = [Range::new(0, 16 * PAGE_BYTES)];
            let ranges = if number == 3 {
                &long[..]
            } else {
                &packet(number)
            };
            assert_eq!(burst.add(ranges), Ok(true));
        }
        let mut results = [7; 9];
        results[3] = -(libc::EMSGSIZE as isize);
        assert_eq!(burst.write(near.as_fd()), results);
        assert_eq!(received(&far), [expected(0..3), expected(4..9)].concat());
    }
}
