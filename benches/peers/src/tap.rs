// SPDX-License-Identifier: Apache-2.0
//! A queue of a tap, with the header of 12 bytes that the device uses.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

use crate::error::{Error, Result};
use crate::packet::HEADER_BYTES;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const IFF_TAP: u16 = 0x2;
const IFF_NAPI: u16 = 0x10;
const IFF_MULTI_QUEUE: u16 = 0x100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM_TSO4_TSO6: libc::c_ulong = 0x7;
const IFREQ_BYTES: usize = 40;
const FLAGS_OFFSET: usize = 16;

/// How a tap is attached to, besides its virtio-net header.
#[derive(Clone, Copy, Default)]
pub struct Mode {
    /// Frames go through a NAPI instance of the queue.
    pub is_napi: bool,
    /// One of several queues; the tap has to be of that kind.
    pub is_multi_queue: bool,
}

/// Attach to the tap `name`, make it if it is not there.
pub fn open(name: &str, mode: Mode) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(Error::system("/dev/net/tun"))?;
    if name.len() >= FLAGS_OFFSET {
        return Err(Error::Usage(format!(
            "--tap {name}: expected at most 15 bytes"
        )));
    }
    let mut request = [0u8; IFREQ_BYTES];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let mut flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    flags |= if mode.is_napi { IFF_NAPI } else { 0 };
    flags |= if mode.is_multi_queue {
        IFF_MULTI_QUEUE
    } else {
        0
    };
    request[FLAGS_OFFSET..FLAGS_OFFSET + 2].copy_from_slice(&flags.to_ne_bytes());
    let size = HEADER_BYTES as libc::c_int;
    let fd = file.as_raw_fd();
    // SAFETY: TUNSETIFF reads and writes one ifreq, TUNSETVNETHDRSZ reads one int, both live; TUNSETOFFLOAD takes a value.
    let failed = unsafe {
        libc::ioctl(fd, TUNSETIFF as _, request.as_mut_ptr()) != 0
            || libc::ioctl(fd, TUNSETVNETHDRSZ as _, &size) != 0
            || libc::ioctl(fd, TUNSETOFFLOAD as _, TUN_F_CSUM_TSO4_TSO6) != 0
    };
    if failed {
        return Err(Error::last(format!("tap {name}")));
    }
    Ok(file)
}

/// Reads and writes end with EAGAIN where they would wait.
pub fn set_nonblocking(tap: &File) -> Result<()> {
    // SAFETY: F_SETFL takes no pointer.
    if unsafe { libc::fcntl(tap.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
        return Err(Error::last("tap"));
    }
    Ok(())
}
