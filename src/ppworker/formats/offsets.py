"""Moves places in a text when the text is cleaned, or when they were counted in other units."""

import re
from array import array
from bisect import bisect_left
from collections.abc import Sequence

from ppworker.domain.text import clean_text

_REFUSED = re.compile(r"[\x00\ud800-\udfff]")
_WIDE = re.compile(r"[\U00010000-\U0010ffff]")


class Text:
    """A text of an archive and the places in it."""

    def __init__(self, given: str) -> None:
        self.given = given
        self.clean = clean_text(given)[0]
        """As it can be stored."""
        is_clean = len(self.clean) == len(given)
        self._refused = () if is_clean else _starts(_REFUSED, given)
        self._wide: Sequence[int] | None = None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """A span of the given text, in the clean one."""
        return start - bisect_left(self._refused, start), end - bisect_left(self._refused, end)

    def quotes(self, start: int, end: int, quoted: str) -> bool:
        """Whether the span of the given text is what is quoted, white space apart."""
        return _letters(self.given[start:end]) == _letters(quoted)

    def from_utf16(self, start: int, end: int) -> tuple[int, int]:
        """A span that was counted in UTF-16 units, as browsers count, in code points."""
        if self._wide is None:
            # Each takes two units, so those before it move its own start.
            wide = _starts(_WIDE, self.given)
            self._wide = array("L", [at + before for before, at in enumerate(wide)])
        return start - bisect_left(self._wide, start), end - bisect_left(self._wide, end)


def _starts(pattern: re.Pattern[str], text: str) -> Sequence[int]:
    return array("L", [match.start() for match in pattern.finditer(text)])


def _letters(text: str) -> str:
    return "".join(text.replace("\\n", "\n").split())
