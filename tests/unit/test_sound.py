"""Sounds are read as 16 kHz, one channel, whatever they were; broken ones say so."""

import subprocess
import sys
import tracemalloc
from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppworker.errors import Invalid, RunnerError, RunnerUnavailable, UnreadableInput
from ppworker.runners import pocketsphinx, sound
from ppworker.runners.pocketsphinx import PocketsphinxRunner
from ppworker.runners.sound import RATE, Sound
from recordings import KINDS, make, recording, tone, wav


def read(path, max_duration_s=600):
    heard = Sound(path, max_duration_s=max_duration_s)
    return array("h", b"".join(heard)), heard


def hertz(samples):
    """Pitch by how often the sound crosses zero, its ends left out."""
    inner = samples[RATE // 4 : -RATE // 4]
    crossings = sum(a < 0 <= b for a, b in pairwise(inner))
    return crossings * RATE / len(inner)


@pytest.mark.parametrize("extension", KINDS)
def test_each_kind_is_decoded_and_resampled(tmp_path, extension):
    samples, heard = read(make(tmp_path, extension))
    assert hertz(samples) == pytest.approx(440, abs=4)
    assert max(samples) > 8_000
    assert heard.duration_s == len(samples) / RATE == pytest.approx(2, abs=0.12)
    assert heard.broken_packets == 0


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_every_usual_rate_and_number_of_channels_becomes_ours(tmp_path, rate, layout):
    path = recording(tmp_path / "x.flac", tone(1), "flac", rate=rate, layout=layout)
    samples, _ = read(path)
    assert hertz(samples) == pytest.approx(440, abs=4)
    assert len(samples) == pytest.approx(RATE, abs=20)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s24le", "pcm_f32le", "pcm_alaw", "adpcm_ms"])
def test_every_usual_kind_of_sample_in_a_wav_is_read(tmp_path, codec):
    samples, _ = read(recording(tmp_path / "x.wav", tone(1), codec))
    assert hertz(samples) == pytest.approx(440, abs=4)


@pytest.mark.parametrize("extension", ["wav", "mp3", "flac", "m4a", "mp4", "mov"])
def test_a_recording_cut_short_is_refused_before_work_not_passed_off_as_whole(
    tmp_path, monkeypatch, extension
):
    monkeypatch.setattr(sound.Sound, "_read", lambda *_: pytest.fail("it was decoded"))
    path = make(tmp_path, extension, seconds=8)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableInput, match="cut short"):
        read(path)


def test_a_recording_cut_short_is_refused_in_the_end_where_its_packets_are_not_counted_in_time(
    tmp_path, monkeypatch
):
    path = make(tmp_path, "flac")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    monkeypatch.setattr(sound, "_counted_s", lambda *_: None)
    with pytest.raises(UnreadableInput, match="cut short"):
        read(path)


@pytest.mark.parametrize("said", [0, 0x7FFF_FFDB, 0xFFFF_FFFF])
def test_a_wav_written_to_a_pipe_is_whole_although_it_does_not_know_its_size(tmp_path, said):
    path = tmp_path / "x.wav"
    path.write_bytes(wav(tone(1).tobytes(), size=said))
    assert read(path)[1].duration_s == pytest.approx(1)


def test_a_broken_place_is_silence_of_its_length_and_counted(tmp_path):
    path = make(tmp_path, "m4a", seconds=8)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4 + 20_000
    data[begin : begin + 2_000] = b"\xff" * 2_000
    path.write_bytes(data)
    samples, heard = read(path)
    assert heard.broken_packets > 0
    assert len(samples) / RATE == pytest.approx(8, abs=0.1)


@pytest.mark.parametrize("extension", ["mp3", "m4a"])
def test_a_sound_that_is_mostly_broken_is_refused(tmp_path, extension):
    path = make(tmp_path, extension, seconds=4)
    data = bytearray(path.read_bytes())
    for at in range(3_000, len(data) - 3_000, 40):
        data[at : at + 25] = b"\xa5" * 25
    path.write_bytes(data)
    with pytest.raises(UnreadableInput, match="broken"):
        read(path)


