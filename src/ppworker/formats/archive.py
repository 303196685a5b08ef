"""A safe view of a zip archive, and a careful writer of one.

An archive comes from a stranger. Everything its directory says is checked before anything is read
(`ppworker.formats.archive_checks`), and every byte is read once, so that what is accepted here
cannot surprise anybody later. Members are never unpacked to a path made of their names.
"""

import io
import shutil
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, BinaryIO, cast

from ppworker.errors import Invalid, TooLarge
from ppworker.formats import archive_checks as checks
from ppworker.formats.archive_checks import FIELD, Limits, broken, shown

_BLOCK = 256 * 1024
_MOST_JSON = 64 * 1024 * 1024
_MOST_PART = 120
"""Characters of one part of a member's name that is written; three of them still make a path."""
_SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
_PACKED = frozenset(
    {"jpg", "jpeg", "png", "gif", "webp", "avif", "heic", "zip", "gz", "mp3", "mp4", "m4a", "ogg",
     "flac", "mov", "mkv", "webm", "docx", "pdf"}
)  # fmt: skip
_EPOCH = (1980, 1, 1, 0, 0, 0)
_FORBIDDEN = frozenset('<>:"/\\|?*')
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))}
)
_UNREADABLE = (
    zipfile.BadZipFile, ValueError, EOFError, OverflowError, NotImplementedError, struct.error,
)  # fmt: skip


