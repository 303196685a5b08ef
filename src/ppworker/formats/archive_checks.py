"""Checks of a zip archive before anything of it is believed: its directory, its names, its bytes.

Every refusal names the member, so that whoever packed the archive can mend it.
"""

import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import SEEK_END
from typing import BinaryIO

from ppworker.errors import Invalid, TooLarge

FIELD = "file"
"""What errors of archives name."""
_BLOCK = 256 * 1024
_LEAST_SUSPECT = 64 * 1024 * 1024
"""Unpacked bytes below which no ratio is suspicious."""
_MOST_NAME = 1_000
_MOST_SHOWN = 200
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED, _UTF8 = 0x1, 0x800
_DRIVE = re.compile(r"[a-zA-Z]:")

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY_BYTES = 46
_MOST_COMMENT = 65_535
_MOST_DIRECTORY = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large an archive may be."""

    members: int
    total_bytes: int
    """Of all members, unpacked."""
    member_bytes: int
    """Of one member, unpacked."""
    ratio: int = 200
    """Unpacked to packed bytes, beyond which an archive is taken for a bomb."""


def shown(name: str) -> str:
    """A member's name as errors quote it: harmless and not too long."""
    kept = "".join(c if c.isprintable() else "?" for c in name)
    return kept if len(kept) <= _MOST_SHOWN else kept[:_MOST_SHOWN] + "..."


def broken(name: str, why: object) -> Invalid:
    """The error of a member that cannot be read."""
    return Invalid(f"{shown(name)}: is broken ({why}); pack the archive again", field=FIELD)


def not_a_zip(why: object) -> Invalid:
    """The error of a file that is no archive, or only half of one."""
    return Invalid(f"the file is no zip archive, or not a whole one ({why})", field=FIELD)


def check_count(file: BinaryIO, limits: Limits) -> None:
    """Count the entries of the directory without making anything of them.

    Raises:
        Invalid: there is no directory.
        TooLarge: it has too many entries.
    """
    start, size = _directory(file)
    # The library holds all of it in memory, and comments may make each entry 190 KiB long.
    if size > _MOST_DIRECTORY:
        raise TooLarge(
            f"the archive's directory has more than {_MOST_DIRECTORY} bytes; pack it without "
            "comments, or split it",
            field=FIELD,
        )
    file.seek(start)
    entries, left = 0, size
    while left >= _ENTRY_BYTES:
        entry = file.read(_ENTRY_BYTES)
        if len(entry) < _ENTRY_BYTES or entry[:4] != b"PK\x01\x02":
            raise not_a_zip("its directory is damaged")
        entries += 1
        if entries > limits.members:
            raise TooLarge(
                f"the archive has more than {limits.members} members; split it, or raise "
                "PPWORKER_MAX_ARCHIVE_MEMBERS",
                field=FIELD,
            )
        behind = sum(struct.unpack_from("<3H", entry, 28))  # name, extra, comment
        file.seek(behind, 1)
        left -= _ENTRY_BYTES + behind


