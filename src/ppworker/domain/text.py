"""Takes out of text and JSON what PostgreSQL refuses to store, and counts it."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 64
"""Deepest nesting of JSON that is kept."""
MAX_INT_BITS = 4096
"""Longest integer that is kept; far longer ones cannot even be written as decimals."""

_REFUSED = re.compile(r"[\x00\ud800-\udfff]")


def clean_text(text: str) -> tuple[str, int]:
    """Text without NUL and lone surrogates, and the number of code points taken out."""
    return _REFUSED.subn("", text)


def clean_json(value: Any) -> tuple[Any, int]:
    """JSON value that ``jsonb`` takes, and the number of changes made.

    Strings and keys are cleaned as by `clean_text` (one change for each code point; of two keys
    that become equal the later stands). What JSON or PostgreSQL cannot express (NaN, infinity,
    giant integers, other Python types) and what nests deeper than `MAX_DEPTH` becomes null.
    """
    cleaned, changes = _clean(value, 0)
    return cleaned, changes


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def json_text(value: Any) -> tuple[str, int]:
    """JSON text that ``jsonb`` takes, and the number of changes made as by `clean_json`.

    What is clean already, as nearly every answer is, is found so by one look at its text.
    """
    try:
        text = _ENCODER.encode(value)
        # Escapes of NUL and of surrogates; those of an emoji look alike and take the longer way.
        if "\\u0000" not in text and "\\ud" not in text and text.count("[") < MAX_DEPTH:
            return text, 0
    except (ValueError, TypeError, RecursionError):
        pass  # NaN, a giant integer, a type that is not JSON's, or too deep: cleaned below
    cleaned, changes = clean_json(value)
    return _ENCODER.encode(cleaned), changes


def _clean(value: Any, depth: int) -> tuple[Any, int]:
    if isinstance(value, str):
        return clean_text(value)
    if value is None or isinstance(value, bool):
        return value, 0
    if isinstance(value, int) and value.bit_length() <= MAX_INT_BITS:
        return int(value), 0
    if isinstance(value, float) and math.isfinite(value):
        return float(value), 0
    if isinstance(value, dict | list | tuple | Mapping):
        return _clean_container(value, depth) if depth < MAX_DEPTH else (None, 1)
    return None, 1


def _clean_container(
    value: Mapping[Any, Any] | list[Any] | tuple[Any, ...], depth: int
) -> tuple[Any, int]:
    changes = 0
    if isinstance(value, list | tuple):
        elements = []
        for element in value:
            cleaned, changed = _clean(element, depth + 1)
            elements.append(cleaned)
            changes += changed
        return elements, changes
    entries: dict[str, Any] = {}
    for key, element in value.items():
        name, renamed = clean_text(key) if isinstance(key, str) else (str(key), 1)
        entries[name], changed = _clean(element, depth + 1)
        changes += renamed + changed
    return entries, changes
