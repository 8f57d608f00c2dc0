# SPDX-License-Identifier: Apache-2.0
"""A verdict as JUnit XML."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from vdpa_net.migration.junit import to_junit
from vdpa_net.migration.verdict import Line, Outcome, Verdict

VERDICT = Verdict(
    [
        Line("guest RAM", Outcome.FAIL, "1 page differs", "0 pages differ", ("page 0x7 <here>",)),
        Line("traffic", Outcome.NOT_RUN, "not observed", "observed", ("no bridge",)),
        Line("violations", Outcome.PASS, "0 recorded", "0 recorded"),
    ],
    {"seed": 7, "command": "a\x00b"},
    {"announcement": "somebody else's"},
)


def test_lines_become_test_cases_with_their_evidence() -> None:
    suite = Xml.fromstring(to_junit(VERDICT, "vdpa-net log-test"))[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "errors": "0",
        "skipped": "2",
    }
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    failure = cases["guest RAM"].find("failure")
    assert failure is not None
    assert failure.get("message") == "measured: 1 page differs; expected: 0 pages differ"
    assert failure.text == "page 0x7 <here>"
    assert cases["traffic"].find("skipped") is not None
    assert [child.tag for child in cases["violations"]] == ["system-out"]
    skipped = cases["announcement"].find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "not checked: somebody else's"


def test_what_xml_can_not_hold_is_replaced() -> None:
    suite = Xml.fromstring(to_junit(VERDICT, "suite"))[0]
    values = {item.get("name"): item.get("value") for item in suite.iter("property")}
    assert values == {"seed": "7", "command": "a?b"}
