"""Speech through the whole pipeline: upload, job, text; how many words come out wrong."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from demo_speech import SPEECH, transcripts, wrong_words

PROGRAM = [sys.executable, "-m", "ppworker"]
MOST_WRONG = 0.35
TOTAL_BYTES = 2_000_000

# One group: whoever runs it first has the models started and the recordings carried through once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("speech")]


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "", 3),
        ("a b c", "a x c", 1),
        ("a b c", "a c", 1),
        ("a b c", "a b b c d", 2),
        ("a b c d", "b c d e", 2),
        ("A", "a", 0),
    ],
)
def test_wrong_words_are_counted_as_the_rule_says(said, heard, errors):
    assert wrong_words(said, heard) == (errors, len(said.split()))


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith("PPWORKER_")}
    return subprocess.run(
        [*PROGRAM, *map(str, arguments), "--json"],
        env=own | {"PPWORKER_DATA_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """Every example as an item, after its job: what `items show` tells of it, by file name."""
    folder = tmp_path_factory.mktemp("speech") / "data"
    with (folder.parent / "up.log").open("w") as log:
        up = subprocess.Popen(
            [*PROGRAM, "up", "--json", "--processes", "2", "--threads", "1", "--port", "0",
             "--data-dir", str(folder)],
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    assert up.stdout is not None
    try:
        assert json.loads(up.stdout.readline())["event"] == "ready"
        make = ("processors", "create", "talks", "speech", "--runner", "pocketsphinx")
        for command in (
            ("datasets", "create", "talks"),
            (*make, "--target", "both"),
            ("items", "add", *(SPEECH / name for name in transcripts()), "--split", "talks/train"),
            ("jobs", "wait", "--dataset", "talks", "--timeout", "200"),
        ):
            done = run(folder, *command)
            assert done.returncode == 0, done.stdout + done.stderr
        listed = json.loads(run(folder, "items", "list", "talks/train").stdout)
        shown = [json.loads(run(folder, "items", "show", each["id"]).stdout) for each in listed]
        yield {each["name"]: each for each in shown}
    finally:
        up.send_signal(signal.SIGTERM)
        code = up.wait(60)
        up.stdout.close()
    assert code == 0, (folder.parent / "up.log").read_text()


def test_the_words_of_the_speech_examples_come_out_right_enough(heard, record_property):
    counts = {name: wrong_words(said, heard[name]["text"]) for name, said in transcripts().items()}
    groups = {"librivox wav": "librivox-0", "cards wav": "cards-", "mp3": "librivox-chapter"}
    rates = {group: rate(counts, prefix) for group, prefix in groups.items()}
    overall = rate(counts, "")
    print(f"word error rate: {overall:.3f} over all {len(counts)} recordings;",
          ", ".join(f"{group} {share:.3f}" for group, share in rates.items()))  # fmt: skip
    record_property("word_error_rate", overall)
    assert len(heard) == len(counts) == 11
    assert overall <= MOST_WRONG
    assert all(share <= MOST_WRONG for share in rates.values())


def rate(counts: dict[str, tuple[int, int]], prefix: str) -> float:
    chosen = [count for name, count in counts.items() if name.startswith(prefix)]
    return sum(errors for errors, _ in chosen) / sum(words for _, words in chosen)


def test_segments_are_inside_the_duration_and_in_order(heard):
    for name, found in heard.items():
        segments = found["annotations"]
        assert segments, name
        places = [each["geometry"] for each in segments]
        times = [second for place in places for second in (place["start"], place["end"])]
        assert times == sorted(times), name
        assert 0 <= times[0] < times[-1] <= found["duration_s"], name
        assert " ".join(each["text"] for each in segments) == found["text"], name
        assert all(0 <= each["score"] <= 1 for each in segments)


def test_the_examples_are_small_and_named_with_their_licence():
    files = [path for path in SPEECH.iterdir() if path.suffix in {".wav", ".mp3"}]
    assert {path.name for path in files} == set(transcripts())
    assert sum(path.stat().st_size for path in SPEECH.iterdir()) <= TOTAL_BYTES
    about = (SPEECH / "README.md").read_text(encoding="utf-8")
    assert "public domain" in about
    assert "Redistribution" in (SPEECH / "LICENSE.txt").read_text(encoding="utf-8")