class Archive:
    """Members of an archive that has been checked, by name. Folders and what operating systems
    leave in archives are not among them.

    ``name in archive``, ``for name in archive`` (in the archive's order) and ``len`` work on names.
    """

    def __init__(self, zip_file: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> None:
        self._zip = zip_file
        self._members = members

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def size(self, name: str) -> int:
        """Unpacked bytes of a member."""
        return self._members[name].file_size

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A member, to be read piece by piece.

        Raises:
            Invalid: it is broken; names it. Also while it is read.
        """
        try:
            with self._zip.open(self._members[name]) as file:
                yield cast("BinaryIO", file)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise broken(name, error) from None

    def read(self, name: str, most_bytes: int = _MOST_JSON) -> bytes:
        """A whole member, for what must be held in memory.

        Raises:
            TooLarge: it is longer than that; names it.
            Invalid: it is broken; names it.
        """
        if self.size(name) > most_bytes:
            raise TooLarge(
                f"{shown(name)}: has {self.size(name)} bytes, more than {most_bytes}; "
                "split the archive",
                field=FIELD,
            )
        with self.open(name) as file:
            return file.read()

    def text(self, name: str, most_bytes: int = _MOST_JSON) -> str:
        """A whole member as UTF-8 text, a byte order mark left out.

        Raises:
            TooLarge: it is longer than that; names it.
            Invalid: it is broken, or no UTF-8; names it.
        """
        try:
            return self.read(name, most_bytes).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Invalid(f"{shown(name)}: is no UTF-8 text", field=FIELD) from None

    def lines(self, name: str, most_bytes: int = _MOST_JSON) -> Iterator[str]:
        """Lines of a member as UTF-8 text, without their ends, whatever the member's length.

        Raises:
            TooLarge: a line is longer than that; names member and line.
            Invalid: it is broken, or no UTF-8; names member and line.
        """
        with self.open(name) as file:
            number = 0
            while line := file.readline(most_bytes + 1):
                number += 1
                if len(line) > most_bytes:
                    raise TooLarge(
                        f"{shown(name)}: line {number} has more than {most_bytes} bytes",
                        field=FIELD,
                    )
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise Invalid(
                        f"{shown(name)}: line {number} is no UTF-8 text", field=FIELD
                    ) from None
                yield text.rstrip("\r\n")


@contextmanager
def open_archive(path: Path, limits: Limits, *, is_known: bool = False) -> Iterator[Archive]:
    """A file as an archive.

    Args:
        path: the file.
        limits: how large it may be.
        is_known: its content has been checked before; only names and sizes are looked at.

    Raises:
        Invalid: it is no archive, or a member is not acceptable; names the member.
        TooLarge: it breaks a limit.
    """
    with path.open("rb") as file:
        checks.check_count(file, limits)
        try:
            zip_file = zipfile.ZipFile(file)
        except _UNREADABLE as error:
            raise checks.not_a_zip(error) from None
        with zip_file:
            infos = zip_file.infolist()
            members = checks.check_names(infos)
            checks.check_sizes(infos, limits)
            if not is_known:
                checks.check_content(file, infos, zip_file.start_dir)
            kept = {name: info for name, info in members.items() if not _is_system_file(name)}
            yield Archive(zip_file, kept)


def _is_system_file(name: str) -> bool:
    first, last = name.partition("/")[0], name.rpartition("/")[2]
    return first == "__MACOSX" or last.lower() in _SYSTEM_FILES


class ArchiveWriter:
    """Writes a zip file: names are cleaned and made unique, times are left out, memory is bounded.

    Equal content makes equal bytes. Close it, or discard it, so that its temporary files go.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, allowZip64=True)
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self._next: dict[str, int] = {}
        self._spools: dict[str, IO[bytes]] = {}

    def reserve(self, *parts: str) -> str:
        """The name that a member in these folders may have: each part cleaned, no other has it.

        ``reserve("train", "cat", "a.jpg")`` is ``train/cat/a.jpg``, or ``train/cat/a-2.jpg`` where
        that is taken.
        """
        folder = ""
        for part in parts[:-1]:
            folder += self._free(folder, clean_part(part), among=(self._files,)) + "/"
            self._folders.add(_form(folder[:-1]))
        name = folder + self._free(
            folder, clean_part(parts[-1]), among=(self._files, self._folders)
        )
        self._files.add(_form(name))
        return name

    def add(self, name: str, content: bytes | str | BinaryIO) -> None:
        """Write a member at once; its name is one that ``reserve`` gave."""
        if isinstance(content, str):
            content = content.encode("utf-8", "replace")
        source = io.BytesIO(content) if isinstance(content, bytes) else content
        size = source.seek(0, io.SEEK_END)
        source.seek(0)
        info = zipfile.ZipInfo(name, _EPOCH)
        info.external_attr = 0o100644 << 16
        ending = name.rpartition(".")[2].lower()
        info.compress_type = zipfile.ZIP_STORED if ending in _PACKED else zipfile.ZIP_DEFLATED
        info.file_size = size
        with self._zip.open(info, "w") as out:
            shutil.copyfileobj(source, out, _BLOCK)

    def append(self, name: str, text: str) -> None:
        """Add text to the end of a member that is written when the archive is closed.

        Its name is one that ``reserve`` gave. Kept on the disk, so it may grow long.
        """
        if name not in self._spools:
            self._spools[name] = SpooledTemporaryFile(max_size=_BLOCK)  # noqa: SIM115  closed below
        self._spools[name].write(text.encode("utf-8", "replace"))

    def close(self) -> None:
        """Write what was appended, and the directory."""
        for name, spool in self._spools.items():
            self.add(name, cast("BinaryIO", spool))
        self._zip.close()
        self.discard()

    def discard(self) -> None:
        """Let go of what was appended; the archive is not to be finished."""
        for spool in self._spools.values():
            spool.close()
        self._spools.clear()

    def _free(self, folder: str, wanted: str, *, among: tuple[set[str], ...]) -> str:
        """The name, or the first numbered one that nobody has."""
        base = _form(folder + wanted)
        if not any(base in taken for taken in among):
            return wanted
        stem, dot, ending = wanted.rpartition(".")
        if not stem:
            stem, dot, ending = wanted, "", ""
        number = self._next.get(base, 2)
        while any(_form(f"{folder}{stem}-{number}{dot}{ending}") in taken for taken in among):
            number += 1
        self._next[base] = number + 1
        return f"{stem}-{number}{dot}{ending}"


def clean_part(part: str) -> str:
    """One part of a member's name, such that every system can make a file of it."""
    kept = "".join(
        "_" if character in _FORBIDDEN else character
        for character in part
        if unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"}
    )
    kept = kept.strip(" ").rstrip(". ") or "_"
    if len(kept) > _MOST_PART:
        stem, dot, ending = kept.rpartition(".")
        tail = dot + ending if stem and len(ending) <= 16 else ""  # noqa: PLR2004
        kept = kept[: _MOST_PART - len(tail)].rstrip(". ") + tail
    if kept.partition(".")[0].lower() in _RESERVED:
        kept = "_" + kept
    return "_" if kept in {".", ".."} else kept


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
