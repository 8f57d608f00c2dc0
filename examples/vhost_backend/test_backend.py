# SPDX-License-Identifier: Apache-2.0
"""How another project tests that guests on its vhost-user back end can be migrated.

    pytest examples/vhost_backend
    BACKEND='my-backend --socket {socket} --loopback' pytest examples/vhost_backend
    pytest examples/vhost_backend --vhost-sockets /run/a.sock,/run/b.sock

The back end has to send back what it is sent. Here it is vdpa-net's own, as if it were somebody else's.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdpa_net.testing.pytest_plugin import VhostMigration

BACKEND = os.environ.get(
    "BACKEND",
    f"{sys.executable} -m vdpa_net vhost --vhost-socket {{socket}} --netdev loopback,id=n0"
    " --device virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01,vdpa=on",
)


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two back ends, one on each side of the migration."""
    paths = (tmp_path / "source.sock", tmp_path / "destination.sock")
    processes = [subprocess.Popen(shlex.split(BACKEND.format(socket=path))) for path in paths]
    yield paths
    for process in processes:
        process.terminate()
        process.wait(timeout=10)


def test_a_guest_loses_nothing_when_it_migrates(
    sockets: tuple[Path, Path], vhost_migration: VhostMigration
) -> None:
    verdict = vhost_migration(*sockets, rounds=2)
    print(verdict.context)


def test_back_ends_that_run_already(
    vhost_sockets: tuple[Path, Path], vhost_migration: VhostMigration
) -> None:
    vhost_migration(*vhost_sockets)
