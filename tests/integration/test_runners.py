"""Runners against real models and real processes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import usaddress
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from ppworker.errors import (
    BadResponse,
    RunnerCrashed,
    RunnerError,
    RunnerTimeout,
    RunnerUnavailable,
    UnreadableInput,
)
from ppworker.runners import registry
from ppworker.runners.base import RawAnswer, RunnerInput
from ppworker.runners.child import ChildRunner
from ppworker.runners.pool import RunnerPool
from ppworker.runners.usaddress import UsaddressRunner
from recordings import SPEECH

SCRIPTED = "scripted_runners:"
ADDRESS = "123 Main St, Springfield, IL 62701"


def texts(*values: str) -> list[RunnerInput]:
    return [RunnerInput(key=str(n), text=value) for n, value in enumerate(values)]


def files(*paths: Path) -> list[RunnerInput]:
    return [RunnerInput(key=str(n), name=path.name, path=path) for n, path in enumerate(paths)]


def ask(pool, name, inputs, config=None, timeout_s=60.0) -> list[Any]:
    permit = pool.acquire(name, config or {})
    assert permit is not None
    with permit:
        answers: list[Any] = pool.predict(permit, inputs, timeout_s)
    return answers


def gone(pid: int | None, within_s: float = 5.0) -> bool:
    """Whether the process has ended, zombies included, in that time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def wait_until_it_hangs(pid: int) -> None:
    """Wait until a process burns its processor, as HangRunner does in the middle of a batch."""
    stat = Path(f"/proc/{pid}/stat")
    first = int(stat.read_text().rpartition(")")[2].split()[11])
    while int(stat.read_text().rpartition(")")[2].split()[11]) < first + 10:
        time.sleep(0.02)


