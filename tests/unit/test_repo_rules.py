# SPDX-License-Identifier: Apache-2.0
"""Rules that every file of the repository keeps, and what the set-up script says when things are missing."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400
MAX_COLUMNS_OF_TEXT = 130
CODE = (".py", ".pyi", ".rs", ".sh", "")
LICENCE = "SPDX-License-Identifier: Apache-2.0"

# Put together here, so that this file does not break its own rules.
FORBIDDEN = {
    "a mirror's host name": re.compile(
        r"\b(?:debian\.o" + r"rg|ubuntu\.c" + r"om|fedoraproject\.o" + r"rg)\b"
    ),
    "a to-do without an issue's number": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b(?!\s*\(?#\d)"),
    "a star import": re.compile(r"^\s*from\s+\S+\s+import\s+\*", re.M),
}


def tracked_files() -> list[Path]:
    """Files of the repository, new ones included, ignored ones not."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


FILES = tracked_files()
SOURCES = [
    path
    for path in FILES
    if path.suffix in CODE and path.name not in ("LICENSE", ".gitignore", "py.typed", ".gitkeep")
]
TEXTS = [path for path in FILES if path.suffix == ".md"]
PUBLIC = [path for path in FILES if path.suffix == ".py" and path.is_relative_to(ROOT / "src")]


def test_there_are_files_to_judge() -> None:
    assert len(SOURCES) > 20
    assert ROOT / "Makefile" in SOURCES


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_the_licence_is_named_at_the_top(path: Path) -> None:
    assert any(LICENCE in line for line in path.read_text().splitlines()[:2])


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_files_are_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MAX_LINES


@pytest.mark.parametrize("path", TEXTS, ids=names(TEXTS))
def test_lines_of_documents_fit_an_editor(path: Path) -> None:
    """Rows of tables have no choice, nor has what a script writes."""
    written = re.sub(
        r"^<!-- figures.*?^<!-- end",
        lambda found: "\n" * found[0].count("\n"),
        path.read_text(),
        flags=re.M | re.S,
    )
    lines = enumerate(written.splitlines(), 1)
    long = [number for number, line in lines if len(line) > MAX_COLUMNS_OF_TEXT and line[0] != "|"]
    assert not long, f"lines of more than {MAX_COLUMNS_OF_TEXT} columns: {long}"


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_forbidden_is_written(what: str) -> None:
    texts = [path for path in FILES if path.suffix in (*CODE, ".md", ".toml", ".txt", ".yml")]
    found = [str(path.relative_to(ROOT)) for path in texts if FORBIDDEN[what].search(path.read_text())]
    assert not found, f"{what} in {', '.join(found)}"


@pytest.mark.parametrize("path", PUBLIC, ids=names(PUBLIC))
def test_public_modules_classes_and_functions_say_what_they_are(path: Path) -> None:
    tree = ast.parse(path.read_text())
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    mute = [node.name for node in public if ast.get_docstring(node) is None]
    assert ast.get_docstring(tree), "the module has no docstring"
    assert not mute, f"without a docstring: {', '.join(mute)}"


def test_no_module_is_called_utils() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "misc", "common")]


def test_the_changelog_names_the_version_or_what_is_unreleased() -> None:
    assert re.search(r"^## \[?(Unreleased|0\.)", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_the_figures_are_what_their_code_draws() -> None:
    command = [sys.executable, ROOT / "scripts/draw_figures.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def bare_machine(tmp_path: Path) -> dict[str, str]:
    """An environment of a user who is not root, on a machine with a shell and little else."""
    for tool in ("bash", "sed", "cut", "cat", "sort", "head", "dirname", "uname"):
        path = shutil.which(tool)
        assert path is not None
        (tmp_path / tool).symlink_to(path)
    (tmp_path / "id").write_text("#!/bin/bash\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    return {"PATH": str(tmp_path), "HOME": os.environ.get("HOME", "/")}


def set_up(what: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts/setup", what],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_setup_names_what_is_missing_and_how_to_install_it(bare_machine: dict[str, str]) -> None:
    done = set_up("build", bare_machine)
    assert done.returncode == 1
    assert "Python 3.11 or newer with venv" in done.stderr
    assert "apt-get install python3 python3-venv gcc libc6-dev" in done.stderr
    assert "dnf install python3 gcc glibc-static" in done.stderr


def test_setup_says_which_right_the_lab_lacks(bare_machine: dict[str, str]) -> None:
    done = set_up("lab", bare_machine)
    assert done.returncode == 1
    assert "the right to make network namespaces: run it as root" in done.stderr


def test_setup_names_both_ways_to_get_rust(bare_machine: dict[str, str], tmp_path: Path) -> None:
    for tool in ("python3", "cc"):
        (tmp_path / tool).write_text("#!/bin/bash\necho /dev/null\n")
        (tmp_path / tool).chmod(0o755)
    (tmp_path / "cc").write_text(f"#!/bin/bash\necho {tmp_path / 'libc.a'}\n")
    (tmp_path / "libc.a").touch()
    done = set_up("build", bare_machine)
    assert done.returncode == 1
    assert "there is no cargo in PATH" in done.stderr
    assert "rustup" in done.stderr
    assert "apt-get install cargo" in done.stderr


def test_setup_says_nothing_when_nothing_is_missing() -> None:
    done = set_up("build", dict(os.environ))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_setup_refuses_an_unknown_task(bare_machine: dict[str, str]) -> None:
    done = set_up("everything", bare_machine)
    assert done.returncode == 2
    assert "usage: scripts/setup" in done.stderr
