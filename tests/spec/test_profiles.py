# SPDX-License-Identifier: Apache-2.0
"""Layouts of the LM block other than the document's: what IFC's own drivers expect, and a user's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from spec.direct import BASE, CTRL, END, LOG_IOVA, TX, Handle, Rig, rig
from vdpa_net.driver.pci_scan import scan
from vdpa_net.driver.vdpa_driver import VdpaDriver
from vdpa_net.errors import OptionError, ProtocolError
from vdpa_net.profiles import find_profile
from vdpa_net.wire import pci, virtio_pci
from vdpa_net.wire.lm import IFCVF, IFCVF_LINUX, PROFILES, VDPA, Profile, ring_state_name
from vdpa_net.wire.virtio_pci import COMMON_CFG

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAIRS_REGISTER = 0x28


@pytest.fixture(params=["ifcvf", "ifcvf-linux"])
def ifc(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with rig(profile=request.param) as made:
        yield made


@pytest.fixture
def dpdk() -> Iterator[Rig]:
    with rig(profile="ifcvf") as made:
        yield made


@pytest.fixture
def linux() -> Iterator[Rig]:
    with rig(profile="ifcvf-linux") as made:
        yield made


def config(made: Rig, offset: int, size: int) -> int:
    return int.from_bytes(made.device.region_read(pci.CONFIG_REGION, offset, size), "little")


def capability(made: Rig, wanted: int) -> int:
    at = config(made, pci.HEADER["capabilities_pointer"].offset, 1)
    while config(made, at, 1) != wanted:
        at = config(made, at + 1, 1)
    return at


class TestPlace:
    def test_function_has_the_ids_that_both_drivers_look_for(self, ifc: Rig) -> None:
        """1af4:1041, subsystem 8086:001a."""
        assert [config(ifc, at, 2) for at in (0, 2, 0x2C, 0x2E)] == [0x1AF4, 0x1041, 0x8086, 0x001A]

    def test_virtio_regions_are_in_bar_0_and_fit_it(self, ifc: Rig) -> None:
        for kind in range(virtio_pci.CAP_COMMON_CFG, virtio_pci.CAP_DEVICE_CFG + 1):
            place = ifc.driver.capabilities[kind]
            info = ifc.device.region_info(0)
            assert info is not None
            assert place.region == 0
            assert place.offset + place.length <= info.size
        assert ifc.driver.capabilities[virtio_pci.CAP_NOTIFY_CFG].multiplier == 4

    def test_bars_0_2_and_4_are_there_and_no_others(self, ifc: Rig) -> None:
        """Linux' driver maps these three and gives up if one is missing."""
        sizes = {}
        for bar in range(pci.BAR_COUNT):
            info = ifc.device.region_info(bar)
            if info is not None:
                sizes[bar] = info.size
        assert sorted(sizes) == [0, 2, 4]
        assert all(size >= 4096 and size & (size - 1) == 0 for size in sizes.values())
        kinds = {bar: config(ifc, pci.BAR_BASE + 4 * bar, 4) & 0xF for bar in sizes}
        assert kinds == {0: 0xC, 2: 0x0, 4: 0x4}, "64 bits prefetchable, 32 bits, 64 bits"

    def test_msix_is_in_bar_2(self, ifc: Rig) -> None:
        at = capability(ifc, pci.CAP_ID_MSIX)
        assert config(ifc, at + 4, 4) & 7 == 2
        assert config(ifc, at + 8, 4) & 7 == 2

    def test_lm_block_lies_alone_at_offset_0_of_bar_4(self, ifc: Rig) -> None:
        ifc.device.region_write(4, 0x10, (0x1234_5000).to_bytes(4, "little"))
        assert ifc.read(BASE) == 0x1234_5000
        assert ifc.device.region_read(0, 0x4000 - 8, 8) == bytes(8)
        info = ifc.device.region_info(0)
        assert info is not None
        assert info.size == 0x4000

    def test_ring_state_of_dpdk_has_a_stride_of_0x40_per_pair(self, dpdk: Rig) -> None:
        for queue, place in ((0, 0x20), (1, 0x24), (2, 0x60)):
            dpdk.write(place, 0x0005_0005 + queue)
            assert dpdk.device.snapshot()["lm"][ring_state_name(queue)] == 0x0005_0005 + queue  # type: ignore[index]
        assert dpdk.kinds() == []
        assert IFCVF.ring_state(2 * 31 + 1) == 0x20 + 31 * 0x40 + 4

    def test_ring_state_of_linux_has_4_bytes_per_queue(self, linux: Rig) -> None:
        assert [IFCVF_LINUX.ring_state(queue) for queue in (0, 1, 2, 63)] == [0x20, 0x24, 0x28, 0x20 + 4 * 63]
        linux.write(0x28, 0x0007_0007)
        assert linux.device.snapshot()["lm"][ring_state_name(2)] == 0x0007_0007  # type: ignore[index]

    def test_layouts_agree_for_queues_0_and_1_alone(self) -> None:
        same = [
            queue
            for queue in range(IFCVF.max_queues)
            if len({profile.ring_state(queue) for profile in PROFILES.values()}) == 1
        ]
        assert same == [0, 1]

    @pytest.mark.parametrize("profile", [IFCVF, IFCVF_LINUX])
    def test_there_is_room_for_32_pairs_and_the_control_queue(self, profile: Profile) -> None:
        assert profile.max_queues == 2 * 32 + 1
        with pytest.raises(OptionError, match="0 to 64"):
            profile.ring_state(65)

    def test_third_queue_is_shown_so_that_dpdk_offers_a_pair(self, dpdk: Rig) -> None:
        assert (dpdk.common("num_queues") - 1) // 2 == 1

    def test_device_without_the_third_queue_is_refused(self) -> None:
        with pytest.raises(OptionError, match="profile ifcvf needs ctrl_vq=on"):
            Rig(profile="ifcvf", disabled_features=frozenset({"ctrl_vq"}))

    def test_with_vdpa_off_the_lm_bar_is_absent(self) -> None:
        with rig(profile="ifcvf", vdpa=False) as plain:
            assert plain.device.region_info(4) is None


