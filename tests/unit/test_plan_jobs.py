"""Which post-processors make jobs for an item."""

from uuid import UUID

import pytest

from ppworker.domain.post_processor import (
    TEXT_DOCUMENTS,
    ItemFacts,
    PostProcessor,
    first_order,
    input_revision,
    plan_jobs,
)

IMAGE = ItemFacts(extension="png", media_type="image/png", has_file=True)
TEXT = ItemFacts(has_text=True)


def processor(name, number=1, **settings):
    values = {"model_type": "classification", "runner": "r", "dataset_id": UUID(int=0), **settings}
    return PostProcessor(id=UUID(int=number), name=name, **values)


def names(item, *processors):
    return [p.name for p in plan_jobs(item, processors)]


def test_a_chain_plans_the_text_reader_behind_the_text_writer():
    ocr = processor("ocr", reads="file", media_types=("image/*",), order=1, output_target="text")
    ner = processor("ner", 2, reads="text", order=2)
    assert names(IMAGE, ner, ocr) == ["ocr", "ner"]
    assert first_order(plan_jobs(IMAGE, [ner, ocr])) == 1


@pytest.mark.parametrize(
    "change", [{"order": 2}, {"output_target": "annotations"}, {"enabled": False}]
)
def test_a_text_reader_needs_an_earlier_writer_of_text(change):
    settings = {"reads": "file", "order": 1, "output_target": "text", **change}
    ner = processor("ner", 2, reads="text", order=2)
    assert "ner" not in names(IMAGE, processor("ocr", **settings), ner)


def test_a_writer_that_the_item_does_not_match_feeds_nobody():
    stt = processor("stt", reads="file", media_types=("audio/*",), output_target="text")
    assert names(IMAGE, stt, processor("ner", 2, reads="text", order=2)) == []


def test_a_text_item_is_read_by_readers_of_text_and_of_anything():
    readers = [processor(reads, n, reads=reads) for n, reads in enumerate(["file", "text", "any"])]
    assert names(TEXT, *readers) == ["text", "any"]


@pytest.mark.parametrize("media_type", TEXT_DOCUMENTS)
def test_a_reader_of_text_gets_a_document_even_where_its_text_could_not_be_taken(media_type):
    document = ItemFacts(extension="docx", media_type=media_type, has_file=True)
    reader = processor("ner", reads="text")
    assert names(document, reader) == ["ner"]
    assert names(IMAGE, reader) == []
    assert names(ItemFacts(media_type=media_type), reader) == [], "there is no such file"


def test_media_types_match_by_wildcard():
    assert names(IMAGE, processor("p", media_types=("image/*",))) == ["p"]
    assert names(IMAGE, processor("p", media_types=("audio/*", "application/pdf"))) == []


def test_equal_orders_run_in_order_of_their_ids():
    assert names(TEXT, processor("b", 2), processor("a", 1), processor("first", 3, order=-1)) == [
        "first",
        "a",
        "b",
    ]


def test_a_disabled_post_processor_makes_no_job():
    assert names(TEXT, processor("p", enabled=False)) == []


def test_file_types_filter_by_extension_in_any_case():
    shouting = ItemFacts(extension=".PNG", media_type="image/png", has_file=True)
    assert names(shouting, processor("p", file_types=("png",))) == ["p"]
    assert names(shouting, processor("p", file_types=("jpg", "txt"))) == []


@pytest.mark.parametrize("extension", ["", "md"])
def test_a_text_only_item_is_of_type_txt_whatever_its_name(extension):
    item = ItemFacts(extension=extension, has_text=True)
    assert names(item, processor("p", file_types=("txt",))) == ["p"]


def test_splits_filter_by_name():
    item = ItemFacts(has_text=True, split_names=frozenset({"train", "gold"}))
    assert names(item, processor("p", splits=("gold", "test"))) == ["p"]
    assert names(item, processor("p", splits=("test",))) == []


def test_no_match_has_no_ready_order():
    assert first_order([]) is None


def test_the_input_revision_is_the_hash_of_what_is_read():
    assert input_revision("file", "f", "t") == "f"
    assert input_revision("text", "f", "t") == "t"
    assert input_revision("any", "f", "t") == "f"
    assert input_revision("any", None, "t") == "t"
    assert input_revision("file", None, "t") == input_revision("text", "f", None) == ""
