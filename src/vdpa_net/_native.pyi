# SPDX-License-Identifier: Apache-2.0
"""The Rust data plane: DMA space, dirty log, virtqueues, packet back ends, worker threads.

Every call that may block (it waits for a worker to finish its batch) releases the GIL. Worker threads
never take the GIL, except for a packet hook. Addresses are IOVAs, lengths are bytes, indices are virtqueue
indices (2i receives, 2i+1 transmits, 2 * queue_pairs is the control queue). Errors are those of
`vdpa_net.errors`: DmaError, StateError, BackendError.
"""

from collections.abc import Callable
from typing import NamedTuple

class Mapping(NamedTuple):
    """One entry of the DMA space. `address` is where this process sees it (for auditors, never to write)."""

    iova: int
    size_bytes: int
    offset_bytes: int
    readable: bool
    writable: bool
    address: int

class Violation(NamedTuple):
    """What the data plane recorded: `queue` (-1: none), a short `kind`, the offending value, the clause."""

    queue: int
    kind: str
    value: int
    clause: str
    detail: str

class DmaSpace:
    """IOVA ranges on file descriptors, and the dirty log that lies in them. One per device."""

    def __init__(self, max_maps: int = 1 << 20) -> None: ...
    def map(self, iova: int, size: int, fd: int, offset: int, readable: bool, writable: bool) -> None:
        """Map [iova, iova + size) to the file. The fd is not kept. Raises DmaError."""

    def unmap(self, iova: int, size: int) -> None:
        """Remove exactly one earlier map; on return no worker touches it. Raises DmaError(ENOENT)."""

    def reserve(self, iova: int, size: int) -> None:
        """Note memory that came without a file: it takes its place among the maps, and no access to it
        succeeds. Raises DmaError as `map` does."""

    def unmap_within(self, iova: int, size: int) -> int:
        """Remove the maps inside of [iova, iova + size), which may be none; returns how many there were. On
        return no worker touches them. Raises DmaError(EINVAL) if a map is only partly inside."""

    def map_count(self) -> int:
        """How many maps there are."""

    def unmap_all(self) -> int:
        """Remove every map; returns how many there were."""

    def is_without_file(self, iova: int) -> bool:
        """Whether this address lies in memory that came without a file."""

    def is_mapped(self, iova: int, size: int, writable: bool) -> bool: ...
    def mappings(self) -> list[Mapping]: ...
    def read(self, iova: int, size: int) -> bytes: ...
    def write(self, iova: int, data: bytes) -> None:
        """Store and mark, as every store to guest memory does."""

    def start_log(self, base: int, end: int) -> None:
        """Log dirty pages to [base, end) from now on; replaces a running log at once. Raises DmaError
        (EINVAL: end <= base; EFAULT: not mapped writable) and then nothing has changed."""

    def stop_log(self) -> None: ...
    def log_range(self) -> tuple[int, int] | None:
        """(base, end) of the running log."""

    def barrier(self) -> None:
        """Return when every mark of every earlier write has been made."""

    def transcribe(self, source: int, source_end: int, translations: list[tuple[int, int, int]]) -> int:
        """Carry marks over from a log of other page numbers that lies at [source, source_end) of this space:
        take those of each (iova, size, address) out of it and mark the pages from `address` on in the log
        that runs. Returns how many pages. Raises DmaError where the source is not mapped writable."""

    def watch_misses(self, event_fd: int | None) -> None:
        """While there is an eventfd (duplicated), an access to an address without a map is a request: the
        eventfd is signalled, the queue waits and looks again when a map comes. None: it is a fault again."""

    def take_misses(self, most: int = ...) -> list[tuple[int, bool]]:
        """The requests since the last call, so many at most: the page's IOVA, and whether it has to be
        writable. Each is made once, until the page is mapped or the request is retried or refused; one that
        is mapped before it is taken was none."""

    def retry_miss(self, iova: int, write: bool) -> None:
        """Nothing came of a request: whoever still needs it shall make it anew."""

    def refuse_miss(self, iova: int, write: bool) -> None:
        """There will be no such map: the next such access is a fault, unless the page is mapped after all."""

    def has_marks(self, iova: int, size: int) -> bool:
        """Whether a bit is set in these bytes of a log. Raises DmaError."""

    def record_marks(self, on: bool) -> None:
        """Keep a copy of every bit set in a log from the next start on (survives a change of log)."""

    def marked_pages(self) -> bytes:
        """That copy: bit p % 8 of byte p // 8 is page p."""

    def last_write(self, page: int) -> tuple[int, int, bool] | None:
        """Offset in the page (IOVA >> 12) and length, in bytes, of what the device wrote there last while
        marks were recorded, and whether it belonged to a ring (else to a buffer); None if it did not."""

    def record_places(self, on: bool) -> None:
        """Record marks by where their pages lie in this process as well, from the next start of a log on.
        `last_write` is asked for such a page (address >> 12) then, too."""

    def take_marked_places(self, look: Callable[[], object]) -> list[int]:
        """Those pages (address >> 12) marked since they were last taken; `look` as in `take_marked_pages`."""

    def files(self) -> list[tuple[int, int, bool]]:
        """The files that are mapped, each once: address, bytes, and whether it may be written. While marks
        are recorded by place they stay where they are."""

    def take_marked_pages(self, look: Callable[[], object]) -> bytes:
        """The copy since it was last taken; it begins anew. `look` is called at that moment, between two
        batches: the data plane stands still meanwhile, so it must be short and must not touch the device."""

    def log_counters(self) -> dict[str, int]:
        """marks, pages_marked (0 -> 1), log_overflow, log_unmapped, marks_dropped_by_fault."""

    def take_violations(self) -> list[Violation]: ...

