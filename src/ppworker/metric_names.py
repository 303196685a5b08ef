"""Every metric there is: name, kind, unit by name, labels, meaning. Docs and code read this page.

Labels are few and bounded: never an id of a job, item, dataset, worker or message.
"""

from dataclasses import dataclass
from typing import Literal

SECONDS_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SECONDS_MODEL = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
)  # fmt: skip
SECONDS_WAIT = (
    0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0,
)  # fmt: skip
BATCH = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True, slots=True)
class About:
    """One metric.

    Attributes:
        name: as it is scraped, without the suffixes of a histogram's series.
        kind: counter, gauge or histogram.
        labels: names of its labels.
        text: what it says, and when it is counted.
        source: ``process``: what the processes of this supervisor did, summed over them all;
            ``vitals``: what they are doing; ``database``: what is, asked by the scraped process.
        buckets: upper bounds of a histogram.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    text: str
    source: Literal["process", "vitals", "database"] = "process"
    buckets: tuple[float, ...] = ()


def _counter(name: str, text: str, *labels: str) -> About:
    return About(f"ppworker_{name}_total", "counter", labels, text)


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> About:
    return About(f"ppworker_{name}", "histogram", labels, text, buckets=buckets)


def _gauge(
    name: str, text: str, *labels: str, source: Literal["process", "vitals", "database"] = "vitals"
) -> About:
    return About(f"ppworker_{name}", "gauge", labels, text, source)


def _asked(name: str, text: str, *labels: str) -> About:
    return _gauge(name, text, *labels, source="database")


METRICS: tuple[About, ...] = (
    # Jobs: edges, counted after their COMMIT.
    _counter("jobs_enqueued", "Jobs that became pending, new or anew; source is upload, inference, "
             "backfill, rerun or retry.", "processor", "source"),
    _counter("jobs_deduplicated", "Jobs not planned because one of their key lives.", "processor"),
    _counter("job_attempts", "Attempts that ended; outcome is completed, retry, failed, cancelled, "
             "snoozed, interrupted (its worker stopped) or lease_lost (rescued).",
             "processor", "outcome"),
    _counter("jobs_finished", "Jobs that ended; status is completed or failed. One that is retried "
             "ends again.", "processor", "status"),
    _counter("jobs_rescued", "Attempts taken from dead or hung workers; reason is lease_expired or "
             "deadline_exceeded.", "processor", "reason"),
    _counter("jobs_quarantined", "Jobs failed for good; reason is crash (its model died with it "
             "alone too often), invalid (no repetition mends it) or exhausted (the last attempt "
             "failed).", "processor", "reason"),
    _counter("stale_writes_rejected", "Leases found lost; operation is complete (an answer was "
             "dropped) or heartbeat.", "processor", "operation"),
    _histogram("job_queue_wait_seconds", "From the time a job was due to its claim.", "processor",
               buckets=SECONDS_WAIT),
    _histogram("job_attempt_duration_seconds", "From claim to end of an attempt.",
               "processor", "outcome", buckets=SECONDS_MODEL),
    _histogram("inference_duration_seconds", "One call of a model with one batch.", "processor",
               buckets=SECONDS_MODEL),
    _histogram("job_finalize_duration_seconds", "The transaction that ends one batch.",
               "processor", buckets=SECONDS_QUICK),
    _histogram("job_end_to_end_seconds", "From the planning of a job to its end.",
               "processor", "status", buckets=SECONDS_WAIT),
    _counter("annotations_written", "Annotations; outcome is inserted, updated, deleted or "
             "deduplicated (it stood there already). Processor is empty for predictions made "
             "elsewhere.", "processor", "outcome"),
    _counter("circuit_openings", "Pauses that began because of the model; reason is failures or "
             "asked (it said how long to leave it alone).", "processor", "reason"),
    # How work is found.
    _counter("wakeups_sent", "Hints to look for jobs; outcome is ok, coalesced (one was queued "
             "already) or error (redis is away or there is none; workers poll).", "outcome"),
    _counter("wakeups_received", "Hints that were followed; outcome is claimed, empty, stale or "
             "malformed.", "outcome"),
    _counter("claims", "Questions for due jobs; source is wakeup or poll, outcome hit, empty or "
             "error. Poll hits while redis is up are lost hints.", "source", "outcome"),
    _histogram("claim_duration_seconds", "One claim.", buckets=SECONDS_QUICK),
    _histogram("claim_batch_jobs", "Jobs per claim that got some.", buckets=BATCH),
    # Messages and long work.
    _counter("commands_followed", "Messages that are commands; operation is the actor, outcome "
             "done, repeated (it was followed before), nothing (there was nothing to do) or "
             "dead_letter.", "operation", "outcome"),
    _counter("operations_finished", "Operations that ended; status is completed or failed.",
             "operation", "status"),
    _counter("operation_units", "What became of the units of work of operations, by word.",
             "operation", "outcome"),
    # Looking after the data.
    _counter("jobs_pruned", "Jobs removed because they were over for long; status is completed or "
             "failed.", "status"),
    _counter("sweep_runs", "Periodic repairs; outcome is ok or error.", "sweep", "outcome"),
    _histogram("sweep_duration_seconds", "One run of a periodic repair.", "sweep",
               buckets=SECONDS_QUICK),
    _gauge("sweep_last_success_timestamp_seconds", "When a repair succeeded last in any process, "
           "seconds since 1970.", "sweep", source="process"),
    _counter("db_errors", "Errors of PostgreSQL; operation is connect, transaction or commit, "
             "reason unavailable, unknown, deadlock, refused or other.", "operation", "reason"),
    _counter("db_reconnects", "Times that PostgreSQL answered again after it was away."),
    _counter("log_lines_lost", "Log lines that could not be written."),
    # What the processes are doing; a dead one's are gone.
    _gauge("jobs_in_progress", "Jobs that the worker processes hold leases of.", "processor"),
    _gauge("worker_slots", "Batches that the worker processes can work on side by side."),
    _gauge("worker_slots_in_use", "Those they work on."),
    _gauge("heartbeat_lag_seconds", "Since the last successful renewal of leases, of the process "
           "where that is longest ago."),
    # What is, by the database.
    _asked("database_up", "1 when the database answered in time; without it the other gauges of "
           "the database are left out."),
    _asked("jobs", "Jobs by status; completed ones are estimated beyond 100,000, failed ones "
           "counted up to there.", "processor", "status"),
    _asked("jobs_due", "Pending jobs whose time has come and that wait for no other.",
           "processor"),
    _asked("oldest_due_job_age_seconds", "How long the oldest due job has waited; left out for a "
           "post-processor that is disabled, or paused by a person or by failures; 0 when none is "
           "due.", "processor"),
    _asked("oldest_lease_age_seconds", "How long the oldest job in flight has run; 0 when there "
           "is none.", "processor"),
    _asked("processor_paused", "1 when the post-processor is paused or disabled.", "processor"),
    _asked("circuit_state", "Pause by failures of the model: 0 none, 1 over (one job at a time "
           "runs as a probe), 2 nothing runs.", "processor"),
    _asked("workers", "Worker processes of all machines; state is live, draining or lost.",
           "state"),
    _asked("stats_staleness_seconds", "Age of the oldest change that is not folded into the label "
           "stats yet; they are exact all the same."),
    _counter("stats_drift_rows", "Rows of label stats that differed from a recount and were set "
             "right; whatever made them differ is a fault."),
    _asked("stats_unfolded_deltas", "Changes that are not folded yet, counted up to 100,000."),
    _asked("operations", "Operations that are not over; status is pending or processing.",
           "operation", "status"),
    _asked("dead_letters", "Messages that could not be followed and wait for a person, counted up "
           "to 100,000."),
    _asked("db_oldest_transaction_age_seconds", "Age of the oldest open transaction in this "
           "database; an old one keeps dead rows alive."),
    _asked("job_table_dead_tuples", "Dead rows of the job table, by the statistics."),
    _asked("job_table_hot_update_ratio", "Share of updates of the job table that touched no "
           "index, since the statistics were reset."),
    _asked("redis_up", "1 when redis answered in time; left out when none is configured."),
    _asked("build_info", "Always 1.", "version", "python_version", "schema_version"),
)  # fmt: skip

BY_NAME = {about.name: about for about in METRICS}
