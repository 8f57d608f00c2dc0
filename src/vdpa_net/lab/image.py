# SPDX-License-Identifier: Apache-2.0
"""The lab image: one Debian root file system in the user's cache.

It gives the lab a QEMU that is new enough, a stock kernel with its modules, the tools of small guests, and
the root of larger ones. It is built by mmdebstrap from the machine's own Debian mirror; nothing is installed
into the host. A finished image is never changed: another recipe has another key and so another directory.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vdpa_net.errors import LabError, MissingTool
from vdpa_net.lab import apt
from vdpa_net.lab.build_log import BuildLog
from vdpa_net.lab.program import Program, machine_name, program_in
from vdpa_net.lab.progress import ProgressCallback, silent

SUITE = "trixie"
TOOLS = ("busybox-static", "kmod", "iproute2", "iperf3", "ethtool", "python3", "dpdk", "xz-utils")
MACHINE_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "x86_64": ("linux-image-amd64", "qemu-system-x86", "seabios", "ovmf", "librte-vdpa-ifc25", "dpdk-dev"),
    "aarch64": ("linux-image-arm64", "qemu-system-arm", "qemu-efi-aarch64"),
}
PREFERENCES = f"""\
Package: qemu-* seabios ovmf ipxe-qemu
Pin: release n={SUITE}-backports
Pin-Priority: 900
"""
APT_OPTIONS = (
    'APT::Install-Recommends "false"',
    'APT::Sandbox::User "root"',
    'Acquire::Languages "none"',
    'Acquire::Retries "3"',
)
DPKG_OPTIONS = (
    "force-unsafe-io",
    *(f"path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")),
    # testpmd is packaged with all that is needed to compile against DPDK; here nothing is compiled.
    "path-exclude=/usr/include/*",
    "path-exclude=/usr/lib/*/*.a",
)
DEBIAN_KEYRINGS = tuple(Path(f"/usr/share/keyrings/debian-archive-keyring.{end}") for end in ("gpg", "pgp"))


@dataclass(frozen=True)
class Image:
    """A finished image. `root` is its root file system, `kernel_release` what `uname -r` says in a guest."""

    root: Path
    kernel_release: str

    @property
    def kernel(self) -> Path:
        """The kernel to boot."""
        return self.root / "boot" / f"vmlinuz-{self.kernel_release}"

    @property
    def modules(self) -> Path:
        """The directory of the kernel's modules."""
        return self.root / "lib/modules" / self.kernel_release

    def program(self, path: str) -> Program:
        """A program of the image, to be run on the host."""
        return program_in(self.root, path)

    def qemu(self) -> Program:
        """The image's QEMU, to be run on the host."""
        machine = machine_name()
        binary = program_in(self.root, f"usr/bin/qemu-system-{machine}")
        share = self.root / "usr/share"
        data = [directory for name in ("qemu", "seabios") if (directory := share / name).is_dir()]
        command = (*binary.command, *(word for directory in data for word in ("-L", str(directory))))
        modules = self.root / f"usr/lib/{machine}-linux-gnu/qemu"
        return Program(command, {"QEMU_MODULE_DIR": str(modules)}, binary.name)


def cache_directory(cache: Path | None = None) -> Path:
    """Where the lab keeps what it has built: `cache`, or vdpa-net in the user's cache directory."""
    if cache is not None:
        return cache
    base = os.environ.get("XDG_CACHE_HOME") or ""
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "vdpa-net"


def recipe() -> dict[str, object]:
    """Everything that decides what is in the image; the mirror does not."""
    machine = machine_name()
    return {
        "format": 1,
        "machine": machine,
        "suite": SUITE,
        "packages": sorted((*TOOLS, *MACHINE_PACKAGES[machine])),
        "preferences": PREFERENCES,
        "apt": APT_OPTIONS,
        "dpkg": DPKG_OPTIONS,
    }


def key() -> str:
    """Name of this recipe's image."""
    return hashlib.sha256(json.dumps(recipe(), sort_keys=True).encode()).hexdigest()[:16]


def installed(cache: Path | None = None) -> Image | None:
    """The finished image of this recipe, if it has been built."""
    directory = cache_directory(cache) / "image" / key()
    try:
        description = json.loads((directory / "image.json").read_text())
        image = Image(directory / "root", str(description["kernel_release"]))
    except (OSError, ValueError, KeyError):
        return None
    return image if image.kernel.is_file() else None


def require(cache: Path | None = None) -> Image:
    """The finished image. Raises LabError if it has not been built."""
    image = installed(cache)
    if image is None:
        where = cache_directory(cache) / "image" / key()
        raise LabError(
            f"there is no lab image in {where}: build it with `vdpa-net lab build` (about a minute)"
        )
    return image


def build(mirror: str | None = None, cache: Path | None = None, progress: ProgressCallback = silent) -> Image:
    """The finished image; builds it first if there is none.

    A build that broke off goes on with the packages that it had fetched. Raises MissingTool without
    mmdebstrap, LabError if the build fails: the message names its log.
    """
    if found := installed(cache):
        return found
    if shutil.which("mmdebstrap") is None:
        raise MissingTool(
            "mmdebstrap is needed to build the lab image: `apt-get install mmdebstrap "
            "debian-archive-keyring` (Debian, Ubuntu) or `dnf install mmdebstrap debian-keyring` (Fedora)"
        )
    directory = cache_directory(cache) / "image"
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / f"{key()}.lock", progress):
        return installed(cache) or _build(directory, mirror, progress)