class Backend:
    """Where packets go and come from, whatever the kind: an argument of `DataPlane`."""

    def set_offloads(self, features: int) -> None:
        """What the driver accepts on received packets, as the negotiated features (a tap has
        TUNSETOFFLOAD for it)."""

class Loopback(Backend):
    """What is transmitted on a pair comes back on the same pair's receive queue. Bounded; drops counted."""

    def __init__(self, queue_pairs: int = 1, depth_packets: int = 1024) -> None: ...

class Null(Backend):
    """Takes every packet; with `source` it gives packets (see `vdpa_net.backend.null.Source`)."""

    def __init__(
        self,
        queue_pairs: int = 1,
        *,
        source: bool = False,
        packet_bytes: int = 60,
        rate_pps: int = 0,
        flows: int = 16,
        destination: bytes = ...,
    ) -> None:
        """Raises BackendError for impossible numbers."""

class Recorder(Backend):
    """Another back end, whose packets are recorded to a pcapng file by a thread of its own."""

    def __init__(self, backend: Backend, fd: int, snap_bytes: int, buffer_bytes: int) -> None:
        """The fd is duplicated. At most `snap_bytes` of a frame are kept, at most `buffer_bytes` wait to be
        written: what finds no room is not recorded, and counted."""

    def counters(self) -> dict[str, int]:
        """recorded, dropped (packets), written_bytes, errno (of the write that ended the recording, or 0)."""

    def close(self) -> None:
        """Write what is waiting, and the totals; packets pass on, unrecorded."""

class Tap(Backend):
    """Packets on open tap file descriptors, one per queue pair, with a virtio-net header of 12 bytes."""

    def __init__(self, fds: list[int]) -> None:
        """The fds are duplicated and made non-blocking. Raises BackendError."""

class ReceiveFilter:
    """Which received packets go to the driver; see `vdpa_net.device.receive_filter`."""

    def __init__(
        self,
        *,
        promisc: bool,
        allmulti: bool,
        alluni: bool,
        nomulti: bool,
        nouni: bool,
        nobcast: bool,
        mac: bytes,
        table: list[bytes],
        vlans: list[int] | None,
        mtu: int | None,
    ) -> None:
        """`table` are unicast and multicast addresses. `vlans` None: all pass. `mtu` None: any size does."""

    def verdict(self, packet: bytes) -> str | None:
        """None if a packet, its 12-byte virtio-net header included, passes; else the counter of its drop."""

