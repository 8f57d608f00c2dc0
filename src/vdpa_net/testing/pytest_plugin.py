# SPDX-License-Identifier: Apache-2.0
"""The log test as pytest fixtures, for projects that have a vhost-user back end or front end of their own.

Switch it on in the root conftest.py:

    pytest_plugins = ["vdpa_net.testing.pytest_plugin"]

It is no automatic plugin: installing this package must not change the test runs of others on the machine.

    def test_migration_loses_nothing(vhost_migration, my_two_back_ends):
        vhost_migration("/run/source.sock", "/run/destination.sock", rounds=2)
"""

from __future__ import annotations

import io
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from vdpa_net.errors import PeerError
from vdpa_net.migration.faults import parse_fault
from vdpa_net.migration.verdict import Outcome, Verdict
from vdpa_net.testing.front_end import WANTED_FEATURES, Manners
from vdpa_net.testing.log_test import MAC, LogTestOptions, migrate_in_a_directory
from vdpa_net.testing.vhost_side import VhostSide

_OPTION = "--vhost-sockets"
_REPORT_COLUMNS = 120
_POLL_S = 0.01


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--vhost-sockets SRC,DST`."""
    parser.getgroup("vdpa-net").addoption(
        _OPTION, metavar="SRC,DST", help="vhost-user back ends under test: the sockets at which they listen"
    )


@pytest.fixture
def vhost_sockets(pytestconfig: pytest.Config) -> tuple[Path, Path]:
    """The two sockets that `--vhost-sockets` names; skips the test where it was not given."""
    text = pytestconfig.getoption(_OPTION, default=None)
    if not text:
        pytest.skip(f"no back end to test: {_OPTION} SRC,DST was not given")
    source, comma, destination = text.partition(",")
    if not (source and comma and destination):
        raise pytest.UsageError(f"{_OPTION} takes SRC,DST, got {text!r}")
    return Path(source), Path(destination)


class VhostMigration:
    """Migrates a guest between two vhost-user back ends that send back what they are sent."""

    def __call__(
        self,
        source: Path | str,
        destination: Path | str,
        *,
        seed: int = 0,
        rounds: int = 1,
        packed: bool = False,
        queue_pairs: int = 1,
        features: int = WANTED_FEATURES,
        manners: Manners | None = None,
        wait_s: float = 10.0,
    ) -> Verdict:
        """Migrate; fail the test with the verdict if it is not PASS.

        The back ends may still be starting: their sockets are waited for, `wait_s` seconds in all.
        """
        verdict = self.verdict(
            source,
            destination,
            LogTestOptions(
                seed=seed,
                rounds=rounds,
                packed=packed,
                queue_pairs=queue_pairs,
                features=features,
                manners=manners or Manners(),
            ),
            wait_s=wait_s,
        )
        if verdict.outcome is not Outcome.PASS:
            pytest.fail(_rendered(verdict), pytrace=False)
        return verdict

    def verdict(
        self,
        source: Path | str,
        destination: Path | str,
        options: LogTestOptions | None = None,
        *,
        wait_s: float = 10.0,
    ) -> Verdict:
        """Migrate, and leave the judgement to the caller. Raises PeerError for a back end that can't."""
        sockets = Path(source), Path(destination)
        deadline = time.monotonic() + wait_s
        for path in sockets:
            _wait_for_socket(path, deadline)
        return migrate_in_a_directory((options or LogTestOptions()).against(sockets))


@pytest.fixture
def vhost_migration() -> VhostMigration:
    """Call it with two sockets; see VhostMigration."""
    return VhostMigration()


@pytest.fixture
def vhost_device(tmp_path: Path) -> Iterator[Callable[..., VhostSide]]:
    """Makes our own device on a loopback, behind a vhost-user socket (`path`): a peer for front ends.

    `vhost_device(*faults, packed=False, queue_pairs=1)`, each call another; faults as on the command line.
    """
    with ExitStack() as stack:
        count = 0

        def make(*faults: str, packed: bool = False, queue_pairs: int = 1, seed: int = 0) -> VhostSide:
            nonlocal count
            count += 1
            parsed = [parse_fault(text, seed=seed) for text in faults]
            path = tmp_path / f"vhost-device-{count}.sock"
            return stack.enter_context(VhostSide(path, MAC, parsed, packed=packed, queue_pairs=queue_pairs))

        yield make


def _wait_for_socket(path: Path, deadline: float) -> None:
    # Not by connecting: some back ends serve one connection, and end with it.
    while not (path.exists() and stat.S_ISSOCK(path.stat().st_mode)):
        if time.monotonic() > deadline:
            raise PeerError(f"{path}: no back end has come to listen there")
        time.sleep(_POLL_S)


def _rendered(verdict: Verdict) -> str:
    out = io.StringIO()
    verdict.render(Console(file=out, width=_REPORT_COLUMNS))
    return f"the migration does not pass\n{out.getvalue()}"
