"""usaddress: finds the parts of addresses in the United States in text.

The model labels every word it is given, and on prose that is noise. So the text is taken line by
line, and only a line that looks like an address is answered: it holds a house number with a street
name, a post-office box with its number, or a state with a ZIP code, all of them sure. Lines that
were left out are counted in the answer.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ppworker.errors import RunnerError, RunnerUnavailable, UnreadableInput
from ppworker.runners import options, wire
from ppworker.runners.base import RawAnswer, RunnerInput, RunnerSpec

MAX_LINE_CHARS = 400
"""Longest line that is looked at; a longer one is a paragraph."""
MAX_WORD_CHARS = 100
"""Longest word that is looked at; the library's patterns take quadratic time on long ones."""

_ANCHORS = (
    frozenset({"AddressNumber", "StreetName"}),
    frozenset({"USPSBoxType", "USPSBoxID"}),
    frozenset({"StateName", "ZipCode"}),
)
_LINE = re.compile(r"[^\r\n\v\f\x85\u2028\u2029]+")
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD_CHARS + 1},}}")
_UNFIT = re.compile(r"[\0\ud800-\udfff]")
_ENTITY = re.compile("&amp;|&#38;")
_EDGES = " \t,;()"
_HASH_CHARS = 12


@dataclass(frozen=True, slots=True)
class _Word:
    """A word the model labelled, its place in the whole text, and how sure the model is."""

    label: str
    score: float
    start: int
    end: int


class UsaddressRunner:
    """Answers one prediction per part of an address: label, score, ``start``, ``end``, ``text``.

    Offsets are code points of the item's text. Neighbouring words of one label are one part; its
    score is that of its least sure word.
    """

    spec = RunnerSpec(
        tasks=("ner",),
        reads="text",
        max_batch=64,
        paths=("model_path",),
        needs=("usaddress", "pycrfsuite"),
        extra="models",
    )

    def __init__(
        self,
        *,
        model_path: str | None = None,
        max_chars: int = 1_000_000,
        min_line_score: float = 0.8,
        every_line: bool = False,
    ) -> None:
        """Check the options.

        Args:
            model_path: a model trained with parserator; None means the one in the package. It is
                looked at before each batch: replaced, it is loaded again.
            max_chars: longest text, in code points; longer ones are refused.
            min_line_score: how sure the words must be by which a line is taken for an address.
            every_line: answer every line, address or not.
        """
        path = options.optional_text("model_path", model_path)
        self._path = Path(path) if path is not None else None
        self._max_chars = options.whole_number("max_chars", max_chars, low=1, high=100_000_000)
        self._min_line_score = options.fraction("min_line_score", min_line_score)
        self._every_line = options.flag("every_line", every_line)
        self._library: Any = None
        self._tagger: Any = None
        self._loaded_from: tuple[int, ...] | None = None
        self._version = ""

    def load(self) -> None:
        """Load the model.

        Raises:
            RunnerUnavailable: its file is missing or holds no such model.
        """
        import usaddress  # noqa: PLC0415  reading the spec must not cost the library

        self._library = usaddress
        if self._path is None:
            self._path = Path(usaddress.MODEL_PATH)
        self._load_model(self._path)

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        """Answer each text.

        Raises:
            RunnerUnavailable: the model's file has vanished since it was loaded.
        """
        if self._path is not None and _state(self._path) != self._loaded_from:
            self._load_model(self._path)
        return [self._answer(item) for item in inputs]

    def close(self) -> None:
        """Let the model go."""
        self._tagger = None

    def _load_model(self, path: Path) -> None:
        import pycrfsuite  # noqa: PLC0415  as in load

        state = _state(path)
        tagger = pycrfsuite.Tagger()
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            tagger.open(os.fspath(path))
        except (OSError, ValueError) as error:
            raise RunnerUnavailable(
                f"model file {path} cannot be used: {error}; put a good one back"
            ) from error
        self._tagger, self._loaded_from = tagger, state
        self._version = f"usaddress {version('usaddress')} {digest[:_HASH_CHARS]}"

    def _answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        if item.text is None:
            return UnreadableInput("the item has no text")
        if len(item.text) > self._max_chars:
            return UnreadableInput(
                f"the text has {len(item.text)} characters, more than runner_config.max_chars "
                f"({self._max_chars})",
                code="too_large",
            )
        try:
            return self._parsed(item.text)
        except Exception as error:  # noqa: BLE001  one input's fault must not cost the others
            return wire.as_runner_error(error)

    def _parsed(self, text: str) -> RawAnswer:
        predictions: list[dict[str, Any]] = []
        left_out: Counter[str] = Counter()
        for match in _LINE.finditer(text):
            if len(match[0]) > MAX_LINE_CHARS and not self._every_line:
                left_out["too_long"] += 1
                continue
            words = self._labelled(match[0], match.start())
            if self._every_line or self._looks_like_address(words):
                predictions += _parts(text, words)
            elif words:
                left_out["no_address"] += 1
        return RawAnswer(
            raw={"predictions": predictions, "lines_left_out": dict(left_out)},
            model_version=self._version,
        )

    def _labelled(self, line: str, offset: int) -> list[_Word]:
        fit = _fitted(line)
        tokens = self._library.tokenize(fit)
        if not tokens:
            return []
        labels = self._tagger.tag(self._library.tokens2features(tokens))
        scores = [self._tagger.marginal(label, i) for i, label in enumerate(labels)]
        spans = _placed(fit, tokens)
        return [
            _Word(label, min(max(score, 0.0), 1.0), offset + start, offset + end)
            for label, score, (start, end) in zip(labels, scores, spans, strict=True)
        ]

    def _looks_like_address(self, words: Sequence[_Word]) -> bool:
        unsure = {word.label for word in words if word.score < self._min_line_score}
        present = {word.label for word in words} - unsure
        return any(anchor <= present for anchor in _ANCHORS)


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written to.

    Raises:
        RunnerUnavailable: there is no such file.
    """
    try:
        seen = path.stat()
    except OSError as error:
        raise RunnerUnavailable(f"model file {path} is missing; put it back") from error
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


def _fitted(line: str) -> str:
    """The line as the library can take it, every character still at its place."""
    line = _UNFIT.sub(" ", line)
    line = _ENTITY.sub(lambda match: "&".ljust(len(match[0])), line)  # as the library itself reads
    return _LONG_WORD.sub(lambda match: " " * len(match[0]), line)


def _placed(line: str, tokens: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where the tokens stand, which are pieces of the line in order."""
    end = 0
    for token in tokens:
        start = line.index(token, end)
        end = start + len(token)
        yield start, end


def _parts(text: str, words: Sequence[_Word]) -> Iterator[dict[str, Any]]:
    """Neighbouring words of one label joined, without the punctuation around them."""
    first = 0
    for last, word in enumerate(words):
        if last + 1 < len(words) and words[last + 1].label == word.label:
            continue
        joined = words[first : last + 1]
        first = last + 1
        quoted = text[joined[0].start : joined[-1].end]
        start = joined[0].start + len(quoted) - len(quoted.lstrip(_EDGES))
        quoted = quoted.strip(_EDGES)
        if quoted:
            score = min(each.score for each in joined)
            yield {
                "label": word.label,
                "score": score,
                "start": start,
                "end": start + len(quoted),
                "text": quoted,
            }
