"""What is known of a sound when it is uploaded, and what hostile ones can do: nothing."""

import socket
import struct
import threading
import time
from pathlib import Path

import av
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppworker.errors import RunnerError, UnreadableInput
from ppworker.pipeline.uploads import media
from ppworker.runners import inspector, sound
from ppworker.runners.base import RunnerInput
from ppworker.runners.child import ChildRunner
from ppworker.runners.inspector import Inspection
from recordings import KINDS, make, recording, tone, wav


@pytest.fixture(scope="module")
def inspection():
    with Inspection(max_text_bytes=1000) as inspection:
        yield inspection


@pytest.fixture
def look(tmp_path, inspection):
    def look(data, name="upload"):
        path = data if isinstance(data, Path) else tmp_path / "upload"
        if not isinstance(data, Path):
            path.write_bytes(data)
        return media.inspect(path, name, inspection)

    return look


@pytest.mark.parametrize("extension", KINDS)
def test_each_kind_is_known_by_its_bytes_and_measured(tmp_path, look, extension):
    found = look(make(tmp_path, extension))
    assert found.media_type == KINDS[extension][0]
    assert found.extension == extension
    assert found.duration_s == pytest.approx(2.0, abs=0.12)
    assert found.note == ""


def test_a_sound_alone_in_a_container_of_videos_is_a_sound(tmp_path, look):
    path = recording(tmp_path / "x.mp4", tone(1), "aac")
    assert path.read_bytes()[8:12] == b"isom"
    assert look(path, "memo.m4a").media_type == "audio/mp4"


def test_a_video_without_sound_has_no_duration(tmp_path, look):
    found = look(recording(tmp_path / "x.mp4", tone(0), "aac", video=True, sound=False))
    assert (found.media_type, found.duration_s) == ("video/mp4", None)
    assert "no sound" in found.note


@pytest.mark.parametrize("extension", ["wav", "mp3", "flac", "ogg", "aac", "mkv"])
def test_of_a_recording_cut_short_what_is_there_is_measured(tmp_path, look, extension):
    path = make(tmp_path, extension, seconds=8)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert look(path).duration_s == pytest.approx(4, abs=1.5)


@pytest.mark.parametrize("extension", ["m4a", "mp4", "mov"])
def test_a_container_without_its_table_is_accepted_with_a_note(tmp_path, look, extension):
    path = make(tmp_path, extension)
    path.write_bytes(path.read_bytes()[:-500])
    found = look(path)
    assert found.duration_s is None
    assert "broken or cut short" in found.note or "no sound" in found.note
    assert str(tmp_path) not in found.note


@pytest.mark.parametrize("said", [0, 10 * 32_000, 0x7FFF_FFDB, 0xFFFF_FFFF])
def test_a_header_that_lies_does_not_bend_the_duration(look, said):
    assert look(wav(bytes(32_000), size=said)).duration_s == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (wav(bytes(3200), rate=1), "1 samples per second"),
        (wav(bytes(3200), rate=2**31 - 1), "2147483647 samples per second"),
        (wav(bytes(3200), rate=0), "broken"),
        (wav(bytes(3200), channels=0), "0 channels"),
        (wav(bytes(2 * 65 * 100), channels=65), "65 channels"),
        (wav(b""), "broken or cut short"),
    ],
)
def test_absurd_formats_are_a_note(look, data, why):
    found = look(data)
    assert (found.media_type, found.duration_s) == ("audio/wav", None)
    assert why in found.note


def test_a_file_of_tables_ends_in_time_and_memory(look):
    started = time.monotonic()
    found = look(movie(samples=2**31 - 1))
    assert found.media_type == "video/quicktime"
    assert time.monotonic() - started < 20


def test_a_sound_without_end_is_measured_by_its_header_when_time_is_up(tmp_path):
    path = make(tmp_path, "flac")
    assert sound.measure(path, within_s=-1).duration_s == pytest.approx(2.0, abs=0.01)


