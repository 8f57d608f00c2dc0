// SPDX-License-Identifier: Apache-2.0
//! `DataPlane`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyList};
use vdpa_net_dataplane::error::Error;
use vdpa_net_dataplane::plane;
use vdpa_net_dataplane::ring::{RingConfig, RingState};
use vdpa_net_dataplane::worker::PacketHook;

use crate::backend::Backend;
use crate::convert;
use crate::doorbell::QueueBell;
use crate::filter::ReceiveFilter;
use crate::hook::PythonHook;
use crate::space::DmaSpace;

/// Why `process_control` ended early.
enum Failure {
    Native(Error),
    Python(PyErr),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Native(error)
    }
}

/// The virtqueues of one device.
#[pyclass(frozen, module = "vdpa_net._native")]
pub struct DataPlane {
    plane: plane::DataPlane,
}

impl DataPlane {
    fn detached<T: Send>(
        &self,
        py: Python<'_>,
        call: impl Send + FnOnce(&plane::DataPlane) -> Result<T, Error>,
    ) -> PyResult<T> {
        py.detach(|| call(&self.plane))
            .map_err(|error| convert::to_py(py, &error))
    }

    fn indices(state: RingState) -> (u16, u16) {
        (state.last_avail_idx, state.used_idx)
    }
}

#[pymethods]
impl DataPlane {
    #[new]
    #[pyo3(signature = (space, backend, queue_pairs, control_queue = true))]
    fn new(
        py: Python<'_>,
        space: PyRef<'_, DmaSpace>,
        backend: PyRef<'_, Backend>,
        queue_pairs: u16,
        control_queue: bool,
    ) -> PyResult<Self> {
        let space = Arc::clone(&space.space);
        let plane = plane::DataPlane::new(space, &backend.backend, queue_pairs, control_queue)
            .map_err(|error| convert::to_py(py, &error))?;
        Ok(Self { plane })
    }

    #[expect(clippy::too_many_arguments, reason = "the interface of the stub file")]
    fn start_queue(
        &self,
        py: Python<'_>,
        index: u16,
        size: u32,
        desc: u64,
        driver: u64,
        device: u64,
        last_avail_idx: u16,
        used_idx: u16,
        features: u64,
        restored: bool,
    ) -> PyResult<()> {
        let config = RingConfig {
            size,
            desc,
            driver,
            device,
            state: RingState {
                last_avail_idx,
                used_idx,
            },
            features,
            restored,
        };
        self.detached(py, |plane| plane.start_queue(index, &config))
    }

    fn halt_queue(&self, py: Python<'_>, index: u16) -> PyResult<(u16, u16)> {
        let state = self.detached(py, |plane| plane.halt_queue(index))?;
        Ok(Self::indices(state))
    }

    fn stop_queue(&self, py: Python<'_>, index: u16) -> PyResult<(u16, u16)> {
        self.detached(py, |plane| plane.stop_queue(index).map(Self::indices))
    }

    fn ring_state(&self, py: Python<'_>, index: u16) -> PyResult<(u16, u16)> {
        self.detached(py, |plane| plane.ring_state(index).map(Self::indices))
    }

    fn is_running(&self, py: Python<'_>, index: u16) -> PyResult<bool> {
        self.detached(py, |plane| plane.is_running(index))
    }

    #[pyo3(signature = (index, fd))]
    fn set_kick(&self, py: Python<'_>, index: u16, fd: Option<i32>) -> PyResult<()> {
        let own = fd
            .map(|fd| convert::duplicate(py, fd, "StateError"))
            .transpose()?;
        self.detached(py, |plane| plane.set_kick(index, own))
    }

    fn kick(&self, py: Python<'_>, index: u16) -> PyResult<()> {
        self.plane
            .kick(index)
            .map_err(|error| convert::to_py(py, &error))
    }

    fn kick_fd(&self, py: Python<'_>, index: u16) -> PyResult<i32> {
        self.plane
            .kick_fd(index)
            .map_err(|error| convert::to_py(py, &error))
    }

    fn bell(&self, py: Python<'_>, index: u16) -> PyResult<QueueBell> {
        let bell = self.detached(py, |plane| plane.bell(index))?;
        Ok(QueueBell {
            bell: Arc::new(bell),
        })
    }

