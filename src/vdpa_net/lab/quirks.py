# SPDX-License-Identifier: Apache-2.0
"""What QEMU releases can't do, found here: the lab goes around it and says so, nothing is hidden.

Each was seen with 7.2.22 and is gone in 11.1.3; releases in between were not tried and are treated as 7.2.
"""

from __future__ import annotations

from vdpa_net.lab.accelerator import Version

_FIRST_SOUND: Version = (11, 0, 0)


def loses_writes_after_second_pass(version: Version, accel: str) -> bool:
    """TCG loses writes of the guest's CPU in migrations of more than two passes.

    Clearing dirty bits does not reach the write-enabled entries of the software TLB, so pages that are
    written again through them are not sent again. It happens with QEMU's own virtio-net just as well
    (docs/lab.md).
    """
    return accel == "tcg" and version < _FIRST_SOUND


def crashes_with_msix(version: Version, accel: str) -> bool:
    """Without KVM, vhost-user and MSI-X make QEMU follow a null pointer when the guest starts its NIC.

    virtio-pci looks up an interrupt route of KVM that was never made (kvm_virtio_pci_irqfd_use). A NIC
    without MSI-X vectors goes around it.
    """
    return accel == "tcg" and version < _FIRST_SOUND
