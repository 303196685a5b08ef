"""Signals as messages: a mailbox that a handler can fill without a deadlock."""

import signal
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Catches signals while entered; to be entered in the main thread.

    ``threading.Event`` will not do: its ``set`` in a handler deadlocks when it interrupts ``wait``
    between two lines. ``SimpleQueue.put`` is made for handlers.
    """

    def __init__(self, wanted: Iterable[signal.Signals] = STOP_SIGNALS) -> None:
        self._wanted = tuple(wanted)
        self._caught: SimpleQueue[int] = SimpleQueue()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in self._wanted:
            self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None: a handler that C code had set; it cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def wait(self, timeout_s: float) -> int | None:
        """Wait up to ``timeout_s`` seconds for the next signal; None when none came."""
        try:
            return self._caught.get(timeout=timeout_s)
        except Empty:
            return None

    def _catch(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  signal's shape
        self._caught.put(number)
