"""Archives of strangers are looked at before they are believed; our own are written with care."""

import io
import stat
import struct
import zipfile
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppworker.errors import Invalid
from ppworker.formats import archive_writer
from ppworker.formats.archive import blocks, open_archive
from ppworker.formats.archive_checks import Limits
from ppworker.formats.archive_writer import ArchiveWriter, clean_part

LIMITS = Limits(members=50, total_bytes=200_000_000, member_bytes=150_000_000)


def packed(*members, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, content in members:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            info.compress_type = method
            file.writestr(info, content)
    return bytearray(out.getvalue())


def special(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def renamed(wanted):
    """An archive whose member has a name that the library would not write."""
    stand_in = "X" * len(wanted)
    return bytearray(bytes(packed((stand_in, b"x"))).replace(stand_in.encode(), wanted.encode()))


def changed(content, signature, offset, value):
    """The archive with a number behind its last such signature replaced."""
    at = content.rindex(signature) + offset
    content[at : at + len(value)] = value
    return content


def central(content, offset, value):
    return changed(content, b"PK\x01\x02", offset, value)


def local(content, offset, value):
    return changed(content, b"PK\x03\x04", offset, value)


def longer_than_it_says():
    """Both headers say 10 bytes, with the checksum of the first ten; a hundred come out."""
    crc = struct.pack("<L", zlib.crc32(b"a" * 10))
    content = packed(("big.txt", b"a" * 100))
    for change, size_at, crc_at in ((central, 24, 16), (local, 22, 14)):
        content = change(content, size_at, struct.pack("<L", 10))
        content = change(content, crc_at, crc)
    return content


def overlapping():
    """Two entries of the directory name the same bytes."""
    content = packed(("a.txt", b"a" * 100), ("b.txt", b"b" * 100))
    return central(content, 42, struct.pack("<L", 0))


def bytes_behind_its_end():
    """What is packed ends long before the member does."""
    content = bytes(packed(("a.txt", b"hello")))
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    size = struct.pack("<L", struct.unpack_from("<L", content, 18)[0] + 1_000_000)
    whole = bytearray(content[:start] + bytes(1_000_000) + content[start:])
    whole = central(local(whole, 18, size), 20, size)
    return changed(whole, b"PK\x05\x06", 12, struct.pack("<2L", end - start, start + 1_000_000))


def long_directory():
    """Few entries, each with all the comments and extras it may have."""
    entry = struct.pack(
        "<4s4B4H3L5H2L",
        b"PK\x01\x02",
        20,
        3,
        20,
        0,
        0,
        0,
        0,
        0x21,
        0,
        0,
        0,
        1,
        0,
        65_535,
        0,
        0,
        0,
        0,
    )
    directory = (entry + b"a" + bytes(65_535)) * 1_100
    return directory + struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, 1_100, 1_100, len(directory), 0, 0
    )


def all_too_large():
    """Each of two members is acceptable, both together are not."""
    content = packed(("a.bin", b"x"), ("b.bin", b"y"))
    first = content.index(b"PK\x01\x02")
    for at in (first, content.rindex(b"PK\x01\x02")):
        content[at + 20 : at + 28] = struct.pack("<2L", 120_000_000, 120_000_000)
    return content


def encrypted():
    content = packed(("secret.txt", b"hush"))
    return central(local(content, 6, b"\x01\x00"), 8, b"\x01\x00")


def beyond_every_file():
    """The member's header lies at an offset that no file has, as only zip64 can say."""
    content, name, extra = packed(("a.txt", b"abc")), b"a.txt", struct.pack("<2HQ", 1, 8, 2**64 - 1)
    central(content, 42, b"\xff" * 4)
    central(content, 30, struct.pack("<H", len(extra)))
    behind = content.rindex(b"PK\x01\x02") + 46 + len(name)
    content[behind:behind] = extra
    size = len(content) - 22 - content.rindex(b"PK\x01\x02")
    return changed(content, b"PK\x05\x06", 12, struct.pack("<L", size))


HOSTILE = {
    "traversal": (renamed("../../up.txt"), "../../up.txt", "out of the archive"),
    "traversal inside": (renamed("a/../../up.txt"), "a/../../up.txt", "out of the archive"),
    "absolute": (renamed("/etc/passwd"), "/etc/passwd", "absolute"),
    "drive": (renamed("C:/boot.ini"), "C:/boot.ini", "absolute"),
    "backslash": (renamed("a\\b.txt"), "a\\b.txt", "backslash"),
    "control characters": (renamed("a\x1b[2J.txt"), "a?[2J.txt", "control"),
    "nul in the name": (renamed("a.txt\x00.png"), "a.txt?.png", "control"),
    "symbolic link": (
        packed((special("link", stat.S_IFLNK | 0o777), b"/etc/passwd")), "link", "symbolic link",
    ),
    "device": (packed((special("tty", stat.S_IFCHR | 0o666), b"")), "tty", "no regular file"),
    "same name twice": (
        packed(("a.txt", b"1"), ("b.txt", b"2")).replace(b"b.txt", b"a.txt"), "a.txt", "twice",
    ),
    "same name but for case": (packed(("Ä.txt", b"1"), ("ä.TXT", b"2")), "ä.TXT", "twice"),
    "same name by another path": (packed(("a/b.txt", b""), ("a//./b.txt", b"")), "a//./b.txt", "twice"),
    "bomb by ratio": (packed(("bomb.txt", bytes(100_000_000))), "bomb.txt", "200 times"),
    "member too large": (
        central(packed(("big.bin", b"x")), 24, struct.pack("<L", 1_000_000_000)), "big.bin",
        "PPWORKER_MAX_FILE_BYTES",
    ),
    "all too large": (all_too_large(), "b.bin", "PPWORKER_MAX_ARCHIVE_BYTES"),
    "too many members": (
        packed(*((f"{number}.txt", b"") for number in range(60))), "50 members",
        "PPWORKER_MAX_ARCHIVE_MEMBERS",
    ),
    "longer than it says": (longer_than_it_says(), "big.txt", "longer than it says"),
    "shorter than it says": (
        central(packed(("a.txt", b"abc")), 24, struct.pack("<L", 4)), "a.txt", "shorter",
    ),
    "wrong checksum": (central(packed(("a.txt", b"abc")), 16, b"\0\0\0\0"), "a.txt", "checksum"),
    "bytes behind its end": (bytes_behind_its_end(), "a.txt", "bytes behind its end"),
    "long directory": (long_directory(), "", "directory has more than"),
    "overlapping": (overlapping(), "b.txt", "is broken"),
    "other name in its header": (
        packed(("a.txt", b"abc")).replace(b"a.txt", b"b.txt", 1), "a.txt", "header says b.txt",
    ),
    "beyond every file": (beyond_every_file(), "a.txt", "header is missing"),
    "encrypted": (encrypted(), "secret.txt", "encrypted"),
    "strange method": (packed(("a.txt", b"abc"), method=zipfile.ZIP_LZMA), "a.txt", "deflate"),
    "truncated": (packed(("a.txt", b"abc" * 99))[:-30], "", "no zip archive, or not a whole one"),
    "truncated in the middle": (packed(("a.txt", b"abc" * 99))[:60], "", "not a whole one"),
    "text": (b"name,label\na,b\n", "", "no zip archive"),
    "empty file": (b"", "", "no zip archive"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "", "no zip archive"),
    "directory elsewhere": (
        changed(packed(("a.txt", b"abc")), b"PK\x05\x06", 12, b"\xff\xff\xff\x00"), "", "cut off",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_with_the_members_name(kind, tmp_path):
    content, member, why = HOSTILE[kind]
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    with pytest.raises(Invalid) as caught, open_archive(path, LIMITS):
        pytest.fail("it was opened")
    assert member in str(caught.value)
    assert why in str(caught.value)
    assert caught.value.field == "file"


@given(st.data())
def test_whatever_is_changed_in_an_archive_is_refused_or_harmless(tmp_path_factory, data):
    content = packed(
        ("train/a.txt", b"hello " * 20), ("train/b.png", bytes(range(256))), ("c/", b"")
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.zip"
    path.write_bytes(content)
    with suppress(Invalid), open_archive(path, LIMITS) as archive:
        for name in archive:
            assert len(archive.read(name)) == archive.size(name)
            assert ".." not in name.split("/")


def test_members_are_read_by_name_by_line_and_by_place(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(
        packed(
            ("./a/b.txt", "\ufeffone\r\ntwo".encode()), ("__MACOSX/x", b""), ("a/.DS_Store", b"")
        )
    )
    with open_archive(path, LIMITS) as archive, path.open("rb") as file:
        assert list(archive) == ["a/b.txt"]
        assert archive.text("a/b.txt") == "one\r\ntwo"
        assert list(archive.lines("a/b.txt")) == ["one", "two"]
        assert b"".join(blocks(file, archive.place("a/b.txt"))) == archive.read("a/b.txt")
        with pytest.raises(Invalid, match=r"a/b\.txt: line 1 has more than 4 bytes"):
            list(archive.lines("a/b.txt", 4))


def write(path, steps, *, breaks):
    """An archive of members, by one writer or by a new one after each."""
    parts = path.parent / f"{path.name}-parts"
    parts.mkdir()
    with path.open("w+b") as out:
        writer = ArchiveWriter(out, parts)
        for folder, name, content in steps:
            if breaks:
                said = writer.checkpoint()
                writer.add(writer.reserve("lost"), b"what a chunk wrote that died" * 50)
                writer.append("later.txt", "lost")
                writer.discard()
                writer = ArchiveWriter(out, parts)
                writer.restore(said)
            writer.add(writer.reserve(folder, name), content)
            writer.append("later.txt", name)
        writer.close()
    return path.read_bytes()


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["x.txt", "X.txt", "y"]), st.binary()),
        max_size=8,
    )
)
def test_an_archive_goes_on_after_any_break_as_if_there_had_been_none(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("w")
    whole = write(folder / "whole", steps, breaks=False)
    assert write(folder / "broken", steps, breaks=True) == whole
    with open_archive(folder / "whole", LIMITS) as archive:
        found = [archive.read(name) for name in archive if name != "later.txt"]
        assert found == [content for _, _, content in steps]
        if steps:
            assert archive.text("later.txt") == "".join(name for _, name, _ in steps)


@pytest.mark.parametrize(
    ("part", "clean"),
    [
        ("a/b\\c", "a_b_c"), ("..", "_"), ("", "_"), ("con.txt", "_con.txt"), ("a\0b\u202ec", "abc"),
        (" a. ", "a"), ("x" * 300 + ".jpg", "x" * 116 + ".jpg"), ("ä:ö", "ä_ö"),
    ],
)  # fmt: skip
def test_every_part_of_a_name_is_one_that_all_systems_take(part, clean):
    assert clean_part(part) == clean


def test_names_are_unique_case_apart_and_no_file_is_a_folder():
    writer = ArchiveWriter(io.BytesIO())
    names = [writer.reserve(*parts) for parts in
             [("a", "b.txt"), ("A", "B.txt"), ("a", "b.txt"), ("a",), ("a-2", "c"), ("a", "b.txt", "c")]]  # fmt: skip
    assert names == ["a/b.txt", "A/B-2.txt", "a/b-3.txt", "a-2", "a-2-2/c", "a/b-4.txt/c"]
    writer.discard()


def test_the_end_of_a_large_archive_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_writer, "_MANY", 3)
    path = tmp_path / "many.zip"
    with path.open("w+b") as out:
        writer = ArchiveWriter(out)
        for number in range(20):
            writer.add(writer.reserve(f"{number}"), b"x")
        writer.close()
    assert b"PK\x06\x06" in path.read_bytes()
    with open_archive(path, LIMITS) as archive:
        assert len(archive) == 20
    with zipfile.ZipFile(path) as file:
        assert len(file.namelist()) == 20
