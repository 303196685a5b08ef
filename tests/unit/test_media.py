"""What a file is, by its bytes."""

import hashlib
import io
import resource
import struct
import time
import tracemalloc
import zipfile
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ppworker.errors import RunnerCrashed
from ppworker.pipeline.uploads import media
from ppworker.pipeline.uploads.media import inspect
from ppworker.pipeline.uploads.names import MAX_NAME, UNNAMED, clean_name, extension_of
from ppworker.runners import pictures
from ppworker.runners.inspector import Inspection

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def inspection():
    with Inspection(max_text_bytes=1000) as inspection:
        yield inspection


@pytest.fixture
def look(tmp_path, inspection):
    def look(data, name="file"):
        path = tmp_path / "upload"
        path.write_bytes(data)
        return inspect(path, name, inspection)

    return look


def picture(image_format, size=(40, 20), orientation=None):
    image = Image.new("RGB", size)
    exif = Image.Exif()
    options: dict[str, object] = {}
    if orientation:
        exif[ORIENTATION] = orientation
        options = (
            {"tiffinfo": {ORIENTATION: orientation}} if image_format == "TIFF" else {"exif": exif}
        )
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def pdf(pages):
    kids = " ".join(f"{n + 3} 0 R" for n in range(pages))
    objects = ["<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{kids}]/Count {pages}>>"]
    objects += ["<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>"] * pages
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    end = f"xref\n0 {len(offsets) + 1}\n0000000000 65535 f \n{table}"
    end += f"trailer\n<</Size {len(offsets) + 1}/Root 1 0 R>>\nstartxref\n{len(data)}\n%%EOF"
    return data + end.encode()


def huge_png(width, height):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_images_are_known_and_measured_by_their_bytes(look, image_format):
    found = look(picture(image_format), "lie.txt")
    assert (found.media_type, found.width, found.height) == (
        f"image/{image_format.lower()}",
        40,
        20,
    )
    assert (found.extension, found.note) == ("txt", "")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_sizes_are_those_of_the_upright_image(look, image_format, orientation):
    found = look(picture(image_format, orientation=orientation))
    assert (found.width, found.height) == ((40, 20) if orientation < 5 else (20, 40))


def test_measuring_decodes_no_pixels(look, monkeypatch):
    def explode(*_):
        pytest.fail("pixels were decoded")

    data = picture("PNG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", explode)
    assert look(data).width == 40


@pytest.mark.parametrize("side", [14_000, 60_000])
def test_too_many_pixels_are_a_note_and_no_error(look, side):
    found = look(huge_png(side, side))
    assert (found.media_type, found.width, found.height) == ("image/png", None, None)
    assert found.note == "too many pixels"


def test_too_many_pixels_are_noticed_without_the_limit_of_the_library(look, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert look(huge_png(14_000, 14_000)).note == "too many pixels"


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "AVIF"])
def test_a_broken_image_is_accepted_with_a_note(look, image_format):
    found = look(picture(image_format)[:14])
    assert (found.media_type, found.width) == (f"image/{image_format.lower()}", None)
    assert "unreadable image" in found.note


def test_broken_exif_data_costs_the_orientation_only(look, monkeypatch):
    def broken(_):
        raise SyntaxError("not a TIFF file")

    data = picture("JPEG", orientation=6)
    monkeypatch.setattr(Image.Image, "getexif", broken)
    assert look(data).width == 40


@pytest.mark.parametrize("pages", [1, 2, 5])
def test_pages_of_a_tiff_are_counted(look, pages):
    buffer = io.BytesIO()
    first, *others = (Image.new("1", (40 + n, 20)) for n in range(pages))
    first.save(buffer, "TIFF", save_all=True, append_images=others)
    found = look(buffer.getvalue())
    assert (found.page_count, found.width, found.height) == (pages, 40, 20)


def test_only_tiffs_and_documents_have_pages(look):
    first = Image.new("P", (4, 4))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[Image.new("P", (4, 4), 1)])
    assert look(buffer.getvalue()).page_count is None


