"""Alerts, configuration, dashboard and metrics, read by Prometheus's own promtool."""

import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from monitoring_files import ALERTS, ALERTS_FILE, FOLDER, TESTS_FILE, dashboard_expressions

pytestmark = pytest.mark.system


def promtool(*arguments: str | Path, given: bytes | None = None) -> tuple[int, str]:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=given, capture_output=True, check=False
    )
    return done.returncode, (done.stdout + done.stderr).decode()


def broken_run(folder: Path, **changes: Any) -> str:
    """What promtool says about the tests of the alerts when every rule is changed; it must fail."""
    broken = {"groups": [{"name": "broken", "rules": [rule | changes for rule in ALERTS]}]}
    (folder / "rules.yml").write_text(yaml.safe_dump(broken))
    tests = yaml.safe_load(TESTS_FILE.read_text()) | {"rule_files": ["rules.yml"]}
    (folder / "test.yml").write_text(yaml.safe_dump(tests))
    code, said = promtool("test", "rules", folder / "test.yml")
    assert code == 1, said
    return said


@pytest.mark.parametrize(
    "arguments",
    [("rules", ALERTS_FILE), ("config", FOLDER / "prometheus.yml")],
    ids=["alerts", "configuration"],
)
def test_promtool_finds_no_fault(arguments: tuple[str, Path]) -> None:
    kind, path = arguments
    code, said = promtool("check", kind, "--lint=all", "--lint-fatal", path)
    assert code == 0, said
    assert f"{len(ALERTS)} rules found" in said


def test_every_alert_fires_where_it_must_and_is_silent_where_all_is_well() -> None:
    code, said = promtool("test", "rules", TESTS_FILE)
    assert code == 0, said


def test_an_alert_that_never_fires_is_noticed(tmp_path: Path) -> None:
    said = broken_run(tmp_path, expr="vector(0) > 1")
    missing = [rule["alert"] for rule in ALERTS if not _is_told(said, rule["alert"], "got: nil")]
    assert missing == ["PpworkerJobsWait"], "which is asked for as an alert, with its words"
    assert 'Labels:{alertname="PpworkerJobsWait"' in said.partition("got:[]")[0]


def test_an_alert_that_always_fires_is_noticed(tmp_path: Path) -> None:
    said = broken_run(tmp_path, expr="vector(1)", **{"for": "0s"})
    assert [r["alert"] for r in ALERTS if not _is_told(said, r["alert"], "exp: nil")] == []


def _is_told(said: str, alert: str, word: str) -> bool:
    """Whether one failed question expected or got the alert, and the other nothing."""
    lines = said.splitlines()
    return any(word in one + two and f'="{alert}"' in one + two for one, two in pairwise(lines))


def test_every_expression_of_the_dashboard_is_one(tmp_path: Path) -> None:
    expressions = dashboard_expressions()
    rules = [{"record": f"shown:n{n}", "expr": each} for n, each in enumerate(expressions)]
    path = tmp_path / "dashboard.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    code, said = promtool("check", "rules", "--lint=none", path)
    assert code == 0, said
    assert f"{len(expressions)} rules found" in said


def test_promtool_has_nothing_to_say_about_the_metrics() -> None:
    from ppworker import metrics
    from ppworker.metric_names import METRICS

    registry = CollectorRegistry()
    for about in METRICS:
        metric = metrics._built(about, registry)
        if about.labels:
            metric.labels(*("x" for _ in about.labels))
    code, said = promtool("check", "metrics", given=generate_latest(registry))
    assert (code, said) == (0, "")
