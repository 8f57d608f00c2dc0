// SPDX-License-Identifier: Apache-2.0
//! Company for a bare loop: a thread that polls on another processor, as the front end of a device does.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{json, Value};

use crate::affinity;
use crate::arguments::Arguments;
use crate::error::{Error, Result};

/// `spin`: poll on `--cpu` until the standard input ends.
pub fn run(arguments: &mut Arguments) -> Result<Value> {
    let cpu = arguments.number("cpu")?;
    arguments.end()?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let ended = std::io::stdin().read_to_end(&mut Vec::new());
            is_over.store(true, Ordering::Relaxed);
            ended
        });
        affinity::pin(cpu)?;
        let mut looks = 0u64;
        while !is_over.load(Ordering::Relaxed) {
            std::hint::spin_loop();
            looks += 1;
        }
        Ok::<_, Error>(json!({ "looks": looks }))
    })
}