def test_a_tiff_whose_second_page_is_nowhere_has_no_page_count(look):
    data = bytearray(picture("TIFF"))
    directory = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[directory : directory + 2], "little")
    at = directory + 2 + 12 * entries
    data[at : at + 4] = (1 << 30).to_bytes(4, "little")
    found = look(bytes(data))
    assert (found.width, found.page_count) == (40, None)
    assert "page 2 is unreadable" in found.note


def test_a_tiff_that_leads_back_to_its_first_page_ends(look):
    data = bytearray(picture("TIFF"))
    directory = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[directory : directory + 2], "little")
    at = directory + 2 + 12 * entries
    data[at : at + 4] = directory.to_bytes(4, "little")
    assert look(bytes(data)).page_count == 1


@pytest.mark.parametrize("limit", [{"MAX_PAGES": 3}, {"_COUNT_S": 0.0}])
def test_pages_are_not_counted_for_ever(tmp_path, monkeypatch, limit):
    for name, value in limit.items():
        monkeypatch.setattr(pictures, name, value)
    path = tmp_path / "upload"
    Image.new("1", (4, 4)).save(
        path, "TIFF", save_all=True, append_images=[Image.new("1", (4, 4))] * 4
    )
    found = pictures.measure(path, "TIFF")
    assert found == {"width": 4, "height": 4, "note": "too many pages"}


def endless_tiff(pages, entries=65_535):
    """A megabyte of tables that overlap: each page costs its reader one of full length."""
    facts = [(256, 4), (257, 4), (258, 8), (262, 1), (273, 8), (277, 1), (278, 4), (279, 4)]
    table = bytearray()
    for number in range(entries + pages + 1):
        if number >= entries:  # where a page is told where the next one is
            table += struct.pack("<IIHH", 8 + 12 * (number - entries + 1), 1, 0, entries)
        elif 0 <= number - pages < len(facts):
            tag, value = facts[number - pages]
            table += struct.pack("<HHIHH", tag, 3, 1, value, entries)
        else:
            table += struct.pack("<HHIHH", 0xFFFF, 0, 1, 0, entries)
    return b"II*\0" + struct.pack("<IH", 8, entries) + bytes(table)


def test_a_small_file_of_endless_pages_ends_in_time(look):
    data = endless_tiff(9000)
    assert len(data) < 1 << 20
    began = time.monotonic()
    found = look(data)
    assert (found.media_type, found.width, found.page_count) == ("image/tiff", 4, None)
    assert found.note == "too many pages"
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("data", "is_apart"),
    [
        (picture("PNG"), False),
        (picture("TIFF"), True),
        (pdf(1), True),
        (picture("PNG") + bytes(media._PLAIN_BYTES), True),
    ],
    ids=["png", "tiff", "pdf", "large png"],
)
def test_only_plain_images_are_measured_in_the_uploaders_process(
    tmp_path, monkeypatch, data, is_apart
):
    path = tmp_path / "upload"
    path.write_bytes(data)
    asked = []

    def look(given):
        asked.append(given.media_type)
        return RunnerCrashed("it was killed")

    with Inspection(max_text_bytes=1000) as inspection:
        monkeypatch.setattr(inspection, "look", look)
        found = inspect(path, "x", inspection)
    assert bool(asked) is is_apart
    assert found.note == ("it was killed" if is_apart else "")


def test_a_small_pdf_that_swells_its_reader_costs_the_uploader_nothing(look):
    packed = zlib.compress(zlib.compress(bytes(1 << 28), 9), 9)
    data = b"%PDF-1.5\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    start = len(data)
    data += b"3 0 obj<</Type/XRef/Size 3/W[1 4 1]/Root 1 0 R/Filter[/FlateDecode/FlateDecode]"
    data += b"/Length %d>>stream\n" % len(packed) + packed
    data += b"\nendstream endobj\nstartxref\n%d\n%%%%EOF" % start
    assert len(data) < 8192
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = look(data)
    assert (found.media_type, found.page_count) == ("application/pdf", None)
    assert found.note
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_pages_of_a_pdf_are_counted(look):
    found = look(pdf(3), "a.PDF")
    assert (found.media_type, found.page_count, found.extension) == ("application/pdf", 3, "pdf")


