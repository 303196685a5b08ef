"""Reads a model's raw answer in the native shape; what is broken in it is counted, not guessed at.

Raw answers come from other people's programs: nothing about their types may be assumed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ppworker.domain import geometry as geo
from ppworker.domain.drop import Reason, tally
from ppworker.domain.inference import Inference, Prediction, Task
from ppworker.errors import BadResponse

SCORE_NOISE = 1e-6
"""How far a score may stick out of 0 to 1 and still be clamped: rounding of 32-bit floats."""
READ_LABEL = "text"
"""Label of a line of text that was read."""
MAX_SPEAKERS = 1000
SPEECH_LABEL = "speech"
"""Label of a segment of speech without a speaker."""

Element = Mapping[str, Any]


class _Unreadable(Exception):  # noqa: N818  control flow of this module, never seen outside
    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class _Reading:
    """What has been read so far."""

    raw: Element
    predictions: list[Prediction] = field(default_factory=list)
    dropped: Counter[Reason] = field(default_factory=Counter)
    first_fault: str = ""

    def text(self) -> str | None:
        value = self.raw.get("text")
        if value is not None and not isinstance(value, str):
            self.fault(Reason.MALFORMED, "'text' is no string")
            return None
        return value

    def elements(self, holder: Element, key: str, place: str = "") -> Iterator[tuple[str, Element]]:
        """Objects of a list, each with its name for messages; what is no object is a fault."""
        values = holder.get(key)
        if values is None:
            return
        if not isinstance(values, list | tuple):
            self.fault(Reason.MALFORMED, f"'{place}{key}' is no list")
            return
        for index, value in enumerate(values):
            name = f"{place}{key}[{index}]"
            if isinstance(value, Mapping):
                yield name, value
            else:
                self.fault(Reason.MALFORMED, f"{name} is no object")

    def read(self, name: str, element: Element, reader: Callable[[Element], Prediction]) -> None:
        """Keep the element as a prediction, or count why it is none."""
        try:
            self.predictions.append(reader(element))
        except _Unreadable as unreadable:
            self.fault(unreadable.reason, f"{name}: {unreadable}")

    def fault(self, reason: Reason, message: str) -> None:
        self.dropped[reason] += 1
        self.first_fault = self.first_fault or message


def parse(task: Task, raw: Mapping[str, Any]) -> Inference:
    """Read a raw answer for a task.

    Broken elements are dropped and counted (``malformed``, ``bad_score``, ``bad_geometry``). An
    empty list of predictions is an answer. Text is read for ocr, stt and llm; where ocr or stt
    give only lines or segments, their texts make it.

    Raises:
        BadResponse: the answer is no object, lacks all that its task needs, or holds nothing but
            malformed elements; the message names what is missing.
    """
    # Runners are other people's code, so the type is a promise, not a fact.
    if not isinstance(raw, Mapping):
        raise BadResponse(f"The answer is no JSON object but {_name_of_type(raw)}")
    keys, reader = _TASKS[task]
    if all(raw.get(key) is None for key in keys):
        wanted = " nor ".join(f"'{key}'" for key in keys)
        lacks = f"has neither {wanted}" if len(keys) > 1 else f"lacks {wanted}"
        raise BadResponse(f"The answer for {task} {lacks}")
    reading = _Reading(raw)
    text = reader(reading)
    only_malformed = set(reading.dropped) == {Reason.MALFORMED}
    if text is None and not reading.predictions and only_malformed:
        raise BadResponse(f"Nothing of the answer for {task} can be read: {reading.first_fault}")
    return Inference(
        text=text, predictions=tuple(reading.predictions), dropped=tally(reading.dropped)
    )


def _read_classification(reading: _Reading) -> None:
    for name, element in reading.elements(reading.raw, "predictions"):
        reading.read(name, element, _class)


def _read_detection(reading: _Reading) -> None:
    for name, element in reading.elements(reading.raw, "predictions"):
        reading.read(name, element, _shape)


def _read_ner(reading: _Reading) -> None:
    for name, element in reading.elements(reading.raw, "predictions"):
        reading.read(name, element, _span)


def _read_llm(reading: _Reading) -> str | None:
    for name, element in reading.elements(reading.raw, "predictions"):
        if element.get("polygon") is not None or element.get("bbox") is not None:
            reading.read(name, element, _shape)
        elif element.get("start") is not None or element.get("end") is not None:
            reading.read(name, element, _span)
        else:
            reading.read(name, element, _class)
    return reading.text()


def _read_ocr(reading: _Reading) -> str | None:
    pages: list[str] = []
    has_lines = False
    for index, (name, page) in enumerate(reading.elements(reading.raw, "pages")):
        texts: list[str] = []
        number = page.get("page", index)
        for place, line in reading.elements(page, "lines", f"{name}."):
            has_lines = True
            # A line without a usable place is still part of what was read.
            if isinstance(text := line.get("text"), str):
                texts.append(text)
            reading.read(place, {**line, "label": READ_LABEL, "page": number}, _shape)
        if texts:
            pages.append("\n".join(texts))
    for name, element in reading.elements(reading.raw, "predictions"):
        label = element.get("label")
        named = {**element, "label": READ_LABEL if label is None else label}
        reading.read(name, named, _shape)
    text = reading.text()
    if text is None and (pages or (isinstance(reading.raw.get("pages"), list) and not has_lines)):
        text = "\n\n".join(pages)
    return text


def _read_stt(reading: _Reading) -> str | None:
    return _read_speech(reading, by_speaker=False)


def _read_diarization(reading: _Reading) -> str | None:
    return _read_speech(reading, by_speaker=True)


def _read_speech(reading: _Reading, *, by_speaker: bool) -> str | None:
    parts: list[str] = []
    for name, element in reading.elements(reading.raw, "segments"):
        speaker = _speaker(element) if by_speaker else None
        reading.read(name, {**element, "label": speaker or SPEECH_LABEL}, _segment)
        said = element.get("text")
        if isinstance(said, str) and said.strip():
            prefix = f"{speaker}: " if isinstance(speaker, str) and speaker else ""
            parts.append(prefix + said.strip())
    text = reading.text()
    if text is None and (parts or reading.raw.get("segments") == []):
        text = ("\n" if by_speaker else " ").join(parts)
    return text


_TASKS: dict[Task, tuple[tuple[str, ...], Callable[[_Reading], str | None]]] = {
    "classification": (("predictions",), _read_classification),
    "detection": (("predictions",), _read_detection),
    "ner": (("predictions",), _read_ner),
    "ocr": (("text", "pages", "predictions"), _read_ocr),
    "stt": (("text", "segments"), _read_stt),
    "stt-diarization": (("text", "segments"), _read_diarization),
    "llm": (("text", "predictions"), _read_llm),
}
"""For each task the keys of which one must be there, and its reader."""


def _class(element: Element) -> Prediction:
    return Prediction(
        kind="class", label=_label(element), score=_score(element), text=_text(element)
    )


def _shape(element: Element) -> Prediction:
    label, score, text, page = _label(element), _score(element), _text(element), _page(element)
    # A model that gives both means the same thing, and the polygon is the finer one.
    if element.get("polygon"):
        points = geo.read_polygon(element["polygon"])
        if points is None:
            raise _Unreadable(Reason.BAD_GEOMETRY, "'polygon' is no list of three or more [x, y]")
        geometry = {"points": [[x, y] for x, y in points]}
        return Prediction(
            kind="polygon", label=label, score=score, geometry=geometry, text=text, page=page
        )
    box = geo.read_box(element.get("bbox"))
    if box is None:
        raise _Unreadable(Reason.BAD_GEOMETRY, "there is no usable 'bbox' or 'polygon'")
    return Prediction(
        kind="bbox", label=label, score=score, geometry={"box": box}, text=text, page=page
    )


def _span(element: Element) -> Prediction:
    label, score, text = _label(element), _score(element), _text(element)
    start = geo.whole_number(element.get("start"))
    end = geo.whole_number(element.get("end"))
    if start is None or end is None or start < 0 or end <= start:
        raise _Unreadable(Reason.BAD_GEOMETRY, "'start' and 'end' are no span of code points")
    geometry = {"start": start, "end": end}
    return Prediction(kind="span", label=label, score=score, geometry=geometry, text=text)


def _segment(element: Element) -> Prediction:
    label, score, text = _label(element), _score(element), _text(element)
    start, end = geo.number(element.get("start")), geo.number(element.get("end"))
    if start is None or end is None or end <= start:
        raise _Unreadable(Reason.BAD_GEOMETRY, "'start' and 'end' are no span of seconds")
    geometry = {"start": start, "end": end}
    return Prediction(kind="segment", label=label, score=score, geometry=geometry, text=text)


def _label(element: Element) -> str:
    label = element.get("label")
    if not isinstance(label, str):
        fault = "'label' is missing" if label is None else "'label' is no string"
        raise _Unreadable(Reason.MALFORMED, fault)
    return label


def _text(element: Element) -> str | None:
    text = element.get("text")
    if text is not None and not isinstance(text, str):
        raise _Unreadable(Reason.MALFORMED, "'text' is no string")
    return text


def _score(element: Element) -> float | None:
    value = element.get("score")
    if value is None:
        value = element.get("confidence")
    if value is None:
        return None
    score = geo.number(value)
    if score is None or not -SCORE_NOISE <= score <= 1 + SCORE_NOISE:
        raise _Unreadable(Reason.BAD_SCORE, "the score is no number between 0 and 1")
    return min(max(score, 0.0), 1.0)


def _speaker(element: Element) -> Any:
    """Name of the speaker; models that number them mean what others call SPEAKER_00."""
    speaker = element.get("speaker")
    if isinstance(speaker, int) and not isinstance(speaker, bool) and 0 <= speaker < MAX_SPEAKERS:
        return f"SPEAKER_{speaker:02d}"
    return speaker


def _page(element: Element) -> int | None:
    page = element.get("page")
    if page is None:
        return None
    number = geo.whole_number(page)
    if number is None or number < 0:
        raise _Unreadable(Reason.BAD_GEOMETRY, "'page' is no page number from 0")
    return number


def _name_of_type(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        return "a string"
    return "null" if value is None else "a bare value"
