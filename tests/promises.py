"""Keeps the figures of tests that prove a promise, for the table of promises in the docs."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ppworker.chaos.results import Result

Keep = Callable[..., None]


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Keep:
    """Says what a test found; call it once, before the last assertion.

    ``promise("F17", promise=..., fault=..., target=..., figure=..., passed=...)``. Kept as a file
    only by ``make promises``, which sets PPWORKER_TEST_PROMISES to the folder of results.
    """
    path = Path(str(request.node.path)).resolve()
    where = path.relative_to(Path(__file__).resolve().parent.parent)
    test = request.node.originalname or request.node.name

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
        folder = os.environ.get("PPWORKER_TEST_PROMISES")
        if folder:
            Result(
                name=f"{faults[0].lower()}-{test.removeprefix('test_')[:60].replace('_', '-')}",
                faults=faults,
                promise=promise,
                fault=fault,
                how=f"{where}::{test}",
                target=target,
                figure=figure,
                passed=passed,
                figures=figures or {},
            ).save(Path(folder))
        assert passed, f"{figure}; must be: {target}"

    return keep