def test_a_broken_pdf_is_accepted_with_a_note(look):
    found = look(b"%PDF-1.7 and nothing more")
    assert (found.media_type, found.page_count) == ("application/pdf", None)
    assert "unreadable PDF" in found.note


def test_pages_are_not_counted_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "find_spec", lambda _: None)
    path = tmp_path / "upload"
    path.write_bytes(pdf(3))
    assert pictures.count_pages(path) == {"note": "pages not counted: pypdfium2 is not installed"}


def test_an_empty_file_is_accepted(look):
    found = look(b"", "a.png")
    assert (found.media_type, found.size_bytes, found.extension) == (
        "application/x-empty",
        0,
        "png",
    )
    assert found.sha256 == hashlib.sha256().hexdigest()


@pytest.mark.parametrize(
    ("data", "name", "media_type"),
    [
        (b"hello", "a", "text/plain"),
        ("grün 🚀".encode(), "a.xyz", "text/plain"),
        (b"a,b\r\n1,2\n", "a.CSV", "text/csv"),
        (b'{"a": 1}', "a.json", "application/json"),
        (b"print()", "a.py", "text/x-python"),
        (b"hello", "a.png", "text/plain"),
        (b"\xef\xbb\xbf<!DOCTYPE html><p>", "a.txt", "text/html"),
        (b"<?xml version='1.0'?><a/>", "a", "text/xml"),
        (b"<?xml version='1.0'?><svg/>", "a", "image/svg+xml"),
        (b"BM is no bitmap, ID3 no song, BZh no archive", "a", "text/plain"),
        (b"RIFF raff", "a", "text/plain"),
        (b"%PDF-", "a.txt", "application/pdf"),
    ],
)
def test_text_is_told_by_its_bytes_and_its_kind_by_the_extension(look, data, name, media_type):
    assert look(data, name).media_type == media_type


@pytest.mark.parametrize("data", [b"a\x00b", b"a\x01b", "grün".encode("latin-1"), b"cut \xe2\x82"])
def test_what_is_no_clean_utf8_is_no_text(look, data):
    assert look(data, "a.csv").media_type == "application/octet-stream"


def test_a_character_across_chunks_is_text(look, monkeypatch):
    monkeypatch.setattr(media, "_CHUNK_BYTES", 3)
    assert look("a🚀b🚀".encode()).media_type == "text/plain"


def test_text_is_read_to_its_end(look):
    assert look(b"a" * 3_000_000 + b"\x00").media_type == "application/octet-stream"


@pytest.mark.parametrize(
    ("data", "media_type", "extension"),
    [
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "audio/wav", "wav"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "video/x-msvideo", "avi"),
        (b"ID3\x04\x00\x00", "audio/mpeg", "mp3"),
        (b"\xff\xfb\x90\x64\x00", "audio/mpeg", "mp3"),
        (b"\xff\xf1\x50\x80\x00", "audio/aac", "aac"),
        (b"fLaC\x00\x00", "audio/flac", "flac"),
        (b"OggS\x00\x02\x01vorbis", "audio/ogg", "ogg"),
        (b"OggS\x00\x02\x80theora", "video/ogg", ""),
        (b"\x00\x00\x00\x18ftypM4A \x00", "audio/mp4", "m4a"),
        (b"\x00\x00\x00\x18ftypisom\x00", "video/mp4", "mp4"),
        (b"\x1a\x45\xdf\xa3\x01\x42\x82\x84webm", "video/webm", "webm"),
        (b"\x1a\x45\xdf\xa3\x01\x42\x82\x88matroska", "video/x-matroska", "mkv"),
        (b"\x1f\x8b\x08\x00", "application/gzip", "gz"),
        (b"\xfe\xed\xbe\xef\x00\x99", "application/octet-stream", ""),
    ],
)
def test_other_kinds_are_known_by_their_signatures(look, data, media_type, extension):
    found = look(data)
    assert (found.media_type, found.extension) == (media_type, extension)


