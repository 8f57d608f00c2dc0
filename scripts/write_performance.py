#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the figures of docs/performance.md, tables and pictures, from one result of `vdpa-net bench --json`.

scripts/write_performance.py RESULT    keep RESULT as docs/performance.json, write tables and pictures
scripts/write_performance.py           write them anew from docs/performance.json
scripts/write_performance.py --check   exit with 1 if the tables are not those of docs/performance.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from vdpa_net.bench import markdown
from vdpa_net.bench.plot import drawn_families
from vdpa_net.bench.report import Report

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, RESULT, IMAGES = DOCS / "performance.md", DOCS / "performance.json", DOCS / "images"
BEGIN = "<!-- figures: written by scripts/write_performance.py -->\n"
END = "<!-- end of the figures -->\n"
DIGITS = 4


def main(words: list[str]) -> int:
    """Write or check; returns the exit code."""
    if words == ["--check"]:
        if PAGE.read_text() == page(Report.read(RESULT)):
            return 0
        print("docs/performance.md does not tell docs/performance.json: make bench-docs", file=sys.stderr)
        return 1
    if words:
        RESULT.write_text(shortened(Report.read(Path(words[0]))))
    report = Report.read(RESULT)
    PAGE.write_text(page(report))
    draw_images(report)
    print(f"wrote {PAGE} and pictures of {', '.join(sorted(drawn_families(report)))}")
    return 0


def shortened(report: Report) -> str:
    """The result with as many digits as a measurement has, a line for each case."""
    told = report.to_json()
    cases = told.pop("cases")
    assert isinstance(cases, list)
    lines = ",\n".join(json.dumps(rounded(case)) for case in cases)
    return f'{json.dumps(told)[:-1]}, "cases": [\n{lines}\n]}}\n'


def rounded(value: Any) -> Any:
    """The same with shorter numbers."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def page(report: Report) -> str:
    """The page with these figures between its two marks."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [f"{report.conditions}; medians with smallest and largest sample."]
    lines += markdown.figures(report, IMAGES.name, drawn_families(report))
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n\n{END}{after}"


def draw_images(report: Report) -> None:
    """The pictures that can be looked at in a browser; those of families that are gone go."""
    from vdpa_net.bench.plot import draw  # noqa: PLC0415

    for path in IMAGES.glob("bench-*.svg"):
        path.unlink()
    with tempfile.TemporaryDirectory() as directory:
        for path in draw(report, Path(directory)):
            if path.suffix == ".svg":
                (IMAGES / path.name).write_text(path.read_text())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
