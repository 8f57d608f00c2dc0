# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net log-test`: live migrations between two vhost-user back ends without a virtual machine.

A front end acts like a migrating VMM, a guest keeps sending. The back ends are two of our devices on
loopbacks, or any two that send back what they are sent. Needs no root, no QEMU and no /dev/net/tun.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vdpa_net.errors import OptionError, PeerError
from vdpa_net.migration.faults import Fault, Side, parse_fault
from vdpa_net.migration.junit import to_junit
from vdpa_net.migration.verdict import Line, Verdict
from vdpa_net.testing import vhost_side
from vdpa_net.testing.front_end import F_LOG_ALL, F_VERSION_1, WANTED_FEATURES, Manners, VhostFrontEnd
from vdpa_net.testing.log_round import LogRound
from vdpa_net.testing.log_verdict import judge
from vdpa_net.testing.movable_guest import MovableGuest
from vdpa_net.testing.vhost_side import ForeignSide, VhostSide

if TYPE_CHECKING:
    from rich.console import Console

MAC = "52:54:00:00:00:01"
"""The guest's station."""


@dataclass(frozen=True)
class LogTestOptions:
    """What to test and how. `rounds` go back and forth between the sides.

    Faults go to the first side or to the second, where each shows in the first round. With `backend_sockets`
    somebody else's two back ends are tested. `features` are those of virtio that the guest wants. Raises
    OptionError for what does not go together.
    """

    seed: int = 0
    rounds: int = 1
    faults: tuple[str, ...] = ()
    packed: bool = False
    queue_pairs: int = 1
    over_vfio_user: bool = False
    backend_sockets: tuple[Path, Path] | None = None
    features: int = WANTED_FEATURES
    manners: Manners = field(default_factory=Manners)

    def __post_init__(self) -> None:
        self.parsed_faults()
        if self.rounds < 1 or not 1 <= self.queue_pairs <= 16:
            raise OptionError(
                f"{self.rounds} rounds, {self.queue_pairs} queue pairs: expected 1 or more, 1 to 16"
            )
        if self.backend_sockets is not None and (self.faults or self.over_vfio_user):
            raise OptionError("--backend-socket: faults and transports are those of our own devices")

    def parsed_faults(self) -> list[Fault]:
        """The faults as objects."""
        return [parse_fault(text, seed=self.seed) for text in self.faults]

    def against(self, backend_sockets: tuple[Path, Path]) -> LogTestOptions:
        """The same test of the back ends at these sockets."""
        return replace(self, backend_sockets=backend_sockets)

    def describe(self) -> str:
        """In one line, for people."""
        faults = ", ".join(str(fault) for fault in self.parsed_faults()) or "none"
        what = "two devices on loopbacks"
        if self.backend_sockets is not None:
            what = " and ".join(str(path) for path in self.backend_sockets)
        rings = f"{self.queue_pairs} queue pairs, " if self.queue_pairs > 1 else ""
        rings += "packed rings" if self.packed else "split rings"
        return f"{what}, {rings}, seed {self.seed}, faults: {faults}"


class LogTest:
    """`run` migrates as often as the options say, and judges."""

    def __init__(self, options: LogTestOptions) -> None:
        self.options = options
        self.rounds: list[LogRound] = []
        self._stack = ExitStack()

    def run(self, directory: Path) -> Verdict:
        """The verdict on all rounds; sockets of our own sides go to `directory`.

        Raises PeerError where the first back end can't do what a migration needs, and what the parts raise
        when they can't be set up.
        """
        options = self.options
        verdicts: list[Verdict] = []
        with self._stack:
            sides = self._make_sides(directory)
            guest = self._stack.enter_context(
                MovableGuest(seed=options.seed, queue_pairs=options.queue_pairs, packed=options.packed)
            )
            front_end: VhostFrontEnd | None = self._connect(sides[0], guest)
            for number in range(options.rounds):
                assert front_end is not None
                source, destination = sides[number % 2], sides[(number + 1) % 2]
                done = LogRound(guest, front_end, source, destination)
                self.rounds.append(done)
                done.run()
                front_end = done.front_end_after
                if number == options.rounds - 1 and front_end is not None:
                    self._disconnect(front_end, done)
                verdicts.append(judge(done, MAC))
                if front_end is None:
                    break
        return self._sum_up(verdicts)

    def _make_sides(self, directory: Path) -> tuple[vhost_side.Side, vhost_side.Side]:
        options = self.options
        if options.backend_sockets is not None:
            source, destination = options.backend_sockets
            return ForeignSide(source), ForeignSide(destination)
        made = [
            self._stack.enter_context(
                VhostSide(
                    directory / f"{side.value}.vhost",
                    MAC,
                    [fault for fault in options.parsed_faults() if fault.side is side],
                    over_vfio_user=options.over_vfio_user,
                    packed=options.packed,
                    queue_pairs=options.queue_pairs,
                )
            )
            for side in (Side.SOURCE, Side.DESTINATION)
        ]
        return made[0], made[1]

    def _connect(self, side: vhost_side.Side, guest: MovableGuest) -> VhostFrontEnd:
        front_end = VhostFrontEnd(
            side.path,
            guest.memory,
            guest.rings,
            features=self.options.features,
            manners=self.options.manners,
        )
        self._stack.callback(front_end.close)
        front_end.negotiate()
        for bit, name in ((F_VERSION_1, "VERSION_1"), (F_LOG_ALL, "LOG_ALL")):
            if not front_end.offered & bit:
                raise PeerError(f"{side.path}: the back end does not offer {name}, which this test needs")
        guest.adapt(front_end.features)
        front_end.start()
        return front_end

    @staticmethod
    def _disconnect(front_end: VhostFrontEnd, done: LogRound) -> None:
        try:
            front_end.stop()
        except PeerError as error:
            done.seen.problems.append(f"destination: {error}")
        finally:
            front_end.close()

    def _sum_up(self, verdicts: list[Verdict]) -> Verdict:
        options = self.options
        context: dict[str, object] = {
            "seed": options.seed,
            "packed": options.packed,
            "queue_pairs": options.queue_pairs,
            "transport": "vfio-user" if options.over_vfio_user else "in-process",
            "faults": [str(fault) for fault in options.parsed_faults()],
        }
        if options.rounds == 1:
            return replace(verdicts[0], context=context | verdicts[0].context)
        lines = [
            Line(f"round {number}: {line.name}", line.outcome, line.measured, line.expected, line.detail)
            for number, verdict in enumerate(verdicts, 1)
            for line in verdict.lines
        ]
        context |= {"rounds": [verdict.context for verdict in verdicts]}
        not_checked = {name: why for verdict in verdicts for name, why in verdict.not_checked.items()}
        return Verdict(lines, context, not_checked)


def migrate_in_a_directory(options: LogTestOptions) -> Verdict:
    """Run the test in a directory of its own; the verdict. Raises what LogTest.run raises."""
    with tempfile.TemporaryDirectory(prefix="vdpa-net-") as directory:
        return LogTest(options).run(Path(directory))


def run_log_test(
    options: LogTestOptions,
    console: Console,
    *,
    json_path: Path | None = None,
    junit_path: Path | None = None,
) -> int:
    """Migrate, print the verdict, write it to the files that are named; the exit code of the verdict."""
    verdict = migrate_in_a_directory(options)
    console.print(f"log-test: {options.describe()}", highlight=False)
    verdict.render(console)
    if json_path is not None:
        json_path.write_text(json.dumps(verdict.to_json(), indent=2) + "\n")
    if junit_path is not None:
        junit_path.write_bytes(to_junit(verdict, "vdpa-net log-test"))
    return verdict.exit_code
