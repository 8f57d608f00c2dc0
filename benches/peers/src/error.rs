// SPDX-License-Identifier: Apache-2.0
//! Why a sample could not be taken.

/// What every fallible function of this program returns.
pub type Result<T> = std::result::Result<T, Error>;

/// A sample that could not be taken; the message names the value and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line.
    #[error("{0}")]
    Usage(String),
    /// A system call.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The device under test, or the peer, does not do what it promised.
    #[error("{0}")]
    Peer(String),
}

impl Error {
    /// The last error of the system, for `what`.
    pub fn last(what: impl Into<String>) -> Self {
        Self::System {
            what: what.into(),
            source: std::io::Error::last_os_error(),
        }
    }

    /// Closure for `map_err` on errors of the system.
    pub fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System {
            what: what.into(),
            source,
        }
    }
}

impl From<vhost::Error> for Error {
    fn from(error: vhost::Error) -> Self {
        Self::Peer(format!("vhost-user: {error}"))
    }
}
