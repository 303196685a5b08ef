"""Workers of different knowledge side by side: what one does not know it leaves to the other."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factories import World
from live_workers import TESTS, wait_for
from ppworker.embedded import EmbeddedServers
from promises import Keep

Launch = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def launch(servers: EmbeddedServers, tmp_path: Path) -> Iterator[Launch]:
    """Starts one worker process that logs to a file, with or without the tests' runners."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(log: Path, *, knows: bool) -> "subprocess.Popen[bytes]":
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
            "PPWORKER_DATABASE_URL": servers.database_url,
            "PPWORKER_DATA_DIR": str(tmp_path / "d"),
            "PPWORKER_LEASE_S": "2",
            "PPWORKER_SWEEP_S": "0.5",
            "PPWORKER_POLL_S": "0.3",
            "PPWORKER_LOG_FORMAT": "json",
        }
        if knows:
            environment["PYTHONPATH"] = str(TESTS)
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "ppworker.process"],
                env=environment, stdout=file, stderr=file, cwd=tmp_path,
            )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
    for process in started:
        process.wait(30)


@pytest.mark.promise
def test_what_a_worker_does_not_know_it_leaves_to_one_that_does(
    live: World, launch: Launch, tmp_path: Path, promise: Keep
) -> None:
    live.processor("known", runner="usaddress", model_type="ner", reads="text")
    strange = live.processor("strange", runner="scripted_runners:EchoRunner")
    newer = live.processor("newer", runner="scripted_runners:EchoRunner")
    live.sql("UPDATE post_processors SET model_type = 'telepathy' WHERE id = :id", id=newer.id)
    live.sql(
        "INSERT INTO operations (id, user_id, kind, arguments) "
        "VALUES (gen_random_uuid(), :user, 'from_the_future', '{\"schema\": 99}')",
        user=live.user,
    )
    old_log, new_log = tmp_path / "old.log", tmp_path / "new.log"
    old = launch(old_log, knows=False)
    live.add(*(f"{n} Main Street" for n in range(30)))
    wait_for(lambda: "is left alone here" in old_log.read_text(), seconds=60, what="a warning")
    wait_for(lambda: set(live.statuses()) == {"completed", "pending"}
             and live.statuses().count("completed") == 30,
             seconds=60, what="the work that it knows")  # fmt: skip
    untouched = {(job.status, job.attempts) for job in live.jobs(strange)}
    new = launch(new_log, knows=True)
    wait_for(
        lambda: set(live.statuses(strange)) == {"completed"}, seconds=60, what="the other's work"
    )
    left = {(job.status, job.attempts) for job in live.jobs(newer)}
    kinds = live.sql("SELECT status, attempts FROM operations WHERE kind = 'from_the_future'")
    failed = live.statuses().count("failed")
    alive = [process.poll() is None for process in (old, new)]
    traces = (old_log.read_text() + new_log.read_text()).count("Traceback")
    live.sql("DELETE FROM operations WHERE kind = 'from_the_future'")
    live.check()

    live.sql("UPDATE alembic_version SET version_num = '9999'")
    refused_log = tmp_path / "refused.log"
    refused = launch(refused_log, knows=True)
    code = refused.wait(30)
    said = refused_log.read_text()
    live.add("5 Main Street")
    wait_for(
        lambda: live.statuses().count("completed") == 62, seconds=60, what="work of running workers"
    )
    live.sql("UPDATE alembic_version SET version_num = '0004'")
    names_the_remedy = "upgrade ppworker" in said and "9999" in said
    promise(
        "F38",
        promise="Workers of different versions run side by side; what one does not know stays "
        "pending for the other, and a program refuses to start on a newer schema",
        fault="a worker that knows neither a runner, a model type nor a kind of operation beside "
        "one that knows the runner; then a start on a newer schema",
        target="unknown things pending with no attempt spent, nothing failed, exit code 2 that "
        "names the remedy",
        figure=f"alone, the first left its 30 jobs {sorted(untouched)}; unknown model type "
        f"{sorted(left)}, unknown operation {sorted(map(tuple, kinds))}; {failed} failed, {traces} "
        f"tracebacks; exit code {code}",
        passed=untouched == {("pending", 0)}
        and left == {("pending", 0)}
        and [tuple(row) for row in kinds] == [("pending", 0)]
        and not failed
        and not traces
        and alive == [True, True]
        and code == 2
        and names_the_remedy,
    )
