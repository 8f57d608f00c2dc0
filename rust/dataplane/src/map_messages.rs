// SPDX-License-Identifier: Apache-2.0
//! Messages that map and unmap memory, carried out where nothing is wrong with them.
//!
//! What such a message looks like is the caller's business: its command, the bytes that it begins with, and where its
//! numbers are. A message that can't be carried out changes nothing; whoever is asked next finds the reason again.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::memory::DmaSpace;

/// What a message of a form does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Map a range of the one file that comes along; the reply has no payload.
    Map {
        /// Where in the payload the offset in the file is.
        offset_at: usize,
        /// Whether the device may read.
        readable: bool,
        /// Whether the device may write.
        writable: bool,
    },
    /// Undo the maps within a range; the reply repeats the payload.
    Unmap,
}

/// Messages that differ in their numbers (64 bits, little-endian) alone.
#[derive(Clone, Debug)]
pub struct Form {
    /// Command in the header.
    pub command: u16,
    /// Bytes of the payload.
    pub payload_bytes: usize,
    /// What the payload begins with.
    pub prefix: Vec<u8>,
    /// Where in the payload the IOVA is.
    pub address_at: usize,
    /// Where in the payload the size in bytes is.
    pub size_at: usize,
    /// What to do.
    pub change: Change,
}

const NUMBER_BYTES: usize = 8;

impl Form {
    fn numbers(&self) -> impl Iterator<Item = usize> {
        let offset = match self.change {
            Change::Map { offset_at, .. } => Some(offset_at),
            Change::Unmap => None,
        };
        [self.address_at, self.size_at].into_iter().chain(offset)
    }

    fn fits(&self, command: u16, payload: &[u8]) -> bool {
        command == self.command
            && payload.len() == self.payload_bytes
            && payload.starts_with(&self.prefix)
    }
}

/// The forms that a DMA space is changed by.
#[derive(Debug)]
pub struct MapMessages {
    space: Arc<DmaSpace>,
    forms: Vec<Form>,
}

impl MapMessages {
    /// Errors: a form whose numbers lie outside of its payload, or one with a longer payload than `payload_bytes_max`.
    pub fn new(space: Arc<DmaSpace>, forms: Vec<Form>, payload_bytes_max: usize) -> Result<Self> {
        for form in &forms {
            let end = form.numbers().map(|at| at.saturating_add(NUMBER_BYTES));
            if form.payload_bytes > payload_bytes_max || end.max().unwrap_or(0) > form.payload_bytes
            {
                return Err(Error::State(format!(
                    "a message with a payload of {} bytes: expected all of its numbers in it, and at most \
                     {payload_bytes_max}",
                    form.payload_bytes
                )));
            }
        }
        Ok(Self { space, forms })
    }

    /// Whether a message of this command and payload size may be one.
    pub(crate) fn may_be(&self, command: u16, payload_bytes: usize) -> bool {
        self.forms
            .iter()
            .any(|form| form.command == command && form.payload_bytes == payload_bytes)
    }

    /// How much of the payload the reply repeats, if the message was carried out. On return from an unmap nothing
    /// touches the range.
    pub(crate) fn carry_out(&self, command: u16, payload: &[u8], fds: &[OwnedFd]) -> Option<usize> {
        let form = self.forms.iter().find(|form| form.fits(command, payload))?;
        let number = |at: usize| {
            let bytes = payload.get(at..at + NUMBER_BYTES)?;
            bytes.try_into().map(u64::from_le_bytes).ok()
        };
        let (iova, size) = (number(form.address_at)?, number(form.size_at)?);
        match (form.change, fds) {
            (
                Change::Map {
                    offset_at,
                    readable,
                    writable,
                },
                [fd],
            ) => {
                let offset = number(offset_at)?;
                let done = self
                    .space
                    .map(iova, size, fd.as_fd(), offset, readable, writable);
                done.ok().map(|()| 0)
            }
            (Change::Unmap, []) => {
                let done = self.space.unmap_within(iova, size);
                done.ok().map(|_| payload.len())
            }
            _ => None,
        }
    }
}