def test_too_long_a_sound_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = make(tmp_path, "flac", seconds=3)
    monkeypatch.setattr(sound.Sound, "_read", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(UnreadableInput, match=r"lasts 3 s or more.*max_duration_s \(2\)") as caught:
        read(path, max_duration_s=2)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("extension", ["aac", "mkv"])
def test_too_long_a_sound_whose_header_does_not_tell_is_given_up_on_the_way(tmp_path, extension):
    path = make(tmp_path, extension, seconds=3)
    with pytest.raises(UnreadableInput, match="max_duration_s") as caught:
        read(path, max_duration_s=2)
    assert caught.value.code == "too_large"


def test_a_sound_of_exactly_the_longest_duration_is_read(tmp_path):
    assert read(make(tmp_path, "wav", seconds=2), max_duration_s=2)[1].duration_s == 2


def test_memory_does_not_grow_with_the_sound(tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(wav(bytes(20 * 60 * 32_000)))
    tracemalloc.start()
    try:
        assert sum(map(len, Sound(path, max_duration_s=3600))) == 20 * 60 * 32_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_an_empty_file_a_missing_one_and_one_of_another_kind_are_told_apart(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(UnreadableInput, match="empty"):
        read(tmp_path / "empty")
    with pytest.raises(RunnerUnavailable):
        read(tmp_path / "missing")
    (tmp_path / "text").write_text("just words")
    with pytest.raises(UnreadableInput, match="broken"):
        read(tmp_path / "text")
    with pytest.raises(UnreadableInput, match="no sound"):
        read(recording(tmp_path / "x.mp4", tone(0), "aac", video=True, sound=False))


# ---- speech and pauses ---------------------------------------------------------------------------


class Endpointer:
    """Takes a frame for speech where its first sample is not 0, at once and for sure."""

    frame_bytes = 960

    def __init__(self):
        self.in_speech = False
        self.speech_start = self.speech_end = 0.0
        self._time = 0.0

    def process(self, frame):
        is_speech = frame[0] != 0
        if is_speech and not self.in_speech:
            self.speech_start = self._time
        if self.in_speech and not is_speech:
            self.speech_end = self._time
        self.in_speech = is_speech
        self._time += len(frame) / 2 / RATE

    def end_stream(self, frame):
        self.process(frame or b"\0")


def stretches(flags, *, max_frames=1000, piece=700):
    """Stretches of a sound whose frame n holds n + 1 where it is speech, and 0 where it is not."""
    frames = [array("h", [(n + 1) * flag] * 480) for n, flag in enumerate(flags)]
    data = b"".join(each.tobytes() for each in frames)
    pieces = (data[at : at + piece] for at in range(0, len(data), piece))
    return data, list(pocketsphinx._stretches(pieces, Endpointer(), max_frames * 480))


@given(
    st.lists(st.booleans(), max_size=200),
    st.integers(170, 300),
    st.integers(1, 3000),
)
def test_stretches_hold_all_speech_in_order_and_never_overlap(flags, max_frames, piece):
    data, found = stretches(flags, max_frames=max_frames, piece=piece)
    over = 0
    for each in found:
        assert each.start >= over
        assert data[2 * each.start : 2 * each.end] == each.pcm
        over = each.end
    said = {n for n, flag in enumerate(flags) if flag}
    heard = {s // 480 for each in found for s in (each.start, *range(each.start, each.end, 480))}
    assert said <= heard
    assert over <= len(data) // 2


def test_a_stretch_is_heard_with_a_little_of_what_is_before_and_after_it():
    _, (only,) = stretches([False] * 40 + [True] * 40 + [False] * 40)
    padding = int(pocketsphinx.PADDING_S * RATE)
    # The end is known a frame late; what comes after the padding is not waited for.
    assert only.start == 40 * 480 - padding
    assert 80 * 480 < only.end <= 80 * 480 + padding


def test_speech_without_a_pause_is_cut_where_it_is_quietest():
    flags = [True] * 400
    data = array("h", b"".join(array("h", [9000] * 480).tobytes() for _ in flags))
    data[170 * 480 : 172 * 480] = array("h", [1] * 960)  # in the last seconds of the first stretch
    pieces = iter([data.tobytes()])
    first, *others = pocketsphinx._stretches(pieces, Endpointer(), 200 * 480)
    assert 170 * 480 <= first.end <= 172 * 480
    assert others[0].start == first.end
    assert all(each.end - each.start <= 200 * 480 for each in (first, *others))


def test_silence_is_forgotten_on_the_way():
    # Ten minutes of silence, then a word: what is kept of it does not grow.
    def pieces():
        for _ in range(600):
            yield bytes(32_000)
        yield array("h", [5] * 4_800).tobytes()

    tracemalloc.start()
    try:
        (only,) = pocketsphinx._stretches(pieces(), Endpointer(), 100_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert only.start == 600 * RATE - int(pocketsphinx.PADDING_S * RATE)


@pytest.mark.parametrize(
    "options",
    [
        {"max_duration_s": 0},
        {"max_duration_s": "long"},
        {"max_segment_s": 1},
        {"pause_filter": 4},
        {"pause_filter": 1.5},
        {"language_weight": 0},
        {"language_weight": float("nan")},
        {"second_pass": 1},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(Invalid) as caught:
        PocketsphinxRunner(**options)
    assert caught.value.field == f"runner_config.{next(iter(options))}"


def test_the_model_needs_no_library_of_sound_cards():
    """pocketsphinx declares one that wants PortAudio; it must not be touched."""
    script = (
        "import sys\n"
        "sys.modules['sounddevice'] = sys.modules['_sounddevice'] = None\n"
        "from ppworker.runners.pocketsphinx import PocketsphinxRunner\n"
        "runner = PocketsphinxRunner(); runner.load(); runner.close()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_errors_are_values():
    (answer,) = PocketsphinxRunner().predict([sound_input(None)])
    assert isinstance(answer, RunnerError)
    assert "no file" in str(answer)


def sound_input(path):
    from ppworker.runners.base import RunnerInput

    return RunnerInput(key="1", path=path)
