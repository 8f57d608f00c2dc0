// SPDX-License-Identifier: Apache-2.0
//! The corpus: written by these tests (with VDPA_NET_WRITE_CORPUS set), kept in the repository, run by them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use vdpa_net_fuzz_rings::input::{Input, Operation, Setup};
use vdpa_net_fuzz_rings::run;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../corpus/rings")
}

fn encode(setup: &Setup, operations: &[Operation]) -> Vec<u8> {
    let mut bytes = Vec::new();
    setup.write(&mut bytes);
    operations.iter().for_each(|step| step.write(&mut bytes));
    bytes
}

/// Areas at 0x0, 0x1000 and 0x2000 of guest memory: in different pages, all in the first map.
fn setup(flags: u8, size: u16, state: u16) -> Setup {
    Setup {
        flags,
        size,
        areas: [0, 0x400, 0x800],
        state: [state, state],
    }
}

fn descriptor(index: u8, addr: u16, len: u16, flags: u16, link: u16) -> Operation {
    Operation::Descriptor {
        index,
        addr,
        len,
        flags,
        link,
    }
}

/// Two descriptors, a readable one in the first map and a writable one that spans both.
fn chain(head: u8) -> [Operation; 3] {
    [
        descriptor(head, 0x3000, 64, NEXT, u16::from(head) + 1),
        descriptor(head + 1, 0x3f80, 0x400, WRITE, 7),
        Operation::Offer { head },
    ]
}

fn served(len: u16) -> [Operation; 5] {
    use Operation::{Fill, Kicks, Pop, Publish, Use};
    [Pop, Fill { len }, Use { len }, Publish, Kicks { on: true }]
}

/// A table at 0x3800: a descriptor that refers to it, and the table's own (number 0x380 of 16 bytes each).
fn indirect(head: u8) -> Vec<Operation> {
    let words = [
        // addr 0x13000, len 64, NEXT, 1; addr 0x13f80, len 0x400, WRITE, 0
        0x3000, 1, 0, 0, 64, 0, NEXT, 1, 0x3f80, 1, 0, 0, 0x400, 0, WRITE, 0,
    ];
    let table = words.iter().enumerate();
    let mut out: Vec<Operation> = table
        .map(|(at, value)| Operation::Word {
            index: 0x3800 / 2 + at as u16,
            value: *value,
        })
        .collect();
    out.push(descriptor(head, 0x3800, 32, INDIRECT, 0));
    out.push(Operation::Offer { head });
    out
}

fn seeds() -> BTreeMap<String, Vec<u8>> {
    use Operation::{
        Available, Fill, Kicks, Log, Move, Pop, PopLine, Publish, Remap, Unpop, Use, UseLine,
    };
    let log = [Log { on: true }];
    let mut seeds = BTreeMap::new();
    for (name, flags, state) in [
        ("split", 0, 0),
        ("split-event-idx", Setup::EVENT_IDX | Setup::INDIRECT, 0),
        ("split-in-order", Setup::IN_ORDER | Setup::EVENT_IDX, 0),
        ("split-restored", Setup::RESTORED | Setup::INDIRECT, 0xfffe),
        ("packed", Setup::PACKED, 0),
        (
            "packed-event-idx",
            Setup::PACKED | Setup::EVENT_IDX | Setup::INDIRECT,
            0,
        ),
        ("packed-restored", Setup::PACKED | Setup::RESTORED, 0x8006),
    ] {
        let setup = setup(flags, 8, state);
        let mut seed = |what: &str, parts: &[&[Operation]]| {
            seeds.insert(
                format!("{name}-{what}.bin"),
                encode(&setup, &parts.concat()),
            );
        };
        seed(
            "serves",
            &[&log, &chain(0), &chain(2), &served(0x200), &served(64)],
        );
        seed("indirect", &[&log, &indirect(0), &served(0x300)]);
        seed(
            "gives-back",
            &[
                &chain(0),
                &chain(2),
                &[Pop, Pop, Unpop, Available, Pop, Unpop, Unpop],
            ],
        );
        seed(
            "moves",
            &[
                &log,
                &chain(0),
                &served(8),
                &chain(2),
                &[Pop, Move],
                &served(8),
                &[Move],
            ],
        );
        seed(
            "loses-maps",
            &[
                &chain(0),
                &[Remap { second: true }],
                &served(0x400),
                &[Remap { second: false }, Pop],
            ],
        );
        seed(
            "stays-quiet",
            &[
                &[Kicks { on: false }],
                &chain(0),
                &[Pop, Use { len: 0 }, Publish, Log { on: false }],
            ],
        );
        let singles: Vec<Operation> = (0..8)
            .flat_map(|head| {
                let buffer = descriptor(head, 0x3000, 64, WRITE, u16::from(head));
                [buffer, Operation::Offer { head }]
            })
            .collect();
        seed(
            "lines",
            &[
                &log,
                &singles,
                &[Pop, Pop, Unpop, Unpop, PopLine, Fill { len: 9 }, PopLine],
                &[UseLine { len: 9 }, Unpop, Use { len: 1 }, Publish],
                &singles,
                &[PopLine, UseLine { len: 0 }, Publish, Move, PopLine],
            ],
        );
        let loops = descriptor(0, 0x3000, 8, NEXT, 0);
        seed("loops", &[&[loops, Operation::Offer { head: 0 }, Pop]]);
        seed(
            "far",
            &[
                &[
                    descriptor(0, 0x8000, 8, WRITE, 0),
                    Operation::Offer { head: 0 },
                ],
                &served(8),
            ],
        );
    }
    seeds
}

#[test]
fn the_corpus_is_what_its_tests_write() {
    let seeds = seeds();
    if std::env::var_os("VDPA_NET_WRITE_CORPUS").is_some() {
        fs::create_dir_all(folder()).unwrap();
        for (name, bytes) in &seeds {
            fs::write(folder().join(name), bytes).unwrap();
        }
    }
    for (name, bytes) in seeds {
        assert_eq!(
            fs::read(folder().join(&name)).unwrap_or_default(),
            bytes,
            "{name}: VDPA_NET_WRITE_CORPUS=1 cargo test -p vdpa-net-fuzz-rings"
        );
    }
}

#[test]
fn every_file_of_the_corpus_runs() {
    let mut files = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        run(&fs::read(entry.unwrap().path()).unwrap());
        files += 1;
    }
    assert!(files >= 63, "{files} files");
}

#[test]
fn operations_survive_the_way_through_bytes() {
    for bytes in seeds().values() {
        let mut input = Input::new(bytes);
        let setup = Setup::read(&mut input);
        let mut again = Vec::new();
        setup.write(&mut again);
        while let Some(step) = Operation::read(&mut input) {
            step.write(&mut again);
        }
        assert_eq!(&again, bytes);
    }
}

#[test]
fn inputs_that_end_anywhere_run() {
    for bytes in seeds().values() {
        for end in 0..bytes.len() {
            run(&bytes[..end]);
        }
    }
}
