"""Runners that do on purpose what real ones do by accident. Named by path: ``scripted_runners:X``.

What they do is written in the input's text, or in its name where there is no text.
"""

import ctypes
import os
import signal
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from ppworker.errors import (
    Invalid,
    RunnerError,
    RunnerOverloaded,
    RunnerUnavailable,
    UnreadableInput,
)
from ppworker.runners.base import RawAnswer, RunnerInput, RunnerSpec
from ppworker.runners.rapidocr import RapidOcrRunner


def said(item: RunnerInput) -> str:
    return item.text if item.text is not None else item.name


def echo(item: RunnerInput) -> RawAnswer | RunnerError:
    text = said(item)
    if "UNREADABLE" in text:
        return UnreadableInput("the input says so")
    label = text.strip().split(maxsplit=1)[0][:40] if text.strip() else "empty"
    return RawAnswer(
        raw={"predictions": [{"label": label, "score": 1.0}], "text": text, "pid": os.getpid()},
        model_version="echo-1",
    )


class EchoRunner:
    """In the worker itself, shared by its threads: the label is the first word of the input."""

    spec = RunnerSpec(
        tasks=("classification",), reads="any", max_batch=1000, isolated=False, thread_safe=True
    )

    def load(self) -> None:
        pass

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        return [self.answer(item) for item in inputs]

    def answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        return echo(item)

    def close(self) -> None:
        pass


class SerialRunner(EchoRunner):
    """In the worker itself, for one thread at a time; remembers whether two ever met in it. Takes
    ``seconds`` for each batch."""

    spec = RunnerSpec(tasks=("classification",), reads="any", isolated=False)

    def __init__(self, *, seconds: float = 0.001) -> None:
        self.seconds = seconds
        self.inside = 0
        self.most_inside = 0

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        time.sleep(self.seconds)
        self.inside -= 1
        return super().predict(inputs)


class ChildEchoRunner(EchoRunner):
    """The same in a child process; ``prefix`` only tells instances apart."""

    spec = RunnerSpec(tasks=("classification",), reads="any")

    def __init__(self, *, prefix: str = "") -> None:
        if not isinstance(prefix, str):
            raise Invalid("prefix must be a text", field="runner_config.prefix")
        self.prefix = prefix


class CrashRunner(ChildEchoRunner):
    """Kills its process at the word CRASH: by a signal, or with CRASH:3 by that exit code.

    With ``log`` it writes one line per call: the number of inputs it was called with.
    """

    def __init__(self, *, log: str = "") -> None:
        self.log = Path(log) if log else None

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(f"{len(inputs)}\n")
        return super().predict(inputs)

    def answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        text = said(item)
        if "CRASH" in text:
            sys.stderr.write("about to die of it\n")
            sys.stderr.flush()
            code = text.partition("CRASH:")[2]
            if code:
                os._exit(int(code))
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(10)
        return echo(item)


class HangRunner(ChildEchoRunner):
    """Never comes back from the word HANG, holding the interpreter as native code does."""

    def answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        if "HANG" in said(item):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            sum(range(10**13))  # one bytecode: no other thread of the process runs meanwhile
        return echo(item)


class GarbageRunner(ChildEchoRunner):
    """Breaks the contract as the word says: COUNT, TYPE, JSON, RAISE, HUGE or DEEP."""

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        answers = [self.answer(item) for item in inputs]
        return answers[:-1] if any("COUNT" in said(item) for item in inputs) else answers

    def answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        text = said(item)
        if "RAISE" in text:
            raise ZeroDivisionError("in the \0 model " + "x" * 1000)
        if "TYPE" in text:
            return "no answer at all"  # type: ignore[return-value]  # that is the point
        if "JSON" in text:
            return RawAnswer(raw={"predictions": [object()]})
        if "HUGE" in text:
            return RawAnswer(raw={"text": "x" * 70_000_000})
        if "DEEP" in text:
            deep: list[object] = []
            for _ in range(100_000):
                deep = [deep]
            return RawAnswer(raw={"predictions": deep})
        return echo(item)


class NoisyRunner(ChildEchoRunner):
    """Prints a lot on every standard stream, from Python and from below, and reads from stdin."""

    def answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        print("x" * 100_000, flush=True)
        sys.stderr.write("y" * 100_000)
        sys.stderr.flush()
        os.write(1, b"\x00\x00\x00\x05" * 10)
        assert sys.stdin.read() == ""
        return echo(item)


