"""Reads and writes ``config.json``, the file that has the colours of labels in several formats."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ppworker.domain.labels import MAX_NAME
from ppworker.formats import json_stream
from ppworker.formats.archive import Archive
from ppworker.formats.archive_writer import ArchiveWriter
from ppworker.formats.base import About, LabelNote
from ppworker.formats.reading import refuse, word

MEMBER = "config.json"
_DIGITS = {3, 6}
_HEX = frozenset("0123456789abcdefABCDEF")


def read(archive: Archive) -> dict[str, str]:
    """Colours of labels by name, if the archive has them.

    Raises:
        Invalid: the file is no JSON object.
    """
    if MEMBER not in archive:
        return {}
    with archive.open(MEMBER) as file:
        value = json_stream.whole(file, MEMBER)
    if not isinstance(value, dict):
        refuse(MEMBER, 'is no JSON object; write {"colors": {"label": "#rrggbb"}}')
    given = value.get("colors")
    entries = given.items() if isinstance(given, dict) else ()
    return {word(label): colour for label, colour in entries if _is_colour(colour)}


def write(out: ArchiveWriter, about: About) -> None:
    """Write the file."""
    colors = {label.name: label.color for label in about.labels if label.color}
    text = json.dumps({"colors": colors}, ensure_ascii=False, indent=1)
    out.add(out.reserve(MEMBER), text + "\n")


def notes(names: Iterable[str], colour_of: Mapping[str, str]) -> list[LabelNote]:
    """Labels in this order, each once, and behind them those that only have a colour."""
    unique = dict.fromkeys([*names, *(name for name in colour_of if name)])
    return [
        LabelNote(name=name, color=colour_of.get(name, ""), index=index)
        for index, name in enumerate(name for name in unique if len(name) <= MAX_NAME)
    ]


def _is_colour(value: Any) -> bool:
    is_text = isinstance(value, str) and value.startswith("#")
    return is_text and len(value) - 1 in _DIGITS and _HEX.issuperset(value[1:])
