"""The text of Word documents, and what hostile ones can do: nothing."""

import io
import time
import tracemalloc
import zipfile

import docx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppworker.errors import RunnerError, RunnerUnavailable, UnreadableInput
from ppworker.pipeline.uploads import media
from ppworker.runners import word
from ppworker.runners.inspector import Inspection

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
MC = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"


@pytest.fixture
def read(tmp_path):
    def read(data, max_bytes=10_000):
        path = tmp_path / "x.docx"
        path.write_bytes(data)
        return word.text_of(path, max_bytes=max_bytes)

    return read


def made(build):
    """A document as python-docx writes it."""
    document = docx.Document()
    build(document)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def package(body, *, part="word/document.xml", relations=None, head="", compress=False):
    """A package with nothing in it but its main part."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if compress else 0) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        if relations is not None:
            archive.writestr("_rels/.rels", relations)
        archive.writestr(part, f"{head}<w:document {W} {MC}><w:body>{body}</w:body></w:document>")
    return out.getvalue()


def paragraph(text):
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def test_paragraphs_are_lines(read):
    def build(document):
        document.add_heading("Title", 0)
        document.add_paragraph("grün 🚀 & <b>")
        runs = document.add_paragraph("one ")
        runs.add_run("two").bold = True
        runs.add_run().add_break()
        runs.add_run("three\tfour")
        document.add_paragraph("")
        document.add_paragraph("last", style="List Bullet")

    assert read(made(build)) == "Title\ngrün 🚀 & <b>\none two\nthree\tfour\n\nlast"


def test_cells_of_a_table_stand_in_their_order_apart_by_tabs(read):
    def build(document):
        document.add_paragraph("before")
        table = document.add_table(2, 2)
        for number, cell in enumerate(table._cells):
            cell.text = f"c{number}"
        table.cell(1, 1).add_paragraph("second line")
        document.add_paragraph("after")

    assert read(made(build)) == "before\nc0\tc1\nc2\tc3\nsecond line\nafter"


def test_what_is_not_text_of_the_document_is_left_out(read):
    body = (
        '<w:p><w:pPr><w:tabs><w:tab w:val="left"/></w:tabs></w:pPr>'
        "<w:r><w:t>kept</w:t></w:r>"
        "<w:r><w:instrText>PAGE</w:instrText></w:r>"
        "<w:del><w:r><w:delText>deleted</w:delText></w:r></w:del>"
        "<w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom>"
        "<w:ins><w:r><w:t> inserted</w:t></w:r></w:ins>"
        "<w:sdt><w:sdtContent><w:r><w:t> in a field</w:t></w:r></w:sdtContent></w:sdt>"
        "<mc:AlternateContent><mc:Choice><w:r><w:t> box</w:t></w:r></mc:Choice>"
        "<mc:Fallback><w:r><w:t> box</w:t></w:r></mc:Fallback></mc:AlternateContent></w:p>"
    )
    assert read(package(body)) == "kept inserted in a field box"


def test_the_main_part_is_where_the_package_says(read):
    relations = f'<Relationships><Relationship Type="{OFFICE}" Target="/word/document2.xml"/></Relationships>'
    assert read(package(paragraph("x"), part="word/document2.xml", relations=relations)) == "x"
    nowhere = relations.replace("document2", "../../../etc/passwd")
    assert read(package(paragraph("x"), relations=nowhere)) == "x"


def test_a_document_without_text_is_one_of_no_letters(read):
    assert read(made(lambda _: None)) == ""


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04 and no more",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
        package(paragraph("x"), part="other.xml"),
        package("<w:p>"),
        package(paragraph("&nothing;")),
    ],
)
def test_what_is_broken_or_locked_says_so(read, data):
    with pytest.raises(UnreadableInput, match="broken or locked"):
        read(data)


def test_a_missing_file_may_come_back(tmp_path):
    with pytest.raises(RunnerUnavailable):
        word.text_of(tmp_path / "missing", max_bytes=1)


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>',
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd">',
    ],
)
def test_no_document_declares_entities(read, head):
    with pytest.raises(UnreadableInput, match="type of its own"):
        read(package(paragraph("x"), head=head))


def test_a_bomb_costs_neither_memory_nor_much_time(read, monkeypatch):
    monkeypatch.setattr(word, "MAX_XML_BYTES", 1_000_000)
    bomb = package("<w:t/>" * 5_000_000, compress=True)
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableInput, match="unpacks to more than") as caught:
            read(bomb, max_bytes=10**9)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.code == "too_large"


def test_a_list_of_parts_without_end_is_given_up(read):
    relations = f"<Relationships>{'<Relationship/>' * 100_000}</Relationships>"
    with pytest.raises(UnreadableInput, match="unpacks to more than") as caught:
        read(package(paragraph("x"), relations=relations, compress=True))
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("begin", ["<!--", '<w:p a="', "<"])
def test_a_tag_without_end_is_given_up_soon(read, begin):
    bomb = package(begin + "x" * (40 << 20), compress=True)
    began = time.monotonic()
    with pytest.raises(UnreadableInput, match="tag of more than") as caught:
        read(bomb)
    assert time.monotonic() - began < 2.5
    assert caught.value.code == "too_large"


def test_a_text_above_the_limit_is_told_from_other_faults(read):
    data = package(paragraph("ä" * 50), compress=True)
    assert len(read(data, max_bytes=101).encode()) == 100
    with pytest.raises(UnreadableInput, match="more than 99 bytes") as caught:
        read(data, max_bytes=99)
    assert caught.value.code == word.TEXT_TOO_LONG


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)), max_size=9))
def test_damaged_documents_raise_nothing_but_typed_errors(read, places):
    data = bytearray(package(paragraph("hello"), relations="<Relationships/>"))
    for place, junk in places:
        at = int(place * len(data))
        data[at : at + len(junk)] = junk
    fault = None
    try:
        read(bytes(data))
    except RunnerError as error:
        fault = error
    assert fault is None or not fault.retryable


def test_an_upload_gets_the_text_of_its_document(tmp_path):
    path = tmp_path / "letter"
    with Inspection(max_text_bytes=20) as inspection:
        path.write_bytes(made(lambda document: document.add_paragraph("Dear Sir")))
        found = media.inspect(path, "letter.docx", inspection)
        assert (found.media_type, found.text, found.note) == (word.MEDIA_TYPE, "Dear Sir", "")
        path.write_bytes(made(lambda document: document.add_paragraph("Dear Sir" * 10)))
        found = media.inspect(path, "letter.docx", inspection)
        assert (found.text, found.is_text_too_long) == (None, True)
        path.write_bytes(package("<w:p>"))
        found = media.inspect(path, "letter.docx", inspection)
        assert (found.text, found.is_text_too_long) == (None, False)
        assert "broken or locked" in found.note
