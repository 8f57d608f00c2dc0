# SPDX-License-Identifier: Apache-2.0
"""A verdict as a JUnit XML report, for continuous integration: each line is a test case."""

from __future__ import annotations

import re
from xml.etree import ElementTree as Xml

from vdpa_net.migration.verdict import Line, Outcome, Verdict

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd]")
"""What XML 1.0 can't hold, even escaped."""


def to_junit(verdict: Verdict, suite: str) -> bytes:
    """The report, as UTF-8. FAIL is a failure, NOT RUN and what was not checked are skipped tests."""
    outcomes = [line.outcome for line in verdict.lines]
    skipped = outcomes.count(Outcome.NOT_RUN) + len(verdict.not_checked)
    root = Xml.Element("testsuites", name=suite)
    cases = Xml.SubElement(
        root,
        "testsuite",
        name=suite,
        tests=str(len(outcomes) + len(verdict.not_checked)),
        failures=str(outcomes.count(Outcome.FAIL)),
        errors="0",
        skipped=str(skipped),
    )
    properties = Xml.SubElement(cases, "properties")
    for name, value in verdict.context.items():
        Xml.SubElement(properties, "property", name=name, value=_clean(str(value)))
    for line in verdict.lines:
        _add_line(cases, suite, line)
    for name, reason in verdict.not_checked.items():
        case = Xml.SubElement(cases, "testcase", classname=suite, name=_clean(name))
        Xml.SubElement(case, "skipped", message=_clean(f"not checked: {reason}"))
    Xml.indent(root)
    return bytes(Xml.tostring(root, encoding="utf-8", xml_declaration=True))


def _add_line(cases: Xml.Element, suite: str, line: Line) -> None:
    case = Xml.SubElement(cases, "testcase", classname=suite, name=_clean(line.name))
    if line.outcome is not Outcome.PASS:
        kind = "failure" if line.outcome is Outcome.FAIL else "skipped"
        message = f"measured: {line.measured}; expected: {line.expected}"
        Xml.SubElement(case, kind, message=_clean(message)).text = _clean("\n".join(line.detail))
    Xml.SubElement(case, "system-out").text = _clean(line.measured)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("?", text)
