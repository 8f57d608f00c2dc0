// SPDX-License-Identifier: Apache-2.0
//! The vhost-user messages that start and stop rings, sent by rust-vmm's front end.

use std::io::Read;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::driver::Queue;
use crate::error::{Error, Result};
use crate::memory::Memory;

const PAGE_BYTES: usize = 4096;
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// A connection, and what has to live as long as it.
pub struct Session {
    front_end: Frontend,
    queues: usize,
    log: Option<OwnedFd>,
}

impl Session {
    /// Connect to a back end; one that has just been started may still be on its way.
    pub fn connect(socket: &str, queues: usize) -> Result<Self> {
        let deadline = Instant::now() + CONNECT_PATIENCE;
        let front_end = loop {
            match Frontend::connect(socket, queues as u64) {
                Ok(front_end) => break front_end,
                Err(error) if Instant::now() > deadline => {
                    return Err(Error::Peer(format!("{socket}: {error}")))
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        Ok(Self {
            front_end,
            queues,
            log: None,
        })
    }

    /// Negotiate, hand the memory over, start every ring.
    pub fn start(
        &mut self,
        wanted: u64,
        memory: &Memory,
        queues: &[Queue],
        is_logging: bool,
    ) -> Result<()> {
        self.front_end.set_owner()?;
        let features = self.negotiate(wanted)?;
        self.share(memory)?;
        if is_logging {
            self.start_log(features, memory)?;
        }
        for (index, queue) in queues.iter().enumerate() {
            let (config, base, kick, call) = queue.parts();
            self.front_end.set_vring_num(index, config.queue_size)?;
            self.front_end.set_vring_base(index, base)?;
            self.front_end.set_vring_addr(index, &config)?;
            self.front_end.set_vring_call(index, call)?;
            self.front_end.set_vring_kick(index, kick)?;
        }
        for index in 0..self.queues {
            self.front_end.set_vring_enable(index, true)?;
        }
        Ok(())
    }

    fn negotiate(&mut self, wanted: u64) -> Result<u64> {
        let offered = self.front_end.get_features()?;
        if wanted & !offered != 0 {
            return Err(Error::Peer(format!(
                "the back end does not offer the features {:#x} of {wanted:#x}",
                wanted & !offered
            )));
        }
        let protocol = self.front_end.get_protocol_features()?
            & (VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::LOG_SHMFD);
        self.front_end.set_protocol_features(protocol)?;
        // GET_QUEUE_NUM is not asked: this front end takes the answer, in pairs, for a number of rings.
        self.front_end.set_features(wanted)?;
        Ok(wanted)
    }

    fn share(&self, memory: &Memory) -> Result<()> {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: memory.bytes() as u64,
            userspace_addr: memory.address(0),
            mmap_offset: 0,
            mmap_handle: memory.fd(),
        };
        self.front_end.set_mem_table(&[region])?;
        Ok(())
    }

    fn start_log(&mut self, features: u64, memory: &Memory) -> Result<()> {
        let bytes = (memory.bytes() / PAGE_BYTES / 8).next_multiple_of(PAGE_BYTES);
        // SAFETY: the name is a live C string; the result is owned by nobody else; ftruncate takes no pointer.
        let log = unsafe {
            let fd = libc::memfd_create(c"log".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 || libc::ftruncate(fd, bytes as libc::off_t) != 0 {
                return Err(Error::last("log"));
            }
            OwnedFd::from_raw_fd(fd)
        };
        self.set_log_base(bytes as u64, &log)?;
        self.front_end
            .set_features(features | VhostUserVirtioFeatures::LOG_ALL.bits())?;
        self.log = Some(log);
        Ok(())
    }

    /// SET_LOG_BASE as QEMU sends it. The library's own waits for a reply of 16 bytes, while the back ends (DPDK,
    /// libvhost-user and this one) answer with 8.
    fn set_log_base(&self, bytes: u64, log: &OwnedFd) -> Result<()> {
        const SET_LOG_BASE: u32 = 6;
        const VERSION: u32 = 1;
        const HEADER_BYTES: usize = 12;
        let mut message = Vec::new();
        for word in [SET_LOG_BASE, VERSION, 16] {
            message.extend_from_slice(&u32::to_le_bytes(word));
        }
        for word in [bytes, 0] {
            message.extend_from_slice(&u64::to_le_bytes(word));
        }
        let mut socket = borrowed(&self.front_end);
        socket
            .send_with_fds(&[message.as_slice()], &[log.as_raw_fd()])
            .map_err(|error| Error::Peer(format!("SET_LOG_BASE: {error}")))?;
        let mut header = [0; HEADER_BYTES];
        socket
            .read_exact(&mut header)
            .map_err(Error::system("reply to SET_LOG_BASE"))?;
        let [.., s0, s1, s2, s3] = header;
        let mut payload = vec![0; u32::from_le_bytes([s0, s1, s2, s3]) as usize];
        socket
            .read_exact(&mut payload)
            .map_err(Error::system("reply to SET_LOG_BASE"))
    }

    /// Stop every ring.
    pub fn stop(self) -> Result<()> {
        for index in 0..self.queues {
            self.front_end.get_vring_base(index)?;
        }
        Ok(())
    }
}

/// The front end's socket; the front end keeps it.
fn borrowed(front_end: &Frontend) -> ManuallyDrop<UnixStream> {
    // SAFETY: the descriptor is an open Unix stream socket for as long as the front end lives, and is not closed here.
    ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(front_end.as_raw_fd()) })
}
