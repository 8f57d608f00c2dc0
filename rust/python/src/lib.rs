// SPDX-License-Identifier: Apache-2.0
//! `vdpa_net._native`: the data plane for Python. Its interface is `src/vdpa_net/_native.pyi`.
//!
//! Nothing is decided here: arguments are converted, the GIL is released, errors are converted back.

mod backend;
mod convert;
mod doorbell;
mod filter;
mod hook;
mod plane;
mod relay;
mod space;

use pyo3::prelude::*;

/// The data plane of vdpa_net: see the stub file for its documentation.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    convert::add_records(module)?;
    module.add_class::<space::DmaSpace>()?;
    module.add_class::<backend::Backend>()?;
    module.add_class::<backend::Loopback>()?;
    module.add_class::<backend::Null>()?;
    module.add_class::<backend::Recorder>()?;
    module.add_class::<backend::Tap>()?;
    module.add_class::<doorbell::DoorbellSocket>()?;
    module.add_class::<doorbell::QueueBell>()?;
    module.add_class::<filter::ReceiveFilter>()?;
    module.add_class::<plane::DataPlane>()?;
    module.add_class::<relay::KickRelay>()
}
