# SPDX-License-Identifier: Apache-2.0
"""Starts a converted domain under a real libvirtd: that of the lab image's Debian, on top of the image.

To be run as root in namespaces of its own (mounts and processes), with a directory for its files. This
machine's own libvirt may be older than the image's QEMU, and then loses its monitor.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from vdpa_net.lab import apt, guest, image
from vdpa_net.lab.guest import Guest
from vdpa_net.lab.network import GUEST_ADDRESS, LAB_ADDRESS, PREFIX_LENGTH, enter_private_network

PACKAGES = ("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients")
INSTALL_SECONDS = 600
SECONDS = 180
POLL_SECONDS = 0.2
RUN = Path("/run")
CONFIGURATION = 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\nnamespaces = []\n'
CONFIGURATION += 'cgroup_controllers = []\nremember_owner = 0\nstdio_handler = "file"\n'
BLOCK = """\
  <qemu:commandline>
    <qemu:arg value='-device'/>
    <qemu:arg value='intel-iommu,intremap=on,device-iotlb=on,aw-bits=48'/>
    <qemu:arg value='-netdev'/>
    <qemu:arg value='tap,id=hostnet1,script=no,downscript=no,vhost=off'/>
    <qemu:arg value='-device'/>
    <qemu:arg value='virtio-net-pci,netdev=hostnet1,id=net1,mac=56:4a:b7:4f:4d:a9,bus=pci.6,addr=0x0,iommu_platform=on,ats=on,vdpa=on'/>
  </qemu:commandline>
"""  # noqa: E501 - as the document has it


def domain(small: Guest) -> str:
    """A domain around the document's block, without KVM, with the lab's small guest."""
    words = {"address": f"{GUEST_ADDRESS}/{PREFIX_LENGTH}", "peer": LAB_ADDRESS}
    append = small.append("boot", "intel_iommu=on", **words)
    ports = "\n".join(f"    <controller type='pci' index='{n}' model='pcie-root-port'/>" for n in range(1, 7))
    return f"""\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>L1-src</name>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/run/guest/{small.kernel.name}</kernel>
    <initrd>/run/guest/{small.initrd.name}</initrd>
    <cmdline>{append}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='maximum'><feature policy='disable' name='la57'/></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='pci' index='0' model='pcie-root'/>
{ports}
    <serial type='file'><source path='/run/console'/></serial>
    <memballoon model='none'/>
  </devices>
{BLOCK}</domain>
"""


def run(*words: str, seconds: float = SECONDS) -> str:
    """Standard output of a command, which has to succeed."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, (
        f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def make_root(built: image.Image, directory: Path) -> Path:
    """The image's root with a layer of its own on top, and this machine's /run beside it. In memory."""
    layers, root = directory / "layers", directory / "root"
    for path in (layers, root):
        path.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", str(layers))
    for name in ("upper", "work"):
        (layers / name).mkdir()
    options = f"lowerdir={built.root},upperdir={layers / 'upper'},workdir={layers / 'work'}"
    run("mount", "-t", "overlay", "-o", options, "overlay", str(root))
    run("mount", "-t", "tmpfs", "tmpfs", str(RUN))
    for name in ("proc", "sys", "dev", "run"):
        run("mount", "--rbind", f"/{name}", str(root / name))
    return root


def install(root: Path) -> None:
    """libvirt into the root, from where the image came from."""
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
    settings = "".join(f"{option};\n" for option in (*image.APT_OPTIONS, *apt.network_options()))
    (root / "etc/apt/apt.conf.d/99lab").write_text(settings)
    environment = ("env", "DEBIAN_FRONTEND=noninteractive", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
    for words in (("update",), ("install", "--yes", *PACKAGES)):
        run("chroot", str(root), *environment, "apt-get", *words, seconds=INSTALL_SECONDS)
    (root / "etc/libvirt/qemu.conf").write_text(CONFIGURATION)


@contextlib.contextmanager
def running(log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process while the context lasts; what it prints goes to a file."""
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(SECONDS)


def await_text(path: Path, text: str) -> None:
    """Return when a file has this text; files that grow tell nobody."""
    deadline = time.monotonic() + SECONDS
    while text not in (found := path.read_text(errors="replace") if path.exists() else ""):
        assert time.monotonic() < deadline, f"{path} has no {text!r}:\n{found[-3000:]}"
        time.sleep(POLL_SECONDS)


def await_libvirt(root: Path) -> None:
    """Return when libvirtd answers."""
    deadline = time.monotonic() + SECONDS
    while True:
        words = ("chroot", str(root), "virsh", "--connect", "qemu:///system", "version")
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode == 0:
            print(done.stdout)
            return
        assert time.monotonic() < deadline, done.stderr
        time.sleep(POLL_SECONDS)


def main(directory: Path) -> None:
    built = image.require()
    small = guest.build(built)
    root = make_root(built, directory)
    install(root)
    enter_private_network()
    (RUN / "guest").mkdir()
    for path in (small.kernel, small.initrd):
        shutil.copyfile(path, RUN / "guest" / path.name)
    source = directory / "IN.xml"
    source.write_text(domain(small))
    output = directory / "converted"
    vdpa_net = (sys.executable, "-m", "vdpa_net")
    run(*vdpa_net, "libvirt", "convert", str(source), "--output", str(output))
    (RUN / "vdpa-net").mkdir()
    shutil.copyfile(output / "L1-src.xml", RUN / "L1-src.xml")
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    virsh = ("chroot", str(root), "virsh", "--connect", "qemu:///system")
    serve, libvirtd = directory / "serve.log", directory / "libvirtd.log"
    with (
        running(serve, "sh", str(output / "L1-src-net1.sh")),
        running(libvirtd, "chroot", str(root), "/usr/sbin/libvirtd"),
    ):
        await_text(serve, "listening on")
        run("ip", "link", "set", "tap0", "up")
        run("ip", "address", "add", f"{LAB_ADDRESS}/{PREFIX_LENGTH}", "dev", "tap0")
        await_libvirt(root)
        run(*virsh, "define", "/run/L1-src.xml")
        run(*virsh, "start", "L1-src")
        await_text(RUN / "console", "20 packets received")
        console = (RUN / "console").read_text(errors="replace")
        assert "LAB driver virtio_net" in console, console
        assert "LAB mac 56:4a:b7:4f:4d:a9" in console, console
        assert "LAB iommu dmar" in console, console
        assert run(*virsh, "domstate", "L1-src").strip() == "running"
        run(*virsh, "destroy", "L1-src")
    print("the domain has run, and its guest has answered through the served device")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
