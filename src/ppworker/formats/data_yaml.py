"""Reads the few lines of YAML that come with YOLO archives: names of labels and paths of splits.

Only their plain forms, in which every such file is written: ``key: value``, lists in brackets or by
dashes, and numbered names. No anchors, tags or documents, so nothing in it can grow.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ppworker.formats.reading import MOST_LABELS, refuse, shown

_KEY = re.compile(r"([A-Za-z_][\w-]*)\s*:(?:\s+(.*))?$")
_NUMBERED = re.compile(r"['\"]?(\d{1,6})['\"]?\s*:\s*(.*)$")
# Possessive, for the spaces at its end could be parted in as many ways as there are spaces.
_FLOW_PART = re.compile(
    r"""\s*('(?:[^']|'')*'|"(?:[^"\\]|\\.)*"|[^,'"\[\]{}\s][^,\[\]{}]*+)\s*(?:,|$)"""
)
_MOST_PATHS = 100
_MOST_LIST = 1 << 20
_NO_SPLITS = {"path", "names", "nc", "download", "kpt_shape", "flip_idx", "task", "channels"}


@dataclass(slots=True)
class DataYaml:
    """What such a file says."""

    names: list[str] = field(default_factory=list)
    """By index; empty where one is missing."""
    paths: dict[str, list[str]] = field(default_factory=dict)
    """Folders, or files of lists, by split."""
    has_keypoints: bool = False


def read(lines: Iterable[str], member: str) -> DataYaml:
    """Read the file.

    Raises:
        Invalid: the names are in no form that is known; names the line.
    """
    found = DataYaml()
    key, open_list = "", ""
    for number, line in enumerate(lines, start=1):
        text = _without_comment(line)
        if not text.strip() or text.startswith(("---", "%")):
            continue
        where = f"{member}: line {number}"
        if open_list:
            open_list += " " + text.strip()
            if len(open_list) > _MOST_LIST:
                refuse(where, "the list does not end; write one name on each line")
            if text[-1] in "]}":
                _take(found, key, open_list, where)
                open_list = ""
            continue
        match = _KEY.match(text)
        if match and not line[:1].isspace():
            key, value = match.group(1), (match.group(2) or "").strip()
            found.has_keypoints |= key == "kpt_shape"
            if value[:1] in {"[", "{"} and value[-1] not in "]}":
                open_list = value
            elif value:
                _take(found, key, value, where)
        elif key:
            _take(found, key, text.strip(), where)
    if open_list:
        refuse(member, "ends within a list; write one name on each line")
    return found


def _take(found: DataYaml, key: str, value: str, where: str) -> None:
    """What stands behind a key, on its line or below."""
    if key == "names":
        for index, name in _names(value, len(found.names), where):
            if index >= MOST_LABELS:
                refuse(where, f"has more than {MOST_LABELS} labels; leave out those nobody needs")
            found.names += [""] * (index + 1 - len(found.names))
            found.names[index] = name
    elif key not in _NO_SPLITS:
        values = _flow(value[1:-1], where) if value[:1] == "[" else [value.removeprefix("- ")]
        found.paths.setdefault(key, []).extend(_unquoted(each) for each in values)
        if sum(map(len, found.paths.values())) > _MOST_PATHS:
            refuse(where, f"names more than {_MOST_PATHS} folders; leave some out")


def _names(value: str, next_index: int, where: str) -> list[tuple[int, str]]:
    if value[:1] in {"[", "{"}:
        if len(value) < 2 or value[-1] != {"[": "]", "{": "}"}[value[0]]:  # noqa: PLR2004
            refuse(where, "the list of names does not end as it begins")
        parts = _flow(value[1:-1], where)
        if value[0] == "[":
            return [(next_index + at, _unquoted(part)) for at, part in enumerate(parts)]
        return [_numbered(part, where) for part in parts]
    if value == "-" or value.startswith("- "):
        return [(next_index, _unquoted(value[1:].strip()))]
    return [_numbered(value, where)]


def _numbered(value: str, where: str) -> tuple[int, str]:
    match = _NUMBERED.match(value)
    if not match:
        refuse(where, f"{shown(value)} is no name of a label; write '0: cat' or '- cat'")
    return int(match.group(1)), _unquoted(match.group(2).strip())


def _flow(inside: str, where: str) -> list[str]:
    parts, at = [], 0
    inside = inside.rstrip()
    while at < len(inside):
        match = _FLOW_PART.match(inside, at)
        if not match:
            refuse(where, f"{shown(inside[at:])} is no list of names; quote names with commas")
        parts.append(match.group(1).strip())
        at = match.end()
    return parts


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == "'":  # noqa: PLR2004
        return text[1:-1].replace("''", "'")
    if len(text) >= 2 and text[0] == text[-1] == '"':  # noqa: PLR2004
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text


def _without_comment(line: str) -> str:
    """A line up to its comment; a mark within quotes or within a word is none."""
    quote = ""
    for at, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and (at == 0 or line[at - 1] in " [{,:-"):
            quote = character
        elif character == "#" and (at == 0 or line[at - 1].isspace()):
            return line[:at].rstrip()
    return line.rstrip()
