# SPDX-License-Identifier: Apache-2.0
"""The configuration space as an operating system's PCI code walks it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_dataplane import FakeRig

from vdpa_net.device.function import Bar
from vdpa_net.device.registers import RegisterBlock, Storage
from vdpa_net.errors import AccessError
from vdpa_net.migration.violations import ViolationLog
from vdpa_net.wire.layout import Register, RegisterMap

CONFIG = 7
CAPABILITY_IDS = {0x10: "pcie", 0x11: "msix", 0x09: "vendor"}


@pytest.fixture
def rig() -> Iterator[FakeRig]:
    made = FakeRig()
    yield made
    made.close()


def config(rig: FakeRig, offset: int, size: int) -> int:
    return int.from_bytes(rig.device.region_read(CONFIG, offset, size), "little")


def put(rig: FakeRig, offset: int, size: int, value: int) -> None:
    rig.device.region_write(CONFIG, offset, value.to_bytes(size, "little"))


def capabilities(rig: FakeRig) -> list[tuple[int, int]]:
    """(offset, id) of each capability in the list's order."""
    found = []
    at = config(rig, 0x34, 1)
    while at:
        assert at % 4 == 0
        assert at not in [offset for offset, _ in found], "the list has a loop"
        found.append((at, config(rig, at, 1)))
        at = config(rig, at + 1, 1)
    return found


def virtio_capability(rig: FakeRig, cfg_type: int) -> int:
    return next(at for at, kind in capabilities(rig) if kind == 9 and config(rig, at + 3, 1) == cfg_type)


def test_header_names_a_modern_virtio_net_function(rig: FakeRig) -> None:
    assert [config(rig, offset, 2) for offset in (0x0, 0x2, 0x2C, 0x2E)] == [0x1AF4, 0x1041, 0x1AF4, 0x1100]
    assert config(rig, 0x08, 1) == 1
    assert config(rig, 0x09, 4) & 0xFFFFFF == 0x020000
    assert config(rig, 0x0E, 1) == 0
    assert config(rig, 0x3D, 1) == 0, "no INTx pin: MSI-X only"
    assert config(rig, 0x06, 2) & 0x10, "status says that there is a capability list"


def test_read_only_header_fields_stay_as_they_are(rig: FakeRig) -> None:
    before = rig.device.region_read(CONFIG, 0, 4096)
    for offset in (0x00, 0x08, 0x2C, 0x30, 0x34, 0x40):
        put(rig, offset, 4, 0xFFFFFFFF)
    put(rig, 0x3D, 1, 0xFF)
    assert rig.device.region_read(CONFIG, 0, 4096) == before
    assert rig.kinds() == [], "PCI ignores such writes"


def test_command_keeps_its_writable_bits_only(rig: FakeRig) -> None:
    put(rig, 0x04, 2, 0xFFFF)
    assert config(rig, 0x04, 2) == 0x0547


def test_sizing_the_32_bit_msix_bar_finds_its_size(rig: FakeRig) -> None:
    put(rig, 0x14, 4, 0xFFFFFFFF)
    assert config(rig, 0x14, 4) == 0xFFFFF000
    put(rig, 0x14, 4, 0xFE00_0FFF)
    assert config(rig, 0x14, 4) == 0xFE00_0000


def test_sizing_a_64_bit_bar_finds_its_size(rig: FakeRig) -> None:
    size, kind, offset = 0x8000, 0xC, 0x20
    put(rig, offset, 4, 0xFFFFFFFF)
    put(rig, offset + 4, 4, 0xFFFFFFFF)
    mask = config(rig, offset, 4) | config(rig, offset + 4, 4) << 32
    assert mask & 0xF == kind
    assert (1 << 64) - (mask & ~0xF) == size
    info = rig.device.region_info(4)
    assert info is not None
    assert info.size == size
    put(rig, offset, 4, 0xFEB0_0000)
    put(rig, offset + 4, 4, 0x12)
    assert config(rig, offset, 4) == 0xFEB0_0000 | kind
    assert config(rig, offset + 4, 4) == 0x12


def test_bars_that_are_not_there_size_to_nothing(rig: FakeRig) -> None:
    for offset in (0x10, 0x18, 0x1C):
        put(rig, offset, 4, 0xFFFFFFFF)
        assert config(rig, offset, 4) == 0
    assert [index for index in range(9) if rig.device.region_info(index)] == [1, 4, 7]


def test_capability_list_has_pcie_msix_virtio_one_to_five_and_page_requests(rig: FakeRig) -> None:
    found = capabilities(rig)
    assert [CAPABILITY_IDS[kind] for _, kind in found] == ["pcie", "msix", *["vendor"] * 6]
    vendor = [config(rig, at + 3, 1) for at, kind in found if kind == 9]
    assert sorted(vendor) == [1, 2, 3, 4, 5, 9]
    ends = [at + config(rig, at + 2, 1) for at, kind in found if kind == 9]
    assert all(end <= 0x100 for end in ends)


def test_virtio_capabilities_put_the_regions_where_the_contract_does(rig: FakeRig) -> None:
    place = {
        kind: (config(rig, at + 4, 1), config(rig, at + 8, 4), config(rig, at + 12, 4))
        for kind, at in ((kind, virtio_capability(rig, kind)) for kind in (1, 2, 3, 4))
    }
    assert place == {
        1: (4, 0x0, 0x1000),
        2: (4, 0x3000, 0x1000),
        3: (4, 0x1000, 0x1000),
        4: (4, 0x2000, 0x1000),
    }
    notify = virtio_capability(rig, 2)
    assert config(rig, notify + 2, 1) == 20
    assert config(rig, notify + 16, 4) == 4


