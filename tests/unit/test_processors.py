"""What a post-processor is refused for, before a database is asked."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from ppworker.errors import Invalid
from ppworker.pipeline.setup import catalogue
from ppworker.pipeline.setup.processors import Wanted, checked
from ppworker.store.datasets import Dataset

DATASET = Dataset(
    id=uuid4(),
    user_id=uuid4(),
    name="d",
    description="",
    notes="",
    content_type="documents",
    multi_label=True,
    default_splits=True,
    logo_sha256=None,
    logo_media_type="",
    created_at=datetime.now(UTC),
    updated_at=datetime.now(UTC),
    newest_version_id=uuid4(),
    role="owner",
)


def made(**options):
    return checked(DATASET, Wanted(**{"name": "n", "runner": "rapidocr"} | options), by_path=True)


def test_type_and_target_follow_from_the_runner():
    assert (made().model_type, made().output_target) == ("ocr", "text")
    ner = made(runner="usaddress")
    assert (ner.model_type, ner.output_target, ner.reads) == ("ner", "annotations", "text")
    assert made(output_target="both").output_target == "both"
    assert made().media_types != ("*/*",)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": str(uuid4())}, "name"),
        ({"runner": "nope"}, "runner"),
        ({"runner": "nope:Nope"}, "runner"),
        ({"runner": "os:path"}, "runner"),
        ({"model_type": "ner"}, "model_type"),
        ({"model_type": "nope"}, "model_type"),
        ({"output_target": "nope"}, "output_target"),
        ({"runner": "magika", "output_target": "text"}, "output_target"),
        ({"runner": "usaddress", "output_target": "both"}, "output_target"),
        ({"runner": "rapidocr-boxes", "output_target": "text"}, "output_target"),
        ({"confidence_threshold": 1.01}, "confidence_threshold"),
        ({"confidence_threshold": -0.1}, "confidence_threshold"),
        ({"confidence_threshold": float("nan")}, "confidence_threshold"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1001}, "batch_size"),
        ({"concurrency_cap": 0}, "concurrency_cap"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 101}, "max_attempts"),
        ({"max_new_labels": -1}, "max_new_labels"),
        ({"order": 10**9}, "order"),
        ({"on_failure": "nope"}, "on_failure"),
        ({"file_types": ("p/ng",)}, "file_types"),
        ({"file_types": ("",)}, "file_types"),
        ({"label_mapping": {" ": "x"}}, "label_mapping"),
        ({"label_mapping": {"a\0": "x"}}, "label_mapping"),
        ({"label_mapping": {"a": " "}}, "label_mapping"),
        ({"label_mapping": {"a": "x" * 201}}, "label_mapping"),
        ({"label_mapping": {"Cat": "x", "cat": "y"}}, "label_mapping"),
        ({"label_prefix": "x" * 101}, "label_prefix"),
        ({"label_prefix": "\n"}, "label_prefix"),
        ({"runner_config": {"dpi": 1}}, "runner_config.dpi"),
        ({"runner_config": {"nope": 1}}, "runner_config.nope"),
        ({"runner_config": {"dpi": "\0"}}, "runner_config"),
        ({"runner_config": {"dpi": float("nan")}}, "runner_config"),
    ],
)
def test_what_cannot_work_is_refused_by_name(options, field):
    with pytest.raises(Invalid) as caught:
        made(**options)
    assert caught.value.field == field
    assert str(caught.value)


def test_settings_are_brought_into_their_form():
    processor = made(
        name=" e\u0301 ",
        file_types=(".PNG", "png", "Jpg"),
        splits=("a", "b", "a"),
        label_mapping={"Cat": None, "dog": "hound"},
        runner_config={"dpi": 72},
    )
    assert processor.name == "é"
    assert processor.file_types == ("png", "jpg")
    assert processor.splits == ("a", "b")
    assert processor.label_mapping == {"Cat": None, "dog": "hound"}


def test_a_door_open_to_strangers_takes_no_paths():
    with pytest.raises(Invalid, match="by its name"):
        checked(DATASET, Wanted(name="n", runner="os:path"), by_path=False)


def test_names_are_words():
    assert catalogue.checked_name("  Träume 2 ") == "Träume 2"