def page(*lines):
    """Lines of print on white, 400 by 400 pixels."""
    image = Image.new("RGB", (400, 400), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(30)
    for number, words in enumerate(lines):
        draw.text((20, 20 + 80 * number), words, fill="black", font=font)
    return image


@dataclass
class Samples:
    upright: Path
    sideways: Path
    two_pages: Path
    broken: Path
    empty: Path
    blank: Path
    speech: Path = SPEECH / "cards-001.wav"
    all: list[Path] = field(default_factory=list)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    made = Samples(*(folder / name for name in ("a.png", "b.jpg", "c.pdf", "d.png", "e", "f.png")))
    image = page("INVOICE 4711", "123 Main Street")
    image.save(made.upright)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.crop((0, 0, 400, 200)).rotate(90, expand=True).save(made.sideways, exif=exif, quality=95)
    image.save(
        made.two_pages,
        save_all=True,
        append_images=[page("Second page")],
        resolution=72,
        quality=95,
    )
    made.broken.write_bytes(made.upright.read_bytes()[:2000])
    made.empty.touch()
    Image.new("RGB", (300, 300), "white").save(made.blank)
    return made


@pytest.fixture(scope="module")
def models():
    """One pool for the tests of real models, so that each is loaded once."""
    pool = RunnerPool(max_loaded=8)
    yield pool
    pool.close()


@pytest.fixture
def pool():
    pool = RunnerPool(load_timeout_s=30)
    yield pool
    pool.close()


# ---- every runner keeps the same contract ------------------------------------------------------

RUNNERS = [*registry.names(), *(SCRIPTED + n for n in ("EchoRunner", "ChildEchoRunner"))]


@pytest.mark.parametrize("name", RUNNERS)
def test_conformance(name, models, samples):
    declared = registry.check(name, {})
    if declared.reads == "text":
        good, bad = texts(ADDRESS)[0], RunnerInput(key="bad")
    elif name.startswith(SCRIPTED):
        good, bad = texts("word")[0], texts("UNREADABLE")[0]
    else:
        (good,) = files(samples.speech if "audio/wav" in declared.media_types else samples.upright)
        (bad,) = files(samples.empty)
    assert ask(models, name, []) == []
    answers = ask(models, name, [bad, good, bad, good])
    assert [isinstance(answer, RawAnswer) for answer in answers] == [False, True, False, True]
    assert all(isinstance(answers[n], UnreadableInput) for n in (0, 2))
    assert not answers[0].retryable
    assert answers[1] == answers[3], "the same input, the same answer"
    assert answers[1].model_version
    for segment in answers[1].raw.get("segments", []):
        assert 0 <= segment["confidence"] <= 1
    for prediction in answers[1].raw.get("predictions", []):
        assert 0 <= prediction["score"] <= 1
        assert declared.labels is None or prediction["label"] in declared.labels


@pytest.mark.parametrize("name", [n for n in RUNNERS if registry.spec(n).reads != "text"])
def test_a_file_that_is_missing_may_come_back(name, models, samples):
    if not name.startswith(SCRIPTED):
        (answer,) = ask(models, name, files(samples.empty.with_name("missing")))
        assert isinstance(answer, RunnerUnavailable)


# ---- real models -------------------------------------------------------------------------------


def test_magika_tells_files_and_texts_by_their_content(models, samples):
    script = texts("import os\n\ndef main() -> None:\n    print(os.getcwd())\n" * 5, "\udc80\0")
    answers = ask(models, "magika", [*files(samples.upright, samples.two_pages), *script])
    png, pdf, python, odd = (answer.raw for answer in answers)
    assert png["predictions"][0]["label"] == "png"
    assert pdf["mime_type"] == "application/pdf"
    assert python["predictions"][0]["label"] == "python"
    assert python["is_text"]
    assert odd["predictions"]


def test_magika_has_nothing_to_say_about_an_empty_file_or_text(models, samples):
    answers = ask(models, "magika", [*files(samples.empty), *texts("")])
    assert [str(answer) for answer in answers] == ["the file is empty", "the text is empty"]
    assert [answer.code for answer in answers] == ["unreadable_input"] * 2


def test_ocr_reads_upright_coordinates_from_a_sideways_picture(models, samples):
    upright, sideways = ask(models, "rapidocr", files(samples.upright, samples.sideways))
    assert upright.raw["text"].replace(" ", "") == "INVOICE4711\n123MainStreet"
    assert sideways.raw["text"].replace(" ", "") == "INVOICE4711\n123MainStreet"
    (seen,) = sideways.raw["pages"]
    assert (seen["width"], seen["height"]) == (400, 200)
    for ours, theirs in zip(upright.raw["pages"][0]["lines"], seen["lines"], strict=True):
        for (x, y), (other_x, other_y) in zip(ours["polygon"], theirs["polygon"], strict=True):
            assert abs(x - other_x) < 12
            assert abs(y - other_y) < 12


def test_ocr_reads_every_page_of_a_pdf(models, samples):
    config = {"dpi": 72}
    (answer,) = ask(models, "rapidocr", files(samples.two_pages), config)
    assert answer.raw["text"].replace(" ", "") == "INVOICE4711\n123MainStreet\n\nSecondpage"
    assert [seen["page"] for seen in answer.raw["pages"]] == [0, 1]
    assert [(seen["width"], seen["dpi"]) for seen in answer.raw["pages"]] == [(400, 72)] * 2


def test_boxes_lie_where_the_lines_are(models, samples):
    (answer,) = ask(models, "rapidocr-boxes", files(samples.upright))
    assert answer.raw["pages"] == [{"page": 0, "width": 400, "height": 400}]
    first, second = answer.raw["predictions"]
    assert {first["label"], second["label"]} == {"text"}
    for box, top in ((first, 20), (second, 100)):
        xs, ys = zip(*box["polygon"], strict=True)
        assert 0 <= min(xs) < 30
        assert top - 10 < min(ys) < top + 15
        assert max(ys) < top + 60
        assert box["page"] == 0


def test_a_page_without_words_is_an_answer_and_a_broken_one_is_not(models, samples):
    for name in ("rapidocr", "rapidocr-boxes"):
        blank, broken = ask(models, name, files(samples.blank, samples.broken))
        assert not blank.raw.get("text")
        assert not blank.raw.get("predictions")
        assert isinstance(broken, UnreadableInput)
        assert str(broken).startswith("the image is broken or cut short")


def test_ocr_needs_no_network(pool, samples):
    (answer,) = ask(pool, SCRIPTED + "OfflineOcrRunner", files(samples.upright))
    assert isinstance(answer, RawAnswer), answer
    assert "INVOICE" in answer.raw["text"]


@pytest.fixture(scope="module")
def parser():
    runner = UsaddressRunner()
    runner.load()
    return runner


def test_parts_of_an_address_are_quoted_exactly(parser):
    text = "🚀 Acme\r\n\r\nShip to:\r\n" + ADDRESS + ", USA\tby &amp; by\r\nThank you for 2 orders"
    (answer,) = parser.predict(texts(text))
    found = {each["label"]: each for each in answer.raw["predictions"]}
    assert found["AddressNumber"]["text"] == "123"
    assert found["StreetName"]["text"] == "Main"
    assert found["PlaceName"]["text"] == "Springfield"
    assert found["ZipCode"]["text"] == "62701"
    assert all(0.9 < found[label]["score"] <= 1 for label in ("AddressNumber", "ZipCode"))
    assert answer.raw["lines_left_out"] == {"no_address": 3}


def test_an_address_on_two_lines_is_two_sets_of_parts_that_do_not_merge(parser):
    (answer,) = parser.predict(texts("5 Elm Ave\nAustin, TX 78701\n12 Oak Rd\nDallas, TX 75201"))
    labels = [each["label"] for each in answer.raw["predictions"]]
    assert labels.count("AddressNumber") == labels.count("PlaceName") == 2
    assert [e["text"] for e in answer.raw["predictions"] if e["label"] == "StateName"] == ["TX"] * 2


def test_prose_is_left_out_and_counted_unless_every_line_is_asked_for(parser):
    prose = "Let us first determine markers of the coins\nThese are pixels that we can label"
    (answer,) = parser.predict(texts(prose))
    assert answer.raw == {"predictions": [], "lines_left_out": {"no_address": 2}}
    eager = UsaddressRunner(every_line=True)
    eager.load()
    (answer,) = eager.predict(texts(prose))
    assert isinstance(answer, RawAnswer)
    assert answer.raw["predictions"]


pieces = st.one_of(
    st.sampled_from(
        [
            "123",
            "Main St,",
            "Springfield",
            "IL 62701",
            "\r\n",
            "\n",
            "\t",
            "\0",
            "\ud800",
            "🚀",
            "&amp;",
            "&#38;",
            "&",
            "#4",
            "(rear)",
            "שלום",
            "e\u0301",
            "PO Box 9",
            "\u2028",
            "a" * 120,
        ]
    ),
    st.text(st.characters(exclude_categories=()), max_size=6),
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(pieces, st.sampled_from(["", " ", ", ", "  "])), max_size=25))
def test_spans_always_quote_the_text(parser, parts):
    text = "".join(piece + gap for piece, gap in parts)
    for runner in (parser, UsaddressRunner(every_line=True)):
        if runner is not parser:
            runner.load()
        (answer,) = runner.predict(texts(text))
        assert isinstance(answer, RawAnswer), answer
        end = 0
        for each in answer.raw["predictions"]:
            assert each["text"]
            assert text[each["start"] : each["end"]] == each["text"]
            assert each["start"] >= end, "in order, without overlap"
            assert 0 <= each["score"] <= 1
            end = each["end"]


