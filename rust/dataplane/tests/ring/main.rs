// SPDX-License-Identifier: Apache-2.0
//! Tests of the rings through their public interface: the device side against drivers written from the specification.

mod events;
mod faults;
mod lines;
mod marks;
mod model;
mod oracle;
mod packed_driver;
mod race;
mod restore;
mod split_driver;
mod split_lines;
mod support;
