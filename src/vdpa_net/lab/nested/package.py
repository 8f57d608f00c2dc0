# SPDX-License-Identifier: Apache-2.0
"""This package, made ready for the Python of level-1 guests: the same files, compiled by the image's Python.

The native module uses the stable ABI, so one build serves the host's Python and the guest's. Compiling in
the guest would cost each of its processes seconds under TCG.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vdpa_net.errors import LabError
from vdpa_net.lab.image import Image, cache_directory
from vdpa_net.lab.program import Program, program_in

SOURCE = Path(__file__).resolve().parents[2]
COMPILE_SECONDS = 120


def staged(image: Image, cache: Path | None = None, source: Path = SOURCE) -> Path:
    """A directory in the cache that a level-1 guest's PYTHONPATH can name. Raises LabError."""
    files = list(_files(source))
    if not any(path.name.startswith("_native.abi3.") for path in files):
        raise LabError(f"{source} has no native module for the stable ABI (_native.abi3.so): `make build`")
    directory = cache_directory(cache) / "package" / _key(source, files, image)
    if not directory.is_dir():
        partial = directory.with_name(f"{directory.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for path in files:
            target = partial / "vdpa_net" / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        _compile(image, partial)
        _put_in_place(partial, directory)
    return directory


def _files(source: Path) -> Iterator[Path]:
    for path in sorted(source.rglob("*")):
        if path.suffix in (".py", ".so") and "__pycache__" not in path.parts:
            yield path


def _key(source: Path, files: list[Path], image: Image) -> str:
    content = hashlib.sha256(str(image.root).encode())
    for path in files:
        content.update(f"{path.relative_to(source)}\0{path.stat().st_size}\0".encode())
        content.update(path.read_bytes())
    return content.hexdigest()[:16]


def python(image: Image) -> Program:
    """The image's Python, to be run on the host."""
    found = program_in(image.root, "usr/bin/python3")
    return Program(found.command, {"PYTHONHOME": str(image.root / "usr")}, found.name)


def _compile(image: Image, directory: Path) -> None:
    # By hash and unchecked: times of files do not survive every way that they are shared.
    mode = "--invalidation-mode=unchecked-hash"
    python(image).run("-m", "compileall", "-q", mode, str(directory), timeout_s=COMPILE_SECONDS)


def _put_in_place(partial: Path, directory: Path) -> None:
    try:
        partial.rename(directory)
    except OSError:
        # Another run was faster.
        shutil.rmtree(partial)
