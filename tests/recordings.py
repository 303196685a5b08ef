"""Recordings for tests, made by PyAV on the fly: a tone, in any container."""

import math
import struct
from array import array
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

SPEECH = Path(__file__).parents[1] / "examples" / "speech"

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "wav": ("audio/wav", "pcm_s16le", {}),
    "mp3": ("audio/mpeg", "libmp3lame", {}),
    "m4a": ("audio/mp4", "aac", {}),
    "flac": ("audio/flac", "flac", {}),
    "ogg": ("audio/ogg", "libopus", {"rate": 48_000}),
    "aac": ("audio/aac", "aac", {"container": "adts"}),
    "mp4": ("video/mp4", "aac", {"video": True}),
    "mov": ("video/quicktime", "pcm_s16le", {"video": True}),
    "mkv": ("video/x-matroska", "libopus", {"rate": 48_000, "video": True}),
    "webm": ("video/webm", "libopus", {"rate": 48_000}),
    "avi": ("video/x-msvideo", "libmp3lame", {"video": True}),
}
"""By extension: media type, codec, and what `recording` is to be asked for."""


def tone(seconds: float, *, rate: int = 16_000, hertz: float = 440.0) -> "array[int]":
    """Samples of 16 bits."""
    step = 2 * math.pi * hertz / rate
    return array("h", (int(12_000 * math.sin(step * n)) for n in range(int(seconds * rate))))


def recording(
    path: Path,
    samples: "array[int]",
    codec: str,
    *,
    container: str | None = None,
    rate: int = 16_000,
    layout: str = "mono",
    bit_rate: int = 64_000,
    video: bool = False,
    sound: bool = True,
) -> Path:
    """Write samples of 16 kHz, one channel, as the codec and container want them."""
    with av.open(str(path), "w", format=container) as out:
        film: Any = out.add_stream("mpeg4", rate=10) if video else None
        heard: Any = out.add_stream(codec, rate=rate, layout=layout) if sound else None
        if film:
            _encode_film(out, film)
        if heard:
            heard.bit_rate = bit_rate
            _encode(out, heard, samples, layout, rate)
    return path


def make(folder: Path, extension: str, *, seconds: float = 2.0, name: str = "tone") -> Path:
    """A tone in a container of that extension."""
    _, codec, options = KINDS[extension]
    return recording(folder / f"{name}.{extension}", tone(seconds), codec, **options)


def wav(
    data: bytes, *, rate: int = 16_000, channels: int = 1, bits: int = 16, size: int | None = None
) -> bytes:
    """A WAV file with whatever its header is to say; ``size`` is that of the data it announces."""
    said = len(data) if size is None else size
    align = channels * bits // 8
    form = struct.pack(
        "<HHIIHH", 1, channels, rate, rate * align % 2**32, align % 2**16, bits
    )  # fmt: skip
    head = b"RIFF" + struct.pack("<I", (36 + said) % 2**32) + b"WAVEfmt " + struct.pack("<I", 16)
    return head + form + b"data" + struct.pack("<I", said % 2**32) + data


def _encode(out: Any, stream: Any, samples: "array[int]", layout: str, rate: int) -> None:
    frame = av.AudioFrame(format="s16", layout="mono", samples=len(samples))
    frame.planes[0].update(samples.tobytes())
    frame.sample_rate, frame.pts = 16_000, 0
    resampler = av.AudioResampler(
        format=stream.format,
        layout=layout,
        rate=rate,
        frame_size=stream.codec_context.frame_size or 1024,
    )
    for each in [*resampler.resample(frame), *resampler.resample(None), None]:
        out.mux(stream.encode(each))


def _encode_film(out: Any, stream: Any) -> None:
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    for number in range(5):
        frame = av.VideoFrame(64, 64, "yuv420p")
        frame.pts, frame.time_base = number, Fraction(1, 10)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
