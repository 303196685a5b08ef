import json
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppworker.errors import (
    BadResponse,
    RunnerCrashed,
    RunnerError,
    RunnerOverloaded,
    UnreadableInput,
)
from ppworker.runners import wire
from ppworker.runners.base import RawAnswer, RunnerInput

# Every code point, the lone surrogates among them.
any_text = st.text(st.characters(exclude_categories=()), max_size=30)


@given(text=any_text, name=any_text)
def test_any_text_arrives_as_it_left(text, name):
    sent = [RunnerInput(key="k", name=name, text=text, path=Path("/tmp/\udcff"))]  # noqa: S108
    assert wire.decode_inputs(wire.decode(wire.encode_inputs(sent))) == sent


@given(text=any_text)
def test_any_answer_arrives_as_it_left(text):
    sent = [RawAnswer(raw={"text": text, "predictions": [{"score": 0.1}]}, model_version="v")]
    document = wire.decode(wire.encode_answers(wire.checked(sent, 1)))
    assert wire.decode_answers(document, 1) == sent


def test_two_surrogates_side_by_side_stay_two_characters():
    text = "\ud83d" + "\ude00"
    assert wire.decode(wire.encode({"text": text}))["text"] == text


@pytest.mark.parametrize(
    "error",
    [
        UnreadableInput("broken"),
        UnreadableInput("long", code="too_large"),
        RunnerOverloaded("later", retry_after_s=3.5),
        RunnerCrashed("gone"),
        RunnerError("own kind", code="quota", retryable=True),
    ],
)
def test_an_error_arrives_with_its_kind(error):
    got = wire.decode_error(wire.encode_error(error))
    assert type(got) is type(error)
    assert (got.code, got.retryable, got.retry_after_s, str(got)) == (
        error.code,
        error.retryable,
        error.retry_after_s,
        str(error),
    )


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"code": None, "message": None, "retryable": 1, "retry_after_s": "soon"},
        {"code": "x" * 10_000, "message": "y" * 10_000, "retry_after_s": float("nan")},
        {"code": "DROP TABLE", "message": "\0\ud800", "retry_after_s": -1},
    ],
)
def test_a_hostile_error_becomes_a_harmless_one(document):
    error = wire.decode_error(document)
    assert error.code in {"model_error", "bad_response"}
    assert not error.retryable
    assert error.retry_after_s is None
    assert len(str(error)) <= wire.MAX_ERROR_CHARS
    str(error).encode()
    assert "\0" not in str(error)


@pytest.mark.parametrize("data", [b"", b"nothing", b"[1]", b"\xff", b"[" * 100_000, b"1" * 10_000])
def test_a_document_that_is_no_object_is_a_bad_response(data):
    with pytest.raises(BadResponse):
        wire.decode(data)


@pytest.mark.parametrize(
    "document", [{}, {"answers": 3}, {"answers": []}, {"answers": [{"raw": {}}] * 2}]
)
def test_a_reply_with_another_count_is_a_bad_response(document):
    with pytest.raises(BadResponse):
        wire.decode_answers(document, 1)


@pytest.mark.parametrize("answer", [None, 1, {}, {"raw": []}, {"raw": "x"}])
def test_an_answer_that_is_no_object_is_its_own_bad_response(answer):
    good = {"raw": {"text": "x"}}
    answers = wire.decode_answers({"answers": [good, answer]}, 2)
    assert isinstance(answers[0], RawAnswer)
    assert isinstance(answers[1], BadResponse)


@pytest.mark.parametrize(
    ("raised", "retryable"),
    [(ValueError("x"), False), (ConnectionResetError("x"), True), (MemoryError(), True)],
)
def test_a_plain_exception_becomes_a_model_error(raised, retryable):
    error = wire.as_runner_error(raised)
    assert error.code == "model_error"
    assert str(error).startswith(type(raised).__name__)
    assert error.retryable is retryable


def test_a_frame_that_stops_half_way_ends_at_the_deadline():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"\x00\x00\x00\x10half")
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            wire.Channel(ours).receive(timeout_s=0.2)
        assert time.monotonic() - began < 2


def test_a_frame_too_long_is_refused_before_it_is_read():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(wire.TooLong):
            wire.Channel(ours).receive(timeout_s=5, limit=1000)


def test_a_side_that_does_not_listen_ends_a_send_at_the_deadline():
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TimeoutError):
        wire.Channel(ours).send(b"x" * 50_000_000, timeout_s=0.2)


def test_a_long_document_passes():
    ours, theirs = socket.socketpair()
    document = json.dumps({"text": "x" * 5_000_000}).encode()
    with ours, theirs:
        sender = threading.Thread(target=wire.Channel(theirs).send, args=(document,))
        sender.start()
        assert wire.Channel(ours).receive(timeout_s=30) == document
        sender.join()
