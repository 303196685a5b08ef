"""Any history of people, workers, sweeps and operations keeps every invariant and every law.

A failing history is printed as a program of rules, shrunk; `--hypothesis-seed` repeats a run.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from ppworker.pipeline.deps import Deps
from stateful.machine import Machine
from stateful.snapshot import Eyes

# Told by the environment: `make stateful` and the mutants run the very same test, longer.
HISTORIES = int(os.environ.get("PPWORKER_TEST_HISTORIES", "12"))
STEPS = int(os.environ.get("PPWORKER_TEST_HISTORY_STEPS", "40"))
IS_SHRUNK = os.environ.get("PPWORKER_TEST_SHRINK", "1") == "1"


@pytest.fixture(scope="module")
def eyes(module_deps: Deps) -> Iterator[Eyes]:
    """Look at the module's database."""
    assert module_deps.settings.database_url is not None
    found = Eyes(module_deps.settings.database_url.get_secret_value())
    yield found
    found.close()


@pytest.mark.timeout(0)  # a long run is as long as it was asked to be
def test_no_history_breaks_an_invariant(module_deps: Deps, eyes: Eyes) -> None:
    # Leases end when the machine says so, and never by the clock: a history can be repeated.
    patient = module_deps.settings.model_copy(update={"lease_s": 3600.0})
    deps = replace(module_deps, settings=patient)
    phases = [Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if IS_SHRUNK else [])]
    run_state_machine_as_test(
        lambda: Machine(deps, eyes),  # type: ignore[arg-type]  # any factory does
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=STEPS,
            deadline=None,
            phases=phases,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
