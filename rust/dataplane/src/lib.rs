// SPDX-License-Identifier: Apache-2.0
//! The data plane of a vdpa-net device: what moves bytes, and nothing that decides.
//!
//! Guest memory is written only through [`memory::Memory`], which marks the dirty log.

pub mod backend;
mod batches;
pub mod counters;
pub mod doorbell;
pub mod error;
pub mod filter;
mod lookout;
pub mod map_messages;
pub mod memory;
mod messages;
pub mod net;
mod os;
pub mod plane;
pub mod relay;
mod requests;
pub mod ring;
pub mod violation;
pub mod worker;
