// SPDX-License-Identifier: Apache-2.0
//! `fuzz/run rings`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vdpa_net_fuzz_rings::run(data));
