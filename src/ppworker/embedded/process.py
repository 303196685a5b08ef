"""Operating-system processes: as whom a server runs, how it is started, how it is recognised.

A pid alone proves nothing, for pids are used again. A process counts as a server of a folder when
it works in that folder (each server does) and carries the server's program name.
"""

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ppworker.embedded.folder import Folder
from ppworker.errors import ConfigurationError

PROC = Path("/proc")
SEES_PROCESSES = (PROC / "self" / "cwd").exists()
POLL_S = 0.01

# `&` gives the server to init, so it neither dies with its starter nor becomes its zombie.
_DETACH = '"$@" >&2 & echo $!'
_SERVICE_USERS = ("postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Account:
    """The user a server runs as."""

    uid: int
    gid: int

    @property
    def name(self) -> str:
        """The user's name, or the id where the system knows no name."""
        return user_name(self.uid) or f"id {self.uid}"

    @property
    def is_other(self) -> bool:
        """Whether starting a process as this user means giving up our own rights."""
        return self.uid != os.geteuid()


def user_name(uid: int) -> str | None:
    """The name of a user id, or None."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def current_account() -> Account:
    """The user this process runs as."""
    return Account(os.geteuid(), os.getegid())


def owner_account(path: Path) -> Account:
    """The user a path belongs to."""
    facts = path.stat()
    return Account(facts.st_uid, facts.st_gid)


def unprivileged_account(folder: Folder, data: Path) -> Account:
    """Choose whom a server that refuses root runs as; the same choice at every start.

    The owner of the data that are there, else the owner of the data folder, else a service user.

    Raises:
        ConfigurationError: the system has no such user.

    """
    if os.geteuid() != 0:
        return current_account()
    if data.exists() and (owner := owner_account(data)).uid != 0:
        return owner
    if folder.uid != 0 and user_name(folder.uid) is not None:
        return Account(folder.uid, folder.gid)
    for name in _SERVICE_USERS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise ConfigurationError(
        "PostgreSQL refuses to run as root and there is no user `postgres` or `nobody` to run it "
        "as; run as an ordinary user or set PPWORKER_DATABASE_URL"
    )


def can_reach(account: Account, path: Path) -> bool:
    """Whether the user may walk to a path and read (a file with an x bit: also execute) it."""
    path = path.resolve()
    return all(_has(account, parent, 0o1) for parent in path.parents) and _has(
        account, path, 0o5 if path.is_dir() or path.stat().st_mode & 0o111 else 0o4
    )


def _has(account: Account, path: Path, bits: int) -> bool:
    facts = path.stat()
    if account.uid == 0:
        return True
    if facts.st_uid == account.uid:
        shift = 6
    elif facts.st_gid == account.gid:
        shift = 3
    else:
        shift = 0
    return facts.st_mode >> shift & bits == bits


def place_argument(account: Account, data: Path) -> str:
    """How a server that starts inside ``data`` should name that folder.

    A user who may not walk there by name (a clone below root's home of mode 0700) still stands in
    it: we enter the folder before we give up our rights, and the kernel asks no further.
    """
    if account.is_other and SEES_PROCESSES and not can_reach(account, data):
        return "/proc/self/cwd"
    return str(data)


def run(argv: Sequence[str], *, cwd: Path, log: int, account: Account) -> int:
    """Run a program to its end as that user, in its own session, and return its exit code."""
    return _popen(argv, cwd=cwd, log=log, account=account, stdout=log).returncode


def spawn(argv: Sequence[str], *, cwd: Path, log: int, account: Account) -> int:
    """Start a server that outlives us, away from our terminal, and return its pid."""
    shell = ["/bin/sh", "-c", _DETACH, "sh", *argv]
    done = _popen(shell, cwd=cwd, log=log, account=account, stdout=subprocess.PIPE)
    return int(done.stdout)


def _popen(
    argv: Sequence[str], *, cwd: Path, log: int, account: Account, stdout: int
) -> subprocess.CompletedProcess[bytes]:
    switch = account.is_other
    try:
        return subprocess.run(  # noqa: S603  our own command line, no shell text from outside
            argv,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=log,
            # Nothing of the caller's PG*, LC_* or TZ variables may colour the servers.
            env={"PATH": os.defpath, "LC_ALL": "C"},
            start_new_session=True,
            umask=0o077,
            user=account.uid if switch else None,
            group=account.gid if switch else None,
            extra_groups=[] if switch else None,
            check=False,
        )
    except OSError as error:
        as_whom = f" as user {account.name}" if switch else ""
        raise ConfigurationError(
            f"cannot run {argv[0]}{as_whom} ({error.strerror}); run as an ordinary user, or use "
            "servers of your own: set PPWORKER_DATABASE_URL and PPWORKER_REDIS_URL"
        ) from error


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    if SEES_PROCESSES:
        try:
            stat = (PROC / str(pid) / "stat").read_bytes()
        except OSError:
            return False
        return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def pid_in(path: Path) -> int | None:
    """The pid in the first line of a file, or None."""
    try:
        return int(path.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def processes_in(data: Path, programs: Iterable[str], pid_file: Path) -> set[int]:
    """Pids of the programs' processes that work in that folder: a server and its children.

    Without /proc only the process named by ``pid_file`` can be judged, by its program name.
    """
    names = set(programs)
    if not SEES_PROCESSES:
        pid = pid_in(pid_file)
        return {pid} if pid is not None and is_alive(pid) and _program(pid) in names else set()
    try:
        place = data.stat()
    except OSError:
        return set()
    found = set()
    for entry in PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        # Foreign users' processes cannot be looked into, and vanish while we look.
        with suppress(OSError):
            if os.path.samestat((entry / "cwd").stat(), place):
                found.add(int(entry.name))
    return {pid for pid in found if _program(pid) in names}


def _program(pid: int) -> str:
    if SEES_PROCESSES:
        try:
            return (PROC / str(pid) / "comm").read_text().rstrip("\n")
        except OSError:
            return ""
    command = ["/bin/ps", "-o", "comm=", "-p", str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return Path(done.stdout.strip()).name


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal processes; those that are gone already are no error."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def pause(started: float) -> None:
    """Sleep a hundredth of a second at first, a second once the wait is long.

    PostgreSQL logs each question it is asked while it recovers.
    """
    waited_s = time.monotonic() - started
    time.sleep(min(1.0, max(POLL_S, waited_s / 10)))