class TestRegisters:
    @pytest.mark.parametrize("on", [1, 3])
    def test_logging_ctrl_takes_1_and_3_as_on(self, ifc: Rig, on: int) -> None:
        end = ifc.map_log()
        ifc.write(BASE, LOG_IOVA, 8)
        ifc.write(END, end, 8)
        ifc.write(CTRL, on)
        assert ifc.read(CTRL) == on
        assert ifc.device.space.log_range() == (LOG_IOVA, end)
        ifc.write(CTRL, 2)
        assert ifc.read(CTRL) == on
        assert ifc.kinds() == ["bad_logging_ctrl"]
        ifc.write(CTRL, 0)
        assert ifc.device.space.log_range() is None

    def test_vdpa_does_not_take_3(self) -> None:
        assert VDPA.logging_on == (1,)

    def test_pairs_register_keeps_what_the_driver_enables(self, dpdk: Rig) -> None:
        told = []
        dpdk.device.on_event(lambda name, info: told.append(info["pairs"]) if name == "queue_pairs" else None)
        dpdk.write(PAIRS_REGISTER, 1)
        assert dpdk.read(PAIRS_REGISTER) == 1
        assert told == [1]
        dpdk.set_common("device_status", 0)
        assert dpdk.read(PAIRS_REGISTER) == 0

    def test_more_pairs_than_there_are_is_a_violation_without_effect(self, dpdk: Rig) -> None:
        dpdk.write(PAIRS_REGISTER, 1)
        dpdk.write(PAIRS_REGISTER, 2)
        assert dpdk.read(PAIRS_REGISTER) == 1
        assert dpdk.kinds() == ["bad_queue_pairs"]
        assert not dpdk.common("device_status") & virtio_pci.Status.DEVICE_NEEDS_RESET

    def test_two_byte_write_sets_that_half(self, ifc: Rig) -> None:
        ifc.write(0x20, 0x1111_2222)
        ifc.write(0x20, 0x3333, 2)
        assert ifc.read(0x20) == 0x1111_3333
        ifc.write(0x22, 0x4444, 2)
        assert ifc.read(0x20) == 0x4444_3333


class BeforeEnable(Handle):
    """Writes LM_RING_STATE as `writes` say, (offset in it, value, width), before a queue is enabled."""

    def __init__(self, made: Rig, writes: list[tuple[int, int, int]]) -> None:
        super().__init__(made.device)
        self._made = made
        self._writes = writes
        self._queue = 0

    def write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        if region == self._made.profile.virtio_bar and offset == COMMON_CFG["queue_select"].offset:
            self._queue = int.from_bytes(data, "little")
        if region == self._made.profile.virtio_bar and offset == COMMON_CFG["queue_enable"].offset:
            for at, value, width in self._writes if self._queue <= TX else []:
                self._made.write(self._made.profile.ring_state(self._queue) + at, value, width)
        super().write(region, offset, data, posted=posted)


class TestAvailAlone:
    """If only avail was written, used is taken from the ring."""

    @pytest.mark.parametrize("index", [5, 0xFFFE])
    def test_used_idx_is_taken_from_the_ring(self, index: int) -> None:
        with rig(profile="ifcvf-linux", first_index=index) as linux:
            linux.driver.handle = BeforeEnable(linux, [(0, index, 2)])
            linux.driver.start()
            assert linux.read(linux.profile.ring_state(TX)) == index << 16 | index
            linux.exchange()
            assert linux.kinds() == []
            final = linux.stop(TX)
            assert final & 0xFFFF == final >> 16 == (index + 4) & 0xFFFF

    def test_used_half_that_was_written_too_counts(self) -> None:
        """And it does not agree with the ring, which is told."""
        with rig(profile="ifcvf-linux", first_index=8) as linux:
            linux.driver.handle = BeforeEnable(linux, [(0, 9, 2), (2, 9, 2), (0, 8, 2)])
            linux.driver.start()
            assert "used_idx" in linux.kinds()

    def test_other_layouts_take_the_half_as_it_is(self) -> None:
        with rig(profile="ifcvf", first_index=8) as dpdk:
            dpdk.driver.handle = BeforeEnable(dpdk, [(0, 8, 2)])
            dpdk.driver.start()
            assert "used_idx" in dpdk.kinds()


