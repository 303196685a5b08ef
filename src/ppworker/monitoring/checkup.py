"""Turns what was found on a system into findings: what is wrong, why it matters, what helps.

Pure: the looks themselves are in ``store.checkup``, ``worker.checkup`` and ``MachineFacts.here``.
"""

import os
import resource
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ppworker.settings import Settings
from ppworker.store.checkup import ServerFacts

OLD_TRANSACTION_S = 300.0
"""Age in seconds from which a transaction is called old."""
_OLDEST_POSTGRESQL = 15
_MOST_SKEW_S = 2.0
_SLOW_S = 0.02
_LEAST_FREE = 0.05
_LEAST_FREE_BYTES = 1024**3
_MOST_DEAD = 0.5
_MANY_DEAD = 100_000
_OLD_XIDS = 1_500_000_000
_LEAST_FILES = 1024
_SHORTEST_TIMEOUT_MS = 30_000


class State(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """It works now, and will not under load or after a fault."""
    PROBLEM = "problem"
    """It does not work, or loses a promise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    check: str
    state: State
    said: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What matters of this machine."""

    free_bytes: int
    total_bytes: int
    is_writable: bool
    open_files: int

    @classmethod
    def here(cls, data_dir: Path) -> "MachineFacts":
        """Look at the machine this runs on; the folder need not exist yet."""
        there = data_dir
        while not there.exists() and there != there.parent:
            there = there.parent
        usage = shutil.disk_usage(there)
        return cls(
            free_bytes=usage.free,
            total_bytes=usage.total,
            is_writable=os.access(there, os.W_OK),
            open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisFacts:
    """One look at redis.

    Attributes:
        error: why it did not answer; empty when it did, and all else is then told.
        version: such as ``7.2.4``; empty where it may not be asked.
        policy: what it throws away when its memory is full; None where it may not be asked.
        max_bytes: its memory's limit; 0 for none.
        used_bytes: of it.
        is_persistent: whether a restart keeps what it holds; None where it may not be asked.
        ahead_s: how much its clock is ahead of ours, in seconds.
        round_trip_s: of one command.
        refusal: why this user can queue nothing there; empty when it can.
    """

    error: str = ""
    version: str = ""
    policy: str | None = None
    max_bytes: int = 0
    used_bytes: int = 0
    is_persistent: bool | None = None
    ahead_s: float = 0.0
    round_trip_s: float = 0.0
    refusal: str = ""


def of_settings(settings: Settings) -> Iterator[Finding]:
    """Settings that are allowed one by one and go badly together."""
    if settings.sweep_s > settings.lease_s:
        yield Finding(
            check="sweep and lease",
            state=State.WARNING,
            said=f"sweeps come every {settings.sweep_s:g} s, leases end after "
            f"{settings.lease_s:g} s: a dead worker's jobs wait for the sweep",
            remedy="set PPWORKER_SWEEP_S to a third of PPWORKER_LEASE_S or less",
        )
    if settings.database_url is not None and settings.redis_url is None:
        yield Finding(
            check="redis",
            state=State.WARNING,
            said=f"none is configured: jobs are found by polling every {settings.poll_s:g} s, and "
            "no messages are taken",
            remedy="set PPWORKER_REDIS_URL",
        )
    if settings.crash_at is not None:
        yield _problem(
            "crash point",
            f"processes kill themselves at '{settings.crash_at}': jobs lose attempts",
            "unset PPWORKER_CRASH_AT, which is for tests of ppworker itself",
        )


def of_server(facts: ServerFacts, settings: Settings) -> Iterator[Finding]:
    """What PostgreSQL's answers mean."""
    yield from _of_access(facts)
    yield from _of_connections(facts, settings)
    yield from _of_old_rows(facts)
    yield from _of_durability(facts)
    yield _skew("clock of PostgreSQL", facts.ahead_s)
    slow = facts.round_trip_s > _SLOW_S
    yield Finding(
        check="way to PostgreSQL",
        state=State.WARNING if slow else State.OK,
        said=f"a statement takes {facts.round_trip_s * 1000:.1f} ms"
        + (f", through {facts.through}" if facts.through else ""),
        remedy="move workers nearer to it: each batch takes about 25 statements" if slow else "",
    )


def _of_access(facts: ServerFacts) -> Iterator[Finding]:
    version = int(facts.settings["server_version_num"]) // 10_000
    if version < _OLDEST_POSTGRESQL:
        yield _problem("version", f"PostgreSQL {version} is too old", "use 15 or newer")
    if facts.settings["server_encoding"] != "UTF8":
        yield _problem(
            "encoding",
            f"the database is in {facts.settings['server_encoding']}",
            "create it with ENCODING 'UTF8'",
        )
    if facts.is_standby or facts.settings["default_transaction_read_only"] == "on":
        yield _problem(
            "writing",
            "the server is a standby, or set to read only",
            "name the primary, or all hosts, in PPWORKER_DATABASE_URL",
        )
    isolation = facts.settings["default_transaction_isolation"]
    if isolation != "read committed":
        yield _problem(
            "isolation",
            f"transactions are {isolation} by default; exactness rests on read committed",
            "ALTER ROLE ... RESET default_transaction_isolation",
        )
    if facts.untold:
        yield _warning(
            "rights",
            f"some checks are left out: {'; '.join(facts.untold)}",
            "GRANT SELECT there to this role, or examine the server as another one",
        )
    for name in ("statement_timeout", "lock_timeout"):
        found = _milliseconds(facts.settings[name])
        if 0 < found < _SHORTEST_TIMEOUT_MS:
            yield Finding(
                check=name,
                state=State.WARNING,
                said=f"{name} is {facts.settings[name]} for this role: long steps end early",
                remedy=f"ALTER ROLE ... RESET {name}; ppworker bounds its own statements",
            )


def _of_connections(facts: ServerFacts, settings: Settings) -> Iterator[Finding]:
    most = int(facts.settings["max_connections"])
    most -= int(facts.settings["superuser_reserved_connections"])
    most = most if facts.limit is None else min(most, facts.limit)
    wanted = settings.processes * settings.connections + settings.api_threads + 2
    if facts.through:  # what stands between has a limit of its own
        yield Finding(
            check="connections",
            state=State.OK,
            said=f"{wanted} wanted by {settings.processes} worker processes and one API, "
            f"through {facts.through}",
        )
        return
    is_short = wanted > most
    yield Finding(
        check="connections",
        state=State.WARNING if is_short else State.OK,
        said=f"{wanted} wanted by {settings.processes} worker processes and one API of these "
        f"settings, {most} allowed, {facts.connections} in use now",
        remedy="raise max_connections (or the CONNECTION LIMIT of role or database), lower "
        "PPWORKER_POOL_SIZE, or put PgBouncer between"
        if is_short
        else "",
    )


def _of_old_rows(facts: ServerFacts) -> Iterator[Finding]:
    for each in facts.old_transactions:
        yield Finding(
            check="old transaction",
            state=State.WARNING,
            said=f"process {each.pid} ({each.application or 'no name'}) is {each.state} in a "
            f"transaction for {each.age_s:.0f} s: no dead row can be removed, claims get slower",
            remedy=f"end it, or SELECT pg_terminate_backend({each.pid})",
        )
    for name in facts.held_slots:
        yield Finding(
            check="replication slot",
            state=State.WARNING,
            said=f"slot '{name}' is read by nobody and holds WAL or old rows back",
            remedy=f"SELECT pg_drop_replication_slot('{name}') if its reader will not come back",
        )
    if facts.prepared:
        yield _warning(
            "prepared transactions",
            f"{facts.prepared} wait for their end and hold locks and old rows",
            "COMMIT PREPARED or ROLLBACK PREPARED them (pg_prepared_xacts)",
        )
    off = [name for name in ("autovacuum", "track_counts") if facts.settings[name] != "on"]
    if off or facts.unvacuumed:
        where = f"for {', '.join(facts.unvacuumed)}" if not off else f"({' and '.join(off)} off)"
        yield _problem(
            "autovacuum",
            f"is turned off {where}: the job table grows without end",
            "turn it on: ALTER SYSTEM SET, or ALTER TABLE ... RESET (autovacuum_enabled)",
        )
    if facts.dead_rows > max(_MANY_DEAD, _MOST_DEAD * facts.live_rows):
        yield _warning(
            "dead rows",
            f"the job table has {facts.dead_rows} dead rows beside {facts.live_rows}",
            "VACUUM post_processor_jobs; then look what held them back",
        )
    if facts.xid_age > _OLD_XIDS:
        yield _problem(
            "wraparound",
            f"the database is {facts.xid_age} transactions old; PostgreSQL stops near 2 billion",
            "VACUUM FREEZE its oldest tables",
        )


def _of_durability(facts: ServerFacts) -> Iterator[Finding]:
    for name in ("fsync", "full_page_writes"):
        if facts.settings[name] != "on":
            yield _problem(
                name, f"{name} is off: a crash of the machine corrupts the data", "turn it on"
            )
    if facts.settings["synchronous_commit"] == "off":
        yield _warning(
            "synchronous_commit",
            "is off: a crash of PostgreSQL loses the last moment's commits, uploads too",
            "turn it on for this role",
        )


def of_redis(facts: RedisFacts) -> Iterator[Finding]:
    """What redis' answers mean."""
    if facts.error:
        yield Finding(
            check="redis",
            state=State.WARNING,
            said=f"does not answer: {facts.error}; jobs are found by polling, messages wait",
            remedy="start it, or mend PPWORKER_REDIS_URL",
        )
        return
    yield Finding(
        check="redis",
        state=State.OK,
        said=f"{facts.version or 'it'} answers in {facts.round_trip_s * 1000:.1f} ms, "
        f"{facts.used_bytes // 2**20} MiB used",
    )
    if facts.refusal:
        yield _warning(
            "redis rights",
            f"{facts.refusal}; jobs are found by polling, messages wait",
            "name the primary, and let this user do all on keys ppworker:*, scripts too",
        )
    if facts.version and tuple(
        int(part) for part in facts.version.split(".")[:2] if part.isdigit()
    ) < (6, 2):
        yield _problem("redis version", f"{facts.version} is too old", "use 6.2 or newer")
    if facts.policy not in {None, "noeviction"}:
        state = State.PROBLEM if facts.max_bytes else State.WARNING
        yield Finding(
            check="redis eviction",
            state=state,
            said=f"maxmemory-policy is {facts.policy}: when its memory is full, redis throws "
            "messages away that nobody has read",
            remedy="CONFIG SET maxmemory-policy noeviction, in redis.conf too",
        )
    if facts.max_bytes and facts.used_bytes > 0.9 * facts.max_bytes:
        yield _warning(
            "redis memory",
            f"{facts.used_bytes // 2**20} of {facts.max_bytes // 2**20} MiB are used",
            "raise maxmemory, or look what fills it",
        )
    if facts.is_persistent is False:
        yield _warning(
            "redis persistence",
            "neither appendonly nor save is on: a restart loses messages that wait",
            "CONFIG SET appendonly yes, in redis.conf too; hints need none of it",
        )
    yield _skew("clock of redis", facts.ahead_s)


def of_machine(facts: MachineFacts, data_dir: Path) -> Iterator[Finding]:
    """What this machine's figures mean."""
    free = facts.free_bytes / max(facts.total_bytes, 1)
    is_short = free < _LEAST_FREE or facts.free_bytes < _LEAST_FREE_BYTES
    yield Finding(
        check="disk",
        state=State.PROBLEM if is_short else State.OK,
        said=f"{facts.free_bytes / 2**30:.1f} GiB ({free:.0%}) free where {data_dir} lies",
        remedy="make room: uploads are refused, and an embedded PostgreSQL stops, on a full disk"
        if is_short
        else "",
    )
    if not facts.is_writable:
        yield _problem("data folder", f"{data_dir} cannot be written", "give it to this user")
    if 0 <= facts.open_files < _LEAST_FILES:
        yield Finding(
            check="open files",
            state=State.WARNING,
            said=f"a process may open {facts.open_files} files and connections",
            remedy=f"raise `ulimit -n` to {_LEAST_FILES} or more",
        )


def of_runners(wanted: Collection[tuple[str, str]], known: Collection[str]) -> Iterator[Finding]:
    """Post-processors, as (name, runner), whose runner this machine does not have."""
    for name, runner in sorted(wanted):
        if runner not in known and ":" not in runner:
            yield Finding(
                check="runner",
                state=State.WARNING,
                said=f"post-processor '{name}' wants the runner '{runner}', which is not here: "
                "its jobs stay pending for workers that have it",
                remedy="install it here, or run a worker where it is",
            )


def of_workers(*, live: int, lost: int, versions: Sequence[str], mine: str) -> Iterator[Finding]:
    """What the register of workers means."""
    state = State.OK if live else State.WARNING
    yield Finding(
        check="workers",
        state=state,
        said=f"{live} worker processes live, {lost} lost",
        remedy="" if live else "run `ppworker worker`, or `ppworker up`",
    )
    others = sorted({each for each in versions if each != mine})
    if others:
        yield Finding(
            check="versions",
            state=State.WARNING,
            said=f"workers of version {', '.join(others)} run beside {mine} here",
            remedy="finish the upgrade: restart them",
        )


def _skew(check: str, ahead_s: float) -> Finding:
    is_off = abs(ahead_s) > _MOST_SKEW_S
    return Finding(
        check=check,
        state=State.WARNING if is_off else State.OK,
        said=f"{abs(ahead_s):.3f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's",
        remedy="run NTP here and there; leases go by PostgreSQL's clock, logs and messages do not"
        if is_off
        else "",
    )


def _warning(check: str, said: str, remedy: str) -> Finding:
    return Finding(check=check, state=State.WARNING, said=said, remedy=remedy)


def _problem(check: str, said: str, remedy: str) -> Finding:
    return Finding(check=check, state=State.PROBLEM, said=said, remedy=remedy)


def _milliseconds(shown: str) -> float:
    """A duration as PostgreSQL shows it, such as ``20s``."""
    for unit, factor in (("ms", 1), ("min", 60_000), ("s", 1000), ("h", 3_600_000), ("d", 86.4e6)):
        if shown.endswith(unit):
            return float(shown.removesuffix(unit)) * factor
    return float(shown)
