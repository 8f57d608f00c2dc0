# SPDX-License-Identifier: Apache-2.0
"""Small guests: the image's kernel and an initramfs made of the image's files and the guest agent.

What a guest does is decided by words on its kernel command line (`guest/init.sh` lists them), so one
initramfs serves many runs. Guests of one content share one file in the cache.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vdpa_net.errors import LabError
from vdpa_net.lab.cpio import Archive
from vdpa_net.lab.image import Image, cache_directory
from vdpa_net.lab.program import Program, libraries_of, machine_name

PARTS = Path(__file__).parent / "guest"
MODULES = ("virtio_net",)
BOOT_TOOLS = ("usr/bin/iperf3", "usr/sbin/ethtool")
CONSOLES = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}


@dataclass(frozen=True)
class Guest:
    """What a machine boots."""

    kernel: Path
    initrd: Path

    def append(self, role: str, *kernel_words: str, **lab_words: str | int) -> str:
        """The kernel command line: `lab_words` reach `guest/init.sh` as `lab.<name>=<value>`."""
        lab = [f"lab.{name}={value}" for name, value in {"role": role, **lab_words}.items()]
        if bad := [word for word in (*kernel_words, *lab) if any(space in word for space in " \t\n")]:
            raise LabError(f"words of a kernel command line have no spaces, got {bad}")
        fixed = (f"console={CONSOLES[machine_name()]}", "panic=-1", "quiet")
        return " ".join((*fixed, *kernel_words, *lab))


def build(
    image: Image,
    *,
    cache: Path | None = None,
    modules: Sequence[str] = MODULES,
    tools: Sequence[str] = (),
    libraries: Sequence[str] = (),
    agent: bool = True,
    init: str = "init.sh",
) -> Guest:
    """A guest of the image's kernel with these kernel modules, tools and libraries (paths in the image).

    Libraries are for programs that load them by name; they go to /lib with all that they need.

    `init` is the script in `guest/` that is its first process.

    Raises LabError if the image lacks one of them or the guest agent has not been built.
    """
    content = _archive(image, modules, tools, libraries, init, agent=agent).to_bytes()
    directory = cache_directory(cache) / "guest"
    initrd = directory / f"{hashlib.sha256(content).hexdigest()[:16]}.cpio"
    if not initrd.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        temporary = initrd.with_suffix(f".{id(content)}.partial")
        temporary.write_bytes(content)
        temporary.rename(initrd)
    return Guest(image.kernel, initrd)


def agent_binary() -> Path:
    """The guest agent for this machine's architecture. Raises LabError if it has not been built."""
    path = PARTS / f"agent-{machine_name()}"
    if not path.is_file():
        raise LabError(f"the guest agent is not there: {path}; `make build` makes it")
    return path


def _archive(
    image: Image,
    modules: Sequence[str],
    tools: Sequence[str],
    libraries: Sequence[str],
    init: str,
    *,
    agent: bool,
) -> Archive:
    archive = Archive()
    for name in ("dev", "proc", "sys", "tmp", "root"):
        archive.add_directory(name)
    # The kernel opens it before /init has mounted a devtmpfs.
    archive.add_character_device("dev/console", 5, 1)
    archive.add_file("init", (PARTS / init).read_bytes(), executable=True)
    _add_busybox(archive, image)
    _add_modules(archive, image, modules)
    for tool in tools:
        _add_tool(archive, image, tool)
    for library in libraries:
        _add_library(archive, image, library)
    if agent:
        archive.add_file("bin/agent", agent_binary().read_bytes(), executable=True)
    return archive


def _add_busybox(archive: Archive, image: Image) -> None:
    path = _in_image(image, "usr/bin/busybox")
    archive.add_file("bin/busybox", path.read_bytes(), executable=True)
    for applet in Program((str(path),)).run("--list").split():
        if applet != "busybox":
            archive.add_link(f"bin/{applet}", "busybox")


def _add_modules(archive: Archive, image: Image, names: Sequence[str]) -> None:
    order = module_order((image.modules / "modules.dep").read_text(), _builtin(image), names)
    for path in order:
        archive.add_file(f"modules/{_plain_name(path)}", _module_content(image.modules / path))
    archive.add_file("modules/order", "".join(f"{_plain_name(path)}\n" for path in order).encode())


def module_order(modules_dep: str, builtin: Iterable[str], names: Sequence[str]) -> list[str]:
    """Paths of these modules and of those that they need, in the order of loading (modules.dep(5)).

    Modules that the kernel has built in are left out. Raises LabError if one does not exist.
    """
    needs = {
        path: rest.split() for path, _, rest in (line.partition(":") for line in modules_dep.splitlines())
    }
    by_name = {_module_name(path): path for path in needs}
    present = {_module_name(path) for path in builtin}
    order: dict[str, None] = {}
    for name in (name.replace("-", "_") for name in names):
        if name in by_name:
            # A module's line names what it needs, each before what that needs in turn.
            order.update(dict.fromkeys((*reversed(needs[by_name[name]]), by_name[name])))
        elif name not in present:
            raise LabError(f"the image's kernel has no module {name}")
    return list(order)


def _builtin(image: Image) -> list[str]:
    return (image.modules / "modules.builtin").read_text().split()


def _plain_name(path: str) -> str:
    return f"{_module_name(path)}.ko"


def _module_name(path: str) -> str:
    return Path(path).name.split(".ko")[0].replace("-", "_")


def _module_content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".ko":
        return data
    raise LabError(f"the lab can't unpack the kernel module {path.name}: expected .ko or .ko.xz")


def _add_tool(archive: Archive, image: Image, tool: str) -> None:
    archive.add_file(f"bin/{Path(tool).name}", _in_image(image, tool).read_bytes(), executable=True)
    _add_libraries_of(archive, image, tool)


def _add_library(archive: Archive, image: Image, library: str) -> None:
    inside = f"lib/{Path(library).name}"
    if inside not in archive:
        archive.add_file(inside, _in_image(image, library).read_bytes(), executable=True)
    _add_libraries_of(archive, image, library)


def _add_libraries_of(archive: Archive, image: Image, tool: str) -> None:
    for inside, library in _library_files(image, tool):
        if inside not in archive:
            archive.add_file(inside, library.read_bytes(), executable=True)


def _library_files(image: Image, tool: str) -> Iterator[tuple[str, Path]]:
    for library in libraries_of(image.root, tool):
        # The loader stays where programs name it; libraries go where it looks for them by default.
        name = (
            str(library.relative_to(image.root)) if library.name.startswith("ld-") else f"lib/{library.name}"
        )
        yield name, library


def _in_image(image: Image, path: str) -> Path:
    found = image.root / path
    if not found.is_file():
        raise LabError(f"the image in {image.root} has no {path}")
    return found
