# SPDX-License-Identifier: Apache-2.0
"""What documents name is there: links, commands and their options, make's targets, files, tests, modules."""

import importlib
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from vdpa_net.cli.parser import Parser
from vdpa_net.cli.table import COMMANDS, Command, Group
from vdpa_net.testing import pytest_plugin

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.splitlines()
]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

# Where a path that a document names may begin.
BASES = [ROOT / base for base in ("", "docs", "src/vdpa_net", "rust/dataplane", "rust/dataplane/src")]
TOP = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
MADE = ("build/", "target/", "fuzz/corpus/TARGET", "fuzz/targets/NAME.py", "layouts.py")
OPTIONS_OF_OTHERS = {"--iova-mode", "--client-mode", "--iface"}

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)


def text_of(path: Path) -> str:
    return path.read_text()


def prose_of(path: Path) -> str:
    """The text without fenced code, paragraphs joined: code in backticks may go over a line's end."""
    return re.sub(r"(?<=\S)\n(?=[^\s|#-])", " ", FENCE.sub("", text_of(path)))


def inline_code(path: Path) -> Iterator[str]:
    return (
        code
        for line in prose_of(path).splitlines()
        if not line.startswith("    ")
        for code in CODE.findall(line)
    )


def code_lines(path: Path) -> Iterator[str]:
    """Lines of indented code; those that end in a backslash, or go on with `[`, are joined."""
    joined = re.sub(r"\\\n\s*|\n\s+(?=\[)", " ", text_of(path))
    for line in joined.splitlines():
        if line.startswith("    "):
            yield line.strip().removeprefix("$ ")


def slug(title: str) -> str:
    """The anchor that a heading gets."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"`|\]\([^)]*\)|\[", "", title).strip().lower())
    return kept.replace(" ", "-")


@cache
def anchors(path: Path) -> set[str]:
    return {slug(title) for title in re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(path)), re.M)}


def commands(group: Group = COMMANDS, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Command]]:
    for name, entry in group.members.items():
        if isinstance(entry, Group):
            yield from commands(entry, (*words, name))
        else:
            yield " ".join((*words, name)), entry


@cache
def options_of(words: str) -> frozenset[str]:
    entry = dict(commands())[words]
    parser = Parser(words, entry.summary)
    importlib.import_module(f"vdpa_net.cli.{entry.module}").add_arguments(parser)
    return frozenset(text for action in parser._actions for text in action.option_strings)


ALL_COMMANDS = [words for words, _ in commands()]
GROUPS = {words.rpartition(" ")[0] for words in ALL_COMMANDS} - {""}
COMMAND = re.compile(rf"^(?:vdpa-net )?({'|'.join(sorted(ALL_COMMANDS, key=len, reverse=True))})(?= |$)(.*)")


def named_commands(path: Path) -> Iterator[tuple[str, str]]:
    """Commands as a document writes them, with what follows them: in code lines, and in backticks."""
    for line in code_lines(path):
        start = line.removeprefix(".venv/bin/")
        if start.startswith("vdpa-net "):
            yield start, re.split(r"\s+#|\s{2,}(?!-)", start)[0]
    for code in inline_code(path):
        if code.startswith("vdpa-net ") or (COMMAND.match(code) and OPTION.search(code)):
            yield code, code


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(FENCE.sub("", text_of(path))):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{target}: there is no such file"
        assert file.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert not anchor or anchor in anchors(file), f"{target}: there is no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_commands_and_their_options_exist(path: Path) -> None:
    for told, command in named_commands(path):
        match = COMMAND.match(command)
        words = command.removeprefix("vdpa-net ")
        if match is None:
            assert words in GROUPS or words.split()[0].startswith(("COMMAND", "--version", "...")), (
                f"there is no command {told!r}"
            )
            continue
        unknown = set(OPTION.findall(match[2])) - options_of(match[1]) - OPTIONS_OF_OTHERS
        assert not unknown, f"{told!r}: vdpa-net {match[1]} has no {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_options_that_are_named_alone_are_some_commands(path: Path) -> None:
    known = OPTIONS_OF_OTHERS.union(*map(options_of, ALL_COMMANDS))
    known |= set(OPTION.findall(text_of(Path(pytest_plugin.__file__))))
    named = {code.split()[0].partition("=")[0] for code in inline_code(path) if OPTION.match(code)}
    assert not named - known


def test_every_command_is_in_the_readme_and_every_option_in_a_document() -> None:
    readme = text_of(ROOT / "README.md")
    assert not [words for words in ALL_COMMANDS if f"vdpa-net {words}" not in readme]
    told = {
        option
        for path in DOCUMENTS
        if path.name != "CHANGELOG.md"
        for option in OPTION.findall(text_of(path))
    }
    options = {option for words in ALL_COMMANDS for option in options_of(words) if option.startswith("--")}
    assert not options - told


def test_every_document_can_be_reached_from_the_readme() -> None:
    readme = {
        (ROOT / target.partition("#")[0]).resolve() for target in LINK.findall(text_of(ROOT / "README.md"))
    }
    assert not [
        str(path.relative_to(ROOT))
        for path in DOCUMENTS
        if path.parent == ROOT / "docs" and path not in readme
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_targets_of_make_exist(path: Path) -> None:
    known = set(re.findall(r"^([a-z][a-z-]*):", text_of(ROOT / "Makefile"), re.M))
    for line in (*code_lines(path), *inline_code(path)):
        if match := re.match(r"make ((?:[A-Z]+=(?:'[^']*'|\S+) )*[a-z][a-z -]*)", line):
            words = re.sub(r"[A-Z]+=(?:'[^']*'|\S+)", "", match[1].split("  ")[0]).split()
            assert not set(words) - known, line


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_files_that_are_named_exist(path: Path) -> None:
    shape = re.compile(rf"(?:{'|'.join(TOP)})/[\w./-]*|[a-z][\w/-]*(?:\.(?:py|pyi|rs|md|svg|sh)|/)")
    for code in inline_code(path):
        word = code.split()[0]
        if not shape.fullmatch(word) or word.startswith(MADE):
            continue
        assert any((base / word).exists() for base in BASES), f"there is no {word}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_tests_and_modules_that_are_named_exist(path: Path) -> None:
    tests = "\n".join(text_of(file) for file in sorted((ROOT / "tests").rglob("test_*.py")))
    for code in inline_code(path):
        if re.fullmatch(r"test_\w+", code):
            assert f"def {code}(" in tests, code
        if match := re.match(r"(vdpa_net(?:\.\w+)+)", code):
            assert _is_there(match[1]), f"there is no {match[1]}"


def _is_there(name: str) -> bool:
    """A module, or an attribute of one, as deep as it may be."""
    try:
        importlib.import_module(name)
    except ImportError:
        holder, _, attribute = name.rpartition(".")
        return bool(holder) and _is_there(holder) and hasattr(importlib.import_module(holder), attribute)
    return True
