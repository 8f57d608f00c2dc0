// SPDX-License-Identifier: Apache-2.0
//! Errors, records and file descriptors, from one side to the other.

use std::os::fd::{FromRawFd, OwnedFd};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyDict, PyList};
use vdpa_net_dataplane::error::{Error, ErrorKind};
use vdpa_net_dataplane::memory::Mapping;
use vdpa_net_dataplane::violation::Violation;

static MAPPING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static VIOLATION: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

const MAPPING_FIELDS: [&str; 6] = [
    "iova",
    "size_bytes",
    "offset_bytes",
    "readable",
    "writable",
    "address",
];
const VIOLATION_FIELDS: [&str; 5] = ["queue", "kind", "value", "clause", "detail"];

/// Make the named tuples and add them to the module.
pub fn add_records(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("Mapping", record(py, &MAPPING, "Mapping", &MAPPING_FIELDS)?)?;
    module.add(
        "Violation",
        record(py, &VIOLATION, "Violation", &VIOLATION_FIELDS)?,
    )
}

fn record<'py>(
    py: Python<'py>,
    cell: &'static PyOnceLock<Py<PyAny>>,
    name: &str,
    fields: &[&str],
) -> PyResult<Bound<'py, PyAny>> {
    let class = cell.get_or_try_init(py, || -> PyResult<Py<PyAny>> {
        let options = [("module", "vdpa_net._native")].into_py_dict(py)?;
        let make = py.import("collections")?.getattr("namedtuple")?;
        let class = make.call((name, PyList::new(py, fields)?), Some(&options))?;
        Ok(class.unbind())
    })?;
    Ok(class.bind(py).clone())
}

/// `vdpa_net._native.Mapping` of one entry.
pub fn mapping<'py>(py: Python<'py>, entry: &Mapping) -> PyResult<Bound<'py, PyAny>> {
    record(py, &MAPPING, "Mapping", &MAPPING_FIELDS)?.call1((
        entry.iova,
        entry.size,
        entry.offset,
        entry.readable,
        entry.writable,
        entry.address,
    ))
}

/// A list of `vdpa_net._native.Violation`.
pub fn violations(py: Python<'_>, entries: Vec<Violation>) -> PyResult<Bound<'_, PyList>> {
    let class = record(py, &VIOLATION, "Violation", &VIOLATION_FIELDS)?;
    let list = PyList::empty(py);
    for entry in entries {
        let Violation {
            queue,
            kind,
            value,
            clause,
            detail,
        } = entry;
        list.append(class.call1((queue, kind, value, clause, detail))?)?;
    }
    Ok(list)
}

/// The exception of `vdpa_net.errors` for an error, with its errno.
pub fn to_py(py: Python<'_>, error: &Error) -> PyErr {
    let class = match error.kind() {
        ErrorKind::Dma => "DmaError",
        ErrorKind::State => "StateError",
        ErrorKind::Backend => "BackendError",
    };
    let made = exception(py, class, &error.to_string(), error.errno());
    made.unwrap_or_else(|failed| failed)
}

fn exception(py: Python<'_>, class: &str, message: &str, errno: i32) -> PyResult<PyErr> {
    let options = PyDict::new(py);
    options.set_item("errno", errno)?;
    let class = py.import("vdpa_net.errors")?.getattr(class)?;
    Ok(PyErr::from_value(class.call((message,), Some(&options))?))
}

/// `PeerGone` of a reply that could not be sent.
pub fn peer_gone(py: Python<'_>, error: &std::io::Error) -> PyErr {
    let errno = error.raw_os_error().unwrap_or(libc::ECONNRESET);
    let made = exception(py, "PeerGone", &format!("sending failed: {error}"), errno);
    made.unwrap_or_else(|failed| failed)
}

/// `ProtocolError` of a message that came with more descriptors than this process may open.
pub fn lacks_fds(py: Python<'_>, received: usize) -> PyErr {
    let message = format!("only {received} descriptors of a message could be received");
    let made = exception(py, "ProtocolError", &message, libc::EMFILE);
    made.unwrap_or_else(|failed| failed)
}

/// A duplicate of a caller's fd. `class`: the exception of `vdpa_net.errors` where there is no such fd.
pub fn duplicate(py: Python<'_>, fd: i32, class: &str) -> PyResult<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes no pointer, and any number for an fd.
    let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if own < 0 {
        let error = std::io::Error::last_os_error();
        let message = format!("file descriptor {fd} can't be duplicated: {error}");
        let errno = error.raw_os_error().unwrap_or(libc::EBADF);
        return Err(exception(py, class, &message, errno).unwrap_or_else(|failed| failed));
    }
    // SAFETY: the call has just made this fd, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}