def test_a_text_too_long_is_refused_and_the_longest_allowed_is_done_in_time(parser):
    (answer,) = parser.predict(texts("x " * 5_000_000))
    assert answer.code == "too_large"
    assert not answer.retryable
    began = time.monotonic()
    hostile = "a" + "!" * 300_000 + "a 1 Elm St\n" + "12 Oak Rd " * 100 + "\n" + "word " * 20_000
    (answer,) = parser.predict(texts(hostile))
    assert isinstance(answer, RawAnswer)
    assert answer.raw["lines_left_out"] == {"too_long": 3}
    assert time.monotonic() - began < 10


def test_a_model_file_may_vanish_come_back_and_change(pool, tmp_path):
    model = tmp_path / "model.crfsuite"
    config = {"model_path": str(model)}
    (answer,) = ask(pool, "usaddress", texts(ADDRESS), config)
    assert isinstance(answer, RunnerUnavailable)
    assert str(answer) == f"model file {model} is missing; put it back"
    shutil.copy(usaddress.MODEL_PATH, model)
    (answer,) = ask(pool, "usaddress", texts(ADDRESS), config)
    assert isinstance(answer, RawAnswer), "put back, it is loaded without a restart of the worker"
    model.rename(tmp_path / "away")
    answers = ask(pool, "usaddress", texts(ADDRESS, ADDRESS), config)
    assert [answer.code for answer in answers] == ["unavailable"] * 2
    (tmp_path / "away").rename(model)
    (again,) = ask(pool, "usaddress", texts(ADDRESS), config)
    assert again == answer or again.model_version
    model.write_bytes(b"no model at all")
    (answer,) = ask(pool, "usaddress", texts(ADDRESS), config)
    assert isinstance(answer, RunnerUnavailable)


# ---- what a child process may do to its worker: nothing ----------------------------------------


def test_the_child_is_kept_between_batches_and_runs_in_a_session_of_its_own(pool):
    answers = [ask(pool, SCRIPTED + "ChildEchoRunner", texts("a", "b")) for _ in range(3)]
    (pid,) = {answer.raw["pid"] for batch in answers for answer in batch}
    assert pid != os.getpid()
    assert os.getsid(pid) == os.getpgid(pid) == pid