class TestDriver:
    @pytest.mark.parametrize(
        ("name", "found"), [("vdpa", "vdpa"), ("ifcvf", "ifcvf"), ("ifcvf-linux", "ifcvf")]
    )
    def test_layout_is_known_from_the_subsystem_id(self, name: str, found: str) -> None:
        with rig(profile=name) as made:
            assert scan(made.driver.handle).profile.name == found

    def test_driver_can_be_told_another_one(self, linux: Rig) -> None:
        function = scan(linux.driver.handle, IFCVF_LINUX)
        assert function.profile == IFCVF_LINUX
        assert (function.lm.region, function.lm.offset) == (4, 0)

    def test_wrong_one_is_found_out_where_it_can_be(self, dpdk: Rig) -> None:
        with pytest.raises(ProtocolError, match="another profile"):
            VdpaDriver(dpdk.driver.handle, VDPA)

    def test_unknown_subsystem_id_asks_for_a_profile(self) -> None:
        own = Profile("own", 0x1234, 0x5678, 0, 2, 4, max_queues=8)
        with rig(profile=own) as made:
            with pytest.raises(OptionError, match=r"1234:5678.*8086:001a"):
                scan(made.driver.handle)
            assert scan(made.driver.handle, own).lm.region == 4


class TestOwnProfile:
    def test_example_of_the_documentation_works(self) -> None:
        (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "profiles.md").read_text(), re.DOTALL)
        names: dict[str, object] = {}
        exec(code, names)
        assert isinstance(names["IFCVF_2020"], Profile)

    def test_table_of_the_documentation_names_every_built_in_profile(self) -> None:
        header = next(
            line for line in (DOCS / "profiles.md").read_text().splitlines() if line.startswith("| |")
        )
        assert re.findall(r"`(.+?)`", header) == list(PROFILES)

    def test_command_line_takes_a_module_of_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code = (
            "from vdpa_net import Profile\nMINE = Profile('mine', 1, 2, 0, 2, 4, max_queues=8)\nOTHER = 3\n"
        )
        (tmp_path / "layouts_of_a_test.py").write_text(code)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.path", ["/nowhere"])
        assert find_profile("layouts_of_a_test:MINE").name == "mine"
        assert find_profile("ifcvf") is IFCVF
        for text, message in (
            ("ifc", "there are vdpa, ifcvf, ifcvf-linux"),
            ("layouts_of_a_test:THEIRS", "THEIRS"),
            ("layouts_of_a_test:OTHER", "it is a int"),
            ("no_such_module:X", "No module"),
            (":X", "--profile :X"),
        ):
            with pytest.raises(OptionError, match=message):
                find_profile(text)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"msix_bar": 1}, "a 64-bit BAR takes the next one"),
            ({"lm_bar": 2}, "BARs of their own"),
            ({"lm_bar": 5}, "0 to 5"),
            ({"virtio_bar": -1}, "0 to 5"),
            ({"ring_state_offset": 0x1C}, "overlap"),
            ({"queue_stride": 2}, "overlap"),
            ({"pairs_register": 0x20}, "overlap"),
            ({"pairs_register": 0x2A, "pair_stride": 0x40}, "multiples of 4"),
            ({"logging_on": ()}, "1 to 15"),
            ({"logging_on": (1, 16)}, "1 to 15"),
            ({"max_queues": 1025}, "2 to 1024"),
            ({"subsystem_id": 0x10000}, "16 bits"),
        ],
    )
    def test_parts_that_do_not_go_together_are_refused(self, change: dict[str, object], message: str) -> None:
        fields: dict[str, object] = {
            "name": "own",
            "subsystem_vendor_id": 1,
            "subsystem_id": 2,
            "virtio_bar": 0,
            "msix_bar": 2,
            "lm_bar": 4,
            "max_queues": 8,
        }
        with pytest.raises(OptionError, match=f"profile own.*{message}"):
            Profile(**{**fields, **change})  # type: ignore[arg-type]

    def test_device_with_more_queues_than_the_layout_is_refused(self) -> None:
        narrow = Profile("narrow", 1, 2, 0, 2, 4, max_queues=2)
        with pytest.raises(OptionError, match="room for 2 queues"):
            Rig(profile=narrow)
