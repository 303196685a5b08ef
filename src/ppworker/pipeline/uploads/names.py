"""Makes file names of clients harmless; they are shown and compared, never used as paths."""

import unicodedata

MAX_NAME = 255
"""Longest name, in code points."""
UNNAMED = "unnamed"
_EXTENSION_MAX = 16
_SPLITTING = {"Zl", "Zp"}
# Marks that reverse the order of reading can make "exe.jpg" out of "gpj.exe".
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean_name(name: str) -> str:
    """Last part of the path, without control and reordering characters, at most `MAX_NAME` long.

    A name too long loses its middle, so that it keeps its extension. `UNNAMED` where nothing is
    left.
    """
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    kept = "".join(character for character in last if _is_harmless(character)).strip()
    if not kept.strip("."):
        return UNNAMED
    if len(kept) <= MAX_NAME:
        return kept
    stem, dot, ending = kept.rpartition(".")
    if not dot or len(ending) > _EXTENSION_MAX:
        return kept[:MAX_NAME]
    return stem[: MAX_NAME - len(ending) - 1] + dot + ending


def shown_name(name: str) -> str:
    """A name that a person chose, without control and reordering characters, `MAX_NAME` at most.

    It need not be a file's: a slash in it is a letter like any other, and it may be empty.
    """
    return "".join(character for character in name if _is_harmless(character)).strip()[:MAX_NAME]


def extension_of(name: str) -> str:
    """Extension in lower case without dot; empty where there is none that looks like one."""
    stem, _, ending = clean_name(name).rpartition(".")
    is_plain = ending.isascii() and ending.isalnum() and len(ending) <= _EXTENSION_MAX
    return ending.lower() if stem and is_plain else ""


def _is_harmless(character: str) -> bool:
    category = unicodedata.category(character)
    # Cc control, Cs lone surrogates.
    return category not in {"Cc", "Cs", *_SPLITTING} and character not in _REORDERING
