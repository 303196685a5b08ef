"""What formats read from archives and write into them: items with their marks, labels and splits.

A format turns a safe view of an archive (`ppworker.formats.archive`) into a header and records, and
takes records one by one to write an archive. It knows neither database nor clock. What it leaves
out it reports with a reason, so that nothing vanishes silently.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from ppworker.domain.inference import Kind
from ppworker.formats.archive import Archive
from ppworker.formats.archive_writer import ArchiveWriter

MOST_EXAMPLES = 20
"""Places that a report names for each reason."""
_MOST_WHERE = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One annotation of an item.

    On import a place may be said in three ways, and the item's own size and text decide the rest:
    ``coordinates`` alone (``x y w h`` as shares with x, y the centre; ``start end``), ``geometry``
    in pixels or code points or seconds, or ``geometry`` in shares with ``is_relative``. What lies
    outside of the item is skipped and counted by the import, so readers need not check places.
    On export all of it stands as it is stored.
    """

    label: str
    kind: Kind | None = None
    """None on import: the coordinates decide (`ppworker.domain.coordinates.locate`)."""
    coordinates: str = ""
    geometry: Mapping[str, Any] | None = None
    """bbox ``{"box": [x1, y1, x2, y2]}``, polygon ``{"points": [[x, y], ...]}`` in pixels of the
    upright image; span ``{"start": s, "end": e}`` in code points; segment the same in seconds."""
    is_relative: bool = False
    """On import: the numbers of ``geometry`` are shares of the image's width and height, 0 to 1."""
    text: str | None = None
    """Text at a span, or read or said at the place."""
    page: int | None = None
    score: float | None = None
    source: str = "import"
    """human, model, inference or import; of another installation where it was exported there."""
    post_processor: str = ""
    """Name of the post-processor that made it, empty where none did."""
    model_version: str = ""
    review: str = "accepted"
    """suggested, accepted or edited."""
    is_exact: bool = False
    """On import: written by our own format, to be stored as it stands, without being fitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One item."""

    name: str = ""
    splits: tuple[str, ...] = ()
    """Names of its splits. None on import: the version's default split, else its first one."""
    text: str | None = None
    member: str = ""
    """On import: the archive's member that is its file, empty where it has none."""
    is_text_member: bool = False
    """On import: the member holds the text of an item that has no file."""
    extension: str = ""
    """In lower case, without dot."""
    description: str = ""
    metadata: str = ""
    marks: tuple[Mark, ...] = ()
    state: str = ""
    """What a client keeps about it in the version."""
    is_exact: bool = False
    """On import: written by our own format; extension and media type stand as they are said."""
    where: str = ""
    """On import: where the archive speaks of it, ``train.json: image 17``, for reports."""
    id: str = ""
    """On export: its id; unique, for names of what has none."""
    media_type: str = ""
    content_sha256: str = ""
    """On export: of its file, empty where it has none."""
    width: int | None = None
    """On export: of the upright image, in pixels, None where it is not known."""
    height: int | None = None
    page_count: int | None = None
    duration_s: float | None = None

    @property
    def file_name(self) -> str:
        """What an exported file of it is called: its name with its extension, else its id."""
        stem, ending = self.name or self.id, self.extension or "txt" * (not self.content_sha256)
        if not ending or stem.lower().endswith(f".{ending.lower()}"):
            return stem
        return f"{stem}.{ending}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelNote:
    """A label, as far as an archive speaks of it."""

    name: str
    color: str = ""
    """``#rrggbb``, empty where nothing is said."""
    index: int | None = None
    shortcut: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitNote:
    """A split."""

    name: str
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an archive says of the whole dataset.

    Labels and splits that only records name need not stand here: they are created as they are met.
    """

    labels: Sequence[LabelNote] = ()
    """In the order of their index."""
    splits: Sequence[SplitNote] = ()
    default_split: str = ""
    multi_label: bool | None = None
    config: str | None = None
    """The version's text of configuration; None leaves it alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The version that is imported into or exported, as far as formats depend on it."""

    version_id: str
    name: str = ""
    description: str = ""
    content_type: str = "documents"
    """images, text, tabular, ner or documents; others are possible."""
    multi_label: bool = True
    config: str = ""
    labels: Sequence[LabelNote] = ()
    """By their index; each has one."""
    splits: Sequence[SplitNote] = ()
    default_split: str = ""