def test_archives_that_are_documents_are_told_from_other_archives(look):
    office = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    assert look(zipped("[Content_Types].xml", "word/document.xml")).media_type == office
    assert look(zipped("[Content_Types].xml", "a")).media_type == "application/zip"
    assert look(zipped("a.txt")).media_type == "application/zip"
    # Some programs write the table of contents last, behind more than is looked at in front.
    late = zipped(*(f"word/media/{n:0200}.png" for n in range(100)), "[Content_Types].xml")
    assert b"[Content_Types].xml" not in late[:8192]
    assert look(late).media_type == office
    epub = io.BytesIO()
    with zipfile.ZipFile(epub, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
    assert look(epub.getvalue()).media_type == "application/epub+zip"


def test_kinds_outside_the_table_are_guessed(look):
    assert look(b"MZ\x90\x00\x03" + bytes(64)).media_type.startswith("application/")


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a.doc", "application/msword"),
        ("a", "application/msword"),
        ("a.XLS", "application/vnd.ms-excel"),
        ("a.ppt", "application/vnd.ms-powerpoint"),
        # A new one that is locked by a password lies in the container of the old ones.
        ("a.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    ],
)
def test_old_office_files_are_told_apart_by_their_extension(look, name, media_type):
    found = look(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(64), name)
    assert (found.media_type, found.text) == (media_type, None)


def test_a_guess_that_fails_is_no_error(look, monkeypatch):
    def broken(_):
        raise IndexError

    monkeypatch.setattr("puremagic.magic_string", broken)
    assert look(b"\x00\x01").media_type == "application/octet-stream"


def test_size_and_hash_are_those_of_the_bytes(look):
    data = bytes(range(256)) * 8192
    found = look(data)
    assert (found.size_bytes, found.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_memory_does_not_grow_with_the_file(look):
    data = b"a" * 20_000_000
    tracemalloc.start()
    try:
        look(data)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_an_unreadable_file_raises(tmp_path, inspection):
    with pytest.raises(FileNotFoundError):
        inspect(tmp_path / "missing", "a", inspection)


heads = st.sampled_from(
    [picture(f)[:60] for f in ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"]]
    + [pdf(1)[:80], zipped("mimetype"), b"RIFF", b"OggS", b"\x1a\x45\xdf\xa3", b"PK\x03\x04", b""]
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(heads, st.integers(0, 80), st.binary(max_size=40), st.text(max_size=5))
def test_no_content_raises(look, head, cut, tail, name):
    found = look(head[:cut] + tail, name)
    assert found.media_type.count("/") == 1


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("a.txt", "a.txt"),
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\a.txt", "a.txt"),
        ("folder/", "folder"),
        ("a\x00\n\u2028b.txt", "ab.txt"),
        ("gpj\u202eexe.jpg", "gpjexe.jpg"),
        ("\ud800a", "a"),
        ("  a b  ", "a b"),
        ("", UNNAMED),
        ("..", UNNAMED),
        ("/", UNNAMED),
        ("\x00", UNNAMED),
        (".hidden", ".hidden"),
    ],
)
def test_names_are_harmless(name, cleaned):
    assert clean_name(name) == cleaned


def test_a_long_name_keeps_its_extension():
    assert clean_name("a" * 300 + ".txt") == "a" * 251 + ".txt"
    assert clean_name("a" * 300) == "a" * MAX_NAME
    assert clean_name("a." + "b" * 300) == "a." + "b" * 253


@given(st.text())
def test_cleaning_a_name_twice_changes_nothing(name):
    cleaned = clean_name(name)
    assert 0 < len(cleaned) <= MAX_NAME
    assert clean_name(cleaned) == cleaned


@pytest.mark.parametrize(
    ("name", "extension"),
    [
        ("a.TXT", "txt"),
        ("a.tar.gz", "gz"),
        (".hidden", ""),
        ("a", ""),
        ("a.", ""),
        ("a.b c", ""),
        ("a.ä", ""),
        ("a." + "x" * 17, ""),
        ("a.txt/..", ""),
    ],
)
def test_extensions_are_plain(name, extension):
    assert extension_of(name) == extension
