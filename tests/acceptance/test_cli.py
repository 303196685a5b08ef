"""The command line as a user meets it: real processes on the embedded default."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

PROGRAM = [sys.executable, "-m", "ppworker"]
ADDRESS = "500 Oak Avenue, Portland, OR 97201"


def environment(data_dir, **more):
    own = {k: v for k, v in os.environ.items() if not k.startswith("PPWORKER_")}
    return own | {"PPWORKER_DATA_DIR": str(data_dir)} | more


def run(data_dir, *arguments, **more):
    return subprocess.run(
        [*PROGRAM, *(str(each) for each in arguments)],
        env=environment(data_dir, **more),
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        cwd="/",
        check=False,
    )


def postmaster(data_dir):
    """Pid of the embedded PostgreSQL, None when it does not run."""
    try:
        pid = int((Path(data_dir) / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, 0)
    except (OSError, ValueError, IndexError):
        return None
    return pid


class Up:
    """``ppworker up --json`` on a data folder."""

    def __init__(self, data_dir, **more):
        self.data_dir = data_dir
        self.log = (Path(data_dir).parent / f"{Path(data_dir).name}.log").open("w")
        self.process = subprocess.Popen(
            [*PROGRAM, "up", "--json", "--processes", "1", "--threads", "2"],
            env=environment(data_dir, **more),
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd="/",
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self.ready = json.loads(self.output.readline())

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        self.output.close()
        self.log.close()
        return code


def eventually(check, within_s=30.0):
    deadline = time.monotonic() + within_s
    while not (found := check()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    up = Up(tmp_path_factory.mktemp("cli") / "data")
    yield up
    assert up.stop() == 0


@pytest.fixture
def cli(home):
    def ask(*arguments, code=0, **more):
        done = run(home.data_dir, *arguments, "--json", **more)
        assert done.returncode == code, done.stderr + done.stdout
        return json.loads(done.stdout) if done.stdout else None

    return ask


@pytest.fixture(scope="module")
def dataset(home):
    """A dataset with a post-processor that reads text."""
    name = f"d{uuid4().hex[:8]}"
    assert run(home.data_dir, "datasets", "create", name).returncode == 0
    made = run(home.data_dir, "processors", "create", name, "addr", "--runner", "usaddress")
    assert made.returncode == 0, made.stderr
    return name


def test_the_ready_line_says_where_everything_is(home):
    assert home.ready["event"] == "ready"
    assert home.ready["key"].startswith("ppw_")
    assert run(home.data_dir, "health", "ready", "--url", home.ready["address"]).returncode == 0
    assert home.ready["data_dir"] == str(home.data_dir)
    with psycopg.connect(home.ready["database"]) as connection:
        assert connection.execute("SELECT pid FROM workers").fetchall()


def test_from_files_to_stats(cli, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    for n in range(3):
        (files / f"{n}.txt").write_text(f"{n + 1}{ADDRESS}")
    (files / ".hidden").write_text("x")
    made = cli("datasets", "create", "flow", "--split", "train", "--split", "rest")
    assert [split["name"] for split in made["splits"]] == ["train", "rest"]
    options = ("--runner", "usaddress", "--map", "StateName=state", "--map", "ZipCode=",
               "--threshold", "0.5", "--config", "max_chars=1000", "--order", "1")  # fmt: skip
    processor = cli("processors", "create", "flow", "addr", *options)
    assert processor["label_mapping"] == {"StateName": "state", "ZipCode": None}
    assert processor["runner_config"] == {"max_chars": 1000}
    added = cli("items", "add", files, "--text", ADDRESS, "--split", "flow/train", "--key", "k")
    assert (len(added["items"]), added["jobs"], added["repeated"]) == (4, 4, False)
    assert added["skipped"] == [{"path": str(files / ".hidden"), "reason": "hidden"}]
    assert cli("jobs", "wait", "--dataset", "flow", "--timeout", "60")["is_over"]

    jobs = cli("jobs", "list", "flow", "--status", "completed")
    assert {job["item"] for job in jobs} == {"0.txt", "1.txt", "2.txt", "text"}
    job = cli("jobs", "show", jobs[0]["id"])
    assert [attempt["cause"] for attempt in job["history"]] == ["finished"]
    assert job["raw"]["predictions"]
    assert job["dropped"] == {"mapped_to_nothing": 1}
    item = cli("items", "show", jobs[0]["item_id"])
    assert "state" in {each["label"] for each in item["annotations"]}
    assert {each["source"] for each in item["annotations"]} == {"model"}
    listed = cli("items", "list", "flow/train", "--limit", "2")
    assert len(listed) == 2

    again = cli("items", "add", files, "--text", ADDRESS, "--split", "flow/train", "--key", "k")
    assert again["repeated"]
    assert again["items"] == added["items"]
    stats = cli("stats", "show", "flow/train")
    assert stats["items"] == 4
    assert stats["annotations"] == sum(row["annotations"] for row in stats["labels"])
    assert cli("stats", "verify", "flow/train")["differences"] == []
    assert cli("verify") == []


def test_a_drift_is_found_and_set_right(cli, home, dataset):
    cli("items", "add", "--text", ADDRESS, "--split", f"{dataset}/valid")
    cli("jobs", "wait", "--dataset", dataset, "--timeout", "60")
    cli("sweep")
    with psycopg.connect(home.ready["database"]) as connection:
        connection.execute(
            "UPDATE label_stats SET item_count = item_count + 1 WHERE bucket = 'total' AND "
            "split_id = (SELECT s.id FROM dataset_splits s JOIN dataset_versions v "
            "ON v.id = s.version_id JOIN datasets d ON d.id = v.dataset_id "
            "WHERE d.name = %s AND s.name = 'valid')",
            [dataset],
        )
    found = cli("stats", "verify", f"{dataset}/valid", code=1)
    assert [row["item_count"] for row in found["differences"]] == [-1]
    assert cli("stats", "rebuild", f"{dataset}/valid")["changed"] == 1
    assert cli("stats", "verify")["differences"] == []


def test_people_pause_cancel_retry_and_backfill(cli, dataset):
    processor = f"{dataset}/held"
    cli("processors", "create", dataset, "held", "--runner", "usaddress", "--split", "test")
    assert cli("processors", "pause", processor)["paused"]
    cli("items", "add", "--text", "1 " + ADDRESS, "--split", f"{dataset}/test")
    job = cli("jobs", "list", dataset, "--processor", processor)[0]
    assert cli("jobs", "wait", "--dataset", dataset, "--timeout", "0", code=1)["pending"] >= 1
    assert cli("status")["held"] >= 1
    assert cli("jobs", "cancel", job["id"])["cancelled"] == [job["id"]]
    assert "only live jobs" in cli("jobs", "cancel", job["id"], code=2)["refused"][0]
    status = {each["name"]: each for each in cli("status")["post_processors"]}
    assert status["held"]["reasons"] == {"cancelled": 1}
    assert cli("jobs", "retry", "--failed", "--processor", processor)["retried"] == 1
    cli("processors", "resume", processor)
    cli("processors", "create", dataset, "late", "--runner", "usaddress", "--split", "test")
    assert cli("processors", "backfill", f"{dataset}/late", "--split", "test")["planned"] == 1
    assert cli("processors", "backfill", f"{dataset}/late")["planned"] == 0
    cli("jobs", "wait", "--dataset", dataset, "--timeout", "60")
    assert cli("jobs", "show", job["id"])["status"] == "completed"


def test_a_post_processor_is_tried_without_writing(cli, home, dataset, tmp_path):
    trial = cli("processors", "check", f"{dataset}/addr")
    assert {each["label"] for each in trial["predictions"]} >= {"StateName", "ZipCode"}
    assert trial["error"] is None
    assert trial["seconds"] > 0
    assert cli("stats", "show", f"{dataset}/train")["annotations"] == 0
    (tmp_path / "x.bin").write_bytes(bytes(100))
    done = run(home.data_dir, "processors", "check", f"{dataset}/addr", tmp_path / "x.bin")
    assert done.returncode == 2
    assert "reads text" in done.stderr


def png(width, height):
    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        chunk(b"IDAT", zlib.compress(bytes(10_000))),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_hostile_files_become_items_whose_jobs_end_and_the_worker_lives(cli, home, tmp_path):
    (tmp_path / "huge.png").write_bytes(png(100_000, 100_000))
    (tmp_path / "nul.dat").write_bytes(bytes(1000))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "[red]\x1b[31m.txt").write_text("1 " + ADDRESS)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        for n in range(10):
            bomb.writestr(f"{n}.txt", bytes(1_000_000))
    cli("datasets", "create", "hostile")
    cli("processors", "create", "hostile", "kind", "--runner", "magika")
    cli("processors", "create", "hostile", "read", "--runner", "rapidocr")
    workers = {each["pid"] for each in cli("status")["workers"]}
    assert len(cli("items", "add", tmp_path, "--split", "hostile/train")["items"]) == 5
    assert cli("jobs", "wait", "--dataset", "hostile", "--timeout", "90")["is_over"]
    ended = {
        (job["post_processor"], job["item"]): (job["status"], job["reason"], job["error"])
        for job in cli("jobs", "list", "hostile")
    }
    assert ended["kind", "huge.png"][0] == "completed"
    assert ended["kind", "bomb.zip"][0] == "completed"
    assert ended["kind", "empty"][:2] == ("failed", "unreadable_input")
    status, reason, error = ended["read", "huge.png"]
    assert (status, reason) == ("failed", "too_large")
    assert error
    assert workers == {each["pid"] for each in cli("status")["workers"]}
    shown = run(home.data_dir, "items", "list", "hostile/train").stdout
    assert "\x1b" not in shown
    assert "[red]" in shown


def wrong_inputs(folder):
    """Arguments of each mistake, and a word of the one line that must answer it."""
    missing = str(uuid4())
    add = ("items", "add", "--split", "good/train")
    create = ("processors", "create", "good", "p")
    return {
        "unknown dataset": (("labels", "list", "nope"), "dataset: no dataset 'nope'"),
        "malformed job": (("jobs", "show", "abc"), "is no id"),
        "missing file": ((*add, folder / "ok.txt", folder / "nope.txt"), "nope.txt' does not"),
        "parts above": ((*add, folder / "ok.txt", f"{folder}/../x"), "absolute path"),
        "device": ((*add, folder / "ok.txt", "/dev/zero"), "PATH: '/dev/zero' is a device"),
        "large text": ((*add, folder / "ok.txt", folder / "large.txt"), "MAX_TEXT_BYTES"),
        "not UTF-8": ((*add, os.fsdecode(b"\xff\xfe")), "not UTF-8"),
        "same name": (("datasets", "create", "good"), "name: a dataset named 'good' exists"),
        "processor's split": ((*create, "--runner", "magika", "--split", "x"), "has no split 'x'"),
        "mapped id": ((*create, "--runner", "magika", "--map", f"a={missing}"), "has no label"),
        "NUL in an option": (
            (*create, "--runner", "usaddress", "--config", r'model_path="a\u0000"'),
            "--config: ",
        ),
    }  # fmt: skip


def test_every_mistake_is_answered_by_one_line(cli, home, tmp_path):
    (tmp_path / "ok.txt").write_text("fine")
    (tmp_path / "large.txt").write_text("x" * 10_000_000)
    cli("datasets", "create", "good")
    cases = wrong_inputs(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        answers = dict(
            zip(
                cases,
                pool.map(lambda case: run(home.data_dir, *case[0]), cases.values()),
                strict=True,
            )
        )
    wrong = {
        name: (done.returncode, done.stdout, done.stderr)
        for name, done in answers.items()
        if done.returncode != 2
        or done.stdout
        or done.stderr.count("\n") != 1
        or cases[name][1] not in done.stderr
    }
    assert not wrong
    assert cli("stats", "show", "good/train")["items"] == 0
    assert cli("processors", "list", "good") == []


def test_a_database_that_is_away_fails_without_its_password(tmp_path):
    url = "postgresql://somebody:hunter2secret@localhost:1/db"
    for command in (("datasets", "list"), ("up",)):
        done = run(tmp_path / "data", *command, PPWORKER_DATABASE_URL=url)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "hunter2secret" not in done.stderr + done.stdout
    assert not (tmp_path / "data" / "postgres").exists()


def test_a_malformed_setting_is_named_without_its_value(tmp_path):
    for url in ("postgresql://somebody:hunter2secret/db", "mysql://u:hunter2secret@h/d"):
        done = run(tmp_path / "data", "datasets", "list", PPWORKER_DATABASE_URL=url)
        assert done.returncode == 2
        assert done.stderr.startswith("ppworker: PPWORKER_DATABASE_URL: ")
        assert "hunter2secret" not in done.stderr
    done = run(tmp_path / "data", "datasets", "list", PPWORKER_LEASE_S="soon")
    assert done.returncode == 2
    assert done.stderr.startswith("ppworker: PPWORKER_LEASE_S: ")


def test_a_configured_database_is_migrated_only_when_asked(home, tmp_path):
    name = f"cli_{uuid4().hex[:8]}"
    with psycopg.connect(home.ready["database"], autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = home.ready["database"].replace("/ppworker?", f"/{name}?")

    def ask(*arguments):
        return run(tmp_path / "data", *arguments, PPWORKER_DATABASE_URL=url)

    refused = ask("datasets", "list")
    assert refused.returncode == 2
    assert "`ppworker migrate`" in refused.stderr
    assert ask("migrate").returncode == 0
    assert ask("datasets", "list", "--json").stdout == "[]\n"
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    newer = ask("migrate")
    assert newer.returncode == 2
    assert "newer than this program" in newer.stderr


def test_a_command_alone_starts_and_stops_the_servers_and_up_heals_them(tmp_path):
    data_dir = tmp_path / "data"
    assert run(data_dir, "datasets", "create", "d").returncode == 0
    assert postmaster(data_dir) is None
    up = Up(data_dir)
    try:
        first = postmaster(data_dir)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: postmaster(data_dir) not in {None, first})

        def answers():
            try:
                with psycopg.connect(up.ready["database"]) as connection:
                    return connection.execute("SELECT name FROM datasets").fetchone() == ("d",)
            except psycopg.OperationalError:
                return False

        eventually(answers)
    finally:
        code = up.stop(signal.SIGINT)
    assert code == 0
    assert postmaster(data_dir) is None


def test_a_command_that_is_stopped_stops_its_servers(tmp_path):
    data_dir = tmp_path / "data"
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        command = [*PROGRAM, "jobs", "wait", "--data-dir", str(data_dir)]
        if number == signal.SIGINT:
            run(data_dir, "datasets", "create", "d")
            run(data_dir, "processors", "create", "d", "p", "--runner", "usaddress")
            run(data_dir, "items", "add", "--text", "x", "--split", "d/train")
        process = subprocess.Popen(
            command, env=environment(tmp_path / "other"), stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        with process.stderr as said:
            assert "no worker runs" in said.readline()
            process.send_signal(number)
            assert process.wait(timeout=60) == code
            assert said.read() == ""
        assert postmaster(data_dir) is None


def test_a_reader_that_leaves_is_no_error(home):
    with subprocess.Popen(
        [*PROGRAM, "status"],
        env=environment(home.data_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1


class TestInferences:
    def test_a_file_is_added_shown_and_added_again(self, cli, dataset, tmp_path):
        path = tmp_path / "given.jsonl"
        path.write_text(
            '{"id": "a", "name": "some words", "prediction": "praise", "confidence": 0.5}\n'
            f'{{"id": "b", "dataset_item_id": "{uuid4()}", "prediction": "praise"}}\n'
        )
        added = cli("inferences", "add", path, "--split", f"{dataset}/valid", "--key", "once")
        assert (added["status"], added["done"], added["repeated"]) == ("completed", 2, False)
        assert added["counts"] == {
            "items_created": 1,
            "predictions": 1,
            "annotations_added": 1,
            "jobs_planned": 1,
            "skipped_unknown_item": 1,
        }
        assert cli("operations", "show", added["id"])["counts"] == added["counts"]
        assert added["id"] in [each["id"] for each in cli("operations", "list")]
        known = cli("inferences", "add", path, "--split", f"{dataset}/valid", "--key", "once")
        assert (known["id"], known["repeated"]) == (added["id"], True)
        left = cli(
            "inferences", "add", path, "--split", f"{dataset}/valid", "--no-keep-annotations",
            "--no-wait",
        )  # fmt: skip
        ended = eventually(
            lambda: (o := cli("operations", "show", left["id"]))["completed_at"] and o
        )
        assert ended["counts"]["repeated"] == 1, "a worker has done it"

    def test_mistakes_are_one_line_each_and_exit_2(self, home, dataset, tmp_path):
        bad = tmp_path / "bad.jsonl"
        bad.write_text('{"name": "x"}\n{"name": "y", "inference_items": [{"confidence": "1"}]}\n')
        for arguments, words in (
            ((bad, "--split", f"{dataset}/train"), "line 2 inference_items[0].confidence: must be"),
            ((tmp_path / "none", "--split", f"{dataset}/train"), "FILE: '"),
            ((bad, "--split", f"{dataset}/none"), "split: no split"),
            ((bad, "--split", f"{dataset}/train", "--key", ""), "--key: has 1 to 200 characters"),
        ):
            done = run(home.data_dir, "inferences", "add", *arguments)
            assert done.returncode == 2
            assert words in done.stderr
            assert len(done.stderr.splitlines()) == 1
        missing = run(home.data_dir, "operations", "retry", uuid4())
        assert (missing.returncode, missing.stdout) == (2, "")
