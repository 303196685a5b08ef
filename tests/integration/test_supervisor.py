"""The supervisor and its children, as real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

SUPERVISOR = """
import sys
from pathlib import Path
from ppworker.worker.supervisor import Child, supervise

folder, child, grace_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])

def note(what):
    with (folder / "notes").open("a") as file:
        file.write(f"{what}\\n")

def tick():
    with (folder / "ticks").open("a") as file:
        file.write("x")
    raise RuntimeError("a failing tick is logged and ends nothing")

sys.exit(
    supervise(
        [
            Child(
                name=f"child-{index}",
                argv=[sys.executable, child, str(folder), str(index)],
                environment={"INDEX": str(index)},
                stays=index == STAYING,
            )
            for index in range(2)
        ],
        grace_s=grace_s,
        ended=lambda name: note("ended " + name),
        stopping=lambda: note("stopping"),
        ticks=[tick],
        tick_s=0.1,
    )
)
"""

# Works like a worker: bound to its parent, a stop signal ends it gracefully.
CHILD = """
import os, sys, time
from pathlib import Path
from ppworker.worker.parent import bind_to_parent
from ppworker.worker.process import leave
from ppworker.worker.signals import Signals

folder, index = Path(sys.argv[1]), sys.argv[2]
with Signals() as signals:
    assert bind_to_parent()
    with (folder / f"pids-{index}").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    BODY
"""

GRACEFUL = """
    while signals.wait(0.2) is None:
        pass
    time.sleep(0.3)
    (folder / f"graceful-{index}").write_text(str(os.getpid()))
    leave(0)
"""
STUBBORN = """
    while True:
        signals.wait(1)
"""
MISCONFIGURED = """
    if index == "1":
        leave(2)
    while signals.wait(0.2) is None:
        pass
    (folder / f"graceful-{index}").write_text(str(os.getpid()))
    leave(0)
"""
SHORT_LIVED = """
    leave(1)
"""


def eventually(check, within_s=10.0):
    deadline = time.monotonic() + within_s
    while not (found := check()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return found


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123  a process, not a file
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Supervised:
    def __init__(self, folder, body, grace_s, staying):
        self.folder = folder
        child = folder / "child.py"
        child.write_text(CHILD.replace("    BODY", body.strip("\n")))
        program = SUPERVISOR.replace("STAYING", str(staying))
        self.errors = folder / "errors"
        with self.errors.open("w") as errors:  # a pipe that nobody reads would fill and stop it
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, str(folder), str(child), str(grace_s)],
                stderr=errors,
            )

    def pids(self, index):
        path = self.folder / f"pids-{index}"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def started(self):
        eventually(lambda: self.pids(0) and self.pids(1))
        return self.pids(0)[-1], self.pids(1)[-1]

    def notes(self):
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def is_graceful(self, index):
        return (self.folder / f"graceful-{index}").exists()

    def end(self):
        for index in (0, 1):
            for pid in self.pids(index):
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def supervised(tmp_path):
    started = []

    def start(body, grace_s=5.0, staying=None):
        started.append(Supervised(tmp_path, body, grace_s, staying))
        return started[-1]

    yield start
    for one in started:
        one.end()


def test_a_killed_child_is_started_again_and_the_others_go_on(supervised):
    one = supervised(GRACEFUL)
    first, other = one.started()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(one.pids(0)) == 2)
    assert is_alive(other)
    one.process.terminate()
    assert one.process.wait(10) == 0


def test_the_end_of_a_child_is_told_before_it_is_started_again(supervised):
    one = supervised(GRACEFUL)
    first, _ = one.started()
    assert one.notes() == []
    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(one.pids(0)) == 2)
    assert one.notes() == ["ended child-0"]
    one.process.terminate()
    assert one.process.wait(10) == 0
    assert one.notes() == ["ended child-0", "stopping"]


@pytest.mark.promise
def test_children_killed_again_and_again_are_back_within_ten_seconds_each_time(supervised, promise):
    """Pauses between short lives grow, yet not beyond what full capacity may wait for."""
    rounds = 5
    one = supervised(GRACEFUL)
    one.started()
    waits = []
    for round_ in range(1, rounds + 1):
        for index in (0, 1):
            os.kill(one.pids(index)[-1], signal.SIGKILL)
        killed_at = time.monotonic()
        eventually(lambda n=round_ + 1: len(one.pids(0)) == len(one.pids(1)) == n, within_s=30)
        waits.append(time.monotonic() - killed_at)
    one.process.terminate()
    assert one.process.wait(10) == 0
    promise(
        "F25",
        promise="Children that are killed again and again are back within seconds each time",
        fault=f"kill -9 of both children of a supervisor as soon as both are back, {rounds} times",
        target="both are back within 10 s each time",
        figure=f"slowest {max(waits):.1f} s of {2 * rounds} deaths",
        passed=max(waits) <= 10,
    )


WATCHFUL = """
    while signals.wait(0.05) is None:
        pass
    time.sleep(0.3)
    others = [(folder / f"graceful-{each}").exists() for each in "01" if each != index]
    (folder / f"graceful-{index}").write_text(f"{os.environ['INDEX']} {others}")
    leave(0)
