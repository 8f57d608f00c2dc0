// SPDX-License-Identifier: Apache-2.0
//! Frames towards a tap: sent on its network interface by a packet socket, so that whoever reads the tap gets them.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use serde_json::Value;

use crate::arguments::Arguments;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::packet::{self, HEADER_BYTES};

const BATCH: usize = 32;

/// A packet socket on one interface, past its queueing discipline.
pub struct Flood {
    socket: OwnedFd,
    frame: Vec<u8>,
}

impl Flood {
    /// Frames of `bytes` bytes on `interface`.
    pub fn new(interface: &str, bytes: usize) -> Result<Self> {
        let name = CString::new(interface)
            .map_err(|_| Error::Usage(format!("--interface {interface:?}: has a zero byte")))?;
        // SAFETY: the name is a live C string; socket takes no pointer, and its result is owned by nobody else.
        let (index, socket) = unsafe {
            let index = libc::if_nametoindex(name.as_ptr());
            let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            if index == 0 || socket < 0 {
                return Err(Error::last(format!("packet socket on {interface}")));
            }
            (index, OwnedFd::from_raw_fd(socket))
        };
        bind(&socket, index).map_err(Error::system(format!("bind to {interface}")))?;
        let frame = packet::plain(bytes).split_off(HEADER_BYTES);
        Ok(Self { socket, frame })
    }

    /// Send up to `count` frames, 32 at most; how many the interface took.
    fn burst(&self, count: usize) -> usize {
        let mut part = libc::iovec {
            iov_base: self.frame.as_ptr().cast_mut().cast(),
            iov_len: self.frame.len(),
        };
        // SAFETY: an mmsghdr of zeros is a valid one.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        for message in &mut messages {
            message.msg_hdr.msg_iov = &mut part;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: every message points to one live part of a live frame, which sendmmsg only reads.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                count.min(BATCH) as u32,
                0,
            )
        };
        usize::try_from(sent).unwrap_or(0)
    }

    /// Send `frames` frames, as far as the interface's queue takes them; how many it took.
    pub fn fill(&self, frames: u64) -> u64 {
        let mut sent = 0;
        while sent < frames {
            match self.burst(BATCH.min((frames - sent) as usize)) {
                0 => break,
                count => sent += count as u64,
            }
        }
        sent
    }
}

fn bind(socket: &OwnedFd, index: u32) -> std::io::Result<()> {
    // SAFETY: a sockaddr_ll of zeros is a valid one.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    let on: libc::c_int = 1;
    // SAFETY: both calls read a live value of the size that they are given.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const on).cast(),
            size_of_val(&on) as u32,
        ) != 0
            || libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            ) != 0
    };
    if failed {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// `flood`.
pub fn run(arguments: &mut Arguments) -> Result<Value> {
    let flood = Flood::new(&arguments.text("interface")?, arguments.number("bytes")?)?;
    let seconds = arguments.number("seconds")?;
    arguments.end()?;
    let clock = Clock::start(seconds);
    let mut frames = 0;
    while !clock.is_over() {
        frames += flood.burst(BATCH) as u64;
    }
    Ok(clock.report(frames))
}
