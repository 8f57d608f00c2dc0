# SPDX-License-Identifier: Apache-2.0
"""What all tests share: tools that may be missing, leaks, sockets, network namespaces.

A missing tool skips a test with the reason; with CI=true it fails it, so that nothing is skipped unseen.
"""

from __future__ import annotations

import ctypes
import gc
import os
import queue
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["vdpa_net.testing.pytest_plugin"]

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("vdpa-net", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vdpa-net")

CLONE_NEWNET = 0x40000000
DEADLINE_SECONDS = 30
T = TypeVar("T")


def require(present: bool, what: str) -> None:
    """Skip the running test if something is missing on this machine; fail it in CI."""
    if present:
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI lacks {what}", pytrace=False)
    pytest.skip(f"this machine lacks {what}")


def require_tool(name: str) -> str:
    """The path of a command that the test needs."""
    path = shutil.which(name)
    require(path is not None, f"the command {name}")
    assert path is not None
    return path


def require_tap() -> None:
    """What marker `tap` stands for: /dev/net/tun, and the right to make a network namespace."""
    require(Path("/dev/net/tun").exists(), "/dev/net/tun")
    require(os.geteuid() == 0, "root, to make network namespaces and taps")


def require_lab() -> None:
    """What marker `vm` stands for, apart from the lab image: the rights and the tools to use it."""
    require_tap()
    require_tool("mmdebstrap")


def pytest_configure() -> None:
    """Ctrl-C reaches what tests start, also where the suite runs in the background of a script.

    Such a suite is born with SIGINT ignored, and every process it starts would be too.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Markers state conditions; they hold before any fixture is made."""
    if item.get_closest_marker("vm"):
        require_lab()
    elif item.get_closest_marker("tap"):
        require_tap()


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A directory with a short path: a Unix socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vn-") as name:
        yield Path(name)


def open_fds() -> dict[int, str]:
    """Open file descriptors of this process and what they are."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - Path.iterdir would hold a descriptor longer
        try:
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")  # noqa: PTH115
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def no_fd_leak() -> Iterator[None]:
    """The test ends with the file descriptors and threads that it began with."""
    gc.collect()
    before_fds, before_threads = open_fds(), set(threading.enumerate())
    yield
    gc.collect()
    leaked = {fd: what for fd, what in open_fds().items() if before_fds.get(fd) != what}
    assert not leaked, f"file descriptors left open: {leaked}"
    for thread in set(threading.enumerate()) - before_threads:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive(), f"thread left running: {thread.name}"


class NetworkNamespace:
    """A network namespace of its own, in which one thread runs what it is given.

    Threads and processes that this thread starts live in it too; it ends with the last of them. Network
    namespaces belong to threads, so the rest of the test process keeps its own.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._serve, name="netns", daemon=True)
        self._thread.start()

    def run(self, call: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Call it in the namespace; its result or exception is the caller's."""
        answer: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        self._calls.put((lambda: call(*arguments, **named), answer))
        result, error = answer.get(timeout=DEADLINE_SECONDS)
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def close(self) -> None:
        """End the thread, and with it the namespace."""
        self._calls.put(None)
        self._thread.join(DEADLINE_SECONDS)

    def _serve(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        failure = OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)") if libc.unshare(CLONE_NEWNET) else None
        while (entry := self._calls.get()) is not None:
            call, answer = entry
            try:
                if failure is not None:
                    raise failure
                answer.put((call(), None))
            except BaseException as error:
                answer.put((None, error))
            # A kept reference to the result would keep its file descriptors open.
            del entry, call, answer


@pytest.fixture
def netns() -> Iterator[NetworkNamespace]:
    """A private network namespace: `netns.run(function, ...)`."""
    require_tap()
    namespace = NetworkNamespace()
    yield namespace
    namespace.close()
