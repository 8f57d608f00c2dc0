# SPDX-License-Identifier: Apache-2.0
"""The user's own guest: how the traffic agent gets into it.

The user's initramfs gets a second cpio archive behind it, the user's disk image a second disk that is a tar
archive. Either holds `vdpa-net/agent` (a static program) and `vdpa-net/start`, which gives the NIC its
address and runs the agent: the guest has to run it once its network driver is loaded. The user's files stay
as they are.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from vdpa_net.errors import LabError
from vdpa_net.lab.cpio import Archive
from vdpa_net.lab.guest import Guest, agent_binary

FOLDER = "vdpa-net"


@dataclass(frozen=True)
class StartScript:
    """What `vdpa-net/start` is told. `address` has its prefix length; `agent_words` are more arguments."""

    mac: str
    address: str
    peer: str
    port: int
    agent_words: str = ""

    def text(self) -> str:
        """The script, for any POSIX shell with `ip`."""
        host = self.address.partition("/")[0]
        return f"""#!/bin/sh
# Gives the NIC that vdpa-net migrates its address, and runs the agent of the lab's traffic.
for nic in /sys/class/net/*; do
    [ "$(cat "$nic/address")" = {self.mac} ] && name=${{nic##*/}}
done
# Bursts (the end of a migration) must not be lost in the guest's own sockets.
echo 8388608 >/proc/sys/net/core/rmem_default
# fq_codel, the usual one, drops packets of its own accord when the NIC is slow.
echo pfifo_fast >/proc/sys/net/core/default_qdisc
ip link set "$name" up
ip address add {self.address} dev "$name"
exec "${{0%/*}}/agent" traffic --bind {host}:{self.port} --peer {self.peer}:{self.port} {self.agent_words}
"""


def own_guest(kernel: Path, initrd: Path | None, small: Guest, script: StartScript, directory: Path) -> Guest:
    """The user's kernel, with the user's initramfs and the agent behind it, or with the lab's initramfs."""
    if initrd is None:
        return Guest(kernel, small.initrd)
    archive = Archive()
    archive.add_directory(FOLDER)
    archive.add_file(f"{FOLDER}/agent", agent_binary().read_bytes(), executable=True)
    archive.add_file(f"{FOLDER}/start", script.text().encode(), executable=True)
    joined = directory / "initrd"
    content = initrd.read_bytes()
    # The kernel looks for the next archive at a multiple of four bytes.
    joined.write_bytes(content + bytes(-len(content) % 4) + archive.to_bytes())
    return Guest(kernel, joined)


def agent_disk(script: StartScript, directory: Path) -> Path:
    """A tar archive with the agent, to be attached as a disk."""
    path = directory / "agent.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (("agent", agent_binary().read_bytes()), ("start", script.text().encode())):
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return path


def throw_away_copy(image: Path, directory: Path) -> Path:
    """A copy of a disk image that the guest may write to; sparse where the file system can."""
    copy = directory / f"disk{image.suffix}"
    tool = shutil.which("cp")
    if tool is None:
        raise LabError("the command cp is needed to copy a disk image")
    subprocess.run([tool, "--reflink=auto", "--sparse=always", str(image), str(copy)], check=True)
    return copy
