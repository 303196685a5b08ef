"""The language between a worker and the process that holds a model.

Frames of four bytes of length and a JSON document over a socket pair. JSON and not pickle, because
hostile input may own the model's process and must not own the worker through its answers. The
documents are UTF-8 that lets lone surrogates through, so any Python text arrives as it left.
"""

import json
import re
import selectors
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppworker import errors
from ppworker.errors import BadResponse, RunnerError
from ppworker.runners.base import RawAnswer, RunnerInput

MAX_ERROR_CHARS = 500
"""Longest message of an error that comes out of a model."""

_HEADER = struct.Struct(">I")
_CHUNK = 1 << 20
_CODE = re.compile(r"[a-z][a-z0-9_]{0,39}")
_MAX_WAIT_S = 86_400.0
_RETRYABLE = (ConnectionError, TimeoutError, MemoryError)
_KINDS: tuple[type[RunnerError], ...] = (
    errors.RunnerTimeout,
    errors.RunnerOverloaded,
    errors.RunnerUnavailable,
    errors.FileMissing,
    errors.RunnerCrashed,
    errors.UnreadableInput,
    errors.UnsupportedMedia,
    errors.BadResponse,
)
_TYPED = {kind.code: kind for kind in _KINDS} | {"too_large": errors.UnreadableInput}

Answer = RawAnswer | RunnerError
"""What one input gets: a raw answer, or an error as a value."""


class TooLong(Exception):  # noqa: N818
    """A frame is longer than its reader allows."""


