"""Alerts and dashboard speak of metrics and commands that exist; promtool reads them elsewhere."""

import re
from typing import Any

import pytest
import typer.main
import yaml

from monitoring_files import (
    ALERTS,
    DASHBOARD,
    FOLDER,
    OF_EVERY_SERIES,
    TESTS_FILE,
    TOP,
    dashboard_expressions,
    grouped,
    panels,
    series,
    used,
)
from ppworker.cli import program

PAGE = (TOP / "docs" / "how-to" / "answer-an-alert.md").read_text()
NAMES = [rule["alert"] for rule in ALERTS]
EXPRESSIONS = [rule["expr"] for rule in ALERTS] + dashboard_expressions()
COMMAND = re.compile(r"`ppworker ([^`]+)`")


def section(name):
    return PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def is_command(words):
    """Whether the program knows the command and, where it has several, the second word too."""
    if words[0] not in program._COMMANDS:
        return False
    root: Any = typer.main.get_command(program._app([words[0]]))
    command = root.commands[words[0]]
    children = getattr(command, "commands", None)
    return not children or (len(words) > 1 and words[1] in children)


@pytest.mark.parametrize("expression", sorted(set(EXPRESSIONS) - {""}))
def test_series_and_labels_of_an_expression_exist(expression):
    known = series()
    found = list(used(expression))
    if "ALERTS" not in expression:
        assert found
    for name, labels in found:
        assert name in known
        assert labels <= known[name] | OF_EVERY_SERIES, name
    if found:
        every = frozenset.union(*(known[name] for name, _ in found)) | OF_EVERY_SERIES
        assert grouped(expression) <= every


@pytest.mark.parametrize("rule", ALERTS, ids=NAMES)
def test_an_alert_says_what_is_wrong_and_which_command_to_run(rule):
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["for"]
    about = rule["annotations"]
    assert about.keys() == {"summary", "description", "runbook"}
    assert f"see {rule['alert']} in docs/how-to/answer-an-alert.md." in about["runbook"]
    commands = COMMAND.findall(about["runbook"])
    assert commands
    assert all(is_command(command.split()) for command in commands)
    grouping = grouped(rule["expr"])
    for label in re.findall(r"\$labels\.(\w+)", " ".join(about.values())):
        # `up` and gauges that are not aggregated keep what the scrape adds.
        assert label in grouping or label == "instance"


def test_every_alert_has_a_name_of_its_own_and_a_section_of_the_page_and_no_section_is_left_over():
    assert len(set(NAMES)) == len(NAMES)
    assert set(NAMES) == set(re.findall(r"^## (Ppworker\w+)$", PAGE, re.MULTILINE))


@pytest.mark.parametrize("name", NAMES)
def test_a_section_names_commands_that_exist(name):
    commands = COMMAND.findall(section(name)) + re.findall(
        r"^(?:docker compose .* )?ppworker (.*)$", section(name), re.MULTILINE
    )
    assert commands
    assert [each for each in commands if not is_command(each.split())] == []


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent():
    fires: set[str] = set()
    silent: set[str] = set()
    for case in yaml.safe_load(TESTS_FILE.read_text())["tests"]:
        for asked in case.get("alert_rule_test", []):
            (fires if asked["exp_alerts"] else silent).add(asked["alertname"])
        for asked in case.get("promql_expr_test", []):
            named = set(re.findall(r"Ppworker\w+", asked["expr"]))
            if asked["exp_samples"]:
                fires |= set(re.findall(r"Ppworker\w+", str(asked["exp_samples"])))
            else:
                silent |= named or set(NAMES)  # a question for ALERTS asks for all of them
    assert fires == silent == set(NAMES)


def test_the_example_configuration_scrapes_under_the_name_that_the_alerts_know():
    given = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert given["rule_files"] == ["alerts.yml"]
    (job,) = given["scrape_configs"]
    wanted = {name for rule in ALERTS for name in re.findall(r'job="(\w+)"', rule["expr"])}
    assert {job["job_name"]} == wanted


def test_panels_have_ids_descriptions_and_places_of_their_own():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    for panel in panels():
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for part in (panel, *panel["targets"]):
            assert part["datasource"]["uid"] == "${datasource}", "importable anywhere"


@pytest.mark.parametrize(
    "shown",
    [
        "jobs_due", "oldest_due_job_age_seconds", "jobs_finished_total", "job_queue_wait_seconds",
        "job_attempt_duration_seconds", "inference_duration_seconds", "workers", "worker_slots",
        "worker_slots_in_use", "jobs_in_progress", "jobs_rescued_total",
        "stale_writes_rejected_total", "claims_total", "wakeups_sent_total", "redis_up",
        "stats_staleness_seconds", "operations", "dead_letters",
        "db_oldest_transaction_age_seconds", "job_table_dead_tuples",
    ],
)  # fmt: skip
def test_the_dashboard_shows_what_ops_ask_for(shown):
    names = {name for expression in EXPRESSIONS[len(ALERTS) :] for name, _ in used(expression)}
    stem = f"ppworker_{shown}"
    assert names & {stem, f"{stem}_bucket"}


def test_what_only_tells_of_the_database_is_never_summed_over_ports():
    """Each scraped port tells the same of it."""
    from ppworker.metric_names import METRICS

    told = "|".join(about.name for about in METRICS if about.source == "database")
    summed = re.compile(rf"\bsum\s*(by\s*\([^)]*\)\s*)?\(\s*({told})\b")
    assert [each for each in EXPRESSIONS if summed.search(each)] == []
    assert summed.search("sum by (x) (ppworker_jobs_due)")
