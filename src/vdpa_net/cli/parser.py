# SPDX-License-Identifier: Apache-2.0
"""argparse, with errors as the rest of the package reports them and help that fits a terminal."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from vdpa_net.errors import OptionError

_DEFAULT_COLUMNS = 80
MARGIN = 2
"""Columns that stay free at the right, as argparse has it."""


class Parser(argparse.ArgumentParser):
    """A parser of one command. What is wrong with its arguments is raised as OptionError."""

    def __init__(self, prog: str, summary: str, details: str = "") -> None:
        super().__init__(
            prog=prog,
            description=summary,
            epilog=details or None,
            formatter_class=_Help,
            allow_abbrev=False,
        )

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments of a command. Raises OptionError; exits after `--help`."""
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            options = (text for action in self._actions for text in action.option_strings)
            self.error(f"unexpected argument {unknown[0]!r}{near(unknown[0].partition('=')[0], options)}")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Raise OptionError with the command's name."""
        raise OptionError(f"{message} (see {self.prog} --help)")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help texts in one column; `details` keep their line breaks where the terminal is wide enough."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=columns() - MARGIN)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        import textwrap  # noqa: PLC0415

        lines = super()._fill_text(text, width, indent).splitlines()
        room = width + MARGIN
        return "\n".join(textwrap.fill(line, width) if len(line) > room else line for line in lines)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = type(action.default) in (int, str) and action.default not in ("", argparse.SUPPRESS)
        return f"{action.help} (default: %(default)s)" if told and action.option_strings else action.help


def columns() -> int:
    """Those of the terminal, or of what COLUMNS says is one."""
    # What argparse would ask shutil for. It makes a formatter for each argument that is added, and importing
    # shutil, with its compressors, costs more than the whole parser.
    try:
        asked = int(os.environ.get("COLUMNS", "0"))
        return asked or os.get_terminal_size().columns or _DEFAULT_COLUMNS
    except (ValueError, OSError):
        return _DEFAULT_COLUMNS


def near(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is meant, for the end of a message; empty if none is close."""
    import difflib  # noqa: PLC0415

    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """A reader of numbers, decimal or with 0x, from `low` to `high` included."""
    wanted = f"a number from {low}" + (f" to {high}" if high is not None else " on")

    def read(text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text!r}; expected {wanted}")
        return value

    return read


def new_file(text: str) -> Path:
    """A reader of names of files that are written at the end; a missing directory is told at the start."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        what = "it is a directory" if path.is_dir() else f"there is no directory {path.parent}"
        raise argparse.ArgumentTypeError(f"{text!r}: {what}")
    return path
