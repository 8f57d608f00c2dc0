// SPDX-License-Identifier: Apache-2.0
//! `DoorbellSocket`.

use std::os::fd::IntoRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyList};
use vdpa_net_dataplane::doorbell;
use vdpa_net_dataplane::error::Error;
use vdpa_net_dataplane::map_messages::{Change, Form, MapMessages};
use vdpa_net_dataplane::plane;

use crate::convert;
use crate::space::DmaSpace;

/// Command, bytes of the payload, what it begins with, and where its address and size are.
type Shape = (u16, usize, PyBackedBytes, usize, usize);

fn form((command, payload_bytes, prefix, address_at, size_at): Shape, change: Change) -> Form {
    Form {
        command,
        payload_bytes,
        prefix: prefix.to_vec(),
        address_at,
        size_at,
        change,
    }
}

/// A doorbell of a data plane.
#[pyclass(frozen, module = "vdpa_net._native")]
pub struct QueueBell {
    pub(crate) bell: Arc<plane::QueueBell>,
}

/// Answers doorbells that arrive as messages.
#[pyclass(frozen, module = "vdpa_net._native")]
pub struct DoorbellSocket {
    socket: Mutex<Option<Arc<doorbell::DoorbellSocket>>>,
}

impl DoorbellSocket {
    fn socket(&self, py: Python<'_>) -> PyResult<Arc<doorbell::DoorbellSocket>> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = || convert::to_py(py, &Error::State("the doorbell socket is closed".into()));
        socket.clone().ok_or_else(closed)
    }
}

#[pymethods]
impl DoorbellSocket {
    #[new]
    fn new(py: Python<'_>, fd: i32, command: u16, repeated_bytes: usize) -> PyResult<Self> {
        let socket = convert::duplicate(py, fd, "StateError")?;
        let socket = doorbell::DoorbellSocket::new(socket, command, repeated_bytes);
        Ok(Self {
            socket: Mutex::new(Some(Arc::new(socket))),
        })
    }

    fn add(&self, py: Python<'_>, payloads: Vec<PyBackedBytes>, fd: i32) -> PyResult<()> {
        let fd = convert::duplicate(py, fd, "StateError")?;
        self.socket(py)?
            .add(&payloads, fd)
            .map_err(|error| convert::to_py(py, &error))
    }

    fn add_queue(
        &self,
        py: Python<'_>,
        payloads: Vec<PyBackedBytes>,
        bell: PyRef<'_, QueueBell>,
    ) -> PyResult<()> {
        self.socket(py)?
            .add_queue(&payloads, Arc::clone(&bell.bell))
            .map_err(|error| convert::to_py(py, &error))
    }

    fn serve_maps(
        &self,
        py: Python<'_>,
        space: PyRef<'_, DmaSpace>,
        maps: Vec<(Shape, usize, bool, bool)>,
        unmaps: Vec<Shape>,
    ) -> PyResult<()> {
        let maps = maps
            .into_iter()
            .map(|(shape, offset_at, readable, writable)| {
                let change = Change::Map {
                    offset_at,
                    readable,
                    writable,
                };
                form(shape, change)
            });
        let unmaps = unmaps.into_iter().map(|shape| form(shape, Change::Unmap));
        let served = MapMessages::new(
            Arc::clone(&space.space),
            maps.chain(unmaps).collect(),
            doorbell::PAYLOAD_BYTES_MAX,
        )
        .map_err(|error| convert::to_py(py, &error))?;
        self.socket(py)?.serve_maps(served);
        Ok(())
    }

    fn serve_batches(
        &self,
        py: Python<'_>,
        command: u16,
        head_bytes: usize,
        item_bytes: usize,
        length_at: usize,
        items_max: usize,
    ) -> PyResult<()> {
        let batches = doorbell::Batches {
            command,
            head_bytes,
            item_bytes,
            length_at,
            items_max,
        };
        self.socket(py)?
            .serve_batches(batches)
            .map_err(|error| convert::to_py(py, &error))
    }

    fn set_watched(&self, py: Python<'_>, watched: bool) -> PyResult<()> {
        self.socket(py)?.set_watched(watched);
        Ok(())
    }

    fn receive<'py>(
        &self,
        py: Python<'py>,
        fds: &Bound<'py, PyList>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let socket = self.socket(py)?;
        let received = py
            .detach(|| socket.receive())
            .map_err(|error| convert::peer_gone(py, &error))?;
        for fd in received.fds {
            fds.append(fd.into_raw_fd())?;
        }
        if received.lacks_fds {
            return Err(convert::lacks_fds(py, fds.len()));
        }
        Ok(PyBytes::new(py, &received.bytes))
    }

    fn close(&self) {
        let socket = self
            .socket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(socket);
    }
}
