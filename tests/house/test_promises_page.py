"""The page of promises says what the results say, and hides no fault that has none."""

import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from ppworker.chaos.results import KEPT, Result, read_all

DOCS = Path(__file__).parents[2] / "docs"
PROMISES = runpy.run_path(str(DOCS / "promises.py"))
PAGE = (DOCS / "explanation" / "promises.md").read_text()
RESULTS = read_all(KEPT)


def result(**values) -> Result:
    given: dict[str, Any] = {
        "name": "kills", "faults": ["F1"], "promise": "It holds.", "fault": "a kill", "how": "h",
        "target": "0 lost", "figure": "0 lost", "passed": True,
        "phases": [
            {"name": "baseline", "seconds": 4.0, "rate": 5.0, "window_s": 2.0, "rates": [4, 6]},
            {"name": "fault", "seconds": 2.0, "rate": 1.0, "window_s": 2.0, "rates": [1]},
        ],
    }  # fmt: skip
    return Result(**(given | values))


def test_every_fault_of_the_list_has_a_name():
    assert list(PROMISES["FAULTS"]) == [f"F{number}" for number in range(1, 44)]


@pytest.mark.parametrize("kept", RESULTS, ids=lambda kept: kept.name)
def test_each_kept_result_stands_on_the_page(kept):
    (row,) = [line for line in PAGE.splitlines() if f"| `{kept.how}` |" in line]
    assert kept.figure.replace("|", "\\|") in row
    assert ("**not met:**" in row) is not kept.passed


def test_faults_without_a_result_are_listed_plainly():
    shown = {fault for each in RESULTS for fault in each.faults}
    listed = {line.split(":")[0][2:] for line in PAGE.splitlines() if line.startswith("- F")}
    assert listed == set(PROMISES["FAULTS"]) - shown


def test_a_target_that_was_missed_is_said_to_be():
    assert "**not met:** 3 lost" in "\n".join(
        PROMISES["_table"]([result(passed=False, figure="3 lost")])
    )


def test_a_picture_has_a_point_for_each_window_and_a_field_for_each_phase():
    drawn = ET.fromstring(PROMISES["picture"](result()))  # noqa: S314  just made
    space = "{http://www.w3.org/2000/svg}"
    (line,) = drawn.iter(f"{space}polyline")
    assert len(line.attrib["points"].split()) == 3
    assert len(list(drawn.iter(f"{space}rect"))) == 1 + 2
