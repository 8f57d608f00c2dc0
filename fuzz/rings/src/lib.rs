// SPDX-License-Identifier: Apache-2.0
//! An input is an operation list: a guest writes descriptors, indices and flags, a device pops, writes, uses and
//! publishes chains, starts and stops logging, loses maps and goes on elsewhere. What must hold, whatever the list:
//!
//! - nothing panics, and no ring touches memory outside of the maps (the process would die);
//! - a chain names places that are in the ring;
//! - every page whose bytes changed by the device's hand while it logged has its bit set in the log;
//! - a ring that is opened where another one stopped has that state.

mod device;
mod guest;
pub mod input;

use device::Device;
use guest::Guest;
use input::{Input, Operation, Setup};

/// Longest list that is run: longer ones find nothing that shorter ones don't.
const MAX_OPERATIONS: usize = 512;

/// Run one input. Panics if something does not hold.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let setup = Setup::read(&mut input);
    let mut guest = Guest::new(&setup);
    let mut device = Device::new(&setup, &guest);
    for _ in 0..MAX_OPERATIONS {
        let Some(operation) = Operation::read(&mut input) else {
            break;
        };
        if !guest.act(&operation) {
            device.act(&operation, &guest);
            device.check_marks(&mut guest);
        }
    }
}