class DataPlane:
    """The virtqueues of one device, one worker thread per queue pair."""

    def __init__(
        self, space: DmaSpace, backend: Backend, queue_pairs: int, control_queue: bool = True
    ) -> None: ...
    def start_queue(
        self,
        index: int,
        size: int,
        desc: int,
        driver: int,
        device: int,
        last_avail_idx: int,
        used_idx: int,
        features: int,
        restored: bool,
    ) -> None:
        """Start a stopped queue (virtio 1.3 names: queue_desc, queue_driver, queue_device) at the given
        indices, split or packed as the negotiated features say. It is scanned at once, without waiting for a
        kick.

        Indices of a packed ring are in the vhost encoding: offset in bits 14:0, wrap counter in bit 15; a
        fresh one starts at 0x8000. `restored`: the indices are those of a ring that was in use before, so
        they are checked against memory (violations `used_idx`, `restored_gap`) and an interrupt is raised.
        Raises StateError if it runs, DmaError if the rings are not mapped or are misaligned, or if an index
        lies beyond a packed ring."""

    def stop_queue(self, index: int) -> tuple[int, int]:
        """Drain and stop; returns the final (last_avail_idx, used_idx). On return no DMA of the queue is
        in flight, none follows, its marks are made. TX: all descriptors available now are sent. RX: what
        the back end has queued now is delivered while buffers last; untouched buffers stay available."""

    def halt_queue(self, index: int) -> tuple[int, int]:
        """Stop where it stands: as `stop_queue`, but what is available and not taken stays available."""

    def ring_state(self, index: int) -> tuple[int, int]:
        """Snapshot (running) or final state (stopped)."""

    def is_running(self, index: int) -> bool: ...
    def set_kick(self, index: int, fd: int | None) -> None:
        """Use (a duplicate of) this eventfd as a kick besides the doorbell of this index; None: only that."""

    def kick(self, index: int) -> None: ...
    def kick_fd(self, index: int) -> int:
        """The eventfd that does what doorbell `index` does, borrowed: valid while this object lives. That of
        the control queue is for the caller to wait on."""

    def bell(self, index: int) -> QueueBell:
        """The doorbell `index`. Nothing comes of ringing that of a closed plane."""

    def set_call(self, index: int, fd: int | None) -> None:
        """Signal this eventfd (duplicated) when used buffers are to be announced. An interrupt that was due
        while there was none is raised when one comes."""

    def is_interrupt_due(self, index: int) -> bool:
        """Whether the queue has something to announce and no eventfd to do it by."""

    def interrupt(self, index: int) -> None:
        """Raise the queue's interrupt now, whatever suppression says."""

    def process_control(self, handler: Callable[[bytes], bytes]) -> int:
        """Serve each available control chain: readable bytes in, bytes to write back out. Returns how
        many."""

    def set_multiqueue(self, on: bool) -> None:
        """Whether VIRTIO_NET_F_MQ was negotiated (at first it is on). Off: there is one pair, and queue 2 is
        the control queue; kicks of doorbell 2 arrive at the control queue's eventfd. Raises StateError if a
        queue runs."""

    def set_poll_us(self, poll_us: int) -> None:
        """Poll rings and back end for so many microseconds after work at most, then sleep; at first 20."""

    def set_coalesce_us(self, coalesce_us: int) -> None:
        """Let packets of a stream wait for so many microseconds at most; at first 150."""

    def set_active_pairs(self, count: int) -> None:
        """Only the first `count` pairs receive from now on (at first: all). On return nothing is received on
        the others any more; what had come for them was delivered while buffers lasted, the rest is counted
        as drops_no_buffer. Raises StateError if there are not so many."""

    def set_receive_filter(self, filter: ReceiveFilter) -> None:
        """Pass only these packets from now on (at first: all). On return it holds for all that come."""

    def set_packet_hook(self, callback: Callable[[bool, int, bytes], bytes | None] | None) -> None:
        """Call `callback(to_guest, pair, packet)` for each packet, its 12-byte virtio-net header included, in
        the pair's worker thread, and pass on what it returns; None drops the packet (drops_hook). No lock is
        held meanwhile. On return an earlier hook is not being called any more, unless it is the caller.
        While there is one, a stop waits 100 ms at most for what is available to be sent; what is not stays
        in the ring."""

    def transmit(self, frame: bytes) -> bool:
        """Send one frame (no virtio-net header) through the back end, to announce, without waiting; False if
        it has no room now. Raises BackendError."""

    def flush_backend(self) -> int:
        """Drop what the back end has queued for reception; returns the number of packets."""

    def queue_counters(self, index: int) -> dict[str, int]:
        """packets, bytes, kicks, interrupts, chains, dirty_pages (this queue was the first to mark them) and
        drops_<reason>, since creation. TX: drops_bad_header, drops_too_long, drops_backend. RX:
        drops_no_buffer, drops_too_long, drops_filtered. Both: drops_hook."""

    def install_fault(self, name: str, queue: int, value: float, seed: int) -> None:
        """Make this data plane faulty from now on (`vdpa_net.migration.faults.PlaneFault`). Queue is -1 for
        the faults of the dirty log. `value` is a share for drop-dirty-mark, bytes for log-end, the number of
        the element (from 1) for duplicate-used, how many for lost-kick and lost-irq. Raises StateError if
        there is no such fault or queue."""

    def fault_counts(self) -> dict[tuple[str, int], int]:
        """How often each installed fault fired, by name and queue."""

    def event_fd(self) -> int:
        """Borrowed eventfd that is signalled when a violation was recorded or a queue broke."""

    def take_violations(self) -> list[Violation]: ...
    def take_broken_queues(self) -> list[int]:
        """Queues that a fault in their ring has stopped since the last call, restarted or not."""

    def close(self) -> None:
        """Stop every queue and thread."""

