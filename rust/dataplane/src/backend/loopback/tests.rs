// SPDX-License-Identifier: Apache-2.0
//! Ports on their own, without a ring.

use std::sync::mpsc::channel;
use std::sync::Barrier;
use std::time::Duration;

use super::*;

fn port(depth: usize) -> LoopbackPort {
    LoopbackPort::new(0, Arc::new(Loopback::new(1, depth).unwrap()))
}

fn is_readable(port: &LoopbackPort) -> bool {
    let mut poll = libc::pollfd {
        fd: port.poll_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the pointer is that of one live pollfd, and the count is 1.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 }
}

fn packet(fill: u8, len: usize) -> Vec<u8> {
    let mut packet = vec![0; net::HEADER_BYTES];
    packet.resize(len, fill);
    packet
}

#[test]
fn packets_come_back_in_their_order_and_as_long_as_they_were() {
    let port = port(8);
    for round in 0..3 {
        for (fill, len) in [(1, 60), (2, 1500), (3, 13), (4, 9000)] {
            assert_eq!(port.send_bytes(&packet(fill + round, len)), Sent::Done);
        }
        let mut turn = port.receive_turn();
        for (fill, len) in [(1, 60), (2, 1500), (3, 13), (4, 9000)] {
            assert_eq!(turn.offer(), Some(packet(fill + round, len).as_slice()));
            assert_eq!(
                turn.offer().map(<[u8]>::len),
                Some(len),
                "an offer takes nothing"
            );
            turn.taken();
        }
        assert_eq!(turn.offer(), None);
    }
}

#[test]
fn a_port_is_readable_while_packets_wait_and_until_a_look_that_finds_none() {
    let port = port(8);
    assert!(!is_readable(&port));
    for _ in 0..3 {
        port.send_bytes(&packet(1, 60));
        port.send_bytes(&packet(2, 60));
        assert!(is_readable(&port));
        let mut turn = port.receive_turn();
        assert!(turn.offer().is_some());
        turn.taken();
        assert!(is_readable(&port), "one waits");
        assert!(turn.offer().is_some());
        turn.taken();
        assert_eq!(turn.offer(), None);
        drop(turn);
        assert!(!is_readable(&port), "none waits, and that was seen");
    }
    // One that comes after the last was taken and before the look.
    port.send_bytes(&packet(1, 60));
    port.receive_turn().taken();
    port.send_bytes(&packet(2, 60));
    assert!(is_readable(&port));
}

#[test]
fn a_full_port_refuses_and_keeps_what_it_has() {
    let port = port(2);
    for fill in 1..4 {
        let sent = port.send_bytes(&packet(fill, 60));
        if fill < 3 {
            assert_eq!(sent, Sent::Done);
        } else {
            let (reason, errno) = (Drop::Backend, libc::ENOBUFS);
            assert_eq!(sent, Sent::Refused { reason, errno });
        }
    }
    let mut buffer = [0; 100];
    for fill in 1..3 {
        assert_eq!(port.receive(&mut buffer), Received::Packet(60));
        assert_eq!(buffer[..60], packet(fill, 60));
    }
    assert_eq!(port.receive(&mut buffer), Received::Empty);
}

/// Pair 3 sends to 1 while two pairs are active and to 0 while three are, pair 4 to 0 and then to 1.
#[test]
fn two_pairs_whose_targets_are_exchanged_in_a_batch_do_not_wait_for_each_other() {
    let shared = Arc::new(Loopback::new(5, 8).unwrap());
    shared.steering.set_active_pairs(2);
    let both_hold = Arc::new(Barrier::new(3));
    let (done, finished) = channel();
    for pair in [3, 4] {
        let port = LoopbackPort::new(pair, Arc::clone(&shared));
        let (both_hold, done) = (Arc::clone(&both_hold), done.clone());
        std::thread::spawn(move || {
            let mut turn = port.send_turn();
            assert_eq!(turn.send_bytes(&packet(1, 60)), Sent::Done);
            both_hold.wait();
            both_hold.wait();
            assert_eq!(turn.send_bytes(&packet(2, 60)), Sent::Done);
            drop(turn);
            done.send(()).unwrap();
        });
    }
    both_hold.wait();
    shared.steering.set_active_pairs(3);
    both_hold.wait();
    for _ in 0..2 {
        let ended = finished.recv_timeout(Duration::from_secs(10));
        assert_eq!(ended, Ok(()), "a batch that never ends");
    }
    for pair in [0, 1] {
        let port = LoopbackPort::new(pair, Arc::clone(&shared));
        let came = std::iter::from_fn(|| match port.receive(&mut [0; 100]) {
            Received::Packet(len) => Some(len),
            _ => None,
        });
        assert_eq!(came.collect::<Vec<_>>(), [60, 60], "on pair {pair}");
    }
}
