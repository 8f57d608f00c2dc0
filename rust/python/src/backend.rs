// SPDX-License-Identifier: Apache-2.0
//! `Backend` and its kinds: `Loopback`, `Null`, `Recorder`, `Tap`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict};
use vdpa_net_dataplane::backend::{self, SourceConfig};
use vdpa_net_dataplane::error::Result;

use crate::convert;

/// Where packets go and come from.
#[pyclass(frozen, subclass, module = "vdpa_net._native")]
pub struct Backend {
    pub(crate) backend: backend::Backend,
}

#[pymethods]
impl Backend {
    fn set_offloads(&self, features: u64) {
        self.backend.set_offloads(features);
    }
}

/// A new object of a kind.
fn of<Kind: pyo3::PyClass<BaseType = Backend>>(
    py: Python<'_>,
    kind: Kind,
    made: Result<backend::Backend>,
) -> PyResult<PyClassInitializer<Kind>> {
    let backend = made.map_err(|error| convert::to_py(py, &error))?;
    Ok(PyClassInitializer::from(Backend { backend }).add_subclass(kind))
}

/// What is transmitted on a pair comes back on it.
#[pyclass(frozen, extends = Backend, module = "vdpa_net._native")]
pub struct Loopback;

#[pymethods]
impl Loopback {
    #[new]
    #[pyo3(signature = (queue_pairs = 1, depth_packets = 1024))]
    fn new(
        py: Python<'_>,
        queue_pairs: usize,
        depth_packets: usize,
    ) -> PyResult<PyClassInitializer<Self>> {
        let made = backend::Backend::loopback(queue_pairs, depth_packets);
        of(py, Self, made)
    }
}

/// Takes everything; with a source it gives packets too.
#[pyclass(frozen, extends = Backend, module = "vdpa_net._native")]
pub struct Null;

#[pymethods]
impl Null {
    #[new]
    #[pyo3(signature = (queue_pairs = 1, *, source = false, packet_bytes = 60, rate_pps = 0, flows = 16, destination = [0xff; 6]))]
    fn new(
        py: Python<'_>,
        queue_pairs: usize,
        source: bool,
        packet_bytes: usize,
        rate_pps: u64,
        flows: u16,
        destination: [u8; 6],
    ) -> PyResult<PyClassInitializer<Self>> {
        let config = SourceConfig {
            packet_bytes,
            rate_pps,
            flows,
            destination,
        };
        of(
            py,
            Self,
            backend::Backend::null(queue_pairs, source.then_some(&config)),
        )
    }
}

/// Another back end, with a recorder in front of it.
#[pyclass(frozen, extends = Backend, module = "vdpa_net._native")]
pub struct Recorder {
    recorder: Arc<backend::Recorder>,
}

#[pymethods]
impl Recorder {
    #[new]
    fn new(
        py: Python<'_>,
        backend: PyRef<'_, Backend>,
        fd: i32,
        snap_bytes: usize,
        buffer_bytes: usize,
    ) -> PyResult<PyClassInitializer<Self>> {
        let file = convert::duplicate(py, fd, "BackendError")?;
        let recorder = backend::Recorder::new(file, snap_bytes, buffer_bytes)
            .map_err(|error| convert::to_py(py, &error))?;
        let recorder = Arc::new(recorder);
        let recorded = backend.backend.recorded(&recorder);
        of(py, Self { recorder }, Ok(recorded))
    }

    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.recorder.counters().into_py_dict(py)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.recorder.close());
    }
}

/// Packets on open tap file descriptors.
#[pyclass(frozen, extends = Backend, module = "vdpa_net._native")]
pub struct Tap;

#[pymethods]
impl Tap {
    #[new]
    fn new(py: Python<'_>, fds: Vec<i32>) -> PyResult<PyClassInitializer<Self>> {
        let own = fds
            .into_iter()
            .map(|fd| convert::duplicate(py, fd, "BackendError"))
            .collect::<PyResult<_>>()?;
        of(py, Self, backend::Backend::tap(own))
    }
}
