#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the figures of the documentation, as plain SVG.

scripts/draw_figures.py            write docs/images/*.svg
scripts/draw_figures.py --check    exit with 1 if a file there is not what would be written
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
LINE = 17
STYLE = (
    "text{font:13px sans-serif;fill:#1b1f24}.title{font-weight:bold}.note{font-size:12px;fill:#57606a}"
    "rect{rx:6px;stroke:#57606a}line{stroke:#1b1f24;stroke-width:1.5}"
)
PYTHON, RUST, OTHER, FRAME = "#ddf4ff", "#fff1e5", "#f6f8fa", "#ffffff"


@dataclass(frozen=True)
class Box:
    """A labelled rectangle; the first line of its text is its title. Units are pixels."""

    x: int
    y: int
    width: int
    height: int
    text: tuple[str, ...]
    fill: str = OTHER

    def svg(self) -> Iterator[str]:
        """The rectangle and its lines of text, centred."""
        place = f'x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}"'
        yield f'<rect {place} fill="{self.fill}"/>'
        first = self.y + (self.height - LINE * len(self.text)) // 2 + 13
        for number, line in enumerate(self.text):
            kind = "title" if number == 0 else "note"
            middle = self.x + self.width // 2
            y = first + LINE * number
            yield f'<text class="{kind}" x="{middle}" y="{y}" text-anchor="middle">{escape(line)}</text>'


@dataclass(frozen=True)
class Arrow:
    """A line with heads at both ends, or only at its end; the label stands beside its middle."""

    x1: int
    y1: int
    x2: int
    y2: int
    label: str = ""
    both: bool = True

    def svg(self) -> Iterator[str]:
        """The line and its label."""
        start = ' marker-start="url(#head)"' if self.both else ""
        yield (
            f'<line x1="{self.x1}" y1="{self.y1}" x2="{self.x2}" y2="{self.y2}"'
            f'{start} marker-end="url(#head)"/>'
        )
        if self.label:
            x, y = (self.x1 + self.x2) // 2 + 8, (self.y1 + self.y2) // 2 + 4
            yield f'<text class="note" x="{x}" y="{y}">{escape(self.label)}</text>'


def side(x: int, name: str) -> list[Box | Arrow]:
    """One side of a migration: QEMU at the top, the tap at the bottom."""
    left, width = x + 20, 300
    return [
        Box(left, 50, width, 62, (f"QEMU, {name}", "stock guest, virtio-net, rings in guest RAM")),
        Arrow(left + 150, 112, left + 150, 148, "vhost-user socket"),
        Box(left, 148, width, 52, ("vDPA driver", "driver/: in process, or over vfio-user"), PYTHON),
        Arrow(left + 150, 200, left + 150, 236, "registers"),
        Box(
            left,
            236,
            width,
            62,
            ("vdpa net device", "device/, migration/: PCI, virtio, LM registers"),
            PYTHON,
        ),
        Arrow(left + 150, 298, left + 150, 334, "start, stop, ring state"),
        Box(left, 334, width, 62, ("data plane", "rust/: rings, dirty log, worker threads"), RUST),
        Arrow(left + 150, 396, left + 150, 432, "packets"),
        Box(left, 432, width, 40, ("tap",)),
        Arrow(left + 150, 472, left + 150, 508),
    ]


def dataflow() -> str:
    """The flat migration: two sides on one bridge, and the traffic endpoint."""
    shapes: list[Box | Arrow] = [
        Box(10, 10, 340, 475, ("",), FRAME),
        Box(430, 10, 340, 475, ("",), FRAME),
        *side(10, "source"),
        *side(430, "destination"),
        Box(10, 508, 760, 40, ("bridge, in a network namespace of its own",)),
        Arrow(390, 548, 390, 578),
        Box(240, 578, 300, 52, ("traffic endpoint", "numbered, checksummed packets, both ways")),
        Arrow(332, 81, 448, 81, both=False),
    ]
    extra = [
        '<text class="title" x="30" y="34">source</text>',
        '<text class="title" x="450" y="34">destination</text>',
        '<text class="note" x="390" y="72" text-anchor="middle">RAM</text>',
    ]
    return document(780, 640, "Data flow of a migration between two vdpa net devices", shapes, extra)


def document(width: int, height: int, title: str, shapes: list[Box | Arrow], extra: list[str]) -> str:
    """The whole SVG file."""
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
        ' orient="auto-start-reverse"><path d="M0 0 8 4 0 8z"/></marker>'
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style><defs>{head}</defs>",
        f'<rect width="{width}" height="{height}" fill="#ffffff" stroke="none"/>',
        *(line for shape in shapes for line in shape.svg()),
        *extra,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def level1(x: int, name: str) -> list[Box | Arrow]:
    """One level-1 guest of the nested lab, from the level-2 guest down to the bridge."""
    left, width = x + 20, 340
    middle = left + 170
    return [
        Box(x, 40, 380, 358, ("",), FRAME),
        Box(
            left,
            52,
            width,
            62,
            (f"QEMU of L2, {name}", "guest L2: virtio-net; L2 viommu", "-netdev vhost-user"),
        ),
        Arrow(middle, 114, middle, 148, "vhost socket"),
        Box(
            left,
            148,
            width,
            62,
            ("vDPA driver", "vdpa-net driver (ours)", "or DPDK's vdpa/ifc (stock)"),
            PYTHON,
        ),
        Arrow(middle, 210, middle, 244, "/dev/vfio"),
        Box(left, 244, width, 46, ("VFIO: vfio-pci, type 1 IOMMU", "kernel of L1, intel_iommu=on")),
        Arrow(middle, 290, middle, 324, "PCI 01:00.0"),
        Box(
            left,
            324,
            width,
            62,
            ("QEMU of L1 (viommu)", "vfio-user-pci behind intel-iommu", "manager NIC: virtio-net"),
        ),
        Arrow(left + 90, 386, left + 90, 440, "vfio-user"),
        Box(left, 440, 190, 62, ("vdpa net device", "vdpa-net serve", "on a tap device"), PYTHON),
        Box(left + 210, 440, 130, 62, ("manager tap", "migration of L2")),
        Arrow(left + 275, 386, left + 275, 440),
        Arrow(left + 90, 502, left + 90, 560),
        Arrow(left + 275, 502, left + 275, 560),
    ]


def nested() -> str:
    """The nested lab."""
    shapes: list[Box | Arrow] = [
        *level1(20, "source"),
        *level1(440, "destination"),
        Box(
            20,
            560,
            800,
            46,
            ("virbr0: bridge in the lab's own network namespace", "traffic endpoint on the host"),
        ),
        Arrow(382, 83, 458, 83, both=False),
    ]
    extra = [
        '<text class="note" x="420" y="74" text-anchor="middle">RAM</text>',
        '<text class="title" x="40" y="30">guest L1, source</text>',
        '<text class="title" x="460" y="30">guest L1, destination</text>',
    ]
    return document(
        840, 626, "The nested lab: a level-2 guest moves between two level-1 guests", shapes, extra
    )


FIGURES = {"dataflow.svg": dataflow, "nested.svg": nested}


def main() -> int:
    """Write or check every figure; returns the exit code."""
    wrong = [name for name, draw in FIGURES.items() if not is_written(IMAGES / name, draw())]
    if "--check" in sys.argv[1:]:
        for name in wrong:
            print(f"docs/images/{name} is not what scripts/draw_figures.py draws", file=sys.stderr)
        return 1 if wrong else 0
    for name in wrong:
        (IMAGES / name).write_text(FIGURES[name]())
        print(f"wrote docs/images/{name}")
    return 0


def is_written(path: Path, text: str) -> bool:
    """Whether the file has this text."""
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
