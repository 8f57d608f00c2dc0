# SPDX-License-Identifier: Apache-2.0
"""The command `vdpa-net`.

Exit codes: 0 done, or the verdict is PASS; 1 the verdict is FAIL; 2 wrong usage or an error, told in one line
on stderr (VDPA_NET_DEBUG=1 adds the traceback); 3 the verdict is NOT RUN; 130 interrupted.

`table` lists the commands; each one is a module here with `add_arguments(parser)` and `run(arguments)`, which
returns the exit code. Only the module of the command that is run gets imported, and what a command needs is
imported when it runs, so that a device listens soon after the start.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from vdpa_net.errors import VdpaNetError

EXIT_OK = 0
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
DEBUG_VARIABLE = "VDPA_NET_DEBUG"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit; errors become one line and exit code 2.

    SIGTERM ends a command in the same order as Ctrl-C does, and a second one does not disturb that
    (timeout(1) sends it to the command and then to its process group).
    """
    signal.signal(signal.SIGTERM, _end)
    sys.exit(_exit_code(sys.argv[1:] if argv is None else argv))


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _exit_code(argv: Sequence[str]) -> int:
    from vdpa_net.cli.table import run_command  # noqa: PLC0415

    try:
        code = run_command(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Who read the output wants no more of it; nor may the interpreter flush into it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except (VdpaNetError, OSError) as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"vdpa-net: error: {_in_words(error)}", file=sys.stderr)
        return EXIT_ERROR


def _in_words(error: BaseException) -> str:
    """The message; of a file that could not be used its name and why."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)
