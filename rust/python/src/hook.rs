// SPDX-License-Identifier: Apache-2.0
//! A packet hook in Python.

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use vdpa_net_dataplane::worker::{PacketHook, Way};

/// Calls `callback(to_guest, pair, packet)`, which returns the packet to pass on or None.
#[derive(Debug)]
pub struct PythonHook(pub Py<PyAny>);

impl PacketHook for PythonHook {
    fn packet(&self, way: Way, pair: u16, packet: &mut Vec<u8>) -> bool {
        Python::attach(|py| match self.call(py, way, pair, packet) {
            Ok(Some(changed)) => {
                packet.clear();
                packet.extend_from_slice(&changed);
                true
            }
            Ok(None) => false,
            Err(error) => {
                error.write_unraisable(py, Some(self.0.bind(py)));
                false
            }
        })
    }
}

impl PythonHook {
    fn call(
        &self,
        py: Python<'_>,
        way: Way,
        pair: u16,
        packet: &[u8],
    ) -> PyResult<Option<PyBackedBytes>> {
        let arguments = (way == Way::ToGuest, pair, PyBytes::new(py, packet));
        let reply = self.0.bind(py).call1(arguments)?;
        if reply.is_none() {
            return Ok(None);
        }
        Ok(Some(reply.extract()?))
    }
}
