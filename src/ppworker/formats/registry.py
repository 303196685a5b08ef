"""Every format there is, by the word by which clients ask for it."""

from collections.abc import Mapping

from ppworker.formats.archive import Archive
from ppworker.formats.base import About, Format
from ppworker.formats.coco import Coco
from ppworker.formats.csv_table import CsvTable
from ppworker.formats.folders import Folders
from ppworker.formats.label_studio import LabelStudio
from ppworker.formats.own import Own
from ppworker.formats.spacy_ner import SpacyNer
from ppworker.formats.yolo import Yolo

_IN_ORDER: tuple[Format, ...] = (
    Own(),
    Coco(),
    LabelStudio(),
    Yolo(),
    SpacyNer(),
    CsvTable(),
    Folders(),
)
"""In the order in which an archive is held against them; what is none of the others is folders."""

FORMATS: Mapping[str, Format] = {each.name: each for each in _IN_ORDER}

_USUAL = {"tabular": "csv", "ner": "spacy-ner"}


def detect(archive: Archive, about: About) -> Format:
    """The format of an archive of which nothing else is known."""
    return next(each for each in _IN_ORDER if each.recognises(archive, about))


def usual(content_type: str, *, has_boxes: bool) -> Format:
    """The format in which a dataset is exported unless another one is asked for."""
    name = "yolo" if has_boxes and content_type == "images" else _USUAL.get(content_type, "folders")
    return FORMATS.get(name, FORMATS["folders"])
