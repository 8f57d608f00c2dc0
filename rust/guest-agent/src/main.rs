// SPDX-License-Identifier: Apache-2.0
//! The end of the lab's traffic that runs inside of the guest.
//!
//! `vdpa-net-guest-agent traffic --bind IP:PORT --peer IP:PORT [--control-port PORT] [--rate PPS]
//! [--dirty-kib-per-s N] [--dirty-pool-kib N]`
//!
//! It receives a numbered stream on the data port and, from the lab's start request on, sends one of its own
//! to the peer. The control port (default: the one after the data port) answers the lab's requests. The
//! receiving thread only ever appends to what it knows, so the pause of a migration needs no care.

mod crc;
mod receive;
mod run;
mod traffic;
mod wire;

use std::net::{SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use run::Shared;

const USAGE: &str =
    "usage: vdpa-net-guest-agent traffic --bind IP:PORT --peer IP:PORT [--control-port PORT] \
    [--rate PPS] [--dirty-kib-per-s N] [--dirty-pool-kib N]";

struct Options {
    bind: SocketAddr,
    peer: SocketAddr,
    control_port: Option<u16>,
    rate_pps: u32,
    dirty_kib_per_s: u64,
    dirty_pool_kib: u64,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("vdpa-net-guest-agent: {message}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    match arguments.next().as_deref() {
        Some("traffic") => {}
        other => return Err(format!("got command {other:?}, expected \"traffic\"")),
    }
    let (mut bind, mut peer, mut control_port) = (None, None, None);
    let (mut rate_pps, mut dirty_kib_per_s, mut dirty_pool_kib) = (1000, 1024, 8192);
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| format!("{name} takes a value"))?;
        match name.as_str() {
            "--bind" => bind = Some(number(&name, &value)?),
            "--peer" => peer = Some(number(&name, &value)?),
            "--control-port" => control_port = Some(number(&name, &value)?),
            "--rate" => rate_pps = number(&name, &value)?,
            "--dirty-kib-per-s" => dirty_kib_per_s = number(&name, &value)?,
            "--dirty-pool-kib" => dirty_pool_kib = number(&name, &value)?,
            _ => return Err(format!("unknown option {name}")),
        }
    }
    let bind: SocketAddr = bind.ok_or("--bind is missing")?;
    let peer = peer.ok_or("--peer is missing")?;
    Ok(Options {
        bind,
        peer,
        control_port,
        rate_pps,
        dirty_kib_per_s,
        dirty_pool_kib,
    })
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("{name} can't be {value:?}"))
}

fn serve(options: Options) -> Result<(), String> {
    let data = Arc::new(open(options.bind)?);
    let bound = data.local_addr().map_err(|error| error.to_string())?;
    let port = options.control_port.unwrap_or(bound.port().wrapping_add(1));
    let control = open(SocketAddr::new(options.bind.ip(), port))?;
    let shared = Arc::new(Shared::new());
    if options.dirty_kib_per_s > 0 {
        thread::spawn(move || traffic::dirty(options.dirty_kib_per_s, options.dirty_pool_kib));
    }
    let (socket, state) = (Arc::clone(&data), Arc::clone(&shared));
    thread::spawn(move || traffic::receive(&socket, &state));
    let state = Arc::clone(&shared);
    thread::spawn(move || traffic::send(&data, options.peer, &state));
    println!("LAB ready traffic");
    traffic::control(&control, &shared, options.rate_pps);
    Ok(())
}

fn open(address: SocketAddr) -> Result<UdpSocket, String> {
    UdpSocket::bind(address).map_err(|error| format!("bind to {address}: {error}"))
}
