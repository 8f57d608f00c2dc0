# SPDX-License-Identifier: Apache-2.0
"""The page: one HTML file that holds everything, pictures included."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vdpa_net.lab.report.pictures import draw_round, require_plots

MAX_PICTURED_ROUNDS = 6
LONG_FIELDS = frozenset({"rounds", "commands"})
COLOURS = {"PASS": "#1e7d3c", "FAIL": "#b3261e", "NOT RUN": "#9a6700"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 72rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th { text-align: left; border-bottom: 2px solid #d0d7de; padding: .3rem .6rem .3rem 0; white-space: nowrap; }
td { border-bottom: 1px solid #eaeef2; padding: .3rem .6rem .3rem 0; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.outcome { color: white; border-radius: .3rem; padding: .05rem .45rem; font-size: .78rem;
           white-space: nowrap; }
.detail { font: .8rem/1.4 ui-monospace, monospace; color: #57606a; margin: .2rem 0; }
pre { background: #f6f8fa; padding: .8rem; border-radius: .4rem; font-size: .78rem; white-space: pre-wrap;
      word-break: break-all; }
img { max-width: 100%; margin: .6rem 0; } .meaning { color: #57606a; font-size: .86rem; }
"""
MEANINGS = {
    "gap": "the longest time without a packet from the guest around the switch-over, as seen at the bridge; "
    "where RAM was compared, both machines stood still for it, and that time is in the gap",
    "downtime": "what QEMU says: how long the source had the machine stopped before the end",
    "lost in gap": "packets to the guest that were sent after the source's device began to stop and before "
    "the guest received again: nobody was there to take them; and what waited right before the stop for a "
    "guest without receive buffers",
    "late pages": "pages that the device wrote after QEMU had sent them: only the dirty log saves these",
}


def write_report(directory: Path, verdict: Mapping[str, Any]) -> Path:
    """Write index.html and its pictures into a directory; returns the page. Raises MissingTool."""
    require_plots()
    directory.mkdir(parents=True, exist_ok=True)
    page = directory / "index.html"
    page.write_text(_page(verdict, directory))
    (directory / "verdict.json").write_text(json.dumps(verdict, indent=1, default=str) + "\n")
    return page


def _page(verdict: Mapping[str, Any], directory: Path) -> str:
    context = verdict["context"]
    rounds = context.get("rounds", [])
    parts = [
        f"<h1>Live migration: {_badge(verdict['verdict'])}</h1>",
        f'<p class="meaning">{escape(_summary(context))}</p>',
        "<h2>Rounds</h2>",
        _rounds(rounds),
        _meanings(),
        "<h2>Verdict</h2>",
        _lines(verdict["lines"], verdict.get("not_checked") or {}),
        *_pictures(rounds, directory),
        "<h2>Counters of the devices after the last round</h2>",
        _counters(rounds),
        "<h2>How it was run</h2>",
        _settings(context),
        *(f"<pre>{escape(command)}</pre>" for command in context.get("commands", [])),
    ]
    body = "\n".join(parts)
    title = f"vdpa-net {context.get('command', 'migrate')}: {verdict['verdict']}"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _badge(outcome: str) -> str:
    colour = COLOURS.get(outcome, "#57606a")
    return f'<span class="outcome" style="background:{colour}">{escape(outcome)}</span>'


