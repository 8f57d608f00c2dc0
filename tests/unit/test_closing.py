# SPDX-License-Identifier: Apache-2.0
"""What is started and closed by `with`."""

from __future__ import annotations

import pytest

from vdpa_net.closing import Starting


class Recorded(Starting):
    def __init__(self, *, fails: bool = False) -> None:
        self.calls: list[str] = []
        self._fails = fails

    def start(self) -> None:
        self.calls.append("start")
        if self._fails:
            raise RuntimeError("half-way")

    def close(self) -> None:
        self.calls.append("close")


def test_with_starts_and_closes_whatever_happens_inside() -> None:
    recorded = Recorded()
    with pytest.raises(ValueError, match="inside"), recorded as entered:
        assert (entered, recorded.calls) == (recorded, ["start"])
        raise ValueError("inside")
    assert recorded.calls == ["start", "close"]


def test_what_a_start_that_fails_has_made_is_given_back() -> None:
    recorded = Recorded(fails=True)
    with pytest.raises(RuntimeError, match="half-way"), recorded:
        pytest.fail("the start has failed")
    assert recorded.calls == ["start", "close"]
