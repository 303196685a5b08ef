"""pocketsphinx: writes down what is said in a recording, in American English."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ppworker.errors import RunnerError, UnreadableInput
from ppworker.runners import options, sound, wire
from ppworker.runners.base import RawAnswer, RunnerInput, RunnerSpec
from ppworker.runners.sound import RATE

LANGUAGE = "en"
PADDING_S = 0.2
"""Sound before and after a stretch of speech that is heard with it: first words are soft."""

_FRAMES_PER_S = 100
_QUIET_S = 3.0
"""Where a stretch is too long, it is cut at the quietest moment of its last seconds."""
_MEMORY_S = 1.0
_LEAST_S = 0.1


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Speech without a pause: its samples, and the number of the first of them."""

    start: int
    pcm: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.pcm) // 2


class PocketsphinxRunner:
    """Speech to text: ``text``, and ``segments`` with text, seconds and ``confidence``.

    A segment ends where the speaker pauses. Its confidence is the mean of its words' posterior
    probabilities. ``duration`` is that of the sound in seconds; ``broken_packets`` counts places
    that could not be decoded, if there are any.
    """

    spec = RunnerSpec(
        tasks=("stt",),
        reads="file",
        media_types=sound.MEDIA_TYPES,
        max_batch=1,  # a recording is long: each gets the whole of the time limit
        memory_mb=sound.MEMORY_MB,
        needs=("av", "pocketsphinx"),
        extra="models",
    )

    def __init__(
        self,
        *,
        max_duration_s: float = 1800,
        max_segment_s: float = 30,
        pause_filter: int = 0,
        language_weight: float = 6.5,
        second_pass: bool = True,
    ) -> None:
        """Check the options.

        Args:
            max_duration_s: longest recording; longer ones are refused, not cut. Raise it together
                with the post-processor's timeout: a second of speech takes a fifth of a second.
            max_segment_s: longest segment; speech without a pause is cut there.
            pause_filter: 0 to 3; the higher, the more of what is no clear speech is left out.
            language_weight: how much likely sentences count against what was heard.
            second_pass: whether each segment is searched again; slower, often a little better.
        """
        self._max_duration_s = options.number("max_duration_s", max_duration_s, low=1, high=86_400)
        self._max_segment_s = options.number("max_segment_s", max_segment_s, low=5, high=120)
        self._pause_filter = options.whole_number("pause_filter", pause_filter, low=0, high=3)
        self._weight = options.number("language_weight", language_weight, low=1, high=20)
        self._second_pass = options.flag("second_pass", second_pass)
        self._decoder: Any = None
        self._version = ""

    def load(self) -> None:
        """Load the model that comes in pocketsphinx's package; needs no network connection."""
        import pocketsphinx  # noqa: PLC0415  reading the spec must not cost the libraries

        self._decoder = pocketsphinx.Decoder(
            samprate=RATE, lw=self._weight, fwdflat=self._second_pass, loglevel="FATAL"
        )
        self._version = f"pocketsphinx {version('pocketsphinx')} en-us"

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        """Answer each recording."""
        return [self._answer(item) for item in inputs]

    def close(self) -> None:
        """Let the model go."""
        self._decoder = None

    def _answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        if item.path is None:
            return UnreadableInput("the item has no file")
        try:
            return self._heard(sound.Sound(item.path, max_duration_s=self._max_duration_s))
        except Exception as error:  # noqa: BLE001  one input's fault must not cost the others
            return wire.as_runner_error(error)

    def _heard(self, recording: sound.Sound) -> RawAnswer:
        import pocketsphinx  # noqa: PLC0415  as in load

        # Forget the noise of the recording before, or answers would depend on their order.
        self._decoder.reinit_feat()
        endpointer = pocketsphinx.Endpointer(sample_rate=RATE, vad_mode=self._pause_filter)
        segments = []
        for stretch in _stretches(recording, endpointer, int(self._max_segment_s * RATE)):
            segment = self._segment(stretch)
            if segment is not None:
                segments.append(segment)
        raw: dict[str, Any] = {
            "text": " ".join(segment["text"] for segment in segments),
            "segments": segments,
            "language": LANGUAGE,
            "duration": round(recording.duration_s, 3),
        }
        if recording.broken_packets:
            raw["broken_packets"] = recording.broken_packets
        return RawAnswer(raw=raw, model_version=self._version)

    def _segment(self, stretch: _Stretch) -> dict[str, Any] | None:
        if len(stretch.pcm) < 2 * _LEAST_S * RATE:
            return None
        self._decoder.start_utt()
        self._decoder.process_raw(stretch.pcm, full_utt=True)
        self._decoder.end_utt()
        best = self._decoder.hyp()
        words = [word for word in self._decoder.seg() or () if _is_word(word.word)]
        if best is None or not best.hypstr or not words:
            return None  # a noise
        begin, end = stretch.start / RATE, stretch.end / RATE
        sure = sum(min(max(word.prob, 0.0), 1.0) for word in words) / len(words)
        return {
            "text": best.hypstr,
            "start": round(begin + words[0].start_frame / _FRAMES_PER_S, 3),
            "end": round(min(begin + (words[-1].end_frame + 1) / _FRAMES_PER_S, end), 3),
            "confidence": round(sure, 4),
        }


def _is_word(word: str) -> bool:
    """Whether it is none of the marks for silence and noises, such as ``<sil>`` or ``[COUGH]``."""
    return not word.startswith(("<", "[", "+"))


def _stretches(pieces: Iterable[bytes], endpointer: Any, max_samples: int) -> Iterator[_Stretch]:
    """Stretches of speech in order, none overlapping another, in memory that does not grow."""
    padding, memory = int(PADDING_S * RATE), int(_MEMORY_S * RATE)
    kept = bytearray()  # what may still be needed, from sample ``first`` on
    first = over = 0  # ``over``: samples before it are said already
    begun: int | None = None
    for frame in _frames(pieces, endpointer.frame_bytes):
        kept += frame
        now = first + len(kept) // 2
        if len(frame) == endpointer.frame_bytes:
            endpointer.process(frame)
        elif endpointer.in_speech:
            endpointer.end_stream(frame)
        if begun is None and endpointer.in_speech:
            begun = max(over, round(endpointer.speech_start * RATE) - padding)
        if begun is None:
            drop = len(kept) // 2 - memory
        elif not endpointer.in_speech:
            over = max(begun, min(now, round(endpointer.speech_end * RATE) + padding))
            yield _Stretch(begun, bytes(kept[2 * (begun - first) : 2 * (over - first)]))
            begun, drop = None, over - first
        elif now - begun >= max_samples:
            over = _quietest(kept, begun - first, now - first) + first
            yield _Stretch(begun, bytes(kept[2 * (begun - first) : 2 * (over - first)]))
            begun, drop = over, over - first
        else:
            drop = begun - first
        if drop > 0:
            del kept[: 2 * drop]
            first += drop
    if begun is not None:
        yield _Stretch(begun, bytes(kept[2 * (begun - first) :]))


def _frames(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The pieces as frames of one size, the last one shorter."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    yield bytes(waiting)


def _quietest(kept: bytearray, begin: int, end: int) -> int:
    """Middle of the quietest thirtieth of a second among the last ones of a stretch."""
    step = RATE // 30
    samples = array("h", bytes(kept[2 * max(begin + step, end - int(_QUIET_S * RATE)) : 2 * end]))
    places = range(0, len(samples) - step, step)
    quietest = min(places, key=lambda place: sum(map(abs, samples[place : place + step])))
    return end - len(samples) + quietest + step // 2