class Channel:
    """One end of the conversation. Every wait ends at its deadline."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, document: bytes, *, timeout_s: float | None = None) -> None:
        """Send one document.

        Raises:
            TimeoutError: the other side did not take it in time.
            OSError: the other side is gone.
        """
        self._socket.settimeout(timeout_s)
        self._socket.sendall(_HEADER.pack(len(document)) + document)

    def readable(self, timeout_s: float) -> bool:
        """Wait until something, or the end, can be received; False if nothing came in time."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            return bool(selector.select(timeout_s))

    def receive(self, *, timeout_s: float | None = None, limit: int = 2**32 - 1) -> bytes:
        """Receive one document of at most ``limit`` bytes.

        Raises:
            TimeoutError: it was not complete in time, however much of it has come.
            EOFError: the other side is gone.
            TooLong: its announced length is above the limit; the channel is of no use any more.
            OSError: the other side is gone, the hard way.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        (length,) = _HEADER.unpack(self._exactly(_HEADER.size, deadline))
        if length > limit:
            raise TooLong(f"{length} bytes, more than {limit}")
        return bytes(self._exactly(length, deadline))

    def close(self) -> None:
        """Hang up; a second call does nothing."""
        self._socket.close()

    def _exactly(self, length: int, deadline: float | None) -> bytearray:
        data = bytearray()
        while len(data) < length:
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._socket.settimeout(left)
            else:
                self._socket.settimeout(None)
            chunk = self._socket.recv(min(_CHUNK, length - len(data)))
            if not chunk:
                raise EOFError
            data += chunk
        return data


def encode(document: Mapping[str, Any]) -> bytes:
    """A JSON document as bytes; lone surrogates pass."""
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")


def decode(data: bytes) -> dict[str, Any]:
    """The JSON object in the bytes.

    Raises:
        BadResponse: they hold something else.
    """
    try:
        document = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise BadResponse(f"the model's process spoke no JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadResponse("the model's process spoke JSON, but no object")
    return document


def encode_inputs(inputs: Sequence[RunnerInput]) -> bytes:
    """A request for a batch."""
    return encode(
        {
            "inputs": [
                {
                    "key": item.key,
                    "name": item.name,
                    "media_type": item.media_type,
                    "path": None if item.path is None else str(item.path),
                    "text": item.text,
                }
                for item in inputs
            ]
        }
    )


def decode_inputs(document: Mapping[str, Any]) -> list[RunnerInput]:
    """The batch of a request."""
    return [
        RunnerInput(
            key=item["key"],
            name=item["name"],
            media_type=item["media_type"],
            path=None if item["path"] is None else Path(item["path"]),
            text=item["text"],
        )
        for item in document["inputs"]
    ]


def encode_answers(answers: Sequence[Answer]) -> bytes:
    """The reply to a request; every answer must have passed ``checked``."""
    return encode({"answers": [_answer_document(answer) for answer in answers]})


def decode_answers(document: Mapping[str, Any], count: int) -> list[Answer]:
    """The answers of a reply, as many as there were inputs.

    Raises:
        BadResponse: the reply breaks the contract.
        RunnerError: the reply says that the whole batch failed.
    """
    if "error" in document:
        raise decode_error(document["error"])
    answers = document.get("answers")
    if not isinstance(answers, list):
        raise BadResponse("the model's process gave no list of answers")
    _same_count(len(answers), count)
    return [_decode_answer(answer) for answer in answers]


def checked(answers: object, count: int) -> list[Answer]:
    """What a runner's ``predict`` returned, made sure of.

    An answer that is no JSON object becomes a ``BadResponse`` for its own input.

    Raises:
        BadResponse: it is no list, or holds more or fewer answers than there were inputs.
    """
    if not isinstance(answers, list | tuple):
        raise BadResponse(f"the model answered with {type(answers).__name__}, not with a list")
    _same_count(len(answers), count)
    return [_checked_answer(answer) for answer in answers]


def as_runner_error(error: BaseException) -> RunnerError:
    """An exception out of a model as the error its inputs get.

    A plain exception is the code ``model_error``; it is retryable where its kind says that another
    time may be better: lost connections, time limits, want of memory.
    """
    if isinstance(error, RunnerError):
        return error
    message = f"{type(error).__name__}: {error}"
    return RunnerError(_plain(message), retryable=isinstance(error, _RETRYABLE))


def encode_error(error: RunnerError) -> dict[str, Any]:
    """An error as JSON."""
    return {
        "code": error.code,
        "message": _plain(str(error)),
        "retryable": error.retryable,
        "retry_after_s": error.retry_after_s,
    }


def decode_error(document: object) -> RunnerError:
    """The error in a JSON document, as the class its code belongs to."""
    if not isinstance(document, dict):
        return BadResponse("the model's process gave an error that is no object")
    code = str(document.get("code"))
    if not _CODE.fullmatch(code):
        code = RunnerError.code
    wait = document.get("retry_after_s")
    sensible = isinstance(wait, int | float) and 0 <= wait <= _MAX_WAIT_S
    return _TYPED.get(code, RunnerError)(
        _plain(str(document.get("message", ""))),
        code=code,
        retryable=document.get("retryable") is True,
        retry_after_s=float(wait) if wait is not None and sensible else None,
    )


def _plain(message: str) -> str:
    """The message as any log and any database takes it, cut to a bearable length."""
    cut = message[:MAX_ERROR_CHARS].replace("\0", "\N{REPLACEMENT CHARACTER}")
    return cut.encode("utf-8", "replace").decode("utf-8")


def _same_count(answered: int, asked: int) -> None:
    if answered != asked:
        raise BadResponse(f"the model gave {answered} answers to {asked} inputs")


def _checked_answer(answer: object) -> Answer:
    if isinstance(answer, RunnerError):
        return answer
    if not isinstance(answer, RawAnswer) or not isinstance(answer.raw, Mapping):
        return BadResponse(f"the model answered with {type(answer).__name__}, not with an object")
    try:
        json.dumps(_answer_document(answer))
    except (TypeError, ValueError, RecursionError) as error:
        return BadResponse(f"the model's answer is no JSON: {error}"[:MAX_ERROR_CHARS])
    return answer


def _answer_document(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, RunnerError):
        return {"error": encode_error(answer)}
    return {"raw": dict(answer.raw), "model_version": str(answer.model_version)}


def _decode_answer(document: object) -> Answer:
    if isinstance(document, dict):
        if "error" in document:
            return decode_error(document["error"])
        raw = document.get("raw")
        if isinstance(raw, dict):
            return RawAnswer(raw=raw, model_version=str(document.get("model_version", "")))
    return BadResponse("the model's process gave an answer that is no object")