def test_the_child_sees_no_setting_of_the_worker_and_uses_one_thread(pool, monkeypatch):
    monkeypatch.setenv("PPWORKER_DATABASE_URL", "postgresql://secret")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (answer,) = ask(pool, SCRIPTED + "ChildEchoRunner", texts("a"))
    seen = Path(f"/proc/{answer.raw['pid']}/environ").read_bytes()
    assert b"PPWORKER_" not in seen
    assert b"OMP_NUM_THREADS=1" in seen


def test_any_text_reaches_the_child_and_comes_back(pool):
    text = "NUL \0, lone \ud800, pair \ud83d" + "\ude00, 🚀, שלום"
    (answer,) = ask(pool, SCRIPTED + "ChildEchoRunner", texts(text))
    assert answer.raw["text"] == text


def test_a_crash_costs_its_own_input_only(pool, tmp_path):
    log = tmp_path / "log"
    batch = texts(*(f"n{n}" for n in range(11)), "CRASH", *(f"m{n}" for n in range(4)))
    answers = ask(pool, SCRIPTED + "CrashRunner", batch, {"log": str(log)})
    blamed = [n for n, answer in enumerate(answers) if isinstance(answer, RunnerError)]
    assert blamed == [11]
    assert isinstance(answers[11], RunnerCrashed)
    assert "killed by SIGSEGV" in str(answers[11])
    assert "it printed last: about to die of it" in str(answers[11])
    assert [a.raw["text"] for n, a in enumerate(answers) if n != 11] == [
        item.text for n, item in enumerate(batch) if n != 11
    ]
    assert log.read_text().split()[:2] == ["16", "8"], "halved, not one by one"


def test_an_exit_is_told_with_its_code_and_the_next_batch_runs(pool):
    name = SCRIPTED + "CrashRunner"
    (answer,) = ask(pool, name, texts("CRASH:3"))
    assert "ended with exit code 3" in str(answer)
    (answer,) = ask(pool, name, texts("fine"))
    assert isinstance(answer, RawAnswer)


def test_a_child_that_died_between_two_batches_is_replaced_and_nobody_blamed(pool):
    name = SCRIPTED + "ChildEchoRunner"
    (before,) = ask(pool, name, texts("a"))
    os.kill(before.raw["pid"], signal.SIGKILL)
    assert gone(before.raw["pid"])
    (after,) = ask(pool, name, texts("a"))
    assert after.raw["pid"] != before.raw["pid"]


def test_a_killed_model_says_by_which_signal(pool):
    name = SCRIPTED + "HangRunner"
    (warm,) = ask(pool, name, texts("a"))
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.extend(ask(pool, name, texts("HANG"))))
    asking.start()
    wait_until_it_hangs(warm.raw["pid"])
    os.kill(warm.raw["pid"], signal.SIGKILL)
    asking.join(10)
    assert isinstance(answers[0], RunnerCrashed)
    assert "killed by SIGKILL (out of memory?)" in str(answers[0])


def test_a_hang_is_killed_at_its_deadline_and_costs_its_own_input_only(pool):
    child = ChildRunner(SCRIPTED + "HangRunner", {})
    child.load()
    pid = child.pid
    began = time.monotonic()
    with pytest.raises(RunnerTimeout, match=r"within 0\.5 s"):
        child.predict(texts("HANG"), 0.5)
    assert 0.5 <= time.monotonic() - began < 2
    assert gone(pid)
    child.close()
    answers = ask(pool, SCRIPTED + "HangRunner", texts("a", "HANG", "b", "c"), timeout_s=1)
    assert [type(answer) for answer in answers] == [RawAnswer, RunnerTimeout, RawAnswer, RawAnswer]


def test_what_a_child_prints_harms_nothing(pool):
    answers = ask(pool, SCRIPTED + "NoisyRunner", texts("a", "b"), timeout_s=20)
    assert [answer.raw["text"] for answer in answers] == ["a", "b"]


