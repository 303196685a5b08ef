"""What the API's small rules decide, without a server."""

import json
from datetime import UTC, datetime, timedelta, timezone
from threading import Event
from uuid import uuid4

import pytest

from ppworker import errors
from ppworker.api import auth, wire
from ppworker.api.errors import STATUS, _path, status_of
from ppworker.api.resources.processor_fields import ProcessorBody, settings_of
from ppworker.errors import Invalid
from ppworker.pipeline.setup.processor_changes import restore
from ppworker.pipeline.uploads.names import MAX_NAME, shown_name
from ppworker.telemetry import REDACTED, redacted


def test_every_error_a_caller_may_meet_has_its_status():
    expected = {
        "Malformed": 400, "Unauthenticated": 401, "Forbidden": 403, "NotFound": 404,
        "Conflict": 409, "TooLarge": 413, "Invalid": 422, "StoreRefused": 422,
        "StoreUnavailable": 503, "CommitUnknown": 503,
    }  # fmt: skip
    for name, status in expected.items():
        assert status_of(getattr(errors, name)("x")) == status
    for kind in errors.RequestError.__subclasses__():
        assert any(parent in STATUS for parent in kind.__mro__), kind
    assert status_of(errors.ConfigurationError("x")) == 500


def test_a_path_into_a_body_is_written_as_the_pipeline_writes_it():
    where: list[str | int] = ["inferences", 17, "inference_items", 0, "confidence"]
    assert _path(where) == "inferences[17].inference_items[0].confidence"
    assert _path(["name"]) == "name"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Bearer ppw_x", ("ppw_x", None)),
        ("bearer   ppw_x ", ("ppw_x", None)),
        ("anna:ppw_x", ("ppw_x", "anna")),
        ("Anna Maria:ppw_x", ("ppw_x", "Anna Maria")),
        ("ppw_x", ("", None)),
        ("Bearer", ("", None)),
        ("", ("", None)),
        ("Basic dTpw", ("", None)),
    ],
)
def test_both_forms_of_the_header_are_read(header, expected):
    assert auth._credentials(header) == expected


def test_the_use_of_a_key_is_noted_once_in_a_while(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("ppworker.api.auth.time.monotonic", lambda: now[0])
    uses, key = auth.Uses(), uuid4()
    assert uses.is_due(key)
    assert not uses.is_due(key)
    assert uses.is_due(uuid4())
    now[0] += 61
    assert uses.is_due(key)


def test_the_memory_of_used_keys_is_bounded(monkeypatch):
    monkeypatch.setattr("ppworker.api.auth._REMEMBERED", 3)
    uses = auth.Uses()
    for _ in range(50):
        assert uses.is_due(uuid4())
    assert len(uses._noted) <= 3


class Shown(wire.Base):
    place: wire.OptionalText = None
    share: wire.Share = 0.0
    flag: wire.Flag = False
    count: wire.Count = 0


def test_what_is_unset_goes_out_as_zero_and_never_as_null_unless_it_may():
    shown = Shown.of(
        id=None, name=None, description=None, share=None, flag=None, count=None, place=None
    ).model_dump()
    assert shown == {
        "id": "", "created_at": None, "updated_at": None, "name": "", "description": "",
        "place": None, "share": 0.0, "flag": False, "count": 0,
    }  # fmt: skip
    id_ = uuid4()
    assert Shown.of(id=id_, place=id_).place == str(id_)


def test_times_go_out_in_utc_with_their_fraction():
    at = datetime(2022, 9, 27, 21, 24, 0, tzinfo=timezone(timedelta(hours=2)))
    shown = json.loads(Shown.of(created_at=at, updated_at=at.astimezone(UTC)).model_dump_json())
    assert shown["created_at"] == shown["updated_at"] == "2022-09-27T19:24:00.000000Z"


def test_settings_beside_win_over_those_inside():
    inside = json.dumps(
        {"order": 9, "runner": "a", "label_prefix": "in", "depth": 3, "config": {"x": 1}}
    )
    body = ProcessorBody(
        name="n", external_config=inside, runner="b", order=None, file_types=["png"]
    )
    given, options = settings_of(body)
    assert given == {
        "name": "n", "runner": "b", "label_prefix": "in", "runner_config": {"x": 1},
        "file_types": ("png",),
    }  # fmt: skip
    # What is no setting of the post-processor is an option of its runner.
    assert options == {"order": 9, "depth": 3}


def test_empty_words_of_the_contract_ask_for_nothing():
    body = ProcessorBody(model_id="", external_provider="", external_config=" ", prompt="")
    assert settings_of(body) == ({}, {})


SECRETS = {"api_key": "sk-aaaaaaaaaaaaaaaaaaaa", "nested": {"password": "p", "n": 1}, "l": ["x"]}


def test_what_was_shown_redacted_comes_back_as_it_was():
    shown = redacted(SECRETS)
    assert shown["api_key"] == REDACTED
    assert restore(shown, SECRETS) == SECRETS
    mixed = {"api_key": "new", "nested": {"password": REDACTED, "n": 2}}
    assert restore(mixed, SECRETS) == {"api_key": "new", "nested": {"password": "p", "n": 2}}
    for forged in ({"other": REDACTED}, {"nested": {"deeper": {"password": REDACTED}}}):
        with pytest.raises(Invalid) as caught:
            restore(forged, SECRETS)
        assert caught.value.field.startswith("runner_config.")


def test_names_that_people_choose_keep_their_slashes_and_lose_what_cannot_be_shown():
    assert shown_name("Invoice 2024/03") == "Invoice 2024/03"
    assert shown_name(" a\0\u202eb\n ") == "ab"
    assert shown_name("") == ""
    assert len(shown_name("x" * 1000)) == MAX_NAME


def test_a_stopping_process_lets_nobody_wait():
    from ppworker.api.resources.inferences import Waiting

    stopping = Event()
    until = Waiting(2, stopping)._until(60)
    assert not until()
    stopping.set()
    assert until()
