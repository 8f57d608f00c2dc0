// SPDX-License-Identifier: Apache-2.0
//! `ReceiveFilter`.

use pyo3::prelude::*;
use vdpa_net_dataplane::counters::Drop;
use vdpa_net_dataplane::filter::{self, Mac, VLANS};

/// Which received packets the driver wants.
#[pyclass(frozen, module = "vdpa_net._native")]
pub struct ReceiveFilter {
    pub(crate) filter: filter::ReceiveFilter,
}

#[pymethods]
impl ReceiveFilter {
    #[new]
    #[pyo3(signature = (*, promisc, allmulti, alluni, nomulti, nouni, nobcast, mac, table, vlans, mtu))]
    #[expect(clippy::too_many_arguments, reason = "the interface of the stub file")]
    #[expect(
        clippy::fn_params_excessive_bools,
        reason = "receive modes of the specification"
    )]
    fn new(
        promisc: bool,
        allmulti: bool,
        alluni: bool,
        nomulti: bool,
        nouni: bool,
        nobcast: bool,
        mac: Mac,
        mut table: Vec<Mac>,
        vlans: Option<Vec<u16>>,
        mtu: Option<u16>,
    ) -> Self {
        table.sort_unstable();
        let filter = filter::ReceiveFilter {
            promisc,
            allmulti,
            alluni,
            nomulti,
            nouni,
            nobcast,
            mac,
            table,
            vlans: vlans.map(|vlans| bitmap(&vlans)),
            mtu,
        };
        Self { filter }
    }

    fn verdict(&self, packet: &[u8]) -> Option<&'static str> {
        match self.filter.check(packet) {
            Ok(()) => None,
            Err(Drop::TooLong) => Some("drops_too_long"),
            Err(_) => Some("drops_filtered"),
        }
    }
}

fn bitmap(vlans: &[u16]) -> Box<[u64; VLANS / 64]> {
    let mut bits = Box::new([0; VLANS / 64]);
    for vlan in vlans.iter().map(|vlan| usize::from(*vlan) % VLANS) {
        bits[vlan / 64] |= 1 << (vlan % 64);
    }
    bits
}
