# SPDX-License-Identifier: Apache-2.0
"""A guest's console on this terminal."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty

from vdpa_net.errors import LabError
from vdpa_net.lab.machine import Machine

LEAVE = b"\x1d"
"""Ctrl-]"""

_CHUNK_BYTES = 4096


def relay(machine: Machine) -> None:
    """Type what is typed here, print what the guest prints; until it ends or Ctrl-] is typed.

    Raises LabError if standard input is no terminal.
    """
    terminal = sys.stdin.fileno()
    if not os.isatty(terminal):
        raise LabError("--shell needs a terminal on its standard input")
    print("the guest's console; Ctrl-] leaves and ends the guest", flush=True)
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    try:
        machine.console.copy_to(sys.stdout.fileno())
        _type(machine, terminal)
    finally:
        machine.console.copy_to(None)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        print(flush=True)


def _type(machine: Machine, terminal: int) -> None:
    with select.epoll() as poll:
        poll.register(terminal, select.EPOLLIN)
        poll.register(machine.exit_fd, select.EPOLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if machine.exit_fd in ready:
                return
            typed = os.read(terminal, _CHUNK_BYTES)
            if not typed or LEAVE in typed:
                return
            machine.type_keys(typed)
