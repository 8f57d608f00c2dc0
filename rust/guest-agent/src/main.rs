// SPDX-License-Identifier: Apache-2.0
//! The end of the lab's traffic that runs inside of the guest.
//!
//! `vdpa-net-guest-agent traffic --bind IP:PORT --peer IP:PORT [--dirty-kib-per-s N] [--dirty-pool-kib N]`
//!
//! PORT + 1 (UDP) answers the lab's requests, PORT + 2 (TCP) takes a stream of known bytes and sends one, and
//! PORT + 16 + f (UDP, the same at the peer) is flow f: from the lab's start request on it counts what arrives
//! and sends numbered packets of its own. The receiving threads only ever append to what they know, so the
//! pause of a migration needs no care.

mod control;
mod crc;
mod receive;
mod run;
mod stream;
mod traffic;
mod wire;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use run::Shared;
use wire::MAX_FLOWS;

const USAGE: &str = "usage: vdpa-net-guest-agent traffic --bind IP:PORT --peer IP:PORT \
    [--dirty-kib-per-s N] [--dirty-pool-kib N]";
const CONTROL_PORT: u16 = 1;
const STREAM_PORT: u16 = 2;
const FLOW_PORTS: u16 = 16;

struct Options {
    bind: SocketAddr,
    peer: SocketAddr,
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
    let (mut bind, mut peer) = (None, None);
    let (mut dirty_kib_per_s, mut dirty_pool_kib) = (1024, 8192);
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| format!("{name} takes a value"))?;
        match name.as_str() {
            "--bind" => bind = Some(number(&name, &value)?),
            "--peer" => peer = Some(number(&name, &value)?),
            "--dirty-kib-per-s" => dirty_kib_per_s = number(&name, &value)?,
            "--dirty-pool-kib" => dirty_pool_kib = number(&name, &value)?,
            _ => return Err(format!("unknown option {name}")),
        }
    }
    let bind: SocketAddr = bind.ok_or("--bind is missing")?;
    let peer: SocketAddr = peer.ok_or("--peer is missing")?;
    let last = FLOW_PORTS + MAX_FLOWS as u16;
    for (name, address) in [("--bind", bind), ("--peer", peer)] {
        if address.port().checked_add(last).is_none() {
            return Err(format!(
                "{name} {address}: the {last} ports behind it are needed, too"
            ));
        }
    }
    Ok(Options {
        bind,
        peer,
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
    let shared = Arc::new(Shared::new());
    let control = open(behind(options.bind, CONTROL_PORT))?;
    let address = behind(options.bind, STREAM_PORT);
    let listener = TcpListener::bind(address).map_err(|error| refused(address, &error))?;
    let mut flows = Flows::new(&options, &shared);
    flows.open_up_to(1)?;
    if options.dirty_kib_per_s > 0 {
        thread::spawn(move || traffic::dirty(options.dirty_kib_per_s, options.dirty_pool_kib));
    }
    let state = Arc::clone(&shared);
    thread::spawn(move || stream::serve(&listener, &state));
    println!("LAB ready traffic");
    control::serve(&control, &shared, |wanted| {
        if let Err(message) = flows.open_up_to(wanted) {
            eprintln!("vdpa-net-guest-agent: {message}");
        }
    });
    Ok(())
}

/// The sockets of the flows, each with its two threads; once open they stay.
struct Flows {
    bind: SocketAddr,
    peer: SocketAddr,
    shared: Arc<Shared>,
    open: usize,
}

impl Flows {
    fn new(options: &Options, shared: &Arc<Shared>) -> Self {
        Self {
            bind: options.bind,
            peer: options.peer,
            shared: Arc::clone(shared),
            open: 0,
        }
    }

    fn open_up_to(&mut self, wanted: usize) -> Result<(), String> {
        while self.open < wanted.min(MAX_FLOWS) {
            let flow = self.open;
            let port = FLOW_PORTS + flow as u16;
            let socket = Arc::new(open(behind(self.bind, port))?);
            let peer = behind(self.peer, port);
            socket
                .connect(peer)
                .map_err(|error| refused(peer, &error))?;
            let (own, shared) = (Arc::clone(&socket), Arc::clone(&self.shared));
            thread::spawn(move || traffic::receive(&own, flow, &shared));
            let shared = Arc::clone(&self.shared);
            thread::spawn(move || traffic::send(&socket, flow, &shared));
            self.open += 1;
        }
        Ok(())
    }
}

fn behind(address: SocketAddr, ports: u16) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port() + ports)
}

fn open(address: SocketAddr) -> Result<UdpSocket, String> {
    UdpSocket::bind(address).map_err(|error| refused(address, &error))
}

fn refused(address: SocketAddr, error: &std::io::Error) -> String {
    format!("{address}: {error}")
}