def test_the_reader_runs_apart_with_limited_memory(inspection, tmp_path, look):
    look(make(tmp_path, "wav"))
    pid = inspection._child.pid
    limits = Path(f"/proc/{pid}/limits")
    if limits.exists():
        (line,) = (each for each in limits.read_text().splitlines() if "address space" in each)
        assert line.split()[3] == str(sound.MEMORY_MB << 20)


@pytest.mark.parametrize(
    ("reader", "why"), [("CrashRunner", "killed by SIGSEGV"), ("HangRunner", "did not answer")]
)
def test_a_reader_that_dies_or_hangs_costs_an_answer(monkeypatch, reader, why):
    monkeypatch.setattr("ppworker.runners.inspector._TIMEOUT_S", 0.5)
    with Inspection(max_text_bytes=1000) as inspection:
        monkeypatch.setattr(inspection, "_child", ChildRunner(f"scripted_runners:{reader}", {}))
        answer = inspection.look(RunnerInput(key="", text="CRASH HANG"))
        assert isinstance(answer, RunnerError)
        assert why in str(answer)


def test_an_upload_of_files_that_all_take_too_long_ends_soon(monkeypatch):
    monkeypatch.setattr(inspector, "_TIMEOUT_S", 0.1)
    child = ChildRunner("scripted_runners:HangRunner", {})
    with Inspection(max_text_bytes=1000) as inspection:
        monkeypatch.setattr(inspection, "_child", child)
        answers = [inspection.look(RunnerInput(key="", text="HANG")) for _ in range(5)]
    assert ["did not answer" in str(each) for each in answers] == [True] * 3 + [False] * 2
    assert "not looked into" in str(answers[-1])


def test_many_uploads_at_a_time_start_few_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(inspector, "_processes", threading.BoundedSemaphore(1))
    path = make(tmp_path, "wav")
    done = []

    def upload():
        with Inspection(max_text_bytes=1000) as second:
            done.append(media.inspect(path, "x.wav", second).duration_s)

    with Inspection(max_text_bytes=1000) as first:
        media.inspect(path, "x.wav", first)
        thread = threading.Thread(target=upload)
        thread.start()
        thread.join(0.5)
        assert done == [], "it waits for the first one's end"
    thread.join(20)
    assert done == [2.0]


# ---- nothing but the file itself is opened ------------------------------------------------------


def test_a_playlist_leads_nowhere(tmp_path):
    make(tmp_path, "aac", name="other")
    make(tmp_path, "wav", name="other")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.aac"
        for number, content in enumerate(playlists(tmp_path, address)):
            path = tmp_path / f"list{number}"
            path.write_bytes(content)
            with pytest.raises(UnreadableInput):
                sound.measure(path)
            with pytest.raises(UnreadableInput):
                list(sound.Sound(path, max_duration_s=60))
        with pytest.raises(BlockingIOError):
            server.accept()


def playlists(folder, address):
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="audio/mp4">'
        '<Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>"
    )
    for target in (address, f"{folder}/other.aac", f"file:{folder}/other.aac"):
        yield hls.format(target).encode()
        yield dash.format(target).encode()
        yield f"ffconcat version 1.0\nfile '{target}'\n".encode()
    yield f"ffconcat version 1.0\nfile {folder}/other.wav\n".encode()
    yield b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n"


@pytest.mark.parametrize("lenient", [{}, {"enable_drefs": "1", "use_absolute_path": "1"}])
def test_a_movie_that_keeps_its_sound_in_another_file_has_none(tmp_path, monkeypatch, lenient):
    other = make(tmp_path, "wav", name="other")
    path = tmp_path / "x.mov"
    path.write_bytes(movie(samples=500, reference=alias(other)))
    if lenient:  # what a library that may do all it can would read
        with path.open("rb") as file, av.open(file, options=lenient) as container:
            assert any(any(bytes(frame.planes[0])) for frame in container.decode(audio=0))
    monkeypatch.setattr(sound, "_OPTIONS", sound._OPTIONS | lenient)
    with pytest.raises(UnreadableInput):
        list(sound.Sound(path, max_duration_s=60))


