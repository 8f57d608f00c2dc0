# SPDX-License-Identifier: Apache-2.0
"""The lab's network for a user who is not root: in a user namespace where the kernel allows it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import ctypes, os
from pyroute2 import IPRoute
from vdpa_net.errors import LabError
from vdpa_net.lab.network import LabNetwork, enter_private_network

IPRoute().close()
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    # A process that has changed its user may not write its own maps in /proc otherwise.
    PR_SET_DUMPABLE = 4
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
try:
    enter_private_network()
except LabError as error:
    print("refused:", error)
else:
    with LabNetwork() as network:
        print("made:", network.bridge, "as user", os.geteuid(), network.counters("lo")["rx_dropped"])
"""


def test_a_user_without_root_gets_a_network_or_is_told_what_the_kernel_lacks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("refused:"):
        assert "user.max_user_namespaces" in done.stdout
    else:
        assert done.stdout.startswith("made: lab0 as user 0 ")
