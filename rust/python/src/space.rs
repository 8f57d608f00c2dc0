// SPDX-License-Identifier: Apache-2.0
//! `DmaSpace`.

use std::os::fd::AsFd;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyList};
use vdpa_net_dataplane::error::Error;
use vdpa_net_dataplane::memory::{self, Range, Translation};

use crate::convert;

// Copies are made in pieces, so that a map or unmap waits for one of them only.
const PIECE_BYTES: usize = 1 << 20;

/// IOVA ranges on file descriptors, and the dirty log that lies in them.
#[pyclass(frozen, module = "vdpa_net._native")]
pub struct DmaSpace {
    pub space: Arc<memory::DmaSpace>,
}

impl DmaSpace {
    fn detached<T: Send>(
        &self,
        py: Python<'_>,
        call: impl Send + FnOnce(&memory::DmaSpace) -> Result<T, Error>,
    ) -> PyResult<T> {
        py.detach(|| call(&self.space))
            .map_err(|error| convert::to_py(py, &error))
    }
}

#[pymethods]
impl DmaSpace {
    #[new]
    #[pyo3(signature = (max_maps = 1 << 20))]
    fn new(max_maps: usize) -> Self {
        Self {
            space: Arc::new(memory::DmaSpace::new(max_maps)),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the interface of the stub file")]
    fn map(
        &self,
        py: Python<'_>,
        iova: u64,
        size: u64,
        fd: i32,
        offset: u64,
        readable: bool,
        writable: bool,
    ) -> PyResult<()> {
        // Without the GIL, another thread could close the caller's.
        let own = convert::duplicate(py, fd, "DmaError")?;
        self.detached(py, |space| {
            space.map(iova, size, own.as_fd(), offset, readable, writable)
        })
    }

    fn unmap(&self, py: Python<'_>, iova: u64, size: u64) -> PyResult<()> {
        self.detached(py, |space| space.unmap(iova, size))
    }

    fn reserve(&self, py: Python<'_>, iova: u64, size: u64) -> PyResult<()> {
        self.detached(py, |space| space.reserve(iova, size))
    }

    fn unmap_within(&self, py: Python<'_>, iova: u64, size: u64) -> PyResult<usize> {
        self.detached(py, |space| space.unmap_within(iova, size))
    }

    fn is_without_file(&self, py: Python<'_>, iova: u64) -> bool {
        py.detach(|| self.space.is_without_file(iova))
    }

    fn map_count(&self, py: Python<'_>) -> usize {
        py.detach(|| self.space.map_count())
    }

    fn unmap_all(&self, py: Python<'_>) -> PyResult<usize> {
        self.detached(py, |space| Ok(space.unmap_all()))
    }

    fn is_mapped(&self, py: Python<'_>, iova: u64, size: u64, writable: bool) -> PyResult<bool> {
        self.detached(py, |space| Ok(space.is_mapped(iova, size, writable)))
    }

    fn mappings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for entry in py.detach(|| self.space.mappings()) {
            list.append(convert::mapping(py, &entry)?)?;
        }
        Ok(list)
    }

    fn read<'py>(&self, py: Python<'py>, iova: u64, size: u64) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.detached(py, |space| {
            // Before the memory for the copy is allocated: the size is the caller's.
            space.lock().check(Range { iova, len: size }, false)?;
            let mut bytes = vec![0; size as usize];
            let mut at = iova;
            for piece in bytes.chunks_mut(PIECE_BYTES) {
                space.lock().read_into(at, piece)?;
                at += piece.len() as u64;
            }
            Ok(bytes)
        })?;
        Ok(PyBytes::new(py, &bytes))
    }

    fn write(&self, py: Python<'_>, iova: u64, data: &[u8]) -> PyResult<()> {
        self.detached(py, |space| {
            let len = data.len() as u64;
            space.lock().check(Range { iova, len }, true)?;
            let mut at = iova;
            for piece in data.chunks(PIECE_BYTES) {
                space.lock().write_from(at, piece)?;
                at += piece.len() as u64;
            }
            Ok(())
        })
    }

    fn start_log(&self, py: Python<'_>, base: u64, end: u64) -> PyResult<()> {
        self.detached(py, |space| space.start_log(base, end))
    }

    fn stop_log(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, |space| {
            space.stop_log();
            Ok(())
        })
    }

    fn log_range(&self, py: Python<'_>) -> PyResult<Option<(u64, u64)>> {
        self.detached(py, |space| Ok(space.log_range()))
    }

    fn barrier(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, |space| {
            space.barrier();
            Ok(())
        })
    }

    fn transcribe(
        &self,
        py: Python<'_>,
        source: u64,
        source_end: u64,
        translations: Vec<(u64, u64, u64)>,
    ) -> PyResult<u64> {
        let translations: Vec<_> = translations
            .into_iter()
            .map(|(iova, size, address)| Translation {
                iova,
                size,
                address,
            })
            .collect();
        self.detached(py, |space| {
            space.lock().transcribe(source, source_end, &translations)
        })
    }

    #[pyo3(signature = (event_fd))]
    fn watch_misses(&self, py: Python<'_>, event_fd: Option<i32>) -> PyResult<()> {
        let event = event_fd
            .map(|fd| convert::duplicate(py, fd, "DmaError"))
            .transpose()?;
        py.detach(|| self.space.watch_misses(event));
        Ok(())
    }

    #[pyo3(signature = (most = usize::MAX))]
    fn take_misses(&self, py: Python<'_>, most: usize) -> Vec<(u64, bool)> {
        let misses = py.detach(|| self.space.take_misses(most));
        misses
            .into_iter()
            .map(|miss| (miss.iova, miss.write))
            .collect()
    }

    fn retry_miss(&self, py: Python<'_>, iova: u64, write: bool) {
        py.detach(|| self.space.retry_miss(iova, write));
    }

    fn refuse_miss(&self, py: Python<'_>, iova: u64, write: bool) {
        py.detach(|| self.space.refuse_miss(iova, write));
    }

    fn has_marks(&self, py: Python<'_>, iova: u64, size: u64) -> PyResult<bool> {
        self.detached(py, |space| space.lock().has_marks(Range::new(iova, size)))
    }

    fn record_marks(&self, py: Python<'_>, on: bool) -> PyResult<()> {
        self.detached(py, |space| {
            space.record_marks(on);
            Ok(())
        })
    }

    fn marked_pages<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &py.detach(|| self.space.marked_pages()))
    }

    fn take_marked_pages<'py>(
        &self,
        py: Python<'py>,
        look: Py<PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let mut outcome = Ok(());
        let bits = py.detach(|| {
            self.space
                .take_marked_pages(|| outcome = Python::attach(|py| look.call0(py).map(drop)))
        });
        outcome?;
        Ok(PyBytes::new(py, &bits))
    }

    fn record_places(&self, py: Python<'_>, on: bool) -> PyResult<()> {
        self.detached(py, |space| {
            space.record_places(on);
            Ok(())
        })
    }

    fn take_marked_places(&self, py: Python<'_>, look: Py<PyAny>) -> PyResult<Vec<u64>> {
        let mut outcome = Ok(());
        let places = py.detach(|| {
            self.space
                .take_marked_places(|| outcome = Python::attach(|py| look.call0(py).map(drop)))
        });
        outcome?;
        Ok(places)
    }

    fn files(&self, py: Python<'_>) -> Vec<(usize, usize, bool)> {
        let files = py.detach(|| self.space.files());
        files
            .into_iter()
            .map(|file| (file.address, file.size, file.writable))
            .collect()
    }

    fn last_write(&self, py: Python<'_>, page: u64) -> PyResult<Option<(u16, u16, bool)>> {
        self.detached(py, |space| {
            Ok(space
                .last_write(page)
                .map(|write| (write.offset, write.length, write.is_ring)))
        })
    }

    fn log_counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counters = py.detach(|| self.space.log_counters());
        [
            ("marks", counters.marks),
            ("pages_marked", counters.pages_marked),
            ("log_overflow", counters.log_overflow),
            ("log_unmapped", counters.log_unmapped),
            ("marks_dropped_by_fault", counters.marks_dropped_by_fault),
        ]
        .into_py_dict(py)
    }

    fn take_violations<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let entries = py.detach(|| self.space.violations().take());
        convert::violations(py, entries)
    }
}
