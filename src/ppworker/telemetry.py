"""Turns events into log lines, one for each edge of a job; nothing else logs state changes.

JSON lines for machines, readable lines on a terminal, secrets redacted in both.
"""

import json
import logging
import re
import select
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO
from uuid import UUID

import structlog
from structlog.typing import EventDict, WrappedLogger

from ppworker import __version__
from ppworker.domain.events import (
    CircuitClosed,
    CircuitOpened,
    CommandFollowed,
    CommandRefused,
    Event,
    JobMoved,
    LabelsCreated,
    LeaseRefused,
    OperationAdvanced,
    OperationMoved,
    StatsRebuilt,
)
from ppworker.settings import Settings

REDACTED = "[redacted]"
_SECRET_KEY = re.compile(
    r"(?i)(passw|secret|token$|(api|access|private|account|signing|subscription)[_-]?key"
    r"|authorization|credential|dsn)"
)
_NOT_SECRET = frozenset({"lease_token"})
_SECRET_VALUE = re.compile(
    r"(?i)(?<=://)[^/@\s]*:[^/@\s]*(?=@)"  # user:password in a URL
    r"|(?<=bearer )[\w.~+/=-]{8,}"
    r"|\b(?:sk-|ppw_)[\w-]{16,}"
    r"|(?<=password=)[^\s&'\"]+"
)

_NAMES = {
    JobMoved: "job.moved",
    LeaseRefused: "job.lease_refused",
    LabelsCreated: "labels.created",
    StatsRebuilt: "stats.rebuilt",
    CircuitOpened: "post_processor.circuit_opened",
    CircuitClosed: "post_processor.circuit_closed",
    OperationMoved: "operation.moved",
    OperationAdvanced: "operation.advanced",
    CommandFollowed: "command.followed",
    CommandRefused: "command.refused",
}
_WARNINGS = frozenset({"rescued", "suspected", "crashed"})
_EDGE_NAMES = {
    "source": "from", "to": "to", "job_id": "job", "item_id": "item", "operation_id": "operation",
}  # fmt: skip
_LEVELS = {
    LeaseRefused: "warning",
    StatsRebuilt: "warning",
    CircuitOpened: "warning",
    OperationAdvanced: "debug",
    CommandRefused: "warning",
}
"""Levels of events that are not told at level info."""


