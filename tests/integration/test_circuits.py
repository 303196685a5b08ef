"""A post-processor pauses because its model fails: for all workers, with one probe at a time."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from factories import Model, Said, World, classes
from ppworker.domain.events import CircuitClosed, CircuitOpened, Event
from ppworker.domain.job import MAX_FREE_TIMEOUTS, MAX_SNOOZES
from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import (
    BadResponse,
    RunnerCrashed,
    RunnerError,
    RunnerOverloaded,
    RunnerTimeout,
    RunnerUnavailable,
    UnreadableInput,
)
from ppworker.pipeline.control import operate
from ppworker.pipeline.runs import circuits, execute, finish
from ppworker.store import circuits as store
from ppworker.store import jobs, post_processors

if TYPE_CHECKING:
    from api_server import Api

AWAY = RunnerUnavailable("nobody there")


def today(world: World, processor: PostProcessor) -> PostProcessor:
    """As a worker reads it at the beginning of a turn."""
    with world.deps.db.look() as tx:
        found = post_processors.find_post_processor(tx, processor.id)
    assert found is not None
    return found


def circuit(world: World) -> tuple[object, ...] | None:
    """Failures, trips, reason, and whether it is open, half-open or closed."""
    rows = world.sql(
        "SELECT failures, trips, reason, CASE WHEN open_until IS NULL THEN 'closed' "
        "WHEN open_until > now() THEN 'open' ELSE 'half-open' END FROM post_processor_circuits"
    )
    return tuple(rows[0]) if rows else None


def end_the_pause(world: World) -> None:
    world.sql("UPDATE post_processor_circuits SET open_until = now() - interval '1 ms'")
    world.sql("UPDATE post_processor_jobs SET run_at = now() WHERE status = 'pending'")


def test_ten_failures_in_a_row_pause_it_for_everybody(world: World, events: list[Event]) -> None:
    processor = world.processor()
    world.add(*("word" for _ in range(30)))
    for n in range(9):
        world.run(processor, AWAY, limit=1)
        assert circuit(world) == (n + 1, 0, "unavailable", "closed")
    world.run(processor, AWAY, limit=1)
    assert circuit(world) == (10, 1, "unavailable", "open")
    assert world.claim(processor).jobs == []
    assert world.claim(today(world, processor)).jobs == []
    (opened,) = [event for event in events if isinstance(event, CircuitOpened)]
    assert (opened.cause, opened.reason, opened.failures) == ("failures", "unavailable", 10)
    assert 2.5 <= opened.seconds <= 5
    world.check()


def test_a_failed_batch_counts_as_its_jobs(world: World) -> None:
    processor = world.processor()
    world.add(*("word" for _ in range(30)))
    world.run(processor, AWAY, limit=25)
    assert circuit(world) == (25, 1, "unavailable", "open")


def test_an_answer_between_makes_the_count_begin_anew(world: World) -> None:
    processor = world.processor()
    world.add(*("word" for _ in range(30)))
    for _ in range(3):
        world.run(processor, AWAY, limit=9)
        assert circuit(world) == (9, 0, "unavailable", "closed")
        world.run(processor, limit=1)
        assert circuit(world) is None


@pytest.mark.parametrize("error", [UnreadableInput("x"), BadResponse("x"), RunnerCrashed("x")])
def test_what_may_be_an_inputs_doing_pauses_nothing(world: World, error: RunnerError) -> None:
    processor = world.processor()
    world.add(*("word" for _ in range(30)))
    world.run(processor, error, limit=30)
    assert circuit(world) is None


def test_a_stopping_worker_whose_models_end_blames_no_model(world: World) -> None:
    processor = world.processor()
    world.add(*("word" for _ in range(20)))
    batch = world.claim(processor)
    held = {job.id: (job.item_id, job.lease_token) for job in batch.jobs}
    finish.release(world.deps, {}, held)
    world.run(processor, AWAY, batch=batch)
    assert circuit(world) is None


def test_a_healthy_post_processor_costs_no_statement(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = world.processor()
    world.add(*("word" for _ in range(4)))

    def never(*_: object) -> None:
        raise AssertionError("a statement for a healthy post-processor")

    monkeypatch.setattr(circuits, "_note_answer", never)
    monkeypatch.setattr(circuits, "_note_trouble", never)
    assert world.run(processor, limit=2).completed == 2
    mixed: Iterator[Said] = iter([RunnerTimeout("slow"), classes("cat")])
    world.run(processor, lambda _: next(mixed), limit=2)


def test_after_the_pause_one_job_runs_whoever_comes_first(world: World) -> None:
    processor = world.processor()
    world.add(*("word" for _ in range(40)))
    world.run(processor, AWAY, limit=10)
    for _ in range(5):
        end_the_pause(world)
        halfway = today(world, processor)
        assert halfway.half_open
        barrier = threading.Barrier(6)

        def take(limit: int, halfway: PostProcessor = halfway, barrier=barrier) -> execute.Batch:
            barrier.wait()
            return world.claim(halfway if limit else processor, limit=limit or 100)

        with ThreadPoolExecutor(6) as pool:
            batches = list(pool.map(take, [1, 5, 100, 100, 0, 0]))
        claimed = [batch for batch in batches if batch.jobs]
        assert [len(batch.jobs) for batch in claimed] == [1]
        assert claimed[0].is_probe
        assert world.claim(today(world, processor)).jobs == [], "it is still running"
        world.run(halfway, AWAY, batch=claimed[0])
        assert circuit(world)[3] == "open"  # type: ignore[index]


def test_probes_cost_no_attempt_and_pauses_grow(world: World, events: list[Event]) -> None:
    processor = world.processor(max_attempts=2)
    world.add("only one")
    world.sql(
        "INSERT INTO post_processor_circuits (post_processor_id, failures, trips, open_until) "
        "SELECT id, 10, 1, now() FROM post_processors"
    )
    for n in range(12):
        end_the_pause(world)
        error = AWAY if n % 2 else RunnerError("no", code="auth", retryable=False)
        world.run(today(world, processor), error)
        (job,) = world.jobs()
        assert (job.status, job.attempts) == ("pending", 0)
    assert circuit(world) == (22, 13, "unavailable", "open")
    opened = [event.seconds for event in events if isinstance(event, CircuitOpened)]
    assert len(opened) == 12
    assert all(5 * 2**n <= s <= 10 * 2**n for n, s in enumerate(opened[:4]))
    assert all(150 <= seconds <= 300 for seconds in opened[6:])
    assert world.sql("SELECT DISTINCT cause FROM job_attempts") == [("snoozed",)]
    end_the_pause(world)
    world.run(today(world, processor))
    assert circuit(world) is None
    assert world.statuses() == ["completed"]
    assert isinstance([e for e in events if isinstance(e, CircuitClosed | CircuitOpened)][-1],
                      CircuitClosed)  # fmt: skip
    world.check()


def begin_a_probe(world: World) -> None:
    """Let a pause be over, and every job be due."""
    world.sql(
        "INSERT INTO post_processor_circuits (post_processor_id, failures, trips, reason, "
        "open_until) SELECT id, 10, 1, 'timeout', now() FROM post_processors ON CONFLICT DO NOTHING"
    )
    end_the_pause(world)


def test_an_input_that_hangs_in_every_probe_ends(world: World) -> None:
    processor = world.processor(max_attempts=2)
    world.add("HANG")
    probes = 0
    while world.statuses() == ["pending"]:
        begin_a_probe(world)
        world.run(today(world, processor), RunnerTimeout("slow"))
        probes += 1
        assert probes < 50
    (job,) = world.jobs()
    assert (job.status, job.reason, job.attempts) == ("failed", "timeout", 2)
    assert probes == MAX_FREE_TIMEOUTS + 2
    world.check()


def test_a_suspect_that_is_the_probe_pauses_it_again(world: World) -> None:
    """Only suspects are left: nobody else would ever say that the model is away."""
    processor = world.processor(runner="scripted_runners:EchoRunner")
    world.add("one", "two")
    world.sql("UPDATE post_processor_jobs SET is_suspect = true")
    for trips in (2, 3):
        begin_a_probe(world)
        batch = world.claim(today(world, processor))
        assert (len(batch.jobs), batch.is_probe, batch.of_suspects) == (1, True, True)
        world.run(processor, AWAY, batch=batch)
        assert circuit(world) == (9 + trips, trips, "unavailable", "open")
    assert {job.attempts for job in world.jobs()} == {0}


@pytest.mark.parametrize(
    ("runner", "noted"),
    [("EchoRunner", None), ("ChildEchoRunner", (2, 0, "unavailable", "closed"))],
)
def test_a_second_copy_that_is_away_pauses_nothing_and_the_model_itself_does(
    world: World, runner: str, noted: object
) -> None:
    processor = world.processor(runner=f"scripted_runners:{runner}")
    world.add("one", "two")
    world.sql("UPDATE post_processor_jobs SET is_suspect = true")
    world.run(processor, AWAY)
    assert circuit(world) == noted


def test_an_answer_to_what_began_before_the_pause_does_not_end_it(world: World) -> None:
    processor = world.processor()
    world.add(*("word" for _ in range(20)))
    early = world.claim(processor, limit=5)
    world.run(processor, AWAY, limit=10)
    world.run(processor, batch=early)
    assert circuit(world) == (10, 1, "unavailable", "open")
    end_the_pause(world)
    assert len(world.claim(today(world, processor)).jobs) == 1


def test_a_model_that_asks_to_wait_is_left_alone_for_that_time_at_once(
    world: World, events: list[Event]
) -> None:
    processor = world.processor(max_attempts=1)
    world.add(*("word" for _ in range(5)))
    world.run(processor, RunnerOverloaded("busy", retry_after_s=40.0), limit=1)
    assert circuit(world) == (0, 0, "overloaded", "open")
    (left,) = world.sql(
        "SELECT extract(epoch FROM open_until - now())::float FROM post_processor_circuits"
    )
    assert 38 < left[0] <= 40
    assert world.claim(today(world, processor)).jobs == []
    assert {(job.status, job.attempts) for job in world.jobs()} == {("pending", 0)}
    with world.deps.db.look() as tx:
        due, wait_s = jobs.find_due(tx)
    assert due == []
    assert wait_s is not None
    assert 37 < wait_s <= 40, "pollers know when to look again"
    (opened,) = [event for event in events if isinstance(event, CircuitOpened)]
    assert (opened.cause, opened.seconds) == ("asked", 40.0)


def test_a_model_that_asks_to_wait_for_ever_ends_the_job(world: World) -> None:
    processor = world.processor(max_attempts=2)
    world.add("word")
    busy = RunnerOverloaded("busy", retry_after_s=1.0)
    world.run(processor, busy)
    world.sql("UPDATE post_processor_jobs SET snooze_count = :n", n=MAX_SNOOZES - 1)
    for attempts in (0, 1):
        world.make_due()
        world.run(processor, busy)
        (job,) = world.jobs()
        assert (job.status, job.attempts) == ("pending", attempts)
    world.make_due()
    world.run(processor, busy)
    (job,) = world.jobs()
    assert (job.status, job.reason, job.attempts) == ("failed", "overloaded", 2)
    operate.retry(world.deps, world.user, job.id)
    assert world.sql("SELECT snooze_count FROM post_processor_jobs") == [(0,)], "a fresh budget"
    world.check()


def test_neither_pause_lifts_the_other(world: World) -> None:
    processor = world.processor()
    world.add(*("word" for _ in range(20)))
    world.run(processor, AWAY, limit=10)
    operate.set_paused(world.deps, processor, paused=True)
    operate.set_paused(world.deps, processor, paused=False)
    assert world.claim(processor).jobs == []
    operate.set_paused(world.deps, processor, paused=True)
    assert circuits.close(world.deps, processor.id, processor.name)
    assert not circuits.close(world.deps, processor.id, processor.name)
    assert world.claim(processor).jobs == []
    operate.set_paused(world.deps, processor, paused=False)
    assert len(world.claim(processor).jobs) == 10


def test_a_cap_holds_beside_the_probe(world: World) -> None:
    processor = world.processor(concurrency_cap=3)
    world.add(*("word" for _ in range(20)))
    running = [world.claim(processor, limit=2) for _ in range(2)]
    world.run(processor, AWAY, limit=10)
    end_the_pause(world)
    assert world.claim(today(world, processor)).jobs == [], "two batches still run"
    for batch in running:
        world.run(processor, batch=batch)
    world.run(today(world, processor), limit=100)
    assert circuit(world) is None
    assert [len(world.claim(processor, limit=1).jobs) for _ in range(4)] == [1, 1, 1, 0]


def test_a_noting_that_fails_harms_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = world.processor()
    world.add("word")
    monkeypatch.setattr(store, "write_circuit", lambda tx, *_: tx.exec_driver_sql("SELECT 1/0"))
    assert world.run(processor, AWAY).again == 1
    assert circuit(world) is None


def test_the_last_probe_tells_that_more_is_due(world: World) -> None:
    """So that its turn goes on with what it found out."""
    processor = world.processor()
    world.add("one", "two")
    world.run(processor, RunnerOverloaded("busy", retry_after_s=1.0), limit=1)
    end_the_pause(world)
    batch = world.claim(replace(processor, half_open=True), limit=100)
    assert (len(batch.jobs), batch.is_full, batch.is_probe) == (1, True, True)
    report = execute.run(world.deps, world.labels, processor, Model(lambda _: classes("a")), batch)
    assert report.completed == 1
    assert len(world.claim(today(world, processor)).jobs) == 1


def shown(world: World, database_url: str, *words: str) -> str:
    """What the program says."""
    done = subprocess.run(
        [sys.executable, "-m", "ppworker", *words],
        env={
            "PATH": os.environ["PATH"],
            "PPWORKER_DATABASE_URL": database_url,
            "PPWORKER_DATA_DIR": str(world.deps.settings.data_dir),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_everybody_is_told_until_when_and_why(
    worlds: Callable[..., World], database_url: str
) -> None:
    world = worlds(username="local")
    processor = world.processor("ocr")
    name = f"{world.dataset.name}/ocr"
    world.add(*("word" for _ in range(12)))
    world.run(processor, AWAY, limit=10)
    ((until,),) = world.sql(
        "UPDATE post_processor_circuits SET open_until = now() + interval '1 h' "
        "RETURNING to_char(open_until AT TIME ZONE 'UTC', 'HH24:MI:SS')"
    )
    listed = shown(world, database_url, "processors", "list", world.dataset.name)
    for said in (listed, shown(world, database_url, "status")):
        assert "paused by failures until" in said
        assert f"{until} UTC (unavailable)" in said
    end_the_pause(world)
    for words in (("processors", "list", world.dataset.name), ("status",)):
        said = shown(world, database_url, *words)
        assert "probing (unavailable)" in said
        assert "paused" not in said
    said = shown(world, database_url, "processors", "close-circuit", name)
    assert said == "ocr is no longer paused by failures\n"
    again = shown(world, database_url, "processors", "close-circuit", name, "--json")
    assert json.loads(again)["was_open"] is False
    assert "paused" not in shown(world, database_url, "processors", "list", world.dataset.name)


def test_the_http_api_shows_both_pauses(api: "Api", world: World) -> None:
    processor = world.processor()
    path = f"{api.dataset}/post-processors/{processor.id}"
    before = api.me.get(path).json()
    assert (before["paused"], before["circuit_until"], before["circuit_reason"]) == (
        False, None, "",
    )  # fmt: skip
    world.add(*("word" for _ in range(12)))
    world.run(processor, AWAY, limit=10)
    operate.set_paused(world.deps, processor, paused=True)
    after = api.me.get(path).json()
    assert (after["paused"], after["circuit_reason"]) == (True, "unavailable")
    assert after["circuit_until"].endswith("Z")


def test_figures_say_how_it_stands(world: World) -> None:
    from prometheus_client import CollectorRegistry

    from ppworker.metrics import Metrics
    from ppworker.monitoring.scrape import Scrape
    from ppworker.store import gauges

    registry = CollectorRegistry()
    metered = World(replace(world.deps, emit=Metrics(registry).observe))
    processor = metered.processor("ocr")
    metered.processor("ner")
    metered.add(*("word" for _ in range(12)))

    def readings() -> gauges.Readings:
        with world.deps.db.begin() as tx:
            return gauges.read(tx, timeout_s=5)

    scrape = Scrape(None, version="1", schema_version="1", database=readings, redis=lambda: None)

    def states() -> set[str]:
        lines = scrape.text().decode().splitlines()
        return {line for line in lines if line.startswith("ppworker_circuit_state{")}

    quiet = 'ppworker_circuit_state{processor="ner"} 0.0'
    assert states() == {quiet, 'ppworker_circuit_state{processor="ocr"} 0.0'}
    metered.run(processor, AWAY, limit=10)
    assert states() == {quiet, 'ppworker_circuit_state{processor="ocr"} 2.0'}
    end_the_pause(metered)
    assert states() == {quiet, 'ppworker_circuit_state{processor="ocr"} 1.0'}
    metered.run(today(metered, processor), RunnerOverloaded("busy", retry_after_s=9.0))
    counted = {
        reason: registry.get_sample_value(
            "ppworker_circuit_openings_total", {"processor": "ocr", "reason": reason}
        )
        for reason in ("failures", "asked")
    }
    assert counted == {"failures": 1.0, "asked": 1.0}
