# SPDX-License-Identifier: Apache-2.0
"""The report of a migration, from a verdict's JSON made up here."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the extra plot is not installed")

from vdpa_net.lab.report import write_report

MS, SECOND = 1_000_000, 1_000_000_000


def a_round(number: int, *, compares_ram: bool) -> dict[str, Any]:
    stop = 6 * SECOND
    arrivals = [at for at in range(5 * SECOND, 8 * SECOND, 5 * MS) if not stop < at < stop + 60 * MS]
    return {
        "round": number,
        "from": "A",
        "compares_ram": compares_ram,
        "passes": 3,
        "transferred_bytes": 100 << 20,
        "gap_ms": 60.0,
        "downtime_ms": 25,
        "lost_in_gap": 2,
        "pages_after_first_pass": 70,
        "samples": [
            {"at_ns": at * SECOND, "remaining_bytes": (9 - at) << 24, "transferred_bytes": 1, "passes": 1}
            for at in range(1, 6)
        ],
        "pass_starts": [[2, 4 * SECOND], [3, 5 * SECOND]],
        "audit_series": [
            {"end_ns": at * SECOND, "written": 10 * at, "marked": 11 * at} for at in range(2, 7)
        ],
        "timeline": {
            "begun_ns": SECOND,
            "released_ns": stop - 50 * MS,
            "stop_request_ns": stop,
            "stopped_ns": stop + MS,
            "ended_ns": stop + 20 * MS,
            "compared_ns": None,
            "started_ns": stop + 40 * MS,
            "silence": [stop, stop + 60 * MS],
            "round_trips": [[at, MS] for at in arrivals],
            "lost_ns": [stop + 10 * MS, stop + 15 * MS],
            "arrivals_ns": arrivals,
        },
        "device_A": {"log": {"marks": 5}, "queues": {"0": {"packets": 7, "kicks": 1}, "1": {"packets": 0}}},
    }


def verdict(*rounds: dict[str, Any]) -> dict[str, Any]:
    return {
        "verdict": "FAIL",
        "lines": [
            {
                "name": "round 1: guest RAM",
                "outcome": "FAIL",
                "measured": "1 of 9 pages differ",
                "expected": "0 pages differ",
                "detail": ["page 0x7 <script>alert(1)</script>"],
            },
        ],
        "not_checked": {"ring state": "not ours"},
        "context": {"qemu": "11.1.3", "accel": "tcg", "commands": ["qemu -m 1 && x"], "rounds": list(rounds)},
    }


class Page(HTMLParser):
    """Tags and text of a page; refuses what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.tags: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.sources += [value or "" for name, value in attrs if name == "src"]
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_round_whose_guest_did_not_arrive_is_told_without_pictures(tmp_path: Path) -> None:
    item = a_round(1, compares_ram=True)
    for name in ("timeline", "transferred_bytes", "gap_ms", "downtime_ms", "passes", "lost_in_gap"):
        item.pop(name, None)
    given = verdict(item)
    given["context"] |= {"packed": False, "faults": ["no-announce"], "host": {"machine": "x86_64"}}
    page = Page(write_report(tmp_path, given).read_text())
    assert page.sources == []
    assert "machine x86_64" in page.text
    assert "no-announce" in page.text
    assert "[" not in page.text.partition("How it was run")[2]


def test_page_holds_everything_and_asks_nobody(tmp_path: Path) -> None:
    given = verdict(a_round(1, compares_ram=True), a_round(2, compares_ram=False))
    path = write_report(tmp_path / "report", given)
    page = Page(path.read_text())
    assert not page.open
    assert len(page.sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "script" not in page.tags
    for text in (
        "FAIL",
        "guest RAM",
        "page 0x7 <script>",
        "not ours",
        "qemu -m 1 && x",
        "QEMU 11.1.3",
        "A vq0",
    ):
        assert text in page.text
    assert "A vq1" not in page.text
    assert json.loads((path.parent / "verdict.json").read_text()) == given


def test_each_picture_is_there_as_png_and_svg(tmp_path: Path) -> None:
    write_report(tmp_path, verdict(a_round(1, compares_ram=False)))
    for name in ("timeline", "dirty"):
        assert (tmp_path / f"round-1-{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"round-1-{name}.svg").read_text()


def test_what_a_round_lacks_is_left_out(tmp_path: Path) -> None:
    bare = {
        "round": 1,
        "from": "A",
        "compares_ram": True,
        "pages_after_first_pass": 0,
    }
    assert not Page(write_report(tmp_path / "bare", verdict(bare)).read_text()).sources
    assert not Page(write_report(tmp_path / "none", verdict()).read_text()).sources
