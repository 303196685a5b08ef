"""The process that holds one model: ``python -m ppworker.runners.host <socket>``.

Started by ``child.ChildRunner`` only. Reads requests from the inherited socket until it is closed.
Whatever the model prints goes to the pipe that standard output and error are; standard input is a
pipe that nobody writes to and whose end says that the worker is gone.
"""

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import sys
import threading
from typing import Any

from ppworker.errors import BadResponse, RequestError, RunnerError, RunnerUnavailable
from ppworker.runners import registry, wire
from ppworker.runners.base import Runner


def main() -> None:
    """Serve the model named in the first message until the worker hangs up."""
    _forget_inherited_signals()
    _die_with_worker()
    descriptor = int(sys.argv[1])
    # A process started by the model must not keep the socket open.
    os.set_inheritable(descriptor, False)  # noqa: FBT003  its name for the argument is private
    channel = wire.Channel(socket.socket(fileno=descriptor))
    with contextlib.suppress(EOFError, OSError):  # the worker hung up: nothing is left to do
        _serve(channel)
    channel.close()


def _serve(channel: wire.Channel) -> None:
    hello = wire.decode(channel.receive())
    sys.path.extend(entry for entry in hello["sys_path"] if entry not in sys.path)
    try:
        runner = _load(hello["runner"], hello["config"])
    except RunnerError as error:
        channel.send(_failure(error))
        return
    channel.send(wire.encode({"loaded": True}))
    try:
        while True:
            request = channel.receive()
            channel.send(_answer(runner, wire.decode(request), limit=hello["max_answer_bytes"]))
    finally:
        runner.close()


def _load(name: str, config: dict[str, Any]) -> Runner:
    try:
        runner = registry.build(name, config)
        _limit_memory(runner.spec.memory_mb)
        runner.load()
    except RunnerError:
        raise
    except RequestError as error:
        raise RunnerUnavailable(str(error)) from error
    except Exception as error:
        raise RunnerUnavailable(
            f"the model cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return runner


def _limit_memory(megabytes: int | None) -> None:
    """Let what hostile input makes a library ask for fail, before the machine runs out of it."""
    if megabytes is not None:
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        wanted = megabytes << 20
        # Never above what the operator allowed; a system that cannot limit it goes on without.
        if most == resource.RLIM_INFINITY or wanted < most:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_AS, (wanted, most))


def _answer(runner: Runner, request: dict[str, Any], *, limit: int) -> bytes:
    inputs = wire.decode_inputs(request)
    try:
        reply = wire.encode_answers(wire.checked(runner.predict(inputs), len(inputs)))
    except Exception as error:  # noqa: BLE001  whatever a model raises is an answer too
        return _failure(wire.as_runner_error(error))
    if len(reply) > limit:
        return _failure(BadResponse(f"the model's answer has {len(reply)} bytes, above {limit}"))
    return reply


def _failure(error: RunnerError) -> bytes:
    return wire.encode({"error": wire.encode_error(error)})


def _forget_inherited_signals() -> None:
    """A worker's thread may have blocked or ignored signals; the model's process must end by them.

    Ctrl-C does not come here (own session), so SIGINT keeps Python's handler.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _die_with_worker() -> None:
    """Make the kernel kill this whole process group when the worker's end of stdin closes.

    Not PR_SET_PDEATHSIG: that fires when the *thread* that started us ends, and it spares what the
    model has started. A thread that waits cannot help against native code that holds the
    interpreter, so it is only the fallback of systems where the kernel cannot do it.
    """
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # a model that reads its standard input must not wait for ever
    os.close(nothing)
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
    else:
        threading.Thread(target=_wait_for_worker, args=(lifeline,), daemon=True).start()
    if select.select([lifeline], [], [], 0)[0]:  # gone before the kernel knew whom to tell
        os.killpg(0, signal.SIGKILL)


def _wait_for_worker(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
