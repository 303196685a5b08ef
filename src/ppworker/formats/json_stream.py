"""Reads arrays of JSON objects of any length, one element at a time, in bounded memory.

A window of the file is decoded at a time; only one element must fit into memory. What is no JSON,
nests too deep, or is larger than any element of such a file should be, is refused with the name of
the file and the place.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from ppworker.errors import Invalid

MAX_ELEMENT = 4 << 20
"""Longest element of an array (and longest value that is no array), in characters."""
MAX_DEPTH = 64
"""Deepest nesting of an element."""
MAX_KEYS = 1_000
"""Most keys of the outermost object."""
MAX_VALUES = 500_000
"""Most values of a line of JSON Lines: short ones take up to fifty times their length in memory."""
_WINDOW = 64 << 10
"""Bytes read at least at a time."""
_LONGEST_WORD = 16
"""No escape, and no word such as ``false``, is longer."""
_LONGEST_JOINT = 3
"""What may stand between two digits of a number (``e+``), and a digit."""
_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)

Element = tuple[str, int, Any]
"""Key of the outermost object (empty for an outermost array), position in its array, value."""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def has_too_many_values(line: bytes) -> bool:
    """Whether a line of JSON holds more values than it should; commas within text do not count."""
    commas = line.count(b",")
    if commas > MAX_VALUES:
        commas -= sum(found.group().count(b",") for found in _STRING.finditer(line))
    return commas > MAX_VALUES


def elements(file: IO[bytes], name: str) -> Iterator[Element]:
    """Every element of an outermost array, or of each array of an outermost object.

    A key whose value is no array gives that one value, with position -1.

    Raises:
        Invalid: the file is no JSON of this form; the message names the file and the place.
    """
    window = _Window(file, name)
    opening = window.peek()
    if opening == "[":
        yield from _array(window, "")
    elif opening == "{":
        yield from _object(window)
    else:
        window.refuse("holds neither a list nor an object")
    if window.peek():
        window.refuse("goes on behind its end", "")


def whole(file: IO[bytes], name: str) -> Any:
    """The one value of a small file, as settings and colours are.

    Raises:
        Invalid: it is no JSON, or larger than an element may be.
    """
    window = _Window(file, name)
    if not window.peek():
        window.refuse("is empty")
    value = window.value("")
    if window.peek():
        window.refuse("goes on behind its end", "")
    return value


def _array(window: "_Window", key: str) -> Iterator[Element]:
    window.take("[", key)
    index = 0
    if window.peek() == "]":
        window.take("]", key)
        return
    while True:
        place = f"{key}[{index}]"
        yield key, index, window.value(place)
        index += 1
        if window.peek() == "]":
            window.take("]", place)
            return
        window.take(",", place)


def _object(window: "_Window") -> Iterator[Element]:
    window.take("{", "")
    if window.peek() == "}":
        window.take("}", "")
        return
    for _ in range(MAX_KEYS):
        key = window.value("the next key") if window.peek() == '"' else None
        if not isinstance(key, str):
            window.refuse("a key is no string")
        window.take(":", key)
        if window.peek() == "[":
            yield from _array(window, key)
        else:
            yield key, -1, window.value(key)
        if window.peek() == "}":
            window.take("}", key)
            return
        window.take(",", key)
    window.refuse(f"has more than {MAX_KEYS:,} keys")


class _Window:
    """The part of the file that is decoded at the moment."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._is_over = False

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, character: str, place: str) -> None:
        if self.peek() != character:
            there = self.peek()
            said = f"there is {there!r}" if there else "the file ends"
            self.refuse(f"{said} where {character!r} is expected", place)
        self._at += 1

    def value(self, place: str) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # An element that the end of the window cuts looks broken, but only at its end.
                is_cut = error.msg.startswith("Unterminated") or (
                    len(self._text) - error.pos < _LONGEST_WORD
                )
                if is_cut and len(self._text) - self._at > MAX_ELEMENT:
                    self.refuse(f"is longer than {MAX_ELEMENT:,} characters", place)
                if not is_cut or not self._more():
                    self.refuse(f"is no JSON ({error.msg})", place)
            except RecursionError:
                self.refuse("nests too deep", place)
            except ValueError as error:  # NaN, or an integer of thousands of digits
                self.refuse(f"is no JSON ({error})", place)
            else:
                # A number at the end of the window may go on behind it: 1, 1.5, 1.5e+3.
                is_open = len(self._text) - end < _LONGEST_JOINT and isinstance(value, int | float)
                if not is_open or not self._more():
                    if end - self._at > MAX_ELEMENT:
                        self.refuse(f"is longer than {MAX_ELEMENT:,} characters", place)
                    if self._brackets(end) > MAX_DEPTH and _depth(value) > MAX_DEPTH:
                        self.refuse("nests too deep", place)
                    self._at = end
                    return value

    def _brackets(self, end: int) -> int:
        """Those that open up to there: nothing nests deeper than their number."""
        return self._text.count("[", self._at, end) + self._text.count("{", self._at, end)

    def refuse(self, what: str, place: str = "") -> NoReturn:
        where = f"{self._name}: {_short(place)}: " if place else f"{self._name}: "
        raise Invalid(
            f"{where}{what}. Write the file as JSON (RFC 8259) in UTF-8 and send the archive again",
            field="file",
        )

    def _more(self) -> bool:
        """Read on, at least as much again as is undecided; whether anything came."""
        if self._is_over:
            return False
        undecided = len(self._text) - self._at
        try:
            read = self._file.read(max(_WINDOW, undecided))
            self._is_over = not read
            decoded = self._decode.decode(read, final=self._is_over)
        except UnicodeDecodeError:
            self.refuse("is not UTF-8")
        if decoded:
            self._text, self._at = self._text[self._at :] + decoded, 0
        # What was read may end within its first character, which is no end of the file.
        return bool(decoded) or not self._is_over


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        level = [each for each in inner if isinstance(each, dict | list)]
    return depth


def _short(place: str) -> str:
    return place if len(place) <= 100 else f"{place[:100]}..."  # noqa: PLR2004  a line of a message
