// SPDX-License-Identifier: Apache-2.0
//! A source of UDP flows, of which each port makes those that are steered to its pair.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::timerfd::TimerFd;

use super::steering::{flow_of, Steering};
use super::{cant_make, copy, place, Received};
use crate::error::{Error, Result};
use crate::memory::{Canvas, Memory, Range};
use crate::net::{self, HEADER_BYTES, MAX_FRAME_BYTES};

/// Ethernet, IPv4 and UDP headers and a sequence number, padded to Ethernet's minimum.
const MIN_PACKET_BYTES: usize = 60;
const MAX_FLOWS: u16 = 256;
/// What is not received in this time is not made up for.
const MAX_BACKLOG: Duration = Duration::from_millis(100);
/// How often a source looks again whether it has got a flow, and the least that it sleeps.
const TICK: Duration = Duration::from_millis(1);

/// Where the UDP header and its payload are in a frame.
const UDP: usize = 14 + 20;
const PAYLOAD: usize = UDP + 8;
pub(super) const FIRST_PORT: u16 = 49152;
/// Addresses for measurements (RFC 2544).
const SOURCE_IP: [u8; 4] = [198, 18, 0, 1];
const DESTINATION_IP: [u8; 4] = [198, 18, 0, 2];
const SOURCE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];

/// What a source sends.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// Length of each frame, in bytes.
    pub packet_bytes: usize,
    /// Packets per second over all flows; 0 for as many as there are buffers for.
    pub rate_pps: u64,
    /// How many UDP flows; flow i has the source port 49152 + i.
    pub flows: u16,
    /// Where the frames go to.
    pub destination: [u8; 6],
}

impl SourceConfig {
    pub(super) fn check(&self) -> Result<()> {
        let max = MAX_FRAME_BYTES - 8;
        if !(MIN_PACKET_BYTES..=max).contains(&self.packet_bytes)
            || !(1..=MAX_FLOWS).contains(&self.flows)
        {
            return Err(Error::Backend {
                errno: libc::EINVAL,
                message: format!(
                    "source of {} flows of packets of {} bytes: expected 1 to {MAX_FLOWS} flows of {MIN_PACKET_BYTES} to {max} bytes",
                    self.flows, self.packet_bytes
                ),
            });
        }
        Ok(())
    }
}

/// The source of one port.
#[derive(Debug)]
pub(super) struct Source {
    pair: u16,
    pub(super) steering: Arc<Steering>,
    rate_pps: u64,
    /// Readable when it is time to look again.
    pub(super) timer_fd: i32,
    state: Mutex<SourceState>,
}

#[derive(Debug)]
struct SourceState {
    timer: TimerFd,
    /// Header and frame of flow 0; the others differ in port and checksum.
    packet: Vec<u8>,
    /// What `flow_of` says about each flow, and the number of its next packet.
    flows: Vec<(u32, u64)>,
    next_flow: usize,
    refilled: Instant,
    /// Packets that are due, in millionths.
    credit: u64,
}

const CREDIT: u64 = 1_000_000;

impl Source {
    pub(super) fn new(pair: u16, config: &SourceConfig, steering: Arc<Steering>) -> Result<Self> {
        config.check()?;
        let timer =
            TimerFd::new().map_err(|error| cant_make("timer for a source", &error.into()))?;
        let packet = first_packet(config);
        let flows = (0..config.flows)
            .map(|flow| {
                let mut own = packet[HEADER_BYTES..].to_vec();
                own[UDP..UDP + 2].copy_from_slice(&(FIRST_PORT + flow).to_be_bytes());
                (flow_of(&own), 0)
            })
            .collect();
        Ok(Self {
            pair,
            steering,
            rate_pps: config.rate_pps,
            timer_fd: timer.as_raw_fd(),
            state: Mutex::new(SourceState {
                timer,
                packet,
                flows,
                next_flow: 0,
                refilled: Instant::now(),
                credit: 0,
            }),
        })
    }

    /// Lock it for a batch.
    pub(super) fn turn(&self) -> SourceTurn<'_> {
        SourceTurn {
            source: self,
            state: self.state.lock(),
        }
    }

    /// The flow whose turn it is to send a packet now; None: there is nothing yet.
    #[inline(always)]
    fn next(&self, state: &mut SourceState) -> Option<usize> {
        let Some(flow) = self.take_turn(state) else {
            state.sleep(TICK);
            return None;
        };
        if self.rate_pps > 0 && state.credit < CREDIT {
            let wait = self.refill(state);
            if state.credit < CREDIT {
                state.sleep(wait);
                return None;
            }
        }
        Some(flow)
    }

    /// The next packet, unless `take` fails to take it.
    fn take(
        &self,
        state: &mut SourceState,
        take: impl FnOnce(&[u8]) -> Result<Received>,
    ) -> Result<Received> {
        let Some(flow) = self.next(state) else {
            return Ok(Received::Empty);
        };
        let stamp = state.stamp(flow);
        stamp.write(|at, bytes| state.packet[at..at + bytes.len()].copy_from_slice(bytes));
        let received = take(&state.packet)?;
        state.sent(flow);
        Ok(received)
    }

    /// The next flow, in turn, that is steered to this pair.
    #[inline]
    fn take_turn(&self, state: &SourceState) -> Option<usize> {
        let next = if state.next_flow < state.flows.len() {
            state.next_flow
        } else {
            0
        };
        // As it is with one pair.
        if self.is_ours(state.flows[next].0) {
            return Some(next);
        }
        let turns = (next..state.flows.len()).chain(0..next);
        let mut ours = turns.filter(|flow| self.is_ours(state.flows[*flow].0));
        ours.next()
    }

    fn is_ours(&self, flow: u32) -> bool {
        self.steering.pair_of(flow) == self.pair
    }

    /// Add what has become due since the last time for the flows that are ours now; how long until there is more.
    fn refill(&self, state: &mut SourceState) -> Duration {
        let now = Instant::now();
        let elapsed = now.duration_since(state.refilled).min(MAX_BACKLOG);
        state.refilled = now;
        let ours = state.flows.iter().filter(|flow| self.is_ours(flow.0));
        let share = self.rate_pps as u128 * ours.count() as u128;
        let all = state.flows.len() as u128;
        // Microseconds times packets per second are millionths of packets.
        let due = elapsed.as_nanos() * share / all / 1000;
        state.credit += u64::try_from(due).unwrap_or(u64::MAX / 2);
        let missing = u128::from(CREDIT.saturating_sub(state.credit));
        let wait_us = missing * all / share.max(1);
        Duration::from_micros(u64::try_from(wait_us).unwrap_or(u64::MAX))
            .clamp(TICK, Duration::from_secs(1))
    }
}

