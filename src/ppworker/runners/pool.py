"""The models of one worker process, and the rule that blames no input for its batch."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from ppworker.domain.job import PUT_OFF
from ppworker.errors import RunnerError, RunnerUnavailable
from ppworker.runners import registry, wire
from ppworker.runners.base import Runner, RunnerInput, RunnerSpec
from ppworker.runners.child import LOAD_TIMEOUT_S, ChildRunner
from ppworker.runners.wire import Answer

NOT_HALVED = frozenset({"unavailable", "overloaded", "auth"})
"""Codes that speak of the model and not of any input; asking again in halves would be no use."""

NOT_ASKED = RunnerError(
    "not asked: the time of its batch was over", code=PUT_OFF, retryable=True, retry_after_s=0.0
)
"""Said of an input for which its batch had no time left; it is none of its doing."""

MAX_LOADED = 4
"""Most models kept in processes of their own; beyond it the longest unused one is unloaded."""


def longest_s(inputs: int, call_s: float) -> float:
    """Seconds that a batch may be in a model: enough to find one input that hangs by halving.

    Args:
        inputs: how many.
        call_s: most seconds of one call, loading included: a model that was killed is loaded again.
    """
    return call_s * (1 + (max(inputs, 1) - 1).bit_length())


def model_key(name: str, config: Mapping[str, object]) -> tuple[str, str]:
    """What those that share a model have in common: a runner's name and its settings."""
    return name, json.dumps(config, sort_keys=True, separators=(",", ":"), default=str)


class Permit:
    """The right to run one batch in one model; give it back with ``release`` or ``with``."""

    def __init__(self, slot: "_Slot", release: Callable[["_Slot"], None]) -> None:
        self._slot = slot
        self._release: Callable[[_Slot], None] | None = release

    @property
    def spec(self) -> RunnerSpec:
        """What the runner declares about itself."""
        return self._slot.spec

    @property
    def pid(self) -> int | None:
        """Id of the model's process, None if it has none of its own or is not loaded."""
        return self._slot.model.pid

    @property
    def shares_process(self) -> bool:
        """Whether the model runs in this very process: what kills it kills all that is in here."""
        return not self._slot.isolated

    @property
    def load_s(self) -> float:
        """Seconds that the model may take to load while it is asked. One in a process of its own
        may have to be loaded again at any time."""
        return 0.0 if self._slot.model.is_loaded_for_good else LOAD_TIMEOUT_S

    def release(self) -> None:
        """Give the permit back; a second call does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release(self._slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class RunnerPool:
    """Models by runner name and settings, loaded when first asked and kept for the next batch."""

    def __init__(
        self,
        *,
        load_timeout_s: float = LOAD_TIMEOUT_S,
        max_loaded: int = MAX_LOADED,
        isolate_all: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load_timeout_s = load_timeout_s
        self._max_loaded = max_loaded
        self._isolate_all = isolate_all  # also what is trusted, for a process that holds no model
        self._clock = clock
        self._lock = threading.Lock()
        self._slots: dict[tuple[str, str, bool], _Slot] = {}
        self._closed = False

    def acquire(
        self, name: str, config: Mapping[str, object], *, apart: bool = False
    ) -> Permit | None:
        """The right to run a batch, or None while the model is busy or the pool is closed.

        Never waits, and loads nothing. Take it before claiming jobs: what has no model to run in
        must not be claimed. An isolated runner runs one batch at a time in each worker process,
        and so does one that is not thread-safe.

        Args:
            name: of the runner.
            config: its settings.
            apart: in a process of its own, though the runner does not ask for one.

        Raises:
            Invalid: this process has no such runner, or the runner refuses the settings.
        """
        key = (*model_key(name, config), apart)
        found = registry.spec(name)
        with self._lock:
            if self._closed:
                return None
            slot = self._slots.get(key)
            if slot is None:
                isolated = found.isolated or self._isolate_all or apart
                model = self._model(name, config, isolated=isolated)
                slot = self._slots[key] = _Slot(found, model, isolated=isolated)
            if slot.users and slot.exclusive:
                return None
            slot.users += 1
        return Permit(slot, self._give_back)

    def predict(
        self, permit: Permit, inputs: Sequence[RunnerInput], timeout_s: float
    ) -> list[Answer]:
        """One raw answer or error per input, in order; raises nothing that a model can cause.

        A batch that fails as a whole is asked again in halves, down to single inputs, before any
        input is blamed. An error that speaks of the model (``NOT_HALVED``) goes to every input not
        answered yet, at once. ``timeout_s`` limits each call of the model: the first with the
        whole batch, then each half; ``longest_s`` limits all of them together. What is not asked
        by then gets ``NOT_ASKED``; one input at least is answered or blamed before. Neither can
        stop a call of a runner that is not isolated.
        """
        slot = permit._slot  # noqa: SLF001  a permit shows its holder nothing to misuse
        self._make_room(slot)

        def ask(part: Sequence[RunnerInput]) -> list[Answer]:
            return slot.model.ask(part, timeout_s)

        size = max(1, slot.spec.max_batch)
        parts = [inputs[i : i + size] for i in range(0, len(inputs), size)]
        return _ask_in_halves(ask, parts, timeout_s + permit.load_s, clock=self._clock)

    def close_idle(self, seconds: float) -> int:
        """Unload the models not used for that long; returns how many were loaded till then.

        They are forgotten too: a setting that nobody uses any more must not stay for ever.
        """
        before = time.monotonic() - seconds
        with self._lock:
            idle = {
                key: slot
                for key, slot in self._slots.items()
                if not slot.users and slot.used_at <= before
            }
            for key in idle:
                del self._slots[key]
        loaded = sum(slot.model.unload_if_idle(0) for slot in idle.values())
        for slot in idle.values():
            slot.model.close()
        return loaded

    @property
    def is_used(self) -> bool:
        """Whether it holds any model, or did lately."""
        with self._lock:
            return bool(self._slots)

    def close(self) -> None:
        """End all models for good; a batch in a process of its own ends at once, as unavailable."""
        with self._lock:
            self._closed = True
            slots = list(self._slots.values())
        for slot in slots:
            slot.model.close()

    def _model(self, name: str, config: Mapping[str, object], *, isolated: bool) -> "_Model":
        runner = registry.build(name, config)  # refuses bad settings before anything is claimed
        if not isolated:
            return _InProcess(runner)
        return _Isolated(ChildRunner(name, config, load_timeout_s=self._load_timeout_s))

    def _give_back(self, slot: "_Slot") -> None:
        with self._lock:
            slot.users -= 1
            slot.used_at = time.monotonic()

    def _make_room(self, wanted: "_Slot") -> None:
        if wanted.model.pid is not None or not wanted.isolated:
            return
        with self._lock:
            loaded = [slot for slot in self._slots.values() if slot.model.pid is not None]
            idle = sorted((s for s in loaded if not s.users), key=lambda s: s.used_at)
        for slot in idle[: max(0, len(loaded) + 1 - self._max_loaded)]:
            slot.model.unload_if_idle(0)


class _Model(Protocol):
    """What the pool needs of a model, wherever it runs."""

    @property
    def pid(self) -> int | None: ...
    @property
    def is_loaded_for_good(self) -> bool: ...
    def ask(self, inputs: Sequence[RunnerInput], timeout_s: float) -> list[Answer]: ...
    def unload_if_idle(self, seconds: float) -> bool: ...
    def close(self) -> None: ...


class _Slot:
    """A model and who uses it; ``users`` and ``used_at`` are guarded by the pool's lock."""

    def __init__(self, spec: RunnerSpec, model: _Model, *, isolated: bool) -> None:
        self.spec = spec
        self.model = model
        self.isolated = isolated
        self.exclusive = isolated or not spec.thread_safe
        self.users = 0
        self.used_at = time.monotonic()


