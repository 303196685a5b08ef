"""Signals, rolling restarts and deaths, on real process trees with models in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factories import World
from live_workers import TESTS, wait_for
from promises import Keep

GRACE_S = 1.0
PROC = Path("/proc")

LONG = pytest.mark.long

pytestmark = pytest.mark.skipif(not PROC.exists(), reason="process trees are read from /proc")


class Tree:
    """A program of ours and every process below it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.seen: set[int] = {process.pid}

    def look(self) -> set[int]:
        """Remember who lives below; whoever loses its parent is still known."""
        parents = {pid: parent for pid in pids() if (parent := parent_of(pid)) is not None}
        while new := {pid for pid, parent in parents.items() if parent in self.seen} - self.seen:
            self.seen |= new
        return self.seen - {self.process.pid}

    def left(self) -> list[int]:
        """Those of them that still run."""
        self.process.poll()
        return [pid for pid in self.seen if is_alive(pid)]

    def kill(self) -> None:
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


def pids() -> list[int]:
    return [int(path.name) for path in PROC.iterdir() if path.name.isdigit()]


def parent_of(pid: int) -> int | None:
    try:
        return int((PROC / f"{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def is_alive(pid: int) -> bool:
    try:
        return (PROC / f"{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _heed_signals() -> None:
    """In the background of a script these are ignored, and that is inherited."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


Launch = Callable[..., Tree]


@pytest.fixture
def launch(database_url: str, tmp_path: Path) -> Iterator[Launch]:
    """Starts ``python -m MODULE ...`` on the test's database; what still runs is killed in the end."""
    trees: list[Tree] = []
    log = (tmp_path / "processes.log").open("ab")

    def start(*arguments: str, **more: str) -> Tree:
        environment = os.environ | {
            "PPWORKER_DATABASE_URL": database_url,
            "PPWORKER_DATA_DIR": str(tmp_path / "data"),
            "PPWORKER_LEASE_S": "10",
            "PPWORKER_SWEEP_S": "0.5",
            "PPWORKER_POLL_S": "0.2",
            "PPWORKER_GRACE_S": str(GRACE_S),
            "PYTHONPATH": str(TESTS),
            **more,
        }
        command = [sys.executable, "-m", *arguments]
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=log,
            stderr=log,
            preexec_fn=_heed_signals,  # noqa: PLW1509  it takes no lock that a thread may hold
        )
        trees.append(Tree(process))
        return trees[-1]

    yield start
    for tree in trees:
        tree.look()
        tree.kill()
    log.close()


def count(world: World, condition: str, **values: object) -> int:
    found = world.sql(f"SELECT count(*) FROM post_processor_jobs WHERE {condition}", **values)
    return int(found[0][0])


def workers_seen(world: World) -> dict[int, str]:
    """Ids of the registered workers by their pids."""
    return {row.pid: str(row.id) for row in world.sql("SELECT id, pid FROM workers")}


def slow_world(world: World, jobs: int) -> None:
    """Jobs that last far longer than the grace, in a model process; one attempt and no more."""
    world.processor(
        runner="scripted_runners:SlowRunner", runner_config={"seconds": 60}, max_attempts=1
    )
    world.add(*(f"word {i}" for i in range(jobs)))


def at_work(world: World, tree: Tree, workers: int) -> None:
    """Until so many workers hold a job and their models have begun."""
    wait_for(
        lambda: (
            world.sql(
                "SELECT count(DISTINCT lease_owner) FROM post_processor_jobs WHERE status = 'processing'"
            )[0][0]
            == workers
        ),
        seconds=30,
        what="work in every worker",
    )
    wait_for(lambda: len(tree.look()) >= workers, seconds=10, what="the tree")


@pytest.mark.promise
@pytest.mark.parametrize(
    "sent",
    ["KILL", "TERM five times", *(pytest.param(x, marks=LONG) for x in ("TERM", "INT", "QUIT"))],
)
def test_whatever_ends_a_supervisor_its_children_end_and_give_their_jobs_back(
    world: World, launch: Launch, promise: Keep, sent: str
) -> None:
    slow_world(world, 4)
    tree = launch("ppworker", "worker", "--processes", "2", "--threads", "1")
    at_work(world, tree, 2)
    tree.look()
    number = signal.Signals[f"SIG{sent.split(maxsplit=1)[0]}"]
    started = time.monotonic()
    for _ in range(5 if "five" in sent else 1):
        tree.process.send_signal(number)
        time.sleep(0.02)
    code = tree.process.wait(GRACE_S + 9)
    wait_for(lambda: not tree.left(), seconds=10, what="the end of every child")
    took_s = time.monotonic() - started
    expected = -number if sent in {"KILL", "QUIT"} else 0
    pending = count(world, "status = 'pending' AND attempts = 0")
    world.check()
    promise(
        "F24",
        promise="Whatever ends a supervisor, its workers and their models end by themselves and"
        " give their jobs back",
        fault=f"SIG{sent} to the supervisor of two workers in the middle of long jobs",
        target=f"all processes gone within 10 s (grace {GRACE_S} s), exit code {expected}, every"
        " job pending with its attempt refunded",
        figure=f"{len(tree.seen)} processes gone in {took_s:.1f} s, exit code {code}, {pending} of"
        f" 4 jobs pending, {len(workers_seen(world))} workers left in the register",
        passed=took_s <= 10 and code == expected and pending == 4 and not workers_seen(world),
    )


@pytest.mark.promise
@pytest.mark.parametrize("sent", ["KILL", "TERM", "INT", "QUIT"])
def test_whatever_ends_a_worker_its_jobs_go_on(
    world: World, launch: Launch, promise: Keep, sent: str
) -> None:
    slow_world(world, 2)
    number = signal.Signals[f"SIG{sent}"]
    is_graceful = sent in {"TERM", "INT"}
    tree = launch("ppworker.process", "worker", PPWORKER_LEASE_S="2")
    at_work(world, tree, 1)
    tree.look()
    rescuer = launch("ppworker.process", "worker", PPWORKER_LEASE_S="2")
    world.sql("UPDATE post_processors SET enabled = false")  # what comes back stays to be counted
    wait_for(lambda: len(workers_seen(world)) == 2, seconds=20, what="a second worker")
    held = count(world, "status = 'processing'")
    started = time.monotonic()
    tree.process.send_signal(number)
    code = tree.process.wait(GRACE_S + 9)
    wait_for(lambda: not tree.left(), seconds=10, what="the end of its model")
    wait_for(lambda: count(world, "status = 'processing'") == 0, seconds=15, what="a rescue")
    took_s = time.monotonic() - started
    causes = world.sql("SELECT cause, count(*) FROM job_attempts GROUP BY 1 ORDER BY 1")
    expected = 0 if is_graceful else -number
    rescuer.process.terminate()
    assert rescuer.process.wait(15) == 0
    ended = count(world, "status = 'pending' AND attempts = 0")
    world.check()
    promise(
        "F24",
        promise="Whatever ends a worker, its model ends too and its jobs are given back or rescued",
        fault=f"SIG{sent} to a worker in the middle of long jobs",
        target=f"exit code {expected}; given back at once by a graceful stop, otherwise rescued"
        " when the lease (2 s) is over",
        figure=f"exit code {code}, {held} jobs held, none after {took_s:.1f} s,"
        f" { {row[0]: row[1] for row in causes} }",
        passed=code == expected and held > 0 and (ended == 2 or not is_graceful) and took_s < 12,
    )


def rolling(world: World, launch: Launch, restarts: int) -> tuple[list[float], list[int], int, int]:
    """Restart one of two workers after the other, a new one first.

    Returns:
        Seconds each took to end, their exit codes, rows that a dead one left, and jobs that were
        in its hands.
    """
    workers = [launch("ppworker.process", "worker"), launch("ppworker.process", "worker")]
    took, codes, left, interrupted = [], [], 0, 0
    for _ in range(restarts):
        old = workers.pop(0)
        wait_for(
            lambda old=old: (
                (id_ := workers_seen(world).get(old.process.pid)) is not None  # type: ignore[misc]
                and count(world, "status = 'processing' AND lease_owner = :w", w=id_) > 0
            ),
            seconds=40,
            what="work in the worker to be stopped",
        )
        id_ = workers_seen(world)[old.process.pid]
        workers.append(launch("ppworker.process", "worker"))
        old.look()
        interrupted += count(world, "status = 'processing' AND lease_owner = :w", w=id_)
        started = time.monotonic()
        old.process.terminate()
        codes.append(old.process.wait(GRACE_S + 20))
        took.append(time.monotonic() - started)
        left += count(world, "status = 'processing' AND lease_owner = :w", w=id_)
        left += id_ in workers_seen(world).values()
    world.sql("UPDATE post_processors SET runner_config = '{\"seconds\": 0.0}'")
    for worker in workers:
        wait_for(
            lambda pid=worker.process.pid: pid in workers_seen(world),  # type: ignore[misc]
            seconds=40,
            what="the start of a worker",
        )
        worker.process.terminate()
    codes += [worker.process.wait(GRACE_S + 20) for worker in workers]
    launch("ppworker.process", "worker")
    wait_for(
        lambda: count(world, "status IN ('pending', 'processing')") == 0,
        seconds=60,
        what="the end of the drain",
    )
    return took, codes, left, interrupted


@pytest.mark.promise
@pytest.mark.timeout(600)
@pytest.mark.long
@pytest.mark.parametrize("restarts", [4, 50])
def test_a_rolling_deploy_burns_no_attempt_and_leaves_nothing_behind(
    world: World, launch: Launch, promise: Keep, restarts: int
) -> None:
    processor = world.processor(
        runner="scripted_runners:SlowRunner", runner_config={"seconds": 60}, max_attempts=1
    )
    world.add(*(f"word {i}" for i in range(60)))
    took, codes, left, interrupted = rolling(world, launch, restarts)
    assert world.statuses(processor) == ["completed"] * 60
    burnt = count(world, "attempts <> 1")
    rescued = world.sql("SELECT count(*) FROM job_attempts WHERE cause = 'rescued'")[0][0]
    world.check()
    promise(
        "F23",
        promise="A rolling deploy costs no job an attempt, though jobs last longer than the grace",
        fault=f"{restarts} workers stopped by SIGTERM one after the other (the reference says 50),"
        f" grace {GRACE_S:g} s (the reference: 10 s), jobs of 60 s",
        target=f"exit code 0 within the grace + 5 s ({GRACE_S + 5:g} s), nothing left in the name of a"
        " dead worker, 0 attempts burnt",
        figure=f"exit codes {sorted(set(codes))}, slowest end {max(took):.1f} s, {left} rows left,"
        f" {interrupted} jobs interrupted, {burnt} attempts burnt, {rescued} rescued",
        passed=set(codes) == {0}
        and max(took) <= GRACE_S + 5
        and left == burnt == rescued == 0
        and interrupted >= restarts,
    )


@pytest.mark.promise
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [30])
def test_a_killed_worker_is_replaced_within_ten_seconds(
    world: World, launch: Launch, promise: Keep, kills: int
) -> None:
    processor = world.processor(
        runner="scripted_runners:DawdlingRunner", runner_config={"seconds": 0.01}, max_attempts=50
    )
    tree = launch(
        *("ppworker", "worker", "--processes", "3", "--threads", "1"), PPWORKER_LEASE_S="2"
    )
    wait_for(lambda: len(workers_seen(world)) >= 3, seconds=30, what="full capacity")
    waits, added = [], 0
    for kill in range(kills):
        added += len(world.add(*(f"word {i}" for i in range(100))))
        wait_for(lambda: count(world, "status = 'processing'") > 0, seconds=15, what="work")
        victim = sorted(pid for pid in tree.look() if is_alive(pid) and pid in workers_seen(world))
        os.kill(victim[kill % len(victim)], signal.SIGKILL)
        started = time.monotonic()
        wait_for(
            lambda: sum(is_alive(pid) for pid in workers_seen(world)) >= 3,
            seconds=30,
            what="full capacity",
        )
        waits.append(time.monotonic() - started)
    wait_for(
        lambda: count(world, "status IN ('pending', 'processing')") == 0,
        seconds=60,
        what="the end of the drain",
    )
    assert set(world.statuses(processor)) == {"completed"}
    tree.process.terminate()
    assert tree.process.wait(GRACE_S + 9) == 0
    doubled = world.sql("SELECT count(*) FROM annotations")[0][0] - added
    world.check()
    promise(
        "F25",
        promise="When a worker process dies the others go on, and it is replaced within seconds",
        fault=f"kill -9 of one of three workers, {kills} times (the reference: 100), as soon as full"
        " capacity is back",
        target="full capacity within 10 s each time, every job done, nothing doubled",
        figure=f"slowest {max(waits):.1f} s, {added} jobs done, {doubled} annotations too many",
        passed=max(waits) <= 10 and doubled == 0,
    )
