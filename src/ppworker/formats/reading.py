"""What readers of foreign archives have in common: names, scores, files that a path means."""

import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

from ppworker.domain.geometry import number
from ppworker.domain.labels import MAX_NAME
from ppworker.domain.text import clean_text
from ppworker.errors import Invalid
from ppworker.formats.archive import Archive

MOST_MARKS = 10_000
"""Annotations that one item may have in an archive."""
MOST_LABELS = 10_000
MOST_SPLITS = 1_000
MOST_LOOKS = 20
"""Members that are looked into to tell which format an archive has."""
_MOST_PARTS = 50
_MOST_FOLDERS = 20
_MOST_SHOWN = 60
_HEX = frozenset("0123456789abcdefABCDEF")


def refuse(where: str, why: str) -> NoReturn:
    """Refuse an archive; the message names the place and ends with the remedy."""
    raise Invalid(f"{where}: {why}", field="file")


def shown(value: Any) -> str:
    """A value as a message quotes it, on one line and short."""
    text = ascii(value) if not isinstance(value, list | tuple | Mapping) else type(value).__name__
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."


def word(value: Any) -> str:
    """A name from a file, with single spaces and what can be stored; empty where it is none."""
    return " ".join(clean_text(value)[0].split()) if isinstance(value, str) else ""


def label_name(value: Any, where: str) -> str:
    """Name of a label.

    Raises:
        Invalid: it is no string, blank or too long.
    """
    name = word(value)
    if not name or len(name) > MAX_NAME:
        refuse(
            where,
            f"{shown(value)} is no name of a label; write 1 to {MAX_NAME} characters, not blank",
        )
    return name


def score_of(value: Any) -> tuple[float | None, bool]:
    """A score, and whether what stands there is one (or nothing)."""
    if value is None:
        return None, True
    score = number(value)
    is_score = score is not None and 0 <= score <= 1
    return (score if is_score else None), is_score


class Files:
    """Finds the member that a path means, as people write paths.

    They count from the root, from the folder of the file that says them, or from a folder that is
    not in the archive; some are addresses of a server that had the file.
    """

    def __init__(self, archive: Archive) -> None:
        self._members = {_form(name): name for name in archive}
        self._by_last: dict[str, list[str]] = defaultdict(list)
        for form, name in self._members.items():
            self._by_last[form.rpartition("/")[2]].append(name)

    def find(self, path: str, beside: str = "") -> str:
        """Name of the member; empty where there is none.

        Args:
            path: as a file says it, with slashes or backslashes, absolute or relative.
            beside: the member that says it.
        """
        parts = [p for p in _form(path.strip()).replace("\\", "/").split("/") if p not in {"", "."}]
        parts = [part for part in parts if part != ".."]
        if not parts or len(parts) > _MOST_PARTS:
            return ""
        for start in range(len(parts)):
            if found := self.find_exact("/".join(parts[start:]), beside):
                return found
        return ""

    def find_exact(self, path: str, beside: str = "") -> str:
        """The member of this very path, counted from a folder of the file that says it.

        The nearest folder comes first, so that equal names in two folders are told apart.
        """
        folders = _form(beside).split("/")[:-1][:_MOST_FOLDERS]
        for depth in range(len(folders), -1, -1):
            found = self._members.get("/".join([*folders[:depth], _form(path)]))
            if found is not None:
                return found
        return ""

    def find_unique(self, path: str, beside: str = "") -> str:
        """The same, but a bare name also means the one member of this name in any folder."""
        if found := self.find(path, beside):
            return found
        last = _form(path.strip()).replace("\\", "/").rpartition("/")[2]
        same = self._by_last.get(last, ())
        return same[0] if len(same) == 1 else ""

    def find_address(self, address: str, beside: str = "") -> str:
        """The member that an address means: of a web server, a bucket, or a folder shared by one.

        The name that an upload got before its own (``1a2b3c4d-cat.jpg``) need not be in the
        archive.
        """
        if found := self.find_unique(address, beside):
            return found
        try:
            split = urlsplit(address.strip())
            shared = parse_qs(split.query, max_num_fields=20).get("d", [""])[0]
        except ValueError:
            return ""
        path = unquote(shared or split.path)
        found = self.find_unique(path, beside)
        prefix, dash, rest = path.rpartition("/")[2].partition("-")
        if not found and dash and len(prefix) == 8 and _HEX.issuperset(prefix):  # noqa: PLR2004
            found = self.find_unique(rest, beside)
        return found


def _form(name: str) -> str:
    """Form in which names are compared: some systems write accents apart from their letters."""
    return unicodedata.normalize("NFC", name)