def alias(path):
    """A reference as old Macintosh programs wrote them."""
    name = str(path).encode() + bytes(len(str(path)) % 2)
    place = struct.pack(">HH", 2, len(name)) + name + struct.pack(">HH", 0xFFFF, 0)
    return box(b"alis", bytes(4) + bytes(50) + b"\1x" + bytes(62) + bytes(36) + place)


def test_each_of_the_guards_is_handed_to_the_reader(tmp_path, monkeypatch):
    """One would do for every trick known; three are for those that are not."""
    asked = {}

    def spied(_file, _mode, **options):
        asked.update(options)
        raise ValueError("seen enough")

    path = make(tmp_path, "wav")
    monkeypatch.setattr(av, "open", spied)
    with pytest.raises(UnreadableInput):
        sound.measure(path)
    assert asked["options"]["protocol_whitelist"] == "none"
    assert not {"hls", "dash", "concat", "sdp"} & {*asked["options"]["format_whitelist"].split(",")}
    assert "pcm_s16le" in asked["options"]["codec_whitelist"]
    assert asked["io_open"] is sound._no_other_file


def test_a_demuxer_that_would_open_a_file_is_refused():
    with pytest.raises(PermissionError, match="may not open"):
        sound._no_other_file("http://127.0.0.1/", 1, {})


# ---- no content raises ---------------------------------------------------------------------------


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    extension=st.sampled_from(sorted(KINDS)),
    cut=st.floats(0, 1),
    places=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=20),
)
def test_damaged_sounds_raise_nothing(look, templates, extension, cut, places):
    data = bytearray(templates[extension])
    del data[max(1, int(cut * len(data))) :]
    for place, junk in places:
        at = int(place * len(data))
        data[at : at + len(junk)] = junk
    found = look(bytes(data))
    assert found.duration_s is None or 0 < found.duration_s <= sound._MOST_SECONDS


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("templates")
    return {extension: make(folder, extension, seconds=0.5).read_bytes() for extension in KINDS}


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def movie(*, samples: int, reference: bytes = box(b"url ", struct.pack(">I", 1))) -> bytes:
    """A QuickTime file whose tables announce that many samples of one byte, with 1,000 in it."""

    def full(kind: bytes, content: bytes) -> bytes:
        return box(kind, bytes(4) + content)

    rate, length = 16_000, min(samples, 2**31 - 1)
    matrix = bytes(36)
    header = full(
        b"mvhd", struct.pack(">IIIII", 0, 0, 1000, 1000, 1 << 16) + bytes(12) + matrix + bytes(28)
    )
    track = full(b"tkhd", struct.pack(">IIIII", 0, 0, 1, 0, 1000) + bytes(16) + matrix + bytes(8))
    about = full(b"mdhd", struct.pack(">IIIIHH", 0, 0, rate, length, 0, 0))
    handler = full(b"hdlr", b"mhlrsoun" + bytes(12) + b"\0")
    kind = box(b"sowt", bytes(6) + struct.pack(">H", 1) + bytes(8)
               + struct.pack(">HHHHI", 1, 16, 0, 0, rate << 16))  # fmt: skip
    table = box(
        b"stbl",
        full(b"stsd", struct.pack(">I", 1) + kind)
        + full(b"stts", struct.pack(">III", 1, samples, 1))
        + full(b"stsc", struct.pack(">IIII", 1, 1, samples, 1))
        + full(b"stsz", struct.pack(">II", 1, samples))
        + full(b"stco", struct.pack(">I4s", 1, b"here")),
    )
    data = box(b"dinf", full(b"dref", struct.pack(">I", 1) + reference))
    media_box = box(b"mdia", about + handler + box(b"minf", full(b"smhd", bytes(4)) + data + table))
    brand = box(b"ftyp", b"qt  " + bytes(4) + b"qt  ")
    tables = brand + box(b"moov", header + box(b"trak", track + media_box))
    place = struct.pack(">I", len(tables) + 8)
    return tables.replace(b"here", place) + box(b"mdat", bytes(1000))