"""


def test_a_child_that_stays_is_stopped_when_the_others_have_stopped(supervised):
    one = supervised(WATCHFUL, staying=0)
    one.started()
    one.process.terminate()
    assert one.process.wait(10) == 0
    assert (one.folder / "graceful-1").read_text() == "1 [False]"
    assert (one.folder / "graceful-0").read_text() == "0 [True]"


def test_children_of_a_killed_supervisor_stop_gracefully(supervised):
    one = supervised(GRACEFUL)
    children = one.started()
    one.process.kill()
    one.process.wait()
    eventually(lambda: not any(is_alive(pid) for pid in children), within_s=10)
    assert one.is_graceful(0)
    assert one.is_graceful(1)


def test_five_terms_do_what_one_does(supervised):
    one = supervised(GRACEFUL)
    children = one.started()
    for _ in range(5):
        one.process.terminate()
        for pid in children:
            if is_alive(pid):
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.03)
    assert one.process.wait(10) == 0
    assert one.is_graceful(0)
    assert one.is_graceful(1)


def test_a_configuration_error_of_one_child_stops_all(supervised):
    one = supervised(MISCONFIGURED)
    assert one.process.wait(10) == 2
    children = one.pids(0) + one.pids(1)
    assert not any(is_alive(pid) for pid in children)
    assert len(one.pids(1)) == 1


def test_a_child_that_keeps_dying_is_started_ever_more_slowly(supervised):
    one = supervised(SHORT_LIVED)
    eventually(lambda: len(one.pids(0)) >= 2, within_s=30)
    time.sleep(2.5)
    assert len(one.pids(0)) <= 4  # after 0.5, 1 and 2 seconds
    one.process.terminate()
    assert one.process.wait(10) == 0


def test_a_child_that_will_not_stop_is_killed_after_the_grace(supervised):
    one = supervised(STUBBORN, grace_s=0.0)
    children = one.started()
    began = time.monotonic()
    one.process.terminate()
    assert one.process.wait(15) == 1
    assert 4.5 < time.monotonic() - began < 8
    assert not any(is_alive(pid) for pid in children)


def test_a_second_interrupt_ends_everything_now(supervised):
    one = supervised(STUBBORN, grace_s=60.0)
    children = one.started()
    one.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert one.process.poll() is None
    one.process.send_signal(signal.SIGINT)
    assert one.process.wait(5) == 1
    assert not any(is_alive(pid) for pid in children)


def test_ticks_run_on_though_they_fail(supervised):
    one = supervised(GRACEFUL)
    one.started()
    ticks = one.folder / "ticks"
    eventually(lambda: ticks.exists() and len(ticks.read_text()) >= 3)
    one.process.terminate()
    assert one.process.wait(10) == 0
    assert "a periodic check or a note of the supervisor failed" in one.errors.read_text()


UNLUCKY_SUPERVISOR = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
from ppworker.worker import supervisor
from ppworker.worker.supervisor import Child, supervise

folder, child = Path(sys.argv[1]), sys.argv[2]
real, failures = subprocess.Popen, []

def popen(*arguments, **options):
    if (folder / "no-forks").exists():
        failures.append(1)
        with (folder / "failed-forks").open("a") as file:
            file.write("x")
        error = [BlockingIOError(11, "no process"), MemoryError(), OSError(28, "disk full")]
        raise error[len(failures) % 3]
    return real(*arguments, **options)

supervisor.subprocess.Popen = popen

def fail(*_):
    raise OSError(28, "no space left on device")

sys.exit(
    supervise(
        [
            Child(name=f"child-{i}", argv=[sys.executable, child, str(folder), str(i)])
            for i in range(2)
        ],
        grace_s=5.0,
        ended=fail,
        stopping=fail,
    )
)
"""


def test_a_supervisor_outlives_full_disks_and_failed_forks(tmp_path):
    """Its notes fail, its log fails, forks fail: it goes on and stops with code 0."""
    child = tmp_path / "child.py"
    child.write_text(CHILD.replace("    BODY", GRACEFUL.strip("\n")))
    with open("/dev/full", "w") as log:  # noqa: PTH123  a device
        process = subprocess.Popen(
            [sys.executable, "-c", UNLUCKY_SUPERVISOR, str(tmp_path), str(child)], stderr=log
        )

    def pids():
        path = tmp_path / "pids-0"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    try:
        eventually(pids, within_s=30)
        (tmp_path / "no-forks").touch()
        os.kill(pids()[0], signal.SIGKILL)
        forks = tmp_path / "failed-forks"
        eventually(lambda: forks.exists() and len(forks.read_text()) >= 3, within_s=20)
        (tmp_path / "no-forks").unlink()
        eventually(lambda: len(pids()) == 2, within_s=20)
        process.terminate()
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()


def test_a_process_without_a_supervisor_is_bound_to_nobody(monkeypatch):
    from ppworker.worker.parent import SUPERVISOR_PID, bind_to_parent

    monkeypatch.delenv(SUPERVISOR_PID, raising=False)
    assert not bind_to_parent()


ORPHAN = """
import ctypes
import os
from ppworker.worker.parent import SUPERVISOR_PID, bind_to_parent
from ppworker.worker.process import leave
from ppworker.worker.signals import Signals

with Signals() as signals:
    assert bind_to_parent()
    assert SUPERVISOR_PID not in os.environ, "its own children would watch the wrong process"
    asked = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(asked), 0, 0, 0)
    print(asked.value, signals.wait(8), flush=True)
    leave(0)
"""


def run_orphan(supervisor_pid):
    """A child whose supervisor was gone before the child could ask the kernel for a signal."""
    from ppworker.worker.parent import SUPERVISOR_PID

    return subprocess.run(
        [sys.executable, "-c", ORPHAN],
        env={**os.environ, SUPERVISOR_PID: str(supervisor_pid)},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    ).stdout.split()


def test_a_child_whose_supervisor_died_first_stops_gracefully():
    assert run_orphan(supervisor_pid=2**22 + 1)[1] == str(int(signal.SIGTERM))


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_the_kernel_is_asked_to_tell_of_the_supervisors_death():
    assert run_orphan(supervisor_pid=2**22 + 1)[0] == str(int(signal.SIGTERM))
