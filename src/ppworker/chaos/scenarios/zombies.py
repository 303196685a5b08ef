"""Workers that stand still past their leases, and go on when others have their jobs (F3)."""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from ppworker.chaos import load, measure, programs
from ppworker.chaos.cluster import Cluster
from ppworker.chaos.load import Load
from ppworker.chaos.programs import LateError, Program, wait_for
from ppworker.chaos.scenario import Measured, Run, Scenario, add

LEASE_S = 2.0
_ZOMBIES = 100
_PROCESSES, _THREADS = 4, 2
_PATIENCE_S = 60.0
_SETTINGS: dict[str, Any] = {
    "PPWORKER_LEASE_S": str(LEASE_S),
    "PPWORKER_SWEEP_S": "0.5",
    "PPWORKER_POLL_S": "0.2",
    "PPWORKER_BATCH_TARGET_S": "0.5",
}
_COUNTER = "ppworker_stale_writes_rejected_total"


@dataclass(frozen=True, slots=True)
class _Variant:
    name: str
    at_once: int
    """Zombies of one round; the other processes take over."""
    batch_size: int
    seconds: float
    """Sleep of a job."""
    second_runs: bool
    """Whether the zombies go on while their jobs run for the second time, or when they ended."""


_VARIANTS = (
    _Variant("ended", at_once=3, batch_size=3, seconds=0.25, second_runs=False),
    _Variant("running", at_once=2, batch_size=1, seconds=3.0, second_runs=True),
)


@dataclass(slots=True)
class _Zombie:
    """A worker process that was stopped while it held jobs."""

    pid: int
    worker_id: UUID
    resumed_at: Any = None


@dataclass(slots=True)
class _Tally:
    zombies: Counter[str] = field(default_factory=Counter)
    """Workers that lost leases while they stood still, by variant."""
    in_time: Counter[str] = field(default_factory=Counter)
    """Those that went on when they were meant to: with a job of theirs running a second time, or
    with all of theirs over."""
    late: Counter[str] = field(default_factory=Counter)
    """Rounds in which the others' part was not done for all when the zombies went on."""
    stale: set[tuple[str, int]] = field(default_factory=set)
    """Leases (job, token) that others took while their holder stood still."""
    counted: float = 0.0
    broken: list[str] = field(default_factory=list)


def _once(run: Run) -> Measured:
    tally = _Tally()
    with run.cluster() as cluster:
        for variant in _VARIANTS:
            with run.phase(variant.name):
                _do(run, cluster, variant, tally, run.times(_ZOMBIES / len(_VARIANTS)))
        found = measure.totals(cluster)
        tally.broken += [*found.broken(), *cluster.check(), *_wrong_winners(cluster)]
    if tally.counted != len(tally.stale):
        tally.broken.append(
            f"the metric counted {tally.counted:.0f} of {len(tally.stale)} rejected writes"
        )
    return Measured(
        figure=f"{tally.zombies.total()} zombies, {tally.in_time['running']} of them went on while "
        f"a second attempt ran, {tally.in_time['ended']} when it was over; {len(tally.stale)} "
        "stale writes, each rejected and counted once",
        broken=tally.broken,
        missed=[
            f"{tally.in_time[name]} of {zombies} zombies of '{name}' went on when they were meant "
            "to, not half"
            for name, zombies in tally.zombies.items()
            if tally.in_time[name] < zombies / 2
        ],
        figures={
            **found.as_figures(),
            "zombies": dict(tally.zombies),
            "in_time": dict(tally.in_time),
            "late_rounds": dict(tally.late),
            "stale_writes": len(tally.stale),
            "counted": tally.counted,
        },
    )


