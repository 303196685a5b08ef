"""Opens the sound of a file and reads it as one channel of 16 kHz, with limits before work.

The bytes decide what the file is, and only demuxers and decoders on the lists below are used:
none of them follows a reference to another file or address, and one that tried would be refused.
Hostile tables and headers are met by the memory limit of the process that this runs in.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ppworker.errors import FileMissing, RunnerError, UnreadableInput

if TYPE_CHECKING:
    import av
    from av.audio.stream import AudioStream
    from av.container import InputContainer

MEDIA_TYPES = (
    "audio/wav",
    "audio/mpeg",
    "audio/mp4",
    "audio/aac",
    "audio/flac",
    "audio/ogg",
    "video/mp4",
    "video/quicktime",
    "video/x-matroska",
    "video/webm",
    "video/x-msvideo",
)
"""What is opened; of a video only the sound, of several sounds the first."""

RATE = 16_000
"""Samples per second of what is read: one channel, 16 bits, the machine's byte order."""
LEAST_RATE, MOST_RATE = 4_000, 768_000
MOST_CHANNELS = 64
MEMORY_MB = 1024
"""Address space of a process that reads sound, libraries included: some four times its need."""

_DEMUXERS = "wav,mp3,mov,aac,flac,ogg,matroska,avi"
_PCM = ("u8", "s8", "s16le", "s16be", "s24le", "s24be", "s32le", "s32be", "f32le", "f32be",
        "f64le", "f64be", "alaw", "mulaw")  # fmt: skip
