"""Reads the files of docker/monitoring as far as that needs no Prometheus and no Grafana."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ppworker.metric_names import METRICS

TOP = Path(__file__).parents[1]
FOLDER = TOP / "docker" / "monitoring"
ALERTS_FILE = FOLDER / "alerts.yml"
TESTS_FILE = TOP / "tests" / "monitoring" / "alerts_test.yml"
DASHBOARD_FILE = FOLDER / "grafana-dashboard.json"

ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS_FILE.read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads(DASHBOARD_FILE.read_text())

GIVEN = {"up": frozenset[str]()}
"""Series that Prometheus makes by itself."""
OF_EVERY_SERIES = frozenset({"job", "instance"})
_TEXT = re.compile(r'"(?:\\.|[^"\\])*"')
_SELECTOR = re.compile(r"(ppworker_\w+|\bup\b)(\{[^}]*\})?")
_MATCHED = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPED = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")


def series() -> dict[str, frozenset[str]]:
    """Every series that the code can give, with its labels."""
    found = dict(GIVEN)
    for about in METRICS:
        labels = frozenset(about.labels)
        if about.kind == "histogram":
            found[f"{about.name}_bucket"] = labels | {"le"}
            found[f"{about.name}_sum"] = found[f"{about.name}_count"] = labels
        else:
            found[about.name] = labels
    return found


def used(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Series of an expression with the labels they are selected by."""
    bare = _TEXT.sub('""', expression)
    for name, selector in _SELECTOR.findall(bare):
        yield name, set(_MATCHED.findall(selector))


def grouped(expression: str) -> set[str]:
    """Labels by which an expression groups."""
    found = _GROUPED.findall(_TEXT.sub('""', expression))
    return {label.strip() for labels in found for label in labels.split(",") if label.strip()}


def panels() -> list[dict[str, Any]]:
    """Panels of the dashboard that show something."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def dashboard_expressions() -> list[str]:
    """Every expression of the dashboard, its variables replaced."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    found += [
        each["definition"].removeprefix("label_values(").partition(",")[0]
        for each in DASHBOARD["templating"]["list"]
        if each["type"] == "query"
    ]
    found += [each["expr"] for each in DASHBOARD["annotations"]["list"]]
    return [e.replace("$__rate_interval", "1m").replace("$processor", ".*") for e in found]
