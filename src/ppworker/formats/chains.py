"""Gathers notes about many things that come in any order, on the disk, to be read thing by thing.

Memory holds one number per thing, however many notes there are.
"""

import json
import struct
from collections.abc import Hashable, Iterator
from tempfile import SpooledTemporaryFile
from typing import Any, Generic, TypeVar
from weakref import finalize

_LINK = struct.Struct("<qI")
"""Where the thing's note before this one lies (-1: nowhere), and the bytes of this one."""
_IN_MEMORY = 8 << 20
Thing = TypeVar("Thing", bound=Hashable)
_TO_JSON = json.JSONEncoder(separators=(",", ":"), check_circular=False)


class Chains(Generic[Thing]):
    """Notes by thing; each is JSON, and has a link to the one before it."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  closed by close
        # A reader may be left before its end, or never begun: the disk is let go of anyway.
        self.close = finalize(self, self._file.close)
        self._last: dict[Thing, int] = {}
        self._end = 0
        self._is_elsewhere = False
        """Whether something was read since the last note was written."""

    def add(self, thing: Thing, note: Any) -> None:
        """Note something about a thing."""
        content = _TO_JSON.encode(note).encode()
        if self._is_elsewhere:
            self._file.seek(self._end)
            self._is_elsewhere = False
        self._file.write(_LINK.pack(self._last.get(thing, -1), len(content)) + content)
        self._last[thing] = self._end
        self._end += _LINK.size + len(content)

    def take(self, thing: Thing) -> list[Any]:
        """All notes about a thing, in the order they came; afterwards it has none."""
        at, found = self._last.pop(thing, -1), []
        self._is_elsewhere = True
        while at >= 0:
            self._file.seek(at)
            at, length = _LINK.unpack(self._file.read(_LINK.size))
            found.append(json.loads(self._file.read(length)))
        return found[::-1]

    def __len__(self) -> int:
        """How many things have notes."""
        return len(self._last)

    def counts(self) -> Iterator[tuple[Thing, int]]:
        """Every thing that has notes, with their number."""
        self._is_elsewhere = True
        for thing, at in self._last.items():
            count = 0
            while at >= 0:
                self._file.seek(at)
                at = _LINK.unpack(self._file.read(_LINK.size))[0]  # noqa: PLW2901
                count += 1
            yield thing, count
