// SPDX-License-Identifier: Apache-2.0
//! The one error type of this crate. Each variant carries its evidence; the glue crate converts by [`Error::kind`].

use thiserror::Error as ThisError;

/// What every fallible call of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// The family of an [`Error`]: one Python exception class each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A map, an access or a log range that the DMA space can't serve.
    Dma,
    /// A call that the present state of the object does not allow.
    State,
    /// A packet back end failed.
    Backend,
}

/// Why a call failed. The messages name the value got and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum Error {
    /// A map or unmap whose address, size or offset breaks the rules of a DMA space.
    #[error("DMA range iova {iova:#x} size {size:#x} offset {offset:#x}: expected {expected}")]
    BadRange {
        /// IOVA asked for.
        iova: u64,
        /// Bytes asked for.
        size: u64,
        /// Offset in the file, in bytes.
        offset: u64,
        /// The rule that was broken.
        expected: &'static str,
    },
    /// A map that would overlap one that exists.
    #[error(
        "DMA map iova {iova:#x} size {size:#x} overlaps the one at {other_iova:#x} size {other_size:#x}"
    )]
    Overlap {
        /// IOVA asked for.
        iova: u64,
        /// Bytes asked for.
        size: u64,
        /// IOVA of the existing map.
        other_iova: u64,
        /// Bytes of the existing map.
        other_size: u64,
    },
    /// An unmap that does not name exactly one earlier map.
    #[error(
        "DMA unmap iova {iova:#x} size {size:#x}: no map with exactly this address and size exists"
    )]
    NoSuchMap {
        /// IOVA asked for.
        iova: u64,
        /// Bytes asked for.
        size: u64,
    },
    /// An unmap of a range that a map sticks out of.
    #[error(
        "DMA unmap iova {iova:#x} size {size:#x} cuts the map iova {other_iova:#x} size {other_size:#x}: expected whole maps"
    )]
    CutsMap {
        /// IOVA asked for.
        iova: u64,
        /// Bytes asked for.
        size: u64,
        /// IOVA of the map.
        other_iova: u64,
        /// Bytes of the map.
        other_size: u64,
    },
    /// The limit on the number of maps is reached.
    #[error("DMA map iova {iova:#x}: the limit of {limit} {what} is reached")]
    Limit {
        /// IOVA asked for.
        iova: u64,
        /// The limit.
        limit: usize,
        /// What is limited.
        what: &'static str,
    },
    /// A map that reaches beyond the end of its file.
    #[error("DMA map offset {offset:#x} size {size:#x} ends beyond its file of {file_bytes:#x} bytes (only regular files and memfds can be mapped)")]
    BeyondFile {
        /// Offset in the file, in bytes.
        offset: u64,
        /// Bytes asked for.
        size: u64,
        /// Length of the file.
        file_bytes: u64,
    },
    /// A writable map of a file descriptor that can't be written.
    #[error("DMA map iova {iova:#x} size {size:#x} asks for write access, but the file can't be mapped writable")]
    ReadOnlyFile {
        /// IOVA asked for.
        iova: u64,
        /// Bytes asked for.
        size: u64,
    },
    /// A system call on the file of a map failed.
    #[error("{call} on the file of a DMA map failed with errno {errno}")]
    File {
        /// The system call.
        call: &'static str,
        /// Its errno.
        errno: i32,
    },
    /// An access to bytes that no map covers, or not with this permission.
    #[error("{} of {len} bytes at iova {iova:#x}: no map allows it at {fault_iova:#x}", if *.write { "write" } else { "read" })]
    Unmapped {
        /// First IOVA of the access.
        iova: u64,
        /// Bytes of the access.
        len: u64,
        /// First IOVA that is not mapped with this permission.
        fault_iova: u64,
        /// Whether it was a write.
        write: bool,
    },
    /// An atomic access to an address that is not a multiple of its size.
    #[error("atomic access at iova {iova:#x}: expected a multiple of {align}")]
    Misaligned {
        /// The address.
        iova: u64,
        /// The alignment expected.
        align: u64,
    },
    /// A copy longer than this crate makes in one go.
    #[error("copy of {len} bytes: expected at most {limit}")]
    TooLong {
        /// Bytes asked for.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// A dirty log with an end that is not after its base, or that is too long.
    #[error("dirty log [{base:#x}, {end:#x}): expected {expected}")]
    BadLog {
        /// First IOVA of the log.
        base: u64,
        /// IOVA after the log.
        end: u64,
        /// The rule that was broken.
        expected: &'static str,
    },
    /// A dirty log whose range is not mapped writable.
    #[error("dirty log [{base:#x}, {end:#x}) is not mapped writable at {fault_iova:#x}")]
    LogNotMapped {
        /// First IOVA of the log.
        base: u64,
        /// IOVA after the log.
        end: u64,
        /// First IOVA that is not mapped writable.
        fault_iova: u64,
    },
    /// A virtqueue whose description breaks the rules of its format.
    #[error("{what} {value:#x}: expected {expected}")]
    BadRing {
        /// The field, in the specification's spelling.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The rule that was broken.
        expected: &'static str,
    },
    /// A call that the present state of the object does not allow.
    #[error("{0}")]
    State(String),
    /// A packet back end failed.
    #[error("{message} (errno {errno})")]
    Backend {
        /// errno, 0 where there is none.
        errno: i32,
        /// What failed.
        message: String,
    },
}

impl Error {
    /// The family of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::State(_) => ErrorKind::State,
            Self::Backend { .. } => ErrorKind::Backend,
            _ => ErrorKind::Dma,
        }
    }

    /// The errno that a transport reports for it.
    pub fn errno(&self) -> i32 {
        match self {
            Self::BadRange { .. }
            | Self::BeyondFile { .. }
            | Self::BadLog { .. }
            | Self::CutsMap { .. }
            | Self::BadRing { .. }
            | Self::Misaligned { .. } => libc::EINVAL,
            Self::Overlap { .. } => libc::EEXIST,
            Self::NoSuchMap { .. } => libc::ENOENT,
            Self::Limit { .. } => libc::ENOSPC,
            Self::ReadOnlyFile { .. } => libc::EACCES,
            Self::Unmapped { .. } | Self::LogNotMapped { .. } => libc::EFAULT,
            Self::TooLong { .. } => libc::EMSGSIZE,
            Self::State(_) => libc::EBUSY,
            Self::File { errno, .. } | Self::Backend { errno, .. } => *errno,
        }
    }
}
