// SPDX-License-Identifier: Apache-2.0
//! How fast a processor is just now. A virtual one is a hyperthread as a rule: while its sibling works for somebody
//! else it has little more than half of its throughput, for seconds at a time, and no counter of the guest tells so.

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::time::Instant;

use serde_json::{json, Value};

use crate::affinity;
use crate::arguments::Arguments;
use crate::error::{Error, Result};

/// An interrupt or another process may spoil one of them, not the median.
const CHUNKS: usize = 7;
/// Some 0.1 ms.
const TURNS: u32 = 25_000;

/// `pace`: a probe for each line of the standard input, until it ends.
pub fn run(arguments: &mut Arguments) -> Result<Value> {
    let cpu = arguments.number("cpu")?;
    arguments.end()?;
    affinity::pin(cpu)?;
    let mut output = std::io::stdout();
    let mut probes = 0u64;
    for line in std::io::stdin().lock().lines() {
        line.map_err(Error::system("standard input"))?;
        writeln!(output, "{}", json!({ "ns": probe() }))
            .and_then(|()| output.flush())
            .map_err(Error::system("standard output"))?;
        probes += 1;
    }
    Ok(json!({ "probes": probes }))
}

/// Nanoseconds of a chunk of work.
fn probe() -> u64 {
    let mut spent: [u64; CHUNKS] = std::array::from_fn(|_| {
        let started = Instant::now();
        black_box(chunk(black_box(TURNS)));
        started.elapsed().as_nanos() as u64
    });
    spent.sort_unstable();
    spent[CHUNKS / 2]
}

/// Operations that do not wait for each other, as many at a time as a core has units for: a sibling that works takes
/// some of these. A chain in which each waits for the one before is as fast beside a sibling as without.
fn chunk(turns: u32) -> u64 {
    let mut added = [1u64, 2, 3, 4, 5, 6, 7, 8];
    let mut multiplied = [11u64, 13, 17];
    for turn in 0..u64::from(turns) {
        for (number, sum) in added.iter_mut().enumerate() {
            *sum = (*sum ^ turn).wrapping_add(number as u64);
        }
        for product in &mut multiplied {
            *product = product.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
    added
        .iter()
        .chain(&multiplied)
        .fold(0, |all, part| all ^ part)
}