def test_pci_cfg_window_reads_and_writes_a_register(rig: FakeRig) -> None:
    window = virtio_capability(rig, 5)
    put(rig, window + 4, 1, 4)
    put(rig, window + 12, 4, 2)
    put(rig, window + 8, 4, 0x16)
    put(rig, window + 16, 2, 1)
    assert rig.device.region_read(4, 0x16, 2) == b"\1\0", "queue_select was written through the window"
    put(rig, window + 8, 4, 0x12)
    assert config(rig, window + 16, 2) == 3, "num_queues"
    assert rig.kinds() == []


@pytest.mark.parametrize(
    ("bar", "offset", "length"),
    [(4, 0x1, 2), (4, 0x0, 3), (4, 0x4000, 4), (1, 0x0, 4), (6, 0, 4), (4, 0xFFFFFFFC, 4)],
)
def test_window_to_somewhere_else_reads_zero_and_is_recorded(
    rig: FakeRig, bar: int, offset: int, length: int
) -> None:
    window = virtio_capability(rig, 5)
    put(rig, window + 4, 1, bar)
    put(rig, window + 12, 4, length)
    put(rig, window + 8, 4, offset)
    assert config(rig, window + 16, 4) == 0
    assert rig.kinds() == ["bad_pci_cfg_window"]


def test_reading_all_of_the_space_has_no_effect(rig: FakeRig) -> None:
    assert len(rig.device.region_read(CONFIG, 0, 4096)) == 4096
    assert rig.kinds() == []


def test_function_level_reset_resets_device_and_space(rig: FakeRig) -> None:
    rig.device.region_write(4, 0x14, b"\3")
    put(rig, 0x04, 2, 0x6)
    pcie = next(at for at, kind in capabilities(rig) if kind == 0x10)
    assert config(rig, pcie + 4, 4) >> 28 & 1, "FLR is advertised"
    put(rig, pcie + 8, 2, 0x8000)
    assert rig.device.region_read(4, 0x14, 1) == b"\0"
    assert config(rig, 0x04, 2) == 0
    assert config(rig, pcie + 8, 2) & 0x8000 == 0


def test_ats_is_there_with_ats_on_only_and_keeps_its_enable_bit() -> None:
    with_ats, without = FakeRig(ats=True), FakeRig()
    try:
        assert config(without, 0x100, 4) == 0
        assert config(with_ats, 0x100, 4) == 0x0001_000F
        put(with_ats, 0x106, 2, 0xFFFF)
        assert config(with_ats, 0x106, 2) == 0x801F
    finally:
        with_ats.close()
        without.close()


def test_access_outside_of_a_region_is_refused(rig: FakeRig) -> None:
    for index, offset, count in ((7, 4093, 4), (4, 0x8000, 1), (0, 0, 4), (9, 0, 1), (4, -4, 4)):
        with pytest.raises(AccessError):
            rig.device.region_read(index, offset, count)
        with pytest.raises(AccessError):
            rig.device.region_write(index, offset, bytes(count))


def test_without_vdpa_the_bar_ends_behind_the_doorbells() -> None:
    rig = FakeRig(vdpa=False)
    try:
        info = rig.device.region_info(4)
        assert info is not None
        assert info.size == 0x4000
    finally:
        rig.close()


def test_gaps_between_windows_of_a_bar_read_zero_and_record_writes() -> None:
    table = RegisterMap("block", (Register("all", 0, 8, reset=0x1122334455667788),))
    violations = ViolationLog()
    bar = Bar("bar0", 0x40, violations)
    for offset in (0x8, 0x18):
        bar.add(offset, 8, RegisterBlock(table, Storage(table), violations))
    block = (0x1122334455667788).to_bytes(8, "little")
    assert bar.read(0, 0x40) == (bytes(8) + block) * 2 + bytes(0x20)
    bar.write(0x14, bytes(8))
    assert bar.read(0x18, 8) == bytes(4) + block[4:]
    assert [(entry.where, entry.what) for entry in violations.entries] == [("bar0", "no_register")]


def expected_writable(rig: FakeRig) -> dict[int, int]:
    """Bits that PCI and virtio let a driver write, by offset of their doubleword."""
    places = {CAPABILITY_IDS[kind]: at for at, kind in capabilities(rig) if kind != 9}
    window = virtio_capability(rig, 5)
    return {
        0x04: 0x0547,
        0x0C: 0xFF,
        0x14: 0xFFFFF000,
        0x20: 0xFFFF8000,
        0x24: 0xFFFFFFFF,
        0x3C: 0xFF,
        places["pcie"] + 0x08: 0x7FFF,
        places["pcie"] + 0x10: 0x00C3,
        places["msix"] + 0x00: 0xC000 << 16,
        window + 0x04: 0xFF,
        window + 0x08: 0xFFFFFFFF,
        window + 0x0C: 0xFFFFFFFF,
        0x104: 0x801F << 16,
    }


def test_exactly_the_writable_bits_of_4096_bytes_change() -> None:
    rig = FakeRig(ats=True)
    expected = expected_writable(rig)
    data = virtio_capability(rig, 5) + 0x10
    flr = next(at for at, kind in capabilities(rig) if kind == 0x10) + 8
    changed = {}
    for offset in range(0, 4096, 4):
        if offset == data:
            continue  # it leads into the BARs
        before = config(rig, offset, 4)
        # All ones but for the bit that resets the function.
        put(rig, offset, 4, 0xFFFFFFFF if offset != flr else 0xFFFF7FFF)
        ones = config(rig, offset, 4)
        put(rig, offset, 4, 0)
        zeros = config(rig, offset, 4)
        put(rig, offset, 4, before)
        if ones != zeros:
            changed[offset] = ones ^ zeros
        assert ones & ~expected.get(offset, 0) == before & ~expected.get(offset, 0), f"{offset:#x}"
    assert changed == expected
    rig.close()