_DECODERS = (
    *(f"pcm_{form}" for form in _PCM),
    *("mp3float", "mp3", "aac", "flac", "alac", "vorbis", "libvorbis", "opus", "libopus"),
    *("ac3", "eac3", "adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt", "gsm_ms"),
)
_OPTIONS = {
    "format_whitelist": _DEMUXERS,
    "codec_whitelist": ",".join(_DECODERS),
    "protocol_whitelist": "none",
    "probesize": str(1 << 20),
    "max_streams": "64",
}
_MEASURE_S = 10.0
_HEADER_TOLERANCE_S = 0.25
"""Encoders fill their last packet up; the header knows by how much."""
_MOST_SECONDS = 1e7
_MISSING_S, _MISSING_SHARE = 0.5, 0.05
"""How much of what the header promises may be missing: decoders drop what encoders filled up."""
_HEAD_BYTES = 16_384
_PLACEHOLDER = 0x7F00_0000


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What is known of a sound without decoding it."""

    duration_s: float
    has_video: bool


def measure(path: Path, *, within_s: float = _MEASURE_S) -> Measure:
    """Length of the sound by its packets, which a header that lies or a file cut short cannot bend.

    A file whose packets are not counted in time is believed what its header says.

    Raises:
        UnreadableInput: broken, without sound, or above a limit (code ``too_large``).
        FileMissing: the file cannot be opened.
    """
    deadline = time.monotonic() + within_s
    with _opened(path) as (container, stream):
        said = _header_s(container, stream)
        counted = _counted_s(container, stream, deadline)
        if counted is None or (
            said is not None and abs(said - counted) <= _HEADER_TOLERANCE_S and counted
        ):
            counted = said or 0.0
        if not 0 < counted <= _MOST_SECONDS:
            raise UnreadableInput("the sound is broken or cut short: it has no packets")
        return Measure(duration_s=round(counted, 3), has_video=_has_video(container))


def _counted_s(container: "InputContainer", stream: "AudioStream", deadline: float) -> float | None:
    """Length of all packets together, None where they are too many to count in time."""
    ticks = end = 0
    for packet in _packets(container, stream):
        if packet.size:
            ticks += packet.duration or 0
            end = max(end, (packet.pts or 0) + (packet.duration or 0))
        if time.monotonic() > deadline:
            return None
    return float((ticks or end) * (stream.time_base or Fraction(0)))


class Sound:
    """The sound of a file, piece by piece; iterate over it once.

    Raises:
        UnreadableInput: broken, without sound, or above a limit (code ``too_large``).
        FileMissing: the file cannot be opened.
    """

    def __init__(self, path: Path, *, max_duration_s: float) -> None:
        self._path = path
        self._max_duration_s = max_duration_s
        self._samples = 0
        self.broken_packets = 0
        """Packets that could not be decoded; as much silence stands for each."""

    @property
    def duration_s(self) -> float:
        """Length of what was read so far."""
        return self._samples / RATE

    def __iter__(self) -> Iterator[bytes]:
        # Looked through before it is decoded: what is refused in the end costs nothing then.
        with _opened(self._path) as (container, stream):
            promised = _promised_s(self._path, container, stream)
            self._refuse_too_long(promised)
            counted = _counted_s(container, stream, time.monotonic() + _MEASURE_S)
            if counted is not None:
                _refuse_cut_short(counted, promised)
        with _opened(self._path) as (container, stream):
            yield from self._read(container, stream)
        if not self._samples:
            raise UnreadableInput("the sound is broken or cut short: nothing of it can be decoded")
        _refuse_cut_short(self.duration_s, promised)

    def _read(self, container: "InputContainer", stream: "AudioStream") -> Iterator[bytes]:
        converter = _Converter()
        decoded = 0
        for packet in _packets(container, stream):
            try:
                frames: list[Any] = packet.decode()
            except Exception as error:  # noqa: BLE001  decoders fail on broken data in any way
                _refuse_greed(error)
                self.broken_packets += 1
                frames = []
                pieces = [_silence(packet, stream)]
            else:
                decoded += bool(frames)
                pieces = [piece for frame in frames for piece in converter.converted(frame)]
            yield from self._counted(pieces)
        yield from self._counted(converter.rest())
        if self.broken_packets > decoded:
            raise UnreadableInput(
                f"the sound is broken: {self.broken_packets} of its "
                f"{self.broken_packets + decoded} packets cannot be decoded"
            )

    def _counted(self, pieces: list[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._samples += len(piece) // 2
            self._refuse_too_long(self.duration_s)
            yield piece

    def _refuse_too_long(self, seconds: float) -> None:
        if seconds > self._max_duration_s:
            raise UnreadableInput(
                f"the sound lasts {seconds:.0f} s or more, longer than "
                f"runner_config.max_duration_s ({self._max_duration_s:g})",
                code="too_large",
            )


class _Converter:
    """Frames of any kind to ours; a stream may change its kind on the way."""

    def __init__(self) -> None:
        self._kind: tuple[Any, ...] = ()
        self._resampler: av.AudioResampler | None = None

    def converted(self, frame: "av.AudioFrame") -> list[bytes]:
        import av  # noqa: PLC0415  reading the specs of runners must not cost the library

        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        done = []
        if kind != self._kind:
            done = self.rest()
            _refuse_odd(frame.sample_rate, frame.layout.nb_channels)
            self._kind = kind
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
        frame.pts = None  # gaps and jumps in time stamps are no matter of the samples
        return done + self._through(frame)

    def rest(self) -> list[bytes]:
        """What the filter still holds."""
        return self._through(None) if self._resampler is not None else []

    def _through(self, frame: "av.AudioFrame | None") -> list[bytes]:
        if self._resampler is None:
            return []
        try:
            made = self._resampler.resample(frame)
        except Exception as error:
            _refuse_greed(error)
            raise UnreadableInput(f"the sound cannot be converted: {error}") from error
        return [bytes(each.planes[0])[: 2 * each.samples] for each in made]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple["InputContainer", "AudioStream"]]:
    import av  # noqa: PLC0415  as in _Converter

    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise FileMissing(f"the file cannot be opened: {error.strerror}") from error
        if not file.read(1):
            raise UnreadableInput("the file is empty")
        file.seek(0)
        try:
            container = stack.enter_context(
                av.open(file, "r", options=dict(_OPTIONS), metadata_errors="replace",
                        io_open=_no_other_file)
            )  # fmt: skip
            stream = _sound_of(container)
        except RunnerError:
            raise
        except Exception as error:
            _refuse_greed(error)
            raise UnreadableInput(f"the sound is broken or cut short: {_said(error)}") from error
        yield container, stream


def _no_other_file(url: str, *_: object) -> NoReturn:
    raise PermissionError(f"a sound may not open {url!r}")


def _sound_of(container: "InputContainer") -> "AudioStream":
    import av  # noqa: PLC0415  as in _Converter

    if not container.streams.audio:
        raise UnreadableInput("there is no sound in the file")
    stream = container.streams.audio[0]
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    context: Any = stream.codec_context  # none where nobody knows the codec, whatever the types say
    if context is None:
        raise UnreadableInput("the sound is broken or cut short: its kind is not known")
    if context.name not in _DECODERS:
        raise UnreadableInput(f"the sound is of a kind that is not decoded: {context.name}")
    _refuse_odd(context.sample_rate, context.channels)
    context.thread_count = 1
    return stream


def _refuse_odd(rate: int, channels: int) -> None:
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise UnreadableInput(
            f"the sound has {rate} samples per second; from {LEAST_RATE} to {MOST_RATE} are read"
        )
    if not 1 <= channels <= MOST_CHANNELS:
        raise UnreadableInput(f"the sound has {channels} channels; 1 to {MOST_CHANNELS} are read")


def _packets(
    container: "InputContainer", stream: "AudioStream"
) -> Iterator["av.Packet[AudioStream]"]:
    try:
        yield from container.demux(stream)
    except RunnerError:
        raise
    except Exception as error:  # noqa: BLE001  demuxers fail on broken data in any way
        _refuse_greed(error)  # what came before the break counts


def _silence(packet: "av.Packet[AudioStream]", stream: "AudioStream") -> bytes:
    """As much of it as the packet would have lasted, a second at most."""
    seconds = float((packet.duration or 0) * (stream.time_base or Fraction(0)))
    return bytes(2 * int(min(max(seconds, 0.0), 1.0) * RATE))


def _header_s(container: "InputContainer", stream: "AudioStream") -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None


def _promised_s(path: Path, container: "InputContainer", stream: "AudioStream") -> float:
    """Length by a header that knows it, 0 where there is none, or one that only estimates."""
    said = _header_s(container, stream) or 0.0
    kinds = container.format.name.split(",")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if "wav" in kinds and head.startswith(b"RIFF"):
        size, there = 8 + int.from_bytes(head[4:8], "little"), path.stat().st_size
        # Who writes to a pipe does not know the size and writes the largest there is, or none.
        return said * size / there if there < size < _PLACEHOLDER else said
    is_exact = {"flac", "mov", "avi", "ogg"} & {*kinds} or ("mp3" in kinds and _has_length(head))
    return said if is_exact else 0.0


def _refuse_cut_short(seconds: float, promised: float) -> None:
    if promised - seconds > max(_MISSING_S, _MISSING_SHARE * promised):
        raise UnreadableInput(
            f"the sound is broken or cut short: {seconds:.1f} s of {promised:.1f} s can be read"
        )


def _has_length(head: bytes) -> bool:
    """Whether an MP3 file begins with a frame that tells how many follow."""
    return b"Xing" in head or b"Info" in head


def _has_video(container: "InputContainer") -> bool:
    """Whether there are moving pictures; the cover of an album is none."""
    import av  # noqa: PLC0415  as in _Converter

    cover = av.stream.Disposition.attached_pic
    return any(not each.disposition & cover for each in container.streams.video)


def _refuse_greed(error: Exception) -> None:
    if isinstance(error, MemoryError):
        raise UnreadableInput(
            "reading the sound needs too much memory: its tables are broken or too large",
            code="too_large",
        ) from error


def _said(error: Exception) -> str:
    """What the library said, without the name of our file."""
    return str(getattr(error, "strerror", None) or error)
