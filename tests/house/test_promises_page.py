"""The page of promises says what the results say, and hides no fault that has none."""

import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from ppworker.chaos.results import KEPT, Result, current_commit, read_all

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


THIS = "tests/house/test_promises_page.py"
SAYS: dict[str, Any] = {"promise": "p", "fault": "f", "target": "t", "figure": "n"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPWORKER_TEST_PROMISES", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("case", ["One way", "another"])
def test_each_case_of_a_test_keeps_a_result_of_its_own(folder, request, case):
    request.getfixturevalue("promise")("F1", **SAYS, passed=True)
    (kept,) = read_all(folder)
    about = "test_each_case_of_a_test_keeps_a_result_of_its_own"
    assert kept.how == f"{THIS}::{about}[{case}]"
    suffix = case.lower().replace(" ", "-")
    assert kept.name == f"f1-each-case-of-a-test-keeps-a-result-of-its-own-{suffix}"


def test_a_target_that_was_missed_is_kept_and_fails_its_test(folder, request):
    with pytest.raises(AssertionError, match="must be: t"):
        request.getfixturevalue("promise")("F1", **SAYS, passed=False)
    (kept,) = read_all(folder)
    assert not kept.passed


def test_a_test_that_breaks_off_leaves_no_result_of_the_same_commit(folder, request):
    how = f"{THIS}::test_a_test_that_breaks_off_leaves_no_result_of_the_same_commit"
    result(name="mine", how=how).save(folder)
    before = result(name="mine", how=how, commit="before").save(folder)
    other = result(name="other", how=f"{how}[more]").save(folder)
    assert (folder / "mine" / f"{current_commit()}.json").exists()
    request.getfixturevalue("promise")
    assert set(folder.glob("*/*.json")) == {before, other}


def test_each_row_names_its_date_and_commit():
    kept = result(date="2026-01-02T03:04:05+00:00", commit="abc1234567")
    assert "| 2026-01-02, abc1234567 |" in "\n".join(PROMISES["_table"]([kept]))
