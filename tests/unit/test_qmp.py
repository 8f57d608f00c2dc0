# SPDX-License-Identifier: Apache-2.0
"""The QMP session of a caller that is interrupted."""

from __future__ import annotations

import gc
import logging
import socket
from pathlib import Path

import pytest

from vdpa_net.lab.qmp import QmpSession


def interrupt(_future: object, _timeout: float | None = None) -> None:
    raise KeyboardInterrupt


def test_a_session_that_was_interrupted_while_it_connects_closes_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, silent_qemu = socket.socketpair()
    ours.setblocking(False)
    session = QmpSession("qemu", tmp_path / "qmp.log")
    with monkeypatch.context() as patched:
        patched.setattr("concurrent.futures.Future.result", interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.connect(ours, 20)
    with caplog.at_level(logging.WARNING, "asyncio"):
        session.close()
        del session
        gc.collect()
    ours.close()
    silent_qemu.close()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