def _do(run: Run, cluster: Cluster, variant: _Variant, tally: _Tally, zombies: int) -> None:
    """Rounds until so many zombies lost leases."""
    work = load.make(
        cluster, name=variant.name, batch_size=variant.batch_size,
        least_s=variant.seconds, most_s=variant.seconds, slow_share=0.0,
    )  # fmt: skip
    workers = cluster.start_workers(processes=_PROCESSES, threads=_THREADS, **_SETTINGS)
    stale: set[tuple[str, int]] = set()
    resumed: list[_Zombie] = []
    while tally.zombies[variant.name] < zombies:
        stopped = _stop_some(run, cluster, variant, work, workers)
        tally.late[variant.name] += not _wait_for_others(cluster, variant, stopped)
        for each in stopped:
            taken = _taken_from(cluster, each) - stale
            tally.zombies[variant.name] += bool(taken)
            tally.in_time[variant.name] += bool(taken) and _is_time(cluster, variant, each)
            stale |= taken
            each.resumed_at = cluster.one("SELECT clock_timestamp()")
            for pid in reversed(_family(each.pid)):
                workers.resume(pid)
        resumed += stopped
        tally.broken += _refusals(cluster, workers, stopped, stale)
    tally.broken += _idle_since(cluster, work, resumed)
    cluster.drain(seconds=_PATIENCE_S)
    tally.broken += _refusals(cluster, workers, resumed, stale)
    tally.stale |= stale
    tally.counted += workers.metric(_COUNTER, operation="complete")
    lost = [each.pid for each in resumed if each.pid not in workers.workers()]
    tally.broken += [f"process {pid} did not survive its stop" for pid in lost]
    workers.stop()


def _family(pid: int) -> list[int]:
    """A worker process and what it started, which would speak for it while it stands."""
    return [pid, *programs.descendants(pid)]


