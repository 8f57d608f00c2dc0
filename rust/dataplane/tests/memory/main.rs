// SPDX-License-Identifier: Apache-2.0
//! Tests of guest memory through its public interface.

mod deferred;
mod dirty;
mod faults;
mod log;
mod maps;
mod races;
mod ranges;
mod shrink;
mod support;
mod transcribe;
