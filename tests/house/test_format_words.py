"""Every word in the report of an import or export is in the list that users look it up in."""

import ast
from pathlib import Path

import pytest

from ppworker.domain.drop import Reason
from ppworker.formats.registry import FORMATS
from ppworker.formats.skips import SKIPS

PACKAGE = Path(__file__).parents[2] / "src" / "ppworker"
READERS = [*PACKAGE.glob("formats/*.py"), *PACKAGE.glob("pipeline/transfer/*.py")]
PLACING = [
    PACKAGE / "pipeline" / "transfer" / "placing.py",
    PACKAGE / "pipeline" / "transfer" / "arrivals.py",
    PACKAGE / "domain" / "coordinates.py",
    PACKAGE / "domain" / "geometry.py",
]


def constants(node):
    return {
        each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)
    }  # fmt: skip


def skipped():
    """Words that calls of ``skip`` name, and those that begin as the words of annotations do."""
    found = set()
    for path in READERS:
        if path.name == "skips.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "skip":
                first = node.args[0]
                if not isinstance(first, ast.JoinedStr):
                    found |= constants(first)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {node.value} if node.value.startswith("annotation_") else set()
    return {word for word in found if word != "annotation_" and " " not in word}


def placing():
    """Words of annotations that do not fit their item."""
    names = {
        node.attr
        for path in PLACING
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason"
    }  # fmt: skip
    return {f"annotation_{Reason[name]}" for name in names}


def test_every_word_of_an_import_is_listed_and_no_other():
    assert skipped() | placing() == set(SKIPS)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "ppworker"])
def test_every_loss_of_a_format_stands_in_its_list(name):
    """What generic code tells is told only if listed; what the format itself tells must be."""
    module = __import__(FORMATS[name].__class__.__module__, fromlist=["LOSSES"])
    losses = getattr(module, "LOSSES", None)
    if losses is None:
        assert name not in {"yolo", "coco", "labelstudio", "spacy-ner", "csv", "folders"}
        return
    tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
    told = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", "") in {"lose", "count"}
            and node.args
        ):
            told |= {word for word in constants(node.args[0]) if word.isidentifier()}
    assert told <= losses.keys()
