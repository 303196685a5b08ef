"""Turns events into counters: a second listener beside the log, aggregated batch by batch.

Built with a registry and passed by hand. With a folder and a slot the figures lie in files that
whoever serves the port reads; a process that is started again in the same slot goes on with them.
"""

import logging
import os
import struct
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.mmap_dict import MmapedDict

from ppworker.domain.events import (
    CircuitOpened,
    CommandFollowed,
    CommandRefused,
    Event,
    JobMoved,
    LeaseRefused,
    OperationAdvanced,
    OperationMoved,
    StatsRebuilt,
)
from ppworker.domain.job import TERMINAL, Status
from ppworker.domain.measurements import (
    AnnotationsWritten,
    BatchFinished,
    ClaimTried,
    JobsDeduplicated,
    JobsPruned,
    ModelAsked,
    TurnEnded,
)
from ppworker.metric_names import METRICS, About

log = logging.getLogger(__name__)

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable by which prometheus_client knows the folder."""

_OUTCOMES = {
    "finished": "completed",
    "transient_error": "retry",
    "input_changed": "retry",
    "snoozed": "snoozed",
    "released": "interrupted",
    "rescued": "lease_lost",
    "suspected": "lease_lost",
    "exhausted": "failed",
    "permanent_error": "failed",
    "crashed": "failed",
    "cancelled": "cancelled",
}
"""Outcome of an attempt by the cause of the edge it took."""
_QUARANTINED = {"crashed": "crash", "permanent_error": "invalid", "exhausted": "exhausted"}
_RESCUED = {"lease_expired": "lease_expired", "deadline": "deadline_exceeded"}
"""Reason of a rescue by the reason of the edge; only a sweep gives either."""
_HINTS_SENT = {"sent": "ok", "coalesced": "coalesced", "failed": "error"}
_HINTS_DROPPED = ("stale", "malformed")
_FILE_BYTES = 1024 * 1024
"""Room for about four thousand figures of a process and kind; more make the file grow."""
_COMMANDS = frozenset({"take_upload", "apply_inferences", "retry_job"})


class _Batched(Histogram):
    """A histogram that takes many observations in the time of a few."""

    def observe_many(self, amounts: Sequence[float]) -> None:
        """Count each amount as ``observe`` does."""
        bounds = self._upper_bounds
        for place, n in Tally(bisect_left(bounds, amount) for amount in amounts).items():
            self._buckets[place].inc(n)
        self._sum.inc(sum(amounts))


_KINDS: dict[str, type[Counter | Gauge | Histogram]] = {
    "counter": Counter,
    "gauge": Gauge,
    "histogram": _Batched,
}


class Metrics:
    """The figures of one process. Every method is safe for threads, and none raises."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register everything that processes count."""
        self._families = {
            about.name: _built(about, registry) for about in METRICS if about.source == "process"
        }
        self._children: dict[tuple[str, ...], Any] = {}
        self._has_failed = False

    def observe(self, events: Sequence[Event]) -> None:
        """Count facts."""
        moves: dict[tuple[Any, ...], list[JobMoved]] = {}
        for event in events:
            if type(event) is JobMoved:
                key = (event.post_processor, event.cause, event.reason, event.source, event.to)
                try:
                    moves[key].append(event)
                except KeyError:
                    moves[key] = [event]
            elif handler := _HANDLERS.get(type(event)):
                handler(self, event)
        for key, group in moves.items():
            self._moved(*key, group)

    # What no event tells.

    def hint_counted(self, name: str) -> None:
        """A broker counted a hint under one of its names."""
        if name in _HINTS_SENT:
            self._count("wakeups_sent", _HINTS_SENT[name])
        elif name in _HINTS_DROPPED:
            self._count("wakeups_received", name)

    def leases_lost(self, post_processors: Iterable[str]) -> None:
        """A heartbeat found leases to be lost, given by their post-processors' names."""
        for name, n in Tally(post_processors).items():
            self._count("stale_writes_rejected", name, "heartbeat", n=n)

    def swept(self, sweep: str, *, is_ok: bool, seconds: float, at: float) -> None:
        """A periodic repair ran; ``at`` in seconds since 1970."""
        self._count("sweep_runs", sweep, "ok" if is_ok else "error")
        self._observe("sweep_duration_seconds", (sweep,), [seconds])
        if is_ok:
            name = "sweep_last_success_timestamp_seconds"
            self._write(lambda child: child.set(at), name, (sweep,))

    def database_failed(self, operation: str, reason: str) -> None:
        """PostgreSQL refused something, or was away."""
        self._count("db_errors", operation, reason)

    def database_came_back(self) -> None:
        """PostgreSQL answered again."""
        self._count("db_reconnects")

    def log_lines_lost(self, lines: int) -> None:
        """Log lines could not be written."""
        self._count("log_lines_lost", n=lines)

    def _moved(
        self,
        processor: str,
        cause: str,
        reason: str,
        source: Status | None,
        to: Status,
        moves: Sequence[JobMoved],
    ) -> None:
        n = len(moves)
        if cause in {"planned", "retried"}:
            self._count("jobs_enqueued", processor, "retry" if cause == "retried" else reason, n=n)
            return
        seconds = [max(0.0, move.seconds) for move in moves if move.seconds is not None]
        if cause == "claimed":
            self._observe("job_queue_wait_seconds", (processor,), seconds)
            return
        if source is Status.PROCESSING:
            # An attempt whose last allowed one was rescued is failed for another cause.
            outcome = "lease_lost" if reason in _RESCUED else _OUTCOMES.get(cause, cause)
            self._count("job_attempts", processor, outcome, n=n)
            self._observe("job_attempt_duration_seconds", (processor, outcome), seconds)
            if reason in _RESCUED:
                self._count("jobs_rescued", processor, _RESCUED[reason], n=n)
        if to in TERMINAL:
            self._count("jobs_finished", processor, str(to), n=n)
            ages = [max(0.0, move.age_s) for move in moves if move.age_s is not None]
            self._observe("job_end_to_end_seconds", (processor, str(to)), ages)
            if cause in _QUARANTINED:
                self._count("jobs_quarantined", processor, _QUARANTINED[cause], n=n)

    def _lease_refused(self, event: LeaseRefused) -> None:
        self._count("stale_writes_rejected", event.post_processor, "complete")

    def _annotations_written(self, event: AnnotationsWritten) -> None:
        for outcome in ("inserted", "updated", "deleted", "deduplicated"):
            if n := getattr(event, outcome):
                self._count("annotations_written", event.post_processor, outcome, n=n)

    def _jobs_deduplicated(self, event: JobsDeduplicated) -> None:
        self._count("jobs_deduplicated", event.post_processor, n=event.jobs)

    def _jobs_pruned(self, event: JobsPruned) -> None:
        self._count("jobs_pruned", event.status, n=event.jobs)

    def _stats_rebuilt(self, event: StatsRebuilt) -> None:
        self._count("stats_drift_rows", n=event.rows)

    def _claim_tried(self, event: ClaimTried) -> None:
        self._count("claims", event.woken_by, event.outcome)
        self._observe("claim_duration_seconds", (), [event.seconds])
        if event.jobs:
            self._observe("claim_batch_jobs", (), [event.jobs])

    def _turn_ended(self, event: TurnEnded) -> None:
        if event.woken_by == "wakeup":
            self._count("wakeups_received", "claimed" if event.jobs else "empty")

    def _model_asked(self, event: ModelAsked) -> None:
        self._observe("inference_duration_seconds", (event.post_processor,), [event.seconds])

    def _batch_finished(self, event: BatchFinished) -> None:
        self._observe("job_finalize_duration_seconds", (event.post_processor,), [event.seconds])

    def _circuit_opened(self, event: CircuitOpened) -> None:
        self._count("circuit_openings", event.post_processor, event.cause)

    def _command_followed(self, event: CommandFollowed) -> None:
        self._count("commands_followed", event.command, event.outcome)

    def _command_refused(self, event: CommandRefused) -> None:
        # A stranger wrote its name; a label must not grow with what strangers write.
        command = event.command if event.command in _COMMANDS else "unknown"
        outcome = "repeated" if event.letter_id is None else "dead_letter"
        self._count("commands_followed", command, outcome)

    def _operation_moved(self, event: OperationMoved) -> None:
        if event.to in TERMINAL:
            self._count("operations_finished", event.kind, str(event.to))

    def _operation_advanced(self, event: OperationAdvanced) -> None:
        for word, n in event.counts.items():
            if n > 0:
                self._count("operation_units", event.kind, word, n=n)

    def _count(self, name: str, *labels: str, n: float = 1) -> None:
        self._write(lambda child: child.inc(n), f"{name}_total", labels)

    def _observe(self, name: str, labels: tuple[str, ...], amounts: Sequence[float]) -> None:
        if amounts:
            self._write(lambda child: child.observe_many(amounts), name, labels)

    def _write(self, change: Callable[[Any], None], name: str, labels: tuple[str, ...]) -> None:
        """Change a figure. Never raises: counting must never decide what becomes of a job."""
        key = (name, *labels)
        try:
            # Finding it through the library takes ten times as long.
            child = self._children.get(key)
            if child is None:
                family = self._families[f"ppworker_{name}"]
                child = self._children[key] = family.labels(*labels) if labels else family
            change(child)
        except Exception as error:  # noqa: BLE001  whatever it is
            if not self._has_failed:
                self._has_failed = True
                log.warning("%s is not counted: %s: %s", name, type(error).__name__, error)


