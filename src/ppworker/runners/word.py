"""Takes the text out of Word documents (.docx), with limits before work.

Only the main part of the package is read, as a stream: pictures, macros and references to other
files are never opened, and what a document unpacks to is never in memory as a whole.
"""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO
from xml.parsers import expat

from ppworker.errors import FileMissing, RunnerError, UnreadableInput

MEDIA_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
TEXT_TOO_LONG = "text_too_long"
"""Code of the error for a text above the limit that was asked for."""
MAX_XML_BYTES = 128 * 1024 * 1024
"""Most bytes that the main part may unpack to."""

_CHUNK = 64 * 1024
_MAX_TAG_BYTES = 4 << 20
"""Most bytes of one tag or comment; the parser begins each anew with every chunk it gets."""
_RELATIONS = "_rels/.rels"
_MAX_RELATIONS_BYTES = 1 << 20
_MAIN_PART = "word/document.xml"
_IS_MAIN = "/officeDocument"
_OFFICE = (
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main",
    "http://purl.oclc.org/ooxml/wordprocessingml/main",
)
_BREAKS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
# A drawing is there twice, for old readers too; what was deleted with changes tracked is no text.
_NOT_READ = frozenset({"Fallback", "del", "moveFrom"})


def text_of(path: Path, *, max_bytes: int) -> str:
    """The document's text: a line for each paragraph, cells of a table apart by tabs.

    Raises:
        UnreadableInput: broken, locked, above a limit (code ``too_large``), or with a text above
            ``max_bytes`` (code `TEXT_TOO_LONG`).
        FileMissing: the file cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileMissing(f"the file cannot be opened: {error.strerror}") from error
    with file:
        try:
            with zipfile.ZipFile(file) as package, package.open(_main_part(package)) as part:
                return _read(part, max_bytes)
        except RunnerError:
            raise
        except MemoryError as error:
            raise _too_large("the document needs too much memory") from error
        except Exception as error:  # a reader of hostile bytes may fail in any way
            raise UnreadableInput(f"the document is broken or locked: {error}") from error


def _main_part(package: zipfile.ZipFile) -> str:
    """Its name: most call it the same, some programs do not."""
    if _RELATIONS not in package.namelist():
        return _MAIN_PART
    found: list[str] = []

    def begin(_: str, attributes: dict[str, str]) -> None:
        if attributes.get("Type", "").endswith(_IS_MAIN):
            found.append(str(PurePosixPath("/", attributes.get("Target", "")))[1:])

    with package.open(_RELATIONS) as part:
        parser = _parser()
        parser.StartElementHandler = begin
        for chunk in _chunks(part, _MAX_RELATIONS_BYTES):
            parser.Parse(chunk)
    return found[0] if found and found[0] in package.namelist() else _MAIN_PART


def _read(part: IO[bytes], max_bytes: int) -> str:
    text = _Text(max_bytes)
    parser = _parser()
    parser.StartElementHandler = text.begin
    parser.EndElementHandler = text.end
    parser.CharacterDataHandler = text.data
    given = 0
    for chunk in _chunks(part, MAX_XML_BYTES):
        parser.Parse(chunk)
        given += len(chunk)
        if given - parser.CurrentByteIndex > _MAX_TAG_BYTES:
            raise _too_large(f"the document has a tag of more than {_MAX_TAG_BYTES} bytes")
    parser.Parse(b"", True)  # noqa: FBT003  its argument has no name
    return text.whole()


def _parser() -> expat.XMLParserType:
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse_doctype
    return parser


def _refuse_doctype(*_: object) -> None:
    raise UnreadableInput("the document declares a type of its own, as no Word document does")


def _chunks(part: IO[bytes], limit: int) -> Iterator[bytes]:
    size = 0
    while chunk := part.read(_CHUNK):
        size += len(chunk)
        if size > limit:
            raise _too_large(f"the document unpacks to more than {limit} bytes")
        yield chunk


def _too_large(message: str) -> UnreadableInput:
    return UnreadableInput(message, code="too_large")


def _nothing() -> None:
    """At the end of most elements."""


class _Text:
    """What has been read of the text so far."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._max_bytes = max_bytes
        self._parts: list[str] = []
        self._in_text = False
        self._runs = 0
        self._skipped = 0
        self._ends: dict[str, Callable[[], None]] = {
            "p": lambda: self._add("\n"),
            "tc": lambda: self._instead_of("\n", "\t"),
            "tr": lambda: self._instead_of("\t", "\n"),
        }

    def begin(self, name: str, attributes: dict[str, str]) -> None:  # noqa: ARG002  expat's shape
        space, _, tag = name.rpartition(" ")
        if self._skipped or tag in _NOT_READ:
            self._skipped += 1
        elif space in _OFFICE:
            self._in_text = tag == "t"
            self._runs += tag == "r"
            if tag in _BREAKS and self._runs:  # elsewhere it is where tabulators stand
                self._add(_BREAKS[tag])

    def end(self, name: str) -> None:
        space, _, tag = name.rpartition(" ")
        self._in_text = False
        if self._skipped:
            self._skipped -= 1
        elif space in _OFFICE:
            self._runs -= tag == "r"
            self._ends.get(tag, _nothing)()

    def data(self, data: str) -> None:
        if self._in_text and not self._skipped:
            self._add(data)

    def whole(self) -> str:
        return "".join(self._parts).strip("\n")

    def _add(self, piece: str) -> None:
        self._left -= len(piece.encode("utf-8", "surrogatepass"))
        if self._left < 0:
            raise UnreadableInput(
                f"the document's text has more than {self._max_bytes} bytes", code=TEXT_TOO_LONG
            )
        self._parts.append(piece)

    def _instead_of(self, last: str, piece: str) -> None:
        if self._parts and self._parts[-1] == last:
            self._parts.pop()
        self._add(piece)
