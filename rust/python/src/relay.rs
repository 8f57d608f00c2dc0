// SPDX-License-Identifier: Apache-2.0
//! `KickRelay`.

use pyo3::prelude::*;
use vdpa_net_dataplane::relay;

use crate::convert;

/// Forwards eventfd signals from sources to targets.
#[pyclass(frozen, module = "vdpa_net._native")]
pub struct KickRelay {
    relay: relay::KickRelay,
}

#[pymethods]
impl KickRelay {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let relay = relay::KickRelay::new().map_err(|error| convert::to_py(py, &error))?;
        Ok(Self { relay })
    }

    fn add(&self, py: Python<'_>, key: i64, source: i32, target: i32) -> PyResult<()> {
        let source = convert::duplicate(py, source, "StateError")?;
        let target = convert::duplicate(py, target, "StateError")?;
        py.detach(|| self.relay.add(key, source, target))
            .map_err(|error| convert::to_py(py, &error))
    }

    fn add_doorbell(
        &self,
        py: Python<'_>,
        key: i64,
        source: i32,
        fd: i32,
        offset: u64,
        value: u16,
    ) -> PyResult<()> {
        let source = convert::duplicate(py, source, "StateError")?;
        let fd = convert::duplicate(py, fd, "StateError")?;
        let doorbell = relay::Doorbell::new(fd, offset, value);
        py.detach(|| self.relay.add_doorbell(key, source, doorbell))
            .map_err(|error| convert::to_py(py, &error))
    }

    fn remove(&self, py: Python<'_>, key: i64) {
        py.detach(|| self.relay.remove(key));
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.relay.close());
    }
}