class _Isolated:
    """A model in a process of its own."""

    is_loaded_for_good = False

    def __init__(self, child: ChildRunner) -> None:
        self._child = child

    @property
    def pid(self) -> int | None:
        return self._child.pid

    def ask(self, inputs: Sequence[RunnerInput], timeout_s: float) -> list[Answer]:
        return self._child.predict(inputs, timeout_s)

    def unload_if_idle(self, seconds: float) -> bool:
        return self._child.unload_if_idle(seconds)

    def close(self) -> None:
        self._child.close()


class _InProcess:
    """A model in the worker itself: quick to ask, and trusted not to crash or hang."""

    pid: int | None = None

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._lock = threading.Lock()
        self._loaded = False
        self._asking = 0
        self._used_at = time.monotonic()

    @property
    def is_loaded_for_good(self) -> bool:
        return self._loaded

    def ask(self, inputs: Sequence[RunnerInput], timeout_s: float) -> list[Answer]:
        del timeout_s  # no thread can be stopped from outside
        with self._lock:
            self._load()
            self._asking += 1
        try:
            return wire.checked(self._runner.predict(inputs), len(inputs))
        except (Exception, SystemExit) as error:
            raise wire.as_runner_error(error) from error
        finally:
            with self._lock:
                self._asking -= 1
                self._used_at = time.monotonic()

    def unload_if_idle(self, seconds: float) -> bool:
        with self._lock:
            idle = time.monotonic() - self._used_at >= seconds
            if not self._loaded or self._asking or not idle:
                return False
            self._unload()
            return True

    def close(self) -> None:
        with self._lock:
            # A batch in it goes on undisturbed; the process ends soon and the model with it.
            if self._loaded and not self._asking:
                self._unload()

    def _load(self) -> None:
        if self._loaded:
            return
        try:
            self._runner.load()
        except RunnerError:
            raise
        except Exception as error:
            raise RunnerUnavailable(
                f"the model cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        self._loaded = True

    def _unload(self) -> None:
        self._loaded = False
        with contextlib.suppress(Exception):  # it is given up either way
            self._runner.close()


def _ask_in_halves(
    ask: Callable[[Sequence[RunnerInput]], list[Answer]],
    parts: Sequence[Sequence[RunnerInput]],
    call_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> list[Answer]:
    """Answers to all parts in order; see ``RunnerPool.predict`` for the rule."""
    last_call_at = clock() + longest_s(sum(map(len, parts)), call_s) - call_s
    answers: list[Answer] = []
    waiting = list(reversed(parts))
    while waiting:
        part = waiting.pop()
        try:
            answers += ask(part)
        except RunnerError as error:
            fault = error.with_traceback(None)  # kept as a value; its frames hold the whole batch
            if fault.code in NOT_HALVED:
                answers += [fault] * (len(part) + sum(map(len, waiting)))
                break
            if len(part) == 1:
                answers.append(fault)
            else:
                middle = len(part) // 2
                waiting += [part[middle:], part[:middle]]
        # Not before somebody is answered or blamed: else the same batch could come again for ever.
        if answers and clock() > last_call_at:
            answers += [NOT_ASKED] * sum(map(len, waiting))
            break
    return answers