@pytest.mark.parametrize(
    ("word", "kind", "message"),
    [
        ("COUNT", BadResponse, "0 answers to 1 inputs"),
        ("TYPE", BadResponse, "str"),
        ("JSON", BadResponse, "no JSON"),
        ("DEEP", BadResponse, "no JSON"),
        ("HUGE", BadResponse, "bytes"),
        ("RAISE", RunnerError, "ZeroDivisionError: in the"),
    ],
)
def test_a_broken_contract_is_its_own_inputs_error(pool, word, kind, message):
    good, bad, fine = ask(pool, SCRIPTED + "GarbageRunner", texts("a", word, "b"))
    assert isinstance(good, RawAnswer)
    assert isinstance(fine, RawAnswer)
    assert type(bad) is kind
    assert message in str(bad)
    assert len(str(bad)) <= 500
    assert "\0" not in str(bad)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "the model cannot be loaded: OSError: no such model"),
        ("refuse", "model file m.bin is missing; put it back"),
        ("die", "ended with exit code 7"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_unavailable_for_every_input(pool, how, message):
    answers = ask(pool, SCRIPTED + "UnloadableRunner", texts("a", "b"), {"how": how})
    assert [type(answer) for answer in answers] == [RunnerUnavailable] * 2
    assert message in str(answers[0])


def test_a_model_that_never_ends_loading_is_unavailable():
    child = ChildRunner(SCRIPTED + "UnloadableRunner", {"how": "hang"}, load_timeout_s=0.5)
    with pytest.raises(RunnerUnavailable, match="not loaded"):
        child.load()
    assert child.pid is None
    child.close()


def test_what_a_model_has_started_ends_with_it(pool):
    name = SCRIPTED + "ForkingRunner"
    (answer,) = ask(pool, name, texts("a"))
    group = answer.raw["pid"]
    (answer,) = ask(pool, name, texts("CRASH"), timeout_s=20)
    assert isinstance(answer, RunnerCrashed), "seen, though another process holds the socket open"
    members = [
        int(stat.parent.name)
        for stat in Path("/proc").glob("[0-9]*/stat")
        if f" {group} {group} " in _read(stat)
    ]
    assert all(gone(pid) for pid in members)


def _read(path):
    try:
        return path.read_text()
    except OSError:
        return ""


PARENT = """
import sys, threading, time
sys.path[:0] = {path!r}
from ppworker.runners.base import RunnerInput
from ppworker.runners.child import ChildRunner
child = ChildRunner("scripted_runners:HangRunner", {{}})
starter = threading.Thread(target=child.load)  # ends at once: its child must not end with it
starter.start()
starter.join()
time.sleep(0.2)
assert child.predict([RunnerInput(key="1", text="a")], 30)
print(child.pid, flush=True)
child.predict([RunnerInput(key="1", text={text!r})], 60)
time.sleep(60)
"""


@pytest.mark.parametrize("text", ["idle", "HANG"])
def test_a_child_dies_with_its_worker_even_in_native_code(text):
    script = PARENT.format(path=[p for p in sys.path if p.endswith("tests")], text=text)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        assert not gone(pid, within_s=0.1)
        parent.kill()
    assert gone(pid, within_s=5)


# ---- the pool and its children -----------------------------------------------------------------


def test_an_idle_child_is_unloaded_and_a_busy_one_is_not(pool):
    name = SCRIPTED + "ChildEchoRunner"
    (answer,) = ask(pool, name, texts("a"))
    assert pool.close_idle(60) == 0
    with pool.acquire(name, {}):
        assert pool.close_idle(0) == 0
    assert pool.close_idle(0) == 1
    assert gone(answer.raw["pid"])
    assert pool.close_idle(0) == 0
    (answer,) = ask(pool, name, texts("a"))
    assert isinstance(answer, RawAnswer)


def test_the_longest_unused_child_makes_room_for_another():
    pool = RunnerPool(max_loaded=2)
    name = SCRIPTED + "ChildEchoRunner"
    pids = [ask(pool, name, texts("a"), {"prefix": str(n)})[0].raw["pid"] for n in range(3)]
    assert gone(pids[0])
    assert not gone(pids[1], within_s=0.05)
    assert not gone(pids[2], within_s=0.05)
    pool.close()
    assert gone(pids[1])
    assert gone(pids[2])


def test_closing_the_pool_ends_a_running_batch_at_once_as_unavailable():
    pool = RunnerPool()
    name = SCRIPTED + "HangRunner"
    (warm,) = ask(pool, name, texts("a"))
    batch = texts("HANG")  # one input: a crash of it would be blamed on it
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.extend(ask(pool, name, batch)))
    asking.start()
    wait_until_it_hangs(warm.raw["pid"])
    began = time.monotonic()
    pool.close()
    asking.join(10)
    assert time.monotonic() - began < 5
    assert [type(answer) for answer in answers] == [RunnerUnavailable]
    assert "stopping" in str(answers[0])
    assert gone(warm.raw["pid"])


def test_a_model_whose_worker_died_while_it_started_dies_too() -> None:
    ours, theirs = socket.socketpair()  # stays open, as it would with a child that inherited it
    with ours, theirs:
        host = subprocess.Popen(
            [sys.executable, "-P", "-m", "ppworker.runners.host", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,  # at its end from the first moment
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        assert host.wait(20) == -signal.SIGKILL