class SlowRunner(ChildEchoRunner):
    """Takes ``seconds`` for each input."""

    def __init__(self, *, seconds: float = 0.05) -> None:
        self.seconds = seconds

    def answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        time.sleep(self.seconds)
        return echo(item)


class FlakyRunner(EchoRunner):
    """Fails, retryably, while the file ``path`` exists."""

    def __init__(self, *, path: str) -> None:
        self.path = Path(path)

    def answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        if self.path.exists():
            return RunnerError("not now", retryable=True)
        return echo(item)


class OverloadedRunner(EchoRunner):
    """Asks to be left alone for ``retry_after_s``; counts its calls."""

    def __init__(self, *, retry_after_s: float = 5.0) -> None:
        self.retry_after_s = retry_after_s
        self.calls = 0

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        self.calls += 1
        raise RunnerOverloaded("too many requests", retry_after_s=self.retry_after_s)


class UnloadableRunner(ChildEchoRunner):
    """Cannot be loaded, in the way ``how`` says: raise, refuse, die or hang."""

    def __init__(self, *, how: str = "raise") -> None:
        self.how = how

    def load(self) -> None:
        if self.how == "refuse":
            raise RunnerUnavailable("model file m.bin is missing; put it back")
        if self.how == "die":
            os._exit(7)
        if self.how == "hang":
            time.sleep(60)
        raise OSError("no such model")


class ForkingRunner(ChildEchoRunner):
    """Leaves a process behind that holds everything it inherited, and dies at the word CRASH."""

    def answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        if "CRASH" in said(item):
            os._exit(3)
        return echo(item)


class HalfMissingRunner(EchoRunner):
    """Needs a library that nobody has."""

    spec = RunnerSpec(
        tasks=("classification",),
        reads="any",
        isolated=False,
        needs=("no_such_library",),
        extra="models",
    )


class OfflineOcrRunner(RapidOcrRunner):
    """The real one, in a process that refuses every network connection."""

    def load(self) -> None:
        def refuse(event: str, arguments: object) -> None:
            if event in {"socket.connect", "socket.getaddrinfo", "urllib.Request"}:
                raise AssertionError(f"the model wants the network: {event} {arguments}")

        sys.addaudithook(refuse)
        super().load()


class DawdlingRunner(EchoRunner):
    """Takes ``seconds`` for each input, in the worker itself, and may run in several slots."""

    def __init__(self, *, seconds: float = 0.005) -> None:
        self.seconds = seconds

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        time.sleep(self.seconds * len(inputs))
        return super().predict(inputs)


class VariedRunner(EchoRunner):
    """Takes 5 to 50 ms for an input by what is written, and ``slow_s`` for one of a hundred."""

    def __init__(self, *, slow_s: float = 2.0) -> None:
        self.slow_s = slow_s

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        for item in inputs:
            number = zlib.crc32(said(item).encode())
            time.sleep(self.slow_s if number % 100 == 0 else 0.005 + number % 46 / 1000)
        return super().predict(inputs)


class GatedRunner(EchoRunner):
    """Answers nothing before the file ``gate`` exists, for 60 s at most; in the worker itself."""

    def __init__(self, *, gate: str) -> None:
        self.gate = Path(gate)

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        until = time.monotonic() + 60
        while not self.gate.exists() and time.monotonic() < until:
            time.sleep(0.01)
        return super().predict(inputs)


class DeadlyRunner(EchoRunner):
    """Kills the worker's own process at the word POISON, and notes it in the file ``log`` before;
    takes ``seconds`` for each input."""

    def __init__(self, *, log: str, seconds: float = 0.002) -> None:
        self.log = Path(log)
        self.seconds = seconds

    def answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        if "POISON" in said(item):
            with self.log.open("a") as log:
                log.write(f"{said(item)}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return echo(item)


class ChildDeadlyRunner(DeadlyRunner):
    """The same in a child process."""

    spec = RunnerSpec(tasks=("classification",), reads="any", max_batch=1000)


class StuckRunner(EchoRunner):
    """Never comes back from the word HANG, in the worker's own process; other threads go on."""

    def answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        while "HANG" in said(item):
            time.sleep(60)
        return echo(item)


class GripRunner(ChildEchoRunner):
    """Holds the interpreter for ``seconds`` in each call, as native code does."""

    spec = RunnerSpec(tasks=("classification",), reads="any", max_batch=1000)

    def __init__(self, *, seconds: float = 6.0) -> None:
        self.seconds = seconds

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        ctypes.PyDLL(None).usleep(int(self.seconds * 1e6))
        return super().predict(inputs)