def configure(
    settings: Settings,
    *,
    worker_id: UUID | None = None,
    out: TextIO | None = None,
    lost: Callable[[int], None] | None = None,
) -> None:
    """Set up logging for this process: ours through structlog, libraries' through the same lines.

    Args:
        settings: level and format.
        worker_id: named in every line when this process is a worker.
        out: where lines go; standard error by default.
        lost: told how many lines could not be written; must not raise.
    """
    stream = out or sys.stderr
    is_text = settings.log_format == "text" or (
        settings.log_format == "auto" and hasattr(stream, "isatty") and stream.isatty()
    )
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    context: dict[str, Any] = {"service": "ppworker", "version": __version__}
    if worker_id is not None:
        context["worker"] = str(worker_id)
    if is_text:
        context = {}
        last: Any = structlog.dev.ConsoleRenderer(colors=stream.isatty())
    else:
        last = structlog.processors.JSONRenderer(serializer=_dumps)
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    global _log, _json_lines, _lost  # noqa: PLW0603  one logger per process, bound once
    _lost = lost or _untold
    _log = structlog.get_logger().bind(**context)
    _json_lines = None if is_text else _JsonLines(stream, context, level)
    handler = _FromLibraries()
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Their chatter about normal work is not ours to print.
    for name in ("alembic", "PIL", "fakeredis", "asyncio", "uvicorn"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


_log: Any = structlog.get_logger()


def _untold(_lines: int) -> None:
    """Nobody asked to be told of lost lines."""


_lost: Callable[[int], None] = _untold


def emit(events: Sequence[Event]) -> None:
    """Log facts, one line each. Never raises: a full disk of logs must not fail a job."""
    try:
        if _json_lines is not None:
            _json_lines.write(events)
            return
        for event in events:
            if type(event) in _NAMES:
                level, name, values = _described(event)
                getattr(_log, level)(name, **values)
    except Exception:  # noqa: BLE001  logging must never decide what becomes of a job
        _lost(len(events))


def _described(event: Event) -> tuple[str, str, dict[str, Any]]:
    """Level, name and values of an event's line."""
    if isinstance(event, JobMoved):
        line: dict[str, Any] = {
            "job": str(event.job_id),
            "item": str(event.item_id),
            "post_processor": event.post_processor,
            "attempt": event.attempt,
            "lease_token": event.lease_token,
            "from": event.source,
            "to": event.to,
            "cause": event.cause,
            "reason": event.reason,
            "seconds": None if event.seconds is None else round(event.seconds, 4),
        }
        if event.error:
            line["error"] = event.error[:500]
        return _level(event), "job.moved", line
    values = {f.name: _plain(getattr(event, f.name)) for f in fields(event)}
    named = {_EDGE_NAMES.get(name, name): value for name, value in values.items()}
    return _LEVELS.get(type(event), "info"), _NAMES[type(event)], named


class _JsonLines:
    """Writes the lines of many events as structlog would, in less time.

    A batch moves hundreds of jobs twice, and structlog's chain took a sixth of all the time of a
    worker. What one write carries a pipe takes whole, so lines of several processes do not mix.
    """

    def __init__(self, stream: TextIO, context: Mapping[str, Any], level: int) -> None:
        self._out = structlog.WriteLoggerFactory(stream)()  # shares structlog's lock
        self._context = context
        known = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
        self._levels = {name for name, number in known.items() if number >= level}

    def write(self, events: Sequence[Event]) -> None:
        timestamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        heads: dict[tuple[str, str], str] = {}  # the beginning that lines of a kind share
        lines: list[str] = []
        size = 0
        for event in events:
            if isinstance(event, JobMoved):
                level, name = _level(event), "job.moved"
                values = _moved_json(event) if level in self._levels else ""
            elif type(event) not in _NAMES:
                continue  # for counters alone
            else:
                level, name, described = _described(event)
                values = _ENCODER.encode(redacted(described))[1:]
            if level not in self._levels:
                continue
            head = heads.get((level, name))
            if head is None:
                shared = {"event": name, "level": level, "timestamp": timestamp}
                head = heads[level, name] = _ENCODER.encode({**self._context, **shared})[:-1]
            line = f"{head},{values}"
            # In bytes a code point takes up to four.
            bytes_ = len(line) if line.isascii() else len(line) * 4
            if lines and size + bytes_ >= select.PIPE_BUF:
                self._out.msg("\n".join(lines))
                lines, size = [], 0
            lines.append(line)
            size += bytes_ + 1
        if lines:
            self._out.msg("\n".join(lines))


def _level(event: JobMoved) -> str:
    return "warning" if event.cause in _WARNINGS else "info"


def _moved_json(event: JobMoved) -> str:
    """The rest of a job's line behind its head; the same fields as in `_described`.

    Only the words that people or models chose need quoting and redaction.
    """
    source = "null" if event.source is None else f'"{event.source}"'
    seconds = "null" if event.seconds is None else f"{event.seconds:.4f}"
    error = f',"error":{_word(event.error[:500])}' if event.error else ""
    return (
        f'"job":"{event.job_id}","item":"{event.item_id}",'
        f'"post_processor":{_word(event.post_processor)},"attempt":{event.attempt},'
        f'"lease_token":{event.lease_token},"from":{source},"to":"{event.to}",'
        f'"cause":"{event.cause}","reason":{_word(event.reason)},"seconds":{seconds}{error}}}'
    )


@lru_cache(maxsize=1024)
def _word(text: str) -> str:
    return _ENCODER.encode(redacted(text))


_json_lines: _JsonLines | None = None


def warn(event: str, **values: Any) -> None:
    """Log something about the process itself that people should look at; never raises."""
    _say("warning", event, values)


def info(event: str, **values: Any) -> None:
    """Log something about the process itself; never raises."""
    _say("info", event, values)


def _say(level: str, event: str, values: Mapping[str, Any]) -> None:
    try:
        getattr(_log, level)(event, **values)
    except Exception:  # noqa: BLE001  as in emit
        _lost(1)


def redact(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Structlog processor: hide what looks like a secret, by its key or by its form."""
    for key, value in line.items():
        line[key] = redacted(value, key)
    return line


def redacted(value: Any, key: str = "") -> Any:
    """The value with secrets hidden, through nested mappings and lists."""
    if key and key not in _NOT_SECRET and value and _SECRET_KEY.search(key):
        return REDACTED
    if isinstance(value, str):
        return _SECRET_VALUE.sub(REDACTED, value) if _may_hide_secret(value) else value
    if isinstance(value, Mapping):
        return {k: redacted(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(v) for v in value]
    return value


def _may_hide_secret(value: str) -> bool:
    """A quick look that spares most strings the regular expression."""
    return len(value) > 12 and (  # noqa: PLR2004
        "@" in value or "=" in value or " " in value or "sk-" in value or "ppw_" in value
    )


def _plain(value: Any) -> Any:
    if isinstance(value, UUID):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _dumps(line: MutableMapping[str, Any], **_: Any) -> str:
    return _ENCODER.encode(line)


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=str, ensure_ascii=False)


class _FromLibraries(logging.Handler):
    """Carries lines of the standard library's logging into ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            method = getattr(_log, record.levelname.lower(), _log.info)
            extra: dict[str, Any] = {"logger": record.name}
            if record.exc_info and record.exc_info[1] is not None:
                extra["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"[:500]
                extra["trace"] = logging.Formatter().formatException(record.exc_info)[-4000:]
            method(record.getMessage(), **extra)
        except Exception:  # noqa: BLE001  as in emit
            _lost(1)