_HANDLERS: Mapping[type, Callable[[Metrics, Any], None]] = {
    LeaseRefused: Metrics._lease_refused,  # noqa: SLF001  its own methods
    AnnotationsWritten: Metrics._annotations_written,  # noqa: SLF001
    JobsDeduplicated: Metrics._jobs_deduplicated,  # noqa: SLF001
    JobsPruned: Metrics._jobs_pruned,  # noqa: SLF001
    StatsRebuilt: Metrics._stats_rebuilt,  # noqa: SLF001
    ClaimTried: Metrics._claim_tried,  # noqa: SLF001
    TurnEnded: Metrics._turn_ended,  # noqa: SLF001
    ModelAsked: Metrics._model_asked,  # noqa: SLF001
    BatchFinished: Metrics._batch_finished,  # noqa: SLF001
    CircuitOpened: Metrics._circuit_opened,  # noqa: SLF001
    CommandFollowed: Metrics._command_followed,  # noqa: SLF001
    CommandRefused: Metrics._command_refused,  # noqa: SLF001
    OperationMoved: Metrics._operation_moved,  # noqa: SLF001
    OperationAdvanced: Metrics._operation_advanced,  # noqa: SLF001
}


def shared(folder: Path | None, slot: str) -> Metrics:
    """The metrics of a process of a group; to be called once, before any other metric is built.

    Args:
        folder: where the figures of all processes lie; None counts in memory only.
        slot: name of this process among them.
    """
    if folder is not None and _prepare(folder, slot):
        os.environ[MULTIPROC_DIR] = str(folder)
        values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]
    return Metrics(CollectorRegistry())


