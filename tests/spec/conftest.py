# SPDX-License-Identifier: Apache-2.0
"""What most spec tests begin with: a device that is reached by its registers alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spec.direct import Rig, rig


@pytest.fixture
def device() -> Iterator[Rig]:
    """A device after its reset."""
    with rig() as made:
        yield made


@pytest.fixture
def running() -> Iterator[Rig]:
    """A device with a driver whose queues run."""
    with rig() as made:
        made.driver.start()
        yield made
