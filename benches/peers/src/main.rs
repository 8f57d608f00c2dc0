// SPDX-License-Identifier: Apache-2.0
//! The native ends of `vdpa-net bench`. Each subcommand runs one sample and prints one line of JSON.
//!
//! ```text
//! tap-write  --tap NAME --bytes N --seconds S [--method write|writev|io_uring] [--gso] [--buffers N] [--napi]
//!            [--threads N]
//! tap-read   --tap NAME --bytes N --frames N --seconds S --fill-cpu N --read-cpu N
//!            [--method read|readv|io_uring] [--gso] [--both] [--buffers N]
//! tap-drain  --tap NAME --bytes N --frames N --seconds S --pid DEVICE --front-end PID [--gso] [--flows N] [--both]
//! front-end  --socket PATH --direction tx|rx|both|loop --bytes N --seconds S [--ring split|packed]
//!            [--pairs N] [--size N] [--log] [--gso] [--hugepages] [--gentle]
//!            [--burst INTERFACE --pid N --frames N [--flows N] [--lossy]]
//! flood      --interface NAME --bytes N --seconds S [--frames N] [--gso] [--flows N]
//! doorbell   --count N [--echo-cpu N] [--socket PATH --region N --offset N [--queue N]
//!            [--common-region N --common-offset N]]
//! maps       --count N --socket PATH
//! pace       --cpu N, a probe for each line of the standard input
//! spin       --cpu N, until the standard input ends
//! ```

mod affinity;
mod arguments;
mod burst;
mod clock;
mod doorbell;
mod drain;
mod driver;
mod error;
mod flood;
mod front_end;
mod frozen;
mod maps;
mod memory;
mod pace;
mod packed;
mod packet;
mod ring;
mod session;
mod spin;
mod split;
mod tap;
mod tap_read;
mod tap_write;
mod vfio_user;
mod virtio;

use std::io::Write;
use std::process::ExitCode;

use arguments::Arguments;
use error::Result;

fn main() -> ExitCode {
    match run() {
        Ok(report) => {
            // Who asked may have gone.
            match writeln!(std::io::stdout(), "{report}") {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err(error) => {
            eprintln!("vdpa-net-bench-peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<serde_json::Value> {
    let mut arguments = Arguments::from_env()?;
    match arguments.command()?.as_str() {
        "tap-write" => tap_write::run(&mut arguments),
        "tap-read" => tap_read::run(&mut arguments),
        "tap-drain" => drain::run(&mut arguments),
        "front-end" => front_end::run(&mut arguments),
        "flood" => flood::run(&mut arguments),
        "doorbell" => doorbell::run(&mut arguments),
        "maps" => maps::run(&mut arguments),
        "pace" => pace::run(&mut arguments),
        "spin" => spin::run(&mut arguments),
        other => Err(error::Error::Usage(format!(
            "unknown command {other:?}: expected tap-write, tap-read, tap-drain, front-end, flood, doorbell, \
             maps, pace or spin"
        ))),
    }
}
