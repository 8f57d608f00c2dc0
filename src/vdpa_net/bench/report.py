# SPDX-License-Identifier: Apache-2.0
"""The result of a run, and JSON of it for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdpa_net.bench import host
from vdpa_net.bench.case import CaseResult
from vdpa_net.bench.pace import Evenness
from vdpa_net.device.options import DEFAULT_POLL_US
from vdpa_net.errors import OptionError

SCHEMA = 3
"""2 had ratios of medians, 3 has medians of the ratios of each round."""


@dataclass
class Report:
    """All cases of a run and the machine that they ran on; `failures` tell what could not be measured.

    `spent_s` is how long each group took, its set-up included.
    """

    host: dict[str, object]
    rounds: int
    seconds: float
    results: list[CaseResult]
    poll_us: int | None = None
    failures: list[str] = field(default_factory=list)
    spent_s: dict[str, float] = field(default_factory=dict)

    @property
    def missed(self) -> list[CaseResult]:
        """The cases with a goal that does not hold."""
        return [result for result in self.results if result.missed()]

    def to_json(self) -> dict[str, object]:
        """Everything that was measured."""
        return {
            "schema": SCHEMA,
            "host": self.host,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "poll_us": self.poll_us,
            "failures": self.failures,
            "spent_s": self.spent_s,
            "cases": [result.to_json() for result in self.results],
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Report:
        """What `to_json` gave. Raises OptionError for anything else."""
        try:
            if told["schema"] != SCHEMA:
                raise OptionError(
                    f"a result of schema {told['schema']}, this version reads {SCHEMA}; measure again "
                    "with vdpa-net bench --json, or tell it with the version that wrote it"
                )
            results = [CaseResult.from_json(case) for case in told["cases"]]
            return cls(
                told["host"],
                told["rounds"],
                told["seconds"],
                results,
                told["poll_us"],
                told["failures"],
                told.get("spent_s", {}),
            )
        except (KeyError, TypeError) as error:
            raise OptionError(f"not a result of `vdpa-net bench --json`: {error!r}") from error

    @classmethod
    def read(cls, path: Path) -> Report:
        """A file that `vdpa-net bench --json` wrote. Raises OptionError where it is none."""
        try:
            return cls.from_json(json.loads(path.read_text()))
        except (OSError, ValueError, OptionError) as error:
            raise OptionError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """Write it as JSON: the whole file or, if that fails, none of it."""
        unfinished = path.with_name(f"{path.name}.tmp")
        unfinished.write_text(json.dumps(self.to_json(), indent=2) + "\n")
        unfinished.replace(path)

    @property
    def evenness(self) -> Evenness:
        """The pace over the whole run."""
        return sum((result.evenness for result in self.results), Evenness())

    @property
    def duration(self) -> str:
        """How long the run took, and each group of it; nothing where that was not told."""
        if not self.spent_s:
            return ""
        groups = ", ".join(f"{name} {spent:.0f}" for name, spent in self.spent_s.items())
        return f"measured in {sum(self.spent_s.values()):.0f} s: {groups}"

    @property
    def conditions(self) -> str:
        """The machine, how was measured, and at which pace, with a semicolon between."""
        poll_us = DEFAULT_POLL_US if self.poll_us is None else self.poll_us
        samples = f"{self.rounds} round{'s' * (self.rounds != 1)} of {self.seconds:g} s"
        device = f"the device polls up to {poll_us} us after work"
        return f"{host.words(self.host)}; {samples}, {device}; {self.evenness}"
