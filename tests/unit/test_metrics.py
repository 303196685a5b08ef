"""Events become counters: each edge in its own, summed over processes, whatever happens to them."""

import json
import logging
import os
import random
import re
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest, values
from prometheus_client.parser import text_string_to_metric_families

from ppworker.domain import measurements as m
from ppworker.domain.events import (
    CommandFollowed,
    CommandRefused,
    JobMoved,
    LeaseRefused,
    OperationAdvanced,
    OperationMoved,
)
from ppworker.domain.job import EDGES, Status
from ppworker.metric_names import BY_NAME, METRICS
from ppworker.metrics import MULTIPROC_DIR, Metrics, _Batched, shared
from ppworker.monitoring import folder, vitals
from ppworker.monitoring.folder import Place, RuntimeFolder
from ppworker.monitoring.scrape import Scrape
from ppworker.monitoring.vitals import Journal

UNITS = ("_total", "_seconds", "_jobs", "_ratio", "_tuples", "_info")
LABELS = {
    "processor", "status", "outcome", "reason", "source", "sweep", "operation", "state",
    "version", "python_version", "schema_version",
}  # fmt: skip


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def metrics(registry):
    return Metrics(registry)


@pytest.fixture
def shared_values(monkeypatch):
    """Have figures in files end with the test."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv(MULTIPROC_DIR, "/nonexistent")
    yield
    values.close_all_multiprocess_files()


@pytest.fixture
def runtime(shared_values):
    made = RuntimeFolder.make(["worker-0", "worker-1"])
    yield made
    made.remove()


def parsed(text):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def figures(registry):
    """Every figure above 0 by name and labels."""
    return {key: value for key, value in parsed(generate_latest(registry)).items() if value}


def scraped(runtime, **more):
    given = {"database": lambda: None, "redis": lambda: None} | more
    return Scrape(runtime.path, version="1", schema_version="2", **given).text()


def moved(cause, source=Status.PROCESSING, to=Status.PENDING, n=1, **more):
    event = {
        "job_id": uuid4(), "item_id": uuid4(), "post_processor": "ocr", "attempt": 1,
        "lease_token": 1, "source": source, "to": to, "cause": cause,
    }  # fmt: skip
    return [JobMoved(**(event | more)) for _ in range(n)]


# Which figures an edge changes.

RESCUED = {"reason": "lease_expired", "seconds": 2.0}
EDGES_AND_FIGURES = [
    (moved("planned", None, reason="upload", n=3), {("jobs_enqueued_total", "ocr", "upload"): 3}),
    (moved("retried", Status.FAILED), {("jobs_enqueued_total", "ocr", "retry"): 1}),
    (
        moved("claimed", Status.PENDING, Status.PROCESSING, seconds=0.5, n=2),
        {
            ("job_queue_wait_seconds_count", "ocr"): 2,
            ("job_queue_wait_seconds_sum", "ocr"): 1.0,
        },
    ),
    (
        moved("finished", to=Status.COMPLETED, seconds=2.0, age_s=5.0),
        {
            ("job_attempts_total", "completed", "ocr"): 1,
            ("jobs_finished_total", "completed", "ocr"): 1,
            ("job_attempt_duration_seconds_count", "completed", "ocr"): 1,
            ("job_attempt_duration_seconds_sum", "completed", "ocr"): 2.0,
            ("job_end_to_end_seconds_count", "completed", "ocr"): 1,
            ("job_end_to_end_seconds_sum", "completed", "ocr"): 5.0,
        },
    ),
    (moved("transient_error"), {("job_attempts_total", "ocr", "retry"): 1}),
    (moved("snoozed"), {("job_attempts_total", "ocr", "snoozed"): 1}),
    (moved("released"), {("job_attempts_total", "interrupted", "ocr"): 1}),
    (moved("input_changed"), {("job_attempts_total", "ocr", "retry"): 1}),
    (
        moved("rescued", reason="deadline"),
        {
            ("job_attempts_total", "lease_lost", "ocr"): 1,
            ("jobs_rescued_total", "deadline_exceeded", "ocr"): 1,
        },
    ),
    (
        moved("suspected", reason="lease_expired"),
        {
            ("job_attempts_total", "lease_lost", "ocr"): 1,
            ("jobs_rescued_total", "lease_expired", "ocr"): 1,
        },
    ),
    (
        moved("exhausted", to=Status.FAILED, reason="lease_expired"),
        {
            ("job_attempts_total", "lease_lost", "ocr"): 1,
            ("jobs_rescued_total", "lease_expired", "ocr"): 1,
            ("jobs_finished_total", "failed", "ocr"): 1,
            ("jobs_quarantined_total", "exhausted", "ocr"): 1,
        },
    ),
    *(
        (
            moved(cause, to=Status.FAILED, reason="whatever"),
            {
                ("job_attempts_total", "failed", "ocr"): 1,
                ("jobs_finished_total", "failed", "ocr"): 1,
                ("jobs_quarantined_total", *sorted(["ocr", word])): 1,
            },
        )
        for cause, word in [
            ("exhausted", "exhausted"),
            ("crashed", "crash"),
            ("permanent_error", "invalid"),
        ]
    ),
    (
        moved("cancelled", to=Status.FAILED, reason="cancelled"),
        {
            ("job_attempts_total", "cancelled", "ocr"): 1,
            ("jobs_finished_total", "failed", "ocr"): 1,
        },
    ),
    (
        moved("cancelled", Status.PENDING, Status.FAILED, reason="cancelled"),
        {("jobs_finished_total", "failed", "ocr"): 1},
    ),
    (
        moved("predecessor_failed", Status.PENDING, Status.FAILED, reason="predecessor_failed"),
        {("jobs_finished_total", "failed", "ocr"): 1},
    ),
]


@pytest.mark.parametrize(
    ("events", "expected"), EDGES_AND_FIGURES, ids=[e[0].cause for e, _ in EDGES_AND_FIGURES]
)
def test_an_edge_changes_its_own_figures_and_no_other(metrics, registry, events, expected):
    metrics.observe(events)
    assert figures(registry) == {(f"ppworker_{k[0]}", *k[1:]): v for k, v in expected.items()}


def test_every_edge_there_is_has_its_figures():
    seen = {(events[0].source, events[0].to, events[0].cause) for events, _ in EDGES_AND_FIGURES}
    assert seen == {(*edge, cause) for edge, causes in EDGES.items() for cause in causes}


LEASE: dict[str, Any] = {"job_id": uuid4(), "item_id": uuid4(), "attempt": 1, "lease_token": 1}
OPERATION: dict[str, Any] = {"operation_id": uuid4(), "kind": "reapply"}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            LeaseRefused(post_processor="ocr", **LEASE),
            {("stale_writes_rejected_total", "complete", "ocr"): 1},
        ),
        (
            m.AnnotationsWritten(post_processor="ocr", inserted=3, deduplicated=2),
            {
                ("annotations_written_total", "inserted", "ocr"): 3,
                ("annotations_written_total", "deduplicated", "ocr"): 2,
            },
        ),
        (
            m.JobsDeduplicated(post_processor="ocr", jobs=4),
            {("jobs_deduplicated_total", "ocr"): 4},
        ),
        (
            m.ClaimTried(woken_by="poll", outcome="hit", jobs=20, seconds=0.5),
            {
                ("claims_total", "hit", "poll"): 1,
                ("claim_duration_seconds_count",): 1,
                ("claim_duration_seconds_sum",): 0.5,
                ("claim_batch_jobs_count",): 1,
                ("claim_batch_jobs_sum",): 20,
            },
        ),
        (m.TurnEnded(woken_by="wakeup", jobs=0), {("wakeups_received_total", "empty"): 1}),
        (m.TurnEnded(woken_by="wakeup", jobs=5), {("wakeups_received_total", "claimed"): 1}),
        (m.TurnEnded(woken_by="poll", jobs=5), {}),
        (
            m.ModelAsked(post_processor="ocr", seconds=1.5),
            {
                ("inference_duration_seconds_count", "ocr"): 1,
                ("inference_duration_seconds_sum", "ocr"): 1.5,
            },
        ),
        (
            m.BatchFinished(post_processor="ocr", seconds=0.25),
            {
                ("job_finalize_duration_seconds_count", "ocr"): 1,
                ("job_finalize_duration_seconds_sum", "ocr"): 0.25,
            },
        ),
        (
            CommandFollowed(command="take_upload", outcome="done", seconds=0.1),
            {("commands_followed_total", "done", "take_upload"): 1},
        ),
        (
            CommandRefused(command="retry_job", letter_id=uuid4(), field="job", error="no"),
            {("commands_followed_total", "dead_letter", "retry_job"): 1},
        ),
        (
            CommandRefused(command="a stranger's word", letter_id=None, field="", error="no"),
            {("commands_followed_total", "repeated", "unknown"): 1},
        ),
        (
            OperationMoved(source=Status.PROCESSING, to=Status.FAILED, cause="", **OPERATION),
            {("operations_finished_total", "failed", "reapply"): 1},
        ),
        (OperationMoved(source=None, to=Status.PENDING, cause="planned", **OPERATION), {}),
        (
            OperationAdvanced(done=7, counts={"answers": 5, "none": 0}, seconds=1, **OPERATION),
            {("operation_units_total", "answers", "reapply"): 5},
        ),
    ],
    ids=lambda each: type(each).__name__,
)
def test_other_facts_are_counted_too(metrics, registry, event, expected):
    metrics.observe([event])
    assert figures(registry) == {(f"ppworker_{k[0]}", *k[1:]): v for k, v in expected.items()}


def test_what_no_event_tells_is_counted_by_hooks(metrics, registry):
    for name in ("sent", "coalesced", "failed", "stale", "malformed", "taken", "polled"):
        metrics.hint_counted(name)
    metrics.leases_lost(["ocr", "ocr"])
    metrics.swept("rescue", is_ok=True, seconds=0.5, at=1234.0)
    metrics.swept("rescue", is_ok=False, seconds=0.5, at=1300.0)
    metrics.database_failed("commit", "unknown")
    metrics.database_came_back()
    metrics.log_lines_lost(3)
    assert figures(registry) == {
        ("ppworker_wakeups_sent_total", "ok"): 1,
        ("ppworker_wakeups_sent_total", "coalesced"): 1,
        ("ppworker_wakeups_sent_total", "error"): 1,
        ("ppworker_wakeups_received_total", "stale"): 1,
        ("ppworker_wakeups_received_total", "malformed"): 1,
        ("ppworker_stale_writes_rejected_total", "heartbeat", "ocr"): 2,
        ("ppworker_sweep_runs_total", "ok", "rescue"): 1,
        ("ppworker_sweep_runs_total", "error", "rescue"): 1,
        ("ppworker_sweep_duration_seconds_count", "rescue"): 2,
        ("ppworker_sweep_duration_seconds_sum", "rescue"): 1.0,
        ("ppworker_sweep_last_success_timestamp_seconds", "rescue"): 1234.0,
        ("ppworker_db_errors_total", "commit", "unknown"): 1,
        ("ppworker_db_reconnects_total",): 1,
        ("ppworker_log_lines_lost_total",): 3,
    }


def test_many_observations_at_once_are_what_they_are_one_by_one():
    amounts = [random.choice([0.0, 0.1, 0.5, 1.0, random.expovariate(1)]) for _ in range(500)]
    one, many = CollectorRegistry(), CollectorRegistry()
    slow = Histogram("seconds", "", buckets=(0.1, 0.5, 1.0), registry=one)
    for amount in amounts:
        slow.observe(amount)
    _Batched("seconds", "", buckets=(0.1, 0.5, 1.0), registry=many).observe_many(amounts)

    def buckets(registry):
        text = generate_latest(registry).decode()
        return re.findall(r"^seconds_(?:bucket|count).*$", text, re.MULTILINE)

    assert buckets(many) == buckets(one)
    assert len(buckets(one)) == 5


def test_a_figure_that_cannot_be_counted_fails_nothing(metrics, monkeypatch, caplog):
    def fail(*_arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(metrics._families["ppworker_jobs_enqueued_total"], "labels", fail)
    with caplog.at_level(logging.WARNING):
        metrics.observe([*moved("planned", None, reason="upload"), *moved("released")])
        metrics.observe(moved("planned", None, reason="upload"))
    assert [record.message for record in caplog.records] == [
        "jobs_enqueued_total is not counted: OSError: no space left on device"
    ]


# Several processes.


def test_processes_add_up_and_a_restarted_one_goes_on_with_its_figures(runtime):
    for slot in ("worker-0", "worker-1", "worker-0"):  # the last one after its death
        shared(runtime.path, slot).observe(moved("planned", None, reason="upload", n=5))
    assert parsed(scraped(runtime))["ppworker_jobs_enqueued_total", "ocr", "upload"] == 15
    files = {path.name for path in runtime.path.glob("*.db")}
    assert len(files) == 6, "three of each slot, however often it is started"


@pytest.mark.parametrize("left", [b"", b"\x07", b"\xff" * 64, b"\x40\0\0\0\0\0\0\0\xff\xff\0\0"])
def test_a_file_that_a_kill_left_broken_harms_neither_the_scrape_nor_the_successor(runtime, left):
    shared(runtime.path, "worker-0").observe(moved("planned", None, reason="upload"))
    (runtime.path / "counter_worker-1.db").write_bytes(left)
    found = parsed(scraped(runtime))
    assert found["ppworker_jobs_enqueued_total", "ocr", "upload"] == 1
    shared(runtime.path, "worker-1").observe(moved("planned", None, reason="upload"))
    found = parsed(scraped(runtime))
    assert found["ppworker_jobs_enqueued_total", "ocr", "upload"] == 2


def test_files_have_their_room_before_they_are_written_in(runtime):
    """A hole in a file that a full disk cannot fill would kill the process that writes there."""
    shared(runtime.path, "worker-0")
    for path in runtime.path.glob("*.db"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size > 500_000


def test_a_folder_that_cannot_be_written_leaves_the_figures_in_memory(shared_values, tmp_path):
    metrics = shared(tmp_path / "gone", "worker-0")
    metrics.observe(moved("planned", None, reason="upload"))
    assert metrics._families["ppworker_jobs_enqueued_total"].labels("ocr", "upload")._value.get()


def test_gauges_of_a_dead_process_are_gone_and_its_counters_stay(runtime):
    for slot in ("worker-0", "worker-1"):
        journal = Journal(Place(slot, runtime.path), version="1", slots=2)
        journal.vitals.busy, journal.vitals.in_progress = 1, {"ocr": 40}
        journal.beat(is_renewed=True)
        journal.begin()
        shared(runtime.path, slot).observe(moved("planned", None, reason="upload"))
    before = parsed(scraped(runtime))
    runtime.forget("worker-0")
    after = parsed(scraped(runtime))
    gauges = {"worker_slots": 2, "worker_slots_in_use": 1}
    for name, each in gauges.items():
        assert before[f"ppworker_{name}",] == 2 * each
        assert after[f"ppworker_{name}",] == each
    assert before["ppworker_jobs_in_progress", "ocr"] == 80
    assert after["ppworker_jobs_in_progress", "ocr"] == 40
    assert 0 <= after["ppworker_heartbeat_lag_seconds",] < 60
    assert after["ppworker_jobs_enqueued_total", "ocr", "upload"] == 2
    runtime.forget("worker-1")
    assert ("ppworker_heartbeat_lag_seconds",) not in parsed(scraped(runtime))


def test_without_a_database_its_gauges_are_left_out(runtime):
    found = parsed(scraped(runtime))
    assert found["ppworker_database_up",] == 0
    assert not {key[0] for key in found} & {
        about.name for about in METRICS if about.source == "database"
    } - {"ppworker_database_up", "ppworker_build_info"}
    assert parsed(scraped(runtime, redis=lambda: False))["ppworker_redis_up",] == 0


# The folder.


def test_a_folder_is_private_empty_and_removed(runtime):
    assert runtime.path.stat().st_mode & 0o077 == 0
    assert folder.worker_slots(runtime.path) == ["worker-0", "worker-1"]
    assert {path.name for path in runtime.path.iterdir()} == {"lock", "group.json"}
    runtime.remove()
    assert not runtime.path.exists()


def test_folders_of_dead_supervisors_are_removed_and_those_of_living_ones_stay(
    monkeypatch, tmp_path
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    living, dead = RuntimeFolder.make(["worker-0"]), RuntimeFolder.make(["worker-0"])
    dead._lock.close()  # as the system does when a process dies
    recent = RuntimeFolder.make([])
    recent._lock.close()
    for made in (living, dead):
        os.utime(made.path, (0, 0))
    RuntimeFolder.make([]).remove()
    assert living.path.exists()
    assert not dead.path.exists()
    assert recent.path.exists(), "it may be one whose lock is about to be taken"
    living.remove()


def test_a_process_learns_its_place_once_and_hands_it_to_nobody(monkeypatch, tmp_path):
    for name, value in Place("worker-3", tmp_path).environment().items():
        monkeypatch.setenv(name, value)
    assert Place.of_this_process() == Place("worker-3", tmp_path)
    assert Place.of_this_process() == Place()


def test_vitals_that_cannot_be_written_end_nothing(tmp_path, caplog):
    journal = Journal(Place("worker-0", tmp_path / "gone"), version="1")
    with caplog.at_level(logging.WARNING):
        journal.begin()
        journal.drain()
    assert len(caplog.records) == 1
    assert vitals.read(tmp_path / "gone", "worker-0") is None


def test_vitals_of_another_release_are_none(tmp_path):
    (tmp_path / "vitals-worker-0.json").write_text(json.dumps({"slot": "worker-0", "mood": 7}))
    assert vitals.read(tmp_path, "worker-0") is None


# Names.


@pytest.mark.parametrize("about", METRICS, ids=lambda about: about.name)
def test_names_follow_the_rules_of_prometheus(about):
    assert re.fullmatch(r"ppworker_[a-z][a-z_]+[a-z]", about.name)
    assert about.name.endswith("_total") == (about.kind == "counter")
    assert set(about.labels) <= LABELS
    assert about.text.endswith(".")
    if about.kind == "histogram":
        assert about.name.endswith(UNITS)
        assert list(about.buckets) == sorted(set(about.buckets))


def test_names_are_told_once():
    assert len(BY_NAME) == len(METRICS)


def test_measurements_are_not_logged(monkeypatch):
    from ppworker import telemetry

    told: list[object] = []
    monkeypatch.setattr(telemetry, "_described", told.append)
    monkeypatch.setattr(telemetry, "_json_lines", None)
    telemetry.emit([m.TurnEnded(woken_by="poll", jobs=1)])
    assert told == []