class QueueBell:
    """A doorbell of a data plane. Whoever rings it does what a worker that rests would be woken for."""

class DoorbellSocket:
    """Carries out doorbells and maps that arrive as messages on a connected socket, the rest is the caller's.
    The socket (duplicated) stays the caller's to read, too: by one thread at a time.

    A doorbell is a vfio-user message of `command`; its reply repeats `repeated_bytes` of the payload."""

    def __init__(self, fd: int, command: int, repeated_bytes: int) -> None: ...
    def add(self, payloads: list[bytes], fd: int) -> None:
        """A message with exactly one of these payloads signals this eventfd (duplicated).

        Raises StateError."""

    def add_queue(self, payloads: list[bytes], bell: QueueBell) -> None:
        """A message with exactly one of these payloads rings this doorbell. Raises StateError."""

    def serve_maps(
        self,
        space: DmaSpace,
        maps: list[tuple[tuple[int, int, bytes, int, int], int, bool, bool]],
        unmaps: list[tuple[int, int, bytes, int, int]],
    ) -> None:
        """Messages of these shapes change `space`, if they can; else they are the caller's, and nothing has
        changed. A shape: command, bytes of the payload, what it begins with, where its address and its size
        are. Of a map also: where its offset is, readable, writable. Raises StateError."""

    def serve_batches(
        self, command: int, head_bytes: int, item_bytes: int, length_at: int, items_max: int
    ) -> None:
        """Messages of this command ring all doorbells that they carry, if they carry nothing else: behind a
        count of `head_bytes`, 8, which the reply repeats, so many items. An item begins with a doorbell's
        payload, whose last bytes are as many as the number at `length_at` before them says.

        Raises StateError."""

    def set_watched(self, watched: bool) -> None:
        """While it is watched, every message is the caller's. From any thread."""

    def receive(self, fds: list[int]) -> bytes:
        """Serve doorbells until another message begins; waits for it, without the GIL.

        Returns its header, or header and payload, and appends the descriptors that came along to `fds`: the
        caller owns them, also after an error. Fewer bytes than a header: the stream has ended, or reading
        failed, as the caller's next read will. Raises PeerGone if a reply can't be sent, ProtocolError when
        this process is out of descriptors, StateError after `close`."""

    def close(self) -> None:
        """Give the duplicates back. Idempotent."""

class KickRelay:
    """Forwards eventfd signals: whatever arrives at a source reaches its target, or rings its doorbell.

    One thread."""

    def __init__(self) -> None: ...
    def add(self, key: int, source: int, target: int) -> None:
        """Both fds are duplicated; replaces an earlier pair with this key."""

    def add_doorbell(self, key: int, source: int, fd: int, offset: int, value: int) -> None:
        """As `add`; a signal writes the 16-bit value, little-endian, at this offset of a file."""

    def remove(self, key: int) -> None: ...
    def close(self) -> None: ...
