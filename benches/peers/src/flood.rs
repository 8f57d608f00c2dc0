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

/// struct virtio_net_hdr, which a packet socket takes before a frame: that of the tap without num_buffers.
const SOCKET_HEADER_BYTES: usize = 10;

/// What is sent.
#[derive(Clone, Copy)]
pub struct Frames {
    /// Bytes of each.
    pub bytes: usize,
    /// TCP segments that are to be cut later on.
    pub is_gso: bool,
    /// UDP frames of so many flows instead of frames that no stack answers; 0: those. At most 32.
    pub flows: u16,
}

/// A packet socket on one interface, past its queueing discipline.
pub struct Flood {
    socket: OwnedFd,
    frames: Vec<Vec<u8>>,
}

impl Flood {
    /// Send such frames on `interface`.
    pub fn new(interface: &str, what: Frames) -> Result<Self> {
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
        bind(&socket, index, what.is_gso).map_err(Error::system(format!("bind to {interface}")))?;
        let frames = match what.flows {
            0 if what.is_gso => {
                let mut packet = packet::gso(what.bytes);
                packet.drain(SOCKET_HEADER_BYTES..HEADER_BYTES);
                vec![packet]
            }
            0 => vec![packet::plain(what.bytes).split_off(HEADER_BYTES)],
            flows => (0..flows)
                .map(|flow| packet::of_flow(what.bytes, flow).split_off(HEADER_BYTES))
                .collect(),
        };
        Ok(Self { socket, frames })
    }

    /// Send up to `count` frames, 32 at most; how many the interface took.
    fn burst(&self, count: usize) -> usize {
        let part = |index: usize| {
            let frame = &self.frames[index % self.frames.len()];
            libc::iovec {
                iov_base: frame.as_ptr().cast_mut().cast(),
                iov_len: frame.len(),
            }
        };
        let mut parts: [libc::iovec; BATCH] = std::array::from_fn(part);
        // SAFETY: an mmsghdr of zeros is a valid one.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        for (message, part) in messages.iter_mut().zip(&mut parts) {
            message.msg_hdr.msg_iov = part;
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

fn bind(socket: &OwnedFd, index: u32, with_header: bool) -> std::io::Result<()> {
    // SAFETY: a sockaddr_ll of zeros is a valid one.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    let on: libc::c_int = 1;
    let has_header = libc::c_int::from(with_header);
    // SAFETY: each call reads a live value of the size that they are given.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const on).cast(),
            size_of_val(&on) as u32,
        ) != 0
            || libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const has_header).cast(),
                size_of_val(&has_header) as u32,
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
    let interface = arguments.text("interface")?;
    let what = Frames {
        bytes: arguments.number("bytes")?,
        is_gso: arguments.switch("gso"),
        flows: arguments.number_or("flows", 0)?,
    };
    let flood = Flood::new(&interface, what)?;
    let seconds = arguments.number("seconds")?;
    let wanted: u64 = arguments.number_or("frames", 0)?;
    arguments.end()?;
    let clock = Clock::start(seconds);
    if wanted > 0 {
        return Ok(clock.report(flood.fill(wanted)));
    }
    let mut frames = 0;
    while !clock.is_over() {
        frames += flood.burst(BATCH) as u64;
    }
    Ok(clock.report(frames))
}
