// SPDX-License-Identifier: Apache-2.0
//! A file that shrinks under its map (SIGBUS) leaves a device that goes on.

use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use vdpa_net_dataplane::memory::{DmaSpace, Range};

use crate::support::{contents, fd, map_pages, memfd, pipe, set_bits, violation_kinds, PAGE};

#[test]
fn touching_a_page_that_a_shrunken_file_lost_is_a_violation_not_death() {
    let (space, file) = (DmaSpace::new(8), memfd(16));
    map_pages(&space, 0, &file, 0, 16);
    space.lock().write_from(0, &[1; 64 * 1024]).unwrap();
    file.set_len(4 * PAGE).unwrap();
    let memory = space.lock();
    assert_eq!(memory.read_array::<2>(5 * PAGE).unwrap(), [0, 0]);
    memory.write_from(9 * PAGE, b"nowhere").unwrap();
    memory.write_from(0, b"here").unwrap();
    drop(memory);
    let violations = space.violations().take();
    assert_eq!(violations.len(), 1);
    assert_eq!(
        (violations[0].kind, violations[0].value),
        ("sigbus", 9 * PAGE)
    );
    assert_eq!(&contents(&file)[..4], b"here");
    // What is filled is filled: no second violation for the same page.
    space.lock().store_u16(9 * PAGE, 1).unwrap();
    assert_eq!(violation_kinds(&space), [""; 0]);
}

#[test]
fn a_thousand_holes_are_survived() {
    let (space, file) = (DmaSpace::new(8), memfd(2048));
    map_pages(&space, 0, &file, 0, 2048);
    file.set_len(0).unwrap();
    for page in (0..2048).step_by(2) {
        space.lock().store_u16(page * PAGE, 1).unwrap();
    }
    assert!(violation_kinds(&space).iter().all(|kind| *kind == "sigbus"));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(
        maps.lines().count() < 500,
        "each hole splits a mapping for good"
    );
}

#[test]
fn a_file_that_had_holes_and_grew_again_is_mapped_anew() {
    let (space, file) = (DmaSpace::new(8), memfd(2));
    map_pages(&space, 0, &file, 0, 2);
    file.set_len(0).unwrap();
    space.lock().write_from(0, b"lost").unwrap();
    file.set_len(2 * PAGE).unwrap();
    map_pages(&space, 1 << 20, &file, 0, 2);
    space.lock().write_from(1 << 20, b"kept").unwrap();
    assert_eq!(&contents(&file)[..4], b"kept");
}

#[test]
fn a_log_file_that_shrinks_does_not_kill_the_device() {
    let (space, ram, log) = (DmaSpace::new(8), memfd(8), memfd(1));
    map_pages(&space, 0, &ram, 0, 8);
    map_pages(&space, 1 << 44, &log, 0, 1);
    space.start_log(1 << 44, (1 << 44) + 8).unwrap();
    log.set_len(0).unwrap();
    space.lock().write_from(0, &[1]).unwrap();
    assert_eq!(violation_kinds(&space), ["sigbus"]);
}

#[test]
fn a_system_call_on_a_shrunken_file_is_efault_and_marks_all_the_ranges() {
    let (space, ram, log) = (DmaSpace::new(8), memfd(8), memfd(1));
    map_pages(&space, 0, &ram, 0, 8);
    map_pages(&space, 1 << 44, &log, 0, 1);
    space.start_log(1 << 44, (1 << 44) + 8).unwrap();
    ram.set_len(PAGE).unwrap();
    let (reader, writer) = pipe();
    std::io::Write::write_all(&mut &writer, &[7; 200]).unwrap();
    let ranges = [Range::new(4 * PAGE, 100u64), Range::new(6 * PAGE, 100u64)];
    let memory = space.lock();
    let read = memory.readv_from(fd(&reader), &ranges).unwrap();
    assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EFAULT));
    let written = memory.writev_to(fd(&writer), &ranges).unwrap();
    assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EFAULT));
    drop(memory);
    assert_eq!(set_bits(&contents(&log)), [4, 6]);
    assert_eq!(violation_kinds(&space), ["sigbus", "sigbus"]);
}

/// Names, to a copy of this test program, what it has to die of.
const CHILD: &str = "VDPA_NET_TEST_SIGBUS";

/// Run one test of this program again, in a process of its own; returns the signal that killed it.
fn signal_of_child(test: &str) -> Option<i32> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(CHILD, "1")
        .output()
        .unwrap();
    child.status.signal()
}

fn install_the_handler() {
    map_pages(&DmaSpace::new(8), 0, &memfd(1), 0, 1);
}

#[test]
fn a_fault_in_memory_that_is_not_ours_still_kills() {
    if std::env::var_os(CHILD).is_none() {
        let test = "shrink::a_fault_in_memory_that_is_not_ours_still_kills";
        assert_eq!(signal_of_child(test), Some(libc::SIGBUS));
        return;
    }
    install_the_handler();
    let file = memfd(1);
    let (null, fd) = (std::ptr::null_mut(), file.as_raw_fd());
    // SAFETY: a new mmap of an open file touches nothing that exists.
    let page = unsafe { libc::mmap(null, 4096, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    file.set_len(0).unwrap();
    // SAFETY: the page is mapped; that reading it raises SIGBUS is what this is about.
    let byte = unsafe { page.cast::<u8>().read_volatile() };
    panic!("read {byte} where there is nothing");
}

#[test]
fn a_sigbus_that_somebody_sent_still_kills() {
    if std::env::var_os(CHILD).is_none() {
        let test = "shrink::a_sigbus_that_somebody_sent_still_kills";
        assert_eq!(signal_of_child(test), Some(libc::SIGBUS));
        return;
    }
    // SAFETY: the default action is a valid handler (the test program has one of its own).
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    install_the_handler();
    // SAFETY: raising a signal touches no memory.
    unsafe { libc::raise(libc::SIGBUS) };
}