@dataclass(slots=True)
class Report:
    """What was left out, counted by reason, with the first few places."""

    skipped: Counter[str] = field(default_factory=Counter)
    """What an archive holds and the dataset does not get."""
    losses: Counter[str] = field(default_factory=Counter)
    """What the dataset holds and the format cannot."""
    examples: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Report":
        """The report that ``as_json`` said."""
        return cls(
            skipped=Counter(said["skipped"]),
            losses=Counter(said["losses"]),
            examples={reason: list(where) for reason, where in said["examples"].items()},
        )

    def skip(self, reason: str, where: str = "", count: int = 1) -> None:
        """Something of the archive is not taken.

        Args:
            reason: one word, such as ``missing_file``.
            where: member and line, ``train.json: image 17``.
            count: how many things.
        """
        self.skipped[reason] += count
        self._note(reason, where)

    def lose(self, reason: str, where: str = "", count: int = 1) -> None:
        """The format has no place for something: one word, such as ``scores``."""
        if count:
            self.losses[reason] += count
            self._note(reason, where)

    def _note(self, reason: str, where: str) -> None:
        named = self.examples.setdefault(reason, [])
        if where and len(named) < MOST_EXAMPLES:
            named.append(where[:_MOST_WHERE])

    def as_json(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {
            "skipped": dict(sorted(self.skipped.items())),
            "losses": dict(sorted(self.losses.items())),
            "examples": {reason: where for reason, where in sorted(self.examples.items()) if where},
        }


class OpenFile(Protocol):
    """Opens the stored file of an exported record; only where it has a ``content_sha256``."""

    def __call__(self, record: Record, /) -> AbstractContextManager[BinaryIO]:
        """The file, to be read and closed."""


class Writer(Protocol):
    """Writes one archive. Records come one by one, in the order of their ids, each once.

    An export goes on after a break, in another process perhaps: then a new writer is made that is
    given the ``state`` of the one before. So a writer keeps nothing else between two calls of
    ``add``; what grows with the number of records goes to ``out.append``.
    """

    def add(self, record: Record) -> None:
        """Write one item, or note what is to be written at the end."""

    def finish(self) -> None:
        """Write what stands behind the items. Called once; nothing is added afterwards."""


class Format(Protocol):
    """One way to lay out an archive; an instance without state stands in the registry."""

    @property
    def name(self) -> str:
        """The word by which clients ask for it: folders, yolo, csv, ..."""

    def recognises(self, archive: Archive, about: About) -> bool:
        """Whether an archive of which nothing else is known looks like one of these."""

    def read(
        self, archive: Archive, about: About, report: Report
    ) -> tuple[Header, Iterator[Record]]:
        """What the archive holds; records are made as they are asked for.

        Records should need little memory at a time. A member that records name must be there
        (``name in archive``); what is missing is reported by ``report.skip``.

        Raises:
            Invalid: its structure is broken: ``field="file"``, the message names member and line.
                It may come while records are made; nothing has been written until all are.
        """

    def writer(
        self,
        out: ArchiveWriter,
        about: About,
        open_file: OpenFile,
        report: Report,
        state: dict[str, Any],
    ) -> Writer:
        """Begin an archive of a version, or go on with it.

        Args:
            out: where members go.
            about: the version.
            open_file: opens the file of a record.
            report: told of what the format cannot hold.
            state: empty at the beginning; whatever the writer must remember from one record to the
                next, such as a number it counts up or a name it reserved: plain JSON values, few.
        """
