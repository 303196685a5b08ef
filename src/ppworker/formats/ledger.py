"""Counts what an archive cannot hold: each format lists its losses, and no other may be told.

What most formats cannot hold is named once here, so that the same loss has the same word in every
format's list, in the report and in the documents.
"""

from collections.abc import Mapping

from ppworker.formats.base import About, Mark, Record, Report

SCORES = {"scores": "score of an annotation"}
REVIEWS = {"reviews": "whether an annotation is a suggestion still, or was edited"}
ORIGINS = {"origins": "who made an annotation: a person, or which model in which version"}
MARK_TEXTS = {"mark_texts": "text read or said at a box, polygon or segment"}
ITEM_TEXTS = {"item_texts": "text of an item that has a file"}
DESCRIPTIONS = {"descriptions": "description of an item"}
METADATA = {"metadata": "metadata of an item"}
STATES = {"states": "state of an item"}
FILE_NAMES = {"file_names": "name of an item that no file may have, or that two items have"}
LABEL_NOTES = {"label_notes": "description or shortcut of a label"}
LABEL_NAMES = {"label_names": "white space in the name of a label other than single spaces"}
SPLIT_NOTES = {"split_notes": "description of a split"}
SPLIT_NAMES = {"split_names": "name of a split that no file may have"}
SETTINGS = {"settings": "the version's config, and which split is shown first"}
MULTI_LABEL = {"multi_label": "that the dataset takes one label per item"}
CLASSES = {"classes": "label of a whole item"}
SPANS = {"spans": "place in a text"}
SEGMENTS = {"segments": "place in a recording"}
KEYPOINTS = {"keypoints": "keypoints"}
SHAPES = {"shapes": "box, polygon or keypoints"}
PAGES = {"pages": "place on a page of a document, or of a picture on a page behind its first"}
PLACES = {"places": "place that cannot be told in this format: the size of the picture is not "
                    "known, or its coordinates are a client's own"}  # fmt: skip
NO_PICTURES = {"no_pictures": "item that is no picture, with all its annotations"}
NO_TEXTS = {"no_texts": "item without text, with all its annotations"}
TEXT_FILES = {"text_files": "file of an item of which only the text is written"}

NO_CONTENT = {"no_content": "item that has neither text nor file, with all its annotations"}
EMPTY_SPLITS = {"empty_splits": "split without items"}

_ELSEWHERE = {"span": "spans", "segment": "segments"}
_GEOMETRIC = frozenset({"bbox", "polygon", "segment"})


def no_place_on_picture(mark: Mark) -> str:
    """The loss of a mark that is no place on the one page of a picture; empty where it is one."""
    if mark.kind in _ELSEWHERE:
        return _ELSEWHERE[mark.kind]
    if mark.kind not in {"bbox", "polygon", "keypoints"}:
        return "places" if mark.coordinates else "classes"
    return "pages" if mark.page else ""


def no_place_in_text(mark: Mark) -> str:
    """The loss of a mark that is no span."""
    if mark.kind == "segment":
        return "segments"
    if mark.kind in {"bbox", "polygon", "keypoints"}:
        return "shapes"
    return "places" if mark.coordinates else "classes"


class Ledger:
    """What one archive loses.

    Args:
        report: gets the counts.
        losses: words that may be told, each with what is lost; all others are held by the format.
    """

    def __init__(self, report: Report, losses: Mapping[str, str]) -> None:
        self._report = report
        self._losses = losses

    def lose(self, word: str, where: str = "", count: int = 1) -> None:
        """Count a loss, which must be listed."""
        if word not in self._losses:
            raise AssertionError(f"the loss {word!r} is not listed")
        self._report.lose(word, where, count)

    def count(self, word: str, count: int, where: str = "") -> None:
        """Count a loss that may have happened several times, or not at all."""
        if count:
            self.lose(word, where, count)

    def version(self, about: About) -> None:
        """Count what of the version itself the format does not hold."""
        names = [label.name for label in about.labels]
        self._if_listed("label_names", sum(name != " ".join(name.split()) for name in names))
        self._if_listed("label_notes", sum(bool(x.description or x.shortcut) for x in about.labels))
        self._if_listed("split_notes", sum(bool(split.description) for split in about.splits))
        self._if_listed("settings", bool(about.config) + bool(about.default_split))
        self._if_listed("multi_label", not about.multi_label)

    def item(self, record: Record) -> None:
        """Count what of an item beside its annotations the format does not hold."""
        where = record.name or record.id
        self._if_listed("descriptions", bool(record.description), where)
        self._if_listed("metadata", bool(record.metadata), where)
        self._if_listed("states", bool(record.state), where)
        self._if_listed("item_texts", bool(record.text and record.content_sha256), where)

    def mark(self, mark: Mark, where: str) -> None:
        """Count what of an annotation that is written the format does not hold."""
        self._if_listed("scores", mark.score is not None, where)
        self._if_listed("reviews", mark.review != "accepted", where)
        is_made = mark.source != "import" or mark.post_processor or mark.model_version
        self._if_listed("origins", bool(is_made), where)
        self._if_listed("mark_texts", bool(mark.text) and mark.kind in _GEOMETRIC, where)

    def _if_listed(self, word: str, count: int, where: str = "") -> None:
        if count and word in self._losses:
            self._report.lose(word, where, int(count))
