# SPDX-License-Identifier: Apache-2.0
"""The device configuration as a vhost-user front end sees it: GET_CONFIG, SET_CONFIG and NET_SET_MTU.

The fields of a network device are read-only to its driver (virtio 1.3, 5.1.4.2), so nothing is ever written
to the device. What a migration brings along (SET_CONFIG with the migration flag) lies over the device's own
values for this front end, after it was checked against what the device can do.
"""

from __future__ import annotations

from vdpa_net.driver.vdpa_driver import VdpaDriver
from vdpa_net.errors import ProtocolError
from vdpa_net.wire import virtio_net
from vdpa_net.wire.vhost_user import MAX_CONFIG_BYTES


class VhostConfig:
    """Configuration of one device for one front end at a time."""

    def __init__(self, driver: VdpaDriver) -> None:
        self._driver = driver
        self._migrated: bytes | None = None

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes; fields that the device does not have read 0. Raises ProtocolError behind byte 255."""
        self._check_range("GET_CONFIG", offset, size)
        return self._all()[offset : offset + size]

    def write(self, offset: int, data: bytes, *, migration: bool) -> None:
        """SET_CONFIG. Raises ProtocolError; without `migration` always, as the guest may write no field."""
        self._check_range("SET_CONFIG", offset, len(data))
        if not migration:
            raise ProtocolError(
                f"SET_CONFIG: {len(data)} bytes at {offset} without the migration flag: every field of a "
                f"network device is read-only (virtio 1.3, 5.1.4.2)"
            )
        merged = bytearray(self._all())
        merged[offset : offset + len(data)] = data
        self._check_fields(bytes(merged))
        self._migrated = bytes(merged)

    def check_mtu(self, mtu: int) -> None:
        """NET_SET_MTU. Raises ProtocolError for what virtio or the device's own MTU does not allow."""
        limit = _field(self._own(), "mtu") or virtio_net.MTU_MAX
        if not virtio_net.MTU_MIN <= mtu <= limit:
            raise ProtocolError(
                f"NET_SET_MTU: {mtu} bytes, expected {virtio_net.MTU_MIN} to {limit}, the device's own"
            )

    def reset(self) -> None:
        """The device's own values again."""
        self._migrated = None

    def _own(self) -> bytes:
        return self._driver.device_config().ljust(MAX_CONFIG_BYTES, b"\0")

    def _all(self) -> bytes:
        return self._own() if self._migrated is None else self._migrated

    def _check_fields(self, merged: bytes) -> None:
        own = self._own()
        for name in ("mtu", "max_virtqueue_pairs"):
            wanted, limit = _field(merged, name), _field(own, name)
            if limit and wanted > limit:
                raise ProtocolError(f"SET_CONFIG: {name} {wanted}, the device has {limit}")
        if merged[0] & 1:
            raise ProtocolError(f"SET_CONFIG: {merged[:6].hex(':')} is the MAC address of no station")

    @staticmethod
    def _check_range(message: str, offset: int, size: int) -> None:
        if offset + size > MAX_CONFIG_BYTES:
            raise ProtocolError(
                f"{message}: {size} bytes at {offset}, the configuration has {MAX_CONFIG_BYTES} bytes"
            )


def _field(config: bytes, name: str) -> int:
    register = virtio_net.DEVICE_CFG[name]
    return int.from_bytes(config[register.offset : register.offset + register.width], "little")
