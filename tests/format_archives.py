"""Archives for tests of formats: made of members, or by a format of records, and read again."""

import io
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ppworker.domain.coordinates import About as ItemAbout
from ppworker.domain.coordinates import family
from ppworker.errors import Invalid
from ppworker.formats.archive import Archive, open_archive
from ppworker.formats.archive_checks import Limits
from ppworker.formats.archive_writer import ArchiveWriter
from ppworker.formats.base import About, Format, Header, LabelNote, Record, Report, SplitNote
from ppworker.pipeline.transfer.placing import Placed, place

LIMITS = Limits(members=10_000, total_bytes=1 << 30, member_bytes=1 << 28)
VERSION = "0190b2c0-0000-7000-8000-000000000001"


def about(
    labels: Sequence[str] = ("cat", "dog"), splits: Sequence[str] = ("train",), **values: Any
) -> About:
    notes = [
        LabelNote(name=name, index=at, color=f"#00{at % 256:02x}ff")
        for at, name in enumerate(labels)
    ]
    return About(
        version_id=VERSION, labels=notes, splits=[SplitNote(name=name) for name in splits],
        **{"content_type": "images"} | values,
    )  # fmt: skip


def picture(number: int = 1, **values: Any) -> Record:
    """An exported item that is a picture of 100 by 50 pixels."""
    said: dict[str, Any] = {
        "id": f"id-{number}", "name": f"{number}.jpg", "extension": "jpg", "splits": ("train",),
        "media_type": "image/jpeg", "content_sha256": f"{number:064x}", "width": 100, "height": 50,
    }  # fmt: skip
    return Record(**said | values)


def text_item(text: str, number: int = 1, **values: Any) -> Record:
    """An exported item that is a text without a file."""
    return Record(
        **{"id": f"id-{number}", "text": text, "extension": "txt", "splits": ("train",)} | values
    )


@contextmanager
def opened(members: Mapping[str, bytes | str]) -> Iterator[Archive]:
    """An archive of these members."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zip"
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
        with open_archive(path, LIMITS) as archive:
            yield archive


def read(
    format_: Format, members: Mapping[str, bytes | str], given: About | None = None
) -> tuple[Header, list[Record], Report]:
    """What a format finds in an archive of these members."""
    report = Report()
    with opened(members) as archive:
        header, records = format_.read(archive, given or about(), report)
        return header, list(records), report


def content(record: Record) -> bytes:
    """The bytes of the file of a record made here."""
    return f"file of {record.content_sha256}".encode()


@contextmanager
def _open_file(record: Record) -> Iterator[BinaryIO]:
    yield io.BytesIO(content(record))


def written(
    format_: Format, records: Sequence[Record], given: About | None = None, *, breaks: bool = False
) -> tuple[dict[str, bytes], Report]:
    """Members of the archive that a format writes; ``breaks`` makes a new writer for each record."""
    given, report = given or about(), Report()
    state: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "out").open("w+b") as out:
        archive = ArchiveWriter(out, Path(folder))
        try:
            writer = format_.writer(archive, given, _open_file, report, state)
            for record in records:
                if breaks:
                    said = archive.checkpoint()
                    archive.discard()
                    archive = ArchiveWriter(out, Path(folder))
                    archive.restore(said)
                    writer = format_.writer(archive, given, _open_file, report, state)
                writer.add(record)
            writer.finish()
            archive.close()
        finally:
            archive.discard()
        with zipfile.ZipFile(out) as file:
            assert file.testzip() is None
            return {name: file.read(name) for name in file.namelist()}, report


def round_trip(
    format_: Format, records: Sequence[Record], given: About | None = None
) -> tuple[Header, list[Record], Report, Report]:
    """Records as they come back, with the report of the writing and of the reading."""
    members, lost = written(format_, records, given)
    header, found, skipped = read(format_, members, given)
    return header, found, lost, skipped


def placed(record: Record, like: Record) -> list[Any]:
    """What an import makes of a record's annotations on an item like another one."""
    item = ItemAbout(
        family=family(like.media_type, like.extension), text=record.text or like.text,
        width=like.width, height=like.height, duration_s=like.duration_s,
    )  # fmt: skip
    found = [place(mark, item, like.page_count) for mark in record.marks]
    for one in found:
        if isinstance(one, Placed) and one.geometry is not None:
            one.geometry = json.loads(one.geometry)
    return found


def survive(format_: Format, members: Mapping[str, bytes | str]) -> None:
    """Read a damaged archive: it may be refused, but nothing else may happen."""
    with suppress(Invalid):
        for record in read(format_, members)[1]:
            placed(record, picture())
            placed(record, text_item("some words"))
