# SPDX-License-Identifier: Apache-2.0
"""Imports only point downwards: a layer may import itself, the layers below it, and what all may import."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
PACKAGE = "vdpa_net"
DATA_PLANE = SOURCE.parent / "rust" / "dataplane" / "src"

LAYERS = ("cli", "bench", "lab", "driver", "transport", "device", "migration", "backend", "wire")
"""From the top down. Modules that lie in the package itself belong to `cli`."""

FOR_ALL = {f"{PACKAGE}.{name}" for name in ("errors", "closing", "record", "_native")}
TESTING = "testing"
MAY_USE_TESTING = {f"{PACKAGE}.cli.log_test"}
"""Only inside of a function: the command line offers one command that is a test."""


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((SOURCE / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Full names of what a module imports from the package: modules, or names in them."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            if origin.split(".")[0] == PACKAGE:
                yield from (f"{origin}.{alias.name}" for alias in node.names)


def layer_of(name: str) -> str | None:
    """The layer that a module or a name in it belongs to; None for what all may import."""
    if any(name == free or name.startswith(f"{free}.") for free in FOR_ALL):
        return None
    parts = name.split(".")
    first = parts[1] if len(parts) > 1 else ""
    return first if (SOURCE / PACKAGE / first).is_dir() and first else LAYERS[0]


def may_import(importer: str, imported: str) -> bool:
    above, below = layer_of(importer), layer_of(imported)
    if below is None or above == TESTING:
        return True
    if below == TESTING:
        return importer in MAY_USE_TESTING
    if above is None:
        return False
    return LAYERS.index(above) <= LAYERS.index(below)


def test_every_folder_has_its_place_in_the_order() -> None:
    folders = {
        path.parent.relative_to(SOURCE / PACKAGE).parts[0] for path in (SOURCE / PACKAGE).glob("*/*.py")
    }
    assert folders <= {*LAYERS, TESTING}, "a new folder needs a place in the order of layers"


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_imports_point_downwards(module: str, path: Path) -> None:
    found = imports(ast.parse(path.read_text()), module, is_package=path.name == "__init__.py")
    # The package's own names are looked up when they are used; `TYPE_CHECKING` ones there are for checkers.
    bad = [name for name in found if module != PACKAGE and not may_import(module, name)]
    assert not bad, f"{module} imports {', '.join(bad)}"


def test_no_two_modules_of_the_data_plane_need_each_other() -> None:
    """`crate::NAME` in Rust; the names are modules of the crate's root."""
    needs: dict[str, set[str]] = {}
    for path in sorted(DATA_PLANE.rglob("*.rs")):
        module = path.relative_to(DATA_PLANE).parts[0].removesuffix(".rs")
        code = re.sub(r"//.*", "", path.read_text())
        needs.setdefault(module, set()).update(set(re.findall(r"\bcrate::([a-z_]+)", code)) - {module})
    assert needs["worker"]
    graphlib.TopologicalSorter(needs).prepare()


def test_the_command_line_imports_testing_only_when_it_is_used() -> None:
    for module in MAY_USE_TESTING:
        tree = ast.parse((SOURCE / module.replace(".", "/")).with_suffix(".py").read_text())
        tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
        assert not [name for name in imports(tree, module, is_package=False) if ".testing" in name]


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("vdpa_net.lab.side", "vdpa_net.transport.control.ControlClient", True),
        ("vdpa_net.transport.control", "vdpa_net.lab.side", False),
        ("vdpa_net.device.net_device", "vdpa_net.migration.faults", True),
        ("vdpa_net.migration.lm_block", "vdpa_net.device.registers", False),
        ("vdpa_net.wire.lm", "vdpa_net.errors.OptionError", True),
        ("vdpa_net.wire.lm", "vdpa_net.backend", False),
        ("vdpa_net.wire.lm", "vdpa_net.options", False),
        ("vdpa_net.backend.tap", "vdpa_net._native", True),
        ("vdpa_net.device.net_device", "vdpa_net.testing.frames", False),
        ("vdpa_net.processes", "vdpa_net.testing.frames", False),
        ("vdpa_net.cli.serve", "vdpa_net.testing.frames", False),
        ("vdpa_net.cli.log_test", "vdpa_net.testing.log_test", True),
        ("vdpa_net.testing.frames", "vdpa_net.lab.side", True),
        ("vdpa_net.errors", "vdpa_net.wire.lm", False),
    ],
)
def test_the_rule_itself(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) is allowed


def test_relative_imports_are_followed() -> None:
    tree = ast.parse(
        "from .. import errors\nfrom ..wire import lm\nfrom .pci import Bar\nimport vdpa_net.cli"
    )
    assert list(imports(tree, "vdpa_net.device.net_device", is_package=False)) == [
        "vdpa_net.errors",
        "vdpa_net.wire.lm",
        "vdpa_net.device.pci.Bar",
        "vdpa_net.cli",
    ]
