"""Datumaro's side of `make oracle`: says what it reads, and writes it again in its own layouts.

Runs in an environment of its own (requirements/oracle.txt), which knows nothing of ppworker.

Usage: python datumaro_side.py FORMAT FOLDER [OUT_FORMAT OUT_FOLDER]...
"""

import json
import logging
import sys
from importlib.metadata import version
from typing import Any

from datumaro import AnnotationType, Dataset  # type: ignore[import-not-found]

logging.disable(logging.WARNING)


def said(dataset: Any) -> dict[str, Any]:
    """Boxes and polygons by split and picture, corners in pixels."""
    labels = [category.name for category in dataset.categories()[AnnotationType.label]]
    found: dict[str, Any] = {}
    for item in dataset:
        marks = []
        for mark in item.annotations:
            kind = mark.type.name
            if kind in {"bbox", "polygon"}:
                marks.append([labels[mark.label], kind, [float(side) for side in mark.points]])
        found.setdefault(item.subset, {})[item.id] = marks
    return found


def main(format_: str, folder: str, *outs: str) -> None:
    """Read, say, write."""
    dataset = Dataset.import_from(folder, format_)
    print(json.dumps({"version": version("datumaro"), "splits": said(dataset)}))
    for out_format, out_folder in zip(outs[::2], outs[1::2], strict=True):
        dataset.export(out_folder, out_format, save_media=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