def _summary(context: Mapping[str, Any]) -> str:
    qemu = f"QEMU {context.get('qemu', '?')} ({str(context.get('accel', '?')).upper()})"
    words = [
        qemu,
        f"{context.get('memory_mib', '?')} MiB guest",
        f"driver {context.get('transport', context.get('driver', '?'))}",
        f"{context.get('rate_pps', '?')} packets/s each way",
        f"seed {context.get('seed', '?')}",
        f"{context.get('duration_s', '?')} s",
    ]
    if context.get("faults"):
        words.append(f"faults: {', '.join(context['faults'])}")
    return ", ".join(words)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int | None = None) -> str:
    """A table of cells that are HTML already; columns from `numbers_from` on are numbers."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = []
    for row in rows:
        cells = (
            f"<td{' class=number' if numbers_from is not None and column >= numbers_from else ''}>{cell}</td>"
            for column, cell in enumerate(row)
        )
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def _rounds(rounds: Sequence[Mapping[str, Any]]) -> str:
    headings = ("round", "from side", "kind", "passes", "MiB sent", "gap ms", "downtime ms", "lost in gap")
    rows = [
        (
            str(item["round"]),
            escape(str(item["from"])),
            kind_of(item),
            _number(item.get("passes")),
            f"{item.get('transferred_bytes', 0) / (1 << 20):.1f}",
            _number(item.get("gap_ms")),
            _number(item.get("downtime_ms")),
            _number(item.get("lost_in_gap")),
            _number(item.get("pages_after_first_pass")),
        )
        for item in rounds
    ]
    return _table((*headings, "late pages"), rows, numbers_from=3)


def kind_of(item: Mapping[str, Any]) -> str:
    """What a round of the verdict's context was for."""
    if not item.get("moved", True):
        return "not moved"
    return "RAM compared" if item["compares_ram"] else "gap timed"


def _number(value: object) -> str:
    return "-" if value is None else escape(str(value))


def _meanings() -> str:
    items = "<br>".join(f"<b>{escape(name)}</b>: {escape(text)}" for name, text in MEANINGS.items())
    return f'<p class="meaning">{items}</p>'


def _lines(lines: Sequence[Mapping[str, Any]], not_checked: Mapping[str, str]) -> str:
    rows = [
        (
            escape(line["name"]),
            escape(line["measured"])
            + "".join(f'<div class="detail">{escape(i)}</div>' for i in line["detail"]),
            escape(line["expected"]),
            _badge(line["outcome"]),
        )
        for line in lines
    ]
    rows += [(escape(name), escape(why), "", _badge("not checked")) for name, why in not_checked.items()]
    return _table(("line", "measured", "expected", "result"), rows)


def _pictures(rounds: Sequence[Mapping[str, Any]], directory: Path) -> list[str]:
    parts = ["<h2>Pictures</h2>"]
    for item in rounds[:MAX_PICTURED_ROUNDS]:
        for path in draw_round(item, directory):
            data = base64.b64encode(path.read_bytes()).decode()
            parts.append(f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">')
    if len(rounds) > MAX_PICTURED_ROUNDS:
        parts.append(f'<p class="meaning">Rounds 1 to {MAX_PICTURED_ROUNDS} of {len(rounds)} are shown.</p>')
    return parts if len(parts) > 1 else []


def _counters(rounds: Sequence[Mapping[str, Any]]) -> str:
    """One row per queue that has done something, and the dirty log's counters."""
    rows: list[tuple[str, ...]] = []
    names: list[str] = []
    logs: list[str] = []
    last = rounds[-1] if rounds else {}
    for side, device in sorted((key[-1], value) for key, value in last.items() if key.startswith("device_")):
        log = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in device["log"].items())
        logs.append(f"side {side}, dirty log: {log}")
        for queue, counters in device["queues"].items():
            if any(counters.values()):
                names = list(counters)
                rows.append((f"{side} vq{queue}", *(str(counters[name]) for name in names)))
    notes = "".join(f'<p class="meaning">{escape(text)}</p>' for text in logs)
    headings = ["queue", *(name.replace("_", " ") for name in names)]
    return (_table(headings, rows, numbers_from=1) if rows else "") + notes


def _plain(value: Any) -> str:
    """A value as a person writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def _settings(context: Mapping[str, Any]) -> str:
    rows = [
        (escape(name.replace("_", " ")), escape(_plain(value)))
        for name, value in context.items()
        if name not in LONG_FIELDS and value not in (None, [], {}, "")
    ]
    return _table(("setting", "value"), rows)