    #[pyo3(signature = (index, fd))]
    fn set_call(&self, py: Python<'_>, index: u16, fd: Option<i32>) -> PyResult<()> {
        let own = fd
            .map(|fd| convert::duplicate(py, fd, "StateError"))
            .transpose()?;
        self.detached(py, |plane| plane.set_call(index, own))
    }

    fn interrupt(&self, py: Python<'_>, index: u16) -> PyResult<()> {
        self.detached(py, |plane| plane.interrupt(index))
    }

    fn process_control(&self, py: Python<'_>, handler: Py<PyAny>) -> PyResult<u32> {
        let served = py.detach(|| {
            self.plane.process_control(|command| {
                Python::attach(|py| call_handler(py, &handler, command)).map_err(Failure::Python)
            })
        });
        served.map_err(|failure| match failure {
            Failure::Native(error) => convert::to_py(py, &error),
            Failure::Python(error) => error,
        })
    }

    fn set_multiqueue(&self, py: Python<'_>, on: bool) -> PyResult<()> {
        self.detached(py, |plane| plane.set_multiqueue(on))
    }

    fn set_receive_filter(&self, py: Python<'_>, filter: PyRef<'_, ReceiveFilter>) -> PyResult<()> {
        let filter = filter.filter.clone();
        self.detached(py, |plane| {
            plane.set_receive_filter(filter);
            Ok(())
        })
    }

    #[pyo3(signature = (callback))]
    fn set_packet_hook(&self, py: Python<'_>, callback: Option<Py<PyAny>>) {
        let hook = callback.map(|callback| Arc::new(PythonHook(callback)) as Arc<dyn PacketHook>);
        py.detach(|| self.plane.set_packet_hook(hook.as_ref()));
    }

    fn set_poll_us(&self, poll_us: u32) {
        self.plane.set_poll_us(poll_us);
    }

    fn set_coalesce_us(&self, coalesce_us: u32) {
        self.plane.set_coalesce_us(coalesce_us);
    }

    fn set_active_pairs(&self, py: Python<'_>, count: u16) -> PyResult<()> {
        self.detached(py, |plane| plane.set_active_pairs(count))
    }

    fn transmit(&self, py: Python<'_>, frame: &[u8]) -> PyResult<bool> {
        self.detached(py, |plane| plane.transmit(frame))
    }

    fn flush_backend(&self, py: Python<'_>) -> PyResult<u64> {
        self.detached(py, |plane| Ok(plane.flush_backend()))
    }

    fn queue_counters<'py>(&self, py: Python<'py>, index: u16) -> PyResult<Bound<'py, PyDict>> {
        self.plane
            .queue_counters(index)
            .map_err(|error| convert::to_py(py, &error))?
            .into_py_dict(py)
    }

    fn install_fault(
        &self,
        py: Python<'_>,
        name: &str,
        queue: i32,
        value: f64,
        seed: u64,
    ) -> PyResult<()> {
        self.detached(py, |plane| plane.install_fault(name, queue, value, seed))
    }

    fn fault_counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        py.detach(|| self.plane.fault_counts())
            .into_iter()
            .map(|(name, queue, count)| ((name, queue), count))
            .into_py_dict(py)
    }

    fn event_fd(&self) -> i32 {
        self.plane.event_fd()
    }

    fn take_violations<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let entries = py.detach(|| self.plane.take_violations());
        convert::violations(py, entries)
    }

    fn take_broken_queues(&self, py: Python<'_>) -> Vec<u16> {
        py.detach(|| self.plane.take_broken_queues())
    }

    fn is_interrupt_due(&self, py: Python<'_>, index: u16) -> PyResult<bool> {
        self.plane
            .is_interrupt_due(index)
            .map_err(|error| convert::to_py(py, &error))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, |plane| {
            plane.close();
            Ok(())
        })
    }
}

fn call_handler(py: Python<'_>, handler: &Py<PyAny>, command: &[u8]) -> PyResult<Vec<u8>> {
    let reply = handler.bind(py).call1((PyBytes::new(py, command),))?;
    let reply: PyBackedBytes = reply.extract()?;
    Ok(reply.to_vec())
}
