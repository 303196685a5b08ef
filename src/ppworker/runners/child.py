"""A runner in a process of its own: what crashes or hangs there costs a batch, not the worker."""

import sys
import threading
import time
from collections.abc import Mapping, Sequence

from ppworker.errors import RunnerCrashed, RunnerError, RunnerTimeout, RunnerUnavailable
from ppworker.runners import registry, wire
from ppworker.runners.base import RunnerInput
from ppworker.runners.process import ModelProcess
from ppworker.runners.wire import Answer

DEFAULT_TIMEOUT_S = 300.0
LOAD_TIMEOUT_S = 120.0
"""Most seconds a model may take to load, start of its process included."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Most bytes of the answers to one batch, as JSON."""


class ChildRunner:
    """Runs any runner in a child process that is started when needed and kept between batches.

    One batch at a time; a second caller waits. A process that died or hung is replaced at the next
    ``predict``.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, object],
        *,
        load_timeout_s: float = LOAD_TIMEOUT_S,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self.spec = registry.spec(name)
        self._name = name
        self._config = dict(config)
        self._load_timeout_s = load_timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._lock = threading.Lock()
        self._process: ModelProcess | None = None
        self._closed = False
        self._used_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        """Id of the child process, None while there is none."""
        process = self._process
        return process.pid if process is not None else None

    @property
    def idle_s(self) -> float:
        """Seconds since the last batch ended."""
        return time.monotonic() - self._used_at

    def load(self) -> None:
        """Start the process and load the model, unless that is done already.

        Raises:
            RunnerUnavailable: it cannot be loaded, died while loading, or took too long.
        """
        with self._lock:
            self._ready()

    def predict(
        self, inputs: Sequence[RunnerInput], timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[Answer]:
        """Answer a batch.

        Args:
            inputs: the batch.
            timeout_s: most seconds for the batch as a whole; loading has its own limit.

        Raises:
            RunnerUnavailable: as ``load``, or ``close`` was called.
            RunnerTimeout: no answer in time; the process has been killed.
            RunnerCrashed: the process died; says by which signal.
            BadResponse: the answers break the contract.
            RunnerError: the runner itself gave up on the batch.
        """
        with self._lock:
            process = self._ready()
            try:
                reply = process.ask(
                    wire.encode_inputs(inputs), timeout_s=timeout_s, limit=self._max_answer_bytes
                )
            except RunnerError:
                self._drop()
                self._refuse_if_closed()  # our own end of it is no crash of the model
                raise
            finally:
                self._used_at = time.monotonic()
        return wire.decode_answers(wire.decode(reply), len(inputs))

    def unload_if_idle(self, seconds: float) -> bool:
        """End the process if its last batch is that long ago; says whether there was one to end."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._process is None or self.idle_s < seconds:
                return False
            process, self._process = self._process, None
            process.end()
            return True
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the process for good. A batch in it fails with ``RunnerUnavailable`` at once."""
        self._closed = True
        if not self._lock.acquire(blocking=False):
            process = self._process
            if process is not None:
                process.interrupt()
            self._lock.acquire()
        try:
            if self._process is not None:
                self._process.end()
                self._process = None
        finally:
            self._lock.release()

    def _ready(self) -> ModelProcess:
        self._refuse_if_closed()
        if self._process is not None and not self._process.alive:
            self._drop()  # it died between two batches: nobody's fault
        if self._process is None:
            self._process = self._start()
        return self._process

    def _start(self) -> ModelProcess:
        try:
            # Seen by close() at once, so that a stopping worker need not wait for the load.
            self._process = process = ModelProcess()
        except OSError as error:
            raise RunnerUnavailable(f"the model's process cannot be started: {error}") from error
        if self._closed:  # just before close() could see it
            self._drop()
            self._refuse_if_closed()
        hello = {
            "runner": self._name,
            "config": self._config,
            "sys_path": sys.path,
            "max_answer_bytes": self._max_answer_bytes,
        }
        try:
            reply = process.ask(
                wire.encode(hello), timeout_s=self._load_timeout_s, limit=self._max_answer_bytes
            )
            document = wire.decode(reply)
            if "error" in document:
                raise wire.decode_error(document["error"])
        except RunnerError as error:
            self._drop()
            self._refuse_if_closed()
            raise _while_loading(error) from error
        return process

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RunnerUnavailable("the worker is stopping, its models are closed")


def _while_loading(error: RunnerError) -> RunnerError:
    """Whatever went wrong before the first input is no input's fault."""
    if isinstance(error, RunnerTimeout):
        return RunnerUnavailable(f"the model is not loaded: {error}")
    if isinstance(error, RunnerCrashed):
        return RunnerUnavailable(f"the model cannot be loaded: {error}")
    return error if isinstance(error, RunnerUnavailable) else RunnerUnavailable(str(error))