def _prepare(folder: Path, slot: str) -> bool:
    """Have files that hold all that will be written; whether that worked.

    The library makes them sparse and then writes into memory: on a full disk the system would
    kill the process for it. Each appears at once, so that nobody reads half of one.
    """
    try:
        for kind in ("counter", "histogram", "gauge_max"):
            path = folder / f"{kind}_{slot}.db"
            if path.exists() and is_readable(path):
                continue
            aside = path.with_suffix(".new")
            with aside.open("wb") as file:
                file.write(bytes(_FILE_BYTES))
            aside.replace(path)
    except OSError as error:
        log.warning("figures cannot be shared, they stay in this process: %s", error)
        return False
    return True


def is_readable(path: Path) -> bool:
    """Whether a file of figures is whole; one from a machine that lost power may not be."""
    try:
        _read(path)
    except Exception as error:  # noqa: BLE001  whatever is wrong with it
        log.warning("the figures in %s cannot be read: %s", path.name, error)
        return False
    return True


def _read(path: Path) -> None:
    with path.open("rb") as file:
        (used,) = struct.unpack("i", file.read(4))
    if not 0 <= used <= path.stat().st_size:
        raise ValueError("its length is none")
    for _ in MmapedDict.read_all_values_from_file(str(path)):  # type: ignore[no-untyped-call]
        pass


def _built(about: About, registry: CollectorRegistry) -> Any:
    more: dict[str, Any] = {}
    if about.kind == "histogram":
        more["buckets"] = about.buckets
    elif about.kind == "gauge":
        more["multiprocess_mode"] = "max"  # of times; the others are no gauges of processes
    return _KINDS[about.kind](
        about.name, about.text, labelnames=about.labels, registry=registry, **more
    )