@contextmanager
def _locked(path: Path, progress: ProgressCallback) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build of the lab image", None)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(directory: Path, mirror: str | None, progress: ProgressCallback) -> Image:
    partial = directory / f"{key()}.partial"
    debs = directory / "debs"
    remove_tree(partial)
    partial.mkdir()
    debs.mkdir(exist_ok=True)
    (partial / "sources.list").write_text(sources_list(mirror))
    (partial / "backports").write_text(PREFERENCES)
    log = directory / f"{key()}.log"
    _run_logged(mmdebstrap_command(partial, debs, as_root=os.geteuid() == 0), log, progress)
    if os.geteuid() != 0:
        progress("unpacking the image", None)
        _unpack(partial, log, progress)
    description = {**recipe(), "kernel_release": _kernel_release(partial / "root", log)}
    (partial / "image.json").write_text(json.dumps(description, indent=2) + "\n")
    partial.rename(directory / key())
    remove_tree(debs)
    image = installed(directory.parent)
    if image is None:
        raise LabError(f"the image in {directory / key()} is not complete; the log of its build is {log}")
    return image


def sources_list(mirror: str | None) -> str:
    """apt's source list for the build: the release, its updates and its backports from one mirror."""
    found = apt.debian_mirror(apt.configured_sources()) if mirror is None else None
    uri = found.uri if found else mirror
    keyring = (found.signed_by if found else "") or next(
        (str(path) for path in DEBIAN_KEYRINGS if path.exists()), ""
    )
    options = f"[signed-by={keyring}] " if keyring else ""
    suites = (SUITE, f"{SUITE}-updates", f"{SUITE}-backports")
    return "".join(f"deb {options}{uri} {suite} main\n" for suite in suites)


def mmdebstrap_command(partial: Path, debs: Path, *, as_root: bool) -> list[str]:
    """The build's command line. Hooks carry fetched packages in and, as soon as they are there, out."""
    packages = recipe()["packages"]
    assert isinstance(packages, list)
    archives, outside = "/var/cache/apt/archives", shlex.quote(str(debs))
    fetch = f'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --yes --download-only install {" ".join(packages)}'
    hooks = (
        '--setup-hook=mkdir -p "$1/etc/apt/preferences.d" "$1/var/cache/apt/archives"',
        f"--setup-hook=copy-in {shlex.quote(str(partial / 'backports'))} /etc/apt/preferences.d",
        f"--setup-hook=sync-in {outside} {archives}",
        f"--extract-hook=sync-out {archives} {outside}",
        f"--essential-hook={fetch}",
        f"--essential-hook=sync-out {archives} {outside}",
    )
    return [
        *("mmdebstrap", "--verbose", "--variant=minbase", f"--include={','.join(packages)}"),
        f"--mode={'root' if as_root else 'unshare'}",
        f"--format={'directory' if as_root else 'tar'}",
        *(f"--aptopt={option}" for option in (*APT_OPTIONS, *apt.network_options())),
        *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
        *hooks,
        *(SUITE, str(partial / ("root" if as_root else "root.tar")), str(partial / "sources.list")),
    ]


def _unpack(partial: Path, log: Path, progress: ProgressCallback) -> None:
    # Without root the files belong to the user, and device nodes can't be made; nothing needs either.
    (partial / "root").mkdir()
    archive, target = str(partial / "root.tar"), str(partial / "root")
    unpack = [
        "tar",
        "--extract",
        "--no-same-owner",
        "--exclude=./dev/*",
        f"--directory={target}",
        f"--file={archive}",
    ]
    _run_logged(unpack, log, progress, append=True)
    (partial / "root.tar").unlink()


def _run_logged(command: list[str], log: Path, progress: ProgressCallback, *, append: bool = False) -> None:
    # The guests bring their own initramfs: the kernel package need not make one.
    environment = {**os.environ, "INITRD": "No", "LC_ALL": "C"}
    parsed = BuildLog()
    with log.open("a" if append else "w") as out:
        out.write(f"$ {shlex.join(command)}\n")
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    out.write(line)
                    out.flush()
                    progress(*parsed.feed(line))
            except BaseException:
                process.terminate()
                raise
    if process.returncode != 0:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise LabError(
            f"{command[0]} ended with {process.returncode}, expected 0; log: {log}; its end:\n{last}"
        )


def _kernel_release(root: Path, log: Path) -> str:
    releases = sorted(
        path.name for path in (root / "lib/modules").glob("*") if (path / "modules.dep").is_file()
    )
    if not releases:
        raise LabError(f"the image has no kernel modules; the log of its build is {log}")
    return releases[-1]


def remove_tree(path: Path) -> None:
    """Remove a directory tree. Raises LabError if something is mounted in it: that would go, too."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inside = [mount for mount in mounts if Path(mount).is_relative_to(path.resolve())]
    if inside:
        raise LabError(f"{path} can't be removed while {', '.join(inside)} is mounted: unmount it first")
    if path.exists():
        shutil.rmtree(path)
