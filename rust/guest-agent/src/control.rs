// SPDX-License-Identifier: Apache-2.0
//! The lab's requests and their answers. None of them does harm when it comes twice.

use std::net::UdpSocket;

use crate::run::{Order, Run, Shared};
use crate::wire::{self, Header, Kind, Operation, HEADER, MAX_PAIRS, STATE};

const START: usize = 32;

/// Answers requests, for ever. `prepare` is called before a run begins, with its number of flows.
pub fn serve(socket: &UdpSocket, shared: &Shared, mut prepare: impl FnMut(usize)) {
    let mut buffer = [0u8; 2048];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let data = &mut buffer[..length];
        let Some(header) = wire::parse(data) else {
            continue;
        };
        if header.kind != Kind::Request as u8 {
            continue;
        }
        if let Some(reply) = answer(&header, &data[HEADER..], shared, &mut prepare) {
            // A lost reply is asked for again, so a failed send needs nothing.
            let _ = socket.send_to(&reply, from);
        }
    }
}

fn answer(
    header: &Header,
    body: &[u8],
    shared: &Shared,
    prepare: &mut impl FnMut(usize),
) -> Option<Vec<u8>> {
    if header.operation == Operation::Start as u8 {
        let order = order_from(header.run_id, body)?;
        prepare(order.flows);
        shared.start(order);
    }
    if header.operation == Operation::Stop as u8 && shared.lock().order.run_id == header.run_id {
        shared.stop();
    }
    let run = shared.lock();
    if run.order.run_id != header.run_id {
        return None;
    }
    let (pairs, more) = pairs_for(header, body, &run)?;
    let mut data = reply(header, &run, &pairs, more);
    drop(run);
    let kind = Kind::Reply as u8;
    wire::seal(&mut data, &Header { kind, ..*header }, shared.now_ns());
    Some(data)
}

fn order_from(run_id: u64, body: &[u8]) -> Option<Order> {
    (body.len() >= START).then(|| Order {
        run_id,
        rate_pps: wire::u32_at(body, 0),
        min_length: wire::u32_at(body, 4) as usize,
        max_length: wire::u32_at(body, 8) as usize,
        flows: wire::u32_at(body, 12) as usize,
        seed: wire::u64_at(body, 16),
    })
}

fn pairs_for(header: &Header, body: &[u8], run: &Run) -> Option<(Vec<(u64, u64)>, bool)> {
    let wanted = header.operation;
    if wanted == Operation::Start as u8 || wanted == Operation::Stop as u8 {
        return Some((Vec::new(), false));
    }
    if body.len() < 16 {
        return None;
    }
    let received = &run.flows.get(usize::from(header.flow))?.received;
    let (from, to) = (wire::u64_at(body, 0), wire::u64_at(body, 8));
    if wanted == Operation::Missing as u8 {
        Some(received.missing(from, to, MAX_PAIRS))
    } else if wanted == Operation::Duplicates as u8 {
        Some(received.repeated(from, to, MAX_PAIRS))
    } else if wanted == Operation::Reordered as u8 {
        Some(received.overtaken(from, to, MAX_PAIRS))
    } else {
        None
    }
}

fn reply(header: &Header, run: &Run, pairs: &[(u64, u64)], more: bool) -> Vec<u8> {
    let mut data = vec![0u8; HEADER];
    let flow = run.flows.get(usize::from(header.flow));
    let counts = flow.map_or_else(Default::default, |flow| flow.received.counts);
    data.extend(counts.received.to_le_bytes());
    data.extend(counts.next_expected.to_le_bytes());
    data.extend(counts.duplicates.to_le_bytes());
    data.extend(counts.reordered.to_le_bytes());
    data.extend(run.corrupted.to_le_bytes());
    data.extend(run.foreign.to_le_bytes());
    data.extend(flow.map_or(0, |flow| flow.sent).to_le_bytes());
    data.extend(run.send_errors.to_le_bytes());
    data.extend(u32::from(run.sending).to_le_bytes());
    data.extend(run.stream.received.to_le_bytes());
    data.extend(run.stream.sent.to_le_bytes());
    data.extend(run.stream.mismatch_at.unwrap_or(u64::MAX).to_le_bytes());
    data.extend((run.stream.phase as u32).to_le_bytes());
    data.extend((pairs.len() as u32).to_le_bytes());
    data.extend(u64::from(more).to_le_bytes());
    debug_assert_eq!(data.len(), HEADER + STATE);
    for (first, second) in pairs {
        data.extend(first.to_le_bytes());
        data.extend(second.to_le_bytes());
    }
    data
}
