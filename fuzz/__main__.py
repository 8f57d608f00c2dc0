# SPDX-License-Identifier: Apache-2.0
"""`python -m fuzz TARGET [libFuzzer options] [folders]`: a target under atheris, as `fuzz/run` does it."""

from __future__ import annotations

import importlib
import os
import signal
import sys

import atheris


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    name = sys.argv[1]
    # What is imported meanwhile gets counters in its bytecode.
    with atheris.instrument_imports(include=["vdpa_net", f"fuzz.targets.{name}"]):
        target = importlib.import_module(f"fuzz.targets.{name}")
    # A process that the data plane brings down must not look like one that ended.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    atheris.Setup([os.fspath(sys.argv[0]), *sys.argv[2:]], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