def _directory(file: BinaryIO) -> tuple[int, int]:
    """Offset and bytes of the directory, found as the library finds it."""
    length = file.seek(0, SEEK_END)
    tail_start = max(0, length - _END.size - _MOST_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    at = len(tail) - _END.size
    if at < 0 or tail[at : at + 4] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise not_a_zip("its end is missing")
    _, disk, first_disk, _, _, size, _, _ = _END.unpack_from(tail, at)
    if disk not in {0, 0xFFFF} or first_disk not in {0, 0xFFFF}:
        raise not_a_zip("it is one part of several")
    end = tail_start + at
    if end >= _LOCATOR.size + _END64.size:
        file.seek(end - _LOCATOR.size)
        if file.read(4) == b"PK\x06\x06"[:3] + b"\x07":
            end -= _LOCATOR.size + _END64.size
            file.seek(end)
            whole = file.read(_END64.size)
            if len(whole) < _END64.size or whole[:4] != b"PK\x06\x06":
                raise not_a_zip("its end is damaged")
            size = _END64.unpack(whole)[8]
    if size > end:
        raise not_a_zip("its directory is cut off")
    return end - size, size


def check_names(infos: Iterable[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Entries by their checked names, folders left out.

    Raises:
        Invalid: an entry's name, type or encryption is not acceptable, or two are the same file.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    taken: set[str] = set()
    for info in infos:
        name = _checked_name(info)
        mode = stat.S_IFMT(info.external_attr >> 16)
        if stat.S_ISLNK(mode):
            raise _refused(info, "is a symbolic link; pack the file itself")
        if mode not in {0, stat.S_IFREG, stat.S_IFDIR}:
            raise _refused(info, "is no regular file")
        if info.flag_bits & _ENCRYPTED:
            raise _refused(info, "is encrypted; pack it without a password")
        if info.is_dir() or stat.S_ISDIR(mode):
            continue
        if info.compress_type not in _METHODS:
            raise _refused(info, "is packed by a method nobody needs; pack it with deflate")
        form = unicodedata.normalize("NFC", name).casefold()
        if form in taken:
            raise _refused(info, "stands in the archive twice, case apart; rename one")
        taken.add(form)
        found[name] = info
    return found


def _checked_name(info: zipfile.ZipInfo) -> str:
    name = info.orig_filename
    if not name or len(name) > _MOST_NAME:
        raise _refused(info, f"has a name of none or of more than {_MOST_NAME} characters")
    if any(unicodedata.category(c) in {"Cc", "Cs"} for c in name):
        raise _refused(info, "has control characters in its name")
    if "\\" in name:
        raise _refused(info, "has a backslash in its name; folders are parted by slashes")
    if name.startswith("/") or _DRIVE.match(name):
        raise _refused(info, "has an absolute path; pack it relative to the archive's root")
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise _refused(info, "leads out of the archive")
    if not parts and not info.is_dir():
        raise _refused(info, "has no name")
    return "/".join(parts)


def _refused(info: zipfile.ZipInfo, why: str) -> Invalid:
    return Invalid(f"{shown(info.orig_filename)}: {why}", field=FIELD)


def check_sizes(infos: Iterable[zipfile.ZipInfo], limits: Limits) -> None:
    """Hold against the limits what the directory says of sizes.

    Raises:
        TooLarge: a member or all of them together would be too large.
        Invalid: they are packed so tightly that they must be a bomb.
    """
    total = packed = 0
    for info in infos:
        total += info.file_size
        packed += info.compress_size
        if info.file_size > limits.member_bytes:
            raise TooLarge(
                f"{shown(info.orig_filename)}: has {info.file_size} bytes, more than "
                f"{limits.member_bytes}; raise PPWORKER_MAX_FILE_BYTES to take it",
                field=FIELD,
            )
        if total > limits.total_bytes:
            raise TooLarge(
                f"{shown(info.orig_filename)}: with it the archive unpacks to more than "
                f"{limits.total_bytes} bytes; split it, or raise PPWORKER_MAX_ARCHIVE_BYTES",
                field=FIELD,
            )
        if _is_bomb(info.file_size, info.compress_size, limits):
            raise _refused(info, f"unpacks to more than {limits.ratio} times its packed size")
    if _is_bomb(total, packed, limits):
        raise Invalid(
            f"the archive unpacks to more than {limits.ratio} times its size", field=FIELD
        )


def _is_bomb(size: int, packed: int, limits: Limits) -> bool:
    return size > _LEAST_SUSPECT and size > packed * limits.ratio


def check_content(file: BinaryIO, infos: Sequence[zipfile.ZipInfo], end: int) -> None:
    """Read every member once: it must be what the directory says, and nobody else's bytes.

    Args:
        file: the archive.
        infos: all entries, folders among them.
        end: where the directory begins.

    Raises:
        Invalid: a member is cut off, damaged, longer than it says, or shares bytes with another.
    """
    behind = 0
    for info in sorted(infos, key=lambda each: each.header_offset):
        if info.header_offset < behind:
            raise broken(info.orig_filename, "it lies over another member")
        if info.header_offset > end:
            raise broken(info.orig_filename, "its header is missing")
        start = data_start(file, info)
        behind = start + info.compress_size
        if behind > end:
            raise broken(info.orig_filename, "it is cut off")
        file.seek(start)
        _check_member(file, info)


def data_start(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Offset of a member's bytes, behind its own header.

    Raises:
        Invalid: the header is not there, or is another member's.
    """
    file.seek(info.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
        raise broken(info.orig_filename, "its header is missing")
    _, _, flags, *_, name_bytes, extra_bytes = _LOCAL.unpack(header)
    name = file.read(name_bytes).decode("utf-8" if flags & _UTF8 else "cp437", "replace")
    if name != info.orig_filename:
        raise broken(info.orig_filename, f"its header says {shown(name)}")
    return info.header_offset + _LOCAL.size + int(name_bytes) + int(extra_bytes)


def _check_member(file: BinaryIO, info: zipfile.ZipInfo) -> None:
    name, left, size, crc = info.orig_filename, info.compress_size, 0, 0
    if not left and not info.file_size:
        return
    unpack = zlib.decompressobj(-15) if info.compress_type == zipfile.ZIP_DEFLATED else None
    while left > 0:
        packed = file.read(min(_BLOCK, left))
        if not packed:
            raise broken(name, "it is cut off")
        left -= len(packed)
        while packed:
            try:
                block = packed if unpack is None else unpack.decompress(packed, _BLOCK)
            except zlib.error as error:
                raise broken(name, error) from None
            packed = b"" if unpack is None else unpack.unconsumed_tail
            size += len(block)
            if size > info.file_size:
                raise broken(name, "it is longer than it says")
            crc = zlib.crc32(block, crc)
        # Bytes behind the end would gather in memory, copied again with each block.
        if unpack is not None and unpack.eof and (left > 0 or unpack.unused_data):
            raise broken(name, "it has bytes behind its end")
    if unpack is not None and not unpack.eof:
        crc, size = _drain(unpack, crc, size, info)
    if size != info.file_size:
        raise broken(name, "it is shorter than it says")
    if crc != info.CRC:
        raise broken(name, "its checksum is wrong")


def _drain(
    unpack: "zlib._Decompress", crc: int, size: int, info: zipfile.ZipInfo
) -> tuple[int, int]:
    """What the unpacking still holds back once all bytes were given to it."""
    block = unpack.flush()
    if not unpack.eof:
        raise broken(info.orig_filename, "it is cut off")
    return zlib.crc32(block, crc), size + len(block)
