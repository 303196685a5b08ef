"""One JSON line per edge of a job; secrets never in it."""

import io
import json
import logging
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
import structlog

from ppworker import settings, telemetry
from ppworker.domain.events import (
    JobMoved,
    LabelsCreated,
    LeaseRefused,
    OperationAdvanced,
    OperationMoved,
    StatsRebuilt,
)
from ppworker.domain.job import EDGES, Status

WORKER = UUID("01a1fd00-0000-7000-8000-000000000001")


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """What a worker process would print."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    telemetry.configure(settings.load(log_format="json"), worker_id=WORKER, out=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def moved(**values: object) -> JobMoved:
    given: dict[str, object] = {
        "job_id": uuid4(),
        "item_id": uuid4(),
        "post_processor": "ocr",
        "attempt": 2,
        "lease_token": 7,
        "source": Status.PROCESSING,
        "to": Status.COMPLETED,
        "cause": "finished",
        "reason": "",
        "seconds": 1.25,
    }
    return JobMoved(**(given | values))  # type: ignore[arg-type]  # a table of values


def test_an_edge_is_one_line_with_every_field(out: io.StringIO) -> None:
    event = moved(reason="timeout")
    telemetry.emit([event])
    (line,) = lines(out)
    assert line["event"] == "job.moved"
    assert line["level"] == "info"
    assert line["worker"] == str(WORKER)
    assert line["timestamp"]
    assert {
        key: line[key]
        for key in (
            "job",
            "item",
            "post_processor",
            "attempt",
            "lease_token",
            "from",
            "to",
            "cause",
            "reason",
            "seconds",
        )
    } == {
        "job": str(event.job_id),
        "item": str(event.item_id),
        "post_processor": "ocr",
        "attempt": 2,
        "lease_token": 7,
        "from": "processing",
        "to": "completed",
        "cause": "finished",
        "reason": "timeout",
        "seconds": 1.25,
    }


def test_every_legal_edge_can_be_told(out: io.StringIO) -> None:
    told = [
        moved(source=source, to=to, cause=cause)
        for (source, to), causes in EDGES.items()
        for cause in causes
    ]
    telemetry.emit(told)
    assert len(lines(out)) == len(told)


def test_rescues_and_refused_leases_are_warnings_and_failures_are_not(out: io.StringIO) -> None:
    refused = LeaseRefused(
        job_id=uuid4(), item_id=uuid4(), post_processor="ocr", attempt=1, lease_token=1
    )
    telemetry.emit([moved(cause="rescued"), moved(cause="exhausted", to=Status.FAILED), refused])
    assert [line["level"] for line in lines(out)] == ["warning", "info", "warning"]


def test_the_other_facts_have_their_lines(out: io.StringIO) -> None:
    telemetry.emit(
        [
            LabelsCreated(version_id=uuid4(), post_processor="ner", names=("a", "b")),
            StatsRebuilt(split_id=uuid4(), rows=3),
            OperationMoved(
                operation_id=uuid4(),
                kind="reapply",
                source=None,
                to=Status.PENDING,
                cause="planned",
            ),
            OperationAdvanced(
                operation_id=uuid4(), kind="reapply", done=3, counts={"a": 1}, seconds=0.1
            ),
        ]
    )
    first, second, third = lines(out)  # chunks are told at level debug only
    assert (third["event"], third["kind"], third["to"]) == ("operation.moved", "reapply", "pending")
    assert (first["event"], first["names"]) == ("labels.created", ["a", "b"])
    assert (second["event"], second["rows"]) == ("stats.rebuilt", 3)


@pytest.mark.parametrize(
    "secret_line",
    [
        {"error": "cannot reach postgresql://joe:hunter2hunter2@db/x"},
        {"password": "hunter2hunter2"},
        {"api_key": "hunter2hunter2"},
        {"nested": {"Authorization": "hunter2hunter2"}},
        {"header": "Authorization: Bearer hunter2hunter2"},
        {"error": "connection failed: password=hunter2hunter2 host=db"},
        {"listed": [{"secret": "hunter2hunter2"}]},
    ],
)
def test_secrets_are_redacted(out: io.StringIO, secret_line: dict[str, object]) -> None:
    telemetry.warn("something", **secret_line)
    assert "hunter2" not in out.getvalue()
    assert telemetry.REDACTED in out.getvalue()


def test_secrets_in_a_jobs_error_are_redacted(out: io.StringIO) -> None:
    telemetry.emit([moved(error="GET https://u:hunter2hunter2@host failed")])
    assert "hunter2" not in out.getvalue()


def test_a_lease_token_is_no_secret(out: io.StringIO) -> None:
    telemetry.emit([moved(lease_token=41)])
    assert lines(out)[0]["lease_token"] == 41


def test_lines_of_libraries_come_the_same_way_and_are_redacted_too(out: io.StringIO) -> None:
    logging.getLogger("some.package").warning("lost redis://x:hunter2hunter2@host")
    (line,) = lines(out)
    assert line["logger"] == "some.package"
    assert "hunter2" not in out.getvalue()


def test_a_log_that_cannot_be_written_fails_nothing(out: io.StringIO) -> None:
    lost: list[int] = []
    telemetry.configure(settings.load(log_format="json"), out=out, lost=lost.append)
    out.close()
    telemetry.emit([moved(), moved()])
    assert sum(lost) == 2


def test_text_for_a_terminal_is_readable() -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    telemetry.configure(settings.load(log_format="text"), out=stream)
    telemetry.emit([moved()])
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    assert "job.moved" in stream.getvalue()
    assert not stream.getvalue().startswith("{")
