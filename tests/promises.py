"""Keeps the figures of tests that prove a promise, for the table of promises in the docs."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ppworker.chaos.results import Result, current_commit

Keep = Callable[..., None]


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Keep:
    """Says what a test found; call it once, at the very end: a result kept as passed means that
    all that the test looks at held.

    ``promise("F17", promise=..., fault=..., target=..., figure=..., passed=...)``. Kept as a file
    only by ``make promises``, which sets PPWORKER_TEST_PROMISES to the folder of results. What the
    same test found earlier at the same commit is forgotten first: a test that breaks off leaves
    nothing.
    """
    path = Path(str(request.node.path)).resolve()
    where = path.relative_to(Path(__file__).resolve().parent.parent)
    test = request.node.originalname or request.node.name
    case = request.node.callspec.id if hasattr(request.node, "callspec") else ""
    how = f"{where}::{test}" + (f"[{case}]" if case else "")
    slug = f"{test.removeprefix('test_')[:60]} {case}".strip().lower()
    folder = os.environ.get("PPWORKER_TEST_PROMISES")
    if folder:
        _forget(Path(folder), how)

    def keep(
        *faults: str,
        promise: str,
        fault: str,
        target: str,
        figure: str,
        passed: bool,
        figures: Mapping[str, Any] | None = None,
    ) -> None:
        print(f"{', '.join(faults)}: {figure} (must be: {target})")
        if folder:
            Result(
                name=f"{faults[0].lower()}-" + re.sub("[^a-z0-9]+", "-", slug),
                faults=faults,
                promise=promise,
                fault=fault,
                how=how,
                target=target,
                figure=figure,
                passed=passed,
                figures=figures or {},
            ).save(Path(folder))
        assert passed, f"{figure}; must be: {target}"

    return keep


def _forget(folder: Path, how: str) -> None:
    for path in folder.glob(f"*/{current_commit()}.json"):
        if json.loads(path.read_text())["how"] == how:
            path.unlink()
