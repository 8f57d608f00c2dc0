# SPDX-License-Identifier: Apache-2.0
"""What `vdpa-net libvirt convert` writes, under a real libvirtd."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import require_tool

RUN_SECONDS = 1500

pytestmark = [pytest.mark.vm, pytest.mark.exhaustive, pytest.mark.timeout(RUN_SECONDS + 60)]


def test_domain_with_the_documents_block_starts_once_it_is_converted(socket_dir: Path) -> None:
    script = Path(__file__).parent / "run_libvirt.py"
    apart = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    # The first process of the namespace has to reap what libvirtd leaves to it.
    first = ("sh", "-c", '"$@" & wait $!', "sh")
    words = [require_tool("unshare"), *apart, *first, sys.executable, str(script), str(socket_dir)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    printed = done.stdout + done.stderr
    logs = [path.read_text(errors="replace") for path in sorted(socket_dir.glob("*.log"))]
    assert done.returncode == 0, "\n".join([printed, *logs])
    assert "its guest has answered through the served device" in printed