def _stop_some(
    run: Run, cluster: Cluster, variant: _Variant, work: Load, workers: Program
) -> list[_Zombie]:
    """Stop processes that hold jobs, at a moment like any other."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        if cluster.live_jobs() < _PROCESSES * _THREADS * variant.batch_size:
            work.add(_PROCESSES * _THREADS * variant.batch_size)
        time.sleep(run.random.uniform(0.05, 0.5))
        chosen = run.random.sample(workers.workers(), variant.at_once)
        stopped = []
        for pid in chosen:
            for each in _family(pid):
                workers.pause(each)
            zombie = _zombie(cluster, pid)
            if zombie is None:
                for each in _family(pid):
                    workers.resume(each)
            else:
                stopped.append(zombie)
        if stopped:
            return stopped
    raise LateError("no worker process held a job when it was stopped")


def _zombie(cluster: Cluster, pid: int) -> _Zombie | None:
    """The process as the register knows it, if it holds jobs now."""
    rows = cluster.sql(
        "SELECT w.id FROM workers w WHERE w.pid = :pid AND EXISTS (SELECT 1 "
        "FROM post_processor_jobs j WHERE j.status = 'processing' AND j.lease_owner = w.id)",
        pid=pid,
    )
    return _Zombie(pid, rows[0].id) if rows else None


def _wait_for_others(cluster: Cluster, variant: _Variant, stopped: list[_Zombie]) -> bool:
    """Twice the lease at least; then until second attempts run, or until they have ended.

    Returns whether they do, for all: a process that was stopped inside of a transaction keeps its
    rows, which nobody can take.
    """
    began = time.monotonic()

    def is_enough() -> bool:
        return time.monotonic() - began >= 2 * LEASE_S and all(
            _is_time(cluster, variant, each) for each in stopped
        )

    patience_s = 4 * LEASE_S + 6 * variant.seconds * variant.batch_size
    try:
        wait_for(is_enough, seconds=patience_s, every_s=0.1, what="the others' part")
    except LateError:
        return False
    return True


def _is_time(cluster: Cluster, variant: _Variant, zombie: _Zombie) -> bool:
    """Whether the zombie would go on at the moment that the variant is about."""
    return _runs_again(cluster, zombie) if variant.second_runs else _is_over(cluster, zombie)


def _is_over(cluster: Cluster, zombie: _Zombie) -> bool:
    """Whether it holds no job any more, and every job that was taken from it has ended."""
    return not cluster.one(
        "SELECT count(*) FROM post_processor_jobs j WHERE j.status IN ('pending', 'processing') "
        "AND (j.lease_owner = :id OR EXISTS (SELECT 1 FROM job_attempts a WHERE a.job_id = j.id "
        "AND a.worker_id = :id AND a.cause = 'rescued'))",
        id=zombie.worker_id,
    )


def _runs_again(cluster: Cluster, zombie: _Zombie) -> bool:
    """Whether a job that was taken from it is being worked on by another."""
    return bool(
        cluster.one(
            "SELECT count(*) FROM job_attempts a JOIN post_processor_jobs j ON j.id = a.job_id "
            "WHERE a.worker_id = :id AND a.cause = 'rescued' AND j.status = 'processing' "
            "AND j.lease_token > a.lease_token AND j.lease_owner <> :id",
            id=zombie.worker_id,
        )
    )


def _taken_from(cluster: Cluster, zombie: _Zombie) -> set[tuple[str, int]]:
    """Leases that it lost."""
    rows = cluster.sql(
        "SELECT job_id, lease_token FROM job_attempts WHERE worker_id = :id AND cause = 'rescued'",
        id=zombie.worker_id,
    )
    return {(str(row.job_id), row.lease_token) for row in rows}


def _refusals(
    cluster: Cluster, workers: Program, zombies: list[_Zombie], stale: set[tuple[str, int]]
) -> list[str]:
    """What is wrong with the log: each stale lease must be refused once, and no other.

    A zombie may lose a second batch in the moment before it goes on: ``stale`` gets such leases.
    """

    def all_refused() -> bool:
        for each in zombies:
            stale.update(_taken_from(cluster, each))
        return stale <= logged().keys()

    def logged() -> Counter[tuple[str, int]]:
        return Counter(
            (str(line["job"]), int(line["lease_token"]))
            for line in _lines(workers)
            if line.get("event") == "job.lease_refused"
        )

    try:
        wait_for(all_refused, seconds=_PATIENCE_S, every_s=0.2, what="refusals")
    except LateError:
        return [f"{len(stale - logged().keys())} stale writes were not refused"]
    twice = [lease for lease, n in logged().items() if n > 1]
    others = logged().keys() - stale
    return [f"{len(twice)} stale writes were counted twice"] * bool(twice) + [
        f"{len(others)} leases were refused that nobody had taken"
    ] * bool(others)


def _lines(program: Program) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in program.log.read_text().splitlines()
        if line.startswith("{") and "lease_refused" in line
    ]


def _idle_since(cluster: Cluster, work: Load, resumed: list[_Zombie]) -> list[str]:
    """Zombies that did no work any more."""

    def idle() -> list[_Zombie]:
        return [
            each
            for each in resumed
            if not cluster.one(
                "SELECT count(*) FROM job_attempts WHERE worker_id = :id AND cause = 'finished' "
                "AND started_at > :at",
                id=each.worker_id,
                at=each.resumed_at,
            )
        ]

    def has_worked() -> bool:
        if not cluster.live_jobs():
            work.add(_PROCESSES * _THREADS)
        return not idle()

    try:
        wait_for(has_worked, seconds=_PATIENCE_S, every_s=0.2, what="work of all zombies")
    except LateError:
        return [f"{len(idle())} zombies worked no more"]
    return []


def _wrong_winners(cluster: Cluster) -> list[str]:
    """Kept answers of another process than the one whose attempt was accepted."""
    n = cluster.one(
        "SELECT count(*) FROM post_processor_jobs j JOIN job_results r ON r.job_id = j.id "
        "JOIN job_attempts a ON a.job_id = j.id AND a.lease_token = j.lease_token "
        "JOIN workers w ON w.id = a.worker_id WHERE (r.raw->>'pid')::int <> w.pid"
    )
    return [f"{n} stale writes were accepted"] if n else []


add(
    Scenario(
        name="zombies",
        faults=["F3"],
        promise="A worker that stood still so long that others took its jobs writes nothing of "
        "them when it goes on; its late answers are dropped and counted, and it works on.",
        fault=f"SIGSTOP to worker processes for twice the lease ({LEASE_S:g} s), then SIGCONT; "
        "half of them while the second attempt still runs",
        target=f"{_ZOMBIES} zombies (the reference says 500 and 500): 0 stale writes accepted, "
        "each rejected and counted exactly once, each zombie works on; at least half of each kind "
        "go on when they are meant to",
        once=_once,
        quick_scale=0.06,
    )
)
