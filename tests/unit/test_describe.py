# SPDX-License-Identifier: Apache-2.0
"""Register values in words."""

import pytest

from vdpa_net.wire import pci, virtio_net, virtio_pci
from vdpa_net.wire.describe import DESCRIPTIONS, describe
from vdpa_net.wire.lm import PACKED_STATE, PROFILES, Profile, pack_ring_state


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("common_cfg.device_status", 0x4F, "ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK|DEVICE_NEEDS_RESET"),
        ("common_cfg.device_status", 0x10, "0x10"),
        ("common_cfg.queue_msix_vector[q2]", 0xFFFF, "no vector"),
        ("common_cfg.queue_msix_vector", 3, "vector 3"),
        ("config.pci.command", 0x406, "MEMORY|BUS_MASTER|INTX_DISABLE"),
        ("config.msix.message_control", 0xC003, "ENABLE|MASK_ALL table_size=4"),
        ("config.pcie.device_control", 0x8000, "INITIATE_FLR"),
        ("config.ats.control", 0x8005, "ENABLE=1 STU=5"),
        ("config.virtio4.cfg_type", 4, "DEVICE_CFG"),
        ("device_cfg.mac", 0x563412005452, "52:54:00:12:34:56"),
        ("device_cfg.status", 3, "LINK_UP|ANNOUNCE"),
        ("isr.isr_status", 0, "none"),
        ("lm.LM_LOGGING_CTRL", 3, "on"),
        ("lm.LM_LOGGING_CTRL", 7, "neither on nor off"),
        ("lm.LM_RING_STATE[7]", 0x00050007, "last_avail_idx=7 used_idx=5"),
        ("common_cfg.queue_size", 256, ""),
    ],
)
def test_values_in_words(name: str, value: int, expected: str) -> None:
    assert describe(name, value) == expected


def test_the_ring_state_of_a_packed_ring_is_indices_and_wrap_counters() -> None:
    value = pack_ring_state(0x8007, 0x0005)
    told = "last_avail_idx=7 last_avail_wrap_counter=1 used_idx=5 used_wrap_counter=0"
    assert describe("lm.LM_RING_STATE[1]", value, packed=True) == told
    assert describe("common_cfg.queue_msix_vector", 3, packed=True) == "vector 3"


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_the_fields_of_a_register_lie_in_it_and_apart(profile: Profile) -> None:
    tables = (profile.registers, pci.MSIX_CAPABILITY, pci.ATS_CAPABILITY)
    listed = [(item.fields, 8 * item.width) for table in tables for item in table]
    for fields, bits in [*listed, (PACKED_STATE, 32)]:
        taken = [bit for field in fields for bit in range(field.low, field.low + field.width)]
        assert len(taken) == len(set(taken))
        assert all(0 <= bit < bits for bit in taken)


def test_every_description_is_of_a_register_that_exists() -> None:
    tables = {
        "common_cfg": virtio_pci.COMMON_CFG,
        "isr": virtio_pci.ISR,
        "device_cfg": virtio_net.DEVICE_CFG,
        "msix_table": pci.msix_table(1),
        "lm": PROFILES["vdpa"].registers,
        "config.pci": pci.HEADER,
        "config.msix": pci.MSIX_CAPABILITY,
        "config.pcie": pci.PCIE_CAPABILITY,
        "config.ats": pci.ATS_CAPABILITY,
        **{f"config.virtio{number}": virtio_pci.VIRTIO_CAPABILITY for number in range(1, 6)},
    }
    for name in DESCRIPTIONS:
        block, _, register = name.rpartition(".")
        assert register in {item.name.partition("[")[0] for item in tables[block]}, name
