# SPDX-License-Identifier: Apache-2.0
"""Page requests: registers by which a device asks its driver for maps that it misses.

A device whose guest has an IOMMU can't know in advance what the guest will let it use, and neither VFIO nor
vfio-user has a message for a missing map. So this is the device's own extension (docs/lm-registers.md), told
about by a vendor data capability (virtio 1.3, 4.1.4.8), which drivers that do not know it leave alone.
"""

from __future__ import annotations

from typing import Final

from vdpa_net.wire.layout import Access, Register, RegisterMap
from vdpa_net.wire.pci import CAP_ID_VENDOR
from vdpa_net.wire.virtio_pci import CAP_VENDOR_CFG, MSI_NO_VECTOR

DATA_KIND: Final = 0x5150
"""`kind` of the vendor data capability of a device with page requests ("PQ")."""

ON: Final = 1
"""PRQ_CTRL: a queue that misses a map waits and asks; 0: such an access is a fault."""

VALID: Final = 1 << 0
"""PRQ_REQUEST: there is a request. 0: there was none."""

WRITE: Final = 1 << 1
"""PRQ_REQUEST and PRQ_ANSWER: the page has to be writable."""

REFUSED: Final = 1 << 2
"""PRQ_ANSWER: the page will not be mapped. 0: nothing came of the request, who needs the page asks again."""

PAGE_MASK: Final = ~0xFFF & (1 << 64) - 1
"""The page's IOVA, in requests and answers."""

_CAPABILITY = "4.1.4.8"

CAPABILITY: Final = RegisterMap(
    "page_requests_cap",
    (
        Register("cap_vndr", 0x0, 1, Access.RO, reset=CAP_ID_VENDOR, clause=_CAPABILITY),
        Register("cap_next", 0x1, 1, Access.RO, clause=_CAPABILITY),
        Register("cap_len", 0x2, 1, Access.RO, reset=16, clause=_CAPABILITY),
        Register("cfg_type", 0x3, 1, Access.RO, reset=CAP_VENDOR_CFG, clause=_CAPABILITY),
        Register("vendor_id", 0x4, 2, Access.RO, clause=_CAPABILITY),
        Register("kind", 0x6, 2, Access.RO, reset=DATA_KIND, clause="page requests"),
        Register("bar", 0x8, 4, Access.RO, clause="page requests"),
        Register("offset", 0xC, 4, Access.RO, clause="page requests"),
    ),
)

PAGE_REQUESTS: Final = RegisterMap(
    "page_requests",
    (
        Register("PRQ_CTRL", 0x00, 4, clause="PRQ_CTRL"),
        Register("PRQ_VECTOR", 0x04, 4, reset=MSI_NO_VECTOR, clause="PRQ_VECTOR"),
        Register("PRQ_REQUEST_LOW", 0x08, 4, Access.RO, clause="PRQ_REQUEST"),
        Register("PRQ_REQUEST_HIGH", 0x0C, 4, Access.RO, clause="PRQ_REQUEST"),
        Register("PRQ_ANSWER_LOW", 0x10, 4, clause="PRQ_ANSWER"),
        Register("PRQ_ANSWER_HIGH", 0x14, 4, clause="PRQ_ANSWER"),
    ),
)
