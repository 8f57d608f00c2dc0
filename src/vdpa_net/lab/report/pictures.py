# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report: round trips around the switch-over, and dirty pages over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdpa_net.errors import MissingTool
from vdpa_net.migration.checks import PAGE_BYTES

BLUE, GREEN, RED, AMBER, GREY = "#2f6db3", "#3f8f4f", "#c0392b", "#e8a33d", "#6b7280"
VIEW_NS = 800_000_000
"""How much is shown before the stop and, while packets are sent, behind the guest's return."""

FLOOR_MS = 0.05
MARGIN_MS = 20
MAX_BARS = 80
Round = Mapping[str, Any]


def require_plots() -> Any:
    """matplotlib's pyplot, without a display. Raises MissingTool."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to load

        mpl.use("Agg")
        from matplotlib import pyplot  # noqa: PLC0415
    except ImportError as error:
        raise MissingTool("--report needs matplotlib: pip install 'vdpa-net[plot]'") from error
    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    return pyplot


def draw_round(item: Round, directory: Path) -> list[Path]:
    """PNG and SVG of a round's pictures, as far as it has what they show; the PNG files."""
    pyplot = require_plots()
    written = []
    for name, draw in (("timeline", _timeline), ("dirty", _dirty)):
        figure = draw(pyplot, item)
        if figure is None:
            continue
        base = directory / f"round-{item['round']}-{name}"
        figure.savefig(base.with_suffix(".svg"), bbox_inches="tight", dpi=144)
        figure.savefig(base.with_suffix(".png"), bbox_inches="tight", dpi=144)
        pyplot.close(figure)
        written.append(base.with_suffix(".png"))
    return written


def _timeline(pyplot: Any, item: Round) -> Any:
    """Each packet to the guest: when it was sent, how long it and its echo took; and those that were lost."""
    timeline = item.get("timeline")
    if not timeline or not timeline["round_trips"]:
        return None
    zero = timeline["stop_request_ns"]
    back = _back_ns(timeline)
    figure, axes = pyplot.subplots(figsize=(10, 4.2))
    sent_last = max(*(at for at, _ in timeline["round_trips"]), *timeline["lost_ns"], back)
    first, last = -VIEW_NS / 1e6, (min(back + VIEW_NS, sent_last) - zero) / 1e6 + MARGIN_MS
    _shade_phases(axes, timeline, first, last)
    shown = [(at - zero, took) for at, took in timeline["round_trips"]]
    axes.scatter(
        [at / 1e6 for at, _ in shown],
        [max(FLOOR_MS, took / 1e6) for _, took in shown],
        s=5,
        color=BLUE,
        linewidths=0,
        alpha=0.6,
        rasterized=True,
        label="round trip of a packet, by the time it was sent",
    )
    lost = [(at - zero) / 1e6 for at in timeline["lost_ns"]]
    if lost:
        axes.plot(
            lost, [FLOOR_MS] * len(lost), "|", color=RED, markersize=9, label=f"{len(lost)} packets lost"
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=FLOOR_MS * 0.7)
    axes.set_xlim(first, last)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("ms since the source's device began to stop")
    axes.set_ylabel("round trip, ms")
    _mark_gap(axes, timeline, item.get("gap_ms"), compared=item["compares_ram"])
    axes.set_title(f"Round {item['round']}: packets to the guest around the switch-over", loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False, fontsize=8)
    return figure


def _mark_gap(axes: Any, timeline: Mapping[str, Any], gap_ms: float | None, *, compared: bool) -> None:
    """A bar over the time without a packet from the guest."""
    silence = timeline.get("silence")
    if not silence or gap_ms is None:
        return
    zero, place = timeline["stop_request_ns"], axes.get_xaxis_transform()
    start, end = ((at - zero) / 1e6 for at in silence)
    axes.plot([start, end], [0.95, 0.95], "|-", color="black", linewidth=1.4, markersize=9, transform=place)
    what = " (RAM was compared meanwhile)" if compared else ""
    # A long gap leaves no room behind it.
    height, side = (0.9, "right") if end - start > axes.get_xlim()[1] - end else (0.95, "left")
    text = f"  gap {gap_ms:g} ms{what}  "
    axes.text(end, height, text, transform=place, va="center", ha=side, fontsize=9)


