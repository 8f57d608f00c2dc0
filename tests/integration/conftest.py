# SPDX-License-Identifier: Apache-2.0
"""A vhost-user back end on a device in this process, and a guest that is connected to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.vhost_steps import connected_guest
from vdpa_net.testing.vhost_guest import MAC, VhostGuest
from vdpa_net.testing.vhost_side import VhostSide


@pytest.fixture
def side(tmp_path: Path) -> Iterator[VhostSide]:
    with VhostSide(tmp_path / "vhost", MAC) as made:
        yield made


@pytest.fixture
def guest(side: VhostSide) -> Iterator[VhostGuest]:
    with connected_guest(side) as made:
        yield made
