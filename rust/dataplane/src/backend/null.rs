// SPDX-License-Identifier: Apache-2.0
//! A port that takes everything and, on request, is a source of packets.
//!
//! The source sends UDP flows. Which pair gets one is decided by the steering of the back end, so that each port makes
//! the packets of its own flows and no packet changes threads.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::source::{Source, SourceConfig, SourceTurn};
use super::steering::{flow_of, Steering};
use super::{Received, Sent};
use crate::error::Result;
use crate::memory::{Memory, Range};
use crate::net::HEADER_BYTES;
use crate::os::new_eventfd;

/// Enough of a packet to know its flow.
const PEEK_BYTES: usize = HEADER_BYTES + 14 + 8 + 60 + 4;

#[derive(Debug)]
pub(crate) struct NullPort {
    pair: u16,
    /// Never signalled; all ports of a back end share it.
    quiet: Arc<EventFd>,
    source: Option<Source>,
}

impl NullPort {
    pub(super) fn new(
        pair: u16,
        quiet: Arc<EventFd>,
        source: Option<(&SourceConfig, &Arc<Steering>)>,
    ) -> Result<Self> {
        let source = source
            .map(|(config, steering)| Source::new(pair, config, Arc::clone(steering)))
            .transpose()?;
        Ok(Self {
            pair,
            quiet,
            source,
        })
    }

    pub(super) fn quiet() -> Result<Arc<EventFd>> {
        new_eventfd().map(Arc::new)
    }

    pub(super) fn poll_fd(&self) -> BorrowedFd<'_> {
        let fd = match &self.source {
            Some(source) => source.timer_fd,
            None => self.quiet.as_raw_fd(),
        };
        // SAFETY: eventfd and timer live as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    pub(super) fn send(&self, memory: &Memory<'_>, ranges: &[Range]) -> Result<Sent> {
        ranges
            .iter()
            .try_for_each(|range| memory.check(*range, false))?;
        if self.learns() {
            let (head, len) = peek(memory, ranges)?;
            return Ok(self.send_bytes(&head[..len]));
        }
        Ok(Sent::Done)
    }

    /// Send a packet, or as much of it as its flow can be seen from.
    pub(super) fn send_bytes(&self, packet: &[u8]) -> Sent {
        if let Some(source) = self.source.as_ref().filter(|_| self.learns()) {
            let flow = flow_of(packet.get(HEADER_BYTES..).unwrap_or(&[]));
            source.steering.sent(flow, self.pair);
        }
        Sent::Done
    }

    /// Whether it matters on which pair a flow is sent.
    fn learns(&self) -> bool {
        let source = self.source.as_ref();
        source.is_some_and(|source| source.steering.active_pairs() > 1)
    }

    pub(super) fn receive(&self, buffer: &mut [u8]) -> Received {
        match &self.source {
            Some(source) => source.turn().receive(buffer),
            None => Received::Empty,
        }
    }

    /// The source for the packets of a batch.
    pub(super) fn turn(&self) -> Option<SourceTurn<'_>> {
        self.source.as_ref().map(Source::turn)
    }
}

/// The first bytes of a packet.
fn peek(memory: &Memory<'_>, ranges: &[Range]) -> Result<([u8; PEEK_BYTES], usize)> {
    let mut head = [0; PEEK_BYTES];
    let mut done = 0;
    for range in ranges {
        let len = (range.len as usize).min(PEEK_BYTES - done);
        memory.read_into(range.iova, &mut head[done..done + len])?;
        done += len;
    }
    Ok((head, done))
}

#[cfg(test)]
mod tests {
    use super::super::source::FIRST_PORT;
    use super::*;

    fn ports(pairs: u16, rate_pps: u64) -> (Vec<NullPort>, Arc<Steering>) {
        let steering = Arc::new(Steering::new(pairs));
        let config = SourceConfig {
            packet_bytes: 60,
            rate_pps,
            flows: 16,
            destination: [0xff; 6],
        };
        let quiet = NullPort::quiet().unwrap();
        let port = |pair| NullPort::new(pair, Arc::clone(&quiet), Some((&config, &steering)));
        (
            (0..pairs).map(|pair| port(pair).unwrap()).collect(),
            steering,
        )
    }

    fn flow(port: &NullPort) -> Option<u16> {
        let mut buffer = [0; 128];
        match port.receive(&mut buffer) {
            Received::Packet(len) => {
                assert_eq!(len, HEADER_BYTES + 60);
                Some(u16::from_be_bytes([buffer[46], buffer[47]]) - FIRST_PORT)
            }
            _ => None,
        }
    }

    #[test]
    fn each_flow_comes_out_of_one_port_and_all_flows_come() {
        let (ports, _) = ports(3, 0);
        let mut seen = [None; 16];
        for (number, port) in ports.iter().enumerate() {
            for _ in 0..64 {
                let Some(flow) = flow(port) else { break };
                assert_eq!(*seen[usize::from(flow)].get_or_insert(number), number);
            }
        }
        assert!(seen.iter().all(Option::is_some), "{seen:?}");
    }

    #[test]
    fn a_pair_that_is_not_active_gets_nothing() {
        let (ports, steering) = ports(2, 0);
        steering.set_active_pairs(1);
        assert_eq!(flow(&ports[1]), None);
        let all: std::collections::BTreeSet<_> = (0..16).map(|_| flow(&ports[0])).collect();
        assert_eq!(all.len(), 16);
    }

    #[test]
    fn a_limited_source_stops_when_nothing_is_due_and_wakes_later() {
        let (ports, _) = ports(1, 1000);
        let taken = std::iter::from_fn(|| flow(&ports[0])).take(1000).count();
        assert!(taken <= 100, "{taken} packets at once");
        let mut poll = libc::pollfd {
            fd: ports[0].poll_fd().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the pointer is that of one live pollfd, and the count is 1.
        assert_eq!(unsafe { libc::poll(&mut poll, 1, 10_000) }, 1);
        std::iter::repeat_with(|| flow(&ports[0]))
            .take(1_000_000)
            .find(Option::is_some)
            .expect("a packet is due");
    }
}