def _shade_phases(axes: Any, timeline: Mapping[str, Any], first_ms: float, last_ms: float) -> None:
    """The phases, told apart by their colour and named below the picture."""
    zero = timeline["stop_request_ns"]
    started = timeline["started_ns"] or timeline["ended_ns"]
    phases = (
        ("pre-copy", None, timeline["released_ns"], GREEN, 0.10),
        ("last pass", timeline["released_ns"], zero, AMBER, 0.18),
        ("nobody serves the guest", zero, started, RED, 0.13),
        ("guest at the destination", started, None, BLUE, 0.08),
    )
    for name, start, end, colour, alpha in phases:
        left = first_ms if start is None else max(first_ms, (start - zero) / 1e6)
        right = last_ms if end is None else min(last_ms, (end - zero) / 1e6)
        if right > left:
            axes.axvspan(left, right, color=colour, alpha=alpha, linewidth=0, label=name)


def _back_ns(timeline: Mapping[str, Any]) -> int:
    """When the guest's first packet came from the destination, or the best that is known about it."""
    if timeline.get("silence"):
        return int(timeline["silence"][1])
    started = int(timeline["started_ns"] or timeline["ended_ns"])
    return min((at for at in timeline["arrivals_ns"] if at >= started), default=started)


def _dirty(pyplot: Any, item: Round) -> Any:
    """Above what QEMU had left to send in each pass, below what the device wrote and marked meanwhile."""
    samples, series = item.get("samples") or [], item.get("audit_series") or []
    if not samples or not series or "timeline" not in item:
        return None
    zero = item["timeline"]["begun_ns"]
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(10, 4.8), sharex=True)
    times = [(sample["at_ns"] - zero) / 1e9 for sample in samples]
    left = [sample["remaining_bytes"] / PAGE_BYTES for sample in samples]
    above.step(times, left, where="post", color=BLUE, label="pages that QEMU had left to send")
    for number, start in item["pass_starts"]:
        at = (start - zero) / 1e9
        above.axvline(at, color=GREY, linewidth=0.8, linestyle=":")
        place = above.get_xaxis_transform()
        above.text(at, 0.97, f" pass {number}", transform=place, fontsize=8, color=GREY, va="top")
    above.set_yscale("symlog", linthresh=100)
    above.set_ylabel("pages")
    above.set_ylim(bottom=0)
    _bars(below, series, zero)
    for axes in (above, below):
        axes.axvline((item["timeline"]["stop_request_ns"] - zero) / 1e9, color=RED, linewidth=1.2)
        axes.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(0.9, 1.14), ncols=2)
    below.set_xlabel("s since the migration began; red: the source's device stops")
    above.set_title(f"Round {item['round']}: dirty pages", loc="left", pad=14)
    return figure


def _bars(axes: Any, series: Sequence[Mapping[str, int]], zero: int) -> None:
    """The audit's intervals, as they lie or, where there are many, gathered into bars of equal width."""
    last_s = (series[-1]["end_ns"] - zero) / 1e9
    width = max(last_s / MAX_BARS, 1e-3)
    written, over = [0] * (MAX_BARS + 1), [0] * (MAX_BARS + 1)
    for entry in series:
        bar = min(MAX_BARS, max(0, int((entry["end_ns"] - zero) / 1e9 / width)))
        written[bar] += entry["written"]
        over[bar] += max(0, entry["marked"] - entry["written"])
    starts = [bar * width for bar in range(MAX_BARS + 1)]
    style = {"align": "edge", "linewidth": 0}
    axes.bar(starts, written, width * 0.9, color=GREEN, label="written by the device", **style)
    axes.bar(starts, over, width * 0.9, bottom=written, color=AMBER, label="marked beyond that", **style)
    axes.set_ylabel(f"pages per {width * 1000:.0f} ms")
