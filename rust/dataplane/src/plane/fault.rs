// SPDX-License-Identifier: Apache-2.0
//! Faults by their names: where each belongs, and what it has done.

use super::{DataPlane, Target};
use crate::error::{Error, Result};
use crate::memory::MarkFault;
use crate::worker::QueueFault;

/// The queue of a fault that is about none.
const NO_QUEUE: i32 = -1;

/// One that is installed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Installed {
    name: &'static str,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Log(MarkFault),
    Queue(u16, QueueFault),
}

impl Place {
    fn queue(self) -> i32 {
        match self {
            Self::Log(_) => NO_QUEUE,
            Self::Queue(index, _) => i32::from(index),
        }
    }
}

impl DataPlane {
    /// Be faulty from now on, for good. `value` is a share for `drop-dirty-mark`, bytes of log for `log-end`, the
    /// number of the element for `duplicate-used`, how many for `lost-kick` and `lost-irq`; the other names take none.
    /// `queue` is -1 where the fault is about none.
    ///
    /// Errors: no such fault, no such queue, or a queue that can't have this fault.
    pub fn install_fault(&self, name: &str, queue: i32, value: f64, seed: u64) -> Result<()> {
        let installed = parse(name, queue, value, seed)?;
        match installed.place {
            Place::Log(fault) => self.space.install_fault(fault),
            Place::Queue(index, fault) => match (self.target(index)?, fault) {
                (Target::Pair(pair, direction), _) => pair.install_fault(direction, fault),
                (Target::Control(_), QueueFault::LostKick(_)) => {
                    return Err(Error::State(format!(
                        "{name}: queue {index} is the control queue, whose kicks are not heard here"
                    )));
                }
                (Target::Control(control), _) => control.install_fault(fault),
            },
        }
        self.faults.lock().push(installed);
        Ok(())
    }

    /// Name, queue and count of every installed fault.
    pub fn fault_counts(&self) -> Vec<(&'static str, i32, u64)> {
        let installed = self.faults.lock().clone();
        let count = |place| match place {
            Place::Log(fault) => self.space.fault_count(fault),
            Place::Queue(index, fault) => self
                .target(index)
                .map_or(0, |target| target.queue().faults.fired(fault)),
        };
        installed
            .iter()
            .map(|fault| (fault.name, fault.place.queue(), count(fault.place)))
            .collect()
    }
}

fn parse(name: &str, queue: i32, value: f64, seed: u64) -> Result<Installed> {
    // The cast saturates, so that what is absurd stays absurd.
    let number = value as u64;
    let log = |name, fault| {
        let place = Place::Log(fault);
        Ok(Installed { name, place })
    };
    let of_queue = |name, fault| {
        let index = u16::try_from(queue).map_err(|_| {
            Error::State(format!(
                "{name}: queue {queue} does not exist: expected a virtqueue index"
            ))
        })?;
        let place = Place::Queue(index, fault);
        Ok(Installed { name, place })
    };
    match name {
        "drop-dirty-mark" => log("drop-dirty-mark", MarkFault::Drop { rate: value, seed }),
        "skip-used-ring-mark" => log("skip-used-ring-mark", MarkFault::SkipRings),
        "log-bit-order" => log("log-bit-order", MarkFault::BitOrder),
        "log-end" => log("log-end", MarkFault::End { short_by: number }),
        "duplicate-used" => of_queue("duplicate-used", QueueFault::DuplicateUsed(number)),
        "lost-kick" => of_queue("lost-kick", QueueFault::LostKick(number)),
        "lost-irq" => of_queue("lost-irq", QueueFault::LostIrq(number)),
        _ => Err(Error::State(format!(
            "the data plane has no fault {name:?}"
        ))),
    }
}