/// A source, locked. To lock it for each packet would make each wait until all that was stored before, for a guest that
/// runs on another processor, has got there.
pub(crate) struct SourceTurn<'a> {
    source: &'a Source,
    state: MutexGuard<'a, SourceState>,
}

impl SourceTurn<'_> {
    /// The next packet, which is taken with [`Self::taken`].
    #[inline(always)]
    pub(crate) fn offer(&mut self) -> Option<Offer<'_>> {
        let flow = self.source.next(&mut self.state)?;
        Some(Offer {
            packet: &self.state.packet,
            stamp: Some(self.state.stamp(flow)),
            flow,
        })
    }

    /// The packet of this flow, which was offered, is the driver's, or dropped.
    #[inline]
    pub(crate) fn taken(&mut self, flow: usize) {
        self.state.sent(flow);
    }

    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Received {
        let received = self
            .source
            .take(&mut self.state, |packet| Ok(copy(packet, buffer)));
        // A copy does not fail.
        received.unwrap_or(Received::Empty)
    }

    pub(super) fn receive_into(
        &mut self,
        memory: &Memory<'_>,
        ranges: &[Range],
        spill: &mut [u8],
    ) -> Result<Received> {
        self.source.take(&mut self.state, |packet| {
            place(packet, memory, ranges, spill)
        })
    }
}

/// A packet that lies in memory of ours, but for what distinguishes it.
pub(crate) struct Offer<'a> {
    /// The packet; of a source, with the numbers of another one in it.
    pub(crate) packet: &'a [u8],
    /// Whose it is, of a source.
    flow: usize,
    stamp: Option<Stamp>,
}

impl<'a> Offer<'a> {
    /// Of a packet that is complete.
    #[inline]
    pub(super) fn whole(packet: &'a [u8]) -> Self {
        Self {
            packet,
            flow: 0,
            stamp: None,
        }
    }

    /// What [`super::Receiver::taken`] wants to know.
    #[inline]
    pub(crate) fn ticket(&self) -> usize {
        self.flow
    }

    /// Write the packet, which takes one chain. The constant bytes are copied from where nobody stores to: a copy of
    /// what has just been stored has to wait for it.
    #[inline]
    pub(crate) fn write(&self, canvas: &Canvas<'_>) {
        canvas.put(0, self.packet);
        canvas.put(net::NUM_BUFFERS, &1u16.to_le_bytes());
        if let Some(stamp) = &self.stamp {
            stamp.write(|at, bytes| canvas.put(at, bytes));
        }
    }
}

/// What distinguishes a packet from the others of its source.
struct Stamp {
    port: u16,
    number: u64,
}

impl Stamp {
    /// Put each field at its offset.
    #[inline]
    fn write(&self, mut put: impl FnMut(usize, &[u8])) {
        put(HEADER_BYTES + UDP, &self.port.to_be_bytes());
        put(HEADER_BYTES + PAYLOAD, &self.number.to_be_bytes());
    }
}

impl SourceState {
    #[inline]
    fn stamp(&self, flow: usize) -> Stamp {
        Stamp {
            port: FIRST_PORT + flow as u16,
            number: self.flows[flow].1,
        }
    }

    /// A packet of this flow is gone.
    #[inline]
    fn sent(&mut self, flow: usize) {
        self.credit = self.credit.saturating_sub(CREDIT);
        self.next_flow = flow + 1;
        self.flows[flow].1 += 1;
    }

    /// Let the port become readable after `time`. Setting a timer again clears what it said before.
    fn sleep(&mut self, time: Duration) {
        // It fails for impossible times only.
        let _ = self.timer.reset(time, None);
    }
}

fn first_packet(config: &SourceConfig) -> Vec<u8> {
    let mut packet = vec![0; HEADER_BYTES + config.packet_bytes];
    let frame = &mut packet[HEADER_BYTES..];
    let ip_bytes = (config.packet_bytes - 14).min(65535) as u16;
    frame[..6].copy_from_slice(&config.destination);
    frame[6..12].copy_from_slice(&SOURCE_MAC);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[14..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&ip_bytes.to_be_bytes());
    ip[8] = 64;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&SOURCE_IP);
    ip[16..20].copy_from_slice(&DESTINATION_IP);
    let checksum = net::internet_checksum(&ip[..20]);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    // Port 9 is discard; a UDP checksum of 0 is none.
    ip[22..24].copy_from_slice(&9u16.to_be_bytes());
    ip[24..26].copy_from_slice(&(ip_bytes - 20).to_be_bytes());
    packet
}
